"""Stage 1 from vectors: k-means clusters of the images that have a feature."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from ray.data import Dataset

from wcl_ray.clusters.assignment import Assignment, number_codes
from wcl_ray.config import ClustersConfig
from wcl_ray.data.stream import positions_of
from wcl_ray.errors import UserError
from wcl_ray.kmeans.kmeans import KMeans
from wcl_ray.kmeans.vectors import Vectors
from wcl_ray.storage import Folder
from wcl_ray.terminal import say, warn

IMAGES_A_CLUSTER = 50  # of the default k
FEW = 4  # images without metadata a cluster, below which they stay singletons


@dataclass(frozen=True)
class FeatureClusters:
    """k-means clusters by position.

    Attributes:
        ids: int64 (N,), of the positions.
        clusters: int32 (N, G), 0 … K-1 by falling size; -1 = no feature.
        names: of the granularities, such as ``kmeans-100``.
        centroids: float32 (K, d) of each granularity, in the order of its clusters.
        facts: inertia, iterations and warnings, for the run folder.
    """

    ids: np.ndarray
    clusters: np.ndarray
    names: tuple[str, ...]
    centroids: tuple[np.ndarray, ...]
    facts: dict[str, Any]


def wanted_k(config: ClustersConfig, images: int) -> tuple[int, ...]:
    """Numbers of clusters: those asked for, else one for every 50 images.

    Raises:
        UserError: more clusters than images.
    """
    ks = config.k or (max(2, images // IMAGES_A_CLUSTER),)
    if max(ks) > images:
        raise UserError(f"clusters.k {max(ks)} is more than the {images} rows to cluster")
    return ks


def to_cluster(config: ClustersConfig, base: Assignment) -> tuple[np.ndarray, tuple[int, ...]]:
    """Images whose features are clustered, bool (N,), and into how many clusters; () where too few
    are without metadata.

    Args:
        base: clusters of the metadata; its singletons are clustered.

    Raises:
        UserError: fewer images than clusters.
    """
    wanted: np.ndarray = np.asarray((base.clusters < 0).all(1))
    count = int(wanted.sum())
    if config.missing == "kmeans" and count < 2 * FEW:
        return wanted, ()
    ks = wanted_k(config, count)
    return wanted, ks if wanted.all() else ks[:1]  # beside metadata, one number is enough


def cluster_features(
    vectors: Dataset | Vectors,
    ids: np.ndarray | None,
    ks: tuple[int, ...],
    config: ClustersConfig,
    *,
    seed: int,
    gpu: bool = False,
    before: np.ndarray | None = None,
    checkpoint: Folder | None = None,
    actors: int = 0,
    cpus: float = 1,
) -> FeatureClusters:
    """Cluster images by their features; prints a line per iteration.

    Args:
        vectors: rows ``__id`` and ``feature`` (null = left out), or an opened source of vectors.
        ids: int64 (N,), of the positions, increasing; None: every vector has one.
        ks: clusters of each granularity.
        before: int32 (N, G), the clusters of the round before, to start from.
        checkpoint: folder for the state after every iteration.
        actors, cpus: see :class:`KMeans`.

    Raises:
        UserError: see :meth:`KMeans.fit`.
    """
    directions = {"auto": config.features != "metadata", "yes": True, "no": False}
    model = KMeans(
        ks,
        spherical=directions[config.spherical],
        iterations=config.iterations,
        nested=config.nested,
        min_size=config.min_size,
        seed=seed,
        gpu=gpu,
        kernel=config.kernel,
        actors=actors,
        cpus=cpus,
        checkpoint=checkpoint,
        progress=lambda row: say("k-means", str(row)),
    )
    labels = None
    if before is not None and ids is not None:
        start = before[:, [int(np.argmax(ks))]] if config.nested else before
        labels = (ids, start)
    model.fit(vectors, labels=labels)
    for text in model.warnings_:
        warn(f"k-means: {text}")
    ids = model.ids_ if ids is None else ids
    place = positions_of(ids, model.ids_)
    known = place >= 0
    found = np.full((len(ids), len(ks)), -1, np.int32)
    found[place[known]] = model.labels_[known]
    columns, centroids = [], []
    for old, own in zip(found.T, model.centroids_, strict=True):
        columns.append(number_codes(old.astype(np.int64), old < 0))
        order = np.empty(columns[-1].max(initial=-1) + 1, np.int64)
        order[columns[-1][old >= 0]] = old[old >= 0]
        centroids.append(own[order])
    facts = {
        "inertia": model.inertia_,
        "vectors": len(model.ids_),
        "iterations": [asdict(row) for row in model.history_],
        "warnings": model.warnings_,
    }
    names = tuple(f"kmeans-{k}" for k in ks)
    return FeatureClusters(ids, np.stack(columns, 1), names, tuple(centroids), facts)
