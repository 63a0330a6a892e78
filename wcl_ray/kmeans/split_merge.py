"""Split the worst clusters, then merge the closest, which frees k-means from poor local optima.

After Fritzke, "Breathing k-means", arXiv 2006.15666: m centroids are added where the error is
largest, settle for an iteration or two, and then the m least useful ones are removed. Here a
centroid is removed by merging it with the one that raises the objective least (Ward, 1963), which
needs only sums of rows, not the second nearest centroids. Pure functions.
"""

from __future__ import annotations

import numpy as np

from wcl_ray.kmeans.lloyd import Stats, unit_rows

SPREAD = 0.3  # distance between a half and the old centroid, in standard deviations of the rows
CELLS = 1 << 22  # distances held at a time


def grow(
    centroids: np.ndarray, stats: Stats, m: int, spherical: bool, rng: np.random.Generator
) -> np.ndarray:
    """Split the m clusters with the largest error.

    Args:
        centroids: float32 (K, d). stats: of their rows.

    Returns:
        float32 (K + m, d), the new halves last.
    """
    errors = stats.errors(centroids)
    worst = np.argsort(-errors, kind="stable")[:m]
    d = centroids.shape[1]
    variance = np.maximum(errors[worst], 0) / np.maximum(stats.counts[worst], 1) / d
    step = SPREAD * np.sqrt(variance)[:, None] * rng.standard_normal((len(worst), d))
    grown = np.concatenate([centroids, centroids[worst] + step])
    grown[worst] -= step
    return unit_rows(grown) if spherical else grown.astype(np.float32)


def shrink(centroids: np.ndarray, counts: np.ndarray, k: int, spherical: bool) -> np.ndarray:
    """Merge clusters, at the smallest rise of the objective first, until k are left.

    Merging clusters of a and b rows raises the objective by ab / (a + b) · |c_a - c_b|².

    Args:
        centroids: float32 (K, d), K ≥ k. counts: int64 (K,).

    Returns:
        float32 (k, d).
    """
    c, weights = centroids.astype(np.float64), np.maximum(counts.astype(np.float64), 1e-3)
    while len(c) > k:
        cost, partner = _cheapest(c, weights)
        gone, grown = np.zeros(len(c), bool), np.zeros(len(c), bool)
        for i in np.argsort(cost, kind="stable"):
            j = partner[i]
            if gone[j] or grown[i]:  # its partner is gone, or other clusters were merged into it
                continue
            total = weights[i] + weights[j]
            c[j] = (weights[i] * c[i] + weights[j] * c[j]) / total
            weights[j] = total
            gone[i] = grown[j] = True
            if len(c) - gone.sum() == k:
                break
        c, weights = c[~gone], weights[~gone]
    return unit_rows(c) if spherical else c.astype(np.float32)


def _cheapest(c: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smallest rise by a merger of each cluster, and its partner: float64 (K,), int64 (K,)."""
    squares = np.square(c).sum(1)
    cost, partner = np.empty(len(c)), np.empty(len(c), np.int64)
    size = max(1, CELLS // len(c))
    for start in range(0, len(c), size):
        part = np.arange(start, min(len(c), start + size))
        rise = np.maximum(squares[part, None] - 2 * (c[part] @ c.T) + squares, 0)
        rise *= weights[part, None] * weights / (weights[part, None] + weights)
        rise[np.arange(len(part)), part] = np.inf
        partner[part] = rise.argmin(1)
        cost[part] = rise[np.arange(len(part)), partner[part]]
    return cost, partner
