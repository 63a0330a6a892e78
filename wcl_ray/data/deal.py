"""Which worker reads which kept blocks, and how many at a time: pure functions on numbers of rows.

The blocks of a stream that no single node can hold lie on several. A worker reads those of its own
node as far as all workers come out with equally many rows; what is left over goes to those that
lack some. It reads them block by block and composes its batches inside a window of a few.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Piece = tuple[int, int, int]  # block, first row, end; of the rows of the block that are left
MOST = 16  # blocks that a worker holds at a time where nothing is known of the nodes' memory


@dataclass(frozen=True)
class Places:
    """Where the blocks and the workers are; nodes are numbered.

    Attributes:
        blocks: int (blocks,): node of each block; a number that is not a worker's: elsewhere.
        ranks: int (world,): node of each worker.
        most: blocks that this worker may hold at a time, at least 1. As many more may be on their
            way to its node.
    """

    blocks: np.ndarray
    ranks: np.ndarray
    most: int = MOST


def nowhere(blocks: int, world: int) -> Places:
    """Nothing is known of the nodes."""
    return Places(np.full(blocks, -1), np.zeros(world, np.int64))


def deal(counts: np.ndarray, places: Places, rng: np.random.Generator) -> list[list[Piece]]:
    """The part of each worker, of ``counts.sum() // world`` rows.

    Args:
        counts: int (blocks,): rows of each block that are left.
        rng: in the same state on all workers.
    """
    world = len(places.ranks)
    share = int(counts.sum()) // world
    turn = [int(number) for number in rng.permutation(len(counts)) if counts[number]]
    lines: dict[int, list[Piece]] = {}
    for number in turn:
        home = int(places.blocks[number])
        lines.setdefault(home, []).append((number, 0, int(counts[number])))
    parts: list[list[Piece]] = [[] for _ in range(world)]
    spare: list[Piece] = []
    for node, line in sorted(lines.items()):
        here = [int(rank) for rank in np.flatnonzero(places.ranks == node)]
        quota = min(share, rows_of(line) // len(here)) if here else 0
        *own, rest = _cut(line, [quota] * len(here))
        for rank, part in zip(here, own, strict=True):
            parts[rank] = part
        spare += rest
    *more, _ = _cut(spare, [share - rows_of(part) for part in parts])
    return [[*own, *others] for own, others in zip(parts, more, strict=True)]


def rows_of(pieces: Sequence[Piece]) -> int:
    return sum(stop - start for _, start, stop in pieces)


def _cut(line: Sequence[Piece], sizes: Sequence[int]) -> list[list[Piece]]:
    """Consecutive parts of so many rows, and what is left."""
    left = list(reversed(line))
    parts: list[list[Piece]] = []
    for size in sizes:
        part: list[Piece] = []
        while size:
            number, start, stop = left.pop()
            cut = min(stop, start + size)
            part.append((number, start, cut))
            size -= cut - start
            if cut < stop:
                left.append((number, cut, stop))
        parts.append(part)
    return [*parts, left[::-1]]


def windows(pieces: Sequence[Piece], window: int, local: int, most: int) -> list[int]:
    """Ends of the windows in a line of pieces, in rows: all multiples of ``local``.

    A window has whole batches of ``local`` rows. It ends with the block that makes it ``window``
    rows long, or with the ``most``-th; only where these are not one batch it goes over more.
    """
    ends: list[int] = []
    begin = at = held = 0
    for _, start, stop in pieces:
        at += stop - start
        held += 1
        end = at // local * local
        if end > begin and (at - begin >= window or held >= most):
            ends.append(end)
            begin, held = end, int(at > end)
    if at // local * local > begin:
        ends.append(at // local * local)
    return ends
