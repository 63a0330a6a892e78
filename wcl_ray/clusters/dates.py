"""Dates in metadata columns: as the minute, the season and the quarter of the day.

A date is

- of an Arrow date or timestamp type, or
- a text such as 2021-07-03, 2021-07-03T12:00:00Z, 2021/07/03, 03.07.2021 (between dots the day
  comes first) or 2021:07:03 12:00:00 (EXIF, whose 0000:00:00 00:00:00 is missing, and so are words
  such as NA).

The season and the quarter of the day are those of the clock that was written down, the minute is
that of UTC.
"""

from __future__ import annotations

import datetime
import re

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from wcl_ray.clusters.unfit import first_unfit, parse
from wcl_ray.data.values import decoded, kind_of, plain

DATE_FORMS = ("minute", "season", "daypart")
_SEASONS = ("Dec-Feb", "Mar-May", "Jun-Aug", "Sep-Nov")
_DAYPARTS = ("00-06 h", "06-12 h", "12-18 h", "18-24 h")
_DATE = re.compile(
    r"(?:(\d{4})([-/:])(\d\d?)\2(\d\d?)|(\d\d?)\.(\d\d?)\.(\d{4}))"
    r"(?:[T ](\d\d?):(\d\d)(?::\d\d(?:[.,]\d*)?)?\s*(Z|[+-]\d\d(?::?\d\d)?)?)?"
)
_NO_DATE = "0000:00:00"
_MOMENT = pa.struct([(name, pa.int64()) for name in ("minute", "month", "hour")])
_EPOCH = datetime.date(1970, 1, 1).toordinal()


def is_date(kind: pa.DataType) -> bool:
    """Whether an Arrow type holds dates."""
    return bool(pat.is_date(kind) or pat.is_timestamp(kind))


def read_dates(column: pa.ChunkedArray) -> tuple[pa.Array, pa.Array, pa.Array]:
    """Minutes since 1970 (UTC, int64), seasons and times of day (string)."""
    values = decoded(column)
    if is_date(values.type):
        local = values
        if pat.is_timestamp(values.type) and values.type.tz:
            local = _local(values)
            values = values.cast(pa.timestamp(values.type.unit))
        seconds = values.cast(pa.timestamp("s"), safe=False).cast(pa.int64())
        minutes = pc.cast(pc.floor(pc.divide(seconds.cast(pa.float64()), 60.0)), pa.int64())
        local = local.cast(pa.timestamp("s"), safe=False)
        return minutes, *_parts(pc.month(local), pc.hour(local))
    texts = plain(column)
    if kind_of(texts.type) != "string" or pat.is_temporal(values.type):
        raise first_unfit(texts)
    moments = parse(texts, _moment, _MOMENT)
    minute, month, hour = (pc.struct_field(moments, i) for i in range(3))
    return minute, *_parts(month, hour)


def _local(values: pa.Array) -> pa.Array:
    """The clock of the zone; UTC where the machine does not know the zone."""
    try:
        return pc.local_timestamp(values)
    except pa.ArrowInvalid:
        return values.cast(pa.timestamp(values.type.unit))


def _parts(month: pa.Array, hour: pa.Array) -> tuple[pa.Array, pa.Array]:
    season = pa.array([_SEASONS[m % 12 // 3] for m in range(13)])
    return season.take(month), pa.array(_DAYPARTS).take(pc.divide(hour, 6))


def _moment(text: str) -> tuple[int | None, int | None, int | None] | None:
    """UTC minute, month and hour of a text, which EXIF's missing date has not; None: it is no date.

    >>> _moment("2021:07:03 12:00:30"), _moment("2021-07-03T00:30:00+02:00")
    ((27088560, 7, 12), (27087750, 7, 0))
    >>> _moment("3.7.2021") == _moment("2021-07-03")
    True
    """
    match = _DATE.fullmatch(text.strip())
    if match is None:
        return None
    year, _, month, day, *dotted, hour, minute, zone = match.groups()
    if year is None:
        day, month, year = dotted
    if text.strip().startswith(_NO_DATE):
        return None, None, None
    try:
        days = datetime.date(int(year), int(month), int(day)).toordinal() - _EPOCH
    except ValueError:
        return None
    hours, minutes = int(hour or 0), int(minute or 0)
    if hours > 23 or minutes > 59:
        return None
    offset = 0
    if zone and zone != "Z":
        digits = zone[1:].replace(":", "")
        offset = int(f"{zone[0]}1") * (60 * int(digits[:2]) + int(digits[2:] or 0))
    return 1440 * days + 60 * hours + minutes - offset, int(month), hours
