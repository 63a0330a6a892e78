"""How well two clusterings of the same images agree, from their sparse contingency table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wcl_ray.clusters.quality import entropy


@dataclass(frozen=True)
class Agreement:
    """Agreement of two clusterings.

    Attributes:
        nmi: mutual information over the mean of both entropies; 1 = the same clusters.
        ari: adjusted Rand index (Hubert and Arabie, 1985); 0 = chance, 1 = the same clusters.
        rows: images with a cluster in both.
    """

    nmi: float
    ari: float
    rows: int


def agreement(a: np.ndarray, b: np.ndarray) -> Agreement:
    """Compare two clusterings.

    Args:
        a, b: int (N,), clusters of the same images; -1 = no cluster, left out.

    >>> agreement(np.array([0, 0, 1, 1, -1]), np.array([5, 5, 3, 3, 3]))
    Agreement(nmi=1.0, ari=1.0, rows=4)
    """
    both = (a >= 0) & (b >= 0)
    x, y = a[both].astype(np.int64), b[both].astype(np.int64)
    n = len(x)
    if n < 2:
        return Agreement(1.0, 1.0, n)
    cells = np.unique(x * (int(y.max()) + 1) + y, return_counts=True)[1]
    sizes_a, sizes_b = np.bincount(x), np.bincount(y)
    h_a, h_b, h_ab = entropy(sizes_a), entropy(sizes_b), entropy(cells)
    mean = (h_a + h_b) / 2
    nmi = 1.0 if mean == 0 else max(0.0, h_a + h_b - h_ab) / mean

    def pairs(counts: np.ndarray) -> float:
        c = counts.astype(np.float64)
        return float((c * (c - 1)).sum() / 2)

    pairs_a, pairs_b, pairs_both = pairs(sizes_a), pairs(sizes_b), pairs(cells)
    expected = pairs_a * pairs_b / (n * (n - 1) / 2)
    maximum = (pairs_a + pairs_b) / 2
    ari = 1.0 if maximum == expected else (pairs_both - expected) / (maximum - expected)
    return Agreement(float(nmi), float(ari), n)


def size_histogram(sizes: np.ndarray) -> dict[str, int]:
    """Number of clusters by size, in bins that double.

    >>> size_histogram(np.array([1, 1, 2, 3, 9]))
    {'1': 2, '2-3': 2, '4-7': 0, '8-15': 1}
    """
    histogram: dict[str, int] = {}
    sizes = sizes[sizes > 0]
    for exponent in range(int(np.log2(sizes.max(initial=1))) + 1):
        low, high = 2**exponent, 2 ** (exponent + 1) - 1
        count = int(((sizes >= low) & (sizes <= high)).sum())
        histogram[str(low) if low == high else f"{low}-{high}"] = count
    return histogram
