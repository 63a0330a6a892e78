"""Metadata columns → binary attributes and their entropies, from counts that can be merged.

Rules: a string column gives one attribute per value, a list column one per member, a number column
"above threshold" attributes at its quantiles (one per value where it has few), a boolean column
one. A column with two values gives one attribute, its complement says nothing new. A missing
value makes every attribute of its column false.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

MOST_VALUES = 100_000  # distinct values of a column that are counted


@dataclass
class ColumnCounts:
    """Counts of one column; adding two of them gives the counts of both parts.

    Attributes:
        kind: string, number, boolean, list or other.
        values: value → rows that have it; None when there were too many.
        pairs: (value, label) → rows, for the check against the label; None when too many.
    """

    kind: str
    rows: int = 0
    nulls: int = 0
    values: Counter[Any] | None = field(default_factory=Counter)
    pairs: Counter[tuple[Any, Any]] | None = field(default_factory=Counter)

    def __add__(self, other: ColumnCounts) -> ColumnCounts:
        return ColumnCounts(
            self.kind if self.kind == other.kind else "other",
            self.rows + other.rows,
            self.nulls + other.nulls,
            _merge(self.values, other.values),
            _merge(self.pairs, other.pairs),
        )


def _merge(a: Counter[Any] | None, b: Counter[Any] | None) -> Counter[Any] | None:
    if a is None or b is None:
        return None
    both = a + b
    return both if len(both) <= MOST_VALUES else None


def kind_of(data_type: pa.DataType) -> str:
    """How a column of this type is binarised; ``other`` cannot be."""
    if pa.types.is_dictionary(data_type):
        data_type = data_type.value_type
    if pa.types.is_boolean(data_type):
        return "boolean"
    if pa.types.is_string(data_type) or pa.types.is_large_string(data_type):
        return "string"
    if pa.types.is_integer(data_type) or pa.types.is_floating(data_type):
        return "number"
    if pa.types.is_list(data_type) or pa.types.is_large_list(data_type):
        inner = kind_of(data_type.value_type)
        return "list" if inner in ("string", "number") else "other"
    return "other"


def plain(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """One array without dictionary encoding; NaN counts as missing, numbers are rounded."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if kind_of(column.type) == "number":
        column = round_numbers(column)
    return column


def round_numbers(column: pa.Array) -> pa.Array:
    """float64, cut to 12 binary digits: bounds the number of values, exact for small integers."""
    values = column.cast(pa.float64(), safe=False)
    raw = values.to_numpy(zero_copy_only=False)
    mantissa, exponent = np.frexp(raw)
    cut = np.ldexp(np.trunc(mantissa * 4096) / 4096, exponent)
    return pa.array(cut, mask=~np.isfinite(raw))


def count_column(column: pa.ChunkedArray, label: pa.Array | None) -> ColumnCounts:
    """Counts of one column of a part of the rows."""
    kind = kind_of(column.type)
    array = plain(column)
    counts = ColumnCounts(kind, len(array), array.null_count)
    if kind == "other":
        counts.values = counts.pairs = None
    elif kind == "list":
        rows, members = list_members(array)
        both = pa.table({"row": rows, "value": members}).group_by(["row", "value"]).aggregate([])
        counts.values = _counter(both["value"])
        counts.pairs = None
    else:
        counts.values = _counter(array)
        counts.pairs = None if label is None else _pairs(array, label)
    return counts


def list_members(array: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Row and value of every member of a list column, nulls left out."""
    rows, members = pc.list_parent_indices(array), plain(pc.list_flatten(array))
    valid = members.is_valid()
    return rows.filter(valid), members.filter(valid)


def _counter(array: pa.Array | pa.ChunkedArray) -> Counter[Any] | None:
    found = pc.value_counts(array.drop_null())
    if len(found) > MOST_VALUES:
        return None
    if isinstance(found, pa.ChunkedArray):
        found = found.combine_chunks()
    values, counts = found.field("values").to_pylist(), found.field("counts").to_pylist()
    return Counter(dict(zip(values, counts, strict=True)))


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
        digest = hashlib.blake2b(self.name.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little")

    def mask(self, array: pa.Array) -> np.ndarray:
        """bool (n,): the rows of a plain column (see :func:`plain`) for which it is true."""
        if self.test == "has":
            rows, members = list_members(array)
            found = np.zeros(len(array), dtype=bool)
            found[rows.filter(pc.equal(members, self.value)).to_numpy()] = True
            return found
        compare = pc.greater if self.test == "above" else pc.equal
        result = pc.fill_null(compare(array, pa.scalar(self.value, array.type)), False)
        return np.asarray(result.to_numpy(zero_copy_only=False), dtype=bool)


def attributes(
    counts: dict[str, ColumnCounts], quantiles: int, min_share: float
) -> tuple[list[Attribute], dict[str, str]]:
    """All usable binary attributes by falling entropy (ties by column, test and value), and why
    columns were left out."""
    found: list[Attribute] = []
    skipped: dict[str, str] = {}
    for name, column in counts.items():
        reason = _unusable(column)
        if reason:
            skipped[name] = reason
            continue
        own = [
            Attribute(name, test, value, count / column.rows, binary_entropy(count / column.rows))
            for test, value, count in _tests(column, quantiles)
        ]
        usable = [a for a in own if min_share <= a.share <= 1 - min_share and a.entropy > 0]
        if not usable:
            skipped[name] = f"no value with a share in [{min_share:g}, {1 - min_share:g}]"
        found += usable
    found.sort(key=lambda a: (-round(a.entropy, 12), a.column, a.test, str(a.value)))
    return found, skipped


def _unusable(column: ColumnCounts) -> str | None:
    if column.kind == "other":
        return "its type cannot be turned into attributes"
    if column.nulls == column.rows:
        return "every value is missing"
    if column.values is None:
        return f"more than {MOST_VALUES:,} values: looks like an identifier"
    if column.kind == "string" and len(column.values) > max(20, 0.9 * (column.rows - column.nulls)):
        return "nearly every value is different: looks like an identifier"
    if len(column.values) < 2 and column.kind != "list" and not column.nulls:
        return "it has the same value everywhere"
    return None


def _tests(column: ColumnCounts, quantiles: int) -> list[tuple[str, Any, int]]:
    """(test, value, rows for which it is true)."""
    values = dict(column.values or {})
    if column.kind == "list":
        return [("has", value, count) for value, count in values.items()]
    if column.kind == "boolean":
        return [("is", True, values.get(True, 0))]
    if column.kind == "number" and len(values) > quantiles + 1:
        return _thresholds(values, quantiles)
    if len(values) == 2:
        value = max(values, key=str)  # of two complements, one
        return [("is", value, values[value])]
    return [("is", value, count) for value, count in values.items()]


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
