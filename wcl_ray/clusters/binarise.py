"""Metadata columns → binary attributes and their entropies, from counts that can be merged.

Rules: a string column gives one attribute per value, a list column one per member, a number column
"above threshold" attributes at its quantiles (one per value where it has few), a boolean column
one. A column with two values gives one attribute, its complement says nothing new. A missing
value makes every attribute of its column false.

Of a column with more than MOST_VALUES different values only those that enough rows share are
counted, and numbers are cut to 12 binary digits before their quantiles are taken.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wcl_ray.clusters.identifier import Spread, identifier
from wcl_ray.clusters.tally import heaviest, kth
from wcl_ray.data.values import kind_of, list_members, numbers, plain

MOST_VALUES = 100_000  # distinct values of a column that are counted
COMMON = 10_000  # values that are kept of a column with more
EXACT = 2**53  # floats hold all smaller integers


@dataclass
class ColumnCounts:
    """Counts of one column; adding two of them gives the counts of both parts.

    Attributes:
        kind: string, number, boolean, list or other.
        values: value → rows that have it.
        total: values that are not missing (of lists: different members of each row).
        lost: what counts may lack, and all that a value may have which is not among them; 0 unless
            there were more than MOST_VALUES strings or members.
        rounded: there were more than MOST_VALUES numbers, so that they are rounded.
        spread: of numbers.
        pairs: (value, label) → rows, for the check against the label; None when too many.
    """

    kind: str
    rows: int = 0
    nulls: int = 0
    values: Counter[Any] = field(default_factory=Counter)
    total: int = 0
    lost: int = 0
    rounded: bool = False
    spread: Spread = field(default_factory=Spread)
    pairs: Counter[tuple[Any, Any]] | None = field(default_factory=Counter)

    def __add__(self, other: ColumnCounts) -> ColumnCounts:
        pairs = None
        if self.pairs is not None and other.pairs is not None:
            pairs = self.pairs + other.pairs
        rounded = self.rounded or other.rounded
        parts = [_rounded(c.values) if rounded else c.values for c in (self, other)]
        values, lost = parts[0] + parts[1], self.lost + other.lost
        if len(values) > MOST_VALUES and self.kind == "number" and not rounded:
            values, rounded = _rounded(values), True
        if len(values) > MOST_VALUES:
            values, taken = heaviest(values, COMMON)
            lost += taken
        return ColumnCounts(
            self.kind if self.kind == other.kind else "other",
            self.rows + other.rows,
            self.nulls + other.nulls,
            values,
            self.total + other.total,
            lost,
            rounded,
            self.spread + other.spread,
            pairs if pairs is None or len(pairs) <= MOST_VALUES else None,
        )

    def enough(self, min_share: float) -> float:
        """Rows that a value must have to be told from the rest for sure."""
        return max(min_share * self.rows, self.total / COMMON)


class Columns(dict[str, Any]):
    """Counts by column; adding two adds the counts of each."""

    def __add__(self, other: Columns) -> Columns:
        return Columns({name: counts + other[name] for name, counts in self.items()})


def round_up(values: np.ndarray) -> np.ndarray:
    """float64 with 12 binary digits that are not smaller: a number is above a rounded one exactly
    when it is above it rounded."""
    mantissa, exponent = np.frexp(values.astype(np.float64))
    return np.ldexp(np.ceil(mantissa * 4096) / 4096, exponent)


def _rounded(values: Counter[Any]) -> Counter[Any]:
    raised = round_up(np.array(list(values), np.float64))
    found: Counter[Any] = Counter()
    for value, count in zip(raised.tolist(), values.values(), strict=True):
        found[value] += count
    return found


def count_column(column: pa.ChunkedArray, label: pa.Array | None) -> ColumnCounts:
    """Counts of one column of a part of the rows.

    Args:
        label: :func:`value_names` of the label of each row.
    """
    kind = kind_of(column.type)
    array = plain(column)
    counts = ColumnCounts(kind, len(array), array.null_count)
    if kind == "other":
        counts.pairs = None
        return counts
    values, times = _counted(_occurrences(array, kind))
    counts.total = int(times.sum())
    if kind == "number":
        raw = numbers(values)[0]
        counts.spread = Spread.of(raw, times)
        if len(raw) > MOST_VALUES:
            raw, place = np.unique(round_up(raw), return_inverse=True)
            values, times = pa.array(raw), np.bincount(place, times).astype(np.int64)
            counts.rounded = True
    if len(values) > MOST_VALUES:
        counts.lost = kth(times, COMMON)
        kept = times > counts.lost
        values, times = values.filter(pa.array(kept)), times[kept] - counts.lost
    counts.values = _counter(values, times)
    several = kind == "list" or label is None
    counts.pairs = None if several else _pairs(array, label)
    return counts


def count_some(column: pa.ChunkedArray, wanted: list[Any]) -> Counter[Any]:
    """Exact counts of some values of a column of strings or lists."""
    array = plain(column)
    found = _occurrences(array, kind_of(array.type))
    return _counter(*_counted(found.filter(pc.is_in(found, pa.array(wanted, found.type)))))


def _occurrences(array: pa.Array, kind: str) -> pa.Array:
    """Every value once for each row that has it, nulls left out."""
    if kind != "list":
        return array.drop_null()
    rows, members = list_members(array)
    both = pa.table({"row": rows, "value": members}).group_by(["row", "value"]).aggregate([])
    return both["value"].combine_chunks()


def _counted(array: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Different values and int64 rows of each."""
    found = pc.value_counts(array)
    return found.field("values"), found.field("counts").to_numpy().astype(np.int64)


