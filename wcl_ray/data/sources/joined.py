"""Joins a metadata table (``data.table``, or one that lies at the top of an image folder) to the
images of any source.

The driver reads the table and puts it into Ray's object store. One task finds the row of each image
by its name (:mod:`wcl_ray.data.sources.match`), so that the tasks that read images or metadata only
look rows up by id. An image folder lists its images on the driver, and takes the columns there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import ray
from ray.data import Dataset

from wcl_ray.config import DataConfig
from wcl_ray.data.ids import positions_of
from wcl_ray.data.sources.base import ID, KEY, READ_OPTIONS, RESERVED, FileIndex, Keep, Source
from wcl_ray.data.sources.folder import LABEL, FolderSource
from wcl_ray.data.sources.image_column import layout_of
from wcl_ray.data.sources.listing import suffix_of
from wcl_ray.data.sources.match import KEYS, Match, match_table
from wcl_ray.data.sources.parquet import ParquetSource
from wcl_ray.data.sources.table_files import open_table, plain_table
from wcl_ray.data.sources.tables import NAME
from wcl_ray.errors import UserError, find_user_error
from wcl_ray.storage import filesystem, resolve_input

FOUND = ("csv", "tsv", "jsonl", "ndjson")  # suffixes of tables that are looked for
TRIED = 5  # tables at the top of an image folder that are tried, at most


@dataclass(frozen=True)
class JoinedSource(Source):
    """A source with further columns.

    Attributes:
        inner: the source of the images.
        added: names of the columns of the table.
        names: references to tables of the ids and keys of all images.
        rows: reference to the sorted ids and the row of each in ``table``, -1 = none.
        table: reference to the table.
    """

    inner: Source = None  # type: ignore[assignment]
    added: frozenset[str] = frozenset()
    names: tuple[Any, ...] = ()
    rows: Any = None
    table: Any = None

    def describe(self) -> str:
        return self.inner.describe()

    def metadata(self, columns: Sequence[str] = ()) -> Dataset:
        inner = [name for name in columns if name not in self.added]
        # the ids are known: shards and files need not be read again for columns of the table
        rows = self.inner.metadata(inner) if inner else ray.data.from_arrow_refs([*self.names])
        return self._join(rows, columns)

    def images(
        self,
        columns: Sequence[str] = (),
        keep: Keep | None = None,
        seed: Sequence[int] | None = None,
    ) -> Dataset:
        inner = [name for name in columns if name not in self.added]
        return self._join(self.inner.images(inner, keep, seed), columns)

    def file_index(self) -> FileIndex | None:
        return self.inner.file_index()

    def _join(self, rows: Dataset, columns: Sequence[str]) -> Dataset:
        added = [name for name in columns if name in self.added]
        if not added:
            return rows
        kwargs = {"columns": added, "rows": self.rows, "table": self.table}
        return rows.map_batches(_add_columns, batch_size=None, fn_kwargs=kwargs, **READ_OPTIONS)


def _add_columns(images: pa.Table, columns: list[str], rows: Any, table: Any) -> pa.Table:
    added = _rows_of(images[ID].to_numpy(), ray.get(rows), ray.get(table).select(columns))
    for name in columns:
        images = images.append_column(name, added[name])
    return images


def _rows_of(ids: np.ndarray, rows: tuple[np.ndarray, np.ndarray], table: pa.Table) -> pa.Table:
    """The rows of a table that belong to images, nulls where there is none; ``rows``: see
    :class:`JoinedSource`."""
    positions = positions_of(rows[0], ids)
    indices = np.where(positions >= 0, rows[1][positions], -1)
    return table.take(pa.array(indices, mask=indices < 0))


@ray.remote(num_cpus=1)
def _match(refs: list[Any], table: pa.Table, *args: Any) -> tuple[Match, Any]:
    tables = [images for images in ray.get(refs) if images.num_rows]
    if not tables:
        raise UserError("there are no images")
    return _match_images(pa.concat_tables(tables), table, *args)


def _match_images(
    images: pa.Table, table: pa.Table, *args: Any
) -> tuple[Match, tuple[np.ndarray, np.ndarray]]:
    keys = images[KEY].combine_chunks()
    match, ids, rows = match_table(images[ID].to_numpy(), keys, table, *args)
    return match, (ids, rows)


def join_table(source: Source, data: DataConfig, training: Source | None) -> Source:
    """Join the table of ``data.table``. Test images only need it for their label: otherwise they
    stay as they are, and the table may be of the training images only.

    Args:
        training: see :func:`wcl_ray.data.sources.open_source`.

    Raises:
        UserError: the table cannot be read, or does not belong to the images.
    """
    assert data.table is not None
    if training is not None and not _has_label(training, data):
        return source
    fs, path = filesystem(resolve_input(data.table), data.endpoint)
    where = f"data.table {data.table}"
    table = _read_table(fs, path, where, data)
    try:
        return _joined(source, table, data.key, where, training)
    except Exception as error:
        problem = find_user_error(error)
        if training is None or problem is None:
            raise
        raise UserError(
            f"test images have no data.label {data.label!r}, which is a column of --data.table: "
            f"{problem}"
        ) from error


def _has_label(source: Source, data: DataConfig) -> bool:
    """Whether the label of a source is a column of the joined table."""
    return source.match is not None and data.label in source.match.columns


def join_own_table(
    source: Source, data: DataConfig, training: Source | None
) -> tuple[Source, str | None]:
    """Join the table at the top of an image folder that has a row for at least half of the images,
    if it is the only one.

    Args:
        training: see :func:`wcl_ray.data.sources.open_source`.

    Returns:
        The source, and the path of the table.

    Raises:
        UserError: no table fits although ``data.key`` names its column. Test images may lack one
            if their label does not come from it.
    """
    files = source.files
    if not isinstance(source, FolderSource) or source.image_column == NAME:
        return source, None
    paths = [p for p in files.paths if suffix_of(p) in FOUND and "/" not in files.relative(p)]
    fitting, reasons = {}, []
    for path in paths if len(paths) <= TRIED else ():
        try:
            table = _read_table(files.fs, path, path, data)
            joined = _joined(source, table, data.key, path, training)
            if joined.match is not None and joined.match.sparse:
                numbers = f"{joined.match.matched:,} of {joined.match.images:,} images"
                raise UserError(f"{path}: it has rows for {numbers} only; see --data.table")
            fitting[path] = joined
        except UserError as error:
            reasons.append(f"{error}")
    if len(fitting) == 1:
        return next((joined, path) for path, joined in fitting.items())
    needed = data.key and (training is None or _has_label(training, data))
    if needed and not fitting:
        problem = reasons[0] if reasons else "there is no metadata table beside the images"
        raise UserError(f"data.key {data.key!r}: {problem}; see --data.table")
    if fitting:
        names = ", ".join(map(files.relative, fitting))
        reasons = [f"{names} have rows for the images of {files.uri}: choose one with --data.table"]
    elif len(paths) > 1:
        reasons = []  # they are listed as files that are not read
    notes = (*source.notes, *(f"no metadata is read from {reason}" for reason in reasons))
    return replace(source, notes=notes), paths[0] if len(paths) == 1 else None


def _read_table(fs: pafs.FileSystem, path: str, where: str, data: DataConfig) -> pa.Table:
    """A table without the images that a Parquet file may hold. Names and classes in a CSV file are
    texts: whether 1.10 is a number must not depend on the other values."""
    texts = frozenset([*([data.key] if data.key else KEYS), *filter(None, [data.label])])
    dataset = open_table(fs, path, where, data.encoding, texts)
    columns = [f.name for f in dataset.schema if layout_of(f.type) not in ("bytes", "struct")]
    return plain_table(dataset, where, columns)


def _joined(
    source: Source, table: pa.Table, key: str | None, where: str, training: Source | None
) -> Source:
    """A source with the columns of a table, which replace those of the same names."""
    usual = (source.id_column, *KEYS) if source.id_column else KEYS
    place = source.uri
    if isinstance(source, ParquetSource) and not source.id_column:
        place += " (which has no id column, see --data.id)"
    args = (table, key, usual, where, place)
    if isinstance(source, FolderSource):
        images = pa.concat_tables(source.parts((), images=False))
        match, rows = _match_images(images, *args)
    else:
        names = tuple(source.metadata().to_arrow_refs())
        ref = ray.put(table)
        match_ref, rows_ref = _match.options(num_returns=2).remote([*names], ref, *args[1:])
        match = ray.get(match_ref)
    unused = {match.column, source.id_column}
    added = [name for name in table.column_names if name not in unused]
    match = replace(match, columns=tuple(added))
    both = [name for name in source.columns if name in added]
    notes = source.notes
    if both:
        notes += (f"{where} replaces the values of {', '.join(map(repr, both))}",)
    columns = (*(name for name in source.columns if name not in added), *added)
    if not isinstance(source, FolderSource):
        return JoinedSource(
            files=source.files,
            columns=columns,
            image_column=source.image_column,
            id_column=source.id_column,
            notes=notes,
            match=match,
            inner=source,
            added=frozenset(added),
            names=names,
            rows=rows_ref,
            table=ref,
        )
    joined = source.table
    if LABEL in joined.column_names and source.image_column != NAME:  # made of folders
        single = len(pc.unique(joined[LABEL])) == 1  # images/ is no class
        if single if training is None else LABEL not in training.columns:
            joined = joined.drop_columns([LABEL])
            columns = tuple(name for name in columns if name != LABEL or LABEL in added)
    new = _rows_of(images[ID].to_numpy(), rows, table.select(added))
    for name in added:
        if name in joined.column_names and name not in RESERVED:
            joined = joined.drop_columns([name])
        if name not in RESERVED:
            joined = joined.append_column(name, new[name])
    return replace(source, table=joined, columns=columns, match=match, notes=notes)
