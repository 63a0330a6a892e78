"""The table of metadata columns: type, values, missing ones, and what becomes of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wcl_ray.clusters.counts import MOST_VALUES, ColumnCounts
from wcl_ray.clusters.types import ColumnType
from wcl_ray.terminal import table

SHOWN = 40  # columns in the printed table


@dataclass(frozen=True)
class ColumnSummary:
    """What the user is told of a column.

    Attributes:
        values: number of distinct values; None if there are too many to count.
        missing: share of the rows without a value.
        outcome: what becomes of it.
    """

    name: str
    type: str
    values: int | None
    missing: float
    outcome: str


def summarise(
    types: Mapping[str, ColumnType],
    counts: Mapping[Any, ColumnCounts],
    outcomes: Mapping[str, str],
    skipped: Mapping[str, str],
) -> list[ColumnSummary]:
    """One summary per column.

    Args:
        outcomes: column → what it became. skipped: column → why it was left out.
    """
    summaries = []
    for name, column_type in types.items():
        column = counts[name]
        if column_type.name == "tags":  # of texts the tags are counted, not the texts
            column = counts[column_type.views[0].key]
        outcome = f"left out: {skipped[name]}" if name in skipped else outcomes.get(name, "")
        if not column_type.views:
            outcome = f"together with {column_type.partner!r}"
        too_many = column.undercount or column.rounded
        distinct = None if too_many else len(column.values)
        nulls = counts[column_type.views[0].key].nulls if column_type.views else column.nulls
        missing = nulls / max(1, column.rows)
        summaries.append(ColumnSummary(name, column_type.name, distinct, missing, outcome))
    return summaries


def _shown_name(name: str) -> str:
    text = name if name.isprintable() and name.strip() else repr(name)
    return text if len(text) <= 40 else f"{text[:37]}..."


def render(summaries: Sequence[ColumnSummary]) -> str:
    """A table with a line for each of the first columns, and one that counts the others."""
    body = [
        [
            _shown_name(s.name),
            s.type,
            f"> {MOST_VALUES:,}" if s.values is None else f"{s.values:,}",
            f"{s.missing:.0%}" if s.missing in (0, 1) else f"{s.missing:.1%}",
            s.outcome,
        ]
        for s in summaries[:SHOWN]
    ]
    text = table(["column", "type", "values", "missing", "becomes"], body, left=(0, 1, 4))
    rest = summaries[SHOWN:]
    if rest:
        out = sum(s.outcome.startswith("left out") for s in rest)
        text += f"\nand {len(rest)} more columns, {out} of them left out (clusters.json lists all)"
    return text
