"""Bags of words of metadata columns: which words each row has, by the types of the columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from wcl_ray.clusters.counts import Columns
from wcl_ray.clusters.places import distinct_cells
from wcl_ray.clusters.types import ColumnType
from wcl_ray.clusters.views import WORD, View, read
from wcl_ray.data.values import kind_of, list_members, value_names


@dataclass(frozen=True)
class Bag:
    """The words of a column, each as ``column=word``.

    Attributes:
        whole: a value is one word, whatever is in it.
    """

    view: View
    whole: bool = False

    @property
    def name(self) -> str:
        return self.view.columns[0]

    @property
    def counted_with_rows(self) -> bool:
        """Whether its words are counted row by row; the others follow from counts of values."""
        return not self.view.form and not self.whole

    def occurrences(self, array: pa.Array) -> tuple[np.ndarray, list[str]]:
        """The row and the word of each occurrence in its view."""
        if kind_of(array.type) == "list":
            members, values = list_members(array)
            texts = [value.lower() for value in value_names(values, self.name).to_pylist()]
            return members.to_numpy(), [f"{self.name}={text}" for text in texts]
        rows, words = [], []
        for row, text in enumerate(_names(array, self.name).to_pylist()):
            if text is not None:
                of_row = [text] if self.whole else WORD.findall(text.lower())
                words += [f"{self.name}={word}" for word in of_row]
                rows += [row] * len(of_row)
        return np.array(rows, np.int64), words

    def documents(self, counts: Columns) -> Counter[str]:
        """The number of rows with each word, of one that is not counted with the rows."""
        values: Mapping[Any, int] = counts[self.view.key].values
        if self.view.form == "cells":
            values = distinct_cells(values)
        names = _names(pa.array(list(values)), self.name).to_pylist()
        documents: Counter[str] = Counter()
        for name, count in zip(names, values.values(), strict=True):
            word = name if self.whole else name.lower()  # as in occurrences
            documents[f"{self.name}={word}"] += count
        return documents


def _names(values: pa.Array, what: str) -> pa.Array:
    if kind_of(values.type) == "number":  # counts hold floats
        values = values.cast(pa.float64(), safe=False)
    return value_names(values, what)


def plain_bags(schema: pa.Schema, columns: list[str]) -> list[Bag]:
    """Bags of the columns of strings, lists and booleans as they are."""
    kinds = {name: kind_of(schema.field(name).type) for name in columns}
    return [Bag(View((n,))) for n in columns if kinds[n] in ("string", "list", "boolean")]


def typed_bags(counts: Columns, types: Mapping[str, ColumnType]) -> list[Bag]:
    """What words are made of, once the types are known."""
    bags = []
    for name, kind in types.items():
        if kind.name == "date":
            bags += [Bag(view, whole=True) for view in kind.views[1:]]
        elif kind.name == "place":
            bags += [Bag(view) for view in kind.views]
        elif counts[name].kind == "number":
            if kind.name == "category" and kind.reason is None:
                bags.append(Bag(View((name,)), whole=True))
        elif kind.name not in ("number", "other"):
            as_view = kind.name in ("boolean", "tags")
            bags.append(Bag(kind.views[0] if as_view else View((name,))))
    return bags


def occurrences(table: pa.Table, bags: Collection[Bag]) -> Iterator[tuple[np.ndarray, list[str]]]:
    """The row and the word of each occurrence, bag by bag."""
    arrays = read(table, [bag.view for bag in bags])
    for bag in bags:
        yield bag.occurrences(arrays[bag.view])
