"""Counts over all rows in bounded memory: in tasks, added up in a tree, one result for the driver.

Of more different values than are kept the common ones survive (Misra and Gries, Science of
Computer Programming 1982; summaries that can be added: Agarwal et al., PODS 2012).
"""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import ray
from ray.data import Dataset

from wcl_ray.errors import UserError

NO_ROWS = (
    "no row is left: the data are empty, or all are held out (too few values of data.split-by, or "
    "too large a data.holdout)"
)
PARTS = 8  # results that a task adds up

T = TypeVar("T")


def tally(rows: Dataset, count: Callable[[pa.Table], T]) -> T:
    """Count every block and add the counts up with ``+``.

    Raises:
        UserError: no rows.
    """

    def packed(table: pa.Table) -> Iterator[pa.Table]:
        yield pa.table({"counts": pa.array([pickle.dumps(count(table))], pa.large_binary())})

    counted = rows.map_batches(packed, batch_format="pyarrow", batch_size=None)
    add = ray.remote(num_cpus=1, scheduling_strategy="DEFAULT")(_sum)
    # tasks get references inside a list, so that they hold one part at a time beside the sum
    parts = [add.remote([ref]) for ref in counted.to_arrow_refs()]
    while len(parts) > 1:
        parts = [add.remote(parts[i : i + PARTS]) for i in range(0, len(parts), PARTS)]
    total = ray.get(parts[0]) if parts else None
    if total is None:
        raise UserError(NO_ROWS)
    return total  # type: ignore[no-any-return]


def _sum(refs: list[Any]) -> Any:
    total = None
    for ref in refs:
        part = ray.get(ref)
        packed = part["counts"] if isinstance(part, pa.Table) else [part]
        for scalar in packed:
            one = pickle.loads(scalar.as_py()) if isinstance(part, pa.Table) else scalar
            if one is not None:
                total = one if total is None else total + one
    return total


def heaviest(counts: Counter[Any], most: int) -> tuple[Counter[Any], int]:
    """At most so many of the values, each with a count that is too low by the same number.

    Returns:
        The counts that stay above 0, and what was taken off each: a value that is left out had no
        more. Over any sum of such counts it is at most rows / (most + 1) in all.
    """
    if len(counts) <= most:
        return counts, 0
    taken = kth(np.fromiter(counts.values(), np.int64, len(counts)), most)
    return Counter({value: n - taken for value, n in counts.items() if n > taken}), taken


def kth(counts: np.ndarray, most: int) -> int:
    """The largest count but for ``most``."""
    return int(np.partition(counts, len(counts) - most - 1)[len(counts) - most - 1])
