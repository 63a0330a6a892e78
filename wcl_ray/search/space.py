"""The search space: its grammar, its dimensions and their points.

The sampler sees numbers only. A list of values is searched by index (numbers in rising order, so
that similar values are neighbours), a range by the number itself.
"""

from __future__ import annotations

import difflib
import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from wcl_ray.config import Config, field_name
from wcl_ray.errors import UserError
from wcl_ray.flags import BOOLEANS, keys
from wcl_ray.registry import KINDS
from wcl_ray.renamed import REMOVED
from wcl_ray.search.options import with_value
from wcl_ray.search.outcome import TEMPERATURE

RANGES = {
    "uniform": ("float", False),
    "loguniform": ("float", True),
    "int": ("int", False),
    "logint": ("int", True),
}
SECTIONS = ("clusters", "loss", "model", "augment", "train")
FIXED = ("train.epochs", "train.audit", "train.rounds", "train.warmup-rounds")
DEFAULT_TEMPERATURE = "loguniform:0.03:0.5"


@dataclass(frozen=True)
class Dimension:
    """One searched option.

    Attributes:
        key: dotted, with dashes.
        kind: float or int for a range, values for a list.
        low, high: of a range, both included. log: the range is logarithmic.
        values: of a list.
    """

    key: str
    kind: Literal["float", "int", "values"]
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    values: tuple[Any, ...] = ()

    def decode(self, point: Any) -> Any:
        """The value of the option at a point of the sampler."""
        if self.kind == "values":
            return self.values[int(point)]
        value = int(point) if self.kind == "int" else float(point)
        return (value,) if _takes_several(self.key) else value

    def encode(self, value: Any) -> Any | None:
        """The point of a value, None if the value lies outside."""
        if self.kind == "values":
            return self.values.index(value) if value in self.values else None
        if isinstance(value, tuple):
            if len(value) != 1:
                return None
            value = value[0]
        return value if self.low <= value <= self.high else None

    def points(self, count: int) -> list[Any]:
        """Points for a grid: all of a list, or ``count`` of a range."""
        if self.kind == "values":
            return list(range(len(self.values)))
        spaced = np.geomspace if self.log else np.linspace
        points = [float(x) for x in spaced(self.low, self.high, count)]
        if self.kind == "int":
            return sorted({round(x) for x in points})
        return [min(self.high, max(self.low, float(f"{x:.4g}"))) for x in points]

    def describe(self) -> str:
        """The values in words, for a line of output."""
        if self.kind == "values":
            return ", ".join(show(value) for value in self.values)
        kind = ("log-" if self.log else "") + ("integer" if self.kind == "int" else "uniform")
        return f"{kind} {self.low:g} to {self.high:g}"


def granularity_option(kind: str) -> str | None:
    """The option whose values are the granularities of a kind of clusters."""
    name = KINDS.get(kind).granularity
    return None if name is None else f"clusters.{name.replace('_', '-')}"


def show(value: Any) -> str:
    """A value as text, as the command line takes it."""
    if isinstance(value, (tuple, list)):
        return "+".join(show(v) for v in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def given_dimensions(given: Sequence[str]) -> dict[str, Dimension]:
    """The dimensions of ``KEY=SPACE`` texts.

    Raises:
        UserError: an unknown key or one that trials cannot differ in, an invalid space, or a value
            that the option does not take.
    """
    dimensions = {}
    for text in given:
        key, _, space = text.partition("=")
        _check_key(key)
        dimensions[key] = parse_space(key, space)
    return dimensions


def default_dimensions(given: dict[str, Dimension]) -> list[Dimension]:
    """The dimensions before the data are read: temperature, then the given ones. The default of
    the granularity needs the data."""
    dimensions = {TEMPERATURE: parse_space(TEMPERATURE, DEFAULT_TEMPERATURE)} | given
    return list(dimensions.values())


def parse_space(key: str, text: str) -> Dimension:
    """Parse one space; the help of ``--search`` has the grammar.

    Raises:
        UserError: an invalid space, or a value that the option does not take.
    """
    name, colon, rest = text.partition(":")
    if colon and name in RANGES:
        return _range(key, name, rest)
    if colon and name != "choice" and name.isalpha() and _type(key) is not str:
        kinds = ", ".join(f"{kind}:LOW:HIGH" for kind in RANGES)
        raise UserError(f"search.{key} {text!r}: a space is {kinds}, or values A,B,C")
    listed = rest if name == "choice" and colon else text
    values = [_value(key, item.strip()) for item in listed.split(",") if item.strip()]
    if not values:
        raise UserError(f"search.{key} {text!r} holds no value")
    return listing(key, values)


def listing(key: str, values: Sequence[Any]) -> Dimension:
    """The dimension of a list of values, numbers in rising order, without duplicates."""
    unique = list(dict.fromkeys(values))
    if all(isinstance(v, (int, float, tuple)) and not isinstance(v, bool) for v in unique):
        unique.sort(key=lambda v: v if isinstance(v, tuple) else (v,))
    for value in unique:
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"search.{key}: {value} is not a finite number")
        _check_value(key, value)
    return Dimension(key, "values", values=tuple(unique))


