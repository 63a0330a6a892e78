"""Integer columns that are row numbers or identifiers rather than measurements.

A column of integers (or of floats without a fraction) looks like

- a row number if more than 20 values are known, at least 95 % of them distinct, and they fill at
  least half of their range, in steps of one or any other number (a held-out share leaves gaps). Or
  if each of more than 20 values occurs exactly twice (two images of an object). Columns named after
  a time are exempt: years and seconds are consecutive, too;
- an identifier if its name's last word is ``id``, ``uid``, ``uuid``, ``guid``, ``idx``, ``key``,
  ``pk``, ``code``, ``no``, ``nr``, ``num``, ``number``, ``sku``, ``ean`` or ``barcode``
  (``sender_id``, ``senderId``), or one such as ``taxonid``, or its first word is ``id``; or if the
  name is that of a table's saved index: empty, ``Unnamed: 0``, ``index``, ``row`` or the like.

Measurements are neither: where they are dense, they repeat.

Identifiers of things that recur (at most one distinct value in two rows, under the name of an
identifier) are categories, and so is a column that its counts alone show to have no order
(:func:`unordered`).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from wcl_ray.data.split import uniform

SAMPLE = 1024  # distinct values whose rows are counted
LEAST = 20  # columns with no more values are not called row numbers
LEAST_UNORDERED = 30  # nor those with fewer unordered
DISPERSION = 4.0  # variance of the counts over their mean; 1 is chance

_INDEX = re.compile(
    r"(unnamed[:_ ]*\d[\d._]*|(row|line)[ _-]?(number|num|index|id)?|(df[ _-]?)?index"
    r"|__index_level_\d+__|level_0|serial[ _-]?(number)?|)",
    re.IGNORECASE,
)
_LAST = frozenset(
    ["id", "ids", "uid", "uuid", "guid", "idx", "key", "pk", "code", "no", "nr", "num", "number"]
    + ["sku", "ean", "barcode"]
    + [f"{of}id" for of in ("taxon", "user", "image", "photo", "item", "product", "object", "row")]
)
_TIMES = frozenset(
    ["time", "timestamp", "date", "year", "month", "week", "day", "hour", "minute", "second", "age"]
)


@dataclass
class Spread:
    """Range, step and repetition of integers; addition merges those of two parts.

    Attributes:
        integers: all values are integers below 2^63; otherwise the other fields are unset.
        low, high: the smallest and the largest value.
        step: greatest common divisor of all differences; 0 for a single value.
        level: values whose hash is below 2^-level are sampled.
        sample: sampled value → number of rows with it.
    """

    integers: bool = True
    low: int = 0
    high: int = 0
    step: int = 0
    level: int = 0
    sample: Counter[int] = field(default_factory=Counter)

    @staticmethod
    def of(values: np.ndarray, counts: np.ndarray) -> Spread:
        """The spread of distinct numbers.

        Args:
            values: integers or finite float64 (V,).
            counts: int64 (V,), number of rows with each.
        """
        if len(values) == 0:
            return Spread()
        low, high = values.min(), values.max()
        floats = values.dtype.kind == "f"
        if low < -(2**63) or high >= 2**63 or (floats and (values != np.floor(values)).any()):
            return Spread(integers=False)
        integers = values.astype(np.int64)
        above_low = integers.view(np.uint64) - np.int64(low).view(np.uint64)  # without overflow
        level, sample = _sample(0, integers, counts)
        step = int(np.gcd.reduce(above_low))
        return Spread(True, int(low), int(high), step, level, sample)

    def __add__(self, other: Spread) -> Spread:
        if not (self.integers and other.integers):
            return Spread(integers=False)
        if not (self.sample and other.sample):
            return self if self.sample else other
        pairs = np.array(list((self.sample + other.sample).items()), np.int64)
        level, sample = _sample(max(self.level, other.level), pairs[:, 0], pairs[:, 1])
        low, high = min(self.low, other.low), max(self.high, other.high)
        step = math.gcd(self.step, other.step, self.low - other.low)
        return Spread(True, low, high, step, level, sample)

    @property
    def distinct_share(self) -> float:
        """Distinct values per row; 1 if none repeats."""
        return len(self.sample) / max(1, self.sample.total())


def _sample(level: int, values: np.ndarray, counts: np.ndarray) -> tuple[int, Counter[int]]:
    """The lowest level from ``level`` on with at most SAMPLE values, and the counts of those."""
    hashes = uniform(values, 0)
    while (kept := hashes < 2.0**-level).sum() > SAMPLE:
        level += 1
    return level, Counter(dict(zip(values[kept].tolist(), counts[kept].tolist(), strict=True)))


def name_words(name: str) -> list[str]:
    """The words of a column's name in lower case.

    >>> name_words("senderId_2")
    ['sender', 'id', '2']
    """
    words = re.findall(r"[^\W_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name))
    return [word.lower() for word in words]


def is_index_name(name: str) -> bool:
    """Whether a name is that of a table's saved index."""
    return _INDEX.fullmatch(name.strip()) is not None


