"""Parsers for metadata tables (CSV, JSON lines) and helpers for column types."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from wcl_ray.data.values import check_names
from wcl_ray.errors import UserError, reading
from wcl_ray.texts import unique_keys

NAME = "file_name"  # the column that names each row's image
SEPARATORS = ",;\t|"
_MARKS = (  # byte order marks, longest first: that of UTF-16 is a prefix of that of UTF-32
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
_SPACE = re.compile(r"\s*")


def decode_text(content: bytes, encoding: str | None, where: str) -> str:
    """Decode a file by its byte order mark, else by the given encoding, else as UTF-8. Other
    encodings are not guessed: almost any bytes are valid text in most of them.

    Args:
        where: names the file in error messages.

    Raises:
        UserError: the bytes are not valid in that encoding, or contain NUL.
    """
    name = next((name for mark, name in _MARKS if content.startswith(mark)), encoding or "utf-8")
    try:
        text = content.decode(name)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        begin = content.rfind(b"\n", 0, error.start) + 1
        context = content[max(begin, error.start - 20) : error.start + 20].split(b"\n")[0]
        western = context.decode("cp1252", "replace").strip()
        raise UserError(
            f"{where} is not {name.upper()}: line {line} holds the byte "
            f"0x{content[error.start]:02x}; give its encoding with --data.encoding, such as cp1252 "
            f"(Windows), which would read it as {western!r}"
        ) from None
    if "\0" in text:
        raise UserError(
            f"{where}: line {_line(text, text.index(chr(0)))} holds a NUL byte; the file is "
            "damaged, or is UTF-16 without a byte order mark (--data.encoding utf-16-le)"
        )
    return text.removeprefix("\ufeff")


def read_csv(text: str, where: str, as_text: frozenset[str] = frozenset()) -> pa.Table:
    """Parse CSV separated by commas, semicolons, tabs or bars.

    Args:
        where: names the file in error messages.
        as_text: columns to read as text even if they look like numbers.

    Raises:
        UserError: an empty file, two columns of one name, rows that are longer or shorter than the
            header, or an unclosed quote.
    """
    declared = re.match(r"sep=(.)\r?\n", text)  # a line that Excel writes
    text = text[declared.end() :] if declared else text
    if not text.strip():
        raise UserError(f"{where} is empty")
    separator = declared[1] if declared else _separator(text)
    _check_rows(text, separator, where)
    strings = {name: pa.string() for name in (NAME, *as_text)}
    table = _parse(text, separator, strings, where)
    if "" in table.column_names:  # trailing commas
        keep = [
            i for i, n in enumerate(table.column_names) if n or table[i].null_count < len(table)
        ]
        table = table.select(keep)
    check_names(table.column_names, where)
    doubles = [f.name for f in table.schema if pa.types.is_floating(f.type)]
    texts = [f.name for f in table.schema if pa.types.is_string(f.type) and f.name not in strings]
    if doubles:  # may be integers beyond 64 bits, which would be rounded
        as_strings = _parse(text, separator, strings | dict.fromkeys(doubles, pa.string()), where)
        for name in doubles:
            table = _replaced(table, name, _large_integers(as_strings[name]))
    if texts and separator != ",":  # may be numbers with a decimal comma
        with_commas = _parse(text, separator, strings, where, decimal_point=",")
        for name in texts:
            if pa.types.is_floating(with_commas[name].type):
                table = _replaced(table, name, with_commas[name])
    all_strings = dict.fromkeys(table.column_names, pa.string())
    written = _parse(text, separator, all_strings, where, missing=[""])
    for name in table.column_names:
        if not _same_values(table[name], written[name]):
            table = _replaced(table, name, written[name])
    return table


def _same_values(column: pa.ChunkedArray, texts: pa.ChunkedArray) -> bool:
    """Whether a column parsed as numbers, booleans or times distinguishes all that its texts do.

    False for 007 and 7, or the codes 250.1 and 250.10. Words for a missing number, such as NA, are
    values in a column of texts.
    """
    if pa.types.is_string(column.type):
        return False
    if pa.types.is_null(column.type):
        return True
    known = column.is_valid()
    texts = pc.utf8_trim_whitespace(texts.filter(known))
    number = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    if number and pc.any(pc.match_substring_regex(texts, r"^[-+]?0\d")).as_py():
        return False
    different: int = pc.count_distinct(column.filter(known)).as_py()
    return different == pc.count_distinct(texts).as_py()


def _separator(text: str) -> str:
    header = text.lstrip("\r\n").split("\n", 1)[0].split("\r", 1)[0]
    for separator in SEPARATORS:
        if NAME in next(csv.reader([header], delimiter=separator), []):
            return separator
    return max(SEPARATORS, key=header.count)


def _check_rows(text: str, separator: str, where: str) -> None:
    """Raise a UserError for uneven rows and open quotes: Arrow silently reads an open quote as a
    value that extends to the end of the file."""
    csv.field_size_limit(2**31 - 1)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    line, width = 1, 0
    try:
        for row in rows:
            width = width or len(row)
            if row and len(row) != width:
                raise UserError(
                    f"{where}: the row in line {line} has {len(row)} values, the header has "
                    f"{width}; put values that contain {separator!r} in double quotes"
                )
            line = rows.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{where}: the row that starts in line {line}: {error}; is a double quote missing?"
        ) from None


def _parse(
    text: str,
    separator: str,
    types: dict[str, pa.DataType],
    where: str,
    decimal_point: str = ".",
    missing: list[str] | None = None,
) -> pa.Table:
    content = text.encode()
    with reading(where):
        return pyarrow.csv.read_csv(
            pa.BufferReader(content),
            # types are inferred from the first block only: read all in one
            read_options=pyarrow.csv.ReadOptions(block_size=min(len(content) + 1, 2**31 - 1)),
            parse_options=pyarrow.csv.ParseOptions(delimiter=separator, newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                strings_can_be_null=True,
                column_types=types,
                decimal_point=decimal_point,
                null_values=missing,
            ),
        )


def _large_integers(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """A column of integers too long for float64: as int64 or uint64, as text if longer than 64
    bits; None if not all values are integers."""
    integers = pc.all(pc.match_substring_regex(column, r"^\s*-?\d+\s*$"))
    if not integers.as_py():
        return None
    for kind in (pa.int64(), pa.uint64()):
        try:
            return column.cast(kind)
        except pa.ArrowInvalid:
            continue
    return column


def _replaced(table: pa.Table, name: str, column: pa.ChunkedArray | None) -> pa.Table:
    if column is None:
        return table
    return table.set_column(table.column_names.index(name), name, column)


def read_json_lines(text: str, where: str) -> pa.Table:
    """Parse a file with one JSON object per line. pyarrow's reader ends the process on deep
    nesting, and its line numbers start again in each block.

    Args:
        where: names the file in error messages.

    Raises:
        UserError: a line that is not a JSON object, or a column of several types.
    """
    decoder, at = json.JSONDecoder(object_pairs_hook=unique_keys), _end_of_space(text, 0)
    rows: list[dict[str, Any]] = []
    starts: list[int] = []
    while at < len(text):
        try:
            row, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            deep = isinstance(error, RecursionError)
            reason = "nested too deeply" if deep else getattr(error, "msg", str(error))
            raise UserError(f"{where} line {_line(text, at)} is not valid JSON: {reason}") from None
        if not isinstance(row, dict):
            raise UserError(
                f"{where} line {_line(text, at)} is a JSON {type(row).__name__}, not an object in "
                "braces; write one object per line"
            )
        rows.append(row)
        starts.append(at)
        at = _end_of_space(text, end)
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        try:
            columns[name] = _array(values)
        except Exception as error:  # Arrow raises many types
            line = _line(text, starts[_first_mismatch(values)])
            raise UserError(
                f"{where}: column {name!r} holds values of several types, see line {line}: "
                f"{' '.join(str(error).split())[:120]}; use one type"
            ) from None
    with reading(where):
        return pa.table(columns)


def _array(values: list[Any]) -> pa.Array:
    """An Arrow array of JSON values; integers of more than 64 bits become text."""
    if all(value is None or type(value) is int for value in values):
        known = [value for value in values if value is not None]
        if known and max(known) >= 2**63 and min(known) >= 0 and max(known) < 2**64:
            return pa.array(values, pa.uint64())
        if known and (max(known) >= 2**63 or min(known) < -(2**63)):
            return pa.array([None if value is None else str(value) for value in values])
    return pa.array(values)


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _end_of_space(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space else at


def _first_mismatch(values: list[Any]) -> int:
    """Index of the first value whose type differs from that of the first known value."""
    kinds = [float if type(v) is int else type(v) for v in values]
    known = [i for i, value in enumerate(values) if value is not None]
    return next((i for i in known if kinds[i] is not kinds[known[0]]), known[0] if known else 0)


def common_type(types: list[pa.DataType]) -> pa.DataType | None:
    """The type that holds the values of all types (int32 and double: double), or None."""
    schemas = [pa.schema([("", kind)]) for kind in types]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowException:
        return None


def bare_type(kind: pa.DataType) -> pa.DataType:
    """The logical type behind any storage: dictionary, extension, view, long offsets."""
    if isinstance(kind, pa.BaseExtensionType):
        return bare_type(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return bare_type(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_list(kind) or pa.types.is_list_view(kind):
        return pa.list_(bare_type(kind.value_type))
    return kind
