"""Stage 1 from vectors: k-means clusters of the images that have a feature."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from ray.data import Dataset

from wcl_ray.clusters.assignment import Assignment, number_codes
from wcl_ray.config import ClustersConfig
from wcl_ray.data.ids import positions_of
from wcl_ray.errors import UserError
from wcl_ray.kmeans.kmeans import KMeans
from wcl_ray.kmeans.vectors import Vectors
from wcl_ray.storage import Folder
from wcl_ray.terminal import say, warn

IMAGES_A_CLUSTER = 50  # of the default k
MOST_CLUSTERS = 20_000  # of the default k: every worker adds to sums of all clusters
MIN_WITHOUT_METADATA = 8  # fewer images stay singletons


@dataclass(frozen=True)
class FeatureClusters:
    """k-means clusters by position.

    Attributes:
        ids: int64 (N,), id of each position.
        clusters: int32 (N, G), 0 … K-1 by decreasing size; -1 = no feature.
        names: names of the granularities, such as ``kmeans-100``.
        centroids: float32 (K, d) for each granularity, in the order of its clusters.
        report: inertia, iterations and warnings, for the run folder.
    """

    ids: np.ndarray
    clusters: np.ndarray
    names: tuple[str, ...]
    centroids: tuple[np.ndarray, ...]
    report: dict[str, Any]


def choose_k(config: ClustersConfig, images: int) -> tuple[int, ...]:
    """Numbers of clusters: the configured ones, else one for every 50 images, 20,000 at most.

    Raises:
        UserError: more clusters than images.
    """
    ks = config.k or (max(2, min(MOST_CLUSTERS, images // IMAGES_A_CLUSTER)),)
    if max(ks) > images:
        raise UserError(f"clusters.k {max(ks)} is more than the {images} rows to cluster")
    return ks


def images_to_cluster(
    config: ClustersConfig, base: Assignment
) -> tuple[np.ndarray, tuple[int, ...]]:
    """The images to cluster by their features, bool (N,), and into how many clusters; () if too few
    are without metadata.

    Args:
        base: clusters of the metadata; its singletons are clustered.

    Raises:
        UserError: fewer images than clusters.
    """
    singletons: np.ndarray = np.asarray((base.clusters < 0).all(1))
    count = int(singletons.sum())
    if config.missing == "kmeans" and count < MIN_WITHOUT_METADATA:
        return singletons, ()
    ks = choose_k(config, count)
    return singletons, ks if singletons.all() else ks[:1]  # beside metadata, one k is enough


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
        ids: int64 (N,), id of each position, increasing; None: those of the vectors.
        ks: number of clusters of each granularity.
        before: int32 (N, G), the clusters of the previous round, to start from.
        checkpoint: folder for the state after every iteration.
        actors, cpus: see :class:`KMeans`.

    Raises:
        UserError: see :meth:`KMeans.fit`.
    """
    spherical = {"auto": config.features != "metadata", "yes": True, "no": False}
    model = KMeans(
        ks,
        spherical=spherical[config.spherical],
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
    positions = positions_of(ids, model.ids_)
    known = positions >= 0
    fitted = np.full((len(ids), len(ks)), -1, np.int32)
    fitted[positions[known]] = model.labels_[known]
    clusters, centroids = [], []
    for old, old_centroids in zip(fitted.T, model.centroids_, strict=True):
        new = number_codes(old.astype(np.int64), old < 0)
        old_of_new = np.empty(new.max(initial=-1) + 1, np.int64)
        old_of_new[new[old >= 0]] = old[old >= 0]
        clusters.append(new)
        centroids.append(old_centroids[old_of_new])
    report = {
        "inertia": model.inertia_,
        "vectors": len(model.ids_),
        "iterations": [asdict(row) for row in model.history_],
        "warnings": model.warnings_,
    }
    names = tuple(f"kmeans-{k}" for k in ks)
    return FeatureClusters(ids, np.stack(clusters, 1), names, tuple(centroids), report)
