"""What the loss of k-means rounds can be: variants in one process, without Ray.

    pip install -e . && python benchmarks/rounds_losses.py --train TRAIN.parquet \\
        --test TEST.parquet --label label [--epochs 8] [--seeds 0] [--variants simclr attract]

Parquet files with a column ``image`` of bytes. All variants have the same views, batches of 256,
the small encoder at 32 pixels in bfloat16, temperature 0.2; after the warm-up the projector's
output is clustered by spherical k-means, again before each epoch or every few (``--every``), and
batches are composed.

- ``simclr``: no clusters.
- ``rounds``: Cl-InfoNCE in composed batches, on a projector of its own if ``--instance-weight`` is
  above 0, beside SimCLR's loss of that weight.
- ``eliminate``: SimCLR's loss, in which images of the anchor's cluster leave the denominator.
- ``attract``: the same, and the nearest of them is a second positive, with weight 0.3.
- ``compose``: SimCLR's loss; clusters only compose the batches, so that negatives are harder.

Prints a JSON line for each training: kNN and linear probe on the test images, and the share of
pairs in a cluster that have the same label, for the first and the last clusters.
"""

from __future__ import annotations

import argparse
import json
import time

import faiss
import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F

from wcl_ray.clusters.quality import measure
from wcl_ray.config import AugmentConfig, ModelConfig, TrainConfig
from wcl_ray.data.augment import Augment, centre
from wcl_ray.data.decode import decode_batch
from wcl_ray.data.sampler import epoch_order
from wcl_ray.evaluate.knn import knn_accuracy
from wcl_ray.evaluate.probe import linear_probe
from wcl_ray.model.encoder import Encoder, build_encoder
from wcl_ray.model.loss import cl_infonce
from wcl_ray.model.optim import build_optimizer, learning_rate

SIZE, BATCH, TEMPERATURE, ATTRACTION = 32, 256, 0.2, 0.3
VARIANTS = ("simclr", "rounds", "eliminate", "attract", "compose")


class Images:
    """Decoded images: uint8 (N, 3, 32, 32), and the names of their labels."""

    def __init__(self, path: str, label: str, most: int | None) -> None:
        rows = pq.read_table(path, columns=["image", label]).slice(0, most)
        cells = rows["image"].to_pylist()
        decoded = decode_batch([c["bytes"] if isinstance(c, dict) else c for c in cells], SIZE)
        self.pixels, self.aspect = decoded.tensors()
        self.labels = rows[label].to_pylist()

    def features(self, encoder: Encoder, projected: bool) -> torch.Tensor:
        """float32 (N, d) of the centre crops: of the last projector, or of the backbone."""
        encoder.eval()
        rows = []
        with torch.inference_mode():
            for i in range(0, len(self.pixels), 512):
                crops = centre(self.pixels[i : i + 512], self.aspect[i : i + 512], SIZE)
                crops = crops.contiguous(memory_format=torch.channels_last)
                rows.append(encoder(crops)[-1] if projected else encoder.backbone(crops))
        return torch.cat(rows)


