"""Lists the files of a source: a file, a folder or a glob, local or in an object store."""

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
IMAGE_SUFFIXES += ("avif",) if features.check("avif") else ()  # if Pillow was built with them
IMAGE_SUFFIXES += ("jp2", "j2k") if features.check("jpg_2000") else ()
METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
NOT_UTF8 = "its name is not UTF-8; rename it (convmv -f latin1 -t utf8 --notest -r FOLDER)"


@dataclass(frozen=True)
class Files:
    """Files of a source: paths inside a file system, and the folder they are relative to.

    Attributes:
        unnamed: image files whose names are not UTF-8, with those bytes escaped; never opened.
        folders: names of the sub-folders that were not listed.
        encoding: of text files and members; None: by their byte order mark, else UTF-8.
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
        """The file system of the paths."""
        return filesystem(self.uri, self.endpoint)[0]

    def relative(self, path: str) -> str:
        """A path as seen from ``root``."""
        return path.removeprefix(self.root).lstrip("/")


def suffix_of(name: str) -> str:
    """Lower-case text after the last dot of a file name; empty without a dot."""
    return name.rpartition("/")[2].rpartition(".")[2].lower() if "." in name else ""


def is_image(name: str) -> bool:
    """Whether a file name has the suffix of an image."""
    return suffix_of(name) in IMAGE_SUFFIXES


def escaped(name: str) -> str:
    """A name with bytes that are not UTF-8 written as ``\\xe4``."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def list_files(uri: str, endpoint: str | None, table: str | None = None) -> Files:
    """List the files of a path: a file, a folder, or else a glob.

    Sub-folders are skipped if the folder itself holds Parquet files, shards or a metadata table;
    hidden files are always skipped.

    Args:
        table: path of a file or folder that is not listed.

    Raises:
        UserError: no such path, or the store cannot be reached.
    """
    uri, fs, info = check_exists(uri, endpoint)
    path = info.path
    table_fs, without = filesystem(resolve_input(table), endpoint) if table else (fs, "")
    without = without if table_fs.equals(fs) else ""
    with _path_errors(uri, endpoint):
        if info.type == pafs.FileType.NotFound:
            return _glob(fs, uri, endpoint, path, without)
        if info.type != pafs.FileType.Directory:
            return Files(uri, endpoint, path.rpartition("/")[0], (path,))
        names, folders = _list_folder(fs, path, False, without)
        bases = {name.rpartition("/")[2] for name in names}
        flat = bases & set(METADATA_FILES) or {suffix_of(b) for b in bases} & {"parquet", "tar"}
        if not flat and folders:
            names, folders = _list_folder(fs, path, True, without)[0], []
    if not names:
        raise UserError(f"data.path {uri}: the folder is empty")
    return _files(uri, endpoint, path, names, [f.rpartition("/")[2] for f in folders])


def check_exists(
    uri: str, endpoint: str | None, option: str = "data.path"
) -> tuple[str, pafs.FileSystem, pafs.FileInfo]:
    """Check that a file, a folder, or the folder that a glob starts from exists. Lists nothing.

    Returns:
        The path, its file system and its file info; the type of a glob's info is NotFound.

    Raises:
        UserError: no such path, or the store cannot be reached.
    """
    uri = resolve_input(uri)
    if escaped(uri) != uri:
        raise UserError(f"{option} {escaped(uri)}: {NOT_UTF8}")
    fs, path = filesystem(uri, endpoint)
    with _path_errors(uri, endpoint, option):
        info = fs.get_file_info(path)
        if info.type == pafs.FileType.NotFound and set(path) & WILDCARDS:
            _glob_root(fs, uri, endpoint, path)
        elif info.type == pafs.FileType.NotFound:
            raise UserError(f"{option} {uri}{_at(endpoint)}: there is no such file or folder")
    return uri, fs, info


