"""Binary attributes of metadata columns and their entropies, from counts that can be merged.

What a column gives depends on its type (:mod:`wcl_ray.clusters.types`):

- a category one attribute per value, tags one per member, a boolean one. Two values give one
  attribute, since the other is its complement;
- a number "above threshold" attributes at its quantiles, or one per value if it has few;
- a date "after" attributes at quantiles of time, the four seasons and the four quarters of a day;
- a text one attribute per word, a place one per cell that is not all of a larger cell's images.

A missing value makes every attribute of its column false.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wcl_ray.clusters.counts import MOST_VALUES, ColumnCounts
from wcl_ray.clusters.identifier import identifier
from wcl_ray.clusters.places import distinct_cells
from wcl_ray.clusters.types import ColumnType, detect, why_no_date
from wcl_ray.clusters.views import View
from wcl_ray.data.values import kind_of, list_members, numbers

# form of a view → the test of its attributes, and what one and several are called
_TESTS = {"minute": "after", "season": "in", "daypart": "at", "words": "says", "cells": "within"}
_NOUNS = {
    "above": ("quantile", "quantiles"),
    "is": ("value as attribute", "values as attributes"),
    "has": ("tag", "tags"),
    "after": ("quantile of time", "quantiles of time"),
    "in": ("season", "seasons"),
    "at": ("time of day", "times of day"),
    "says": ("word", "words"),
    "within": ("cell", "cells"),
}

THRESHOLDS = {"above": "below", "after": "before"}  # test → its opposite
COMPLEMENTS = {"is": "is not", "in": "not in", "at": "not at"}
_COMPARE = {
    "above": np.greater,
    "after": np.greater,
    "below": np.less_equal,
    "before": np.less_equal,
    "is not": np.not_equal,
}

Test = tuple[str, Any, int]  # test, value, number of rows for which it is true


@dataclass(frozen=True)
class Attribute:
    """One binary attribute.

    Attributes:
        column: name of the column; of the two of a place, joined by a comma.
        test: ``is`` (equals), ``has`` (list member) or ``above`` (greater than); for a view
            ``after``, ``in``, ``at``, ``says`` or ``within``; or one of the opposites, THRESHOLDS
            and COMPLEMENTS, which are false for a missing value, too.
        share: share of the images for which it is true.
        entropy: in bits.
        view: what it tests; None: the column itself.
    """

    column: str
    test: str
    value: Any
    share: float
    entropy: float
    view: View | None = None

    @property
    def source(self) -> View:
        """What it tests."""
        return View((self.column,)) if self.view is None else self.view

    @property
    def name(self) -> str:
        value = self.value
        if self.test in ("after", "before"):
            value = str(np.datetime64(int(value), "m")).replace("T", " ")
        return f"{self.column} {self.test} {value}"

    @property
    def code(self) -> int:
        """64-bit hash; the code of a pattern is the XOR of those of its true attributes."""
        column = self.column
        if self.view or any(f" {test} " in column for test in ("is", "has", "above")):
            column = repr(column)  # "a is b" is "c", but "a" is "b is c"
        name = f"{column} {self.test} {self.value}"
        digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little")

    def mask(self, array: pa.Array) -> np.ndarray:
        """bool (n,): whether it is true for each row of its source (see :func:`read`)."""
        if kind_of(array.type) == "list":
            rows, members = list_members(array)
            mask = np.zeros(len(array), dtype=bool)
            mask[rows.to_numpy()[self._matches(members)]] = True
            return mask
        return self._matches(array)

    def _matches(self, array: pa.Array) -> np.ndarray:
        if kind_of(array.type) == "number":
            values, known = numbers(array)
            return known & _COMPARE.get(self.test, np.equal)(values, self.value)
        compare = pc.not_equal if self.test in COMPLEMENTS.values() else pc.equal
        matches = pc.fill_null(compare(array, pa.scalar(self.value, array.type)), False)
        return np.asarray(matches.to_numpy(zero_copy_only=False), dtype=bool)


def attributes(
    counts: Mapping[Any, ColumnCounts],
    quantiles: int,
    min_share: float,
    named: Collection[str] = (),
    types: Mapping[str, ColumnType] | None = None,
    ordered: bool = False,
) -> tuple[list[Attribute], dict[str, str]]:
    """All usable binary attributes by decreasing entropy (ties by column, test and value), and for
    each column left out the reason.

    Args:
        counts: of the columns and of the views of their types.
        named: columns to use even if they look like row numbers or identifiers (see
            :func:`identifier`), with one attribute per value if values are common enough.
        types: of the columns; None: as detected.
        ordered: a number with few values has a threshold at each of them, not one attribute per
            value, so that near ones share more than distant ones.
    """
    result: list[Attribute] = []
    skipped: dict[str, str] = {}
    for name, kind in (detect(counts, quantiles, {}) if types is None else types).items():
        if not kind.views:  # a longitude, which is part of the latitude's place
            continue
        column = counts[name]
        no_date = None if kind.given else why_no_date(name, counts)
        unusable = _unusable(column, kind, counts)
        if unusable or (kind.reason and name not in named):
            skipped[name] = no_date or unusable or str(kind.reason)
            continue
        of_column: list[Attribute] = []
        for tests in _choices(column, kind, counts, quantiles, name in named, ordered):
            of_column = [
                attribute
                for view, (test, value, count) in tests
                for attribute in [_attribute(view, test, value, count / column.rows)]
                if min_share <= attribute.share <= 1 - min_share and attribute.entropy > 0
            ]
            if of_column:
                break
        if not of_column:
            skipped[name] = no_date or _none_usable(name, column, kind, min_share)
        result += of_column
    result.sort(key=lambda a: (-round(a.entropy, 12), a.column, a.test, str(a.value)))
    return result, skipped


def _attribute(view: View, test: str, value: Any, share: float) -> Attribute:
    column = ", ".join(view.columns)
    entropy = binary_entropy(share)
    return Attribute(column, test, value, share, entropy, view if view.form else None)


def outcomes(found: list[Attribute]) -> dict[str, str]:
    """What became of each column, by its name: such as "4 quantiles"."""
    counts: dict[str, Counter[str]] = {}
    for attribute in found:
        counts.setdefault(attribute.source.columns[0], Counter())[attribute.test] += 1
    return {
        name: ", ".join(
            f"{tests[t]} {nouns[tests[t] > 1]}" for t, nouns in _NOUNS.items() if tests[t]
        )
        for name, tests in counts.items()
    }


def _unusable(
    column: ColumnCounts, kind: ColumnType, counts: Mapping[Any, ColumnCounts]
) -> str | None:
    """Why a column gives no attributes, or None."""
    if kind.views[0].form:
        return None if counts[kind.views[0]].total else "every value is missing"
    if column.kind == "other":
        return "its type cannot be turned into attributes"
    if column.nulls == column.rows:
        return "every value is missing"
    if column.undercount and column.kind == "number":
        return f"more than {MOST_VALUES:,} values: looks like an identifier"
    if column.undercount or kind.given:  # some values may still be common
        return None
    if column.kind == "string" and len(column.values) > max(20, 0.9 * column.total):
        return "nearly every value is different: looks like an identifier"
    if len(column.values) < 2 and column.kind != "list" and not column.nulls:
        return "all its values are the same"
    return None


def _none_usable(name: str, column: ColumnCounts, kind: ColumnType, min_share: float) -> str:
    """Why a column has no usable attribute."""
    what = {"date": "part", "text": "word", "place": "cell"}.get(kind.name, "value")
    text = f"no {what} with a share in [{min_share:g}, {1 - min_share:g}]"
    if kind.views[0].form:
        return text
    if column.undercount:
        return f"more than {MOST_VALUES:,} values: looks like an identifier"
    if kind.name == "category" and column.kind == "number" and not kind.given:
        by_name = identifier(name, column.spread, column.total)
        return by_name or f"{text}; its integers have no order (--clusters.types {name}=number)"
    return text


def _choices(
    column: ColumnCounts,
    kind: ColumnType,
    counts: Mapping[Any, ColumnCounts],
    quantiles: int,
    named: bool,
    ordered: bool,
) -> Iterator[list[tuple[View, Test]]]:
    """Tests of a column, the preferred ones first."""
    if ordered and kind.name == "number" and not kind.reason:
        (view,) = kind.views
        yield [(view, test) for test in _thresholds(counts[view.key].values, quantiles, every=True)]
        return
    if kind.views[0].form:
        yield [(view, test) for view in kind.views for test in _view_tests(view, counts, quantiles)]
        return
    (view,) = kind.views
    if column.kind == "number" and (kind.name == "category" or kind.reason):
        if not column.rounded:
            few = len(column.values) <= 2
            yield [(view, t) for t in (_tests(column, 2) if few else _value_tests(column))]
        if kind.given or not named:
            return
    yield [(view, test) for test in _tests(column, quantiles)]


def _view_tests(view: View, counts: Mapping[Any, ColumnCounts], quantiles: int) -> list[Test]:
    column = counts[view]
    if view.form == "minute":
        return [("after", v, n) for _, v, n in _thresholds(column.values, quantiles)]
    test = _TESTS.get(view.form)
    if view.form in ("season", "daypart") and len(column.values) < 2:
        return []  # such as dates without a time
    if view.form == "cells":
        return [("within", cell, n) for cell, n in distinct_cells(column.values).items()]
    return [(test or t, value, count) for t, value, count in _tests(column, quantiles)]


def _tests(column: ColumnCounts, quantiles: int) -> list[Test]:
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


def _value_tests(column: ColumnCounts) -> list[Test]:
    return [("is", value, count) for value, count in column.values.items()]


def _thresholds(values: dict[Any, int], quantiles: int, every: bool = False) -> list[Test]:
    """Thresholds at quantiles; with ``every``, at all values if they are few."""
    ordered = sorted(values)
    cumulative = np.cumsum([values[v] for v in ordered])
    total = int(cumulative[-1])
    cuts = dict.fromkeys(
        int(np.searchsorted(cumulative, total * i / (quantiles + 1)))
        for i in range(1, quantiles + 1)
    )
    if every and len(ordered) <= quantiles + 1:
        cuts = dict.fromkeys(range(len(ordered) - 1))
    return [("above", ordered[cut], total - int(cumulative[cut])) for cut in cuts]


def binary_entropy(p: float) -> float:
    """Entropy of a binary variable with probability p, in bits."""
    if p <= 0 or p >= 1:
        return 0.0
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p)
