"""The nearest centroid of each row, independent of the shard that holds the row.

It is found by matrix products in float32, whose rounding depends on the library and the shape, and
may depend on a row's position in its block. numpy multiplies blocks of one fixed shape; a check at
the start tells whether position matters (it does with OpenBLAS's kernels for processors without
AVX-512). If it does, and always with FAISS and torch, which choose their own shapes, rows whose two
best scores differ by less than the rounding error are decided in float64.

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

BLOCK = 768  # rows of every matrix product; OpenBLAS's Haswell kernel takes 12 at a time
WIDE = 512  # dimensions above which copying the rows costs more than a pass over the scores
TILE = 1024  # centroids per matrix product, so that its scores stay in the cache

Nearest = Callable[[np.ndarray], np.ndarray]


@functools.lru_cache(maxsize=64)
def position_independent(depth: int, width: int) -> bool:
    """Whether the bits of a row's products do not depend on its position in the block."""
    rng = np.random.default_rng(0)
    block = np.tile(rng.standard_normal(depth, dtype=np.float32), (BLOCK, 1))
    scores = np.matmul(block, rng.standard_normal((depth, width), dtype=np.float32))
    return bool((scores == scores[0]).all())


def gemm_nearest(centroids: np.ndarray, spherical: bool, threads: int = 1) -> Nearest:
    """Search by matrix products of numpy, in blocks that stay in the cache.

    Args:
        centroids: float32 (K, d), of unit length if ``spherical``. The nearest has the largest
            product then, else the smallest distance; ties go to the lower number.

    Returns:
        A function float32 (n, d) → int32 (n,).
    """
    rescoring = Rescoring(centroids, spherical)
    depth, width = centroids.shape[1], min(TILE, len(centroids))
    # Rows are copied, less the mean and with a column of ones, so that the product includes the
    # score's |c|²/2. Wide rows near the origin are not copied; |c|²/2 is subtracted afterwards.
    shift = float(np.linalg.norm(rescoring.mean))
    copied = not spherical and (depth < WIDE or shift > rescoring.longest)
    bias = rescoring.half
    if not copied:
        bias = rescoring.half + rescoring.c @ rescoring.mean.astype(np.float64)
    tiles = []
    for start in range(0, len(centroids), TILE):
        tile, tile_bias = rescoring.c[start : start + TILE], bias[start : start + TILE]
        tile = np.concatenate([tile, -tile_bias[:, None]], axis=1) if copied else tile
        transposed = np.ascontiguousarray(tile.T.astype(np.float32))
        tiles.append((start, transposed, tile_bias.astype(np.float32)))
    independent = all(position_independent(*tile.shape) for _, tile, _ in tiles)
    all_rows = np.arange(BLOCK)
    local = threading.local()

    def label_block(x: np.ndarray, start: int, labels: np.ndarray) -> None:
        rows = x[start : start + BLOCK]
        count = len(rows)
        if not hasattr(local, "rows"):
            local.rows = np.ones((BLOCK, len(tiles[0][1])), np.float32)
            local.scores = np.empty(BLOCK * width, np.float32)
        factor = local.rows
        if not copied and count == BLOCK:
            factor = rows
        elif copied:
            np.subtract(rows, rescoring.mean, out=factor[:count, :depth])
        else:
            factor[:count] = rows
        for first, transposed, tile_bias in tiles:
            scores = local.scores[: BLOCK * transposed.shape[1]].reshape(BLOCK, -1)
            np.matmul(factor, transposed, out=scores)
            if not copied and not spherical:
                scores -= tile_bias
            winner = scores.argmax(1)
            if independent and len(tiles) == 1:
                labels[start : start + count] = winner[:count]
                return
            value = second = scores[all_rows, winner]
            if not independent:
                scores[all_rows, winner] = -np.inf
                second = scores.max(1)
            if first == 0:
                best, highest, runner_up = winner, value, second
                continue
            runner_up = np.maximum(np.maximum(runner_up, second), np.minimum(highest, value))
            best = np.where(value > highest, winner + first, best)
            highest = np.maximum(highest, value)
        if independent:
            labels[start : start + count] = best[:count]
            return
        norms = np.sqrt(np.einsum("ij,ij->i", factor[:count, :depth], factor[:count, :depth]))
        norms = norms if copied else norms + np.float32(shift)
        settle(labels[start : start + count], rows, best, highest - runner_up, norms, rescoring)

    def nearest(x: np.ndarray) -> np.ndarray:
        labels = np.zeros(len(x), np.int32)
        starts = range(0, len(x) if len(centroids) > 1 else 0, BLOCK)
        if threads == 1:
            for start in starts:
                label_block(x, start, labels)
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(lambda start: label_block(x, start, labels), starts))
        return labels

    return nearest


