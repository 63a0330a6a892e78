"""What is searched: the grammar of spaces, and points of them.

The sampler sees numbers only. A list of values is searched by its index (in rising order where the
values are numbers, so that neighbours are near), a range by the number itself.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from wcl_ray.cli import BOOLEANS, keys
from wcl_ray.config import Config, field_name
from wcl_ray.errors import UserError
from wcl_ray.registry import KINDS
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
        kind: float, int, or values.
        low, high: of a range, both included. log: evenly spread over its logarithm.
        values: of a list.
    """

    key: str
    kind: Literal["float", "int", "values"]
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    values: tuple[Any, ...] = ()

    def decode(self, point: Any) -> Any:
        """Value of the option for what the sampler proposed."""
        if self.kind == "values":
            return self.values[int(point)]
        value = int(point) if self.kind == "int" else float(point)
        return (value,) if _takes_several(self.key) else value

    def encode(self, value: Any) -> Any | None:
        """What the sampler would have to propose; None where the value lies outside."""
        if self.kind == "values":
            return self.values.index(value) if value in self.values else None
        if isinstance(value, tuple):
            if len(value) != 1:
                return None
            value = value[0]
        return value if self.low <= value <= self.high else None

    def points(self, count: int) -> list[Any]:
        """Points for a grid: all of a list, else ``count`` of the range."""
        if self.kind == "values":
            return list(range(len(self.values)))
        spaced = np.geomspace if self.log else np.linspace
        found = [float(x) for x in spaced(self.low, self.high, count)]
        if self.kind == "int":
            return sorted({round(x) for x in found})
        return [min(self.high, max(self.low, float(f"{x:.4g}"))) for x in found]

    def describe(self) -> str:
        """For people."""
        if self.kind == "values":
            return ", ".join(show(value) for value in self.values)
        how = "log-" if self.log else ""
        return (
            f"{how}{'integer' if self.kind == 'int' else 'uniform'} {self.low:g} to {self.high:g}"
        )


def granularity_option(kind: str) -> str | None:
    """The option whose values are the granularities of a kind of clusters."""
    name = KINDS.get(kind).granularity
    return None if name is None else f"clusters.{name.replace('_', '-')}"


def show(value: Any) -> str:
    """A value for people, as the command line takes it."""
    if isinstance(value, (tuple, list)):
        return "+".join(show(v) for v in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def given_dimensions(given: Sequence[str]) -> dict[str, Dimension]:
    """The dimensions of ``KEY=SPACE`` texts.

    Raises:
        UserError: an unknown key or one that trials cannot differ in, a space that is none, or a
            value that the option does not take.
    """
    found = {}
    for text in given:
        key, _, space = text.partition("=")
        _check_key(key)
        found[key] = parse_space(key, space)
    return found


def default_dimensions(given: dict[str, Dimension]) -> list[Dimension]:
    """Temperature first, then what was given; the granularity's default needs the data."""
    both = dict(given)
    both.setdefault(TEMPERATURE, parse_space(TEMPERATURE, DEFAULT_TEMPERATURE))
    return [both.pop(TEMPERATURE), *both.values()]


def parse_space(key: str, text: str) -> Dimension:
    """One space; see ``--search`` of the options for the grammar.

    Raises:
        UserError: naming the option and what is wrong.
    """
    name, colon, rest = text.partition(":")
    if colon and name in RANGES:
        return _range(key, name, rest)
    if colon and name != "choice" and name.isalpha() and _type(key) is not str:
        kinds = ", ".join(f"{kind}:LOW:HIGH" for kind in RANGES)
        raise UserError(f"search.{key} {text!r}: a space is {kinds}, or values A,B,C")
    listed = rest if name == "choice" and colon else text
    values = [_value(key, part.strip()) for part in listed.split(",") if part.strip()]
    if not values:
        raise UserError(f"search.{key} {text!r} holds no value")
    return listing(key, values)


def listing(key: str, values: Sequence[Any]) -> Dimension:
    """A list of values; numbers are put in rising order, repeated ones left out."""
    unique = list(dict.fromkeys(values))
    if all(isinstance(v, (int, float, tuple)) and not isinstance(v, bool) for v in unique):
        unique.sort(key=lambda v: v if isinstance(v, tuple) else (v,))
    for value in unique:
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"search.{key}: {value} is not a finite number")
        _check_value(key, value)
    return Dimension(key, "values", values=tuple(unique))


