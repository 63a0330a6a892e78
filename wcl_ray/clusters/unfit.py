"""Values that cannot be read in the form that a column's type asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from wcl_ray.data.values import plain

# words for a missing value, as in CSV columns of numbers
MISSING_WORDS = frozenset(pyarrow.csv.ConvertOptions().null_values)


class Unfit(ValueError):
    """A value that cannot be read in this form.

    Attributes:
        value: the first such value of the block. count: number of rows with such a value.
    """

    def __init__(self, value: Any, count: int = 1) -> None:
        super().__init__(repr(value))
        self.value, self.count = value, count


def by_text(values: pa.Array, convert: Callable[[Any], Any], kind: pa.DataType) -> pa.Array:
    """Convert each distinct value once."""
    encoded = values.dictionary_encode()
    converted = pa.array([convert(value) for value in encoded.dictionary.to_pylist()], kind)
    return converted.take(encoded.indices)


def parse(values: pa.Array, convert: Callable[[Any], Any], kind: pa.DataType) -> pa.Array:
    """Convert each distinct value once; null for MISSING_WORDS.

    Args:
        convert: gives None for a value that cannot be converted.

    Raises:
        Unfit: there is such a value.
    """
    encoded = values.dictionary_encode()
    distinct = encoded.dictionary.to_pylist()
    missing = [str(value).strip() in MISSING_WORDS for value in distinct]
    pairs = zip(distinct, missing, strict=True)
    converted = pa.array([None if gone else convert(value) for value, gone in pairs], kind)
    wrong = ~is_true(converted.is_valid()) & ~np.array(missing, dtype=bool)
    raise_first(values, is_true(pa.array(wrong).take(encoded.indices)))
    return converted.take(encoded.indices)


def parse_numbers(texts: pa.Array) -> pa.Array:
    """float64: numbers written as texts.

    Raises:
        Unfit: a text is no number.
    """
    return plain(parse(texts, _number, pa.float64()))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def is_true(array: pa.Array) -> np.ndarray:
    """bool (n,): true, and not null."""
    return np.asarray(array.fill_null(False).to_numpy(zero_copy_only=False), dtype=bool)


def first_unfit(values: pa.Array, wrong: np.ndarray | None = None) -> Unfit:
    """The error of the first value that is wrong (None: of any) and not missing."""
    known = values.is_valid().to_numpy(zero_copy_only=False)
    at = np.flatnonzero(known if wrong is None else wrong & known)
    return Unfit(values[int(at[0])].as_py() if len(at) else None, len(at))


def raise_first(values: pa.Array, wrong: np.ndarray) -> None:
    """Raise Unfit if a value that is not missing is wrong."""
    error = first_unfit(values, wrong)
    if error.value is not None:
        raise error
