"""The joint pattern of the top-k attributes of highest entropy.

Source: Tsai et al., ICLR 2022, section 3.2 (each joint pattern of the k binary attributes of
highest entropy is a cluster).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ray.data import Dataset

from wcl_ray.clusters.binarise import Attribute, attributes, outcomes
from wcl_ray.clusters.columns import summarise
from wcl_ray.clusters.kinds import Kind
from wcl_ray.clusters.metadata import count_types, leaks
from wcl_ray.clusters.types import ColumnType
from wcl_ray.clusters.views import read
from wcl_ray.errors import UserError
from wcl_ray.registry import KINDS


@KINDS.add("attributes")
class Attributes(Kind):
    """Patterns of binary attributes made of values, list members and quantiles of numbers.

    Attributes:
        singleton_if_none_true: an image without any true attribute is a singleton; otherwise only
            one whose columns are all empty is.
    """

    granularity = "top_k"
    uses_types = True
    singleton_if_none_true = False

    def usable(self, types: dict[str, ColumnType]) -> dict[str, ColumnType]:
        """The columns that attributes are made of."""
        return types

    def prepare(self, rows: Dataset) -> None:
        config = self.config
        given, share = config.column_types, config.min_share
        counts, types = count_types(rows, self.columns, self.label, given, config.quantiles, share)
        types = self.usable(types)
        self.notes += leaks({name: counts[name] for name in types}, self.label)
        chosen, self.skipped = attributes(
            counts, config.quantiles, config.min_share, config.columns, types
        )
        self.summaries = summarise(types, counts, outcomes(chosen), self.skipped)
        if not chosen:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.skipped.items())
            raise UserError(f"no column gives a usable attribute ({reasons})")
        most = max(self.values)
        if len(chosen) < most:
            self.notes.append(f"only {len(chosen)} attributes are usable, top-k {most}")
        self.chosen = chosen[:most]

    def keys(self, table: pa.Table) -> list[pa.Array]:
        """Joint pattern of the first k attributes, as the XOR of the codes of the true ones; null
        if all their columns are empty, so that the keys of one k do not depend on another."""
        arrays = read(table, [attribute.source for attribute in self.chosen])
        empty = {
            view: array.is_null().to_numpy(zero_copy_only=False) | _empty_lists(array)
            for view, array in arrays.items()
        }
        all_empty = np.ones(table.num_rows, dtype=bool)
        any_true = np.zeros(table.num_rows, dtype=bool)
        code = np.zeros(table.num_rows, dtype=np.uint64)
        patterns: dict[int, pa.Array] = {}
        for k, attribute in enumerate(self.chosen, start=1):
            mask = attribute.mask(arrays[attribute.source])
            code ^= np.where(mask, np.uint64(attribute.code), np.uint64(0))
            any_true |= mask
            all_empty &= empty[attribute.source]
            if k in self.values or k == len(self.chosen):
                singleton = ~any_true if self.singleton_if_none_true else all_empty
                patterns[k] = pa.array(code.astype(np.int64), mask=singleton)
        return [patterns[min(k, len(self.chosen))] for k in self.values]

    def words(self, table: pa.Table) -> list[pa.Array]:
        """The true and the other attributes among the first k."""
        arrays = read(table, [attribute.source for attribute in self.chosen])
        masks = [attribute.mask(arrays[attribute.source]) for attribute in self.chosen]
        texts = []
        for k, keys in zip(self.values, self.keys(table), strict=True):
            named = list(zip(self.chosen, masks, strict=True))[:k]
            patterns = [
                pattern_words([(attribute, bool(mask[row])) for attribute, mask in named])
                for row in range(table.num_rows)
            ]
            missing = keys.is_null().to_numpy(zero_copy_only=False)
            texts.append(pa.array(patterns, pa.string(), mask=missing))
        return texts


def pattern_words(attributes: list[tuple[Attribute, bool]]) -> str:
    """A pattern, attributes and whether each is true, in words; of several thresholds of a column
    those next to the value."""
    sides: tuple[dict[Any, Attribute], ...] = ({}, {})
    for attribute, true in attributes:
        ordered = attribute.test in ("above", "after")
        key = (attribute.source, attribute.test) if ordered else attribute.name
        known = sides[true].get(key)
        if known is None or (attribute.value > known.value) == true:
            sides[true][key] = attribute
    no, yes = (", ".join(attribute.name for attribute in side.values()) for side in sides)
    return f"{yes or 'none of the attributes'}" + (f"; not: {no}" if no and yes else "")


def _empty_lists(array: pa.Array) -> np.ndarray:
    """bool (n,): whether each value is an empty list."""
    if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
        return np.zeros(len(array), dtype=bool)
    return np.asarray(pc.fill_null(pc.equal(pc.list_value_length(array), 0), True))