def spaced(low: int, high: int, most: int) -> list[int]:
    """At most so many integers from low to high, evenly spread over the logarithm."""
    if high - low < most:
        return list(range(low, high + 1))
    return sorted({round(x) for x in np.geomspace(low, high, most)})


def grid(dimensions: Sequence[Dimension], trials: int) -> list[dict[str, Any]]:
    """Every combination: all values of lists, and as many points of each range as keep the number
    of cells within ``trials`` (at least two).

    Raises:
        UserError: the lists alone make more cells than trials.
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
    """Option → value for what the sampler proposed."""
    return {d.key: d.decode(points[d.key]) for d in dimensions}


def encode(dimensions: Sequence[Dimension], config: Config) -> dict[str, Any] | None:
    """The point of a configuration; None where it lies outside of the space."""
    found = {}
    for d in dimensions:
        point = d.encode(get(config, d.key))
        if point is None:
            return None
        found[d.key] = point
    return found


def get(config: Config, key: str) -> Any:
    """An option by its dotted key."""
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), field_name(name))


def _check_key(key: str) -> None:
    known = [k for k in keys(Config) if k.split(".")[0] in SECTIONS and k not in FIXED]
    if key in known:
        return
    if key in keys(Config):
        why = "sets the length of trials" if key in FIXED else "is the same for all trials"
        raise UserError(f"search.{key}: this option {why} and cannot be searched")
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else "; pretrain.py --help lists the options"
    raise UserError(f"search.{key}: there is no such option{hint}")


def _type(key: str) -> Any:
    section, _, name = key.partition(".")
    fields = {f.name: f for f in dataclasses.fields(Config)}
    return typing.get_type_hints(fields[section].default_factory)[field_name(name)]


def _takes_several(key: str) -> bool:
    return typing.get_origin(_type(key)) is tuple


def _range(key: str, name: str, rest: str) -> Dimension:
    kind, log = RANGES[name]
    try:
        low, high = (float(part) for part in rest.split(":"))
    except ValueError:
        raise UserError(f"search.{key} {name}:{rest}: expected {name}:LOW:HIGH, numbers") from None
    wanted = _type(key)
    inner = typing.get_args(wanted)[0] if _takes_several(key) else wanted
    if inner not in (int, float) or (inner is int and kind == "float"):
        what = "an integer; use int or logint" if inner is int else "no number; give values A,B,C"
        raise UserError(f"search.{key} {name}:{rest}: the option is {what}")
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise UserError(f"search.{key} {name}:{rest}: LOW has to be below HIGH")
    if log and low <= 0:
        raise UserError(f"search.{key} {name}:{rest}: LOW of a logarithmic range is above 0")
    if kind == "int" and not (low.is_integer() and high.is_integer()):
        raise UserError(f"search.{key} {name}:{rest}: LOW and HIGH are integers")
    found = Dimension(key, "int" if kind == "int" else "float", low, high, log)
    for end in (low, high):
        _check_value(key, found.decode(end))
    return found


def _value(key: str, text: str) -> Any:
    kind = _type(key)
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        return tuple(_one(key, inner, part) for part in text.split("+"))
    return _one(key, kind, text)


def _one(key: str, kind: Any, text: str) -> Any:
    if typing.get_origin(kind) is Literal:
        options = typing.get_args(kind)
        if text not in options:
            raise UserError(f"search.{key}: {text!r} is none of {', '.join(options)}")
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
    """The option's own limits; those that hang on other options are checked by the trial."""
    section = key.split(".")[0]
    blank = Config()
    try:
        with_value(blank, key, value)
    except ValueError as error:
        if str(error).startswith(section):
            raise UserError(f"search.{key} {show(value)}: {error}") from None
