"""Images with metadata from Parquet files, image folders or WebDataset shards, local or s3://.

Whatever the format, a source gives the same two streams of rows: ``metadata`` (no pixels are read
where the format allows it) and ``images`` (the encoded files). Both carry ``__id`` (int64) and
``__key`` (the user's own name of the image). Nothing but names and one footer is read on opening.
"""

from __future__ import annotations

import difflib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from ray.data import DataContext, Dataset

from wcl_ray.config import DataConfig
from wcl_ray.data.ids import is_id_type
from wcl_ray.data.sources.listing import Files, check_there
from wcl_ray.errors import UserError

# Else Ray Data wraps what a plain function of map_batches raises, and a UserError is lost on its
# way to the driver. Here, since every process that makes a data set of ours imports this module.
DataContext.get_current().raise_original_map_exception = True
# columns of the rows that a source gives; the user's own names are never these
ID, KEY, IMAGE, FAULT = "__id", "__key", "__image", "__fault"
OURS = (ID, KEY, IMAGE, FAULT, "__path", "__test", "__bucket", "__pixels", "__aspect")
# How tasks that read are placed: with this strategy Ray passes over nodes with GPUs as long as
# others have CPUs to spare; with Ray Data's own, SPREAD, it does not, and a label selector would
# leave the CPUs of GPU nodes idle for good. Ray Data means to take no strategy from 2.64 on.
READING: dict[str, Any] = {"batch_format": "pyarrow"}
if "ray_remote_args" in inspect.signature(Dataset.map_batches).parameters:
    READING["scheduling_strategy"] = "DEFAULT"


@dataclass(frozen=True)
class Source(ABC):
    """An opened source; picklable.

    Attributes:
        columns: metadata columns, without the image and the id.
        image_column: name of the image column or member.
        id_column: the user's id column, or None for a hash of the path.
        notes: warnings for people: what there is that is not read.
    """

    files: Files
    columns: tuple[str, ...]
    image_column: str
    id_column: str | None
    notes: tuple[str, ...] = field(default=(), kw_only=True)

    @staticmethod
    def count(files: Files) -> int:
        """How many of the files are of this format, by their names; for ``data.format auto``."""
        return 0

    @staticmethod
    def open(files: Files, data: DataConfig) -> Source:
        """Open files: no more is read than tells the columns.

        Args:
            files: all below the path. The source has those of them that it reads.

        Raises:
            UserError: they are not of this format, hold no images, or lack a column.
        """
        raise NotImplementedError

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


def check_paths(data: DataConfig) -> None:
    """Find out whether the images are there, before Ray is started: this process lists them.

    Raises:
        UserError: nothing there, or the store cannot be reached.
    """
    for path in (data.path, data.eval_path):
        if path:
            check_there(path, data.endpoint)


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
