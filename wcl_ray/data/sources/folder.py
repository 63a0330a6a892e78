"""Image folders: with a metadata table (``file_name``), or one sub-folder per class.

Follows the ImageFolder convention of Hugging Face: ``metadata.csv``, ``.jsonl`` or ``.parquet``
lies beside the images or above them, and ``file_name`` is relative to it. Only the images that it
names are read. Other tables are joined in :mod:`wcl_ray.data.sources.joined`. Without such a table
an image's label is the first folder below the root; images directly in the root have no label.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import ray
from ray.data import Dataset

from wcl_ray.config import DataConfig
from wcl_ray.data.ids import hash_strings, ids_of
from wcl_ray.data.sources.base import (
    FAULT,
    ID,
    IMAGE,
    KEY,
    PATH,
    READ_OPTIONS,
    FileIndex,
    Keep,
    Source,
    id_column,
    in_random_order,
)
from wcl_ray.data.sources.files import FILES_AT_ONCE, read_files
from wcl_ray.data.sources.leftover import folder_of, splits_of
from wcl_ray.data.sources.listing import METADATA_FILES, NOT_UTF8, Files, is_image
from wcl_ray.data.sources.table_files import open_table, plain_table
from wcl_ray.data.sources.tables import NAME, common_type
from wcl_ray.errors import UserError, reading
from wcl_ray.registry import FORMATS

TASK_FILES = 256  # image files that a task opens, at least
LABEL = "label"


@FORMATS.add("folder")
@dataclass(frozen=True)
class FolderSource(Source):
    """Image files listed in a table with one row per image: its path, the reason why it cannot be
    opened (or null), and its metadata. See :class:`Source`."""

    table: pa.Table = None

    def describe(self) -> str:
        table = self.image_column == NAME or self.match is not None
        origin = "metadata table" if table else "class sub-folders"
        origin = origin if self.columns else "no metadata"
        return f"{self.uri}: {self.table.num_rows:,} image files, {origin}"

    @staticmethod
    def count(files: Files) -> int:
        metadata = sum(p.rpartition("/")[2] in METADATA_FILES for p in files.paths)
        return sum(map(is_image, files.paths)) or metadata or len(files.unnamed)

    @staticmethod
    def open(files: Files, data: DataConfig) -> FolderSource:
        """Open an image folder.

        Raises:
            UserError: no image, a metadata table without ``file_name``, a missing column, or
                folders named train and test used as the label.
        """
        tables = [p for p in files.paths if p.rpartition("/")[2] in METADATA_FILES]
        if tables:
            # text, since whether a label 1.10 is a number must not depend on the other labels
            label = frozenset([data.label]) if data.label else frozenset()
            only_csv = all(path.endswith(".csv") for path in tables)
            table = _read_tables(files, tables, label if only_csv else frozenset())
            key = id_column(data, table.schema, tables[0])
            names = tuple(n for n in table.column_names if n not in (PATH, FAULT, NAME, key))
            return FolderSource(files, names, NAME, key, table=table)
        images = [path for path in files.paths if is_image(path)]
        paths = [*images, *files.unnamed]
        if not paths:
            raise UserError(f"data.path {files.uri} holds no image files")
        faults = [None] * len(images) + [NOT_UTF8] * len(files.unnamed)
        table = pa.table({PATH: paths, FAULT: pa.array(faults, pa.string())})
        relative = [files.relative(path) for path in paths]
        if not any("/" in name for name in relative):
            return FolderSource(files, (), "", None, table=table)
        labels = [name.split("/")[0] if "/" in name else None for name in relative]
        splits = splits_of(name for name in relative if "/" in name)
        if splits and data.label == LABEL:
            uri = folder_of(files)
            raise UserError(
                f"data.path {uri}: the folders {', '.join(splits)} are splits of a data set, not "
                f"classes; use --data.path {uri}/{splits[0]} --data.eval-path {uri}/{splits[-1]}"
            )
        if splits and set(labels) <= {*(split.split("/")[0] for split in splits), None}:
            return FolderSource(files, (), "", None, table=table)
        table = table.append_column(LABEL, [labels])
        return FolderSource(files, (LABEL,), "", None, table=table)

    def metadata(self, columns: Sequence[str] = ()) -> Dataset:
        return ray.data.from_arrow(self.parts(columns, images=False))

    def images(
        self,
        columns: Sequence[str] = (),
        keep: Keep | None = None,
        seed: Sequence[int] | None = None,
    ) -> Dataset:
        files = replace(self.files, paths=(), unnamed=())  # rows carry their paths
        parts = in_random_order(self.parts(columns, images=True, keep=keep), seed)
        rows = ray.data.from_arrow(parts)
        return rows.map_batches(
            _read, batch_size=TASK_FILES, fn_kwargs={"files": files}, **READ_OPTIONS
        )

    def file_index(self) -> FileIndex | None:
        paths = self.table[PATH]
        remote = pc.any(pc.match_substring(paths, "://")).as_py()
        if remote or not isinstance(self.files.fs, pafs.LocalFileSystem):
            return None
        files = replace(self.files, paths=(), unnamed=())
        return FileIndex(files, self._rows((), images=True).combine_chunks())

    def parts(
        self, columns: Sequence[str], images: bool, keep: Keep | None = None
    ) -> list[pa.Table]:
        """One table per task, of the images to ``keep``; ``images``: with paths and faults."""
        rows = self._rows(columns, images)
        if keep is not None:
            rows = rows.filter(pa.array(keep(rows[ID].to_numpy())))
        step = max(TASK_FILES, len(rows) // 1000)
        return [rows.slice(start, step) for start in range(0, len(rows) or 1, step)]

    def _rows(self, columns: Sequence[str], images: bool) -> pa.Table:
        table = self.table
        if self.id_column:
            ids, keys = ids_of(table[self.id_column], self.id_column, self.uri)
        else:
            names = [self.files.relative(path) for path in table[PATH].to_pylist()]
            ids, keys = pa.array(hash_strings(names)), pa.array(names, pa.string())
        wanted = [*([PATH, FAULT] if images else []), *columns]
        return pa.table({ID: ids, KEY: keys} | {name: table[name] for name in wanted})


def _read(table: pa.Table, files: Files) -> Iterator[pa.Table]:
    for start in range(0, len(table), FILES_AT_ONCE):
        rows = table.slice(start, FILES_AT_ONCE)
        known_faults = rows[FAULT].combine_chunks()
        paths = pc.if_else(known_faults.is_valid(), pa.scalar(None, pa.string()), rows[PATH])
        image, fault = read_files(paths.to_pylist(), files, "")
        rows = rows.drop_columns([PATH, FAULT]).append_column(IMAGE, image)
        yield rows.append_column(FAULT, pc.coalesce(known_faults, fault))


def _read_tables(files: Files, paths: list[str], texts: frozenset[str]) -> pa.Table:
    """The rows of all metadata tables; ``texts``: columns of CSV files to read as text."""
    tables = {path: _read_table(files, path, texts) for path in paths}
    conflicts = set[str]()
    for name in dict.fromkeys(name for table in tables.values() for name in table.column_names):
        types = {p: t.schema.field(name).type for p, t in tables.items() if name in t.column_names}
        if common_type(list(types.values())) is not None:
            continue
        # types in a CSV file are guesses from its values: text instead may resolve the conflict
        declared = [kind for path, kind in types.items() if not path.endswith(".csv")]
        if common_type([pa.string(), *declared]) is None:
            first = next(iter(types))
            other = next(p for p in types if common_type([types[first], types[p]]) is None)
            raise UserError(
                f"{other}: column {name!r} is of type {types[other]}, but {types[first]} in "
                f"{first}; use the same type in both"
            )
        conflicts.add(name)
    for path in paths if conflicts else ():
        if path.endswith(".csv"):
            tables[path] = _read_table(files, path, texts | conflicts)
    with reading(files.uri):
        return pa.concat_tables(tables.values(), promote_options="permissive").combine_chunks()


def _read_table(files: Files, path: str, texts: frozenset[str]) -> pa.Table:
    """One metadata table, with the paths of its images."""
    folder = path.rpartition("/")[0]
    table = plain_table(open_table(files.fs, path, path, files.encoding, texts), path)
    if NAME not in table.column_names:
        raise UserError(
            f"{path} has no column {NAME!r} with the image of each row; add it, or give this file "
            f"as --data.table; the columns are: {', '.join(table.column_names)}"
        )
    names = table[NAME].to_pylist()
    if None in names:
        raise UserError(f"{path}: {NAME} is empty in row {names.index(None)}")
    if not names:
        raise UserError(f"{path} holds no rows")
    paths = [
        str(name)
        if "://" in str(name) or str(name).startswith("/")
        else f"{folder}/{posixpath.normpath(str(name))}"  # ./a.png is a.png
        for name in names
    ]
    table = table.drop_columns([name for name in (PATH, FAULT) if name in table.column_names])
    table = table.append_column(PATH, pa.array(paths, pa.string()))
    return table.append_column(FAULT, pa.nulls(len(paths), pa.string()))
