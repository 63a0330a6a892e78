"""The nearest centroid in float64, for rows that float32 cannot decide.

The answer is that of exact arithmetic but for ties within float64's own rounding, which go to the
centroid with the higher product of a fixed order of sums, then to the lower number: it depends on
the row and the centroids alone.

n: rows, d: dimensions, K: centroids.
"""

from __future__ import annotations

from typing import Any

import numpy as np

CELLS = 1 << 22  # products that are held at once


class Rescoring:
    """Scores of centroids in float64, and how far float32 scores may be off.

    The score of a centroid is x·c, without ``spherical`` (x - m)·(c - m) - |c - m|²/2 with the mean
    m of the centroids: rows far from the origin keep their digits. The highest score is nearest,
    the lower number wins a tie.

    Attributes:
        c: float64 (K, d), without m. half: float64 (K,), |c|²/2 or zeros. mean: float32 (d,).
    """

    def __init__(self, centroids: np.ndarray, spherical: bool) -> None:
        self.spherical = spherical
        c = centroids.astype(np.float64)
        self.mean = np.zeros(c.shape[1], np.float32)
        if not spherical:
            self.mean = c.mean(0).astype(np.float32)
            c -= self.mean
        self.c = c
        self.half = np.zeros(len(c)) if spherical else np.square(c).sum(1) / 2
        self.longest = float(np.sqrt(np.square(c).sum(1).max(initial=0.0)))
        self.first: np.ndarray | None = None

    def doubt(self, norms: Any, unit: float = 2.0**-24) -> Any:
        """Margin between two scores that rounding explains, for rows of these norms (without m):
        a sum of d products is off by d units at most."""
        size = norms * self.longest if self.spherical else (norms + self.longest) ** 2 / 2
        return 2 * (self.c.shape[1] + 8) * unit * size

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Decide rows float32 (n, d), as they are: int32 (n,)."""
        labels = np.empty(len(x), np.int32)
        size = max(1, CELLS // len(self.c))
        for start in range(0, len(x), size):
            part = slice(start, start + size)
            rows = x[part].astype(np.float64)
            if not self.spherical:
                rows -= self.mean
            labels[part] = self._decide(rows)
        return labels

    def _decide(self, x: np.ndarray) -> np.ndarray:
        scores = x @ self.c.T - self.half
        doubt = self.doubt(np.sqrt(np.square(x).sum(1)), 2.0**-53)
        close = scores >= (scores.max(1) - doubt)[:, None]
        labels = close.argmax(1)
        tied = np.flatnonzero(close.sum(1) > 1)
        if not len(tied):
            return labels
        if self.first is None:  # of equal centroids only the first may win
            _, index, inverse = np.unique(self.c, axis=0, return_index=True, return_inverse=True)
            self.first = index[inverse.reshape(-1)] == np.arange(len(self.c))
        row, centroid = np.nonzero(close[tied] & self.first)
        exact = np.empty(len(row))
        size = max(1, CELLS // x.shape[1])
        for start in range(0, len(row), size):  # a sum per pair, the same wherever it stands
            r, k = row[start : start + size], centroid[start : start + size]
            exact[start : start + size] = (x[tied[r]] * self.c[k]).sum(1) - self.half[k]
        order = np.lexsort((centroid, -exact, row))
        best = order[np.unique(row[order], return_index=True)[1]]
        labels[tied] = centroid[best]
        return labels


def settle(
    out: np.ndarray,
    rows: np.ndarray,
    best: np.ndarray,
    margin: np.ndarray,
    norms: np.ndarray,
    referee: Rescoring,
) -> None:
    """Write the labels of a block, asking the referee where the margin is too small.

    Args:
        out: int32 (n,). rows: float32 (n, d). norms: float32 (n,), of the rows without the mean.
        best: winners, margin: by how much; both may have more entries (padding).
    """
    count = len(out)
    out[:] = best[:count]
    close = ~(margin[:count] > referee.doubt(norms))
    if referee.spherical:  # a row of zeros is as near to all
        out[norms == 0] = 0
        close &= norms > 0
    if close.any():
        out[close] = referee(rows[close])
