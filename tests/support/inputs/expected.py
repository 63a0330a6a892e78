"""What an input is, and what must come out of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wcl_ray.config import DataConfig

Made = DataConfig | Path


@dataclass(frozen=True)
class Read:
    """Rows come out.

    Attributes:
        rows: how many, those with faults included.
        faults: name of an image → part of the reason.
        values: column → its values, sorted by the image's id or name.
        notes: parts of the warnings.
    """

    rows: int
    faults: dict[str, str] = field(default_factory=dict)
    values: dict[str, list[Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Refused:
    """One line comes out that holds these parts."""

    parts: tuple[str, ...]


@dataclass(frozen=True)
class Input:
    name: str
    make: Callable[[Path], Made]
    expected: Read | Refused


def refused(*parts: str) -> Refused:
    return Refused(parts)
