"""Counts over all rows in bounded memory: tasks count, and sum the counts in a tree.

Of too many distinct values the common ones are kept (Misra and Gries, Science of Computer
Programming 1982; mergeable summaries: Agarwal et al., PODS 2012).
"""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import ray
from ray.data import Dataset

from wcl_ray.errors import UserError

NO_ROWS = (
    "no rows are left: the data are empty, or all are held out (too few values of data.split-by, "
    "or too large a data.holdout)"
)
FAN_IN = 8  # results that a task sums

T = TypeVar("T")


def tally(rows: Dataset, count: Callable[[pa.Table], T]) -> T:
    """Count every block and sum the counts with ``+``.

    Raises:
        UserError: there are no rows.
    """

    def pickled(table: pa.Table) -> Iterator[pa.Table]:
        yield pa.table({"counts": pa.array([pickle.dumps(count(table))], pa.large_binary())})

    counts = rows.map_batches(pickled, batch_format="pyarrow", batch_size=None)
    add = ray.remote(num_cpus=1, scheduling_strategy="DEFAULT")(_sum)
    # references inside a list, so that a task holds one result at a time beside the sum
    sums = [add.remote([ref]) for ref in counts.to_arrow_refs()]
    while len(sums) > 1:
        sums = [add.remote(sums[i : i + FAN_IN]) for i in range(0, len(sums), FAN_IN)]
    total = ray.get(sums[0]) if sums else None
    if total is None:
        raise UserError(NO_ROWS)
    return total  # type: ignore[no-any-return]


def _sum(refs: list[Any]) -> Any:
    total = None
    for ref in refs:
        result = ray.get(ref)
        counts: Iterable[Any] = [] if result is None else [result]
        if isinstance(result, pa.Table):
            counts = (pickle.loads(content.as_py()) for content in result["counts"])
        for count in counts:
            total = count if total is None else total + count
    return total


def heaviest(counts: Counter[Any], most: int) -> tuple[Counter[Any], int]:
    """Reduce the counts to at most ``most`` values by subtracting the same number from each.

    Returns:
        The counts that stay positive, and the number subtracted, which no dropped value exceeds.
        Over a sum of such counts these numbers add up to at most rows / (most + 1).
    """
    if len(counts) <= most:
        return counts, 0
    subtracted = kth(np.fromiter(counts.values(), np.int64, len(counts)), most)
    kept = {value: n - subtracted for value, n in counts.items() if n > subtracted}
    return Counter(kept), subtracted


def kth(counts: np.ndarray, k: int) -> int:
    """The (k + 1)-th largest count."""
    return int(np.partition(counts, len(counts) - k - 1)[len(counts) - k - 1])
