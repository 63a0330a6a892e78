"""Crops out of squashed images (data.keep raw) against crops out of the files, above 64 pixels.

    pip install scikit-image && python benchmarks/crops.py [--size 96] [--seeds 3] [--epochs 10]

The photographs that come with scikit-learn and scikit-image are cut into grey JPEG tiles, whose
class is their photograph: training tiles from its left half, test tiles from its right one. SimCLR
trains the small encoder on both kinds of crops in turn, with the same ids, boxes and weights to
begin with; kNN judges the centre crops. Real photographs, but few, and a task of fine texture: it
is kind to resolution. Also prints images per second of one decoding thread, on the tiles and on
JPEGs of 533 × 400 pixels, both views counted as one image. The last line is JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import time
from collections.abc import Sequence

import numpy as np
import skimage
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from wcl_ray.config import AugmentConfig, DataConfig, ModelConfig, TrainConfig
from wcl_ray.data.augment import Augment, centre, centre_boxes, normalise
from wcl_ray.data.decode import decode_batch, decode_crops
from wcl_ray.evaluate.knn import knn_accuracy
from wcl_ray.model.encoder import Encoder, build_encoder
from wcl_ray.model.loss import cl_infonce
from wcl_ray.model.optim import build_optimizer, learning_rate

NAMES = (
    "astronaut", "brick", "camera", "chelsea", "coffee", "coins", "grass", "gravel", "moon",
    "hubble_deep_field", "immunohistochemistry", "retina", "rocket",
)  # fmt: skip
SIDE = 176  # of a tile, in pixels
BATCH = 64


def photographs() -> list[np.ndarray]:
    """uint8 (h, w, 3) or (h, w)."""
    return [*load_sample_images().images, *(getattr(skimage.data, name)() for name in NAMES)]


def jpeg(picture: Image.Image) -> bytes:
    sink = io.BytesIO()
    picture.save(sink, "JPEG", quality=92)
    return sink.getvalue()


def tiles(count: int, half: int, seed: int) -> tuple[list[bytes], torch.Tensor]:
    """Files and classes of ``count`` tiles out of one half of each photograph."""
    rng = np.random.default_rng([seed, half])
    files, classes = [], []
    for number, photograph in enumerate(photographs()):
        whole = Image.fromarray(photograph).convert("L")
        middle = whole.width // 2
        for _ in range(count):
            left = half * middle + int(rng.integers(0, middle - SIDE + 1))
            top = int(rng.integers(0, whole.height - SIDE + 1))
            files.append(jpeg(whole.crop((left, top, left + SIDE, top + SIDE))))
            classes.append(number)
    return files, torch.tensor(classes)


class Kind:
    """One kind of crops.

    Args:
        whole: of the files; else of squashed images.
    """

    def __init__(self, whole: bool, size: int, seed: int) -> None:
        self.whole, self.size = whole, size
        self.store = DataConfig(image_size=size).stored_size
        self.augment = Augment(AugmentConfig(), size, seed)

    def read(self, files: Sequence[bytes], ids: torch.Tensor, epoch: int) -> torch.Tensor:
        if not self.whole:
            return decode_batch(files, self.store).tensors()[0]
        boxes = lambda rows, aspect: self.augment.boxes(ids[rows], aspect, epoch)  # noqa: E731
        return decode_crops(files, boxes, 2, self.size).tensors()[0]

    def centres(self, files: Sequence[bytes]) -> torch.Tensor:
        if not self.whole:
            return centre(*decode_batch(files, self.store).tensors(), self.size)
        boxes = lambda _, aspect: centre_boxes(aspect, self.size)[:, None]  # noqa: E731
        return normalise(decode_crops(files, boxes, 1, self.size).tensors()[0][:, 0] / 255)


def train(kind: Kind, files: list[bytes], epochs: int, seed: int) -> Encoder:
    torch.manual_seed(seed)
    encoder = build_encoder(ModelConfig(), kind.size)
    options = TrainConfig(batch_size=BATCH, epochs=epochs)
    optimizer = build_optimizer(encoder, options)
    alone, one = torch.full((BATCH, 1), -1), torch.ones(BATCH)
    done, total = 0, len(files) // BATCH * BATCH * epochs
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(files))
        for start in range(0, len(files) - BATCH + 1, BATCH):
            rows = order[start : start + BATCH]
            ids = torch.from_numpy(rows)
            images = kind.read([files[row] for row in rows], ids, epoch)
            for part in optimizer.param_groups:
                part["lr"] = learning_rate(done / total, options)
            views = kind.augment.two_views(images, one, ids, epoch)
            z1, z2 = encoder(views.to(memory_format=torch.channels_last))[0].chunk(2)
            loss = cl_infonce(z1, z2, z1, z2, alone, alone, 0, 0.2)[0]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += BATCH
    return encoder.eval()


@torch.inference_mode()
def features(encoder: Encoder, kind: Kind, files: list[bytes]) -> torch.Tensor:
    parts = [files[i : i + BATCH] for i in range(0, len(files), BATCH)]
    return torch.cat([encoder.features(kind.centres(part)) for part in parts])


def speed(kind: Kind, files: list[bytes]) -> float:
    """Images per second of one thread, the better of two passes."""
    ids, rates = torch.arange(len(files)), []
    for _ in range(2):
        started = time.perf_counter()
        kind.read(files, ids, 0)
        rates.append(len(files) / (time.perf_counter() - started))
    return max(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--seeds", type=int, default=3, help="0: only read")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--tiles", type=int, default=64, help="training tiles of a photograph")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    names = {False: "squashed", True: "files"}
    result: dict[str, object] = {"size": options.size}
    torch.set_num_threads(1)
    some, _ = tiles(8, 0, 0)
    first = Image.fromarray(photographs()[0]).resize((533, 400))
    for size in dict.fromkeys((options.size, 224)):
        for title, files in ((f"{SIDE} px tiles", some), ("533 × 400", [jpeg(first)] * 64)):
            rates = {name: speed(Kind(w, size, 0), files) for w, name in names.items()}
            print(f"{title} to {size} px, images/s:", *(f"{n} {r:,.0f}" for n, r in rates.items()))
            result[f"images_per_second {title} {size}"] = {n: round(r) for n, r in rates.items()}
    torch.set_num_threads(options.threads)
    accuracies: dict[str, list[float]] = {name: [] for name in names.values()}
    for seed in range(options.seeds):
        files, y = tiles(options.tiles, 0, seed)
        test, test_y = tiles(options.tiles // 2, 1, seed)
        for whole, name in names.items():
            kind = Kind(whole, options.size, seed)
            started = time.perf_counter()
            encoder = train(kind, files, options.epochs, seed)
            seconds = time.perf_counter() - started
            x, test_x = (features(encoder, kind, part) for part in (files, test))
            accuracies[name].append(knn_accuracy(x, y, test_x, test_y, 20))
            print(
                f"seed {seed} {name}: kNN {accuracies[name][-1]:.1%}, {seconds:.0f} s", flush=True
            )
    for name, values in accuracies.items() if options.seeds else ():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"{name}: kNN {statistics.mean(values):.1%} ± {spread:.1%}")
        result[f"knn_{name}"] = [round(value, 4) for value in values]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
