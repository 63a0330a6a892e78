"""Images with metadata from Parquet files, image folders or WebDataset shards, local or s3://.

Whatever the format, a source gives the same two streams of rows: ``metadata`` (no pixels are read
where the format allows it) and ``images`` (the encoded files). Both carry ``__id`` (int64) and
``__key`` (the user's own name of the image). Nothing but names and one footer is read on opening.
"""

from __future__ import annotations

import difflib
import fnmatch
import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
from ray.data import Dataset

from wcl_ray.config import DataConfig
from wcl_ray.data.ids import is_id_type
from wcl_ray.errors import UserError
from wcl_ray.storage import filesystem, found

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
# columns of the rows that a source gives; the user's own names are never these
ID, KEY, IMAGE, FAULT = "__id", "__key", "__image", "__fault"
# How tasks that read are placed: with this strategy Ray passes over nodes with GPUs as long as
# others have CPUs to spare; with Ray Data's own, SPREAD, it does not, and a label selector would
# leave the CPUs of GPU nodes idle for good. Ray Data means to take no strategy from 2.64 on.
READING: dict[str, Any] = {"batch_format": "pyarrow"}
if "ray_remote_args" in inspect.signature(Dataset.map_batches).parameters:
    READING["scheduling_strategy"] = "DEFAULT"


@dataclass(frozen=True)
class Files:
    """Files of a source: paths inside a file system, and the folder they are relative to."""

    uri: str
    endpoint: str | None
    root: str
    paths: tuple[str, ...]

    @property
    def fs(self) -> pafs.FileSystem:
        return filesystem(self.uri, self.endpoint)[0]

    def relative(self, path: str) -> str:
        return path.removeprefix(self.root).lstrip("/")


@dataclass(frozen=True)
class Source(ABC):
    """An opened source; picklable.

    Attributes:
        columns: metadata columns, without the image and the id.
        image_column: name of the image column or member.
        id_column: the user's id column, or None for a hash of the path.
    """

    files: Files
    columns: tuple[str, ...]
    image_column: str
    id_column: str | None

    @property
    def uri(self) -> str:
        return self.files.uri

    @abstractmethod
    def metadata(self, columns: Sequence[str] = ()) -> Dataset:
        """Rows ``__id`` int64, ``__key`` string (null for the user's integer ids), and columns."""

    @abstractmethod
    def images(self, columns: Sequence[str] = ()) -> Dataset:
        """Rows ``__id``, ``__key``, ``__image`` (large_binary), ``__fault`` or null, columns."""

    @abstractmethod
    def describe(self) -> str:
        """One line for people."""

    def check_columns(self, columns: Sequence[str], option: str) -> None:
        """Raise a UserError that names the nearest columns when one is not there."""
        for name in columns:
            if name not in self.columns:
                near = difflib.get_close_matches(name, self.columns, n=1)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                raise UserError(
                    f"{option} {name!r} is not a column of {self.uri}{hint}; the columns are: "
                    f"{', '.join(self.columns) or '(none)'}"
                )


def open_source(data: DataConfig, path: str | None = None) -> Source:
    """Open the images of a configuration.

    Args:
        path: instead of ``data.path``.

    Raises:
        UserError: nothing there, no images, an unclear mixture, a column that is missing.
    """
    from wcl_ray.data import source_folder, source_parquet, source_webdataset

    uri = path or data.path
    if not uri:
        raise UserError("data.path is not given")
    files = list_files(uri, data.endpoint)
    kind = data.format if data.format != "auto" else _format(files)
    module = {
        "parquet": source_parquet,
        "folder": source_folder,
        "webdataset": source_webdataset,
    }[kind]
    source: Source = module.open_files(files, data)  # type: ignore[attr-defined]
    if data.id is not None and source.id_column is None:
        raise UserError(f"data.id {data.id!r}: {kind} data without metadata has no id column")
    return source


def id_column(data: DataConfig, schema: pa.Schema, uri: str) -> str | None:
    """The user's id column: the given one, else one called ``id`` (integers or strings).

    Raises:
        UserError: the given one is not there, or is neither integers nor strings.
    """
    if data.id is not None:
        if data.id not in schema.names:
            raise UserError(
                f"data.id {data.id!r} is not a column of {uri}; the columns are: "
                f"{', '.join(schema.names) or '(none)'}"
            )
        kind = schema.field(data.id).type
        if not is_id_type(kind):
            raise UserError(
                f"data.id {data.id!r} of {uri} is of type {kind}; ids are integers or strings"
            )
        return data.id
    return "id" if "id" in schema.names and is_id_type(schema.field("id").type) else None


