"""k-means clusters of images by position: left-out images, order of clusters, several rounds."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import ray
from blobs import blobs
from blobs import in_process as in_process

from wcl_ray.clusters.agreement import agreement
from wcl_ray.clusters.features import choose_k, cluster_features
from wcl_ray.config import ClustersConfig
from wcl_ray.data.sources.base import ID
from wcl_ray.errors import UserError

X, TRUTH = blobs(1200, 8, 10, noise=0.02)
IDS = np.sort(np.random.default_rng(0).choice(10**6, 1200, replace=False))
MISSING = np.arange(1200) % 9 == 4


def dataset(order: np.ndarray) -> ray.data.Dataset:
    values = [None if MISSING[i] else X[i].tolist() for i in order]
    table = pa.table({ID: IDS[order], "feature": pa.array(values, pa.list_(pa.float32()))})
    return ray.data.from_arrow(table)


@pytest.mark.usefixtures("in_process")
def test_clusters_by_position() -> None:
    config = ClustersConfig(kind="kmeans", k=(10, 3))
    order = np.random.default_rng(1).permutation(1200)
    found = cluster_features(dataset(order), IDS, (10, 3), config, seed=0)
    assert found.names == ("kmeans-10", "kmeans-3")
    assert found.clusters.shape == (1200, 2)
    assert ((found.clusters < 0) == MISSING[:, None]).all()
    assert agreement(found.clusters[:, 0], TRUTH).ari == 1.0
    sizes = np.bincount(found.clusters[~MISSING, 0])
    assert (np.diff(sizes) <= 0).all()
    # the centroids come in the order of the clusters
    for g, own in enumerate(found.centroids):
        rows = X[~MISSING] / np.linalg.norm(X[~MISSING], axis=1, keepdims=True)
        assert np.array_equal((rows @ own.T).argmax(1), found.clusters[~MISSING, g])
    assert found.report["vectors"] == (~MISSING).sum()
    again = cluster_features(
        dataset(np.arange(1200)), IDS, (10, 3), config, seed=0, before=found.clusters
    )
    assert np.array_equal(again.clusters, found.clusters)
    assert len(again.report["iterations"]) < len(found.report["iterations"])


@pytest.mark.usefixtures("in_process")
def test_nested_rounds() -> None:
    config = ClustersConfig(kind="kmeans", k=(10, 3), nested=True)
    first = cluster_features(dataset(np.arange(1200)), IDS, (3, 10), config, seed=0)
    again = cluster_features(
        dataset(np.arange(1200)), IDS, (3, 10), config, seed=0, before=first.clusters
    )
    for fine in range(10):
        assert len(np.unique(again.clusters[again.clusters[:, 1] == fine, 0])) == 1
    assert agreement(again.clusters[:, 1], TRUTH).ari == 1.0


def test_number_of_clusters() -> None:
    assert choose_k(ClustersConfig(kind="kmeans"), 5000) == (100,)
    assert choose_k(ClustersConfig(kind="kmeans"), 60) == (2,)
    assert choose_k(ClustersConfig(kind="kmeans", k=(7, 9)), 9) == (7, 9)
    with pytest.raises(UserError, match=r"clusters\.k 9 is more than the 8 rows"):
        choose_k(ClustersConfig(kind="kmeans", k=(7, 9)), 8)
