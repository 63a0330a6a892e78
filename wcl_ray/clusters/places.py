"""Places in metadata columns: latitude and longitude, as the cells that hold them.

A place is a pair of numbers in [-90, 90] and [-180, 180]; its cells are the geohashes that hold it,
of 1 to DEPTH letters (5,000 km to 1 km wide).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from wcl_ray.clusters.identifier import name_words
from wcl_ray.clusters.unfit import Unfit, first_unfit, is_true, parse_numbers, raise_first
from wcl_ray.data.values import decoded, kind_of, plain

DEPTH = 6  # letters of a geohash
_LETTERS = "0123456789bcdefghjkmnpqrstuvwxyz"
_LATITUDE, _LONGITUDE = ("latitude", "lat"), ("longitude", "long", "lon", "lng")
_PLACES = frozenset(
    ["location", "geolocation", "place", "position", "geo", "gps", "coordinates", "latlon"]
)
_DIFFERENCES = frozenset(["delta", "diff", "offset", "error", "std"])  # no places themselves


def place_pairs(names: Collection[str]) -> list[tuple[str, str]]:
    """Columns of latitude and longitude, by their names.

    >>> place_pairs(["gps_lat", "GeoLongitude", "gps_lon", "GeoLatitude", "platform", "long"])
    [('gps_lat', 'gps_lon'), ('GeoLatitude', 'GeoLongitude')]
    """
    keys = {name: _place_key(name) for name in names}
    longitudes = {key[1]: name for name, key in reversed(keys.items()) if key and key[0] == "lon"}
    return [
        (name, longitudes[key[1]])
        for name, key in keys.items()
        if key and key[0] == "lat" and key[1] in longitudes
    ]


def _place_key(name: str) -> tuple[str, str] | None:
    """Whether a name says latitude or longitude, and the rest of it."""
    spaced = re.sub("latitude|longitude", r" \g<0> ", name, flags=re.IGNORECASE)
    words = name_words(spaced)
    if _DIFFERENCES & set(words):
        return None
    for what, tokens in (("lat", _LATITUDE), ("lon", _LONGITUDE)):
        if sum(word in tokens for word in words) == 1:
            return what, " ".join("*" if word in tokens else word for word in words)
    return None


def holds_places(name: str, kind: pa.DataType) -> bool:
    """Whether a column looks like one of (latitude, longitude) by name and type."""
    if pat.is_struct(kind):
        return len(place_pairs([field.name for field in kind])) == 1
    nested = pat.is_list(kind) or pat.is_large_list(kind) or pat.is_fixed_size_list(kind)
    return bool(nested and pat.is_floating(kind.value_type) and _PLACES & set(name_words(name)))


def coordinates(columns: list[pa.ChunkedArray]) -> tuple[pa.Array, pa.Array]:
    """Latitude and longitude: of two columns, of a struct, or of lists of two numbers."""
    if len(columns) == 2:
        latitude, longitude = map(plain, columns)
    else:
        values = decoded(columns[0])
        kind = values.type
        if pat.is_struct(kind):
            pairs = place_pairs([field.name for field in kind])
            if len(pairs) != 1:
                raise first_unfit(values)
            latitude, longitude = (plain(pc.struct_field(values, name)) for name in pairs[0])
        elif pat.is_list(kind) or pat.is_large_list(kind) or pat.is_fixed_size_list(kind):
            raise_first(values, is_true(pc.not_equal(pc.list_value_length(values), 2)))
            filled = pc.if_else(values.is_valid(), values, pa.scalar([None, None], kind))
            latitude, longitude = (plain(pc.list_element(filled, i)) for i in (0, 1))
        elif pat.is_null(kind):
            latitude = longitude = pa.nulls(len(values), pa.float64())
        else:
            raise first_unfit(values)
    return _degrees(latitude), _degrees(longitude)


def _degrees(part: pa.Array) -> pa.Array:
    """float64, of numbers or of numbers written as texts."""
    kind = kind_of(part.type)
    if part.null_count == len(part) or kind == "number":
        return part.cast(pa.float64())
    if kind != "string":
        raise first_unfit(part)
    return parse_numbers(part)


def distinct_cells(counts: Mapping[str, int]) -> dict[str, int]:
    """The cells and their numbers of images, without those that hold the same images as the larger
    cell around them."""
    return {cell: n for cell, n in counts.items() if counts.get(cell[:-1]) != n}


def cells(latitude: pa.Array, longitude: pa.Array) -> pa.Array:
    """list of string (n,): the geohashes of each place, from coarse to fine."""
    known = pc.and_(latitude.is_valid(), longitude.is_valid()).to_numpy(zero_copy_only=False)
    y, x = (a.fill_null(0).to_numpy(zero_copy_only=False) for a in (latitude, longitude))
    wrong = known & ((np.abs(y) > 90) | (np.abs(x) > 180))
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        raise Unfit((float(y[at]), float(x[at])), int(wrong.sum()))
    bits = 5 * DEPTH // 2  # of each coordinate
    code = np.zeros(len(x), np.int64)
    fractions = (x + 180) / 360, (y + 90) / 180
    steps = [np.minimum((f * 2**bits).astype(np.int64), 2**bits - 1) for f in fractions]
    for bit in reversed(range(bits)):
        for step in steps:
            code = 2 * code + (step >> bit & 1)
    distinct, index = np.unique(code, return_inverse=True)
    hashes = [
        "".join(_LETTERS[int(c) >> 5 * i & 31] for i in reversed(range(DEPTH))) for c in distinct
    ]
    prefixes = pa.array(
        [[h[:n] for n in range(1, DEPTH + 1)] for h in hashes], pa.list_(pa.string())
    )
    return prefixes.take(pa.array(index.astype(np.int64), mask=~known))
