"""Columns of partitioned Parquet: folders called ``species=beetle``, as Hive and Spark do."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import unquote

import pyarrow as pa

MISSING = "__HIVE_DEFAULT_PARTITION__"


def hive_columns(paths: Iterable[str]) -> dict[str, pa.DataType]:
    """Names and types of the columns that the folders of relative paths tell: integers where all
    values are, else strings."""
    seen: dict[str, set[str]] = {}
    for path in paths:
        for part in path.split("/")[:-1]:
            name, equals, value = part.partition("=")
            if equals and name:
                seen.setdefault(_plain(name), set()).add(_plain(value))
    return {name: _type(values - {MISSING}) for name, values in seen.items()}


def _type(values: set[str]) -> pa.DataType:
    # "007" would not come back
    whole = all(v.isascii() and v.isdecimal() and str(int(v[:19])) == v for v in values)
    return pa.int64() if values and whole and max(map(int, values)) < 2**63 else pa.string()


def hive_value(path: str, column: str) -> str | None:
    """Value of a column in the folders of a path; None where they do not tell it."""
    for part in path.split("/")[:-1]:
        name, equals, value = part.partition("=")
        if equals and _plain(name) == column:
            return None if value == MISSING else _plain(value)
    return None


def _plain(text: str) -> str:
    """Without percent signs, where these stand for UTF-8."""
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        return text
