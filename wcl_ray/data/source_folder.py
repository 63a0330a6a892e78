"""Image folders: with a metadata table (``file_name``), or one sub-folder a class.

Follows the ImageFolder convention of Hugging Face: ``metadata.csv``, ``.jsonl`` or ``.parquet``
lies beside the images or above them, and ``file_name`` is relative to it. Without such a table an
image's label is the first folder below the root; images of the root itself then have none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
import ray
from ray.data import Dataset

from wcl_ray.config import DataConfig
from wcl_ray.data.ids import hash_strings, ids_of
from wcl_ray.data.source import (
    FAULT,
    ID,
    IMAGE,
    KEY,
    METADATA_FILES,
    READING,
    Files,
    Source,
    id_column,
    is_image,
)
from wcl_ray.data.source_files import OPEN, read_files
from wcl_ray.errors import UserError

ROWS = 256  # image files a task opens, at least
PATH = "__path"


@dataclass(frozen=True)
class FolderSource(Source):
    """See :class:`Source`. ``table``: one row an image, its path and metadata."""

    table: pa.Table = None

    def describe(self) -> str:
        how = "metadata table" if self.image_column == "file_name" else "class sub-folders"
        how = how if self.columns else "no metadata"
        return f"{self.uri}: {self.table.num_rows:,} image files, {how}"

    def metadata(self, columns: Sequence[str] = ()) -> Dataset:
        return self._rows(columns, images=False)

    def images(self, columns: Sequence[str] = ()) -> Dataset:
        kwargs = {"files": replace(self.files, paths=())}  # each row brings its own path
        return self._rows(columns, images=True).map_batches(
            _read, batch_size=ROWS, fn_kwargs=kwargs, **READING
        )

    def _rows(self, columns: Sequence[str], images: bool) -> Dataset:
        table = self.table
        if self.id_column:
            ids, keys = ids_of(table[self.id_column], self.id_column, self.uri)
        else:
            names = [self.files.relative(path) for path in table[PATH].to_pylist()]
            ids, keys = pa.array(hash_strings(names)), pa.array(names, pa.string())
        found = {ID: ids, KEY: keys} | ({PATH: table[PATH]} if images else {})
        whole = pa.table(found | {name: table[name] for name in columns})
        step = max(ROWS, len(whole) // 1000)
        parts = [whole.slice(start, step) for start in range(0, len(whole), step)]
        return ray.data.from_arrow(parts)


def _read(table: pa.Table, files: Files) -> Iterator[pa.Table]:
    for start in range(0, len(table), OPEN):
        part = table.slice(start, OPEN)
        image, fault = read_files(part[PATH].to_pylist(), files, "")
        part = part.drop_columns([PATH])
        yield part.append_column(IMAGE, image).append_column(FAULT, fault)


def open_files(files: Files, data: DataConfig) -> FolderSource:
    """Open an image folder.

    Raises:
        UserError: no image, a metadata table without ``file_name``, a missing column.
    """
    tables = [p for p in files.paths if p.rpartition("/")[2] in METADATA_FILES]
    if tables:
        table = pa.concat_tables(
            [_metadata(files, path) for path in tables], promote_options="permissive"
        ).combine_chunks()
        key = id_column(data, table.schema, tables[0])
        names = tuple(n for n in table.column_names if n not in (PATH, "file_name", key))
        return FolderSource(files, names, "file_name", key, table)
    paths = [path for path in files.paths if is_image(path)]
    if not paths:
        raise UserError(f"data.path {files.uri} holds no image files")
    relative = [files.relative(path) for path in paths]
    if not any("/" in name for name in relative):
        return FolderSource(files, (), "", None, pa.table({PATH: paths}))
    labels = [name.split("/")[0] if "/" in name else None for name in relative]
    return FolderSource(files, ("label",), "", None, pa.table({PATH: paths, "label": labels}))


def _metadata(files: Files, path: str) -> pa.Table:
    folder = path.rpartition("/")[0]
    try:
        with files.fs.open_input_file(path) as stream:
            if path.endswith(".csv"):
                options = pyarrow.csv.ConvertOptions(strings_can_be_null=True)
                table = pyarrow.csv.read_csv(stream, convert_options=options)
            elif path.endswith(".jsonl"):
                table = pyarrow.json.read_json(stream)
            else:
                table = pq.read_table(stream)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} cannot be read: {str(error)[:200]}") from error
    if "file_name" not in table.column_names:
        raise UserError(
            f"{path} has no column 'file_name' that names each row's image; the columns are: "
            f"{', '.join(table.column_names)}"
        )
    names = table["file_name"].to_pylist()
    if None in names:
        raise UserError(f"{path}: file_name is empty in row {names.index(None)}")
    if not names:
        raise UserError(f"{path} holds no rows")
    paths = [
        str(name) if "://" in str(name) or str(name).startswith("/") else f"{folder}/{name}"
        for name in names
    ]
    return table.append_column(PATH, pa.array(paths, pa.string()))
