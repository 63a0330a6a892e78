"""Lloyd's algorithm on the rows of one process, with exact sums: shards may be cut anywhere.

Values are rounded once to a power-of-two grid. Their sums in float64 are then exact: the same bits
in any order and for any number of shards, and a row that was added can be subtracted again. So a
step touches only the rows that changed their cluster.

n: rows, d: dimensions, K: centroids.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

DEVICE_BYTES = 1 << 28  # of rows converted to float64 on the device at a time
GATHER = 1 << 16  # rows copied at a time while a cluster is summed
BITS = 23  # of the grid; float64 has 53, so sums of up to 2^29 rows are exact


def exponent_of(largest: float) -> int:
    """Exponent e of the grid 2^(e - 23) for values of magnitude at most ``largest`` < 2^e."""
    return max(math.frexp(largest)[1], BITS - 149)  # the step must be a float32


def to_grid(x: np.ndarray, exponent: int) -> np.ndarray:
    """Round values to multiples of 2^(exponent - 23), exact in float32: float32 (n, d)."""
    step = np.float32(2.0 ** (exponent - BITS))
    out = np.empty(x.shape, np.float32)
    for part in chunks(x):
        np.rint(x[part] / step, out=out[part])
        out[part] *= step
    return out


def chunks(x: np.ndarray) -> Iterator[slice]:
    """Slices of rows whose float64 copies fit into the cache."""
    size = max(1, (1 << 17) // max(1, x.shape[1]))
    return (slice(start, start + size) for start in range(0, len(x), size))


def unit_rows(x: np.ndarray) -> np.ndarray:
    """Divide rows by their Euclidean norms: float32 (n, d); zero rows stay zero."""
    out = np.empty_like(x, dtype=np.float32)
    for part in chunks(x):
        rows = x[part].astype(np.float64)
        norm = np.sqrt(np.square(rows).sum(1, keepdims=True))
        out[part] = rows / np.where(norm > 0, norm, 1.0)
    return out


def square_norms(x: np.ndarray, exponent: int) -> np.ndarray:
    """Squared norms of grid rows, rounded to a grid of their own so that their sums are exact too.

    Returns:
        float64 (n,).
    """
    step = 2.0 ** (2 * exponent + math.ceil(math.log2(max(1, x.shape[1]))) - BITS - 1)
    squares = np.empty(len(x))
    for part in chunks(x):
        squares[part] = np.square(x[part], dtype=np.float64).sum(1)
    return np.rint(squares / step) * step


@dataclass
class Stats:
    """What Lloyd's update needs to know of the rows of each cluster; addition is exact.

    Attributes:
        sums: float64 (K, d). counts: int64 (K,). squares: float64 (K,), sums of squared norms.
    """

    sums: np.ndarray
    counts: np.ndarray
    squares: np.ndarray

    @staticmethod
    def zeros(k: int, d: int) -> Stats:
        """Stats of k clusters without rows."""
        return Stats(np.zeros((k, d)), np.zeros(k, np.int64), np.zeros(k))

    def merged(self, parents: np.ndarray) -> Stats:
        """Stats of coarser clusters; ``parents``: int (K,), the coarse cluster of each."""
        coarse = Stats.zeros(int(parents.max()) + 1, self.sums.shape[1])
        np.add.at(coarse.sums, parents, self.sums)
        np.add.at(coarse.counts, parents, self.counts)
        np.add.at(coarse.squares, parents, self.squares)
        return coarse

    def copy(self) -> Stats:
        """A copy, arrays included."""
        return Stats(self.sums.copy(), self.counts.copy(), self.squares.copy())

    def __add__(self, other: Stats) -> Stats:
        return Stats(
            self.sums + other.sums, self.counts + other.counts, self.squares + other.squares
        )

    def objective(self, centroids: np.ndarray) -> float:
        """Sum of squared distances of the rows to the centroids of their clusters.

        Σ |x - c|² = Σ_k Q_k - 2 c_k · S_k + n_k |c_k|²; needs no pass over the rows.
        """
        return max(0.0, float(self.errors(centroids).sum()))  # negative by rounded squares

    def errors(self, centroids: np.ndarray) -> np.ndarray:
        """Contribution of each cluster to :meth:`objective`: float64 (K,)."""
        c = centroids.astype(np.float64)
        return np.asarray(
            self.squares - 2 * (c * self.sums).sum(1) + self.counts * np.square(c).sum(1)
        )

    def add_rows(
        self,
        x: np.ndarray,
        squares: np.ndarray,
        rows: np.ndarray,
        labels: np.ndarray,
        sign: int,
        on_device: Any = None,
    ) -> None:
        """Add rows of x to their clusters, or subtract them.

        Args:
            x: float32 (n, d), on the grid. squares: float64 (n,), of :func:`square_norms`.
            rows: int (m,), indices into x. labels: int (m,), their clusters; -1: none.
            sign: 1 to add, -1 to subtract.
            on_device: x as a torch tensor, to sum on its device; a GPU adds in no fixed order, but
                the sums are exact.
        """
        kept = labels >= 0
        rows, labels = rows[kept], labels[kept]
        if not len(rows):
            return
        k = len(self.counts)
        self.counts += sign * np.bincount(labels, minlength=k)
        self.squares += sign * np.bincount(labels, weights=squares[rows], minlength=k)
        if on_device is not None:
            self.sums += sign * device_sums(on_device, rows, labels, k)
            return
        short = labels.astype(np.uint16) if k <= 1 << 16 else labels  # radix sort
        order = rows[np.argsort(short, kind="stable")]
        ends = np.cumsum(np.bincount(labels, minlength=k))
        for cluster in np.unique(labels):
            end = int(ends[cluster])
            start = int(ends[cluster - 1]) if cluster else 0
            for first in range(start, end, GATHER):
                rows_sum = x[order[first : min(end, first + GATHER)]].sum(0, dtype=np.float64)
                self.sums[cluster] += rows_sum if sign > 0 else -rows_sum


def device_sums(x: Any, rows: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Sums per cluster of rows of a torch tensor (n, d), computed on its device: float64 (k, d).

    Args:
        rows: int64 (m,), indices into x. labels: int (m,), their clusters.
    """
    import torch

    sums = torch.zeros(k, x.shape[1], dtype=torch.float64, device=x.device)
    step = max(1, DEVICE_BYTES // (8 * x.shape[1]))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        chosen = torch.from_numpy(rows[part]).to(x.device)
        index = torch.from_numpy(labels[part].astype(np.int64)).to(x.device)
        sums.index_add_(0, index, x[chosen].double())
    result: np.ndarray = sums.cpu().numpy()
    return result
