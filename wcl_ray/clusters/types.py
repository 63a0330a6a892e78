"""The type of each metadata column, detected from its counts or given by ``clusters.types``.

- **number**: numbers. Row numbers and identifiers of single rows are left out unless they are named
  (:mod:`wcl_ray.clusters.identifier`).
- **boolean**: booleans, or two values such as yes and no, 0 and 1.
- **category**: other texts, and integers that number things.
- **date**: dates, or texts that all are dates (see :mod:`wcl_ray.clusters.dates`).
- **tags**: lists, or texts that all are lists of texts as JSON or Python write them (see
  :mod:`wcl_ray.clusters.tags`).
- **place**: two number columns whose names say latitude and longitude, a struct of two such fields,
  or lists of two numbers under a name such as location.
- **text**: texts of which at least half have several words and more than half (and 20) differ.
- **other**: what none of these can hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.types as pat

from wcl_ray.clusters.counts import ColumnCounts, Columns
from wcl_ray.clusters.dates import DATE_FORMS, is_date
from wcl_ray.clusters.identifier import identifier, is_id_name, is_index_name, unordered
from wcl_ray.clusters.places import holds_places, place_pairs
from wcl_ray.clusters.tags import TAG_FORMS, is_text, split_form
from wcl_ray.clusters.unfit import MISSING_WORDS
from wcl_ray.clusters.views import View, truth
from wcl_ray.data.values import kind_of
from wcl_ray.errors import UserError

NO_TYPES: Mapping[str, str] = {}  # all as detected
_FORMS = {"date": DATE_FORMS, "text": ("words",), "place": ("cells",)}  # of the other types: ""
_VALUES = {
    "number": "a number",
    "category": "a single value",
    "boolean": "true or false, yes or no, 1 or 0",
    "date": "a date; dates are read in the forms 2021-07-03, 2021/07/03, 2021:07:03 and 03.07.2021 "
    "(day first), alone or with a time as in 2021-07-03T12:00:00Z or 2021-07-03 12:00",
    "tags": 'a list such as ["wild", "night"]',
    "place": "a latitude within ±90 and a longitude within ±180 (two number columns, or a pair)",
    "text": "a text",
}


@dataclass(frozen=True)
class ColumnType:
    """The type of a column.

    Attributes:
        views: what attributes and features are made of; none for the longitude of a place.
        partner: the other column of a place of two.
        reason: why it is left out unless it is named.
        given: by ``clusters.types``.
    """

    name: str
    views: tuple[View, ...]
    partner: str = ""
    reason: str | None = None
    given: bool = False


def views_to_count(schema: pa.Schema, columns: list[str], given: Mapping[str, str]) -> list[View]:
    """The views that have to be counted to detect and to use the types.

    Args:
        given: column → type.
    """
    views, numeric = [], []
    places = [name for name in columns if given.get(name) == "place"]
    single = [name for name in places if not _is_coordinate(schema.field(name).type)]
    for name in columns:
        kind = schema.field(name).type
        forms: tuple[str, ...] = ()
        if name in given:
            forms = _FORMS.get(given[name], (given[name],)) if name not in places else ()
            if given[name] == "tags" and is_text(kind):
                forms = TAG_FORMS
        elif holds_places(name, kind):
            forms = ("cells",)
        elif is_date(kind):
            forms = DATE_FORMS
        else:
            if _is_number(kind):
                numeric.append(name)
            if is_text(kind):
                forms = (*DATE_FORMS, "tags", "words")
        views += [View((name,), form) for form in forms]
    pairs = place_pairs(numeric)
    two = [name for name in places if name not in single]
    pairs += place_pairs(two) or list(zip(two[::2], two[1::2], strict=False))
    single += [name for name in two if not any(name in pair for pair in pairs)]
    return views + [View(pair, "cells") for pair in [*pairs, *((name,) for name in single)]]


def _is_number(kind: pa.DataType) -> bool:
    """Whether a column of this Arrow type holds numbers, or nothing in this block."""
    return kind_of(kind) == "number" or pat.is_null(kind)


def _is_coordinate(kind: pa.DataType) -> bool:
    """Whether a column of this Arrow type may be the latitude or the longitude of a place."""
    return kind_of(kind) in ("number", "string") and not pat.is_temporal(kind)


def detect(
    counts: Columns | Mapping[Any, ColumnCounts], quantiles: int, given: Mapping[str, str]
) -> dict[str, ColumnType]:
    """The type of each column.

    Args:
        counts: of the columns, and of the views of :func:`views_to_count`.
        quantiles: integers with more values than this and one may be identifiers.
        given: column → type, to be used instead of the detected one.

    Raises:
        UserError: a given type that does not fit the values.
    """
    views: dict[str, dict[str, View]] = {}
    for view in counts:
        if isinstance(view, View):
            for name in view.columns:
                views.setdefault(name, {})[view.form] = view
    types = {}
    for name, column in counts.items():
        if isinstance(name, View):
            continue
        forms = views.get(name, {})
        if name in given:
            types[name] = _given(name, given[name], forms, counts)
        else:
            types[name] = _detect(name, column, forms, counts, quantiles)
    return types


def _given(
    name: str, type_name: str, forms: dict[str, View], counts: Mapping[Any, ColumnCounts]
) -> ColumnType:
    wanted = tuple(forms[form] for form in _FORMS.get(type_name, (type_name,)))
    if "separators" in forms and counts[name].total:
        wanted = (forms[split_form(counts[forms["separators"]].values)],)
    column = counts[wanted[0]]
    single = counts[name].kind in ("number", "string") and counts[name].total > 0
    if type_name == "place" and single and wanted[0].columns == (name,):
        raise UserError(
            f"clusters.types {name}=place: {name!r} holds single values, and a place is two; the "
            f"other column needs the type as well: --clusters.types LATITUDE=place LONGITUDE=place"
        )
    if column.unfit is not None:
        raise UserError(
            f"clusters.types {name}={type_name}: the value {_shown(column.unfit)} of column "
            f"{name!r} is not {_VALUES[type_name]}"
        )
    if type_name not in _FORMS and _is_plain(type_name, counts[name], column):
        wanted = (View((name,)),)
    return _typed(type_name, name, wanted, given=True)


def _is_plain(type_name: str, column: ColumnCounts, view: ColumnCounts) -> bool:
    """Whether a column can be used as it is, since it is not a number written as a text, or a
    boolean written in more than two ways."""
    if type_name == "boolean" and column.kind == "string":
        return len(column.values) <= 2 and not column.undercount
    return column.kind in (view.kind, "number")


def _typed(type_name: str, name: str, views: tuple[View, ...], given: bool = False) -> ColumnType:
    partner = next((other for other in views[0].columns if other != name), "")
    if partner and views[0].columns[0] != name:
        views = ()
    return ColumnType(type_name, views, partner, given=given)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _detect(
    name: str,
    column: ColumnCounts,
    forms: dict[str, View],
    counts: Mapping[Any, ColumnCounts],
    quantiles: int,
) -> ColumnType:
    plain = (View((name,)),)
    if "cells" in forms and _usable(counts[forms["cells"]], "list"):
        return _typed("place", name, (forms["cells"],))
    if column.kind in ("boolean", "other"):
        return ColumnType(column.kind, plain)
    if column.kind == "list":
        return ColumnType("tags", plain)
    if column.kind == "string" and forms:
        dates = tuple(forms[form] for form in DATE_FORMS if form in forms)
        if dates and _usable(counts[dates[0]], "number"):
            return ColumnType("date", dates)
        if "tags" in forms and _usable(counts[forms["tags"]], "list"):
            return ColumnType("tags", (forms["tags"],))
        if "words" in forms and _is_text(column) and _usable(counts[forms["words"]], "list"):
            return ColumnType("text", (forms["words"],))
    two = len(column.values) == 2 and not column.undercount
    if two and None not in map(truth, column.values):
        return ColumnType("boolean", plain)
    if column.kind == "string":
        return ColumnType("category", plain)
    by_name = is_id_name(name) and not is_index_name(name) and column.spread.integers
    if by_name and column.spread.distinct_share <= 0.5:
        return ColumnType("category", plain)
    if len(column.values) <= quantiles + 1 or column.undercount:
        return ColumnType("number", plain)
    reason = identifier(name, column.spread, column.total)
    if by_name:
        return ColumnType("category", plain, reason=reason)
    if not reason and not column.rounded and unordered(name, column.values, column.spread):
        return ColumnType("category", plain)
    return ColumnType("number", plain, reason=reason)


def why_no_date(name: str, counts: Mapping[Any, ColumnCounts]) -> str | None:
    """The values that keep a column of dates from being one; None for other columns."""
    column, dates = counts[name], counts.get(View((name,), "minute"))
    if dates is None or dates.unfit is None:
        return None
    known = column.total - sum(column.values.get(word, 0) for word in MISSING_WORDS)
    if dates.unfit_rows > known / 2:
        return None
    many = "are not dates, such as" if dates.unfit_rows > 1 else "is not a date:"
    values = f"{dates.unfit_rows:,} of {known:,} values {many} {_shown(dates.unfit)}"
    return f"{values}; correct the dates, or leave them empty"


def _usable(column: ColumnCounts, kind: str) -> bool:
    """Whether all values have the form of a view, and there are some."""
    return column.kind == kind and column.total > 0


def _is_text(column: ColumnCounts) -> bool:
    differ = column.undercount or len(column.values) > max(20, 0.5 * column.total)
    return bool(differ and column.spaced >= 0.5 * column.total)
