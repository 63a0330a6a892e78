"""Names of the files of a source: a file, a folder or a glob, local or in an object store."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow.fs as pafs
from PIL import features

from wcl_ray.errors import UserError
from wcl_ray.storage import WILDCARDS, filesystem, resolve_input

IMAGE_SUFFIXES: tuple[str, ...] = ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif")
IMAGE_SUFFIXES += ("tif", "tiff", "ppm", "pgm", "pbm", "pnm")
IMAGE_SUFFIXES += ("avif",) if features.check("avif") else ()  # where Pillow was built with them
IMAGE_SUFFIXES += ("jp2", "j2k") if features.check("jpg_2000") else ()
METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
NOT_UTF8 = "its name is not UTF-8; rename it (convmv -f latin1 -t utf8 --notest -r FOLDER)"


@dataclass(frozen=True)
class Files:
    """Files of a source: paths inside a file system, and the folder they are relative to.

    Attributes:
        unnamed: image files whose names are not UTF-8, with such bytes escaped; never opened.
        folders: names of the sub-folders that were not looked into.
        encoding: of text files and members; told from their bytes when None.
    """

    uri: str
    endpoint: str | None
    root: str
    paths: tuple[str, ...]
    unnamed: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    encoding: str | None = None

    @property
    def fs(self) -> pafs.FileSystem:
        return filesystem(self.uri, self.endpoint)[0]

    def relative(self, path: str) -> str:
        return path.removeprefix(self.root).lstrip("/")


def suffix_of(name: str) -> str:
    """What follows the last dot of a file's name, in lower case; empty without a dot."""
    return name.rpartition("/")[2].rpartition(".")[2].lower() if "." in name else ""


def is_image(name: str) -> bool:
    """Whether a file name is that of an image."""
    return suffix_of(name) in IMAGE_SUFFIXES


