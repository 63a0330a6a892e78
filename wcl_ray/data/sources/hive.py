"""Columns of partitioned Parquet: folders named ``species=beetle``, as Hive and Spark write."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import unquote

import pyarrow as pa

MISSING = "__HIVE_DEFAULT_PARTITION__"


def hive_columns(paths: Iterable[str]) -> dict[str, pa.DataType]:
    """Names and types of the columns encoded in the folder names of relative paths: int64 if all
    values are integers, else string."""
    values: dict[str, set[str]] = {}
    for path in paths:
        for folder in path.split("/")[:-1]:
            name, equals, value = folder.partition("=")
            if equals and name:
                values.setdefault(_unquoted(name), set()).add(_unquoted(value))
    return {name: _type(texts - {MISSING}) for name, texts in values.items()}


def _type(values: set[str]) -> pa.DataType:
    # "007" is not an integer: its zeros would be lost
    integers = all(v.isascii() and v.isdecimal() and str(int(v[:19])) == v for v in values)
    return pa.int64() if values and integers and max(map(int, values)) < 2**63 else pa.string()


def hive_value(path: str, column: str) -> str | None:
    """Value of a column in the folder names of a path; None if missing."""
    for folder in path.split("/")[:-1]:
        name, equals, value = folder.partition("=")
        if equals and _unquoted(name) == column:
            return None if value == MISSING else _unquoted(value)
    return None


def _unquoted(text: str) -> str:
    """The text with percent escapes decoded if they are UTF-8."""
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        return text
