"""Metadata as vectors: weights by hand, and the same rows for any blocks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray

from wcl_ray.clusters.tfidf import vectors
from wcl_ray.data.sources.base import ID
from wcl_ray.errors import UserError, find_user_error

pytestmark = pytest.mark.usefixtures("ray_local")


def features(
    table: pa.Table, columns: list[str], parts: int = 1
) -> tuple[dict[int, list[float] | None], str]:
    """Feature by id."""
    step = -(-len(table) // parts)
    pieces = [table.slice(i, step) for i in range(0, len(table), step)]
    made, line, _ = vectors(ray.data.from_arrow(pieces), columns)
    return {row[ID]: row["feature"] for row in made.take_all()}, line


def idf(rows: int, having: int) -> float:
    return math.log((1 + rows) / (1 + having)) + 1


def test_words_by_hand() -> None:
    text = ["red wing", "Red, red spot", "wing", None, "once"]
    found, line = features(pa.table({ID: range(5), "note": text}), ["note"])
    red, wing = idf(5, 2), idf(5, 2)  # "spot" and "once" are met once and left out
    assert line == "2 words and 0 numbers of note"
    assert found[0] == pytest.approx([red / math.hypot(red, wing), wing / math.hypot(red, wing)])
    assert found[1] == pytest.approx([1, 0])
    assert found[2] == pytest.approx([0, 1])
    assert found[3] is None
    assert found[4] is None


def test_frequent_words_weigh_less_and_words_of_columns_differ() -> None:
    table = pa.table(
        {
            ID: range(6),
            "tags": [["a", "B b"], ["a"], ["a", "B b"], ["a"], [], None],
            "flag": [True, False, None, True, None, None],
            "name": ["a", "x", "y", "z", "a", "everyone"],
        }
    )
    found, line = features(table, ["tags", "flag", "name"])
    # by falling count, then by name: tags=a (4), flag=true, name=a, tags=b b (2 each)
    assert line.startswith("4 words")
    a, rare = idf(6, 4), idf(6, 2)
    assert a < rare
    whole = math.sqrt(a**2 + 3 * rare**2)
    assert found[0] == pytest.approx([a / whole, rare / whole, rare / whole, rare / whole])
    assert found[1] == pytest.approx([1, 0, 0, 0])
    assert found[4] == pytest.approx([0, 0, 1, 0])
    assert found[5] is None


def test_numbers_are_standardised_and_cut() -> None:
    size = [1.0, 3.0] * 20 + [None, float("nan"), 1000.0]
    table = pa.table({ID: range(43), "size": size, "same": [7] * 43, "n": [0, 4] * 21 + [2]})
    found, line = features(table, ["size", "same", "n"])
    assert line == "0 words and 2 numbers of size, same, n"
    # 1000 is stored with twelve binary digits
    known = np.array([1.0, 3.0] * 20 + [1000.0])
    scaled = np.clip((known - known.mean()) / known.std(), -3, 3) / 3 / math.sqrt(2)
    assert found[0] is not None
    assert found[42] is not None
    assert found[0][0] == pytest.approx(scaled[0], rel=1e-3)
    assert found[42][0] == pytest.approx(1 / math.sqrt(2))
    assert found[40] is not None
    assert found[40][0] == 0
    n = np.array([0, 4] * 21 + [2])
    assert found[1] is not None
    assert found[1][1] == pytest.approx((4 - n.mean()) / n.std() / 3 / math.sqrt(2))


def test_numbers_far_from_zero_and_infinite_ones() -> None:
    year = [1990 + i % 20 for i in range(100)]
    table = pa.table({ID: range(100), "year": year, "odd": [float("inf"), *range(99)]})
    found, line = features(table, ["year", "odd"])
    assert line.startswith("0 words and 2 numbers")
    y = np.array(year)
    own = np.array([found[i] for i in range(100)])
    assert own[:, 0] == pytest.approx((y - y.mean()) / y.std() / 3 / math.sqrt(2), abs=1e-5)
    assert own[0, 1] == 0


def test_blocks_do_not_matter() -> None:
    rng = np.random.default_rng(0)
    words = np.array(["red", "blue", "wing", "leg", "old", "new"])
    table = pa.table(
        {
            ID: np.arange(300) * 7,
            "note": [" ".join(rng.choice(words, rng.integers(0, 4))) for _ in range(300)],
            "tags": [list(rng.choice(words, rng.integers(0, 3))) for _ in range(300)],
            "size": rng.normal(5, 2, 300),
        }
    )
    columns = ["note", "tags", "size"]
    whole, line = features(table, columns)
    for parts in (3, 17):
        order = np.random.default_rng(parts).permutation(300)
        other, other_line = features(table.take(order), columns, parts)
        assert other_line == line
        assert other.keys() == whole.keys()
        for key, value in whole.items():
            assert value is not None
            assert other[key] == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("values", [["a", "b", "c", "d"], ["a"] * 4, [3, 3, None, 3], [None] * 4])
def test_nothing_to_cluster(values: list[Any]) -> None:
    with pytest.raises(UserError) as caught:
        features(pa.table({ID: range(4), "note": values}), ["note"])
    error = find_user_error(caught.value)
    assert error is not None
    assert "none of the columns note has a word that two images share" in str(error)
