"""Names the values of metadata columns, in the same way for labels, categories, tags, levels of a
hierarchy, groups, the leak check and the words of k-means.

:func:`value_names` gives equal values equal names in every type that can hold them, and different
values different names:

- A number is named by its digits, whether integer, decimal or float: 1, 1.0 and 1.00 are "1"
  (pandas turns an integer column with missing values into floats), and -0.0 is "0".
- A text is its own name. The text "1" equals the number 1, since labels of training and test files
  may come in different types. Bytes are text if they are UTF-8, else hexadecimal digits.
- A boolean is "true" or "false", not a number.
- A date is its ISO form, and so is a time stamp at midnight. A time stamp with a zone is given in
  UTC with a final Z. Units (s, ms, us, ns) make no difference.
- Null, NaN, infinite numbers and the empty text (CSV cannot tell it from null) are missing.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from wcl_ray.errors import UserError


def value_names(column: pa.Array | pa.ChunkedArray, what: str) -> pa.Array:
    """The name of each value.

    Args:
        what: the column's use and name, for the error message.

    Returns:
        string array, null for missing values.

    Raises:
        UserError: values that are not single values, such as lists.

    >>> value_names(pa.array([47219, 4097, None]), "label").to_pylist()
    ['47219', '4097', None]
    >>> value_names(pa.array([1.0, float("nan"), 2.5]), "label").to_pylist()
    ['1', None, '2.5']
    """
    array = decoded(column)
    kind = array.type
    if pat.is_null(kind):
        return pa.nulls(len(array), pa.string())
    if pat.is_integer(kind) or pat.is_boolean(kind):
        return array.cast(pa.string())
    if pat.is_string(kind):
        return pc.if_else(pc.equal(array, ""), pa.scalar(None, pa.string()), array)
    if pat.is_float16(kind) or pat.is_float32(kind):  # shortest digits as float32, not as double
        return _by_value(array, lambda x: _digits(Decimal(str(np.float32(x)))))
    if pat.is_floating(kind) or pat.is_decimal(kind):
        return _by_value(array, _digits)
    if pat.is_binary(kind):
        return _by_value(array, _text)
    if pat.is_duration(kind):
        unit = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}[kind.unit]
        return _by_value(array.cast(pa.int64()), lambda count: f"{count * unit} ns")
    if pat.is_temporal(kind) and not pat.is_interval(kind):
        return _by_value(*_times(array))
    raise UserError(
        f"{what}: values of type {column.type} cannot be told apart; give a column with one "
        "number, text or date in each row"
    )


def _by_value(array: pa.Array, name: Any) -> pa.Array:
    """Apply a naming function once per distinct value."""
    encoded = array.dictionary_encode()
    named = pa.array([name(value) for value in encoded.dictionary.to_pylist()], pa.string())
    return named.take(encoded.indices)


def _digits(value: float | Decimal) -> str | None:
    """Decimal notation without an exponent or trailing zeros."""
    exact = value if isinstance(value, Decimal) else Decimal(repr(value))
    if not exact.is_finite():
        return None
    if exact == int(exact):
        return str(int(value))
    return format(exact, "f").rstrip("0")


def _text(value: bytes) -> str | None:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = "0x"
    return (f"0x{value.hex()}" if text.startswith("0x") else text) or None


def _times(array: pa.Array) -> tuple[pa.Array, Any]:
    """Texts of dates and times, and the function that removes units and midnight from them."""
    zone = "Z" if pat.is_timestamp(array.type) and array.type.tz else ""
    if zone:
        array = array.cast(pa.timestamp(array.type.unit))  # UTC
    midnight = " 00:00:00" if pat.is_timestamp(array.type) else ""

    def name(text: str) -> str:
        text = text.rstrip("0").rstrip(".") if "." in text else text
        return (text if zone else text.removesuffix(midnight)) + zone

    return array.cast(pa.string()), name


def is_list(kind: pa.DataType) -> bool:
    """Whether a type is a list of variable length."""
    views = pat.is_list_view(kind) or pat.is_large_list_view(kind)
    return bool(pat.is_list(kind) or pat.is_large_list(kind) or views)


def kind_of(kind: pa.DataType) -> str:
    """How :func:`plain` converts a column of this type: boolean, number, list, string (by name),
    or other, which stays as it is."""
    if pat.is_dictionary(kind) or pat.is_run_end_encoded(kind):
        kind = kind.value_type
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pat.is_boolean(kind):
        return "boolean"
    if pat.is_integer(kind) or pat.is_floating(kind) or pat.is_decimal(kind):
        return "number"
    if is_list(kind):
        return "list" if kind_of(kind.value_type) in ("string", "number") else "other"
    nested = pat.is_nested(kind) or pat.is_fixed_size_list(kind) or pat.is_interval(kind)
    return "other" if nested else "string"


def plain(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """The column as one array in the form of :func:`kind_of`: booleans, lists, integers of any
    width and float64 as they are, strings by :func:`value_names`. Missing values are null, -0.0 is
    0.0."""
    array = decoded(column)
    kind = kind_of(array.type)
    if kind == "number":
        if pat.is_decimal(array.type):
            array = _undecimal(array)
        if pat.is_floating(array.type):
            raw = array.cast(pa.float64()).to_numpy(zero_copy_only=False)
            return pa.array(raw + 0.0, mask=~np.isfinite(raw))
    return value_names(array, "") if kind == "string" else array


def _undecimal(array: pa.Array) -> pa.Array:
    """Decimals as integers if all are integers, else as float64."""
    for kind in (pa.int64(), pa.uint64()):
        try:
            return array.cast(kind)
        except pa.ArrowInvalid:
            continue
    return array.cast(pa.float64())


def decoded(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """The column as one array without dictionary or run-end encoding; extension types become their
    storage, and texts, bytes and lists have one type each."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks)
    if isinstance(column.type, pa.BaseExtensionType):
        column = column.storage
    if pat.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pat.is_run_end_encoded(column.type):
        column = pc.run_end_decode(column)
    kind = column.type
    if pat.is_large_string(kind) or pat.is_string_view(kind):
        return column.cast(pa.string())
    if pat.is_large_binary(kind) or pat.is_binary_view(kind) or pat.is_fixed_size_binary(kind):
        return column.cast(pa.binary())
    if pat.is_list_view(kind) or pat.is_large_list_view(kind):
        # pyarrow 26 loses members when it casts these
        return pa.array(column.to_pylist(), pa.list_(kind.value_type))
    return column


def list_members(array: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Row and value of every member of a plain list column, without missing ones."""
    rows, members = pc.list_parent_indices(array), plain(pc.list_flatten(array))
    valid = members.is_valid()
    return rows.filter(valid), members.filter(valid)


def numbers(array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Values of a plain number column in their own type (0 if missing), and bool: not missing."""
    known = np.asarray(array.is_valid().to_numpy(zero_copy_only=False), dtype=bool)
    return array.fill_null(0).to_numpy(zero_copy_only=False), known


def check_names(names: list[str], where: str) -> None:
    """Raise a UserError if two columns have the same name."""
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        count = names.count(repeated)
        raise UserError(f"{where} has {count} columns named {repeated!r}; rename them")
