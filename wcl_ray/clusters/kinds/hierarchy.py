"""A tree, cut at a level."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ray.data import Dataset

from wcl_ray.clusters.kinds import Kind
from wcl_ray.clusters.metadata import count_columns, leaks, value_texts
from wcl_ray.config import ClustersConfig
from wcl_ray.data.values import decoded, is_list, value_names
from wcl_ray.errors import UserError
from wcl_ray.registry import KINDS


@KINDS.add("hierarchy")
class Hierarchy(Kind):
    """Images below one node of a tree, which are columns from coarse to fine or one of paths."""

    granularity = "level"

    def find_columns(self, available: tuple[str, ...]) -> list[str]:
        if not self.config.columns:
            others = ", ".join(name for name in available if name != self.label)
            raise UserError(
                "clusters.kind hierarchy needs --clusters.columns, from coarse to fine, or one "
                f"path column; the columns are: {others or '(none)'}"
            )
        return super().find_columns(available)

    def prepare(self, rows: Dataset) -> None:
        if self.label is not None:
            joined = rows.map_batches(
                functools.partial(_joined, self.columns), batch_format="pyarrow", batch_size=None
            )
            self.notes += leaks(count_columns(joined, self.columns, self.label), self.label)
        depth = _depth(rows, self.columns, self.config)
        self.values = self.values or (depth,)
        if max(self.values) > depth:
            raise UserError(
                f"clusters.level {max(self.values)}: the hierarchy is {depth} levels deep"
            )

    def keys(self, table: pa.Table) -> list[pa.Array]:
        """The ancestor at each level; the deepest known one of items that are shallower."""
        paths = _paths(table, self.columns, self.config.separator)
        prefix: list[str | None] = [""] * table.num_rows
        open_rows = [True] * table.num_rows
        found: dict[int, pa.Array] = {}
        for depth in range(1, max(self.values) + 1):
            values = paths[depth - 1].to_pylist() if depth <= len(paths) else [None] * len(prefix)
            for row, value in enumerate(values):
                open_rows[row] = open_rows[row] and value is not None
                if open_rows[row]:
                    prefix[row] = f"{prefix[row]}\x1f{_escaped(str(value))}"
            if depth in self.values:
                found[depth] = pa.array([p or None for p in prefix], pa.string())
        return [found[level] for level in self.values]


def _paths(table: pa.Table, columns: list[str], separator: str) -> list[pa.Array]:
    """String columns from coarse to fine; null where an item is shallower."""
    if len(columns) > 1:
        return [value_texts(name, table) for name in columns]
    lists = decoded(table[columns[0]])
    if is_list(lists.type):
        members = value_names(pc.list_flatten(lists), f"members of clusters.columns {columns[0]!r}")
        rows = pc.list_parent_indices(lists).to_numpy()
        places = np.arange(len(rows)) - np.searchsorted(rows, rows)
        levels = []
        for level in range(int(places.max(initial=-1)) + 1):
            at = np.full(len(lists), -1)
            at[rows[places == level]] = np.flatnonzero(places == level)
            levels.append(members.take(pa.array(at, mask=at < 0)))
        return levels
    parts = pc.split_pattern(value_texts(columns[0], table), separator).to_pylist()
    clean = [[p for p in row if p] if row else [] for row in parts]
    depth = max((len(row) for row in clean), default=0)
    return [
        pa.array([row[i] if i < len(row) else None for row in clean], pa.string())
        for i in range(depth)
    ]


def _joined(columns: list[str], table: pa.Table) -> Iterator[pa.Table]:
    """With a path in a list as one text, so that the check against the label can read it."""
    if len(columns) > 1 or not is_list(table[columns[0]].type):
        yield table
        return
    place = table.column_names.index(columns[0])
    levels = [level.fill_null("") for level in _paths(table, columns, "")]
    whole = pc.binary_join_element_wise(*levels, "\x1f") if levels else pa.nulls(len(table))
    yield table.set_column(place, columns[0], pc.utf8_rtrim(whole, "\x1f"))


def _escaped(level: str) -> str:
    """A level without the separator of levels."""
    return level.replace("\x1e", "\x1e0").replace("\x1f", "\x1e1")


def _depth(rows: Dataset, columns: list[str], config: ClustersConfig) -> int:
    if len(columns) > 1:
        return len(columns)

    def deepest(table: pa.Table) -> Iterator[dict[str, np.ndarray]]:
        yield {"depth": np.array([len(_paths(table, columns, config.separator))])}

    found = rows.map_batches(deepest, batch_format="pyarrow", batch_size=None).take_all()
    depth = max((int(row["depth"]) for row in found), default=0)
    if depth == 0:
        raise UserError(f"column {columns[0]!r} holds no path at all")
    return depth