def list_files(uri: str, endpoint: str | None) -> Files:
    """Names of the files of a path: one file, a glob, or a folder. Sub-folders are left out when
    the folder itself holds Parquet files, shards or a metadata table; hidden files always are.

    Raises:
        UserError: nothing there, or the store cannot be reached.
    """
    uri = found(uri)
    fs, path = filesystem(uri, endpoint)
    where = f" at {endpoint}" if endpoint else ""
    try:
        if set(path) & set("*?["):
            return _glob(fs, uri, endpoint, path)
        info = fs.get_file_info(path)
        if info.type == pafs.FileType.File:
            return Files(uri, endpoint, path.rpartition("/")[0], (path,))
        if info.type == pafs.FileType.NotFound:
            raise UserError(f"data.path {uri}{where}: there is no such file or folder")
        infos = fs.get_file_info(pafs.FileSelector(path))
        names = _visible(infos, path)
        bases = {name.rpartition("/")[2] for name in names}
        whole = bases & set(METADATA_FILES) or {_suffix(b) for b in bases} & {"parquet", "tar"}
        if not whole and any(info.type == pafs.FileType.Directory for info in infos):
            names = _visible(fs.get_file_info(pafs.FileSelector(path, recursive=True)), path)
    except OSError as error:
        raise UserError(f"data.path {uri}{where} cannot be read: {str(error)[:300]}") from error
    if not names:
        raise UserError(f"data.path {uri}: the folder is empty")
    return Files(uri, endpoint, path, tuple(names))


def _visible(infos: list[pafs.FileInfo], root: str) -> list[str]:
    """Sorted paths of the files, without hidden ones and the markers of writers (``_SUCCESS``);
    cameras write images whose names begin with an underscore, these stay."""

    def keep(path: str) -> bool:
        parts = path.removeprefix(root).lstrip("/").split("/")
        hidden = any(part.startswith(".") for part in parts)
        return not hidden and (is_image(path) or not any(part.startswith("_") for part in parts))

    return sorted(i.path for i in infos if i.type == pafs.FileType.File and keep(i.path))


def _glob(fs: pafs.FileSystem, uri: str, endpoint: str | None, pattern: str) -> Files:
    parts = pattern.split("/")
    wild = next(i for i, part in enumerate(parts) if set(part) & set("*?["))
    root = "/".join(parts[:wild])
    deep = wild < len(parts) - 1
    if fs.get_file_info(root).type == pafs.FileType.NotFound:
        where = f" at {endpoint}" if endpoint else ""
        raise UserError(f"data.path {uri}{where}: there is no folder {root}")
    infos = fs.get_file_info(pafs.FileSelector(root, recursive=deep))
    names = [n for n in _visible(infos, root) if _matches(n, pattern)]
    if not names:
        raise UserError(f"data.path {uri}: no file matches")
    return Files(uri, endpoint, root, tuple(names))


def _matches(name: str, pattern: str) -> bool:
    have, want = name.split("/"), pattern.split("/")
    if "**" in want:
        return fnmatch.fnmatch(name, pattern)
    return len(have) == len(want) and all(map(fnmatch.fnmatch, have, want))


def _suffix(name: str) -> str:
    return name.rpartition("/")[2].rpartition(".")[2].lower()


def is_image(name: str) -> bool:
    """Whether a file name is that of an image."""
    return _suffix(name) in IMAGE_SUFFIXES


def _format(files: Files) -> str:
    metadata = [p for p in files.paths if p.rpartition("/")[2] in METADATA_FILES]
    counts = {
        "parquet": sum(_suffix(p) == "parquet" for p in files.paths if p not in metadata),
        "webdataset": sum(_suffix(p) == "tar" for p in files.paths),
        "folder": sum(map(is_image, files.paths)) or len(metadata),
    }
    found = [kind for kind, count in counts.items() if count]
    if not found:
        some = ", ".join(files.relative(p) for p in files.paths[:3])
        packed = any(p.lower().endswith((".tar.gz", ".tgz", ".tar.zst")) for p in files.paths)
        hint = "; compressed shards cannot be read, unpack them to plain .tar" if packed else ""
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
