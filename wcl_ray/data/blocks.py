"""What is known of the kept blocks, without an array of all rows on the driver or, if blocks are
dealt, at a worker.

The positions of the rows stay beside the blocks, on their nodes. References to blocks are kept in
lists by node, and a process takes the lists that it needs: a reference costs the driver 2 to 3 kB
for every process that holds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from wcl_ray.data import sampler
from wcl_ray.data.homes import homes_of
from wcl_ray.data.sources.base import FAULT, ID, KEY, POSITION

DESCRIBED = 16  # blocks that a task describes
AT_ONCE = 256  # blocks whose positions are looked at together

Fault = dict[str, str]


@dataclass(frozen=True)
class Block:
    """A kept block.

    Attributes:
        table: reference to the pyarrow table.
        positions: reference to int64, positions of the rows of this block and others.
        first: row of this block in ``positions``.
    """

    table: Any
    positions: Any
    first: int


@dataclass(frozen=True)
class Blocks:
    """All kept blocks, numbered.

    Attributes:
        rows: int64 (blocks,).
        readable: int64 (blocks,): rows whose images can be read.
        group: int64 (blocks,): where in ``groups`` a block is.
        groups: references to number → :class:`Block`, of the blocks of one node.
    """

    rows: np.ndarray
    readable: np.ndarray
    group: np.ndarray
    groups: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def offsets(self) -> np.ndarray:
        """int64 (blocks + 1,): first row of each block in the concatenated blocks."""
        return np.cumsum(np.append(0, self.rows))


class Directory:
    """Kept blocks by number. References are taken from a group when one of its blocks is needed."""

    def __init__(self, blocks: Blocks) -> None:
        self.blocks = blocks
        self._known: dict[int, Block] = {}

    def get(self, numbers: Sequence[int]) -> list[Block]:
        """The blocks of given numbers."""
        missing = {int(self.blocks.group[n]) for n in numbers if n not in self._known}
        for members in ray.get([self.blocks.groups[group] for group in sorted(missing)]):
            self._known |= members
        return [self._known[number] for number in numbers]

    def tables(self) -> list[Any]:
        """References to the tables of all blocks."""
        return [block.table for block in self.get(range(len(self.blocks)))]

    def positions(self, numbers: Sequence[int]) -> list[np.ndarray]:
        """int64 (rows,) for each block: positions, -1 = unreadable or not among the images."""
        blocks = self.get(numbers)
        arrays = ray.get([block.positions for block in blocks])
        parts = zip(numbers, blocks, arrays, strict=True)
        return [array[b.first : b.first + self.blocks.rows[n]] for n, b, array in parts]


def rows_left(blocks: Blocks, consumed: np.ndarray | None) -> np.ndarray:
    """int64 (blocks,): rows of each block that are readable and not consumed.

    Args:
        consumed: packed bits of positions, or None. With any set, all positions are read.
    """
    if consumed is None or not consumed.any():
        return blocks.readable
    directory, left = Directory(blocks), np.zeros(len(blocks), np.int64)
    by_group = np.argsort(blocks.group, kind="stable")
    for start in range(0, len(blocks), AT_ONCE):
        numbers = by_group[start : start + AT_ONCE].tolist()
        left[numbers] = [len(unconsumed(p, consumed)) for p in directory.positions(numbers)]
    return left


def unconsumed(positions: np.ndarray, consumed: np.ndarray | None) -> np.ndarray:
    """int64: indices of the rows that are readable and not consumed."""
    rows = np.flatnonzero(positions >= 0)
    return rows if consumed is None else rows[~sampler.has_bits(consumed, positions[rows])]


def describe(refs: Sequence[Any]) -> tuple[Blocks, list[Fault]]:
    """The blocks, and the images that cannot be read. Blocks are described on their nodes.

    Args:
        refs: to tables with ``__position``.
    """
    homes = homes_of(refs).nodes
    by_node: dict[str, list[int]] = {}
    for number, ref in enumerate(refs):
        by_node.setdefault(homes.get(ref.hex(), ""), []).append(number)
    nodes = list(by_node.values())
    parts = [part[i : i + DESCRIBED] for part in nodes for i in range(0, len(part), DESCRIBED)]
    tasks = [_describe.remote(*(refs[number] for number in part)) for part in parts]
    rows, readable = np.zeros((2, len(refs)), np.int64)
    faults: list[Fault] = []
    members: dict[int, Block] = {}
    summaries = ray.get([summary for _, summary in tasks])
    for part, (positions, _), (counts, bad) in zip(parts, tasks, summaries, strict=True):
        rows[part], readable[part] = counts
        first = np.cumsum(counts[0]) - counts[0]
        for number, row in zip(part, first.tolist(), strict=True):
            members[number] = Block(refs[number], positions, row)
        faults += bad
    group = np.empty(len(refs), np.int64)
    for index, numbers in enumerate(nodes):
        group[numbers] = index
    groups = tuple(ray.put({number: members[number] for number in numbers}) for numbers in nodes)
    faults.sort(key=lambda fault: fault["key"])
    return Blocks(rows, readable, group, groups), faults


@ray.remote(num_cpus=0.5, num_returns=2, scheduling_strategy="DEFAULT")
def _describe(*tables: pa.Table) -> tuple[np.ndarray, tuple[np.ndarray, list[Fault]]]:
    """Positions of the rows of all tables, -1 = unreadable; and for each table the number of its
    rows and of those that are readable, int64 (2, tables), and the faults."""
    positions = [np.empty(0, np.int64)]
    faults: list[Fault] = []
    for table in tables:
        known = table[POSITION].to_numpy() if table.num_columns else positions[0]
        if table.num_columns:
            bad = table[FAULT].is_valid().to_numpy()
            known = np.where(bad, -1, known)
            for row in table.select([ID, KEY, FAULT]).filter(pa.array(bad)).to_pylist():
                faults.append({"key": str(row[KEY] or row[ID]), "reason": row[FAULT]})
        positions.append(known)
    counts = np.array([[len(part), (part >= 0).sum()] for part in positions[1:]], np.int64)
    return np.concatenate(positions), (counts.T, faults)


@ray.remote(num_cpus=0, scheduling_strategy="DEFAULT")  # must not wait for CPUs of the workers
def locate(blocks: Blocks, n: int) -> np.ndarray:
    """int64 (n,): row of each position in the concatenated blocks, -1 = none."""
    return inverse(np.concatenate(Directory(blocks).positions(range(len(blocks)))), n)


def inverse(index: np.ndarray, n: int) -> np.ndarray:
    """int64 (n,): where in ``index`` a number is, -1 = nowhere.

    >>> inverse(np.array([2, -1, 0]), 4)
    array([ 2, -1,  0, -1])
    """
    where = np.full(n, -1, np.int64)
    known = np.flatnonzero(index >= 0)
    where[index[known]] = known
    return where
