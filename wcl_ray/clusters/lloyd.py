"""Lloyd's algorithm on the rows of one process: exact sums, so that shards may be cut anywhere.

Values are rounded once to a power-of-two grid; sums of them in float64 are then exact, hence the
same bits in any order, for any number of shards, and when a row's old value is taken away again.
So a step only adds and removes the rows that changed their cluster.

n: rows, d: dimensions, K: centroids.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

BLOCK = 1024  # rows of one matrix product; every product has exactly as many
TILE = 2048  # centroids of one matrix product
GATHER = 1 << 16  # rows that are copied at once while a cluster is summed
BITS = 23  # of the grid; float64 has 53, so 2^29 rows of one cluster are summed exactly

Nearest = Callable[[np.ndarray], np.ndarray]


def exponent_of(largest: float) -> int:
    """e of the grid 2^(e - 23) for values whose magnitude is at most ``largest`` < 2^e."""
    return math.frexp(largest)[1]


def to_grid(x: np.ndarray, exponent: int) -> np.ndarray:
    """Values rounded to multiples of 2^(exponent - 23): float32 (n, d), exact in float32."""
    step = np.float32(2.0 ** (exponent - BITS))
    out = np.empty(x.shape, np.float32)
    for part in chunks(x):
        np.rint(x[part] / step, out=out[part])
        out[part] *= step
    return out


def chunks(x: np.ndarray) -> Iterator[slice]:
    """Slices of rows of which a float64 copy stays in the cache."""
    size = max(1, (1 << 17) // max(1, x.shape[1]))
    return (slice(start, start + size) for start in range(0, len(x), size))


def unit_rows(x: np.ndarray) -> np.ndarray:
    """Rows divided by their Euclidean norm, float32 (n, d); rows of zeros stay zeros."""
    out = np.empty_like(x, dtype=np.float32)
    for part in chunks(x):
        rows = x[part].astype(np.float64)
        norm = np.sqrt(np.square(rows).sum(1, keepdims=True))
        out[part] = rows / np.where(norm > 0, norm, 1.0)
    return out


def square_norms(x: np.ndarray, exponent: int) -> np.ndarray:
    """Squared norms of grid rows on a grid of their own, so that they add up exactly too.

    Returns:
        float64 (n,).
    """
    step = 2.0 ** (2 * exponent + math.ceil(math.log2(max(1, x.shape[1]))) - BITS - 1)
    found = np.empty(len(x))
    for part in chunks(x):
        found[part] = np.square(x[part], dtype=np.float64).sum(1)
    return np.rint(found / step) * step


@dataclass
class Stats:
    """What Lloyd's update needs of the rows of each cluster; adding two is exact.

    Attributes:
        sums: float64 (K, d). counts: int64 (K,). squares: float64 (K,), sums of squared norms.
    """

    sums: np.ndarray
    counts: np.ndarray
    squares: np.ndarray

    @staticmethod
    def zeros(k: int, d: int) -> Stats:
        return Stats(np.zeros((k, d)), np.zeros(k, np.int64), np.zeros(k))

    def merged(self, parents: np.ndarray) -> Stats:
        """Stats of coarser clusters: int (K,) → 0 … max."""
        found = Stats.zeros(int(parents.max()) + 1, self.sums.shape[1])
        np.add.at(found.sums, parents, self.sums)
        np.add.at(found.counts, parents, self.counts)
        np.add.at(found.squares, parents, self.squares)
        return found

    def copy(self) -> Stats:
        return Stats(self.sums.copy(), self.counts.copy(), self.squares.copy())

    def __add__(self, other: Stats) -> Stats:
        return Stats(
            self.sums + other.sums, self.counts + other.counts, self.squares + other.squares
        )

    def objective(self, centroids: np.ndarray) -> float:
        """Sum of squared distances of the rows to the centroids of their clusters.

        Σ |x - c|² = Σ_k Q_k - 2 c_k · S_k + n_k |c_k|²; needs no pass over the rows.
        """
        return float(self.errors(centroids).sum())

    def errors(self, centroids: np.ndarray) -> np.ndarray:
        """float64 (K,): the part of each cluster in :meth:`objective`."""
        c = centroids.astype(np.float64)
        return np.asarray(
            self.squares - 2 * (c * self.sums).sum(1) + self.counts * np.square(c).sum(1)
        )

    def add_rows(
        self, x: np.ndarray, squares: np.ndarray, rows: np.ndarray, labels: np.ndarray, sign: int
    ) -> None:
        """Add rows of x to the clusters ``labels`` (-1: to none), or take them away (sign -1)."""
        kept = labels >= 0
        rows, labels = rows[kept], labels[kept]
        if not len(rows):
            return
        k = len(self.counts)
        self.counts += sign * np.bincount(labels, minlength=k)
        self.squares += sign * np.bincount(labels, weights=squares[rows], minlength=k)
        short = labels.astype(np.uint16) if k <= 1 << 16 else labels  # sorted by radix
        order = rows[np.argsort(short, kind="stable")]
        ends = np.cumsum(np.bincount(labels, minlength=k))
        for cluster in np.unique(labels):
            end = int(ends[cluster])
            start = int(ends[cluster - 1]) if cluster else 0
            for first in range(start, end, GATHER):
                part = x[order[first : min(end, first + GATHER)]].sum(0, dtype=np.float64)
                self.sums[cluster] += part if sign > 0 else -part


def gemm_nearest(centroids: np.ndarray, spherical: bool, threads: int = 1) -> Nearest:
    """Nearest centroid of each row by matrix products of one fixed shape.

    A product's rounding may depend on its shape, never on where in it a row stands; with the last
    block padded, a row's label does not depend on its shard.

    Args:
        centroids: float32 (K, d); of unit length when ``spherical`` (the largest product wins,
            else the smallest distance; the lower number wins a tie).

    Returns:
        A function float32 (n, d) → int32 (n,).
    """
    tiles = []
    for start in range(0, len(centroids), TILE):
        part = centroids[start : start + TILE]
        if not spherical:  # one more column, of ones in the rows: x·c - |c|²/2 in one product
            half = np.square(part.astype(np.float64)).sum(1, keepdims=True) / 2
            part = np.concatenate([part, -half.astype(np.float32)], axis=1)
        tiles.append((start, np.ascontiguousarray(part.T)))
    depth = tiles[0][1].shape[0]
    local = threading.local()

    def block(x: np.ndarray, start: int, labels: np.ndarray) -> None:
        rows = x[start : start + BLOCK]
        count = len(rows)
        if not hasattr(local, "rows"):
            local.rows = np.ones((BLOCK, depth), np.float32)
            local.scores = np.empty(BLOCK * min(TILE, len(centroids)), np.float32)
        if count < BLOCK or not spherical:
            local.rows[:count, : x.shape[1]] = rows
            rows = local.rows
        for first, transposed in tiles:
            width = transposed.shape[1]
            scores = local.scores[: BLOCK * width].reshape(BLOCK, width)
            winner = np.matmul(rows, transposed, out=scores).argmax(1)
            if len(tiles) == 1:
                best = winner
                break
            value = scores[np.arange(BLOCK), winner]
            if first == 0:
                best, highest = winner, value
            else:
                better = value > highest
                best = np.where(better, winner + first, best)
                highest = np.where(better, value, highest)
        labels[start : start + count] = best[:count]

    def nearest(x: np.ndarray) -> np.ndarray:
        labels = np.empty(len(x), np.int32)
        starts = range(0, len(x), BLOCK)
        if threads == 1:
            for start in starts:
                block(x, start, labels)
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(lambda start: block(x, start, labels), starts))
        return labels

    return nearest


def faiss_nearest(centroids: np.ndarray, spherical: bool, threads: int = 1) -> Nearest:
    """The same by FAISS's exhaustive search."""
    import faiss

    faiss.omp_set_num_threads(threads)
    index = (faiss.IndexFlatIP if spherical else faiss.IndexFlatL2)(centroids.shape[1])
    index.add(np.ascontiguousarray(centroids))

    def nearest(x: np.ndarray) -> np.ndarray:
        short = -len(x) % BLOCK
        whole = np.concatenate([x, np.zeros((short, x.shape[1]), np.float32)]) if short else x
        return np.asarray(index.search(whole, 1)[1][: len(x), 0], dtype=np.int32)

    return nearest


def torch_nearest(centroids: np.ndarray, spherical: bool, threads: int = 1) -> Nearest:
    """The same by torch, on the GPU where there is one; in full float32, without TF32.

    Rows may be a torch tensor that already lies on the device.
    """
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    c = torch.from_numpy(np.ascontiguousarray(centroids)).to(device)
    half = None if spherical else c.double().square().sum(1).float() / 2

    def nearest(x: Any) -> np.ndarray:
        rows = x if isinstance(x, torch.Tensor) else torch.from_numpy(x).to(device)
        size = max(BLOCK, (1 << 26) // len(c) // BLOCK * BLOCK)
        found = []
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            short = -len(part) % BLOCK
            scores = torch.nn.functional.pad(part, (0, 0, 0, short)) @ c.T
            scores = scores if half is None else scores - half
            found.append(scores[: len(part)].argmax(1).to(torch.int32))
        joined = torch.cat(found) if found else torch.empty(0, dtype=torch.int32)
        return np.asarray(joined.cpu().numpy())

    return nearest


KERNELS = {"gemm": gemm_nearest, "faiss": faiss_nearest, "torch": torch_nearest}
