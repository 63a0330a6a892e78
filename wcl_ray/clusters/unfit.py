"""Values that cannot be read in the form that a column's type asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa


class Unfit(ValueError):
    """A value that cannot be read in this form.

    Attributes:
        value: the first such value.
    """

    def __init__(self, value: Any) -> None:
        super().__init__(repr(value))
        self.value = value


def by_text(values: pa.Array, convert: Callable[[Any], Any], kind: pa.DataType) -> pa.Array:
    """Convert each distinct value once."""
    encoded = values.dictionary_encode()
    converted = pa.array([convert(value) for value in encoded.dictionary.to_pylist()], kind)
    return converted.take(encoded.indices)


def is_true(array: pa.Array) -> np.ndarray:
    """bool (n,): true, and not null."""
    return np.asarray(array.fill_null(False).to_numpy(zero_copy_only=False), dtype=bool)


def first_unfit(values: pa.Array, wrong: np.ndarray | None = None) -> Unfit:
    """The error of the first value that is wrong (None: of any) and not missing."""
    known = values.is_valid().to_numpy(zero_copy_only=False)
    at = np.flatnonzero(known if wrong is None else wrong & known)
    return Unfit(values[int(at[0])].as_py() if len(at) else None)


def raise_first(values: pa.Array, wrong: np.ndarray) -> None:
    """Raise Unfit if a value that is not missing is wrong."""
    error = first_unfit(values, wrong)
    if error.value is not None:
        raise error