def is_id_name(name: str) -> bool:
    """Whether a name is that of an identifier."""
    words = name_words(name)
    return bool(words) and (words[-1] in _LAST or words[0] == "id")


def unordered(name: str, values: Mapping[float, int], spread: Spread) -> bool:
    """Whether an integer column numbers things, as its counts show.

    The values are 0 or 1 to some number, with few gaps; their counts differ far more than by
    chance; and these counts look shuffled: their von Neumann ratio (mean square of successive
    differences over the variance; 2 if shuffled) is near 2, small and large values are equally
    frequent, and round ones are no more frequent than others. The counts of quantities are smooth
    (ratio near 0), have few large values, or heap at round ones. What is not clear is a quantity,
    and so are columns named after a time.

    Args:
        values: value → number of rows.
    """
    if not spread.integers or spread.low not in (0, 1) or _TIMES & set(name_words(name)):
        return False
    m = spread.high - spread.low + 1
    if len(values) < LEAST_UNORDERED or len(values) < 0.8 * m:
        return False
    counts = np.zeros(m)
    for value, count in values.items():
        counts[int(value) - spread.low] = count
    if counts.var() < DISPERSION * counts.mean():
        return False
    y = np.log1p(counts)
    y -= y.mean()
    deviation = y.std()
    ratio = np.square(np.diff(y)).mean() / deviation**2
    drift = np.abs(np.cumsum(y)).max() / (deviation * math.sqrt(m))  # Kolmogorov and Smirnov
    if ratio < 2 - 3 / math.sqrt(m) or drift > 1.3:
        return False
    for step in (2, 5, 10):
        is_round = np.arange(spread.low, spread.high + 1) % step == 0
        error = deviation * math.sqrt(1 / is_round.sum() + 1 / (~is_round).sum())
        if y[is_round].mean() - y[~is_round].mean() > 2 * error:
            return False
    return True


def identifier(name: str, spread: Spread, known: int) -> str | None:
    """Why an integer column looks like row numbers or an identifier; None if it does not.

    Args:
        known: number of values that are not missing.
    """
    if not spread.integers or not known:
        return None
    words = name_words(name) or [""]
    if is_index_name(name) or is_id_name(name):
        return (
            "integers under the name of an index or identifier; give it in --clusters.columns to "
            "use its values as categories"
        )
    steps = (spread.high - spread.low) // max(1, spread.step)
    consecutive = known > LEAST and spread.distinct_share >= 0.95 and steps < 2 * known
    # two images of each object; measurements are never that even
    pairs = known > 2 * LEAST and set(spread.sample.values()) == {2} and steps < known
    if (consecutive or pairs) and not _TIMES & set(words):
        return (
            f"integers from {spread.low} to {spread.high} that "
            f"{'occur twice each' if pairs else 'hardly repeat'}: looks like a row "
            "number; give it in --clusters.columns to use it anyway"
        )
    return None
