"""Deals kept blocks to workers: pure functions on row counts.

The blocks of a stream that no single node can hold lie on several nodes. A worker reads blocks of
its own node as far as all workers get equally many rows; leftover rows go to workers with too few.
It reads block by block and composes its batches within a window of a few blocks.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Piece = tuple[int, int, int]  # block, first row, end; among the block's remaining rows
MAX_BLOCKS = 16  # that a worker holds at a time if the nodes' memory is not known


@dataclass(frozen=True)
class Places:
    """Nodes of the blocks and the workers, as numbers.

    Attributes:
        blocks: int (blocks,): node of each block; any other number than a worker's: elsewhere.
        ranks: int (world,): node of each worker.
        max_blocks: blocks that this worker may hold at a time, at least 1. As many more may be in
            transfer to its node.
    """

    blocks: np.ndarray
    ranks: np.ndarray
    max_blocks: int = MAX_BLOCKS


def unknown_places(blocks: int, world: int) -> Places:
    """Places if the nodes are not known."""
    return Places(np.full(blocks, -1), np.zeros(world, np.int64))


def deal(counts: np.ndarray, places: Places, rng: np.random.Generator) -> list[list[Piece]]:
    """The pieces of each worker, ``counts.sum() // world`` rows in sum.

    Args:
        counts: int (blocks,): remaining rows of each block.
        rng: in the same state on all workers.
    """
    world = len(places.ranks)
    share = int(counts.sum()) // world
    by_node: dict[int, list[Piece]] = {}
    for number in map(int, rng.permutation(len(counts))):
        if counts[number]:
            node = int(places.blocks[number])
            by_node.setdefault(node, []).append((number, 0, int(counts[number])))
    local: list[list[Piece]] = [[] for _ in range(world)]
    spare: list[Piece] = []
    for node, pieces in sorted(by_node.items()):
        ranks = [int(rank) for rank in np.flatnonzero(places.ranks == node)]
        quota = min(share, rows_of(pieces) // len(ranks)) if ranks else 0
        *parts, rest = _cut(pieces, [quota] * len(ranks))
        for rank, part in zip(ranks, parts, strict=True):
            local[rank] = part
        spare += rest
    *remote, _ = _cut(spare, [share - rows_of(part) for part in local])
    return [[*near, *far] for near, far in zip(local, remote, strict=True)]


def rows_of(pieces: Sequence[Piece]) -> int:
    """Number of rows in pieces."""
    return sum(stop - start for _, start, stop in pieces)


def _cut(pieces: Sequence[Piece], sizes: Sequence[int]) -> list[list[Piece]]:
    """Consecutive parts of the given numbers of rows, and the rest."""
    rest = list(reversed(pieces))
    parts: list[list[Piece]] = []
    for size in sizes:
        part: list[Piece] = []
        while size:
            number, start, stop = rest.pop()
            cut = min(stop, start + size)
            part.append((number, start, cut))
            size -= cut - start
            if cut < stop:
                rest.append((number, cut, stop))
        parts.append(part)
    return [*parts, rest[::-1]]


def windows(pieces: Sequence[Piece], window: int, local: int, max_blocks: int) -> list[int]:
    """Ends of the windows in a sequence of pieces, in rows: all multiples of ``local``.

    A window has whole batches of ``local`` rows. It ends with the block that makes it ``window``
    rows long, or after ``max_blocks`` blocks; if these are less than a batch, it takes more.
    """
    stops = list(itertools.accumulate(stop - start for _, start, stop in pieces))
    ends: list[int] = []
    begin = first = 0  # row and piece with which the window begins
    for number, at in enumerate(stops):
        end = at // local * local
        if end > begin and (at - begin >= window or number - first + 1 >= max_blocks):
            ends.append(end)
            begin, first = end, bisect.bisect_right(stops, end)  # the rest may span several pieces
    if stops and stops[-1] // local * local > begin:
        ends.append(stops[-1] // local * local)
    return ends
