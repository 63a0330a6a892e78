"""Sums are exact in any order and for any split into shards; and the update from them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wcl_ray.kmeans.lloyd import BITS, Stats, exponent_of, square_norms, to_grid, unit_rows
from wcl_ray.kmeans.seeding import means, plus_plus, update, weighted_kmeans


def grid_rows(n: int, d: int, seed: int, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Rows of very different magnitudes, on the grid, and their squares."""
    rng = np.random.default_rng(seed)
    x = (scale * rng.normal(size=(n, d)) * 10.0 ** rng.uniform(-4, 0, (n, 1))).astype(np.float32)
    exponent = exponent_of(float(np.abs(x).max()))
    x = to_grid(x, exponent)
    return x, square_norms(x, exponent)


def stats_of(x: np.ndarray, squares: np.ndarray, labels: np.ndarray, k: int) -> Stats:
    stats = Stats.zeros(k, x.shape[1])
    stats.add_rows(x, squares, np.arange(len(x)), labels, 1)
    return stats


def same(a: Stats, b: Stats) -> bool:
    return all(
        p.tobytes() == q.tobytes()
        for p, q in ((a.sums, b.sums), (a.counts, b.counts), (a.squares, b.squares))
    )


@settings(max_examples=60)
@given(st.data())
def test_any_split_into_shards_gives_the_same_bits(data: st.DataObject) -> None:
    n, d = data.draw(st.integers(1, 300)), data.draw(st.integers(1, 9))
    k, seed = data.draw(st.integers(1, 7)), data.draw(st.integers(0, 2**32))
    scale = data.draw(st.sampled_from([1e-12, 1.0, 3e8]))
    x, squares = grid_rows(n, d, seed, scale)
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, k, n).astype(np.int32)
    expected = stats_of(x, squares, labels, k)
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=6)))
    order = rng.permutation(n)
    shards = np.split(order, cuts)
    parts = [stats_of(x[rows], squares[rows], labels[rows], k) for rows in shards]
    total = parts[-1]
    for part in parts[:-1]:
        total = total + part
    assert same(total, expected)


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(1, 400))
def test_sums_by_torch_have_the_same_bits(seed: int, n: int) -> None:
    """In another order, as a GPU adds them."""
    x, squares = grid_rows(n, 5, seed)
    rng = np.random.default_rng(seed)
    old, new = rng.integers(-1, 6, (2, n)).astype(np.int32)
    tensor = torch.from_numpy(x)
    order = np.arange(n)
    stats = Stats.zeros(6, 5)
    stats.add_rows(x, squares, order, old, 1, tensor)
    assert same(stats, stats_of(x, squares, old, 6))
    stats.add_rows(x, squares, order, old, -1, tensor)
    shuffled = rng.permutation(n)
    stats.add_rows(x, squares, shuffled, new[shuffled], 1, tensor)
    assert same(stats, stats_of(x, squares, new, 6))


def test_float32_would_depend_on_the_order() -> None:
    """Why there is a grid: float32 sums, and float64 sums of rows off the grid, differ."""
    x, squares = grid_rows(5000, 8, 1)
    raw = np.random.default_rng(1).normal(size=(5000, 8)) * 1e-3 + x
    order = np.random.default_rng(2).permutation(5000)
    assert (np.add.reduce(raw[order]) != np.add.reduce(raw)).any()
    assert (np.cumsum(x[order], 0)[-1] != np.cumsum(x, 0)[-1]).any()
    zeros = np.zeros(5000, np.int32)
    assert same(stats_of(x[order], squares[order], zeros, 1), stats_of(x, squares, zeros, 1))


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(1, 400))
def test_subtracted_rows_leave_no_trace(seed: int, n: int) -> None:
    x, squares = grid_rows(n, 5, seed)
    rng = np.random.default_rng(seed)
    old, new = rng.integers(0, 6, (2, n)).astype(np.int32)
    stats = stats_of(x, squares, old, 6)
    changed = np.flatnonzero(old != new)
    stats.add_rows(x, squares, changed, old[changed], -1)
    stats.add_rows(x, squares, changed, new[changed], 1)
    assert same(stats, stats_of(x, squares, new, 6))
    stats.add_rows(x, squares, np.arange(n), new, -1)
    assert same(stats, Stats.zeros(6, 5))


def test_more_rows_than_float32_can_count() -> None:
    """2^24 + 1 rows: float32 cannot count beyond 2^24."""
    n = 2**24 + 1
    assert np.float32(2**24) + np.float32(1) == np.float32(2**24)
    x, squares = np.ones((n, 1), np.float32), np.ones(n)
    stats = stats_of(x, squares, np.zeros(n, np.int32), 1)
    assert stats.counts.tolist() == [n]
    assert stats.sums.tolist() == [[float(n)]]
    assert stats.squares.tolist() == [float(n)]
    assert means(stats, False)[0].tolist() == [[1.0]]


def test_half_a_billion_rows_by_adding_shards() -> None:
    """Odd multiples of the grid's step, up to the largest, over 2^29 rows, against integers."""
    x = np.array([[2.0 - 2.0**-22, -(2.0 - 2.0**-22)], [2.0**-22, 1.0]], np.float32)
    squares = square_norms(x, 1)
    stats = stats_of(x, squares, np.zeros(2, np.int32), 1)
    for _ in range(28):
        stats = stats + stats
    unit = 2.0**-22
    for column in range(2):
        exact = sum(int(v / unit) for v in x[:, column].astype(float)) * 2**28
        assert int(stats.sums[0, column] / unit) == exact
    assert stats.counts[0] == 2**29
    assert stats.squares[0] == 2**28 * float(squares.sum())
    one_more = stats + stats_of(x[1:], squares[1:], np.zeros(1, np.int32), 1)
    assert one_more.sums[0, 0] - stats.sums[0, 0] == unit


