"""Where images come from. A new format is a module with a :class:`Source` under
``@FORMATS.add("NAME")``."""

from __future__ import annotations

from dataclasses import replace

from wcl_ray.config import DataConfig
from wcl_ray.data.sources.base import OURS, Source
from wcl_ray.data.sources.leftover import PICTURES, left_out, split_note
from wcl_ray.data.sources.listing import Files, is_image, list_files, suffix_of
from wcl_ray.errors import UserError
from wcl_ray.registry import FORMATS


def open_source(data: DataConfig, path: str | None = None) -> Source:
    """Open the images of a configuration.

    Args:
        path: instead of ``data.path``.

    Raises:
        UserError: nothing there, no images, an unclear mixture, a column that is missing.
    """
    uri = path or data.path
    if not uri:
        raise UserError("data.path is not given")
    files = replace(list_files(uri, data.endpoint), encoding=data.encoding)
    kind = data.format if data.format != "auto" else _format(files)
    source: Source = FORMATS.get(kind).open(files, data)
    if data.id is not None and source.id_column is None:
        raise UserError(f"data.id {data.id!r}: {kind} data without metadata has no id column")
    named = source.table["__path"].to_pylist() if source.image_column == "file_name" else None  # type: ignore[attr-defined]
    read = named or [path for path in source.files.paths if kind != "folder" or is_image(path)]
    notes = [
        left_out(files, source.files, kind, named),
        split_note(files, read, kind),
        *source.notes,
    ]
    taken = [name for name in source.columns if name in OURS]
    if taken:
        notes.append(f"left out: column {taken[0]!r}, a name that wcl_ray uses itself; rename it")
    columns = tuple(name for name in source.columns if name not in OURS)
    return replace(source, columns=columns, notes=tuple(filter(None, notes)))


def _format(files: Files) -> str:
    counts = {name: FORMATS.get(name).count(files) for name in FORMATS.names()}
    found = [kind for kind, count in counts.items() if count]
    if not found:
        some = ", ".join(files.relative(p) for p in files.paths[:3])
        packed = any(p.lower().endswith((".tar.gz", ".tgz", ".tar.zst")) for p in files.paths)
        hint = "; compressed shards cannot be read, unpack them to plain .tar" if packed else ""
        pictures = sorted({suffix_of(p) for p in files.paths} & set(PICTURES))
        if pictures:
            hint = f"; .{' and .'.join(pictures)} cannot be read, convert them to JPEG or PNG"
        raise UserError(
            f"data.path {files.uri} holds no Parquet files, images or .tar shards "
            f"({len(files.paths)} other files: {some} …){hint}"
        )
    if len(found) > 1:
        text = ", ".join(f"{counts[kind]} for {kind}" for kind in found)
        raise UserError(
            f"data.path {files.uri} holds files of several formats ({text}); choose with "
            "--data.format or give a glob"
        )
    return found[0]
