"""The joint pattern of the top-k attributes of highest entropy.

Source: Tsai et al., ICLR 2022, section 3.2 (the k binary attributes of highest entropy; each joint
pattern of them is a cluster).
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ray.data import Dataset

from wcl_ray.clusters.binarise import ColumnCounts, attributes
from wcl_ray.clusters.kinds import Kind
from wcl_ray.clusters.metadata import count_columns, leaks
from wcl_ray.data.values import plain
from wcl_ray.errors import UserError
from wcl_ray.registry import KINDS


@KINDS.add("attributes")
class Attributes(Kind):
    """Patterns of binary attributes, made of values, words of lists and quantiles of numbers.

    Attributes:
        empty_singleton: an image for which no chosen attribute is true is a singleton, not one
            whose columns are all empty only.
    """

    granularity = "top_k"
    empty_singleton = False

    def usable(self, counts: dict[str, ColumnCounts]) -> dict[str, ColumnCounts]:
        """The columns whose values are attributes."""
        return counts

    def prepare(self, rows: Dataset) -> None:
        config = self.config
        counts = self.usable(count_columns(rows, self.columns, self.label, config.min_share))
        self.notes += leaks(counts, self.label)
        given = config.columns
        chosen, self.skipped = attributes(counts, config.quantiles, config.min_share, given)
        if not chosen:
            why = "; ".join(f"{name}: {reason}" for name, reason in self.skipped.items())
            raise UserError(f"no column gives a usable attribute ({why})")
        if len(chosen) < max(self.values):
            most = max(self.values)
            self.notes.append(f"only {len(chosen)} attributes are usable, top-k {most}")
        self.chosen = chosen[: max(self.values)]

    def keys(self, table: pa.Table) -> list[pa.Array]:
        """Joint pattern of the first k attributes, as the XOR of the codes of the true ones.
        Without a pattern is who has no value in any of their columns; so each k stands for
        itself."""
        arrays = {name: plain(table[name]) for name in {a.column for a in self.chosen}}
        empty = {
            name: array.is_null().to_numpy(zero_copy_only=False) | _no_member(array)
            for name, array in arrays.items()
        }
        unknown = np.ones(table.num_rows, dtype=bool)
        code = np.zeros(table.num_rows, dtype=np.uint64)
        some = np.zeros(table.num_rows, dtype=bool)
        found: dict[int, pa.Array] = {}
        for k, attribute in enumerate(self.chosen, start=1):
            mask = attribute.mask(arrays[attribute.column])
            code ^= np.where(mask, np.uint64(attribute.code), np.uint64(0))
            some |= mask
            unknown &= empty[attribute.column]
            if k in self.values or k == len(self.chosen):
                without = ~some if self.empty_singleton else unknown
                found[k] = pa.array(code.astype(np.int64), mask=without)
        return [found[min(k, len(self.chosen))] for k in self.values]


def _no_member(array: pa.Array) -> np.ndarray:
    """bool (n,): empty lists."""
    if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
        return np.zeros(len(array), dtype=bool)
    return np.asarray(pc.fill_null(pc.equal(pc.list_value_length(array), 0), True))
