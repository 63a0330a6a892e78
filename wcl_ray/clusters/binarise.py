"""Binary attributes of metadata columns and their entropies, from counts that can be merged.

A string column gives one attribute per value, a list column one per member, a boolean column one,
a number column "above threshold" attributes at its quantiles, or one per value if it has few. A
column with two values gives one attribute, since the other is its complement. A missing value
makes every attribute of its column false.

Of a column with more than MOST_VALUES distinct values only the common ones are counted, and numbers
are rounded to 12 binary digits before their quantiles are taken.
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

MOST_VALUES = 100_000  # distinct values counted in a column
COMMON = 10_000  # values kept of a column with more
EXACT = 2**53  # floats represent all smaller integers


@dataclass
class ColumnCounts:
    """Counts of one column in part of the rows; the sum of two covers both parts.

    Attributes:
        kind: string, number, boolean, list or other.
        values: value → number of rows with it.
        total: number of values that are not missing (lists: distinct members of each row).
        undercount: by how much each count may be too low; 0 unless there were more than MOST_VALUES
            strings or members. A value without a count has at most this many rows.
        rounded: the values are rounded, since there were more than MOST_VALUES numbers.
        spread: range, step and repetition of the values of a number column.
        pairs: (value, label) → number of rows, for the leak check; None if there are too many.
    """

    kind: str
    rows: int = 0
    nulls: int = 0
    values: Counter[Any] = field(default_factory=Counter)
    total: int = 0
    undercount: int = 0
    rounded: bool = False
    spread: Spread = field(default_factory=Spread)
    pairs: Counter[tuple[Any, Any]] | None = field(default_factory=Counter)

    def __add__(self, other: ColumnCounts) -> ColumnCounts:
        pairs = None
        if self.pairs is not None and other.pairs is not None:
            pairs = self.pairs + other.pairs
        rounded = self.rounded or other.rounded
        mine, theirs = (_rounded(c.values) if rounded else c.values for c in (self, other))
        values, undercount = mine + theirs, self.undercount + other.undercount
        if len(values) > MOST_VALUES and self.kind == "number" and not rounded:
            values, rounded = _rounded(values), True
        if len(values) > MOST_VALUES:
            values, subtracted = heaviest(values, COMMON)
            undercount += subtracted
        return ColumnCounts(
            self.kind if self.kind == other.kind else "other",
            self.rows + other.rows,
            self.nulls + other.nulls,
            values,
            self.total + other.total,
            undercount,
            rounded,
            self.spread + other.spread,
            pairs if pairs is None or len(pairs) <= MOST_VALUES else None,
        )

    def min_rows(self, min_share: float) -> float:
        """Rows that a value needs to become an attribute, enough for its count to be kept."""
        return max(min_share * self.rows, self.total / COMMON)


class Columns(dict[str, Any]):
    """Counts by column; addition is column by column."""

    def __add__(self, other: Columns) -> Columns:
        return Columns({name: counts + other[name] for name, counts in self.items()})


def round_up(values: np.ndarray) -> np.ndarray:
    """Round up to float64 with 12 binary digits. A number is above a rounded threshold exactly if
    it is above it when rounded itself."""
    mantissa, exponent = np.frexp(values.astype(np.float64))
    return np.ldexp(np.ceil(mantissa * 4096) / 4096, exponent)


def _rounded(values: Counter[Any]) -> Counter[Any]:
    rounded = round_up(np.array(list(values), np.float64))
    counts: Counter[Any] = Counter()
    for value, count in zip(rounded.tolist(), values.values(), strict=True):
        counts[value] += count
    return counts


def count_column(column: pa.ChunkedArray, label: pa.Array | None) -> ColumnCounts:
    """Count one column in part of the rows.

    Args:
        label: string (n,), the label of each row by :func:`value_names`.
    """
    kind = kind_of(column.type)
    array = plain(column)
    counts = ColumnCounts(kind, len(array), array.null_count)
    if kind == "other":
        counts.pairs = None
        return counts
    values, frequencies = _value_counts(_occurrences(array, kind))
    counts.total = int(frequencies.sum())
    if kind == "number":
        raw = numbers(values)[0]
        counts.spread = Spread.of(raw, frequencies)
        if len(raw) > MOST_VALUES:
            rounded, index = np.unique(round_up(raw), return_inverse=True)
            values = pa.array(rounded)
            frequencies = np.bincount(index, frequencies).astype(np.int64)
            counts.rounded = True
    if len(values) > MOST_VALUES:
        counts.undercount = kth(frequencies, COMMON)
        kept = frequencies > counts.undercount
        values, frequencies = values.filter(pa.array(kept)), frequencies[kept] - counts.undercount
    counts.values = _counter(values, frequencies)
    counts.pairs = None if kind == "list" or label is None else _pairs(array, label)
    return counts


def count_selected(column: pa.ChunkedArray, selected: list[Any]) -> Counter[Any]:
    """Exact counts of selected values of a string or list column."""
    array = plain(column)
    values = _occurrences(array, kind_of(array.type))
    values = values.filter(pc.is_in(values, pa.array(selected, values.type)))
    return _counter(*_value_counts(values))


def _occurrences(array: pa.Array, kind: str) -> pa.Array:
    """Each value once per row that has it, without nulls."""
    if kind != "list":
        return array.drop_null()
    rows, members = list_members(array)
    unique = pa.table({"row": rows, "value": members}).group_by(["row", "value"]).aggregate([])
    return unique["value"].combine_chunks()


def _value_counts(array: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """The distinct values and their frequencies, int64."""
    counts = pc.value_counts(array)
    return counts.field("values"), counts.field("counts").to_numpy().astype(np.int64)


def _counter(values: pa.Array, frequencies: np.ndarray) -> Counter[Any]:
    return Counter(dict(zip(_python(values), frequencies.tolist(), strict=True)))


def _python(values: pa.Array) -> list[Any]:
    """Values as Python objects; integers as floats if those are exact."""
    objects = values.to_pylist()
    if pa.types.is_integer(values.type):
        return [float(v) if abs(v) < EXACT else v for v in objects]
    return objects


def _pairs(array: pa.Array, label: pa.Array) -> Counter[tuple[Any, Any]] | None:
    table = pa.table({"value": array, "label": label}).drop_null()
    counts = table.group_by(["value", "label"]).aggregate([([], "count_all")])
    if len(counts) > MOST_VALUES:
        return None
    return Counter({(row["value"], row["label"]): row["count_all"] for row in counts.to_pylist()})


@dataclass(frozen=True)
class Attribute:
    """One binary attribute.

    Attributes:
        test: ``is`` (equals), ``has`` (list member), ``above`` (greater than) or ``below`` (not
            greater than).
        share: share of the images for which it is true.
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
        """64-bit hash; the code of a pattern is the XOR of those of its true attributes."""
        column = self.column
        if any(f" {test} " in column for test in ("is", "has", "above")):
            column = repr(column)  # "a is b" is "c", but "a" is "b is c"
        name = f"{column} {self.test} {self.value}"
        digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little")

    def mask(self, array: pa.Array) -> np.ndarray:
        """bool (n,): whether it is true for each row of a column (see :func:`plain`)."""
        if self.test == "has":
            rows, members = list_members(array)
            mask = np.zeros(len(array), dtype=bool)
            mask[rows.to_numpy()[self._matches(members)]] = True
            return mask
        return self._matches(array)

    def _matches(self, array: pa.Array) -> np.ndarray:
        if kind_of(array.type) == "number":
            values, known = numbers(array)
            tests = {"above": np.greater, "below": np.less_equal, "is": np.equal}
            return known & tests[self.test](values, self.value)
        equal = pc.fill_null(pc.equal(array, pa.scalar(self.value, array.type)), False)
        return np.asarray(equal.to_numpy(zero_copy_only=False), dtype=bool)


