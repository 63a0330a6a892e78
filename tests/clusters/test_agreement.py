"""NMI and ARI against values worked out by hand, and histograms of cluster sizes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wcl_ray.clusters.agreement import agreement, size_histogram


def test_a_table_by_hand() -> None:
    """Rows of the contingency table: (2, 1), (0, 3)."""
    a, b = np.array([0, 0, 0, 1, 1, 1]), np.array([0, 0, 1, 1, 1, 1])
    found = agreement(a, b)
    # pairs together in both 1 + 3, in a 3 + 3, in b 1 + 6, of 15; expected 6 * 7 / 15
    assert found.ari == pytest.approx((4 - 2.8) / (6.5 - 2.8))
    third = math.log2(3) / 3 + 2 / 3 * math.log2(3 / 2)  # entropy of (1/3, 2/3)
    joint = math.log2(3) / 3 + math.log2(6) / 6 + 1 / 2
    assert found.nmi == pytest.approx((1 + third - joint) / ((1 + third) / 2))
    assert found.rows == 6
    assert agreement(b, a) == found


def test_extremes() -> None:
    n = np.arange(60)
    same = agreement(n % 5, (n % 5 * 7 + 3) % 11)  # other numbers, the same clusters
    assert (same.nmi, same.ari) == (pytest.approx(1), pytest.approx(1))
    crossed = agreement(n % 5, n // 5 % 4)  # every pair of numbers three times
    assert crossed.nmi == pytest.approx(0, abs=1e-12)
    assert -0.1 < crossed.ari < 0
    singles = agreement(n * 0, n)
    assert (singles.nmi, singles.ari) == (0, 0)
    for trivial in (n, n * 0):
        assert (agreement(trivial, trivial).nmi, agreement(trivial, trivial).ari) == (1, 1)


def test_independent_labels_are_near_zero() -> None:
    a, b = np.random.default_rng(0).integers(0, 10, (2, 20000))
    found = agreement(a, b)
    assert abs(found.ari) < 2e-3
    assert 0 <= found.nmi < 5e-3


def test_images_without_a_cluster_are_left_out() -> None:
    a = np.array([0, 0, 1, 1, -1, 2, -1])
    b = np.array([5, 5, 7, 7, 5, -1, -1])
    found = agreement(a, b)
    assert (found.nmi, found.ari, found.rows) == (1, 1, 4)
    assert agreement(np.array([-1, 0]), np.array([0, -1])).rows == 0


@given(st.lists(st.tuples(st.integers(-1, 4), st.integers(-1, 4)), max_size=60))
def test_as_pairs_counted_one_by_one(rows: list[tuple[int, int]]) -> None:
    a = np.array([x for x, _ in rows], np.int32)
    b = np.array([y for _, y in rows], np.int32)
    found = agreement(a, b)
    kept = [(x, y) for x, y in rows if x >= 0 and y >= 0]
    assert found.rows == len(kept)
    assert 0 <= found.nmi <= 1 + 1e-12
    pairs = [(p[0] == q[0], p[1] == q[1]) for i, p in enumerate(kept) for q in kept[:i]]
    both = sum(x and y for x, y in pairs)
    one, two = sum(x for x, _ in pairs), sum(y for _, y in pairs)
    if pairs and (one + two) / 2 != one * two / len(pairs):
        expected = one * two / len(pairs)
        assert found.ari == pytest.approx((both - expected) / ((one + two) / 2 - expected))


def test_sizes() -> None:
    assert size_histogram(np.array([1, 1, 0, 2, 3, 4, 8, 15])) == {
        "1": 2, "2-3": 2, "4-7": 1, "8-15": 2,
    }  # fmt: skip
    assert size_histogram(np.array([], np.int64)) == {"1": 0}
    assert size_histogram(np.array([16]))["16-31"] == 1
