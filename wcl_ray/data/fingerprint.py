"""Which data these are, told from the names, sizes and times of the files alone."""

from __future__ import annotations

import hashlib

import pyarrow.fs as pafs

from wcl_ray.data.source import Files, Source

FEW = 64  # files up to which each is asked for by itself


def fingerprint(source: Source) -> str:
    """Hash of a source: its columns for id and image, and path, size and time of every file.

    A file that is written anew, with the same content too, is other data. A folder of many files
    costs one listing.

    Returns:
        32 hexadecimal digits.
    """
    kind = type(source).__name__
    digest = hashlib.sha256(repr((kind, source.id_column, source.image_column)).encode())
    for path, size, time in sorted(_infos(source.files)):
        digest.update(f"{path}\x00{size}\x00{time}\x01".encode())
    return digest.hexdigest()[:32]


def _infos(files: Files) -> list[tuple[str, int, int]]:
    fs, wanted = files.fs, set(files.paths)
    if len(wanted) <= FEW:
        infos = fs.get_file_info(sorted(wanted))
    else:
        deep = any("/" in files.relative(path) for path in wanted)
        infos = fs.get_file_info(pafs.FileSelector(files.root, recursive=deep))
    return [
        (files.relative(info.path), int(info.size or 0), int(info.mtime_ns or 0))
        for info in infos
        if info.path in wanted
    ]