def attributes(
    counts: dict[str, ColumnCounts],
    quantiles: int,
    min_share: float,
    named: Collection[str] = (),
) -> tuple[list[Attribute], dict[str, str]]:
    """All usable binary attributes by decreasing entropy (ties by column, test and value), and for
    each column left out the reason.

    Args:
        named: columns to use even if they look like row numbers or identifiers (see
            :func:`identifier`), with one attribute per value if values are common enough.
    """
    result: list[Attribute] = []
    skipped: dict[str, str] = {}
    for name, column in counts.items():
        unusable = _unusable(column)
        id_reason = None
        if column.kind == "number" and len(column.values) > quantiles + 1:
            id_reason = identifier(name, column.spread, column.total)
        if unusable or (id_reason and name not in named):
            skipped[name] = unusable or str(id_reason)
            continue

        def usable(
            tests: list[tuple[str, Any, int]], name: str = name, column: ColumnCounts = column
        ) -> list[Attribute]:
            shares = [(test, value, count / column.rows) for test, value, count in tests]
            all_tests = [Attribute(name, t, value, p, binary_entropy(p)) for t, value, p in shares]
            return [a for a in all_tests if min_share <= a.share <= 1 - min_share and a.entropy > 0]

        of_column = usable(_value_tests(column)) if id_reason and not column.rounded else []
        of_column = of_column or usable(_tests(column, quantiles))
        if not of_column:
            skipped[name] = f"no value with a share in [{min_share:g}, {1 - min_share:g}]"
            if column.undercount:
                skipped[name] = f"more than {MOST_VALUES:,} values: looks like an identifier"
        result += of_column
    result.sort(key=lambda a: (-round(a.entropy, 12), a.column, a.test, str(a.value)))
    return result, skipped


