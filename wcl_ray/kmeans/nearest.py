"""The nearest centroid of each row, the same whatever shard the row is in.

Matrix products in float32 find it. Their rounding depends on the library and on the shape, and may
depend on where in a block a row stands. numpy's are made in blocks of one shape, of which a check
at the start shows whether the place makes a difference (it does with OpenBLAS's kernels for
processors without AVX-512). Where it does, and with FAISS and torch, which choose shapes of their
own, rows whose two best centroids are closer together than rounding can tell are decided in
float64.

n: rows, d: dimensions, K: centroids.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from wcl_ray.kmeans.rescoring import Rescoring, settle

BLOCK = (
    768  # rows of one matrix product, each has as many; OpenBLAS's Haswell kernel takes 12 at once
)
WIDE = 512  # dimensions from which a copy of the rows costs more than a pass over the scores
TILE = 1024  # centroids of one matrix product: its scores stay in the cache

Nearest = Callable[[np.ndarray], np.ndarray]


@functools.lru_cache(maxsize=64)
def position_free(depth: int, width: int) -> bool:
    """Whether a row of a block has the same bits in its products wherever it stands."""
    rng = np.random.default_rng(0)
    block = np.tile(rng.standard_normal(depth, dtype=np.float32), (BLOCK, 1))
    scores = np.matmul(block, rng.standard_normal((depth, width), dtype=np.float32))
    return bool((scores == scores[0]).all())


def gemm_nearest(centroids: np.ndarray, spherical: bool, threads: int = 1) -> Nearest:
    """By matrix products of numpy, in blocks that stay in the cache.

    Args:
        centroids: float32 (K, d); of unit length when ``spherical`` (the largest product wins,
            else the smallest distance; the lower number wins a tie).

    Returns:
        A function float32 (n, d) → int32 (n,).
    """
    referee = Rescoring(centroids, spherical)
    depth, width = centroids.shape[1], min(TILE, len(centroids))
    # the score's |c|²/2 by one more column, of ones in a copy of the rows without the mean; wide
    # rows near the origin are not worth a copy, there it is taken away from the products
    shift = float(np.linalg.norm(referee.mean))
    copied = not spherical and (depth < WIDE or shift > referee.longest)
    bias = referee.half if copied else referee.half + referee.c @ referee.mean.astype(np.float64)
    tiles = []
    for start in range(0, len(centroids), TILE):
        part, own = referee.c[start : start + TILE], bias[start : start + TILE]
        part = np.concatenate([part, -own[:, None]], axis=1) if copied else part
        transposed = np.ascontiguousarray(part.T.astype(np.float32))
        tiles.append((start, transposed, own.astype(np.float32)))
    same = all(position_free(*part.shape) for _, part, _ in tiles)
    every = np.arange(BLOCK)
    local = threading.local()

    def block(x: np.ndarray, start: int, labels: np.ndarray) -> None:
        rows = x[start : start + BLOCK]
        count = len(rows)
        if not hasattr(local, "rows"):
            local.rows = np.ones((BLOCK, len(tiles[0][1])), np.float32)
            local.scores = np.empty(BLOCK * width, np.float32)
        factor = local.rows
        if not copied and count == BLOCK:
            factor = rows
        elif copied:
            np.subtract(rows, referee.mean, out=factor[:count, :depth])
        else:
            factor[:count] = rows
        for first, transposed, own in tiles:
            scores = local.scores[: BLOCK * transposed.shape[1]].reshape(BLOCK, -1)
            np.matmul(factor, transposed, out=scores)
            if not copied and not spherical:
                scores -= own
            winner = scores.argmax(1)
            if same and len(tiles) == 1:
                labels[start : start + count] = winner[:count]
                return
            value = second = scores[every, winner]
            if not same:
                scores[every, winner] = -np.inf
                second = scores.max(1)
            if first == 0:
                best, highest, runner_up = winner, value, second
                continue
            runner_up = np.maximum(np.maximum(runner_up, second), np.minimum(highest, value))
            best = np.where(value > highest, winner + first, best)
            highest = np.maximum(highest, value)
        if same:
            labels[start : start + count] = best[:count]
            return
        norms = np.sqrt(np.einsum("ij,ij->i", factor[:count, :depth], factor[:count, :depth]))
        norms = norms if copied else norms + np.float32(shift)
        settle(labels[start : start + count], rows, best, highest - runner_up, norms, referee)

    def nearest(x: np.ndarray) -> np.ndarray:
        labels = np.zeros(len(x), np.int32)
        starts = range(0, len(x) if len(centroids) > 1 else 0, BLOCK)
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
    referee = Rescoring(centroids, spherical)
    index = (faiss.IndexFlatIP if spherical else faiss.IndexFlatL2)(centroids.shape[1])
    index.add(np.ascontiguousarray(referee.c, dtype=np.float32))
    size = 16 * BLOCK

    def nearest(x: np.ndarray) -> np.ndarray:
        labels = np.zeros(len(x), np.int32)
        for start in range(0, len(x) if len(centroids) > 1 else 0, size):
            rows = x[start : start + size]
            own = np.ascontiguousarray(rows - referee.mean)
            found, best = index.search(own, 2)
            margin = found[:, 0] - found[:, 1] if spherical else (found[:, 1] - found[:, 0]) / 2
            norms = np.sqrt(np.einsum("ij,ij->i", own, own))
            settle(labels[start : start + size], rows, best[:, 0], margin, norms, referee)
        return labels

    return nearest


def torch_nearest(
    centroids: np.ndarray, spherical: bool, threads: int = 1, device: str = "cpu"
) -> Nearest:
    """The same by torch, on a device; in full float32, without TF32.

    Rows may be a torch tensor that already lies on the device.
    """
    import torch

    if device == "cpu":
        torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    referee = Rescoring(centroids, spherical)
    c = torch.from_numpy(referee.c.astype(np.float32)).to(device)
    half = torch.from_numpy(referee.half.astype(np.float32)).to(device)
    mean = torch.from_numpy(referee.mean).to(device)
    size = max(BLOCK, (1 << 26) // len(c) // BLOCK * BLOCK)

    def nearest(x: Any) -> np.ndarray:
        whole = x if isinstance(x, torch.Tensor) else torch.from_numpy(x).to(device)
        labels = np.zeros(len(whole), np.int32)
        for start in range(0, len(whole) if len(c) > 1 else 0, size):
            rows = whole[start : start + size]
            own = rows if spherical else rows - mean
            scores = own @ c.T
            if not spherical:
                scores -= half
            highest, best = scores.max(1)
            second = scores.scatter_(1, best[:, None], -torch.inf).amax(1)
            norms = torch.linalg.vector_norm(own, dim=1)
            close = ~(highest - second > referee.doubt(norms)) & ((norms > 0) | (not spherical))
            if spherical:
                best[norms == 0] = 0
            found = best.to(torch.int32).cpu().numpy()
            undecided = torch.nonzero(close)[:, 0]
            if len(undecided):
                found[undecided.cpu().numpy()] = referee(rows[undecided].cpu().numpy())
            labels[start : start + size] = found
        return labels

    return nearest


KERNELS = {"gemm": gemm_nearest, "faiss": faiss_nearest, "torch": torch_nearest}
