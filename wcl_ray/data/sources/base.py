"""Images with metadata from Parquet files, image folders or WebDataset shards, local or s3://.

Every format yields the same two data sets: ``metadata`` (without reading pixels if the format
allows it) and ``images`` (the encoded files). Both have ``__id`` (int64) and ``__key`` (the user's
name for the image). Opening reads only file names and the columns.
"""

from __future__ import annotations

import difflib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
from ray.data import DataContext, Dataset

from wcl_ray.config import DataConfig
from wcl_ray.data.ids import is_id_type
from wcl_ray.data.sources.listing import Files, check_exists
from wcl_ray.data.sources.match import Match
from wcl_ray.errors import UserError

T = TypeVar("T")
# Otherwise Ray Data wraps exceptions of map_batches functions, and a UserError does not reach the
# driver. Set here because every process that creates one of our data sets imports this module.
DataContext.get_current().raise_original_map_exception = True
# of the tasks, in a thread that takes up to a third of a short task's time; nothing here shows it
DataContext.get_current().memory_usage_poll_interval_s = None
# columns that a source adds to its rows; user columns with these names are ignored
ID, KEY, IMAGE, FAULT, PATH = "__id", "__key", "__image", "__fault", "__path"
POSITION = "__position"  # int64, of a training image among the sorted ids of all
RESERVED = (ID, KEY, IMAGE, FAULT, PATH, POSITION, "__test", "__bucket", "__pixels", "__aspect")
Keep = Callable[[np.ndarray], np.ndarray]  # int64 ids (N,) → bool (N,)
# Arguments of map_batches for tasks that read. With DEFAULT, Ray avoids nodes with GPUs while
# others have free CPUs; with Ray Data's default, SPREAD, it does not, and a label selector would
# never use the CPUs of GPU nodes. Ray Data plans to drop the argument in 2.64.
READ_OPTIONS: dict[str, Any] = {"batch_format": "pyarrow"}
if "ray_remote_args" in inspect.signature(Dataset.map_batches).parameters:
    READ_OPTIONS["scheduling_strategy"] = "DEFAULT"


@dataclass(frozen=True)
class FileIndex:
    """Image files that can be opened one by one, without a search.

    Attributes:
        files: where relative names start from; without the paths.
        rows: ``__id``, ``__key``, ``__path``, and ``__fault``, null unless the file cannot be read.
    """

    files: Files
    rows: pa.Table


@dataclass(frozen=True)
class Source(ABC):
    """An opened source; picklable.

    Attributes:
        files: the files that are read.
        columns: metadata columns, without the image and the id.
        image_column: name of the image column or member.
        id_column: the user's id column; None if ids are hashes of the paths.
        notes: warnings to show the user, such as files that are not read.
        match: how the joined metadata table and the images fit together, if there is one.
    """

    files: Files
    columns: tuple[str, ...]
    image_column: str
    id_column: str | None
    notes: tuple[str, ...] = field(default=(), kw_only=True)
    match: Match | None = field(default=None, kw_only=True)

    @staticmethod
    def count(files: Files) -> int:
        """Number of files of this format, judged by name; for ``data.format auto``."""
        return 0

    @staticmethod
    def open(files: Files, data: DataConfig) -> Source:
        """Open files, reading only as much as is needed to know the columns.

        Args:
            files: all files below the path. The source keeps those that it reads.

        Raises:
            UserError: the files are not of this format, hold no images, or lack a column.
        """
        raise NotImplementedError

    @property
    def uri(self) -> str:
        """The path as the user gave it."""
        return self.files.uri

    @abstractmethod
    def metadata(self, columns: Sequence[str] = ()) -> Dataset:
        """Rows of ``__id`` int64, ``__key`` string (null for integer ids), and the columns."""

    @abstractmethod
    def images(
        self,
        columns: Sequence[str] = (),
        keep: Keep | None = None,
        seed: Sequence[int] | None = None,
    ) -> Dataset:
        """Rows of ``__id``, ``__key``, ``__image`` (large_binary), ``__fault`` (string, null if
        the image could be read), and the columns.

        Args:
            keep: which images to return. Files and row groups without any are not read.
            seed: of a random order of the files, or parts of files, that tasks read; None: as they
                lie.
        """

    def file_index(self) -> FileIndex | None:
        """The images as files on a disk; None if they are not."""
        return None

    @abstractmethod
    def describe(self) -> str:
        """One line that describes the source to the user."""

    def check_columns(self, columns: Sequence[str], option: str) -> None:
        """Raise a UserError that suggests the nearest name if a column does not exist."""
        for name in columns:
            if name not in self.columns:
                near = difflib.get_close_matches(name, self.columns, n=1)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                raise UserError(
                    f"{option} {name!r} is not a column of {self.uri}{hint}; the columns are: "
                    f"{', '.join(self.columns) or '(none)'}"
                )


def kept_rows(rows: Dataset, keep: Keep | None, cpus: float = 1) -> Dataset:
    """The rows whose ids are to be kept, chosen by tasks with ``cpus`` CPUs each."""
    if keep is None:
        return rows

    def select(table: pa.Table) -> pa.Table:
        return table.filter(pa.array(keep(table[ID].to_numpy())))

    return rows.map_batches(select, batch_format="pyarrow", batch_size=None, num_cpus=cpus)


def in_random_order(parts: list[T], seed: Sequence[int] | None) -> list[T]:
    """Parts of a source, shuffled; None: as they are."""
    if seed is None:
        return parts
    return [parts[i] for i in np.random.default_rng(seed).permutation(len(parts))]


def check_paths(data: DataConfig) -> None:
    """Check that the data paths and the table exist, in this process and before Ray is started.

    Raises:
        UserError: a path does not exist, or the store cannot be reached.
    """
    for path in (data.path, data.eval_path):
        if path:
            check_exists(path, data.endpoint)
    if data.table:
        info = check_exists(data.table, data.endpoint, "data.table")[2]
        if info.type == pafs.FileType.NotFound:
            raise UserError(f"data.table {data.table} is a glob; give one file")


def id_column(data: DataConfig, schema: pa.Schema, uri: str) -> str | None:
    """The user's id column: ``data.id``, or else ``id`` if it holds integers or strings.

    Raises:
        UserError: ``data.id`` does not exist, or holds neither integers nor strings.
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
