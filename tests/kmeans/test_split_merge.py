"""Splitting and merging clusters, which frees k-means from poor local optima."""

from __future__ import annotations

import numpy as np
import pytest
from blobs import blobs, small
from blobs import in_process as in_process

from wcl_ray.clusters.agreement import agreement
from wcl_ray.kmeans.kmeans import KMeans
from wcl_ray.kmeans.lloyd import Stats
from wcl_ray.kmeans.split_merge import grow, shrink


def stats_of(x: np.ndarray, labels: np.ndarray, k: int) -> Stats:
    stats = Stats.zeros(k, x.shape[1])
    squares = np.square(x.astype(np.float64)).sum(1)
    stats.add_rows(x.astype(np.float32), squares, np.arange(len(x)), labels.astype(np.int32), 1)
    return stats


def test_grow_splits_the_largest_errors() -> None:
    rng = np.random.default_rng(0)
    spread = np.array([0.1, 3.0, 0.1, 1.0])
    labels = np.repeat(np.arange(4), 100)
    x = rng.standard_normal((400, 8)) * spread[labels, None] + 10 * labels[:, None]
    stats = stats_of(x, labels, 4)
    centroids = (stats.sums / stats.counts[:, None]).astype(np.float32)
    grown = grow(centroids, stats, 2, False, np.random.default_rng(1))
    assert grown.shape == (6, 8)
    np.testing.assert_array_equal(grown[[0, 2]], centroids[[0, 2]])
    # the halves are on both sides of the old centroid, wide clusters first
    np.testing.assert_allclose((grown[1] + grown[4]) / 2, centroids[1], atol=1e-4)
    np.testing.assert_allclose((grown[3] + grown[5]) / 2, centroids[3], atol=1e-4)
    assert np.linalg.norm(grown[1] - grown[4]) > 1.5 * np.linalg.norm(grown[3] - grown[5]) > 0.1
    again = grow(centroids, stats, 2, False, np.random.default_rng(1))
    np.testing.assert_array_equal(grown, again)
    unit = grow(centroids, stats, 2, True, np.random.default_rng(1))
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(grow(centroids, stats, 0, False, rng), centroids)


def test_shrink_merges_at_the_smallest_rise() -> None:
    centroids = np.array([[0.0], [1.0], [10.0], [12.0], [30.0]], np.float32)
    # 0 and 1 are closest but have many rows: 1000·1000/2000 · 1 = 500; 10 and 12: 2·2/4 · 4 = 4
    counts = np.array([1000, 1000, 2, 2, 50])
    np.testing.assert_allclose(shrink(centroids, counts, 4, False)[:, 0], [0, 1, 11, 30])
    few = np.array([3, 1, 2, 2, 50])  # 0 and 1: 3·1/4 · 1 = 0.75, then 10 and 12 again
    np.testing.assert_allclose(shrink(centroids, few, 3, False)[:, 0], [0.25, 11, 30])
    np.testing.assert_array_equal(shrink(centroids, counts, 5, False), centroids)
    assert shrink(centroids, counts, 1, False).shape == (1, 1)


def test_shrink_reaches_k_among_copies_and_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    centroids = np.repeat(rng.standard_normal((20, 5)), 3, axis=0).astype(np.float32)
    counts = rng.integers(0, 9, 60)
    merged = shrink(centroids, counts, 20, False)
    assert merged.shape == (20, 5)
    np.testing.assert_allclose(np.sort(merged[:, 0]), np.sort(centroids[::3, 0]), atol=1e-5)
    monkeypatch.setattr("wcl_ray.kmeans.split_merge.CELLS", 100)
    np.testing.assert_array_equal(shrink(centroids, counts, 20, False), merged)


@pytest.mark.usefixtures("in_process")
def test_small_clusters_are_not_all_dissolved_at_once() -> None:
    """Of 600 clusters with one row each half are dissolved; their rows join the others."""
    x = np.random.default_rng(0).standard_normal((600, 8)).astype(np.float32)
    model = KMeans(600, min_size=2, actors=1, spherical=False).fit(x)
    assert model.counts_.min() >= 2
    assert len(model.counts_) > 150
    assert any("of 600 clusters are left" in text for text in model.warnings_)


@pytest.mark.usefixtures("in_process")
def test_breathing_finds_every_blob() -> None:
    """Without it, most starts put two centroids into one blob and one between two."""
    x, truth = blobs(6000, 8, 60, noise=0.02)
    ari = {}
    for name, split_merge in (("with", (0.2, 0.1, 0.05)), ("without", ())):
        scores = []
        for seed in range(3):
            model = small(60, spherical=False, seed=seed, split_merge=split_merge).fit(x)
            assert any(row.phase == "split 1" for row in model.history_) == bool(split_merge)
            scores.append(agreement(model.labels_, truth).ari)
        ari[name] = scores
    assert min(ari["with"]) > 0.999
    assert np.mean(ari["without"]) < 0.98
