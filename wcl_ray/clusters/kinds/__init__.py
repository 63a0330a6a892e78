"""Kinds of clusters, one per module. A new one is a :class:`Kind` under ``@KINDS.add("NAME")``."""

from __future__ import annotations

from typing import Literal

import pyarrow as pa
from ray.data import Dataset

from wcl_ray.clusters.binarise import Attribute
from wcl_ray.clusters.columns import ColumnSummary
from wcl_ray.clusters.metadata import Clustering, assign, count_columns, leaks
from wcl_ray.config import ClustersConfig
from wcl_ray.errors import UserError

Needs = Literal["columns", "label", "features", "table", "nothing"]


class Kind:
    """One kind of clusters: computes a key for each row; rows with equal keys form a cluster.

    A subclass implements :meth:`keys`, and :meth:`prepare` if that depends on all rows. Objects are
    sent to the tasks that call :meth:`keys`. The first paragraph of the module's docstring is the
    line of ``--help``; for plugins that of the class.

    Attributes:
        needs: what the clusters are made of: metadata columns, the label, the encoder's features,
            a table of clusters, or nothing.
        granularity: name of the option of :class:`wcl_ray.config.ClustersConfig` that holds one
            number per granularity, and that a search varies; None: there is one granularity.
        default: values of that option if none are given.
        uses_types: whether clusters depend on the types of columns (``clusters.types``); a kind
            that calls :func:`wcl_ray.clusters.metadata.count_types` sets it.
        only_type: the type of the columns that are used; None: any.
        columns: metadata columns that are read.
        values: values of the granularity option.
        chosen, skipped, notes, summaries: see :class:`wcl_ray.clusters.metadata.Clustering`.
    """

    needs: Needs = "columns"
    granularity: str | None = None
    default: tuple[int, ...] = ()
    uses_types = False
    only_type: str | None = None

    def __init__(
        self, config: ClustersConfig, label: str | None, available: tuple[str, ...]
    ) -> None:
        """Choose the columns; see :func:`wcl_ray.clusters.metadata.columns_of`."""
        self.config, self.label = config, label
        if self.needs == "label" and label is None:
            raise UserError(f"clusters.kind {config.kind} needs --data.label")
        self.columns = self.find_columns(available) if self.needs == "columns" else []
        given: tuple[int, ...] = getattr(config, self.granularity) if self.granularity else ()
        self.values = given or self.default
        self.chosen: list[Attribute] = []
        self.skipped: dict[str, str] = {}
        self.notes: list[str] = []
        self.summaries: list[ColumnSummary] = []

    def find_columns(self, available: tuple[str, ...]) -> list[str]:
        """The columns of ``clusters.columns``, by default all but the label.

        Raises:
            UserError: the label is among them, or there are none.
        """
        config, label = self.config, self.label
        if label is not None and label in config.columns:
            raise UserError(
                f"clusters.columns holds the label {label!r}, which would give away the answer of "
                "the evaluation; leave it out, or use --clusters.kind label"
            )
        columns = list(config.columns) or [name for name in available if name != label]
        if not columns:
            raise UserError(
                f"clusters.kind {config.kind} needs metadata columns, but there are none; "
                "--data.table adds those of a file, --clusters.kind instance needs none"
            )
        return columns

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the granularities, such as ``attributes-20``."""
        return tuple(f"{self.config.kind}-{value}" for value in self.values) or (self.config.kind,)

    def prepare(self, rows: Dataset) -> None:
        """Look at all rows before :meth:`keys` is called; by default, check that no column is
        equivalent to the label.

        Args:
            rows: ``__id``, ``__key``, the columns and the label.

        Raises:
            UserError: the columns cannot be used.
        """
        if self.columns and self.label is not None:
            self.notes += leaks(count_columns(rows, self.columns, self.label), self.label)

    def keys(self, table: pa.Table) -> list[pa.Array]:
        """The keys of the rows, one array per granularity: int64, or a type that can be cast to
        string. Null: no cluster."""
        raise NotImplementedError

    def words(self, table: pa.Table) -> list[pa.Array]:
        """What the images of each row's cluster have in common, for people: one string array per
        granularity, null where there is no cluster. By default the keys."""
        return [keys.cast(pa.string()) for keys in self.keys(table)]

    def cluster(self, rows: Dataset, seed: int) -> Clustering:
        """Cluster all rows (see :meth:`prepare`)."""
        self.prepare(rows)
        assignment, labels, classes = assign(rows, self.keys, self.names, self.label)
        chosen, notes, columns = tuple(self.chosen), tuple(self.notes), tuple(self.summaries)
        return Clustering(assignment, labels, classes, chosen, self.skipped, notes, columns)


def no_keys(table: pa.Table) -> list[pa.Array]:
    """Null keys: no row has a cluster."""
    return [pa.nulls(table.num_rows, pa.int64())]
