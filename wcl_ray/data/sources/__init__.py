"""Image sources, one format per module. A new format is a :class:`Source` subclass decorated with
``@FORMATS.add("NAME")``."""

from __future__ import annotations

from dataclasses import replace

from wcl_ray.config import DataConfig
from wcl_ray.data.sources.base import RESERVED, Source
from wcl_ray.data.sources.folder import FolderSource
from wcl_ray.data.sources.joined import join_own_table, join_table
from wcl_ray.data.sources.leftover import UNSUPPORTED, split_note, unread_note
from wcl_ray.data.sources.listing import Files, is_image, list_files, suffix_of
from wcl_ray.data.sources.tables import NAME
from wcl_ray.errors import UserError
from wcl_ray.registry import FORMATS


def open_source(
    data: DataConfig,
    path: str | None = None,
    training: Source | None = None,
    find_table: bool = True,
) -> Source:
    """Open the image source of a configuration.

    Args:
        path: opened instead of ``data.path``.
        training: the training images, if those at ``path`` are their test images.
        find_table: whether a table at the top of an image folder is joined without ``data.table``
            or ``data.key``.

    Raises:
        UserError: no such path, no images, files of several formats, or a missing column.
    """
    uri = path or data.path
    if not uri:
        raise UserError("data.path is not given")
    files = replace(list_files(uri, data.endpoint, data.table), encoding=data.encoding)
    kind = data.format if data.format != "auto" else _detect_format(files)
    source: Source = FORMATS.get(kind).open(files, data)
    if data.id is not None and source.id_column is None:
        hint = "; the column of a table that names the images is --data.key" if data.table else ""
        text = f"data.id {data.id!r}: {kind} data without metadata has no id column{hint}"
        raise UserError(text)
    if data.table:
        source = join_table(source, data, training)
    elif find_table or data.key:
        source, table = join_own_table(source, data, training)
        files = replace(files, paths=tuple(path for path in files.paths if path != table))
    named = isinstance(source, FolderSource) and source.image_column == NAME
    listed = source.table["__path"].to_pylist() if named else None  # type: ignore[attr-defined]
    read = listed or [path for path in source.files.paths if kind != "folder" or is_image(path)]
    notes = [
        unread_note(files, source.files, kind, listed),
        split_note(files, read, kind),
        *source.notes,
    ]
    reserved = [name for name in source.columns if name in RESERVED]
    if reserved:
        notes.append(f"column {reserved[0]!r} is ignored: wcl_ray uses this name itself; rename it")
    columns = tuple(name for name in source.columns if name not in RESERVED)
    return replace(source, columns=columns, notes=tuple(filter(None, notes)))


def _detect_format(files: Files) -> str:
    counts = {kind: FORMATS.get(kind).count(files) for kind in FORMATS.names()}
    kinds = [kind for kind, count in counts.items() if count]
    if not kinds:
        examples = ", ".join(files.relative(path) for path in files.paths[:3])
        packed = any(p.lower().endswith((".tar.gz", ".tgz", ".tar.zst")) for p in files.paths)
        hint = "; compressed shards cannot be read, unpack them to plain .tar" if packed else ""
        unsupported = sorted({suffix_of(path) for path in files.paths} & set(UNSUPPORTED))
        if unsupported:
            hint = f"; .{' and .'.join(unsupported)} cannot be read, convert them to JPEG or PNG"
        raise UserError(
            f"data.path {files.uri} holds no Parquet files, images or .tar shards "
            f"({len(files.paths)} other files: {examples} …){hint}"
        )
    if len(kinds) > 1:
        text = ", ".join(f"{counts[kind]} for {kind}" for kind in kinds)
        raise UserError(
            f"data.path {files.uri} holds files of several formats ({text}); choose one with "
            "--data.format or give a glob; a metadata table is given with --data.table"
        )
    return kinds[0]