def escaped(name: str) -> str:
    """A name with the bytes that are not UTF-8 as ``\\xe4``."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def list_files(uri: str, endpoint: str | None) -> Files:
    """Names of the files of a path: one file, a folder, or a glob where no file or folder has that
    very name. Sub-folders are left out when the folder itself holds Parquet files, shards or a
    metadata table; hidden files always are.

    Raises:
        UserError: nothing there, or the store cannot be reached.
    """
    uri, fs, info = check_there(uri, endpoint)
    path = info.path
    with _read(uri, endpoint):
        if info.type == pafs.FileType.NotFound:
            return _glob(fs, uri, endpoint, path)
        if info.type != pafs.FileType.Directory:
            return Files(uri, endpoint, path.rpartition("/")[0], (path,))
        names, folders = _listed(fs, path, deep=False)
        bases = {name.rpartition("/")[2] for name in names}
        whole = bases & set(METADATA_FILES) or {suffix_of(b) for b in bases} & {"parquet", "tar"}
        if not whole and folders:
            names, folders = _listed(fs, path, deep=True)[0], []
    if not names:
        raise UserError(f"data.path {uri}: the folder is empty")
    return _files(uri, endpoint, path, names, [f.rpartition("/")[2] for f in folders])


def check_there(uri: str, endpoint: str | None) -> tuple[str, pafs.FileSystem, pafs.FileInfo]:
    """Find out whether there is such a file or folder, or the folder that a glob begins with; no
    folder is listed.

    Returns:
        The path, its file system, and what is there: NotFound for a glob.

    Raises:
        UserError: nothing there, or the store cannot be reached.
    """
    uri = resolve_input(uri)
    if escaped(uri) != uri:
        raise UserError(f"data.path {escaped(uri)}: {NOT_UTF8}")
    fs, path = filesystem(uri, endpoint)
    with _read(uri, endpoint):
        info = fs.get_file_info(path)
        if info.type == pafs.FileType.NotFound and set(path) & WILDCARDS:
            _root(fs, uri, endpoint, path)
        elif info.type == pafs.FileType.NotFound:
            raise UserError(f"data.path {uri}{_at(endpoint)}: there is no such file or folder")
    return uri, fs, info


@contextmanager
def _read(uri: str, endpoint: str | None) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError) as error:  # pyarrow refuses some paths by an ArrowInvalid
        text = f"data.path {uri}{_at(endpoint)} cannot be read: {str(error)[:300]}"
        raise UserError(text) from error


def _at(endpoint: str | None) -> str:
    return f" at {endpoint}" if endpoint else ""


def _files(
    uri: str, endpoint: str | None, root: str, names: list[str], folders: list[str]
) -> Files:
    """Names apart that are not UTF-8: pyarrow cannot open them, so images are faults.

    Raises:
        UserError: such a name of a Parquet file, a shard or a metadata table.
    """
    unnamed = [escaped(name) for name in names if escaped(name) != name]
    for name in unnamed:
        if suffix_of(name) in ("parquet", "tar") or name.rpartition("/")[2] in METADATA_FILES:
            raise UserError(f"{name}: {NOT_UTF8}")
    good = tuple(sorted(name for name in names if escaped(name) == name))
    images = tuple(sorted(filter(is_image, unnamed)))
    return Files(uri, endpoint, root, good, images, tuple(sorted(map(escaped, folders))))


def _listed(fs: pafs.FileSystem, root: str, deep: bool) -> tuple[list[str], list[str]]:
    """Paths of the visible files below a folder, and of its visible sub-folders."""
    if isinstance(fs, pafs.LocalFileSystem):
        files, folders = _walk(root, deep, ())
    else:
        infos = fs.get_file_info(pafs.FileSelector(root, recursive=deep))
        files = [info.path for info in infos if info.type == pafs.FileType.File]
        folders = [info.path for info in infos if info.type == pafs.FileType.Directory]
    keep = _visible(root)
    return list(filter(keep, files)), list(filter(keep, folders))


def _walk(
    folder: str, deep: bool, above: tuple[tuple[int, int], ...]
) -> tuple[list[str], list[str]]:
    """Files and folders of a local folder. By hand, since pyarrow's listing ends at the first name
    that is not UTF-8 and goes round a link to a folder above forty times.

    Args:
        above: device and inode of the folders that hold this one.
    """
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:
        return [], []
    files, folders = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                is_folder, is_file = entry.is_dir(), entry.is_file()
            except OSError:  # a link to itself
                is_folder = is_file = False
            if is_folder:
                folders.append(entry.path)
            elif is_file or (entry.is_symlink() and is_image(entry.name)):
                files.append(entry.path)  # a dangling link is an image that is missing
    for name in list(folders) if deep else []:
        if not name.rpartition("/")[2].startswith("."):
            below = _walk(name, deep, (*above, here))
            files += below[0]
            folders += below[1]
    return files, folders


def _visible(root: str) -> Callable[[str], bool]:
    """Tells hidden files and the markers of writers (``_SUCCESS``); cameras write images whose
    names begin with an underscore, these stay."""

    def keep(path: str) -> bool:
        parts = path.removeprefix(root).lstrip("/").split("/")
        hidden = any(part.startswith(".") for part in parts)
        return not hidden and (is_image(path) or not any(part.startswith("_") for part in parts))

    return keep


def _root(
    fs: pafs.FileSystem, uri: str, endpoint: str | None, pattern: str
) -> tuple[str, list[str]]:
    """The folder that a glob begins with, and the parts that follow."""
    parts = pattern.split("/")
    wild = next(  # the first part that names no folder: one may be called "photos [2019]"
        i
        for i, part in enumerate(parts)
        if set(part) & WILDCARDS
        and fs.get_file_info("/".join(parts[: i + 1])).type == pafs.FileType.NotFound
    )
    root, rest = "/".join(parts[:wild]), parts[wild:]
    if fs.get_file_info(root or "/").type == pafs.FileType.NotFound:
        raise UserError(f"data.path {uri}{_at(endpoint)}: there is no folder {root}")
    return root, rest


def _glob(fs: pafs.FileSystem, uri: str, endpoint: str | None, pattern: str) -> Files:
    root, rest = _root(fs, uri, endpoint, pattern)
    names, folders = _listed(fs, root or "/", deep=len(rest) > 1)
    inside = [n for n in names if _matches(n.removeprefix(root).lstrip("/"), rest)]
    if not inside:
        some = [f for f in folders if _matches(f.removeprefix(root).lstrip("/"), rest)]
        hint = f", only folders do; {uri.rstrip('/')}/* takes their files" if some else ""
        raise UserError(f"data.path {uri}: no file matches{hint}")
    return _files(uri, endpoint, root, inside, [])


def _matches(name: str, want: list[str]) -> bool:
    have = name.split("/")
    if "**" in want:
        return fnmatch.fnmatchcase(name, "/".join(want))
    return len(have) == len(want) and all(map(fnmatch.fnmatchcase, have, want))