def _unusable(column: ColumnCounts) -> str | None:
    """Why a column gives no attributes, or None."""
    if column.kind == "other":
        return "its type cannot be turned into attributes"
    if column.nulls == column.rows:
        return "every value is missing"
    if column.undercount and column.kind == "number":
        return f"more than {MOST_VALUES:,} values: looks like an identifier"
    if column.undercount:  # some values may still be common
        return None
    if column.kind == "string" and len(column.values) > max(20, 0.9 * column.total):
        return "nearly every value is different: looks like an identifier"
    if len(column.values) < 2 and column.kind != "list" and not column.nulls:
        return "all its values are the same"
    return None


def _tests(column: ColumnCounts, quantiles: int) -> list[tuple[str, Any, int]]:
    """(test, value, number of rows for which it is true)."""
    values = column.values
    if column.kind == "list":
        return [("has", value, count) for value, count in values.items()]
    if column.kind == "boolean":
        return [("is", True, values.get(True, 0))]
    if column.kind == "number" and len(values) > quantiles + 1:
        return _thresholds(values, quantiles)
    if len(values) == 2 and not column.undercount:
        value = max(values, key=str)  # the other one is its complement
        return [("is", value, values[value])]
    return _value_tests(column)


def _value_tests(column: ColumnCounts) -> list[tuple[str, Any, int]]:
    return [("is", value, count) for value, count in column.values.items()]


def _thresholds(values: dict[Any, int], quantiles: int) -> list[tuple[str, Any, int]]:
    ordered = sorted(values)
    cumulative = np.cumsum([values[v] for v in ordered])
    total = int(cumulative[-1])
    cuts = dict.fromkeys(
        int(np.searchsorted(cumulative, total * i / (quantiles + 1)))
        for i in range(1, quantiles + 1)
    )
    return [("above", ordered[cut], total - int(cumulative[cut])) for cut in cuts]


def binary_entropy(p: float) -> float:
    """Entropy of a binary variable with probability p, in bits."""
    if p <= 0 or p >= 1:
        return 0.0
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p)
