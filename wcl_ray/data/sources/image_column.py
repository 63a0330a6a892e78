"""The image column of Parquet files: which one it is, and its files in any layout: bytes, Hugging
Face's structs of bytes and path, or paths."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from wcl_ray.data.sources.files import read_files
from wcl_ray.data.sources.listing import Files
from wcl_ray.data.sources.tables import bare_type
from wcl_ray.errors import UserError, reading

NAMES = ("image", "img", "images", "jpg", "jpeg", "png", "picture", "photo", "image_bytes")
PATH_NAMES = ("file_name", "image_path", "image_url", "image_uri", "path", "file", "filename")


def layout_of(kind: pa.DataType) -> str | None:
    """How a column of this type may hold images: bytes, struct, path, or not at all."""
    kind = bare_type(kind)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return "bytes"
    if pa.types.is_struct(kind) and any(field.name == "bytes" for field in kind):
        return "struct"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "path"
    return None


def image_column(schema: pa.Schema, wanted: str | None, uri: str) -> tuple[str, str]:
    """The column that holds the images, and its layout.

    Args:
        wanted: its name; None: found by usual names and types.

    Raises:
        UserError: no such column, none that can hold images, or several that may.
    """
    layouts = {field.name: layout_of(field.type) for field in schema}
    listing = ", ".join(f"{field.name} ({field.type})" for field in schema)
    if wanted is not None:
        if wanted not in layouts:
            raise UserError(
                f"data.image {wanted!r} is not a column of {uri}; the columns are: {listing}"
            )
        layout = layouts[wanted]
        if layout is None:
            raise UserError(
                f"data.image {wanted!r} of {uri} is of type {schema.field(wanted).type}; images "
                "are bytes, a {bytes, path} struct, or paths"
            )
        return wanted, layout
    pixels = [name for name, layout in layouts.items() if layout in ("bytes", "struct")]
    usual = [n for n in NAMES if n in pixels] or [
        n for n in (*NAMES, *PATH_NAMES) if layouts.get(n)
    ]
    name = next(iter(usual), pixels[0] if len(pixels) == 1 else None)
    if name is not None:
        return name, str(layouts[name])
    if pixels:
        raise UserError(
            f"{uri}: {', '.join(pixels)} may all be the images; choose one with --data.image"
        )
    raise UserError(f"{uri} has no image column; choose one with --data.image: {listing}")


def image_files(
    table: pa.Table, name: str, layout: str, files: Files, path: str
) -> tuple[pa.Array, pa.Array]:
    """Image files (large_binary) and faults (string) of the column ``name`` of a table.

    Args:
        layout: of :func:`image_column`. files: of the source.
        path: of the Parquet file, from which relative paths start.
    """
    with reading(f"{path}: column {name!r}"):
        column = table[name].cast(bare_type(table[name].type)).combine_chunks()
    if layout == "path":
        return read_files(column.to_pylist(), files, path.rpartition("/")[0])
    if layout == "struct":
        content = pc.struct_field(column, "bytes")
        if content.null_count and column.type.get_field_index("path") >= 0:
            return _bytes_or_path(column.to_pylist(), files, path.rpartition("/")[0])
        column = content
    fault = pc.if_else(pc.is_null(column), "missing", pa.scalar(None, pa.string()))
    return column.cast(pa.large_binary()), fault


def _bytes_or_path(
    rows: list[dict[str, Any] | None], files: Files, base: str
) -> tuple[pa.Array, pa.Array]:
    """Image files and faults of structs that hold bytes in some rows and a path in others."""
    paths = [row["path"] if row and row["bytes"] is None else None for row in rows]
    read, fault = (array.to_pylist() for array in read_files(paths, files, base))
    contents = [
        row["bytes"] if row and row["bytes"] is not None else read[i] for i, row in enumerate(rows)
    ]
    faults = [None if c is not None else f for c, f in zip(contents, fault, strict=True)]
    return pa.array(contents, pa.large_binary()), pa.array(faults, pa.string())
