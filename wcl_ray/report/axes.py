"""Values to pixels: axes with round ticks, linear, logarithmic or of names."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 480.0, 372.0
LEFT, TOP, BOTTOM = 62.0, 16.0, 56.0
BAR = 68.0  # for the colour bar, right of the plot
RIGHT = 18.0


def escape(text: object) -> str:
    """Text that is safe in HTML and in attributes, and can be written as UTF-8."""
    plain = str(text).encode("utf-8", "backslashreplace").decode()
    plain = "".join(c if c >= " " or c in "\n\t" else "\ufffd" for c in plain)
    return html.escape(plain, quote=True)


def short(value: float) -> str:
    """A number for people: three digits, whole ones in full."""
    if float(value).is_integer() and abs(value) < 1e9:
        return f"{int(value):,}"
    return f"{value:.3g}"


@dataclass(frozen=True)
class Axis:
    """Values to pixels: linear, logarithmic, or one place a name.

    Attributes:
        start, end: pixels of the ends; the vertical axis starts at the bottom.
        low, high: the values there, logarithms where ``log``.
        whole: ticks at whole numbers only. percent: values are shares.
    """

    title: str
    start: float
    end: float
    low: float
    high: float
    log: bool = False
    whole: bool = False
    percent: bool = False
    names: tuple[str, ...] = ()

    @classmethod
    def over(
        cls,
        title: str,
        values: Iterable[float],
        ends: tuple[float, float],
        *,
        log: bool = False,
        whole: bool = False,
        percent: bool = False,
        pad: float = 0.07,
    ) -> Axis:
        """An axis on which all values lie, with some room; logarithmic only if they allow it."""
        known = [v for v in values if math.isfinite(v)] or [1.0]
        log = log and min(known) > 0
        low, high = min(known), max(known)
        if log:
            low, high = math.log10(low), math.log10(high)
        if high - low <= 1e-9 * max(1.0 if log else 1e-300, abs(low), abs(high)):
            room = 0.3 if log else abs(low) * 0.1 or 1.0
        else:
            room = (high - low) * pad
        start, end = low - room, high + room
        if percent:  # no share is below 0 or above 1, unless one was measured there
            start, end = max(start, min(low, 0.0)), min(end, max(high, 1.0))
        return cls(title, *ends, start, end, log, whole, percent)

    @classmethod
    def of_names(cls, title: str, names: Sequence[str], ends: tuple[float, float]) -> Axis:
        """An axis of categories."""
        return cls(title, *ends, -0.5, max(len(names), 1) - 0.5, names=tuple(names))

    def share(self, value: float | str) -> float:
        """Where a value lies between the ends, from 0 to 1."""
        if isinstance(value, str):
            value = float(self.names.index(value))
        elif self.log:
            value = math.log10(value)
        return (value - self.low) / (self.high - self.low)

    def at(self, value: float | str) -> float:
        """Its pixel."""
        return self.start + (self.end - self.start) * self.share(value)

    def ticks(self) -> list[tuple[float, str]]:
        """Pixels and texts of some round values."""
        if self.names:
            room = abs(self.end - self.start) / len(self.names)
            every = max(1, math.ceil(30 / room))
            letters = max(3, int(room * every / 8)) if self.end > self.start else 6
            cut = [n if len(n) <= letters else n[: letters - 1] + "…" for n in self.names]
            return [(self.at(n), cut[i]) for i, n in enumerate(self.names) if i % every == 0]
        values = self._round_logs() if self.log else []
        if len(values) < 2:
            low, high = (10**self.low, 10**self.high) if self.log else (self.low, self.high)
            values = round_values(low, high, whole=self.whole)
        digits = 0
        if self.percent and len(values) > 1:
            digits = min(6, max(0, -math.floor(math.log10((values[1] - values[0]) * 100) + 1e-9)))
        texts = [f"{v * 100:.{digits}f}%" if self.percent else short(v) for v in values]
        return [(self.at(v), text) for v, text in zip(values, texts, strict=True)]

    def _round_logs(self) -> list[float]:
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        found: list[float] = []
        for heads in ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
            found = [float(f"{head}e{d}") for d in decades for head in heads]
            found = [v for v in found if v > 0 and self.low <= math.log10(v) <= self.high]
            if self.whole:
                found = [v for v in found if v.is_integer()]
            if len(found) <= 6:
                return found
        return found[:: math.ceil(len(found) / 6)]


def round_values(low: float, high: float, most: int = 6, whole: bool = False) -> list[float]:
    """Round values between two, at most about so many."""
    raw = (high - low) / most
    if not math.isfinite(raw) or raw <= 0:
        return []
    base = 10.0 ** math.floor(math.log10(raw))
    step = next((m * base for m in (1, 2, 5) if m * base >= raw * 0.999), 10 * base)
    step = max(1.0, step) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{i * step:.10g}") for i in range(first, last + 1)]