def _counter(values: pa.Array, times: np.ndarray) -> Counter[Any]:
    return Counter(dict(zip(_python(values), times.tolist(), strict=True)))


def _python(values: pa.Array) -> list[Any]:
    """Values as Python's; integers are floats as long as these are exact."""
    found = values.to_pylist()
    if pa.types.is_integer(values.type):
        return [float(v) if abs(v) < EXACT else v for v in found]
    return found


def _pairs(array: pa.Array, label: pa.Array) -> Counter[tuple[Any, Any]] | None:
    table = pa.table({"value": array, "label": label}).drop_null()
    found = table.group_by(["value", "label"]).aggregate([([], "count_all")])
    if len(found) > MOST_VALUES:
        return None
    return Counter({(row["value"], row["label"]): row["count_all"] for row in found.to_pylist()})


@dataclass(frozen=True)
class Attribute:
    """One binary attribute.

    Attributes:
        test: ``is`` (equals), ``has`` (list member) or ``above`` (greater than).
        share: of the images for which it is true.
        entropy: in bits.
    """

    column: str
    test: str
    value: Any
    share: float
    entropy: float

    @property
    def name(self) -> str:
        return f"{self.column} {self.test} {self.value}"

    @property
    def code(self) -> int:
        """64-bit number of the attribute; a pattern is the XOR of those that are true."""
        column = self.column
        if any(f" {test} " in column for test in ("is", "has", "above")):
            column = repr(column)  # "a is b" is "c", but "a" is "b is c"
        name = f"{column} {self.test} {self.value}"
        digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little")

    def mask(self, array: pa.Array) -> np.ndarray:
        """bool (n,): the rows of a plain column (see :func:`plain`) for which it is true."""
        if self.test == "has":
            rows, members = list_members(array)
            found = np.zeros(len(array), dtype=bool)
            found[rows.to_numpy()[self._holds(members)]] = True
            return found
        return self._holds(array)

    def _holds(self, array: pa.Array) -> np.ndarray:
        if kind_of(array.type) == "number":
            values, known = numbers(array)
            found = values > self.value if self.test == "above" else values == self.value
            return known & found
        found = pc.fill_null(pc.equal(array, pa.scalar(self.value, array.type)), False)
        return np.asarray(found.to_numpy(zero_copy_only=False), dtype=bool)


