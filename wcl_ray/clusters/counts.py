"""Counts of metadata columns that can be merged: from them types and attributes are chosen.

Of a column with more than MOST_VALUES distinct values only the common ones are counted, and numbers
are rounded to 12 binary digits before their quantiles are taken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wcl_ray.clusters.identifier import Spread
from wcl_ray.clusters.tally import heaviest, kth
from wcl_ray.clusters.unfit import Unfit
from wcl_ray.clusters.views import View, try_read
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
        spaced: number of rows with a text that has white space between letters: several words.
        unfit: a value that could not be read in the form of a view, not always the first one, since
            blocks come in any order; its kind is then other.
        unfit_rows: number of rows with such a value.
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
    spaced: int = 0
    unfit: Any = None
    unfit_rows: int = 0

    def __add__(self, other: ColumnCounts) -> ColumnCounts:
        if self.unfit is not None or other.unfit is not None:
            named = [value for value in (self.unfit, other.unfit) if value is not None]
            unfit = min(named, key=repr)  # the same in any order of blocks
            rows, nulls = self.rows + other.rows, self.nulls + other.nulls
            unfit_rows = self.unfit_rows + other.unfit_rows
            return ColumnCounts(
                "other", rows, nulls, pairs=None, unfit=unfit, unfit_rows=unfit_rows
            )
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
            self.spaced + other.spaced,
        )

    def min_rows(self, min_share: float) -> float:
        """Rows that a value needs to become an attribute, enough for its count to be kept."""
        return max(min_share * self.rows, self.total / COMMON)


class Columns(dict[Any, Any]):
    """Counts by column (str) or :class:`View`; addition is one by one, of those in both."""

    def __add__(self, other: Columns) -> Columns:
        return Columns({key: counts + other[key] for key, counts in self.items() if key in other})


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
    return _count(plain(column), kind_of(column.type), label)


def count_table(
    table: pa.Table, columns: list[str], label: pa.Array | None, views: Iterable[View] = ()
) -> Columns:
    """Count the columns and the views of part of the rows."""
    counts = Columns({name: count_column(table[name], label) for name in columns})
    for view, array in try_read(table, views).items():
        if isinstance(array, Unfit):
            counts[view] = ColumnCounts(
                "other", len(table), pairs=None, unfit=array.value, unfit_rows=array.count
            )
        else:
            counts[view] = _count(array, kind_of(array.type), None)
    return counts


def _count(array: pa.Array, kind: str, label: pa.Array | None) -> ColumnCounts:
    counts = ColumnCounts(kind, len(array), array.null_count)
    if kind == "other":
        counts.pairs = None
        return counts
    values, frequencies = _value_counts(_occurrences(array, kind))
    counts.total = int(frequencies.sum())
    if kind == "string":
        counts.spaced = int(frequencies[_spaced(values)].sum())
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


def _spaced(values: pa.Array) -> np.ndarray:
    """bool (n,): whether each text has white space between letters."""
    spaced = pc.match_substring_regex(values, r"(?s)\pL.*\s.*\pL")
    return np.asarray(spaced.to_numpy(zero_copy_only=False), dtype=bool)


def count_selected(array: pa.Array, selected: list[Any]) -> Counter[Any]:
    """Exact counts of selected values of a plain column of strings or lists."""
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
