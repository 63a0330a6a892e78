"""Vectors to cluster: an array, Parquet files or a Ray Dataset, cut into shards of equal size.

A shard is a list of pieces, each a pure function of the source (a range of rows of an object or of
a file), so a restarted actor reads the same rows again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
        ref: reference to the object, or None for a file.
        first: id of row 0 where the rows have no ids of their own.
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
        """ids int64 (n,) and vectors float32 (n, d); rows whose vector is null are left out."""
        if not self.path and not self.column:
            array = ray.get(self.ref)[self.start : self.stop]
            ids = np.arange(self.first + self.start, self.first + self.stop)
            return ids, np.asarray(array, dtype=np.float32)
        columns = [self.column, *([self.id_column] if self.id_column else [])]
        return self._rows(self._table(columns))

    def names(self, wanted: np.ndarray) -> list[str]:
        """The user's own names of rows by their ids."""
        if self.id_column is None:
            first, stop = self.first + self.start, self.first + self.stop
            return [str(i) for i in wanted if first <= i < stop]
        column = self._table([self.id_column])[self.id_column]
        ids, keys = ids_of(column, self.id_column, self.path or "the data set", self.start)
        chosen = np.flatnonzero(np.isin(ids.to_numpy(), wanted))
        return [str(keys[int(i)].as_py() or ids[int(i)].as_py()) for i in chosen]

    def side(self, label: str | None) -> pa.Table:
        """``__id``, ``__key`` and the label of the rows of a file."""
        fs = filesystem(self.uri, self.endpoint)[0]
        names = _footer(fs, self.path)[0].names
        if label is not None and label not in names:
            raise UserError(
                f"data.label {label!r} is not a column of {self.path}; the columns are: "
                f"{', '.join(names)}"
            )
        key = "key" if "key" in names else None
        wanted = [name for name in (self.id_column, key, label) if name is not None]
        table = self._table(list(dict.fromkeys(wanted)))
        rows = pa.array(np.arange(self.first + self.start, self.first + self.stop))
        keys = pa.nulls(self.stop - self.start, pa.string())
        if self.id_column is not None:
            rows, keys = ids_of(table[self.id_column], self.id_column, self.path, self.start)
        if key is not None:
            with reading(f"{self.path}: column {key!r}", "cannot be read as names"):
                keys = table[key].cast(pa.string())
        found = {"__id": rows, "__key": keys}
        return pa.table(found | ({} if label is None else {label: table[label]}))

    def _table(self, columns: list[str]) -> pa.Table:
        if not self.path:
            table: pa.Table = ray.get(self.ref)
            return table.slice(self.start, self.stop - self.start)
        fs = filesystem(self.uri, self.endpoint)[0]
        with reading(self.path), fs.open_input_file(self.path) as stream:
            file = pq.ParquetFile(stream)
            groups: list[int] = []
            skipped = at = 0
            for group in range(file.num_row_groups):  # only those that hold wanted rows
                end = at + file.metadata.row_group(group).num_rows
                if end > self.start and at < self.stop:
                    skipped = at if not groups else skipped
                    groups.append(group)
                at = end
            table = file.read_row_groups(groups, columns=columns)
            table.validate(full=True)
        return table.slice(self.start - skipped, self.stop - self.start)

    def _rows(self, table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        rows = np.arange(self.first + self.start, self.first + self.start + table.num_rows)
        column = table[self.column]
        where = self.path or "the data set"
        if self.id_column is not None:
            rows = ids_of(table[self.id_column], self.id_column, where, self.start)[0].to_numpy()
        if column.null_count:
            rows = rows[column.is_valid().to_numpy()]
            column = column.drop_null()
        return rows, matrix(column, self.column, where)


def matrix(column: pa.ChunkedArray, name: str, where: str) -> np.ndarray:
    """float32 (n, d) of a column of equally long lists of numbers, without nulls.

    Raises:
        UserError: lists of different lengths, or holes inside them.
    """
    parts = []
    for chunk in column.chunks:
        if not len(chunk):
            continue
        chunk = chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk
        values = chunk.flatten()
        if values.null_count:
            raise UserError(f"{where}: column {name!r} holds vectors with missing values")
        width = len(values) // len(chunk)
        if not pa.types.is_fixed_size_list(chunk.type):
            lengths = chunk.value_lengths().to_numpy()
            if (lengths != width).any():
                raise UserError(
                    f"{where}: the vectors of column {name!r} have different lengths, "
                    f"{int(lengths.min())} to {int(lengths.max())}"
                )
        flat = values.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
        parts.append(flat.reshape(len(chunk), width))
    widths = sorted({part.shape[1] for part in parts})
    if len(widths) > 1:
        raise UserError(f"{where}: the vectors of column {name!r} have different lengths, {widths}")
    return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)