@contextmanager
def _path_errors(uri: str, endpoint: str | None, option: str = "data.path") -> Iterator[None]:
    """Turn errors of the file system into a UserError that names the path."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError) as error:  # pyarrow rejects some paths with ArrowInvalid
        text = f"{option} {uri}{_at(endpoint)} cannot be read: {str(error)[:300]}"
        raise UserError(text) from error


def _at(endpoint: str | None) -> str:
    return f" at {endpoint}" if endpoint else ""


def _files(
    uri: str, endpoint: str | None, root: str, names: list[str], folders: list[str]
) -> Files:
    """Files, with names that are not UTF-8 set apart: pyarrow cannot open them.

    Raises:
        UserError: a Parquet file, a shard or a metadata table has such a name.
    """
    unnamed = [escaped(name) for name in names if escaped(name) != name]
    for name in unnamed:
        if suffix_of(name) in ("parquet", "tar") or name.rpartition("/")[2] in METADATA_FILES:
            raise UserError(f"{name}: {NOT_UTF8}")
    good = tuple(sorted(name for name in names if escaped(name) == name))
    images = tuple(sorted(filter(is_image, unnamed)))
    return Files(uri, endpoint, root, good, images, tuple(sorted(map(escaped, folders))))


def _list_folder(
    fs: pafs.FileSystem, root: str, deep: bool, without: str
) -> tuple[list[str], list[str]]:
    """Paths of the visible files and sub-folders of a folder; ``deep``: at any depth; ``without``:
    except for this file or folder."""
    if isinstance(fs, pafs.LocalFileSystem):
        files, folders = _walk(root, deep, ())
    else:
        infos = fs.get_file_info(pafs.FileSelector(root, recursive=deep))
        files = [info.path for info in infos if info.type == pafs.FileType.File]
        folders = [info.path for info in infos if info.type == pafs.FileType.Directory]
    visible = _visible_below(root, without)
    return list(filter(visible, files)), list(filter(visible, folders))


def _walk(
    folder: str, deep: bool, ancestors: tuple[tuple[int, int], ...]
) -> tuple[list[str], list[str]]:
    """Files and folders of a local folder. pyarrow's listing stops at the first name that is not
    UTF-8, and follows a link to an ancestor forty times.

    Args:
        ancestors: device and inode of the folders that contain this one.
    """
    status = os.stat(folder)
    inode = (status.st_dev, status.st_ino)
    if inode in ancestors:
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
                files.append(entry.path)  # a dangling link to an image becomes a fault
    for path in list(folders) if deep else []:
        if not path.rpartition("/")[2].startswith("."):
            inner_files, inner_folders = _walk(path, deep, (*ancestors, inode))
            files += inner_files
            folders += inner_folders
    return files, folders


def _visible_below(root: str, without: str) -> Callable[[str], bool]:
    """Predicate that rejects one file or folder, hidden files and markers such as ``_SUCCESS``, but
    not images whose names start with an underscore: some cameras write those."""

    def visible(path: str) -> bool:
        parts = path.removeprefix(root).lstrip("/").split("/")
        hidden = any(part.startswith(".") for part in parts)
        hidden |= bool(without) and f"{path}/".startswith(f"{without}/")
        return not hidden and (is_image(path) or not any(part.startswith("_") for part in parts))

    return visible


def _glob_root(
    fs: pafs.FileSystem, uri: str, endpoint: str | None, pattern: str
) -> tuple[str, list[str]]:
    """The folder that a glob starts from, and the path components that follow."""
    parts = pattern.split("/")
    wild = next(  # first component that is not an existing folder, such as "photos [2019]"
        i
        for i, part in enumerate(parts)
        if set(part) & WILDCARDS
        and fs.get_file_info("/".join(parts[: i + 1])).type == pafs.FileType.NotFound
    )
    root, rest = "/".join(parts[:wild]), parts[wild:]
    if fs.get_file_info(root or "/").type == pafs.FileType.NotFound:
        raise UserError(f"data.path {uri}{_at(endpoint)}: there is no folder {root}")
    return root, rest


def _glob(fs: pafs.FileSystem, uri: str, endpoint: str | None, pattern: str, without: str) -> Files:
    root, rest = _glob_root(fs, uri, endpoint, pattern)
    names, folders = _list_folder(fs, root or "/", len(rest) > 1, without)
    matching = [n for n in names if _matches(n.removeprefix(root).lstrip("/"), rest)]
    if not matching:
        folders_match = any(_matches(f.removeprefix(root).lstrip("/"), rest) for f in folders)
        hint = f", only folders do; {uri.rstrip('/')}/* gives their files" if folders_match else ""
        raise UserError(f"data.path {uri}: no file matches{hint}")
    return _files(uri, endpoint, root, matching, [])


def _matches(path: str, patterns: list[str]) -> bool:
    parts = path.split("/")
    if "**" in patterns:
        return fnmatch.fnmatchcase(path, "/".join(patterns))
    return len(parts) == len(patterns) and all(map(fnmatch.fnmatchcase, parts, patterns))