def faiss_nearest(centroids: np.ndarray, spherical: bool, threads: int = 1) -> Nearest:
    """Like :func:`gemm_nearest`, by FAISS's exhaustive search."""
    import faiss

    faiss.omp_set_num_threads(threads)
    rescoring = Rescoring(centroids, spherical)
    index = (faiss.IndexFlatIP if spherical else faiss.IndexFlatL2)(centroids.shape[1])
    index.add(np.ascontiguousarray(rescoring.c, dtype=np.float32))
    size = 16 * BLOCK

    def nearest(x: np.ndarray) -> np.ndarray:
        labels = np.zeros(len(x), np.int32)
        for start in range(0, len(x) if len(centroids) > 1 else 0, size):
            rows = x[start : start + size]
            shifted = np.ascontiguousarray(rows - rescoring.mean)
            scores, best = index.search(shifted, 2)  # of L2: squared distances
            margin = scores[:, 0] - scores[:, 1] if spherical else (scores[:, 1] - scores[:, 0]) / 2
            norms = np.sqrt(np.einsum("ij,ij->i", shifted, shifted))
            settle(labels[start : start + size], rows, best[:, 0], margin, norms, rescoring)
        return labels

    return nearest


def torch_nearest(
    centroids: np.ndarray, spherical: bool, threads: int = 1, device: str = "cpu"
) -> Nearest:
    """Like :func:`gemm_nearest`, by torch on a device, in full float32 (no TF32).

    Rows may also be a torch tensor on that device.
    """
    import torch

    if device == "cpu":
        torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    rescoring = Rescoring(centroids, spherical)
    c = torch.from_numpy(rescoring.c.astype(np.float32)).to(device)
    half = torch.from_numpy(rescoring.half.astype(np.float32)).to(device)
    mean = torch.from_numpy(rescoring.mean).to(device)
    size = max(BLOCK, (1 << 26) // len(c) // BLOCK * BLOCK)

    def nearest(x: Any) -> np.ndarray:
        tensor = x if isinstance(x, torch.Tensor) else torch.from_numpy(x).to(device)
        labels = np.zeros(len(tensor), np.int32)
        for start in range(0, len(tensor) if len(c) > 1 else 0, size):
            rows = tensor[start : start + size]
            shifted = rows if spherical else rows - mean
            scores = shifted @ c.T
            if not spherical:
                scores -= half
            highest, best = scores.max(1)
            second = scores.scatter_(1, best[:, None], -torch.inf).amax(1)
            norms = torch.linalg.vector_norm(shifted, dim=1)
            close = ~(highest - second > rescoring.margin(norms)) & ((norms > 0) | (not spherical))
            if spherical:
                best[norms == 0] = 0
            block_labels = best.to(torch.int32).cpu().numpy()
            undecided = torch.nonzero(close)[:, 0]
            if len(undecided):
                block_labels[undecided.cpu().numpy()] = rescoring(rows[undecided].cpu().numpy())
            labels[start : start + size] = block_labels
        return labels

    return nearest


KERNELS = {"gemm": gemm_nearest, "faiss": faiss_nearest, "torch": torch_nearest}
