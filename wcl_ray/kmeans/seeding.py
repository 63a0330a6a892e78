"""Initial centroids, the update of centroids, and k-means of a few weighted points.

Pure functions, which the coordinator calls on samples or centroids.
"""

from __future__ import annotations

import numpy as np

from wcl_ray.kmeans.lloyd import Stats, chunks, unit_rows

SPLIT = 1.0 / 1024  # relative distance between the halves of a split cluster
EQUAL = 1e-6  # error of equal rows by rounding, as a share of their squared norms
STEPS = 64  # rounds of k-means++; each draws K / STEPS points
CELLS = 1 << 22  # distances that it holds at a time


def plus_plus(
    x: np.ndarray, k: int, rng: np.random.Generator, weights: np.ndarray | None = None
) -> np.ndarray:
    """Draw k different rows of x by D² sampling, K / 64 of them at a time.

    Arthur and Vassilvitskii, "k-means++", SODA 2007; drawing several points between updates of the
    distances follows Bahmani et al., "Scalable k-means++", VLDB 2012.

    Args:
        x: float32 (n, d).
        weights: float64 (n,), of the rows; 1 by default.

    Returns:
        float32 (min(k, n), d). Duplicates of chosen rows are drawn only if no other rows are left.
    """
    n = len(x)
    if n <= k:
        return x.copy()
    w = np.ones(n) if weights is None else weights
    y = x - x.mean(0, dtype=np.float64).astype(np.float32)  # preserves the precision of products
    norms = np.concatenate([np.square(y[part], dtype=np.float64).sum(1) for part in chunks(y)])
    floor = 1e-6 * max(float(norms.mean()), 1e-30)  # below this a distance is rounding error
    chosen = [int(rng.choice(n, p=w / w.sum()))]
    taken = np.zeros(n, dtype=bool)
    taken[chosen] = True
    nearest = np.full(n, np.inf)
    new = chosen
    while len(chosen) < k:
        size = max(1, CELLS // len(new))
        for start in range(0, n, size):
            part = slice(start, start + size)
            distance = norms[part, None] - 2.0 * (y[part] @ y[new].T) + norms[new]
            np.minimum(nearest[part], distance.min(1), out=nearest[part])
        p = np.where(taken | (nearest <= floor), 0.0, nearest) * w
        wanted = min(k - len(chosen), max(1, k // STEPS))
        positive = int((p > 0).sum())
        if positive == 0:  # only duplicates are left
            p = np.where(taken, 0.0, w)
            positive = int((p > 0).sum())
        draw = rng.choice(n, min(wanted, positive), replace=False, p=p / p.sum())
        new = [int(row) for row in draw]
        taken[new] = True
        chosen += new
    return np.ascontiguousarray(x[chosen])


def means(stats: Stats, spherical: bool) -> tuple[np.ndarray, np.ndarray]:
    """Means of clusters, and which have none: empty clusters, or mean 0 with ``spherical``.

    Returns:
        float64 (K, d), and bool (K,), True without a mean.
    """
    centroids = stats.sums / np.maximum(stats.counts, 1)[:, None]
    empty = stats.counts == 0
    if spherical:
        norm = np.sqrt(np.square(centroids).sum(1))
        empty |= norm < 1e-9
        centroids /= np.where(empty, 1.0, norm)[:, None]
    return centroids, empty


def update(stats: Stats, spherical: bool) -> tuple[np.ndarray, int]:
    """Lloyd's update; every empty cluster gets half of the cluster with the largest error.

    If no cluster has different rows, an empty one gets the centroid of the largest cluster, stays
    empty (ties go to the lower number) and is dissolved at the end.

    Returns:
        float32 (K, d), and the number of clusters that were split.
    """
    centroids, empty = means(stats, spherical)
    errors = np.where(empty, -1.0, stats.errors(centroids))
    errors[(stats.counts < 2) | (errors <= EQUAL * stats.squares)] = -1.0  # nothing to split
    largest = int(np.argmax(np.where(empty, 0, stats.counts)))
    splits = 0
    pattern = np.where(np.arange(centroids.shape[1]) % 2 == 0, SPLIT, -SPLIT)
    for cluster in np.flatnonzero(empty):
        donor = int(np.argmax(errors))
        if errors[donor] < 0:
            centroids[cluster] = centroids[largest]
            continue
        splits += 1
        centroids[cluster] = centroids[donor] * (1 + pattern)
        centroids[donor] = centroids[donor] * (1 - pattern)
        errors[donor] /= 2
        errors[cluster] = errors[donor]
    return unit_rows(centroids) if spherical else centroids.astype(np.float32), splits


def weighted_kmeans(
    points: np.ndarray,
    weights: np.ndarray,
    k: int,
    spherical: bool,
    seed: int,
    iterations: int = 30,
) -> np.ndarray:
    """Cluster fine centroids into coarse clusters.

    Args:
        points: float32 (n, d), few enough for one process.
        weights: int64 (n,), number of rows of each point.

    Returns:
        int32 (n,): 0 … k-1.
    """
    rng = np.random.default_rng([seed, k, len(points)])
    w = np.maximum(weights, 1).astype(np.float64)
    centroids = plus_plus(points, k, rng, w)
    p = points.astype(np.float64)
    squares = np.square(p).sum(1)
    labels = np.full(len(points), -1)
    for _ in range(iterations):
        c = centroids.astype(np.float64)
        scores = p @ c.T - (0.0 if spherical else np.square(c).sum(1) / 2)
        new_labels = scores.argmax(1)
        if (new_labels == labels).all():
            break
        labels = new_labels
        stats = Stats.zeros(len(c), points.shape[1])
        np.add.at(stats.sums, labels, p * w[:, None])
        stats.counts += np.bincount(labels, weights=w, minlength=len(c)).astype(np.int64)
        stats.squares += np.bincount(labels, weights=w * squares, minlength=len(c))
        centroids, _ = update(stats, spherical)
    return labels.astype(np.int32)
