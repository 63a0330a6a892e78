"""Parquet files with image bytes, Hugging Face image structs, or a column of paths or URIs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import Dataset

from wcl_ray.config import DataConfig
from wcl_ray.data.ids import hash_strings, ids_of
from wcl_ray.data.sources.base import (
    FAULT,
    ID,
    IMAGE,
    KEY,
    READ_OPTIONS,
    Keep,
    Source,
    id_column,
    in_random_order,
)
from wcl_ray.data.sources.files import FILES_AT_ONCE
from wcl_ray.data.sources.hive import hive_columns, hive_value
from wcl_ray.data.sources.image_column import image_column, image_files
from wcl_ray.data.sources.listing import METADATA_FILES, Files, suffix_of
from wcl_ray.data.sources.tables import bare_type, common_type
from wcl_ray.data.values import check_names
from wcl_ray.errors import UserError, reading
from wcl_ray.registry import FORMATS

TASK_BYTES = 2_000_000  # that a task reads at least: starting it takes as long as 1,000 images
LARGE = 8  # times TASK_BYTES of a large task: Ray Data takes up to 0.1 s to start the next one
STORE_SHARE = 1 / 400  # that a task reads at most; larger ones fill most of a small object store
FILE_BYTES = 50_000  # assumed size of an image that the table only names
PATH_BYTES = 200  # image column below this size per row: paths, not image bytes
ROWS = 1024  # of an output table, at most; keeps blocks small
CHUNK = 16 * 2**20  # approximate bytes of an output table
MANY = 256  # files; the footers of more are read in the tasks instead of on opening
SAMPLED = 16  # files whose column types are compared when there are more than MANY


@FORMATS.add("parquet")
@dataclass(frozen=True)
class ParquetSource(Source):
    """Row groups of Parquet files, see :class:`Source`.

    Attributes:
        layout: of the image column: bytes, struct or path.
        hive: columns encoded in folder names (``species=beetle``), and their types.
    """

    layout: str = "bytes"
    hive: dict[str, pa.DataType] = field(default_factory=dict)

    def describe(self) -> str:
        count = len(self.files.paths)
        return (
            f"{self.uri}: {count} Parquet file{'s' * (count > 1)}, images in {self.image_column!r}"
        )

    @staticmethod
    def count(files: Files) -> int:
        return sum(
            suffix_of(p) == "parquet" and p.rpartition("/")[2] not in METADATA_FILES
            for p in files.paths
        )

    @staticmethod
    def open(files: Files, data: DataConfig) -> ParquetSource:
        """Open Parquet files; the first file defines the columns.

        Raises:
            UserError: a broken file, no image column, several of them, or a missing column.
        """
        paths = tuple(p for p in files.paths if p.lower().endswith(".parquet"))
        if not paths:
            raise UserError(f"data.path {files.uri} holds no .parquet file")
        files = replace(files, paths=paths)
        schema = _open(files, paths[0]).schema_arrow
        check_names(schema.names, paths[0])
        hive = hive_columns(map(files.relative, paths))
        hive = {name: kind for name, kind in hive.items() if name not in schema.names}
        image, layout = image_column(schema, data.image, files.uri)
        if data.id in hive:
            raise UserError(
                f"data.id {data.id!r} comes from folder names ({data.id}=…), but ids are read from "
                "a column of the files: write it there, or leave --data.id out to make ids from "
                "file names and row numbers"
            )
        key = id_column(data, schema, files.uri)
        names = tuple(name for name in (*schema.names, *hive) if name not in (image, key))
        return ParquetSource(files, names, image, key, layout=layout, hive=hive)

    def metadata(self, columns: Sequence[str] = ()) -> Dataset:
        return self._read(columns, images=False)

    def images(
        self,
        columns: Sequence[str] = (),
        keep: Keep | None = None,
        seed: Sequence[int] | None = None,
    ) -> Dataset:
        return self._read(columns, images=True, keep=keep, seed=seed)

    def _read(
        self,
        columns: Sequence[str],
        images: bool,
        keep: Keep | None = None,
        seed: Sequence[int] | None = None,
    ) -> Dataset:
        pieces, types, size = self.pieces(columns)
        pieces = in_random_order(pieces, seed)
        cluster = ray.cluster_resources()
        store = cluster.get("object_store_memory", 0.0)
        tasks = number_of_tasks(size, cluster.get("CPU", 0.0), store)
        rows = ray.data.from_items(pieces, override_num_blocks=min(tasks, len(pieces)))
        kwargs = {"source": self, "types": types, "images": images, "keep": keep}
        return rows.map_batches(_read_piece, batch_size=1, fn_kwargs=kwargs, **READ_OPTIONS)

    def pieces(
        self, columns: Sequence[str]
    ) -> tuple[list[dict[str, int]], dict[str, pa.DataType], int]:
        """Row groups, the types of the columns over all files, and the approximate bytes."""
        pieces, schemas, size = _pieces(self.files, self.image_column)
        types = _types(schemas, [c for c in columns if c not in self.hive], self.uri)
        types |= {name: kind for name, kind in self.hive.items() if name in columns}
        return pieces, types, size


def _open(files: Files, path: str) -> pq.ParquetFile:
    with reading(path, "is not a readable Parquet file"):
        return pq.ParquetFile(files.fs.open_input_file(path))


def _check_count(file: pq.ParquetFile) -> None:
    """Raise a ValueError if a damaged footer would silently drop rows."""
    footer = file.metadata
    held = sum(footer.row_group(group).num_rows for group in range(footer.num_row_groups))
    if held != footer.num_rows:
        raise ValueError(f"its row groups hold {held} rows, but its footer says {footer.num_rows}")


def _pieces(
    files: Files, image: str
) -> tuple[list[dict[str, int]], list[tuple[str, pa.Schema]], int]:
    """Row groups as (file, group, number of the first row), the schemas of the files looked into,
    and the approximate bytes, files that the table only names included. With more than ``MANY``
    files: whole files (group -1)."""
    count = len(files.paths)
    many = count > MANY

    def footer(index: int) -> tuple[list[dict[str, int]], tuple[str, pa.Schema], int]:
        file = _open(files, files.paths[index])
        groups, first, size = [], 0, 0
        with reading(files.paths[index], "is not a readable Parquet file"):
            for number in range(file.metadata.num_row_groups):
                group = file.metadata.row_group(number)
                if group.num_rows:
                    groups.append({"file": index, "group": number, "first": first})
                first += group.num_rows
                size += group.total_byte_size + FILE_BYTES * _path_rows(group, image)
            _check_count(file)
        return groups, (files.paths[index], file.schema_arrow), size

    indices = range(0, count, -(-count // SAMPLED)) if many else range(count)
    with ThreadPoolExecutor(8) as pool:
        footers = list(pool.map(footer, indices))
    schemas = [schema for _, schema, _ in footers]
    size = sum(n for *_, n in footers) * count // len(footers)
    if many:
        return [{"file": i, "group": -1, "first": 0} for i in range(count)], schemas, size
    pieces = [piece for groups, *_ in footers for piece in groups]
    if not pieces:
        raise UserError(f"data.path {files.uri}: the Parquet files hold no rows")
    return pieces, schemas, size


def _path_rows(group: pq.RowGroupMetaData, image: str) -> int:
    """Rows of a row group if it holds paths of images instead of their bytes, else 0."""
    columns = [group.column(i) for i in range(group.num_columns)]
    held = sum(
        c.total_uncompressed_size
        for c in columns
        if c.physical_type == "BYTE_ARRAY" and c.path_in_schema in (image, f"{image}.bytes")
    )
    return int(group.num_rows) if held < PATH_BYTES * group.num_rows else 0


def _types(
    schemas: list[tuple[str, pa.Schema]], columns: Sequence[str], uri: str
) -> dict[str, pa.DataType]:
    """A common type for each column over all files (int32 and double: double).

    Raises:
        UserError: a file lacks the column, or its types have no common type.
    """
    types: dict[str, pa.DataType] = {}
    for name in columns:
        for path, schema in schemas:
            if name not in schema.names:
                raise UserError(f"{path} has no column {name!r}, unlike the first file of {uri}")
            kind = bare_type(schema.field(name).type)
            common = common_type([types.setdefault(name, kind), kind])
            if common is None:
                raise UserError(
                    f"{path}: column {name!r} is of type {kind}, but {types[name]} in other files "
                    f"of {uri}; use the same type in all"
                )
            types[name] = common
    return types


def number_of_tasks(size: int, cpus: float, store: float) -> int:
    """Tasks that read ``size`` bytes in a cluster of ``cpus`` CPUs and an object store of ``store``
    bytes: two for each CPU if each reads at least TASK_BYTES, or more that read LARGE times as
    much, but no more than the store bears."""
    large = min(LARGE * TASK_BYTES, max(TASK_BYTES, int(STORE_SHARE * store)))
    return min(1000, max(1, size // large, min(size // TASK_BYTES, int(2 * cpus))))


def _read_piece(
    pieces: pa.Table,
    source: ParquetSource,
    types: dict[str, pa.DataType],
    images: bool,
    keep: Keep | None = None,
) -> Iterator[pa.Table]:
    for piece in pieces.to_pylist():
        path = source.files.paths[piece["file"]]
        file = _open(source.files, path)
        stored = [name for name in types if name not in source.hive]
        wanted = list(dict.fromkeys([*stored, *([source.id_column] if source.id_column else [])]))
        if images:
            wanted.append(source.image_column)
        missing = [name for name in wanted if name not in file.schema_arrow.names]
        if missing:
            raise UserError(f"{path} has no column {missing[0]!r}, unlike the first file")
        check_names([name for name in file.schema_arrow.names if name in wanted], path)
        groups = range(file.metadata.num_row_groups) if piece["group"] < 0 else [piece["group"]]
        if piece["group"] < 0:
            with reading(path, "is not a readable Parquet file"):
                _check_count(file)
        number = piece["first"]
        for group in groups:
            rows = file.metadata.row_group(group).num_rows
            if not wanted:  # only row numbers are needed
                yield _finish(pa.table({"": pa.nulls(rows)}), source, types, path, number)
                number += rows
                continue
            if keep is not None and not _any_kept(file, group, source, path, number, keep):
                number += rows
                continue
            step = _step(file, group, source) if images else 8 * ROWS
            batches = file.iter_batches(batch_size=step, row_groups=[group], columns=wanted)
            end = number + rows
            while number < end:
                with reading(f"{path}: rows {number} to {end - 1}"):
                    table = pa.Table.from_batches([next(batches)])
                    table.validate(full=True)  # strings may not be UTF-8
                yield _finish(table, source, types, path, number, images, keep)
                number += len(table)


def _step(file: pq.ParquetFile, group: int, source: ParquetSource) -> int:
    """Rows to read at a time, so that their images take about CHUNK bytes."""
    if source.layout == "path":
        return FILES_AT_ONCE
    metadata = file.metadata.row_group(group)
    size = metadata.total_byte_size / max(1, metadata.num_rows)
    return int(min(ROWS, max(1, CHUNK // max(1, size))))


def _ids(
    table: pa.Table, source: ParquetSource, path: str, number: int
) -> tuple[pa.Array, pa.Array]:
    """Ids and keys of the rows of a file from ``number`` on."""
    if source.id_column:
        return ids_of(table[source.id_column], source.id_column, path, number)
    name = source.files.relative(path)
    names = [f"{name}#{row}" for row in range(number, number + len(table))]
    return pa.array(hash_strings(names)), pa.array(names, pa.string())


def _any_kept(
    file: pq.ParquetFile, group: int, source: ParquetSource, path: str, number: int, keep: Keep
) -> bool:
    """Whether a row group, whose first row is ``number``, holds an image to keep."""
    rows = pa.table({"": pa.nulls(file.metadata.row_group(group).num_rows)})
    if source.id_column:
        with reading(f"{path}: rows {number} to {number + len(rows) - 1}"):
            rows = file.read_row_group(group, columns=[source.id_column])
    ids, _ = _ids(rows, source, path, number)
    return bool(keep(ids.to_numpy()).any())


def _finish(
    table: pa.Table,
    source: ParquetSource,
    types: dict[str, pa.DataType],
    path: str,
    number: int,
    images: bool = False,
    keep: Keep | None = None,
) -> pa.Table:
    ids, keys = _ids(table, source, path, number)
    if keep is not None:
        kept = pa.array(keep(ids.to_numpy()))
        table, ids, keys = table.filter(kept), ids.filter(kept), keys.filter(kept)
    columns: dict[str, Any] = {ID: ids, KEY: keys}
    if images:
        columns[IMAGE], columns[FAULT] = image_files(
            table, source.image_column, source.layout, source.files, path
        )
    for column, kind in types.items():
        if column in source.hive:
            value = hive_value(source.files.relative(path), column)
            columns[column] = pa.repeat(pa.scalar(value).cast(kind), len(table))
            continue
        try:
            columns[column] = table[column].cast(kind)
        except pa.ArrowException as error:
            raise UserError(
                f"{path}: column {column!r} is of type {table[column].type}, but {kind} in other "
                f"files: {str(error)[:200]}"
            ) from error
    return pa.table(columns)
