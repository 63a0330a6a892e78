"""Which data these are, told from the names, sizes and times of the files alone."""

from __future__ import annotations

import hashlib
from collections import defaultdict

import pyarrow.fs as pafs

from wcl_ray.data.sources.base import Source
from wcl_ray.data.sources.folder import PATH, FolderSource
from wcl_ray.errors import UserError
from wcl_ray.storage import filesystem

FEW = 64  # files up to which each is asked for by itself
_KNOWN = "_fingerprint"
Info = tuple[str, int, int]  # path, size, time in ns; size -1 where there is no such file


def fingerprint(source: Source) -> str:
    """Hash of a source: its folder, its columns for id and image, and path, size and time of every
    file, those of images that the metadata table of a folder names included.

    A file that is written anew, with the same content too, is other data. A folder of many files
    costs one listing, once for an opened source.

    Returns:
        32 hexadecimal digits.

    Raises:
        OSError: the files cannot be listed.
    """
    known = vars(source).get(_KNOWN)
    if known is not None:
        return str(known)
    kind = (
        type(source).__name__,
        source.files.root,
        source.id_column,
        source.image_column,
        getattr(source, "layout", None),
        getattr(source, "members", None),
        source.files.encoding,
    )
    digest = hashlib.sha256(repr(kind).encode())
    for path, size, time in sorted(_own(source) + _elsewhere(source)):
        digest.update(f"{path}\x00{size}\x00{time}\x01".encode(errors="surrogateescape"))
    found = digest.hexdigest()[:32]
    object.__setattr__(source, _KNOWN, found)  # files are those of when the source was opened
    return found


def covers_images(source: Source) -> bool:
    """Whether a changed image changes the fingerprint. Image files that a column of Parquet files
    names are not known before all of it is read."""
    return getattr(source, "layout", None) != "path"


def _inside(source: Source) -> str:
    return source.files.root.rstrip("/") + "/"


def _named(source: Source) -> list[str]:
    """Image files that the table of an image folder names."""
    return list(source.table[PATH].to_pylist()) if isinstance(source, FolderSource) else []


def _own(source: Source) -> list[Info]:
    """Files below the folder of the source."""
    files, start = source.files, _inside(source)
    wanted = set(files.paths) | {path for path in _named(source) if path.startswith(start)}
    deep = any("/" in path[len(start) :] for path in wanted)
    found = _listed(files.fs, files.root, wanted, deep)
    return [(path[len(start) :], size, time) for path, size, time in found]


def _elsewhere(source: Source) -> list[Info]:
    """Files that a table names by URI or by an absolute path."""
    start, folders = _inside(source), defaultdict(set)
    for path in _named(source):
        if not path.startswith(start):
            folders[path.rpartition("/")[0]].add(path)
    found: list[Info] = []
    for folder, paths in folders.items():
        other = "://" in folder or folder.startswith("/")
        try:
            fs, place = (
                filesystem(folder, source.files.endpoint) if other else (source.files.fs, folder)
            )
        except UserError:  # no such scheme: faults, whatever they hold
            found += [(path, -1, 0) for path in paths]
            continue
        names = {f"{place}/{path.rpartition('/')[2]}" for path in paths}
        infos = _listed(fs, place, names, deep=False)
        found += [(f"{folder}/{path.rpartition('/')[2]}", *info) for path, *info in infos]  # type: ignore[misc]
    return found


def _listed(fs: pafs.FileSystem, root: str, wanted: set[str], deep: bool) -> list[Info]:
    """Size and time of files: one question each where they are few, else one listing."""
    if len(wanted) <= FEW:
        infos = fs.get_file_info(sorted(wanted))
    else:
        infos = fs.get_file_info(pafs.FileSelector(root, recursive=deep, allow_not_found=True))
    found = {
        info.path: (int(info.size or 0), int(info.mtime_ns or 0))
        for info in infos
        if info.type == pafs.FileType.File
    }
    return [(path, *found.get(path, (-1, 0))) for path in wanted]
