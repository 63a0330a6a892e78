"""How far two clusterings of the same images agree, from their sparse contingency table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wcl_ray.clusters.quality import entropy


@dataclass(frozen=True)
class Agreement:
    """Attributes:
    nmi: normalised mutual information, arithmetic mean of the entropies; 1 = the same clusters.
    ari: adjusted Rand index (Hubert and Arabie, 1985); 0 = chance, 1 = the same clusters.
    rows: images that have a cluster on both sides.
    """

    nmi: float
    ari: float
    rows: int


def agreement(a: np.ndarray, b: np.ndarray) -> Agreement:
    """Compare two clusterings.

    Args:
        a, b: int (N,), clusters of the same images; -1 = none, left out.

    >>> agreement(np.array([0, 0, 1, 1, -1]), np.array([5, 5, 3, 3, 3]))
    Agreement(nmi=1.0, ari=1.0, rows=4)
    """
    both = (a >= 0) & (b >= 0)
    x, y = a[both].astype(np.int64), b[both].astype(np.int64)
    n = len(x)
    if n < 2:
        return Agreement(1.0, 1.0, n)
    cells = np.unique(x * (int(y.max()) + 1) + y, return_counts=True)[1]
    rows, columns = np.bincount(x), np.bincount(y)
    h_a, h_b, h_ab = entropy(rows), entropy(columns), entropy(cells)
    mean = (h_a + h_b) / 2
    nmi = 1.0 if mean == 0 else max(0.0, h_a + h_b - h_ab) / mean

    def pairs(counts: np.ndarray) -> float:
        c = counts.astype(np.float64)
        return float((c * (c - 1)).sum() / 2)

    together, of_a, of_b, all_pairs = pairs(cells), pairs(rows), pairs(columns), n * (n - 1) / 2
    expected = of_a * of_b / all_pairs
    most = (of_a + of_b) / 2
    ari = 1.0 if most == expected else (together - expected) / (most - expected)
    return Agreement(float(nmi), float(ari), n)


def size_histogram(sizes: np.ndarray) -> dict[str, int]:
    """Clusters by size, in classes that double.

    >>> size_histogram(np.array([1, 1, 2, 3, 9]))
    {'1': 2, '2-3': 2, '4-7': 0, '8-15': 1}
    """
    found: dict[str, int] = {}
    sizes = sizes[sizes > 0]
    for exponent in range(int(np.log2(sizes.max(initial=1))) + 1):
        low, high = 2**exponent, 2 ** (exponent + 1) - 1
        count = int(((sizes >= low) & (sizes <= high)).sum())
        found[str(low) if low == high else f"{low}-{high}"] = count
    return found
