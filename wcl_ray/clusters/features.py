"""Stage 1 from vectors: k-means clusters of the images that have a feature."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from ray.data import Dataset

from wcl_ray.clusters.assignment import number_codes
from wcl_ray.clusters.kmeans import KMeans
from wcl_ray.clusters.kmeans_state import Iteration
from wcl_ray.config import ClustersConfig
from wcl_ray.data.stream import positions_of
from wcl_ray.errors import UserError
from wcl_ray.storage import Folder

IMAGES_A_CLUSTER = 50  # of the default k


@dataclass(frozen=True)
class FeatureClusters:
    """k-means clusters by position.

    Attributes:
        clusters: int32 (N, G), 0 … K-1 by falling size; -1 = no feature.
        names: of the granularities, such as ``kmeans-100``.
        facts: inertia, iterations and warnings, for the run folder.
    """

    clusters: np.ndarray
    names: tuple[str, ...]
    facts: dict[str, Any]


def wanted_k(config: ClustersConfig, images: int) -> tuple[int, ...]:
    """Numbers of clusters: those asked for, else one for every 50 images.

    Raises:
        UserError: more clusters than images.
    """
    ks = config.k or (max(2, images // IMAGES_A_CLUSTER),)
    if max(ks) > images:
        raise UserError(f"clusters.k {max(ks)} is more than the {images} images to cluster")
    return ks


def cluster_features(
    vectors: Dataset | str,
    ids: np.ndarray,
    ks: tuple[int, ...],
    config: ClustersConfig,
    *,
    seed: int,
    gpu: bool = False,
    before: np.ndarray | None = None,
    checkpoint: Folder | None = None,
    endpoint: str | None = None,
) -> FeatureClusters:
    """Cluster images by their features; prints a line per iteration.

    Args:
        vectors: rows ``__id`` and ``feature`` (null = left out), or Parquet files of vectors.
        ids: int64 (N,), of the positions.
        ks: clusters of each granularity.
        before: int32 (N, G), the clusters of the round before, to start from.
        checkpoint: folder for the state after every iteration.

    Raises:
        UserError: see :meth:`KMeans.fit`.
    """
    model = KMeans(
        ks,
        nested=config.nested,
        min_size=config.min_size,
        seed=seed,
        gpu=gpu,
        checkpoint=checkpoint,
        progress=_print,
    )
    labels = None
    if before is not None:
        start = before[:, [int(np.argmax(ks))]] if config.nested else before
        labels = (ids, start)
    model.fit(vectors, labels=labels, endpoint=endpoint)
    for text in model.warnings_:
        print(f"warning: k-means: {text}", flush=True)
    place = positions_of(ids, model.ids_)
    known = place >= 0
    found = np.full((len(ids), len(ks)), -1, np.int32)
    found[place[known]] = model.labels_[known]
    columns = [number_codes(column.astype(np.int64), column < 0) for column in found.T]
    facts = {
        "inertia": model.inertia_,
        "vectors": len(model.ids_),
        "iterations": [asdict(row) for row in model.history_],
        "warnings": model.warnings_,
    }
    return FeatureClusters(np.stack(columns, 1), tuple(f"kmeans-{k}" for k in ks), facts)


def _print(row: Iteration) -> None:
    print(f"{'k-means':<10}{row}", flush=True)