def attributes(
    counts: dict[str, ColumnCounts],
    quantiles: int,
    min_share: float,
    named: Collection[str] = (),
) -> tuple[list[Attribute], dict[str, str]]:
    """All usable binary attributes by falling entropy (ties by column, test and value), and why
    columns were left out.

    Args:
        named: columns that are used though they look like row numbers or identifiers (see
            :func:`identifier`): one attribute per value where enough rows share one.
    """
    found: list[Attribute] = []
    skipped: dict[str, str] = {}
    for name, column in counts.items():
        reason = _unusable(column)
        mark = None
        if column.kind == "number" and len(column.values) > quantiles + 1:
            mark = identifier(name, column.spread, column.total)
        if reason or (mark and name not in named):
            skipped[name] = reason or str(mark)
            continue

        def usable(
            tests: list[tuple[str, Any, int]], name: str = name, column: ColumnCounts = column
        ) -> list[Attribute]:
            shares = [(test, value, count / column.rows) for test, value, count in tests]
            made = [Attribute(name, t, value, p, binary_entropy(p)) for t, value, p in shares]
            return [a for a in made if min_share <= a.share <= 1 - min_share and a.entropy > 0]

        own = usable(_each(column)) if mark and not column.rounded else []
        own = own or usable(_tests(column, quantiles))
        if not own:
            skipped[name] = f"no value with a share in [{min_share:g}, {1 - min_share:g}]"
            if column.lost:
                skipped[name] = f"more than {MOST_VALUES:,} values: looks like an identifier"
        found += own
    found.sort(key=lambda a: (-round(a.entropy, 12), a.column, a.test, str(a.value)))
    return found, skipped


def _unusable(column: ColumnCounts) -> str | None:
    if column.kind == "other":
        return "its type cannot be turned into attributes"
    if column.nulls == column.rows:
        return "every value is missing"
    if column.lost and column.kind == "number":
        return f"more than {MOST_VALUES:,} values: looks like an identifier"
    if column.lost:  # some may be common all the same
        return None
    if column.kind == "string" and len(column.values) > max(20, 0.9 * column.total):
        return "nearly every value is different: looks like an identifier"
    if len(column.values) < 2 and column.kind != "list" and not column.nulls:
        return "it has the same value everywhere"
    return None


def _tests(column: ColumnCounts, quantiles: int) -> list[tuple[str, Any, int]]:
    """(test, value, rows for which it is true)."""
    values = column.values
    if column.kind == "list":
        return [("has", value, count) for value, count in values.items()]
    if column.kind == "boolean":
        return [("is", True, values.get(True, 0))]
    if column.kind == "number" and len(values) > quantiles + 1:
        return _thresholds(values, quantiles)
    if len(values) == 2 and not column.lost:
        value = max(values, key=str)  # of two complements, one
        return [("is", value, values[value])]
    return _each(column)


def _each(column: ColumnCounts) -> list[tuple[str, Any, int]]:
    return [("is", value, count) for value, count in column.values.items()]


def _thresholds(values: dict[Any, int], quantiles: int) -> list[tuple[str, Any, int]]:
    ordered = sorted(values)
    below = np.cumsum([values[v] for v in ordered])
    total = int(below[-1])
    cuts = dict.fromkeys(
        ordered[int(np.searchsorted(below, total * i / (quantiles + 1)))]
        for i in range(1, quantiles + 1)
    )
    index = {value: i for i, value in enumerate(ordered)}
    return [("above", cut, total - int(below[index[cut]])) for cut in cuts]


def binary_entropy(p: float) -> float:
    """Entropy of a binary variable with probability p, in bits."""
    if p <= 0 or p >= 1:
        return 0.0
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p)
