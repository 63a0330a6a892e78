"""Vectors to cluster: an array, Parquet files or a Ray Dataset, cut into shards of equal size.

A shard is a list of pieces, each a range of rows of an object or a file, so that a restarted actor
reads the same rows again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import ray

from wcl_ray.data.ids import ids_of
from wcl_ray.data.values import check_names
from wcl_ray.errors import UserError, reading
from wcl_ray.storage import filesystem

FEATURES = ("feature", "features", "embedding", "embeddings", "vector", "vectors")
IDS = ("__id", "id")


@dataclass(frozen=True)
class Piece:
    """Rows ``start`` … ``stop`` - 1 of one array, table or Parquet file.

    Attributes:
        first: id of row 0, for rows without an id column.
        ref: reference to the object, None for a file. uri, path, endpoint: of the file.
        column: with the vectors, "" for an array. id_column: with the ids, or None.
    """

    start: int
    stop: int
    first: int
    ref: Any = None
    uri: str = ""
    path: str = ""
    endpoint: str | None = None
    column: str = ""
    id_column: str | None = None

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """Read ids int64 (n,) and vectors float32 (n, d), without rows whose vector is null."""
        if not self.path and not self.column:
            array = ray.get(self.ref)[self.start : self.stop]
            ids = np.arange(self.first + self.start, self.first + self.stop)
            return ids, np.asarray(array, dtype=np.float32)
        columns = [self.column, *([self.id_column] if self.id_column else [])]
        return self._rows(self._table(columns))

    def names(self, wanted: np.ndarray) -> list[str]:
        """The values in the user's id column (or row numbers) of the rows with ids ``wanted``."""
        if self.id_column is None:
            first, stop = self.first + self.start, self.first + self.stop
            return [str(i) for i in wanted if first <= i < stop]
        column = self._table([self.id_column])[self.id_column]
        ids, keys = ids_of(column, self.id_column, self.path or "the data set", self.start)
        chosen = np.flatnonzero(np.isin(ids.to_numpy(), wanted))
        return [str(keys[int(i)].as_py() or ids[int(i)].as_py()) for i in chosen]

    def label_table(self, label: str | None) -> pa.Table:
        """``__id``, ``__key`` and the column ``label`` of the rows of a file."""
        fs = filesystem(self.uri, self.endpoint)[0]
        names = _footer(fs, self.path)[0].names
        if label is not None and label not in names:
            raise UserError(
                f"data.label {label!r} is not a column of {self.path}; the columns are: "
                f"{', '.join(names)}"
            )
        key = "key" if "key" in names else None
        columns = [name for name in (self.id_column, key, label) if name is not None]
        table = self._table(list(dict.fromkeys(columns)))
        ids = pa.array(np.arange(self.first + self.start, self.first + self.stop))
        keys = pa.nulls(self.stop - self.start, pa.string())
        if self.id_column is not None:
            ids, keys = ids_of(table[self.id_column], self.id_column, self.path, self.start)
        if key is not None:
            with reading(f"{self.path}: column {key!r}", "cannot be read as names"):
                keys = table[key].cast(pa.string())
        result = {"__id": ids, "__key": keys}
        return pa.table(result | ({} if label is None else {label: table[label]}))

    def _table(self, columns: list[str]) -> pa.Table:
        """Columns of the rows, of a file from the row groups that hold them."""
        if not self.path:
            table: pa.Table = ray.get(self.ref)
            return table.slice(self.start, self.stop - self.start)
        fs = filesystem(self.uri, self.endpoint)[0]
        with reading(self.path), fs.open_input_file(self.path) as stream:
            file = pq.ParquetFile(stream)
            groups: list[int] = []
            skipped = first = 0
            for group in range(file.num_row_groups):
                end = first + file.metadata.row_group(group).num_rows
                if end > self.start and first < self.stop:
                    skipped = first if not groups else skipped
                    groups.append(group)
                first = end
            table = file.read_row_groups(groups, columns=columns)
            table.validate(full=True)
        return table.slice(self.start - skipped, self.stop - self.start)

    def _rows(self, table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        ids = np.arange(self.first + self.start, self.first + self.start + table.num_rows)
        column = table[self.column]
        source = self.path or "the data set"
        if self.id_column is not None:
            ids = ids_of(table[self.id_column], self.id_column, source, self.start)[0].to_numpy()
        if column.null_count:
            ids = ids[column.is_valid().to_numpy()]
            column = column.drop_null()
        return ids, matrix(column, self.column, source)


def matrix(column: pa.ChunkedArray, name: str, source: str) -> np.ndarray:
    """Convert a column of equally long lists of numbers, none null, to float32 (n, d).

    Args:
        name: of the column, and ``source``: of its file, for errors.

    Raises:
        UserError: lists of different lengths, or null values inside them.
    """
    parts = []
    for chunk in column.chunks:
        if not len(chunk):
            continue
        chunk = chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk
        values = chunk.flatten()
        if values.null_count:
            raise UserError(f"{source}: column {name!r} has vectors with missing values")
        width = len(values) // len(chunk)
        if not pa.types.is_fixed_size_list(chunk.type):
            lengths = chunk.value_lengths().to_numpy()
            if (lengths != width).any():
                raise UserError(
                    f"{source}: the vectors of column {name!r} have different lengths, "
                    f"{int(lengths.min())} to {int(lengths.max())}"
                )
        flat = values.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
        parts.append(flat.reshape(len(chunk), width))
    widths = sorted({part.shape[1] for part in parts})
    if len(widths) > 1:
        raise UserError(
            f"{source}: the vectors of column {name!r} have different lengths, {widths}"
        )
    return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)


