"""Integers that name rows or things and measure nothing: row numbers and identifiers.

A column of integers (floats without a fraction too) looks like

- a row number when nearly every value occurs once and they fill a range at least by half, in steps
  of one or of any other number: with more than 20 values, at least 95 % of them different, and at
  most twice as many steps in the range as there are values (a held-out share leaves holes). So it
  does when each of more than 20 values occurs exactly twice (two images a thing). Not
  under a name of times: years and seconds run on, too;
- an identifier by its name: the last word is ``id``, ``uid``, ``uuid``, ``guid``, ``idx``, ``key``,
  ``pk``, ``code``, ``no``, ``nr``, ``num``, ``number``, ``sku``, ``ean`` or ``barcode``
  (``sender_id``, ``senderId``), or one such as ``taxonid``, or the first is ``id``; or the whole
  name is empty, ``Unnamed: 0``, ``index``, ``row`` or the like, as tables are written with their
  index.

Numbers that measure are neither: where they lie densely they repeat.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from wcl_ray.data.split import uniform

SAMPLE = 1024  # different values whose rows are counted
LEAST = 20  # values up to which nothing is said of row numbers

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
    """How integers are spread; adding two gives that of both, in whatever order.

    Attributes:
        whole: all are integers below 2^63; else the rest says nothing.
        low, high: the smallest and the largest.
        step: the greatest number that divides all differences; 0 for a single value.
        level: values are sampled whose hash is below 2^-level.
        sample: sampled value → rows that have it.
    """

    whole: bool = True
    low: int = 0
    high: int = 0
    step: int = 0
    level: int = 0
    sample: Counter[int] = field(default_factory=Counter)

    @staticmethod
    def of(values: np.ndarray, counts: np.ndarray) -> Spread:
        """Of different numbers and the rows that have each.

        Args:
            values: integers or finite float64 (V,). counts: int64 (V,).
        """
        if len(values) == 0:
            return Spread()
        low, high = values.min(), values.max()
        floats = values.dtype.kind == "f"
        if low < -(2**63) or high >= 2**63 or (floats and (values != np.floor(values)).any()):
            return Spread(whole=False)
        whole = values.astype(np.int64)
        above = whole.view(np.uint64) - np.int64(low).view(np.uint64)  # wraps to the difference
        level, sample = _thinned(0, whole, counts)
        step = int(np.gcd.reduce(above))
        return Spread(True, int(low), int(high), step, level, sample)

    def __add__(self, other: Spread) -> Spread:
        if not (self.whole and other.whole):
            return Spread(whole=False)
        if not (self.sample and other.sample):
            return self if self.sample else other
        both = self.sample + other.sample
        pairs = np.array(list(both.items()), np.int64)
        level, sample = _thinned(max(self.level, other.level), pairs[:, 0], pairs[:, 1])
        low, high = min(self.low, other.low), max(self.high, other.high)
        step = math.gcd(self.step, other.step, self.low - other.low)
        return Spread(True, low, high, step, level, sample)

    @property
    def different(self) -> float:
        """Share of different values, 1 when none repeats."""
        return len(self.sample) / max(1, self.sample.total())


def _thinned(level: int, values: np.ndarray, counts: np.ndarray) -> tuple[int, Counter[int]]:
    """The first level from ``level`` on at which the values are few enough, and those."""
    hashes = uniform(values, 0)
    while (kept := hashes < 2.0**-level).sum() > SAMPLE:
        level += 1
    return level, Counter(dict(zip(values[kept].tolist(), counts[kept].tolist(), strict=True)))


def identifier(name: str, spread: Spread, known: int) -> str | None:
    """Why a column of integers looks like row numbers or an identifier; None when it does not.

    Args:
        known: values that are not missing.
    """
    if not spread.whole or not known:
        return None
    words = re.findall(r"[^\W_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name))
    words = [word.lower() for word in words] or [""]
    if _INDEX.fullmatch(name.strip()) or words[-1] in _LAST or words[0] == "id":
        return (
            "integers under the name of an index or identifier; give it in --clusters.columns to "
            "use its values as categories"
        )
    steps = (spread.high - spread.low) // max(1, spread.step)
    runs = known > LEAST and spread.different >= 0.95 and steps < 2 * known
    # of a pair of images each; a number that measures is not spread that evenly
    pairs = known > 2 * LEAST and set(spread.sample.values()) == {2} and steps < known
    if (runs or pairs) and not _TIMES & set(words):
        return (
            f"integers from {spread.low} to {spread.high} that "
            f"{'occur twice each' if pairs else 'hardly repeat'}: looks like a row "
            "number; give it in --clusters.columns to use it all the same"
        )
    return None