@settings(max_examples=100)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40))
def test_rounding_to_the_grid(values: list[float]) -> None:
    x = np.array(values, np.float32)[:, None]
    exponent = exponent_of(float(np.abs(x).max()))
    assert (np.abs(x) < 2.0**exponent).all()
    step = 2.0 ** (exponent - BITS)
    rounded = to_grid(x, exponent)
    assert (rounded.astype(np.float64) / step == np.rint(rounded.astype(np.float64) / step)).all()
    assert np.abs(rounded.astype(np.float64) - x).max() <= step / 2
    assert to_grid(rounded, exponent).tobytes() == rounded.tobytes()


def test_squares_are_on_a_grid_and_accurate() -> None:
    x, squares = grid_rows(3000, 33, 3)
    exponent = exponent_of(float(np.abs(x).max()))
    step = 2.0 ** (2 * exponent + 6 - BITS - 1)
    assert (squares / step == np.rint(squares / step)).all()
    true = np.square(x.astype(np.float64)).sum(1)
    assert np.abs(squares - true).max() <= step / 2
    order = np.random.default_rng(0).permutation(3000)
    assert squares[order].sum() == squares.sum() == np.cumsum(squares)[-1]


def test_unit_rows() -> None:
    x = np.array([[3, 4], [0, 0], [1e-30, 0], [1e30, 1e30]], np.float32)
    assert unit_rows(x) == pytest.approx(
        np.array([[0.6, 0.8], [0, 0], [1, 0], [0.5**0.5, 0.5**0.5]])
    )


def test_objective_and_merged_stats() -> None:
    x, squares = grid_rows(500, 6, 4)
    labels = np.random.default_rng(0).integers(0, 8, 500).astype(np.int32)
    stats, c = stats_of(x, squares, labels, 8), np.random.default_rng(1).normal(size=(8, 6))
    distance = np.square(x.astype(np.float64) - c[labels]).sum(1)
    assert stats.objective(c) == pytest.approx(distance.sum(), rel=1e-5)
    by_cluster = np.bincount(labels, weights=distance)
    assert stats.errors(c) == pytest.approx(by_cluster, rel=1e-5)
    parents = np.array([0, 0, 1, 1, 2, 2, 2, 0])
    assert same(stats.merged(parents), stats_of(x, squares, parents[labels].astype(np.int32), 3))


def test_an_empty_cluster_gets_half_of_the_worst() -> None:
    x, squares = grid_rows(900, 4, 5)
    labels = np.random.default_rng(0).choice([0, 2, 3], 900).astype(np.int32)
    x[labels == 2] *= 4
    squares = square_norms(x, exponent_of(float(np.abs(x).max())))
    stats = stats_of(x, squares, labels, 4)
    centroids, splits = update(stats, False)
    true = means(stats, False)[0]
    assert splits == 1
    assert centroids[[0, 3]] == pytest.approx(true[[0, 3]])
    assert (centroids[1] + centroids[2]) / 2 == pytest.approx(true[2])
    assert (centroids[1] != centroids[2]).any()
    assert centroids.tobytes() == update(stats, False)[0].tobytes()


def test_if_nothing_can_be_split_no_centroid_is_the_origin() -> None:
    x = np.repeat(unit_rows(np.random.default_rng(0).normal(size=(2, 7))), [30, 50], 0)
    x = to_grid(x, 1)
    stats = stats_of(x, square_norms(x, 1), np.repeat([1, 3], [30, 50]).astype(np.int32), 5)
    for spherical in (True, False):
        centroids, splits = update(stats, spherical)
        assert splits == 0
        assert centroids[1] == pytest.approx(x[0], abs=1e-6)
        assert centroids[[0, 2, 3, 4]] == pytest.approx(np.repeat(x[-1:], 4, 0), abs=1e-6)


def test_plus_plus_finds_far_blobs_whatever_the_offset() -> None:
    rng = np.random.default_rng(0)
    for offset in (0.0, 3e4):
        centres = rng.normal(size=(12, 5)) * 10 + offset
        truth = np.repeat(np.arange(12), 40)
        x = (centres[truth] + 1e-2 * rng.normal(size=(480, 5))).astype(np.float32)
        seeds = plus_plus(x, 12, np.random.default_rng(1))
        nearest = np.square(seeds[:, None] - centres).sum(2).argmin(1)
        assert sorted(nearest) == list(range(12))
        assert {tuple(seed) for seed in seeds} <= {tuple(row) for row in x}


def test_plus_plus_draws_duplicates_last() -> None:
    x = np.repeat(np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32), 20, 0)
    assert len(np.unique(plus_plus(x, 5, np.random.default_rng(0)), axis=0)) == 5
    seeds = plus_plus(x, 9, np.random.default_rng(0))
    assert seeds.shape == (9, 3)
    assert len(np.unique(seeds, axis=0)) == 5
    assert plus_plus(x, 100, np.random.default_rng(0)).tobytes() == x.tobytes()


def test_weights_of_points_count() -> None:
    points = np.array([[0.0], [1.0], [10.0], [11.0]], np.float32)
    labels = weighted_kmeans(points, np.array([1, 1, 1, 1]), 2, False, 0)
    assert labels[0] == labels[1] != labels[2] == labels[3]
    points = np.array([[0.0], [4.0], [6.0], [7.0]], np.float32)
    heavy = weighted_kmeans(points, np.array([1, 10**6, 1, 10**6]), 2, False, 0)
    assert heavy[2] == heavy[3] != heavy[1] == heavy[0]
