"""Getting a k-means out of a poor local optimum: split the worst clusters, then merge the closest.

After Fritzke, "Breathing k-means", arXiv 2006.15666: m more centroids are put where the error is
largest, settle for an iteration or two, and then the m that are needed least are taken away again.
Here a centroid is taken away by merging it with another one at the smallest rise of the objective
(Ward, 1963), which needs sums of the rows only, no second nearest centroid. Pure functions.
"""

from __future__ import annotations

import numpy as np

from wcl_ray.kmeans.lloyd import Stats

SPREAD = 0.3  # distance of the halves from the centroid, in standard deviations of the rows
CELLS = 1 << 22  # distances that are held at once


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
    both = np.concatenate([centroids, centroids[worst] + step])
    both[worst] -= step
    return _finished(both, spherical)


def shrink(centroids: np.ndarray, counts: np.ndarray, k: int, spherical: bool) -> np.ndarray:
    """Merge clusters, cheapest first, until k are left.

    Joining clusters of a and b rows raises the objective by ab / (a + b) · |c_a - c_b|².

    Args:
        centroids: float32 (K, d), K ≥ k. counts: int64 (K,).

    Returns:
        float32 (k, d).
    """
    c, weights = centroids.astype(np.float64), np.maximum(counts.astype(np.float64), 1e-3)
    while len(c) > k:
        cost, partner = _cheapest(c, weights)
        gone, kept = np.zeros(len(c), bool), np.zeros(len(c), bool)
        for i in np.argsort(cost, kind="stable"):
            j = partner[i]
            if gone[j] or kept[i]:  # its partner is away, or it has taken in others itself
                continue
            total = weights[i] + weights[j]
            c[j] = (weights[i] * c[i] + weights[j] * c[j]) / total
            weights[j] = total
            gone[i] = kept[j] = True
            if len(c) - gone.sum() == k:
                break
        c, weights = c[~gone], weights[~gone]
    return _finished(c, spherical)


def _cheapest(c: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each cluster the smallest rise by a merger, and with which: float64 (K,), int64 (K,)."""
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


def _finished(c: np.ndarray, spherical: bool) -> np.ndarray:
    if spherical:
        norm = np.sqrt(np.square(c).sum(1, keepdims=True))
        c = c / np.where(norm > 0, norm, 1.0)
    return np.ascontiguousarray(c, dtype=np.float32)
