"""What a metadata column is read as: a date as its minute, season and time of day, a text as its
words, latitude and longitude as cells.

A view has the form of :func:`wcl_ray.data.values.plain`, so that it is counted, and gives
attributes, like any column. A date is

- of an Arrow date or timestamp type, or
- a text such as 2021-07-03, 2021-07-03T12:00:00Z, 2021/07/03 or 2021:07:03 12:00:00 (EXIF, whose
  0000:00:00 00:00:00 is missing). Its season and time of day are those of the clock that was
  written down; its minute is that of UTC.

A place is a pair of numbers in [-90, 90] and [-180, 180]; its cells are the geohashes that hold it,
of 1 to DEPTH letters (5,000 km to 1 km wide).
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from wcl_ray.clusters.identifier import name_words
from wcl_ray.data.values import decoded, kind_of, plain

WORD = re.compile(r"\w+")
DEPTH = 6  # letters of a geohash
DATE_FORMS = ("minute", "season", "daypart")
_LETTERS = "0123456789bcdefghjkmnpqrstuvwxyz"
_SEASONS = ("Dec-Feb", "Mar-May", "Jun-Aug", "Sep-Nov")
_DAYPARTS = ("00-06 h", "06-12 h", "12-18 h", "18-24 h")
_TRUTH = frozenset(["true", "false", "yes", "no", "y", "n", "t", "f", "on", "off", "0", "1"])
_LATITUDE, _LONGITUDE = ("latitude", "lat"), ("longitude", "long", "lon", "lng")
_PLACES = frozenset(
    ["location", "geolocation", "place", "position", "geo", "gps", "coordinates", "latlon"]
)
_DATE = re.compile(
    r"(\d{4})([-/:])(\d\d?)\2(\d\d?)"
    r"(?:[T ](\d\d?):(\d\d)(?::\d\d(?:[.,]\d*)?)?\s*(Z|[+-]\d\d(?::?\d\d)?)?)?"
)
_NO_DATE = "0000:00:00"
_EPOCH = datetime.date(1970, 1, 1).toordinal()


class Unfit(ValueError):
    """A value that cannot be read in this form.

    Attributes:
        value: the first such value.
    """

    def __init__(self, value: Any) -> None:
        super().__init__(repr(value))
        self.value = value


@dataclass(frozen=True)
class View:
    """One or two columns in a form: "" (the plain column), number, boolean, category, tags, one of
    DATE_FORMS, words or cells."""

    columns: tuple[str, ...]
    form: str = ""


def read(table: pa.Table, views: Iterable[View]) -> dict[View, pa.Array]:
    """The views of a table.

    Raises:
        Unfit: a value that has not the form of its view.
    """
    arrays = try_read(table, views)
    for array in arrays.values():
        if isinstance(array, Unfit):
            raise array
    return arrays


def try_read(table: pa.Table, views: Iterable[View]) -> dict[View, pa.Array | Unfit]:
    """The views of a table; for one that does not fit, the error."""
    arrays: dict[View, pa.Array | Unfit] = {}
    for view in views:
        if view in arrays:
            continue
        columns = [table[name] for name in view.columns]
        # a date is read once for its three forms
        forms = DATE_FORMS if view.form in DATE_FORMS else (view.form,)
        of_form: Iterable[pa.Array | Unfit]
        try:
            dates = view.form in DATE_FORMS
            of_form = _dates(columns[0]) if dates else [_read(columns, view.form)]
        except Unfit as error:
            of_form = [error] * len(forms)
        arrays |= {View(view.columns, f): a for f, a in zip(forms, of_form, strict=True)}
    return arrays


def _read(columns: list[pa.ChunkedArray], form: str) -> pa.Array:
    if form == "cells":
        return _cells(*_coordinates(columns))
    values = plain(columns[0])
    kind = kind_of(values.type)
    fits = {
        "": True,
        "number": kind in ("number", "string"),
        "boolean": kind in ("boolean", "number", "string"),
        "category": kind in ("boolean", "number", "string"),
        "tags": kind == "list",
        "words": kind == "string",
    }[form]
    if not fits:
        raise _first_unfit(values, np.ones(len(values), dtype=bool))
    if form == "words":
        return _by_text(values, lambda text: WORD.findall(text.lower()), pa.list_(pa.string()))
    if form == "boolean" and kind != "boolean":
        _raise_first(values, ~_true(_by_text(values, is_truth, pa.bool_())))
    if form == "number" and kind == "string":
        numbers = _by_text(values, _number, pa.float64())
        _raise_first(values, numbers.is_null().to_numpy(zero_copy_only=False))
        return plain(numbers)
    return values


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _by_text(values: pa.Array, convert: Any, kind: pa.DataType) -> pa.Array:
    """Convert each distinct value once."""
    encoded = values.dictionary_encode()
    converted = pa.array([convert(value) for value in encoded.dictionary.to_pylist()], kind)
    return converted.take(encoded.indices)


def _true(array: pa.Array) -> np.ndarray:
    return np.asarray(array.fill_null(False).to_numpy(zero_copy_only=False), dtype=bool)


def _first_unfit(values: pa.Array, wrong: np.ndarray) -> Unfit:
    known = values.is_valid().to_numpy(zero_copy_only=False)
    at = np.flatnonzero(wrong & known)
    return Unfit(values[int(at[0])].as_py() if len(at) else None)


def _raise_first(values: pa.Array, wrong: np.ndarray) -> None:
    """Raise Unfit if a value that is not missing is wrong."""
    error = _first_unfit(values, wrong)
    if error.value is not None:
        raise error


def is_truth(value: Any) -> bool:
    """Whether a value says true or false: a boolean, yes, no, 0, 1 or the like."""
    text = f"{value:g}" if isinstance(value, float) else str(value).strip().lower()
    return text in _TRUTH


def is_date(kind: pa.DataType) -> bool:
    """Whether an Arrow type holds dates."""
    return bool(pat.is_date(kind) or pat.is_timestamp(kind))


def _dates(column: pa.ChunkedArray) -> tuple[pa.Array, pa.Array, pa.Array]:
    """Minutes since 1970 (UTC, int64), seasons and times of day (string)."""
    values = decoded(column)
    if is_date(values.type):
        local = values
        if pat.is_timestamp(values.type) and values.type.tz:
            local = pc.local_timestamp(values)
            values = values.cast(pa.timestamp(values.type.unit))
        seconds = values.cast(pa.timestamp("s"), safe=False).cast(pa.int64())
        minutes = pc.cast(pc.floor(pc.divide(seconds.cast(pa.float64()), 60.0)), pa.int64())
        local = local.cast(pa.timestamp("s"), safe=False)
        return minutes, *_parts(pc.month(local), pc.hour(local))
    texts = plain(column)
    if kind_of(texts.type) != "string" or pat.is_temporal(values.type):
        raise _first_unfit(texts, np.ones(len(texts), dtype=bool))
    encoded = texts.dictionary_encode()
    fields = [_moment(text) for text in encoded.dictionary.to_pylist()]
    minute, month, hour = (
        pa.array([f and f[i] for f in fields], pa.int64()).take(encoded.indices) for i in range(3)
    )
    return minute, *_parts(month, hour)


def _parts(month: pa.Array, hour: pa.Array) -> tuple[pa.Array, pa.Array]:
    season = pa.array([_SEASONS[m % 12 // 3] for m in range(13)])
    return season.take(month), pa.array(_DAYPARTS).take(pc.divide(hour, 6))


def _moment(text: str) -> tuple[int, int, int] | None:
    """UTC minute, month and hour of a text; None for EXIF's missing date.

    >>> _moment("2021:07:03 12:00:30"), _moment("2021-07-03T00:30:00+02:00")
    ((27088560, 7, 12), (27087750, 7, 0))

    Raises:
        Unfit: the text is no date.
    """
    match = _DATE.fullmatch(text.strip())
    if match is None:
        raise Unfit(text)
    year, _, month, day, hour, minute, zone = match.groups()
    if text.strip().startswith(_NO_DATE):
        return None
    try:
        days = datetime.date(int(year), int(month), int(day)).toordinal() - _EPOCH
    except ValueError:
        raise Unfit(text) from None
    hours, minutes = int(hour or 0), int(minute or 0)
    if hours > 23 or minutes > 59:
        raise Unfit(text)
    offset = 0
    if zone and zone != "Z":
        digits = zone[1:].replace(":", "")
        offset = int(f"{zone[0]}1") * (60 * int(digits[:2]) + int(digits[2:] or 0))
    return 1440 * days + 60 * hours + minutes - offset, int(month), hours


def place_pairs(names: Collection[str]) -> list[tuple[str, str]]:
    """Columns of latitude and longitude, by their names.

    >>> place_pairs(["gps_lat", "GPSLongitude", "gps_lon", "GPSLatitude", "platform", "long"])
    [('gps_lat', 'gps_lon'), ('GPSLatitude', 'GPSLongitude')]
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


