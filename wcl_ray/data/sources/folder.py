"""Image folders: with a metadata table (``file_name``), or one sub-folder a class.

Follows the ImageFolder convention of Hugging Face: ``metadata.csv``, ``.jsonl`` or ``.parquet``
lies beside the images or above them, and ``file_name`` is relative to it. Without such a table an
image's label is the first folder below the root; images of the root itself then have none.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from ray.data import Dataset

from wcl_ray.config import DataConfig
from wcl_ray.data.ids import hash_strings, ids_of
from wcl_ray.data.sources.base import FAULT, ID, IMAGE, KEY, READING, Source, id_column
from wcl_ray.data.sources.files import OPEN, read_files
from wcl_ray.data.sources.leftover import folder_of, splits_of
from wcl_ray.data.sources.listing import METADATA_FILES, NOT_UTF8, Files, is_image
from wcl_ray.data.sources.tables import (
    NAME,
    bare_type,
    check_names,
    common_type,
    decode_text,
    read_csv,
    read_json_lines,
)
from wcl_ray.errors import UserError, reading
from wcl_ray.registry import FORMATS

ROWS = 256  # image files a task opens, at least
PATH = "__path"


@FORMATS.add("folder")
@dataclass(frozen=True)
class FolderSource(Source):
    """See :class:`Source`. ``table``: one row an image: its path, why it cannot be opened (or
    null), and metadata."""

    table: pa.Table = None

    def describe(self) -> str:
        how = "metadata table" if self.image_column == "file_name" else "class sub-folders"
        how = how if self.columns else "no metadata"
        return f"{self.uri}: {self.table.num_rows:,} image files, {how}"

    @staticmethod
    def count(files: Files) -> int:
        metadata = sum(p.rpartition("/")[2] in METADATA_FILES for p in files.paths)
        return sum(map(is_image, files.paths)) or metadata or len(files.unnamed)

    @staticmethod
    def open(files: Files, data: DataConfig) -> FolderSource:
        return open_files(files, data)

    def metadata(self, columns: Sequence[str] = ()) -> Dataset:
        return ray.data.from_arrow(self.parts(columns, images=False))

    def images(self, columns: Sequence[str] = ()) -> Dataset:
        kwargs = {
            "files": replace(self.files, paths=(), unnamed=())
        }  # each row brings its own path
        rows = ray.data.from_arrow(self.parts(columns, images=True))
        return rows.map_batches(_read, batch_size=ROWS, fn_kwargs=kwargs, **READING)

    def parts(self, columns: Sequence[str], images: bool) -> list[pa.Table]:
        """Tables of what each task takes."""
        table = self.table
        if self.id_column:
            ids, keys = ids_of(table[self.id_column], self.id_column, self.uri)
        else:
            names = [self.files.relative(path) for path in table[PATH].to_pylist()]
            ids, keys = pa.array(hash_strings(names)), pa.array(names, pa.string())
        opened = {PATH: table[PATH], FAULT: table[FAULT]}
        found = {ID: ids, KEY: keys} | (opened if images else {})
        whole = pa.table(found | {name: table[name] for name in columns})
        step = max(ROWS, len(whole) // 1000)
        return [whole.slice(start, step) for start in range(0, len(whole), step)]


def _read(table: pa.Table, files: Files) -> Iterator[pa.Table]:
    for start in range(0, len(table), OPEN):
        part = table.slice(start, OPEN)
        known = part[FAULT].combine_chunks()
        paths = pc.if_else(known.is_valid(), pa.scalar(None, pa.string()), part[PATH])
        image, fault = read_files(paths.to_pylist(), files, "")
        part = part.drop_columns([PATH, FAULT]).append_column(IMAGE, image)
        yield part.append_column(FAULT, pc.coalesce(known, fault))


def open_files(files: Files, data: DataConfig) -> FolderSource:
    """Open an image folder.

    Raises:
        UserError: no image, a metadata table without ``file_name``, a missing column, folders
            called train and test that are to be the label.
    """
    tables = [p for p in files.paths if p.rpartition("/")[2] in METADATA_FILES]
    if tables:
        # what a label is may not hang on the other values of its file: 1.10 beside 1 and beside A
        label = frozenset([data.label]) if data.label else frozenset()
        only_csv = all(path.endswith(".csv") for path in tables)
        table = _metadata(files, tables, label if only_csv else frozenset())
        key = id_column(data, table.schema, tables[0])
        names = tuple(n for n in table.column_names if n not in (PATH, FAULT, NAME, key))
        return FolderSource(files, names, NAME, key, table=table)
    good = [path for path in files.paths if is_image(path)]
    paths = [*good, *files.unnamed]
    if not paths:
        raise UserError(f"data.path {files.uri} holds no image files")
    faults = [None] * len(good) + [NOT_UTF8] * len(files.unnamed)
    table = pa.table({PATH: paths, FAULT: pa.array(faults, pa.string())})
    relative = [files.relative(path) for path in paths]
    if not any("/" in name for name in relative):
        return FolderSource(files, (), "", None, table=table)
    labels = [name.split("/")[0] if "/" in name else None for name in relative]
    splits = splits_of(name for name in relative if "/" in name)
    if splits and (
        data.label is not None or set(labels) <= {*(s.split("/")[0] for s in splits), None}
    ):
        if data.label is not None:
            train, *others = splits
            uri = folder_of(files)
            raise UserError(
                f"data.path {uri}: the folders {', '.join(splits)} are parts of a data set, not "
                f"classes; use --data.path {uri}/{train} --data.eval-path {uri}/{others[-1]}"
            )
        return FolderSource(files, (), "", None, table=table)
    return FolderSource(files, ("label",), "", None, table=table.append_column("label", [labels]))


def _metadata(files: Files, paths: list[str], texts: frozenset[str]) -> pa.Table:
    """The rows of all metadata tables; ``texts``: columns of CSV files that are read as text."""
    found = {path: _read_table(files, path, texts) for path in paths}
    as_text = set[str]()
    for name in dict.fromkeys(name for table in found.values() for name in table.column_names):
        own = {p: t.schema.field(name).type for p, t in found.items() if name in t.column_names}
        kinds = list(own.values())
        if common_type(kinds) is not None:
            continue
        # the types of a CSV file are only what its values look like
        others = {p: kind for p, kind in own.items() if not p.endswith(".csv")}
        if common_type([pa.string(), *others.values()]) is None:
            first = next(iter(own))
            other = next(p for p in own if common_type([own[first], own[p]]) is None)
            raise UserError(
                f"{other}: column {name!r} is of type {own[other]}, in {first} it is {own[first]}; "
                "write it in one type"
            )
        as_text.add(name)
    for path in paths if as_text else ():
        if path.endswith(".csv"):
            found[path] = _read_table(files, path, texts | as_text)
    with reading(files.uri):
        return pa.concat_tables(found.values(), promote_options="permissive").combine_chunks()


def _read_table(files: Files, path: str, as_text: frozenset[str] = frozenset()) -> pa.Table:
    """One metadata table, with the paths of its images."""
    folder = path.rpartition("/")[0]
    with reading(path), files.fs.open_input_file(path) as stream:
        if path.endswith(".parquet"):
            table = pq.read_table(stream)
            table.validate(full=True)
        else:
            text = decode_text(stream.read(), files.encoding, path)
            csv = path.endswith(".csv")
            table = read_csv(text, path, as_text) if csv else read_json_lines(text, path)
        check_names(table.column_names, path)
        for i, field in enumerate(table.schema):
            if bare_type(field.type) != field.type:
                values = table[i].cast(bare_type(field.type))
                table = table.set_column(i, field.name, values)
    if NAME not in table.column_names:
        raise UserError(
            f"{path} has no column {NAME!r} that names each row's image; the columns are: "
            f"{', '.join(table.column_names)}"
        )
    names = table[NAME].to_pylist()
    if None in names:
        raise UserError(f"{path}: {NAME} is empty in row {names.index(None)}")
    if not names:
        raise UserError(f"{path} holds no rows")
    places = [
        str(name)
        if "://" in str(name) or str(name).startswith("/")
        else f"{folder}/{posixpath.normpath(str(name))}"  # ./a.png is a.png
        for name in names
    ]
    table = table.drop_columns([name for name in (PATH, FAULT) if name in table.column_names])
    table = table.append_column(PATH, pa.array(places, pa.string()))
    return table.append_column(FAULT, pa.nulls(len(places), pa.string()))
