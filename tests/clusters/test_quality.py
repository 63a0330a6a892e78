"""Information measures against known answers, and expected positives against simulation."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wcl_ray.clusters.quality import (
    composed_positives,
    expected_information,
    measure,
    render,
    shuffled_positives,
    warning,
)
from wcl_ray.data.sampler import epoch_order, meeting


def quality(z: list[int], t: list[int] | None, batch: int = 4, group: int = 2):  # type: ignore[no-untyped-def]
    labels = None if t is None else np.array(t)
    return measure("x", np.array(z), labels, batch, group)


def test_known_answers() -> None:
    same = quality([0, 0, 1, 1], [5, 5, 2, 2])
    assert (same.h_z, same.h_t, same.i_zt, same.h_z_t, same.pair_precision) == (1, 1, 1, 0, 1)
    independent = quality([0, 0, 1, 1], [0, 1, 0, 1])
    assert independent.i_zt == pytest.approx(0)
    assert independent.h_z_t == pytest.approx(1)
    assert independent.pair_precision == 0
    finer = quality([0, 1, 2, 3], [0, 0, 1, 1])
    assert (finer.h_z, finer.i_zt, finer.h_z_t, finer.h_t_z) == (2, 1, 1, 0)
    assert finer.singles == 1
    assert finer.pair_precision is None
    assert quality([-1, -1, -1, -1], None).h_z == 2  # alone is a cluster of its own
    assert quality([-1, 0, 0, 1], None).i_zt is None


def test_images_without_a_label_are_left_out() -> None:
    found = quality([0, 0, 1, 1, 1], [0, 0, 1, 1, -1])
    assert found.i_zt == pytest.approx(1)
    assert found.clusters == 2


codes = st.lists(st.tuples(st.integers(-1, 5), st.integers(0, 3)), min_size=4, max_size=60)


@given(codes)
def test_information_inequalities(pairs: list[tuple[int, int]]) -> None:
    z, t = [a for a, _ in pairs], [b for _, b in pairs]
    q = quality(z, t)
    assert q.i_zt <= min(q.h_z, q.h_t) + 1e-9
    assert q.h_z == pytest.approx(q.i_zt + q.h_z_t, abs=1e-9)
    assert q.h_t == pytest.approx(q.i_zt + q.h_t_z, abs=1e-9)
    renamed = quality([a if a < 0 else (a * 7 + 3) % 11 for a in z], [3 - b for b in t])
    assert renamed.i_zt == pytest.approx(q.i_zt, abs=1e-9)
    assert 0 <= q.composed_lonely <= 1


def test_information_above_chance() -> None:
    rng = np.random.default_rng(0)
    t = np.repeat(np.arange(6), [5, 40, 40, 90, 100, 125])
    z = rng.permutation(np.repeat(np.arange(60), np.arange(60) % 5 + 1)[: len(t)])
    z = np.concatenate([z, rng.integers(60, 63, len(t) - len(z))])  # and some large clusters
    shuffled = [measure("x", rng.permutation(z), t, 8, 2) for _ in range(400)]
    expected = expected_information(np.bincount(z), np.bincount(t))
    assert expected > 0.3
    assert np.mean([q.i_zt for q in shuffled]) == pytest.approx(expected, abs=0.004)  # type: ignore[misc]
    assert shuffled[0].i_zt_adjusted == pytest.approx((shuffled[0].i_zt or 0) - expected)
    # single images know the label, and nothing beyond chance; one cluster knows nothing
    alone = measure("x", np.full(len(t), -1), t, 8, 2)
    assert alone.i_zt == pytest.approx(alone.h_t)
    assert alone.i_zt_adjusted == pytest.approx(0, abs=1e-9)
    assert measure("x", np.zeros(len(t), int), t, 8, 2).i_zt_adjusted == pytest.approx(0, abs=1e-9)
    # the classes themselves come before any split of them
    classes, split = measure("x", t, t, 8, 2), measure("x", 40 * t + np.arange(400) % 40, t, 8, 2)
    assert classes.i_zt == pytest.approx(split.i_zt)
    assert (split.i_zt_adjusted or 0) < (classes.i_zt_adjusted or 0) - 0.5
    assert "above chance" in render([classes], 8)


def test_chance_of_two_pairs_by_hand() -> None:
    # of the three ways to pair four images, one keeps the classes {0, 1} and {2, 3} apart
    assert expected_information(np.array([2, 2]), np.array([2, 2])) == pytest.approx(1 / 3)


def test_information_above_chance_of_many_clusters_takes_seconds() -> None:
    rng = np.random.default_rng(0)
    clusters = np.bincount((100_000 * rng.random(1_280_000) ** 2).astype(int))
    classes = np.bincount(rng.integers(0, 1000, 1_280_000))
    began = time.process_time()
    expected = expected_information(clusters, classes)
    assert time.process_time() - began < 30
    draw = rng.permutation(np.repeat(np.arange(1000), classes))
    found = measure("x", np.repeat(np.arange(len(clusters)), clusters), draw, 8, 2)
    assert found.i_zt == pytest.approx(expected, abs=0.01)


def test_expectations_match_simulation() -> None:
    rng = np.random.default_rng(0)
    z = rng.integers(0, 150, 800).astype(np.int32)
    z[:80] = -1
    sizes = np.concatenate([np.bincount(z[z >= 0]), np.ones(80, int)])
    batch = 64

    def simulate(orders: list[np.ndarray]) -> tuple[float, float]:
        found = [meeting(z[o][: 800 // batch * batch].reshape(-1, batch)) for o in orders]
        return tuple(np.mean(found, axis=0))  # type: ignore[return-value]

    shuffled = simulate([rng.permutation(800) for _ in range(60)])
    assert shuffled_positives(sizes, batch) == pytest.approx(shuffled, abs=0.02)
    for group in (2, 4):
        composed = simulate([epoch_order(z, group, batch, rng) for _ in range(60)])
        assert composed_positives(sizes, group, batch) == pytest.approx(composed, abs=0.06)


def test_edge_of_the_batch() -> None:
    assert shuffled_positives(np.array([3, 3]), 6) == (pytest.approx(2.0), 0.0)
    assert shuffled_positives(np.array([1]), 4) == (0.0, 1.0)


def test_warning_and_table() -> None:
    singles = quality(list(range(20)), [i % 2 for i in range(20)])
    assert "mostly SimCLR" in str(warning(singles))
    good = quality([i % 4 for i in range(20)], [i % 2 for i in range(20)])
    assert warning(good) is None
    text = render([singles, good], 4)
    assert "I(Z;T)" in text
    assert len(text.splitlines()) == 4
