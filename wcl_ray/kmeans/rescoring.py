"""The nearest centroid in float64, for rows that float32 cannot decide.

The result is that of exact arithmetic, except for ties within float64's rounding error. Those go to
the higher product, summed in a fixed order, then to the lower number. So the result depends on the
row and the centroids only.

n: rows, d: dimensions, K: centroids.
"""

from __future__ import annotations

from typing import Any

import numpy as np

CELLS = 1 << 22  # products held at a time


class Rescoring:
    """Scores of centroids in float64, and the largest error of float32 scores.

    The score of a centroid is x·c if ``spherical``, else (x - m)·(c - m) - |c - m|²/2 with the mean
    m of the centroids, which preserves the precision of rows far from the origin. The nearest
    centroid has the highest score; ties go to the lower number.

    Attributes:
        c: float64 (K, d), less the mean. half: float64 (K,), |c|²/2, or zeros if ``spherical``.
        mean: float32 (d,), zeros if ``spherical``. longest: largest norm of ``c``.
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

    def margin(self, norms: Any, unit: float = 2.0**-24) -> Any:
        """Largest difference of two scores that rounding can cause, for rows of these norms (less
        the mean): the relative error of a sum of d products is at most d units."""
        size = norms * self.longest if self.spherical else (norms + self.longest) ** 2 / 2
        return 2 * (self.c.shape[1] + 8) * unit * size

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Nearest centroids of rows float32 (n, d), mean not subtracted: int32 (n,)."""
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
        margin = self.margin(np.sqrt(np.square(x).sum(1)), 2.0**-53)
        close = scores >= (scores.max(1) - margin)[:, None]
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
        for start in range(0, len(row), size):  # a sum per pair, whatever its position
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
    rescoring: Rescoring,
) -> None:
    """Write the labels of a block, rescoring rows whose margin is too small.

    Args:
        out: int32 (n,). rows: float32 (n, d). norms: float32 (n,), of the rows less the mean.
        best: the best centroids. margin: by which their scores are higher than the second best.
            Both may be padded beyond n.
    """
    count = len(out)
    out[:] = best[:count]
    close = ~(margin[:count] > rescoring.margin(norms))
    if rescoring.spherical:  # a zero row is equally near to all
        out[norms == 0] = 0
        close &= norms > 0
    if close.any():
        out[close] = rescoring(rows[close])