def kmeans(
    features: torch.Tensor, k: int, seed: int, centroids: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Clusters int64 (N,) and centroids (k, d), started from earlier centroids if there are any."""
    x = F.normalize(features, dim=1).numpy()
    model = faiss.Kmeans(
        x.shape[1], k, niter=10, seed=seed, spherical=True, max_points_per_centroid=len(x),
        min_points_per_centroid=1,
    )  # fmt: skip
    model.train(x, init_centroids=centroids)
    _, labels = model.index.search(x, 1)
    return labels[:, 0], np.asarray(model.centroids)


def info_nce(z: torch.Tensor, clusters: torch.Tensor) -> torch.Tensor:
    """The package's loss of both views (2B, d) with clusters int64 (B,)."""
    z1, z2 = z.chunk(2)
    rows = clusters[:, None]
    return cl_infonce(z1, z2, z1, z2, rows, rows, 0, TEMPERATURE).loss


def eliminate(z: torch.Tensor, clusters: torch.Tensor, attraction: float) -> torch.Tensor:
    """SimCLR's loss without images of the anchor's cluster among the negatives.

    Args:
        z: float (2B, d). clusters: int64 (B,), -1: none.
        attraction: weight of the nearest image of the cluster as a positive.
    """
    views = F.normalize(z, dim=1).chunk(2)
    batch = len(clusters)
    diagonal, rows = torch.eye(batch, dtype=torch.bool), torch.arange(batch)
    same = (clusters[:, None] == clusters) & (clusters[:, None] >= 0) & ~diagonal
    loss = torch.zeros(())
    for anchors, others in (views, views[::-1]):
        logits = torch.cat([anchors @ anchors.T, anchors @ others.T], 1) / TEMPERATURE
        negatives = torch.cat([~diagonal & ~same, ~same], 1)
        total = logits.masked_fill(~negatives, -1e30).logsumexp(1)
        losses = total - logits[rows, rows + batch]
        if attraction:
            near = (logits[:, :batch] + logits[:, batch:]).detach().masked_fill(~same, -1e30)
            score, partner = near.max(1)
            pair = torch.stack([logits[rows, partner], logits[rows, partner + batch]])
            pull = torch.logaddexp(total, pair.logsumexp(0)) - pair.mean(0)
            losses = losses + attraction * torch.where(score > -1e29, pull, 0.0)
        loss = loss + losses.mean() / 2
    return loss


def train(images: Images, variant: str, options: argparse.Namespace, seed: int) -> Encoder:
    """Train an encoder, and print what the clusters have to do with the labels."""
    count, steps = len(images.pixels), len(images.pixels) // BATCH
    two = variant == "rounds" and options.instance_weight > 0
    config = TrainConfig(epochs=options.epochs, batch_size=BATCH)
    torch.manual_seed(seed)
    encoder = build_encoder(ModelConfig(), SIZE, two).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(encoder, config)
    augment, ids = Augment(AugmentConfig(), SIZE, seed), torch.arange(count)
    clusters, centroids = np.full(count, -1), None
    for epoch in range(options.epochs):
        warm = variant == "simclr" or epoch < options.warmup
        new = not warm and (epoch - options.warmup) % options.every == 0
        if new:
            features = images.features(encoder, projected=True)
            clusters, centroids = kmeans(features, options.k or count // 50, seed, centroids)
        order = epoch_order(clusters, options.group, BATCH, np.random.default_rng([seed, epoch]))
        encoder.train()
        for step in range(steps):
            rows = order[step * BATCH : (step + 1) * BATCH]
            views = augment.two_views(images.pixels[rows], images.aspect[rows], ids[rows], epoch)
            with torch.autocast("cpu", torch.bfloat16):
                heads = encoder(views.contiguous(memory_format=torch.channels_last))
            z, here = heads[0].float(), torch.from_numpy(clusters[rows])
            single = torch.full_like(here, -1)
            if variant in ("eliminate", "attract"):
                loss = eliminate(z, here, ATTRACTION if variant == "attract" else 0.0)
            else:
                loss = info_nce(z, here if variant == "rounds" else single)
            if two:
                loss = loss + options.instance_weight * info_nce(heads[1].float(), single)
            optimizer.zero_grad()
            loss.backward()
            rate = learning_rate((epoch * steps + step) / (options.epochs * steps), config)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        if new:
            _, numbers = np.unique(images.labels, return_inverse=True)
            quality = measure("kmeans", clusters, numbers, BATCH, options.group)
            print(
                f"{variant} epoch {epoch}: {quality.pair_precision:.1%} of the pairs share a label"
            )
    return encoder


def main() -> None:
    parser = argparse.ArgumentParser(description="Losses of k-means rounds.")
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--label", required=True)
    parser.add_argument("--images", type=int, help="only the first ones")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=3, help="epochs without clusters")
    parser.add_argument("--every", type=int, default=1, help="epochs of the same clusters")
    parser.add_argument("--k", type=int, default=0, help="0: one cluster for every 50 images")
    parser.add_argument(
        "--group",
        type=int,
        default=2,
        help="images of a cluster put into a batch together; 1: shuffled",
    )
    parser.add_argument("--instance-weight", type=float, default=5.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options = parser.parse_args()
    images = Images(options.train, options.label, options.images)
    tests = Images(options.test, options.label, None)
    names = {name: number for number, name in enumerate(sorted(set(images.labels)))}
    y, y_test = (torch.tensor([names.get(n, -1) for n in s.labels]) for s in (images, tests))
    for seed in options.seeds:
        for variant in options.variants:
            started = time.perf_counter()
            encoder = train(images, variant, options, seed)
            x, x_test = (s.features(encoder, projected=False) for s in (images, tests))
            knn = knn_accuracy(x, y, x_test, y_test, 20, "cpu")
            probe = linear_probe(x, y, x_test, y_test, 0, len(names), "cpu").accuracy
            row = {"variant": variant, "seed": seed, "epochs": options.epochs}
            row |= {"knn": round(float(knn), 4), "probe": round(float(probe), 4)}
            print(json.dumps(row | {"seconds": round(time.perf_counter() - started)}), flush=True)


if __name__ == "__main__":
    main()
