"""Stable image ids: integers as they are, strings by a 64-bit hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wcl_ray.errors import UserError


def hash_strings(keys: Iterable[str]) -> np.ndarray:
    """int64 (N,): the first eight bytes of each key's BLAKE2b digest, little endian, signed."""
    digests = b"".join(hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(digests, "<i8").astype(np.int64)


def array_digest(array: np.ndarray) -> str:
    """Hash of an array's type, shape and content."""
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:40]


def positions_of(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """int64 like wanted: the position of each id among the sorted ids, -1 for others."""
    index = np.searchsorted(ids, wanted).clip(max=max(0, len(ids) - 1))
    return np.where(ids[index] == wanted, index, -1) if len(ids) else np.full(len(wanted), -1)


def is_id_type(kind: pa.DataType) -> bool:
    """Whether ids may have this type: integers or strings, also dictionary-encoded."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(
        pa.types.is_integer(kind)
        or pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
    )


def check_ids(column: pa.Array | pa.ChunkedArray, name: str, where: str, first: int = 0) -> None:
    """Raise a UserError if ids are missing, or neither integers nor strings; for the arguments see
    :func:`ids_of`."""
    if column.null_count:
        row = first + column.is_null().to_pylist().index(True)
        raise UserError(
            f"{where}: id column {name!r} is empty in row {row}; each image needs an id"
        )
    if not is_id_type(column.type):
        raise UserError(
            f"{where}: id column {name!r} is of type {column.type}; ids are integers or strings"
        )


def ids_of(
    column: pa.Array | pa.ChunkedArray, name: str, where: str, first: int = 0
) -> tuple[pa.Array, pa.Array]:
    """Ids and keys of a user's id column.

    Args:
        column: integers or strings, without nulls.
        name: of the column, for error messages.
        where: the file, for error messages.
        first: row number in the file of the column's first row, for error messages.

    Returns:
        int64 ids, and string keys (null for integer ids). Unsigned integers from 2^63 on keep their
        bits, so that their ids are negative; their keys are the digits.

    Raises:
        UserError: nulls, or a type that is neither integer nor string.
    """
    check_ids(column, name, where, first)
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_uint64(column.type):
        large = pc.greater(column, pa.scalar(2**63 - 1, pa.uint64()))
        keys = pc.if_else(large, column.cast(pa.string()), pa.scalar(None, pa.string()))
        return column.view(pa.int64()), keys
    if pa.types.is_integer(column.type):
        return column.cast(pa.int64()), pa.nulls(len(column), pa.string())
    keys = column.cast(pa.string())
    return pa.array(hash_strings(keys.to_pylist())), keys