def _coordinates(columns: list[pa.ChunkedArray]) -> tuple[pa.Array, pa.Array]:
    """Latitude and longitude: of two columns, of a struct, or of lists of two numbers."""
    if len(columns) == 2:
        latitude, longitude = map(plain, columns)
    else:
        values = decoded(columns[0])
        kind = values.type
        everything = np.ones(len(values), dtype=bool)
        if pat.is_struct(kind):
            pairs = place_pairs([field.name for field in kind])
            if len(pairs) != 1:
                raise _first_unfit(values, everything)
            latitude, longitude = (plain(pc.struct_field(values, name)) for name in pairs[0])
        elif pat.is_list(kind) or pat.is_large_list(kind) or pat.is_fixed_size_list(kind):
            _raise_first(values, _true(pc.not_equal(pc.list_value_length(values), 2)))
            filled = pc.if_else(values.is_valid(), values, pa.scalar([None, None], kind))
            latitude, longitude = (plain(pc.list_element(filled, i)) for i in (0, 1))
        elif pat.is_null(kind):
            latitude = longitude = pa.nulls(len(values), pa.float64())
        else:
            raise _first_unfit(values, everything)
    for part in (latitude, longitude):
        if kind_of(part.type) != "number" and part.null_count < len(part):
            raise _first_unfit(part, np.ones(len(part), dtype=bool))
    return latitude.cast(pa.float64()), longitude.cast(pa.float64())


def _cells(latitude: pa.Array, longitude: pa.Array) -> pa.Array:
    """list of string (n,): the geohashes of each place, from coarse to fine."""
    known = pc.and_(latitude.is_valid(), longitude.is_valid()).to_numpy(zero_copy_only=False)
    y, x = (a.fill_null(0).to_numpy(zero_copy_only=False) for a in (latitude, longitude))
    wrong = known & ((np.abs(y) > 90) | (np.abs(x) > 180))
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        raise Unfit((float(y[at]), float(x[at])))
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