@dataclass(frozen=True)
class Vectors:
    """An opened source of vectors."""

    pieces: tuple[Piece, ...]

    @property
    def rows(self) -> int:
        """Rows of the source, those with a null vector included."""
        return sum(piece.stop - piece.start for piece in self.pieces)

    def shards(self, count: int) -> list[list[Piece]]:
        """Cut into ``count`` consecutive parts whose sizes differ by at most one row."""
        from dataclasses import replace

        cuts = [self.rows * i // count for i in range(count + 1)]
        found: list[list[Piece]] = [[] for _ in range(count)]
        at = 0
        for piece in self.pieces:
            end = at + piece.stop - piece.start
            for i in range(count):
                low, high = max(at, cuts[i]), min(end, cuts[i + 1])
                if low < high:
                    start = piece.start + low - at
                    found[i].append(replace(piece, start=start, stop=start + high - low))
            at = end
        return found


def open_vectors(
    source: Any,
    column: str | None = None,
    id_column: str | None = None,
    endpoint: str | None = None,
) -> Vectors:
    """Open vectors.

    Args:
        source: an array (n, d), a Ray Dataset, Parquet files (a folder, a file or a glob, local or
            s3://), or opened vectors.
        column: with the vectors; found by name and type by default.
        id_column: with integer or string ids; ``id`` by default, else the number of the row.

    Raises:
        UserError: nothing there, no column of vectors, an array that has not two dimensions.
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
            f"vectors are a matrix of numbers (rows, dimensions), not {array.dtype} of shape "
            f"{array.shape}"
        )
    ref = ray.put(np.ascontiguousarray(array, dtype=np.float32))
    return Vectors((Piece(0, len(array), 0, ref=ref),))


def _open_dataset(source: Any, column: str | None, id_column: str | None) -> Vectors:
    kept = source.materialize()
    schema = kept.schema()
    if schema is None:
        raise UserError("the data set of vectors is empty")
    schema = schema.base_schema if hasattr(schema, "base_schema") else schema
    if not isinstance(schema, pa.Schema):  # blocks of pandas
        kept = kept.map_batches(_unchanged, batch_format="pyarrow").materialize()
        schema = kept.schema().base_schema
    column, id_column = _columns(schema, "the data set", column, id_column)
    pieces, first = [], 0
    for bundle in kept.iter_internal_ref_bundles():
        for entry in bundle.blocks:
            ref, rows = entry.ref, int(entry.metadata.num_rows or 0)
            if rows:
                piece = Piece(0, rows, first, ref=ref, column=column, id_column=id_column)
                pieces.append(piece)
            first += rows
    return Vectors(tuple(pieces))


def _unchanged(table: pa.Table) -> pa.Table:
    return table


def _open_parquet(
    uri: str, column: str | None, id_column: str | None, endpoint: str | None
) -> Vectors:
    from wcl_ray.data.sources.listing import list_files

    files = list_files(uri, endpoint)
    paths = [path for path in files.paths if path.lower().endswith(".parquet")]
    if not paths:
        raise UserError(f"{uri} holds no Parquet file of vectors")
    fs, pieces, first = files.fs, [], 0
    for path in paths:
        schema, rows = _footer(fs, path)
        name, ids = _columns(schema, path, column, id_column)
        pieces.append(
            Piece(0, rows, first, uri=uri, path=path, endpoint=endpoint, column=name, id_column=ids)
        )
        first += rows
    return Vectors(tuple(pieces))


def has_vectors(uri: str, endpoint: str | None = None) -> bool:
    """Whether a path holds Parquet files with a column of vectors."""
    from wcl_ray.data.sources.listing import list_files

    files = list_files(uri, endpoint)
    path = next((path for path in files.paths if path.lower().endswith(".parquet")), None)
    if path is None:
        return False
    return any(_is_vector(field.type) for field in _footer(files.fs, path)[0])


def _footer(fs: pafs.FileSystem, path: str) -> tuple[pa.Schema, int]:
    """Schema and rows of a Parquet file."""
    with reading(path, "cannot be read as Parquet"), fs.open_input_file(path) as stream:
        file = pq.ParquetFile(stream)
        check_names(file.schema_arrow.names, path)
        return file.schema_arrow, file.metadata.num_rows


def side_columns(vectors: Vectors, label: str | None) -> Any:
    """Data set with ``__id``, ``__key`` and the label of vectors in Parquet files.

    Raises:
        UserError: no such column.
    """
    return ray.data.from_arrow_refs([_side.remote(piece, label) for piece in vectors.pieces])


@ray.remote(num_cpus=1)
def _side(piece: Piece, label: str | None) -> pa.Table:
    return piece.side(label)


def _columns(
    schema: pa.Schema, where: str, column: str | None, id_column: str | None
) -> tuple[str, str | None]:
    """Names of the columns with the vectors and with the ids."""
    for name in (column, id_column):
        if name is not None and name not in schema.names:
            raise UserError(
                f"{where} has no column {name!r}; the columns are: {', '.join(schema.names)}"
            )
    vectors = [name for name in schema.names if _is_vector(schema.field(name).type)]
    if column is None:
        named = [name for name in FEATURES if name in vectors]
        if not vectors:
            raise UserError(
                f"{where} has no column of vectors (equally long lists of floating-point numbers); "
                f"the columns are: {', '.join(schema.names)}"
            )
        if len(vectors) > 1 and not named:
            raise UserError(
                f"{where} has several columns of vectors: {', '.join(vectors)}; name one with "
                "--vector-column (column= in Python)"
            )
        column = (named or vectors)[0]
    elif not _is_vector(schema.field(column).type, named=True):
        raise UserError(
            f"{where}: column {column!r} is of type {schema.field(column).type}, not a list of "
            "numbers"
        )
    if id_column is None:
        id_column = next((name for name in IDS if name in schema.names), None)
    return column, id_column


def _is_vector(kind: pa.DataType, named: bool = False) -> bool:
    """Lists of floats; those of integers, which may be tags, only when they are named."""
    kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(is_list(kind) for is_list in lists):
        return False
    integers = named and pa.types.is_integer(kind.value_type)
    return bool(integers or pa.types.is_floating(kind.value_type))


def duplicated(shards: Sequence[np.ndarray]) -> np.ndarray:
    """Ids that occur more than once, from parts of all ids: int64, sorted."""
    ids = np.sort(np.concatenate(list(shards))) if shards else np.empty(0, np.int64)
    return np.unique(ids[1:][ids[1:] == ids[:-1]])
