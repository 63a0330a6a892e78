"""Reads metadata tables from files of any format, local or in an object store."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs

from wcl_ray.data.sources.tables import (
    bare_type,
    common_type,
    decode_text,
    read_csv,
    read_json_lines,
)
from wcl_ray.data.values import check_names
from wcl_ray.errors import reading

CSV = ("csv", "tsv", "tab", "txt")
JSON_LINES = ("jsonl", "ndjson", "json")


def open_table(
    fs: pafs.FileSystem,
    path: str,
    where: str,
    encoding: str | None,
    as_text: frozenset[str] = frozenset(),
) -> pads.Dataset:
    """Open a table: CSV or JSON lines by the file's name (also ``.gz``), else Parquet: a file, or a
    folder of files, in whose parts a column may be absent or empty. Only Parquet is not read before
    its columns are.

    Args:
        path: in the file system. where: names the table in error messages.
        encoding: of text. as_text: columns of a CSV file to read as text even if they look like
            numbers.

    Raises:
        UserError: the table cannot be read, see :mod:`wcl_ray.data.sources.tables`.
    """
    kind = path.lower().removesuffix(".gz").rpartition(".")[2]
    if kind not in (*CSV, *JSON_LINES):
        with reading(where, "cannot be read (tables are CSV, TSV, JSON lines or Parquet)"):
            parts = pads.dataset(path, filesystem=fs, format="parquet")
            schemas = [part.physical_schema for part in parts.get_fragments()]
            if all(schema == parts.schema for schema in schemas):
                return parts
            types: dict[str, pa.DataType] = {}
            for field in (field for schema in schemas for field in schema):
                first = types.setdefault(field.name, field.type)
                types[field.name] = common_type([first, field.type]) or first
            return pads.dataset(path, pa.schema(types), "parquet", fs)
    with reading(where):
        with fs.open_input_stream(path) as stream:  # decompresses by the name
            text = decode_text(stream.read(), encoding, where)
        csv = kind in CSV
        return pads.dataset(read_csv(text, where, as_text) if csv else read_json_lines(text, where))


def plain_table(dataset: pads.Dataset, where: str, columns: list[str] | None = None) -> pa.Table:
    """The rows of an opened table in plain types; ``columns``: only these.

    Raises:
        UserError: the table cannot be read, or two columns have one name.
    """
    check_names(dataset.schema.names, where)
    with reading(where):
        table = dataset.to_table(columns=columns)
        table.validate(full=True)  # texts may not be UTF-8
        for i, field in enumerate(table.schema):
            if bare_type(field.type) != field.type:
                values = table[i].cast(bare_type(field.type))
                table = table.set_column(i, field.name, values)
    return table.combine_chunks()
