"""Chooses held-out and sampled images: pure functions of their ids.

A hash decides, so that the choice is the same on every machine, in any order, and after new images
were added.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from wcl_ray.data.ids import hash_strings
from wcl_ray.data.values import value_names


def uniform(ids: np.ndarray, seed: int) -> np.ndarray:
    """Hash ids to uniform numbers (splitmix64).

    Args:
        ids: int64 (N,).

    Returns:
        float64 (N,) in [0, 1).
    """
    with np.errstate(over="ignore"):
        x = ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15) * np.uint64(seed + 1)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53


def held_out(ids: np.ndarray, share: float, seed: int) -> np.ndarray:
    """bool (N,): the images of the hold-out split, about ``share`` of them."""
    return uniform(ids, seed) < share


def held_groups(
    groups: pa.Array | pa.ChunkedArray, ids: np.ndarray, share: float, seed: int
) -> np.ndarray:
    """bool (N,): the images of about ``share`` of the groups, identified by :func:`value_names`.
    An image without a group is a group of its own.

    Raises:
        UserError: values that are not single values, such as lists.
    """
    encoded = value_names(groups, "data.split-by").dictionary_encode()
    missing = encoded.is_null().to_numpy(zero_copy_only=False)
    keys = ids.astype(np.int64)
    if not missing.all():
        hashes = hash_strings(encoded.dictionary.to_pylist())
        index = encoded.indices.fill_null(0).to_numpy(zero_copy_only=False)
        keys = np.where(missing, keys, hashes[index])
    return held_out(keys, share, seed)


def sample(most: int, total: int, seed: int) -> Callable[[np.ndarray], np.ndarray] | None:
    """A function of int64 ids (N,) that chooses about ``most`` of ``total`` images, bool (N,); None
    if these are all."""
    if total <= most:
        return None
    return lambda ids: uniform(ids, seed + 7919) < most / total