@dataclass(frozen=True)
class Vectors:
    """An opened source of vectors."""

    pieces: tuple[Piece, ...]

    @property
    def rows(self) -> int:
        """Number of rows, including those with a null vector."""
        return sum(piece.stop - piece.start for piece in self.pieces)

    def shards(self, count: int) -> list[list[Piece]]:
        """Cut into ``count`` consecutive parts whose sizes differ by at most one row."""
        cuts = [self.rows * i // count for i in range(count + 1)]
        shards: list[list[Piece]] = [[] for _ in range(count)]
        first = 0
        for piece in self.pieces:
            end = first + piece.stop - piece.start
            for i in range(count):
                low, high = max(first, cuts[i]), min(end, cuts[i + 1])
                if low < high:
                    start = piece.start + low - first
                    shards[i].append(replace(piece, start=start, stop=start + high - low))
            first = end
        return shards


def open_vectors(
    source: Any,
    column: str | None = None,
    id_column: str | None = None,
    endpoint: str | None = None,
) -> Vectors:
    """Open a source of vectors.

    Args:
        source: an array (n, d), a Ray Dataset, Parquet files (a folder, a file or a glob, local or
            s3://), or opened vectors.
        column: with the vectors; default: found by name and type.
        id_column: with integer or string ids; default: ``__id`` or ``id``, else row numbers.
        endpoint: of the S3 storage, if it is not AWS.

    Raises:
        UserError: no such path, no column of vectors, or an array without two dimensions.
    """
    if isinstance(source, Vectors):
        return source
    if isinstance(source, str):
        return _open_parquet(source, column, id_column, endpoint)
    if isinstance(source, ray.data.Dataset):
        return _open_dataset(source, column, id_column)
    array = np.asarray(source)
    if array.ndim != 2 or array.dtype.kind not in "fiub":
        raise UserError(
            f"vectors must be a matrix of numbers (rows, dimensions), not {array.dtype} of shape "
            f"{array.shape}"
        )
    ref = ray.put(np.ascontiguousarray(array, dtype=np.float32))
    return Vectors((Piece(0, len(array), 0, ref=ref),))


def _open_dataset(source: Any, column: str | None, id_column: str | None) -> Vectors:
    dataset = source.materialize()
    schema = dataset.schema()
    if schema is None:
        raise UserError("the data set of vectors is empty")
    schema = schema.base_schema if hasattr(schema, "base_schema") else schema
    if not isinstance(schema, pa.Schema):  # blocks of pandas
        dataset = dataset.map_batches(lambda table: table, batch_format="pyarrow").materialize()
        schema = dataset.schema().base_schema
    column, id_column = _columns(schema, "the data set", column, id_column)
    pieces, first = [], 0
    for bundle in dataset.iter_internal_ref_bundles():
        for entry in bundle.blocks:
            ref, rows = entry.ref, int(entry.metadata.num_rows or 0)
            if rows:
                piece = Piece(0, rows, first, ref=ref, column=column, id_column=id_column)
                pieces.append(piece)
            first += rows
    return Vectors(tuple(pieces))


def _open_parquet(
    uri: str, column: str | None, id_column: str | None, endpoint: str | None
) -> Vectors:
    fs, paths = _parquet_files(uri, endpoint)
    if not paths:
        raise UserError(f"{uri} has no Parquet files")
    pieces, first = [], 0
    for path in paths:
        schema, rows = _footer(fs, path)
        name, ids = _columns(schema, path, column, id_column)
        pieces.append(
            Piece(0, rows, first, uri=uri, path=path, endpoint=endpoint, column=name, id_column=ids)
        )
        first += rows
    return Vectors(tuple(pieces))


def has_vectors(uri: str, endpoint: str | None = None) -> bool:
    """Whether the first Parquet file of a path has a column of vectors; False without any file."""
    fs, paths = _parquet_files(uri, endpoint)
    return bool(paths) and any(_is_vector(field.type) for field in _footer(fs, paths[0])[0])


def _parquet_files(uri: str, endpoint: str | None) -> tuple[pafs.FileSystem, list[str]]:
    from wcl_ray.data.sources.listing import list_files

    files = list_files(uri, endpoint)
    return files.fs, [path for path in files.paths if path.lower().endswith(".parquet")]


def _footer(fs: pafs.FileSystem, path: str) -> tuple[pa.Schema, int]:
    """Schema and number of rows of a Parquet file."""
    with reading(path, "cannot be read as Parquet"), fs.open_input_file(path) as stream:
        file = pq.ParquetFile(stream)
        check_names(file.schema_arrow.names, path)
        return file.schema_arrow, file.metadata.num_rows


def label_dataset(vectors: Vectors, label: str | None) -> Any:
    """Data set with ``__id``, ``__key`` and the column ``label`` of vectors in Parquet files.

    Raises:
        UserError: no such column.
    """
    return ray.data.from_arrow_refs([_label_table.remote(piece, label) for piece in vectors.pieces])


@ray.remote(num_cpus=1)
def _label_table(piece: Piece, label: str | None) -> pa.Table:
    return piece.label_table(label)


def _columns(
    schema: pa.Schema, source: str, column: str | None, id_column: str | None
) -> tuple[str, str | None]:
    """Names of the columns with the vectors and with the ids."""
    for name in (column, id_column):
        if name is not None and name not in schema.names:
            raise UserError(
                f"{source} has no column {name!r}; the columns are: {', '.join(schema.names)}"
            )
    vectors = [name for name in schema.names if _is_vector(schema.field(name).type)]
    if column is None:
        named = [name for name in FEATURES if name in vectors]
        if not vectors:
            raise UserError(
                f"{source} has no column of vectors (equally long lists of floating-point "
                f"numbers); the columns are: {', '.join(schema.names)}"
            )
        if len(vectors) > 1 and not named:
            raise UserError(
                f"{source} has several columns of vectors: {', '.join(vectors)}; name one with "
                "--vector-column (column= in Python)"
            )
        column = (named or vectors)[0]
    elif not _is_vector(schema.field(column).type, named=True):
        raise UserError(
            f"{source}: column {column!r} is of type {schema.field(column).type}, not a list of "
            "numbers"
        )
    if id_column is None:
        id_column = next((name for name in IDS if name in schema.names), None)
    return column, id_column


def _is_vector(kind: pa.DataType, named: bool = False) -> bool:
    """Whether values are lists of floats, or of integers if ``named``: those may be tags."""
    kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(is_list(kind) for is_list in lists):
        return False
    integers = named and pa.types.is_integer(kind.value_type)
    return bool(integers or pa.types.is_floating(kind.value_type))


def duplicated(shards: Sequence[np.ndarray]) -> np.ndarray:
    """Ids that occur more than once in all shards together: int64, sorted."""
    ids = np.sort(np.concatenate(list(shards))) if shards else np.empty(0, np.int64)
    return np.unique(ids[1:][ids[1:] == ids[:-1]])
