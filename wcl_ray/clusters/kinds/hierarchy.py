"""A tree, cut at a level."""

from __future__ import annotations

import functools
import itertools
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
    """Ancestors at a level of a tree, given by columns from coarse to fine or a column of paths."""

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
                functools.partial(_join_lists, self.columns),
                batch_format="pyarrow",
                batch_size=None,
            )
            self.notes += leaks(count_columns(joined, self.columns, self.label), self.label)
        depth = _depth(rows, self.columns, self.config)
        self.values = self.values or (depth,)
        if max(self.values) > depth:
            raise UserError(
                f"clusters.level {max(self.values)}: the hierarchy is {depth} levels deep"
            )

    def keys(self, table: pa.Table) -> list[pa.Array]:
        """The ancestor at each level, or the deepest known one above it."""
        levels = _levels(table, self.columns, self.config.separator)
        prefix: list[str | None] = [""] * table.num_rows
        continues = [True] * table.num_rows
        ancestors: dict[int, pa.Array] = {}
        for depth in range(1, max(self.values) + 1):
            names = levels[depth - 1].to_pylist() if depth <= len(levels) else [None] * len(prefix)
            for row, name in enumerate(names):
                continues[row] = continues[row] and name is not None
                if continues[row]:
                    prefix[row] = f"{prefix[row]}\x1f{_escaped(str(name))}"
            if depth in self.values:
                ancestors[depth] = pa.array([p or None for p in prefix], pa.string())
        return [ancestors[level] for level in self.values]

    def words(self, table: pa.Table) -> list[pa.Array]:
        """The path from the root."""
        paths = [pc.utf8_ltrim(keys, "\x1f") for keys in self.keys(table)]
        return [pc.replace_substring(path, "\x1f", " › ") for path in paths]


def _levels(table: pa.Table, columns: list[str], separator: str) -> list[pa.Array]:
    """String columns from coarse to fine; null where a path ends earlier."""
    if len(columns) > 1:
        return [value_texts(name, table) for name in columns]
    lists = decoded(table[columns[0]])
    if is_list(lists.type):
        members = value_names(pc.list_flatten(lists), f"members of clusters.columns {columns[0]!r}")
        rows = pc.list_parent_indices(lists).to_numpy()
        depths = np.arange(len(rows)) - np.searchsorted(rows, rows)
        levels = []
        for depth in range(int(depths.max(initial=-1)) + 1):
            index = np.full(len(lists), -1)
            index[rows[depths == depth]] = np.flatnonzero(depths == depth)
            levels.append(members.take(pa.array(index, mask=index < 0)))
        return levels
    split = pc.split_pattern(value_texts(columns[0], table), separator).to_pylist()
    paths = [[name for name in path if name] if path else [] for path in split]
    return [pa.array(names, pa.string()) for names in itertools.zip_longest(*paths)]


def _join_lists(columns: list[str], table: pa.Table) -> Iterator[pa.Table]:
    """Turn a column of lists into one of strings, which the leak check can read."""
    if len(columns) > 1 or not is_list(table[columns[0]].type):
        yield table
        return
    index = table.column_names.index(columns[0])
    levels = [level.fill_null("") for level in _levels(table, columns, "")]
    paths = pc.binary_join_element_wise(*levels, "\x1f") if levels else pa.nulls(len(table))
    yield table.set_column(index, columns[0], pc.utf8_rtrim(paths, "\x1f"))


def _escaped(name: str) -> str:
    """The name of a level without the separator of levels."""
    return name.replace("\x1e", "\x1e0").replace("\x1f", "\x1e1")


def _depth(rows: Dataset, columns: list[str], config: ClustersConfig) -> int:
    if len(columns) > 1:
        return len(columns)

    def count_levels(table: pa.Table) -> Iterator[dict[str, np.ndarray]]:
        yield {"depth": np.array([len(_levels(table, columns, config.separator))])}

    depths = rows.map_batches(count_levels, batch_format="pyarrow", batch_size=None).take_all()
    depth = max((int(row["depth"]) for row in depths), default=0)
    if depth == 0:
        raise UserError(f"column {columns[0]!r} holds no paths")
    return depth
