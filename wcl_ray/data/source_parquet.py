"""Parquet files with image bytes, Hugging Face image structs, or a column of paths or URIs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from ray.data import Dataset

from wcl_ray.config import DataConfig
from wcl_ray.data.ids import hash_strings, ids_of
from wcl_ray.data.source import FAULT, ID, IMAGE, KEY, Files, Source, id_column
from wcl_ray.errors import UserError
from wcl_ray.storage import filesystem

ROWS = 1024  # of a table handed on; keeps blocks small
MANY = 256  # files whose footers are read on opening; more are read inside the tasks
NAMES = ("image", "img", "images", "jpg", "jpeg", "png", "picture", "photo", "image_bytes")
PATH_NAMES = ("file_name", "image_path", "image_url", "image_uri", "path", "file", "filename")


@dataclass(frozen=True)
class ParquetSource(Source):
    """See :class:`Source`. ``layout``: bytes, struct or path."""

    layout: str = "bytes"

    def describe(self) -> str:
        count = len(self.files.paths)
        return (
            f"{self.uri}: {count} Parquet file{'s' * (count > 1)}, images in {self.image_column!r}"
        )

    def metadata(self, columns: Sequence[str] = ()) -> Dataset:
        return self._read(columns, images=False)

    def images(self, columns: Sequence[str] = ()) -> Dataset:
        return self._read(columns, images=True)

    def _read(self, columns: Sequence[str], images: bool) -> Dataset:
        pieces = _pieces(self.files)
        rows = ray.data.from_items(pieces, override_num_blocks=min(len(pieces), 1000))
        kwargs = {"source": self, "columns": tuple(columns), "images": images}
        return rows.map_batches(_read_piece, batch_size=1, batch_format="pyarrow", fn_kwargs=kwargs)


def open_files(files: Files, data: DataConfig) -> ParquetSource:
    """Open Parquet files by the schema of the first.

    Raises:
        UserError: a broken file, no image column, several of them, or a missing column.
    """
    paths = tuple(p for p in files.paths if p.lower().endswith(".parquet"))
    if not paths:
        raise UserError(f"data.path {files.uri} holds no .parquet file")
    files = Files(files.uri, files.endpoint, files.root, paths)
    schema = _open(files, paths[0]).schema_arrow
    image, layout = _image_column(schema, data.image, files.uri)
    key = id_column(data, schema, files.uri)
    names = tuple(name for name in schema.names if name not in (image, key))
    return ParquetSource(files, names, image, key, layout)


def _open(files: Files, path: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(files.fs.open_input_file(path))
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is not a readable Parquet file: {str(error)[:200]}") from error


def _layout(kind: pa.DataType) -> str | None:
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return "bytes"
    if pa.types.is_struct(kind) and any(field.name == "bytes" for field in kind):
        return "struct"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "path"
    return None


def _image_column(schema: pa.Schema, wanted: str | None, uri: str) -> tuple[str, str]:
    layouts = {field.name: _layout(field.type) for field in schema}
    listing = ", ".join(f"{field.name} ({field.type})" for field in schema)
    if wanted is not None:
        if wanted not in layouts:
            raise UserError(f"data.image {wanted!r} is not a column of {uri}; there are: {listing}")
        layout = layouts[wanted]
        if layout is None:
            raise UserError(
                f"data.image {wanted!r} of {uri} is of type {schema.field(wanted).type}; images "
                "are bytes, a {bytes, path} struct, or paths"
            )
        return wanted, layout
    pixels = [name for name, layout in layouts.items() if layout in ("bytes", "struct")]
    named = [n for n in NAMES if n in pixels] or [
        n for n in (*NAMES, *PATH_NAMES) if layouts.get(n)
    ]
    found = named[:1] or (pixels if len(pixels) == 1 else [])
    if found:
        return found[0], str(layouts[found[0]])
    if pixels:
        raise UserError(
            f"{uri}: {', '.join(pixels)} may all be the images; choose with --data.image"
        )
    raise UserError(f"{uri} has no image column; choose with --data.image among: {listing}")


def _pieces(files: Files) -> list[dict[str, int]]:
    """(file, row group, number of its first row); whole files (group -1) when there are many."""
    if len(files.paths) > MANY:
        return [{"file": i, "group": -1, "first": 0} for i in range(len(files.paths))]

    def one(index: int) -> list[dict[str, int]]:
        footer = _open(files, files.paths[index]).metadata
        found, first = [], 0
        for group in range(footer.num_row_groups):
            found.append({"file": index, "group": group, "first": first})
            first += footer.row_group(group).num_rows
        return found

    with ThreadPoolExecutor(8) as pool:
        pieces = [p for part in pool.map(one, range(len(files.paths))) for p in part]
    if not pieces:
        raise UserError(f"data.path {files.uri}: the Parquet files hold no rows")
    return pieces


def _read_piece(
    pieces: pa.Table, source: ParquetSource, columns: tuple[str, ...], images: bool
) -> Iterator[pa.Table]:
    for piece in pieces.to_pylist():
        path = source.files.paths[piece["file"]]
        file = _open(source.files, path)
        wanted = list(dict.fromkeys([*columns, *([source.id_column] if source.id_column else [])]))
        if images:
            wanted.append(source.image_column)
        missing = [name for name in wanted if name not in file.schema_arrow.names]
        if missing:
            raise UserError(f"{path} has no column {missing[0]!r}, unlike the first file")
        groups = None if piece["group"] < 0 else [piece["group"]]
        number = piece["first"]
        if not wanted:  # only row numbers are needed
            meta = file.metadata
            count = meta.num_rows if groups is None else meta.row_group(groups[0]).num_rows
            yield _finish(pa.table({"": pa.nulls(count)}), source, columns, path, number, False)
            continue
        for batch in file.iter_batches(batch_size=ROWS, row_groups=groups, columns=wanted):
            table = pa.Table.from_batches([batch])
            yield _finish(table, source, columns, path, number, images)
            number += len(table)


def _finish(
    table: pa.Table,
    source: ParquetSource,
    columns: tuple[str, ...],
    path: str,
    number: int,
    images: bool,
) -> pa.Table:
    if source.id_column:
        ids, keys = ids_of(table[source.id_column], source.id_column, path)
    else:
        name = source.files.relative(path)
        names = [f"{name}#{row}" for row in range(number, number + len(table))]
        ids, keys = pa.array(hash_strings(names)), pa.array(names, pa.string())
    found: dict[str, Any] = {ID: ids, KEY: keys}
    if images:
        found[IMAGE], found[FAULT] = _bytes_of(table[source.image_column], source, path)
    return pa.table(found | {name: table[name] for name in columns})


def _bytes_of(
    column: pa.ChunkedArray, source: ParquetSource, path: str
) -> tuple[pa.Array, pa.Array]:
    column = column.combine_chunks()
    if source.layout == "path":
        return read_files(column.to_pylist(), source.files, path.rpartition("/")[0])
    if source.layout == "struct":
        content = pc.struct_field(column, "bytes")
        if content.null_count and column.type.get_field_index("path") >= 0:
            return _mixed(column.to_pylist(), source.files, path.rpartition("/")[0])
        column = content
    fault = pc.if_else(pc.is_null(column), "missing", pa.scalar(None, pa.string()))
    return column.cast(pa.large_binary()), fault


def _mixed(rows: list[dict[str, Any] | None], files: Files, base: str) -> tuple[pa.Array, pa.Array]:
    """Structs that hold bytes in some rows and a path in others."""
    have = [row["bytes"] if row else None for row in rows]
    paths = [row["path"] if row and row["bytes"] is None else None for row in rows]
    read, fault = read_files(paths, files, base)
    both = [h if h is not None else r for h, r in zip(have, read.to_pylist(), strict=True)]
    faults = [None if b is not None else f for b, f in zip(both, fault.to_pylist(), strict=True)]
    return pa.array(both, pa.large_binary()), pa.array(faults, pa.string())


def read_files(paths: list[str | None], files: Files, base: str) -> tuple[pa.Array, pa.Array]:
    """Content and fault of image files given by path or URI, relative ones to ``base``; an empty
    base means that paths are those of the file system."""

    def one(path: str | None) -> tuple[bytes | None, str | None]:
        if not path:
            return None, "no path"
        try:
            if "://" in path:
                fs, inside = filesystem(path, files.endpoint)
            else:
                whole = path if path.startswith("/") or not base else f"{base}/{path}"
                fs, inside = files.fs, whole
            with fs.open_input_stream(inside) as stream:
                return stream.read(), None
        except FileNotFoundError:
            return None, f"file not found: {path}"
        except (OSError, ValueError) as error:
            return None, f"{type(error).__name__}: {error}"[:200]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(one, paths))
    content = pa.array([c for c, _ in found], pa.large_binary())
    return content, pa.array([f for _, f in found], pa.string())
