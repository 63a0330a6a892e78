"""Placement: every image once, clusters together, shards of one size."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from wcl_ray.data.shards import Placement, partners_together, place, units_of

numbers = st.lists(st.integers(-1, 9), min_size=1, max_size=300)


def sizes_of(values: np.ndarray) -> list[int]:
    return sorted(np.unique(values, return_counts=True)[1].tolist())


@given(numbers, st.integers(2, 9), st.integers(0, 3))
def test_a_cluster_is_one_unit_unless_it_is_large(c: list[int], part: int, seed: int) -> None:
    clusters = np.array(c, np.int32)
    units = units_of(clusters[:, None], part, np.random.default_rng(seed))
    assert sorted(set(units.tolist())) == list(range(units.max() + 1))
    for cluster in np.unique(clusters):
        inside = units[clusters == cluster]
        if cluster < 0:
            assert sizes_of(inside) == [1] * len(inside)
        elif len(inside) < 2 * part:
            assert len(set(inside)) == 1
        else:
            smallest, *_, largest = sizes_of(inside)
            assert part <= smallest <= largest < 2 * part
    for unit in range(units.max() + 1):
        assert len(set(clusters[units == unit])) == 1


@given(numbers, st.integers(2, 9), st.integers(0, 3))
def test_parts_of_coarse_clusters_hold_whole_fine_ones(c: list[int], part: int, seed: int) -> None:
    fine = np.array(c, np.int32)
    coarse = np.where(fine < 0, 3, fine // 4)
    units = units_of(np.stack([coarse, fine], 1), part, np.random.default_rng(seed))
    for cluster in range(10):
        if 0 < (fine == cluster).sum() < 2 * part:
            assert len(set(units[fine == cluster])) == 1
    for cluster in range(4):
        if 0 < (coarse == cluster).sum() < 2 * part:
            assert len(set(units[coarse == cluster])) == 1
    assert all(len(set(coarse[units == unit])) == 1 for unit in range(units.max() + 1))
    assert sizes_of(units)[-1] < 4 * part


@given(
    st.integers(1, 4000), st.integers(1, 60), st.integers(2, 30), st.integers(0, 3),
    st.integers(1, 4),
)  # fmt: skip
def test_every_image_has_a_place_and_shards_are_about_equal(
    n: int, size: int, part: int, seed: int, levels: int
) -> None:
    rng = np.random.default_rng(seed)
    ids = np.sort(rng.choice(10**9, n, replace=False))
    finest = rng.integers(-1, max(1, n // size), n)
    steps = [np.where(finest < 0, -1, finest // 4**level) for level in reversed(range(levels))]
    clusters = np.stack(steps, 1).astype(np.int32)
    placement = place(ids, clusters, 5e4, shard_bytes=4e7, part=part, seed=seed)
    again = place(ids, clusters, 5e4, shard_bytes=4e7, part=part, seed=seed)
    assert (placement.groups == again.groups).all()
    assert (placement.shards == again.shards).all()
    groups = np.bincount(placement.groups)
    target = n / len(groups)
    assert groups.min() > 0
    assert max(abs(groups - target)) < 2 * levels * part + 1
    assert target >= min(n, 4 * part)
    shards = np.bincount(placement.shards)
    assert placement.count == len(shards)
    assert shards.min() > 0
    assert abs(shards - n / len(shards)).max() <= 2 * target + 2 * levels * part
    shard_of = dict(zip(placement.groups, placement.shards, strict=True))
    assert len(shard_of) == len(groups)  # a row group lies in one shard
    assert sorted(shard_of, key=lambda g: (shard_of[g], g)) == sorted(shard_of)
    share, alone = partners_together(finest, placement.groups)
    if np.bincount(finest[finest >= 0], minlength=1).max() < 2 * part:
        assert (share, alone) == (1.0, 0.0)
    read = Placement.from_parquet(placement.to_parquet())
    assert (read.groups_of(ids) == placement.groups).all()
    assert len(set(read.groups_of(np.array([-5, -6])))) == 2


@given(numbers, st.integers(1, 5), st.integers(0, 3))
def test_partners_together_by_counting(c: list[int], groups: int, seed: int) -> None:
    clusters = np.array(c)
    group = np.random.default_rng(seed).integers(-1, groups, len(c))
    shares = []
    for row in range(len(c)):
        partners = (clusters == clusters[row]) & (np.arange(len(c)) != row)
        if clusters[row] >= 0 and partners.any():
            shares.append((group[partners] == group[row]).mean())
    share, alone = partners_together(clusters, group)
    expected = (np.mean(shares), np.mean(np.array(shares) == 0)) if shares else (1.0, 0.0)
    np.testing.assert_allclose((share, alone), expected)
