"""The clusters of one round: embed the images with the last weights, k-means, compare, write.

The first ``train.warmup_rounds`` of the rounds 0 … R-1 train on single images. Later ones cluster
the features of the previous round's encoder; k-means starts from the means of the new features
under the old clusters.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.data import Dataset

from wcl_ray.clusters.agreement import agreement, size_histogram
from wcl_ray.clusters.assignment import Assignment
from wcl_ray.clusters.features import FeatureClusters, cluster_features, images_to_cluster
from wcl_ray.config import Config
from wcl_ray.data.data_stats import note
from wcl_ray.data.ids import array_digest
from wcl_ray.data.sources.base import FAULT, ID, kept_rows
from wcl_ray.data.split import sample
from wcl_ray.data.stream import Stream
from wcl_ray.errors import UserError
from wcl_ray.evaluate.embed import embed, feature_tensor, resources
from wcl_ray.evaluate.geometry import feature_std, rank_me, uniformity
from wcl_ray.model.encoder import save_projector
from wcl_ray.runs.capacity import Scale
from wcl_ray.runs.clusters import qualities, show_quality
from wcl_ray.runs.initial import Start
from wcl_ray.runs.shared import Shared
from wcl_ray.storage import Folder
from wcl_ray.terminal import say
from wcl_ray.train.checkpoint import trained_encoder

COLLAPSE_ROWS = 5000  # images sampled for the collapse metrics


@dataclass(frozen=True)
class RoundResult:
    """The result of a round, from which the next one starts.

    Attributes:
        checkpoint: the last one of the round.
        seconds: training time.
    """

    checkpoint: ray.train.Checkpoint
    assignment: Assignment
    seconds: float = 0.0


def round_clusters(
    config: Config,
    stream: Stream,
    base: Assignment,
    labels: np.ndarray | None,
    folder: Folder,
    previous: RoundResult | None,
    start: Start,
    scale: Scale,
    shared: Shared | None = None,
) -> tuple[Assignment, dict[str, Any]]:
    """Cluster the features of the previous round's encoder.

    Args:
        base: clusters of the metadata, or all images singletons; its singletons are clustered.
        labels: int32 (N,) of the images in ``base``, -1 = missing, to compare with.
        folder: of the round; ``clusters.json`` is written there.
        previous: None: features of the encoder that training starts from.
        start: how that encoder begins.
        scale: of the training; if other runs share the cluster, clustering uses one worker's CPUs.
        shared: cache shared with other trials, whose random weights are the same.

    Returns:
        The assignment, and metrics for ``metrics.jsonl``.
    """
    selected, ks = images_to_cluster(config.clusters, base)
    if not ks:
        return base, {}
    old = previous.assignment if previous else None
    before = _kmeans_part(old, base, selected, len(ks))
    if previous is not None:
        shared = None  # trained weights differ between trials

    def compute() -> tuple[FeatureClusters, dict[str, float]]:
        features = _features(config, stream, previous, base.ids, selected, start, scale, shared)
        limits: dict[str, Any] = {}
        if scale.crowded:
            limits = {"actors": 1, "cpus": min(1.0, scale.cpus)}
        cpus = limits.get("cpus", 1.0)
        rows = kept_rows(features, sample(COLLAPSE_ROWS, features.count(), config.seed), cpus)
        collapse = ray.get(_collapse.remote(rows.to_arrow_refs()))
        return cluster_features(
            features,
            base.ids,
            ks,
            config.clusters,
            seed=config.seed,
            gpu=scale.gpu,
            before=before,
            **limits,
        ), collapse

    if shared is not None:
        key = (
            _features_key(config, base.ids[selected]),
            replace(config.clusters, samples_per_cluster=1, k=ks),
        )
        kmeans, collapse = shared.value(f"clusters of {key}", compute)
    else:
        kmeans, collapse = compute()
    assignment = _joined(base, kmeans.clusters, kmeans.names)
    compared = _compare(assignment, old, labels)
    quality = qualities(assignment, labels, config)
    show_quality(quality, config)
    _say(assignment, compared, collapse)
    summary = {
        "quality": [q.to_dict() for q in quality],
        "agreement": compared,
        "sizes": {
            name: size_histogram(assignment.sizes(g)) for g, name in enumerate(assignment.names)
        },
        "collapse": collapse,
        "kmeans": kmeans.report,
    }
    folder.write("clusters.json", json.dumps(summary, indent=2).encode())
    return assignment, compared | collapse


def _features_key(config: Config, ids: np.ndarray) -> str:
    """Cache key of the features of random weights: all that trials may differ in."""
    head = config.feature_head if config.clusters.features == "projector" else None
    options = (config.seed, config.model, config.clusters.features, head)
    return f"{options} {array_digest(ids)}"


def _features(
    config: Config,
    stream: Stream,
    previous: RoundResult | None,
    ids: np.ndarray,
    selected: np.ndarray,
    start: Start,
    scale: Scale,
    shared: Shared | None,
) -> Dataset:
    """Features of the selected training images, kept in the object store: ``__id``, ``feature``."""
    if shared is not None:

        def compute() -> list[Any]:
            features = _features(config, stream, previous, ids, selected, start, scale, None)
            refs = features.to_arrow_refs()
            rows = ray.get([_rows.remote(ref) for ref in refs])
            return [ref for ref, count in zip(refs, rows, strict=True) if count]

        key = f"features of {_features_key(config, ids[selected])}"
        return ray.data.from_arrow_refs(shared.refs(key, compute))
    torch.manual_seed(config.seed)  # as in training, which starts from the same random weights
    encoder = (
        trained_encoder(start.encoder, previous.checkpoint) if previous else start.build_encoder()
    )
    weights = start.encoder.export(encoder)
    projector = None
    if config.clusters.features == "projector":
        projector = save_projector(encoder, config.feature_head)
    rows = stream.images()
    if not selected.all():
        selected_ids = ray.put(ids[selected])

        def select(table: pa.Table) -> pa.Table:
            return table.filter(pa.array(np.isin(table[ID].to_numpy(), ray.get(selected_ids))))

        cpus = min(1.0, scale.cpus)
        rows = rows.map_batches(select, batch_format="pyarrow", batch_size=None, num_cpus=cpus)
    limits = resources(int(ray.cluster_resources().get("GPU", 0)) if scale.gpu else 0)
    if scale.crowded:
        limits |= {"actors": 1, "cpus": min(1.0, scale.cpus)}
    size = config.data.stored_size
    features = embed(rows, weights, store_size=size, projector=projector, **limits).materialize()
    note("embedded", features)
    return features


@ray.remote(num_cpus=1, scheduling_strategy="DEFAULT")
def _collapse(refs: list[Any]) -> dict[str, float]:
    """Metrics of dimensional collapse of sampled features: RankMe, uniformity, deviation."""
    parts = [table.filter(table[FAULT].is_null()) for table in ray.get(refs) if table.num_rows]
    rows = pa.concat_tables(parts).sort_by(ID) if parts else None
    if rows is None or rows.num_rows < 2:
        raise UserError("k-means: no readable image to cluster")
    x = feature_tensor(rows["feature"])
    if not torch.isfinite(x).all():
        return {}  # k-means reports them
    return {"rank_me": rank_me(x), "uniformity": uniformity(x), "feature_std": feature_std(x)}


@ray.remote(num_cpus=0, scheduling_strategy="DEFAULT")
def _rows(table: pa.Table) -> int:
    return int(table.num_rows)


def _kmeans_part(
    old: Assignment | None, base: Assignment, selected: np.ndarray, count: int
) -> np.ndarray | None:
    """The k-means clusters in the assignment of the previous round, None if there are none."""
    if old is None or (old.clusters[selected] < 0).all():
        return None
    if (base.clusters < 0).all():
        return old.clusters if old.clusters.shape[1] == count else None
    first = int(base.clusters[:, 0].max()) + 1  # numbered after those of the metadata
    return np.where(selected, old.clusters[:, 0] - first, -1)[:, None].astype(np.int32)


def _joined(base: Assignment, clusters: np.ndarray, names: tuple[str, ...]) -> Assignment:
    """k-means clusters in place of singletons, numbered after those of the metadata."""
    if (base.clusters < 0).all():
        return replace(base, clusters=clusters, names=names)
    kmeans = clusters[:, 0]
    columns = [
        np.where((column < 0) & (kmeans >= 0), kmeans + column.max() + 1, column)
        for column in base.clusters.T
    ]
    return replace(base, clusters=np.stack(columns, 1).astype(np.int32))


def _say(assignment: Assignment, compared: dict[str, float], collapse: dict[str, float]) -> None:
    for name in assignment.names:
        texts = []
        for other, title in (("previous", "the previous round"), ("label", "the label")):
            if f"{name}_nmi_{other}" in compared:
                nmi, ari = (compared[f"{name}_{index}_{other}"] for index in ("nmi", "ari"))
                texts.append(f"with {title} NMI {nmi:.3f} ARI {ari:.3f}")
        if texts:
            say("agreement", f"{name} {', '.join(texts)}")
    if collapse:
        say("features", "  ".join(f"{key} {value:.2f}" for key, value in collapse.items()))


def _compare(
    assignment: Assignment, old: Assignment | None, labels: np.ndarray | None
) -> dict[str, float]:
    """NMI and ARI of each granularity with the previous round and the label, and its sizes."""
    figures: dict[str, float] = {}
    for g, name in enumerate(assignment.names):
        clusters = assignment.clusters[:, g]
        if old is not None and name in old.names:
            same = agreement(clusters, old.clusters[:, old.names.index(name)])
            figures |= {f"{name}_nmi_previous": same.nmi, f"{name}_ari_previous": same.ari}
        if labels is not None:
            same = agreement(clusters, labels)
            figures |= {f"{name}_nmi_label": same.nmi, f"{name}_ari_label": same.ari}
        sizes = assignment.sizes(g)
        figures |= {f"{name}_clusters": float(len(sizes)), f"{name}_largest": float(sizes.max())}
    return figures
