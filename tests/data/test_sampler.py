"""Batches are composed: every row once, groups of one cluster, nothing torn without need."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wcl_ray.data.sampler import (
    compose,
    composing_column,
    empty_bits,
    epoch_order,
    has_bits,
    isolated_share,
    meeting,
    set_bits,
    unset_positions,
    without_siblings,
)

clusterings = st.lists(st.integers(-1, 6), min_size=0, max_size=80).map(
    lambda c: np.array(c, dtype=np.int32)
)


def runs(values: np.ndarray) -> list[tuple[int, int]]:
    """(cluster, length) of consecutive equal values; every -1 is a run of its own."""
    found: list[tuple[int, int]] = []
    for value in values.tolist():
        if found and found[-1][0] == value >= 0:
            found[-1] = (value, found[-1][1] + 1)
        else:
            found.append((value, 1))
    return found


@given(clusterings, st.integers(1, 5), st.integers(0, 3))
def test_every_row_once_and_no_needless_loner(c: np.ndarray, group: int, seed: int) -> None:
    order = compose(c, group, np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(len(c)))
    if group > 1:
        sizes = {int(k): int((c == k).sum()) for k in np.unique(c)}
        for cluster, length in runs(c[order]):
            if cluster >= 0 and sizes[cluster] > 1:
                assert length >= 2


@given(clusterings, st.integers(2, 4), st.integers(4, 16), st.integers(0, 3))
def test_epoch_order_is_a_permutation(c: np.ndarray, group: int, batch: int, seed: int) -> None:
    order = epoch_order(c, group, batch, np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(len(c)))


@given(clusterings, st.integers(1, 4), st.integers(4, 16), st.integers(0, 3))
def test_siblings_do_not_change_that_every_row_comes_once(
    c: np.ndarray, group: int, batch: int, seed: int
) -> None:
    levels = np.stack([c, np.where(c < 0, -1, c // 3)], 1)
    orders = [epoch_order(levels, group, batch, np.random.default_rng(seed)) for _ in range(2)]
    assert sorted(orders[0].tolist()) == list(range(len(c)))
    assert np.array_equal(*orders)


def test_siblings_meet_in_a_batch() -> None:
    rng = np.random.default_rng(0)
    fine = rng.integers(0, 2000, 8000)
    levels = np.stack([fine // 5, fine], 1).astype(np.int32)  # 400 coarse clusters of 5
    alone = []
    for columns in ([1, 0], 1):  # with the level above, and without
        rows = levels[epoch_order(levels[:, columns], 2, 64, np.random.default_rng(0))]
        batches = rows.reshape(-1, 64, 2)
        lonely = [
            not ((batch[:, 0] == coarse) & (batch[:, 1] != cluster)).any()
            for batch in batches
            for coarse, cluster in batch
        ]
        alone.append(np.mean(lonely))
        assert meeting(batches[:, :, 1])[1] < 0.05
    assert alone[0] < 0.05 < 0.8 < alone[1]
    assert without_siblings(levels, 1, 64, 2) == alone[0]


def test_single_images_keep_groups_whole() -> None:
    rng = np.random.default_rng(0)
    c = np.concatenate([np.repeat(np.arange(100), 3), np.full(100, -1)]).astype(np.int32)
    order = epoch_order(c, 3, 16, rng)
    batches = c[order][: len(c) // 16 * 16].reshape(-1, 16)
    torn = sum(1 for left, right in pairwise(batches) if left[-1] == right[0] >= 0)
    plain = c[compose(c, 3, np.random.default_rng(0))]
    before = sum(plain[i - 1] == plain[i] >= 0 for i in range(16, len(c), 16))
    assert torn == 0
    assert before > 0


def test_composing_brings_positives_that_shuffling_does_not() -> None:
    rng = np.random.default_rng(0)
    c = rng.integers(0, 700, 4200).astype(np.int32)

    def batches(order: np.ndarray) -> np.ndarray:
        return c[order][: 16 * 256].reshape(16, 256)

    positives, without_positive = meeting(batches(epoch_order(c, 2, 256, rng)))
    before, lonely_before = meeting(batches(rng.permutation(len(c))))
    assert positives > 1.2 > 0.5 > before
    assert without_positive < 0.02
    assert lonely_before > 0.6


def test_meeting_by_hand() -> None:
    assert meeting(np.array([[0, 0, 0, 1], [2, -1, -1, 2]])) == (8 / 8, 3 / 8)


def test_a_million_rows_take_about_a_second() -> None:
    c = np.random.default_rng(0).integers(0, 50_000, 1_000_000).astype(np.int32)
    started = time.process_time()
    compose(c, 2, np.random.default_rng(1))
    assert time.process_time() - started < 10  # a loop over rows takes much longer


def test_column_for_composition() -> None:
    n = 1000
    coarse, fine, alone = np.arange(n) % 10, np.arange(n) % 400, np.arange(n)
    assert composing_column(np.stack([coarse, fine, alone], 1).astype(np.int32))[0] == 1
    assert composing_column(np.stack([alone, coarse], 1).astype(np.int32))[0] == 1
    assert composing_column(np.full((n, 1), -1, np.int32))[0] == 0


@given(st.integers(1, 70), st.data())
def test_bits(n: int, data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.integers(0, n - 1)))
    bits = empty_bits(n)
    set_bits(bits, np.array(chosen, dtype=np.int64))
    assert has_bits(bits, np.arange(n)).tolist() == [i in chosen for i in range(n)]
    assert unset_positions(bits, n).tolist() == [i for i in range(n) if i not in chosen]
    assert unset_positions(None, n).tolist() == list(range(n))


@pytest.mark.parametrize(("size", "window"), [(2, 100), (5, 100), (5, 400), (50, 100), (3, 4000)])
def test_partners_out_of_reach(size: int, window: int) -> None:
    """Against real random windows."""
    n, rng = 2000, np.random.default_rng(0)
    clusters = np.arange(n) // size
    without_positive = []
    for _ in range(200):
        inside = clusters[rng.permutation(n)[:window]]
        without_positive.append((np.bincount(inside)[inside] == 1).mean())
    assert isolated_share(clusters, window) == pytest.approx(np.mean(without_positive), abs=0.02)
    alone = np.concatenate([clusters, np.full(500, -1)])  # who has no partner is not counted
    assert isolated_share(alone, window * 5 // 4) == pytest.approx(
        np.mean(without_positive), abs=0.02
    )
    assert isolated_share(np.full(10, -1), 5) == 0
