"""What a metadata column is read as: a date as its minute, season and quarter of the day, a text as
its words or tags, latitude and longitude as cells.

A view has the form of :func:`wcl_ray.data.values.plain`, so that it is counted, and gives
attributes, like any column.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from wcl_ray.clusters.dates import DATE_FORMS, read_dates
from wcl_ray.clusters.places import cells, coordinates
from wcl_ray.clusters.tags import TAG_FORMS, read_tags
from wcl_ray.clusters.unfit import Unfit, by_text, first_unfit, parse, parse_numbers
from wcl_ray.data.values import kind_of, plain

WORD = re.compile(r"\w+")
_TRUTH = dict.fromkeys(["true", "yes", "y", "t", "on", "1"], True)
_TRUTH |= dict.fromkeys(["false", "no", "n", "f", "off", "0"], False)


@dataclass(frozen=True)
class View:
    """One or two columns in a form: "" (the plain column), number, boolean, category, one of
    TAG_FORMS or DATE_FORMS, words or cells."""

    columns: tuple[str, ...]
    form: str = ""

    @property
    def key(self) -> str | View:
        """Its key among counts, where a plain column has its name."""
        return self if self.form else self.columns[0]


def read(table: pa.Table, views: Iterable[View]) -> dict[View, pa.Array]:
    """The views of a table.

    Raises:
        Unfit: a value that has not the form of its view.
    """
    arrays = try_read(table, views)
    for array in arrays.values():
        if isinstance(array, Unfit):
            raise array
    return arrays


def try_read(table: pa.Table, views: Iterable[View]) -> dict[View, pa.Array | Unfit]:
    """The views of a table; for one that does not fit, the error."""
    arrays: dict[View, pa.Array | Unfit] = {}
    for view in views:
        if view in arrays:
            continue
        columns = [table[name] for name in view.columns]
        # a date is read once for its three forms
        forms = DATE_FORMS if view.form in DATE_FORMS else (view.form,)
        of_form: Iterable[pa.Array | Unfit]
        try:
            dates = view.form in DATE_FORMS
            of_form = read_dates(columns[0]) if dates else [_read(columns, view.form)]
        except Unfit as error:
            of_form = [error] * len(forms)
        arrays |= {View(view.columns, f): a for f, a in zip(forms, of_form, strict=True)}
    return arrays


def _read(columns: list[pa.ChunkedArray], form: str) -> pa.Array:
    if form == "cells":
        return cells(*coordinates(columns))
    if form in TAG_FORMS:
        return read_tags(columns[0], form)
    values = plain(columns[0])
    kind = kind_of(values.type)
    fits = {
        "": True,
        "number": kind in ("number", "string"),
        "boolean": kind in ("boolean", "number", "string"),
        "category": kind in ("boolean", "number", "string"),
        "words": kind == "string",
    }[form]
    if not fits:
        raise first_unfit(values)
    if form == "words":
        return by_text(values, lambda text: WORD.findall(text.lower()), pa.list_(pa.string()))
    if form == "boolean" and kind != "boolean":
        return parse(values, truth, pa.bool_())
    if form == "number" and kind == "string":
        return parse_numbers(values)
    return values


def truth(value: Any) -> bool | None:
    """What a value says: a boolean, yes, no, 0, 1 or the like; None for others."""
    text = f"{value:.17g}" if isinstance(value, float) else str(value).strip().lower()
    return _TRUTH.get(text)