def spaced(low: int, high: int, most: int) -> list[int]:
    """At most ``most`` integers from low to high, evenly spaced on a logarithmic scale."""
    if high - low < most:
        return list(range(low, high + 1))
    return sorted({round(x) for x in np.geomspace(low, high, most)})


def grid(dimensions: Sequence[Dimension], trials: int) -> list[dict[str, Any]]:
    """The cells of a full grid: all values of lists, and as many points of each range, at least
    two, as keep the number of cells within ``trials``.

    Raises:
        UserError: the smallest grid has more cells than trials.
    """
    lists = math.prod(len(d.values) for d in dimensions if d.kind == "values")
    ranges = sum(d.kind != "values" for d in dimensions)
    count = int((trials / lists) ** (1 / ranges) + 1e-9) if ranges else 0
    if lists > trials or (ranges and count < 2):
        least = lists * 2**ranges
        raise UserError(
            f"sampler grid needs at least {least} cells, more than trials {trials}; raise --trials "
            "or shorten a list of --search"
        )
    while ranges and lists * (count + 1) ** ranges <= trials:
        count += 1
    cells: list[dict[str, Any]] = [{}]
    for d in dimensions:
        cells = [{**cell, d.key: point} for cell in cells for point in d.points(count)]
    return cells


def decode(dimensions: Sequence[Dimension], points: dict[str, Any]) -> dict[str, Any]:
    """Option → value at a point of the sampler."""
    return {d.key: d.decode(points[d.key]) for d in dimensions}


def encode(dimensions: Sequence[Dimension], config: Config) -> dict[str, Any] | None:
    """The point of a configuration, None if it lies outside the space."""
    points = {d.key: d.encode(get(config, d.key)) for d in dimensions}
    return None if None in points.values() else points


def get(config: Config, key: str) -> Any:
    """An option by its dotted key."""
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), field_name(name)) if name else getattr(config, section)


def _check_key(key: str) -> None:
    known = [k for k in keys(Config) if k.split(".")[0] in SECTIONS and k not in FIXED]
    if key in known:
        return
    if key in keys(Config):
        reason = "sets the length of trials" if key in FIXED else "is the same for all trials"
        raise UserError(f"search.{key}: this option {reason} and cannot be searched")
    if key in REMOVED:
        raise UserError(f"search.{key}: this option is gone; {REMOVED[key][0]}")
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else "; pretrain.py --help lists the options"
    raise UserError(f"search.{key}: there is no such option{hint}")


def _type(key: str) -> Any:
    kind = keys(Config)[key]
    parts = typing.get_args(kind)
    return next(p for p in parts if p is not type(None)) if type(None) in parts else kind


def _takes_several(key: str) -> bool:
    return typing.get_origin(_type(key)) is tuple


def _range(key: str, name: str, rest: str) -> Dimension:
    kind, log = RANGES[name]
    try:
        low, high = (float(end) for end in rest.split(":"))
    except ValueError:
        raise UserError(f"search.{key} {name}:{rest}: expected {name}:LOW:HIGH, numbers") from None
    option = _type(key)
    inner = typing.get_args(option)[0] if _takes_several(key) else option
    if inner not in (int, float) or (inner is int and kind == "float"):
        problem = "an integer; use int or logint" if inner is int else "not a number; use A,B,C"
        raise UserError(f"search.{key} {name}:{rest}: the option is {problem}")
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise UserError(f"search.{key} {name}:{rest}: LOW must not be above HIGH")
    if log and low <= 0:
        raise UserError(f"search.{key} {name}:{rest}: LOW of a logarithmic range must be above 0")
    if kind == "int" and not (low.is_integer() and high.is_integer()):
        raise UserError(f"search.{key} {name}:{rest}: LOW and HIGH must be integers")
    dimension = Dimension(key, "int" if kind == "int" else "float", low, high, log)
    for end in (low, high):
        _check_value(key, dimension.decode(end))
    return dimension


def _value(key: str, text: str) -> Any:
    kind = _type(key)
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        return tuple(_scalar(key, inner, item) for item in text.split("+"))
    return _scalar(key, kind, text)


def _scalar(key: str, kind: Any, text: str) -> Any:
    if typing.get_origin(kind) is Literal:
        options = typing.get_args(kind)
        if text not in options:
            raise UserError(f"search.{key}: {text!r} is not one of {', '.join(options)}")
        return text
    try:
        if kind is bool:
            return BOOLEANS[text.lower()]
        if kind in (int, float):
            return kind(text)
    except (ValueError, KeyError):
        name = {bool: "true or false", int: "an integer", float: "a number"}[kind]
        raise UserError(f"search.{key}: {text!r} is not {name}") from None
    return text


def _check_value(key: str, value: Any) -> None:
    """Check the option's own limits; the trial checks those that depend on other options."""
    section = key.split(".")[0]
    try:
        with_value(Config(), key, value)
    except ValueError as error:
        if str(error).startswith(section):
            raise UserError(f"search.{key} {show(value)}: {error}") from None
