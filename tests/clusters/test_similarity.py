"""Graded positives: the weights of attributes by hand, and the similarity of images."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch

from wcl_ray.clusters.similarity import MetadataBits, metadata_bits
from wcl_ray.clusters.types import NO_TYPES
from wcl_ray.data.sources.base import ID
from wcl_ray.errors import UserError
from wcl_ray.model.similarity import unpack_bits, weighted_jaccard

pytestmark = pytest.mark.usefixtures("ray_local")


def bits_of(
    columns: dict[str, Any], *, parts: int = 1, types: Mapping[str, str] = NO_TYPES
) -> MetadataBits:
    names = list(columns)
    count = len(columns[names[0]])
    table = pa.table({ID: pa.array(range(count), pa.int64()), **columns})
    pieces = [table.slice(i, -(-count // parts)) for i in range(0, count, -(-count // parts))]
    rows = ray.data.from_arrow(pieces[::-1])
    return metadata_bits(rows, names, (), np.arange(count), types).metadata


def similarity(metadata: MetadataBits) -> np.ndarray:
    x = unpack_bits(torch.from_numpy(metadata.bits))
    return weighted_jaccard(x, x, torch.from_numpy(metadata.weights)).numpy()


def test_shared_tags_weigh_by_their_rarity() -> None:
    tags = [["a", "b"], ["a", "b"], ["a"], ["a", "c"], ["b", "c"], [], None, ["a"]]
    found = similarity(bits_of({"tags": pa.array(tags)}))
    a, b, c = (-math.log(n / 8) for n in (5, 3, 2))
    assert found[0, 1] == pytest.approx(1)
    assert found[0, 2] == pytest.approx(a / (a + b), rel=1e-5)
    assert found[0, 3] == pytest.approx(a / (a + b + c), rel=1e-5)
    assert found[0, 4] == pytest.approx(b / (a + b + c), rel=1e-5)
    assert found[2, 7] == pytest.approx(1)
    assert not found[5].any()  # no tag: shares nothing, not even with itself
    assert not found[6].any()
    np.testing.assert_array_equal(found, found.T)
    assert found[3, 4] > found[0, 3]  # a rare tag in common counts more than a common one


def test_tags_in_texts_weigh_as_those_of_lists() -> None:
    tags = [["a", "b"], ["a", "b"], ["a"], ["a", "c"], ["b", "c"], [], None, ["a"]]
    known = bits_of({"tags": pa.array(tags)})
    for separator in (None, "; "):
        join = json.dumps if separator is None else separator.join
        texts = [None if of_row is None else join(of_row) for of_row in tags]  # type: ignore[operator]
        found = bits_of({"tags": texts}, parts=3, types={"tags": "tags"} if separator else {})
        np.testing.assert_array_equal(found.bits, known.bits)
        np.testing.assert_allclose(found.weights, known.weights)


def test_numbers_are_the_more_similar_the_nearer_their_ranks() -> None:
    values = np.random.default_rng(0).permutation(np.geomspace(1, 1e6, 400))
    found = similarity(bits_of({"price": pa.array(values)}, parts=3))
    order = np.argsort(values)
    lowest = found[order[0], order]
    assert lowest[0] == pytest.approx(1, rel=1e-5)
    assert (np.diff(lowest) <= 1e-6).all()
    assert lowest[200] < 0.5
    assert lowest[-1] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("share", [[0.1] * 10, [0.55, *[0.05] * 9]], ids=["equal", "skewed"])
@pytest.mark.parametrize("text", [False, True])
def test_few_values_are_the_more_similar_the_nearer(share: list[float], text: bool) -> None:
    counts = np.round(np.array(share) * 400).astype(int)
    ratings = np.repeat(np.arange(1, 11), counts)
    values = [*(str(n) if text else int(n) for n in ratings), None]
    metadata = bits_of({"rating": values}, parts=3, types={"rating": "number"} if text else {})
    first = np.searchsorted(ratings, range(1, 11))
    found = similarity(replace(metadata, bits=metadata.bits[[*first, len(ratings)]]))
    assert np.diag(found)[:10] == pytest.approx(1)
    assert (np.diff(found[0, :10]) < 0).all()
    assert found[0, 1] > 0.5
    assert found[0, 9] == pytest.approx(0, abs=1e-6)
    assert not found[10].any()  # without a rating
    # together these weigh as much as the rating would as one value of a category
    weights = unpack_bits(torch.from_numpy(metadata.bits)) @ torch.from_numpy(metadata.weights)
    entropy = -sum(p * math.log(p) for p in share)
    assert float(weights.mean()) == pytest.approx(entropy, rel=0.02)


def test_codes_are_equal_or_different() -> None:
    rng = np.random.default_rng(0)
    codes = rng.permutation(np.repeat([3, 4, 5, 9], 25))
    found = similarity(bits_of({"sender_id": codes}))
    np.testing.assert_allclose(found, codes[:, None] == codes[None, :], atol=1e-6)


def test_no_column_outweighs_the_others_by_its_number_of_thresholds() -> None:
    rng = np.random.default_rng(0)
    colour = rng.choice(16, 4000)
    columns = {"colour": [f"c{n}" for n in colour], "price": rng.permutation(4000) * 0.5}
    metadata = bits_of(columns)
    weights = unpack_bits(torch.from_numpy(metadata.bits)) * torch.from_numpy(metadata.weights)
    colours = bits_of({"colour": columns["colour"]})
    of_colour = unpack_bits(torch.from_numpy(colours.bits)) @ torch.from_numpy(colours.weights)
    # 16 values of equal share, and 16 quantile bins: as many nats from either
    assert float(of_colour.mean()) == pytest.approx(math.log(16), rel=0.01)
    assert float(weights.sum(1).mean()) == pytest.approx(2 * math.log(16), rel=0.01)


@pytest.mark.parametrize("sex", [["male", "female"], [True, False], [0, 1], ["yes", "no"]], ids=str)
def test_images_share_either_value_of_two(sex: list[Any]) -> None:
    values = [*sex, None] * 10 + [sex[0]]
    found = similarity(bits_of({"sex": pa.array(values)}))
    assert found[0, 3] == pytest.approx(1)
    assert found[1, 4] == pytest.approx(1)
    assert found[0, 1] == 0
    assert not found[2].any()


def test_each_column_keeps_attributes() -> None:
    rng = np.random.default_rng(0)
    tags = [[f"t{n}" for n in rng.choice(1500, 8, replace=False)] for _ in range(3000)]
    site = rng.choice(["north", "south", "west"], 3000, p=[0.99, 0.005, 0.005])
    table = pa.table({ID: range(3000), "tags": tags, "site": site, "serial": range(3000)})
    found = metadata_bits(
        ray.data.from_arrow(table), ["tags", "site", "serial"], (), np.arange(3000)
    )
    assert set(found.used) == {"site", "tags"}
    assert (found.metadata.weights > 0).sum() == 1024
    same_site = similarity(replace(found.metadata, bits=found.metadata.bits[:200]))
    assert (same_site[(site[:200, None] == site[None, :200])] > 0).all()
    assert re.match(
        "1024 attributes of (tags, site|site, tags) .left out: serial, ", found.describe()
    )


def test_a_column_that_gives_the_label_away() -> None:
    columns = {"species": ["a", "b", "c"] * 20, "code": ["x", "y", "z"] * 20, "n": ["1", "2"] * 30}
    rows = ray.data.from_arrow(pa.table({ID: range(60), **columns}))
    with pytest.raises(UserError, match="column 'code' is equivalent to the label 'species'"):
        metadata_bits(rows, ["code", "n"], (), np.arange(60), label="species")
    assert metadata_bits(rows, ["n"], (), np.arange(60), label="species").used == ("n",)


def test_the_file_of_a_run() -> None:
    metadata = bits_of({"colour": ["red", "green", "red", "blue"] * 5})
    again = MetadataBits.from_npz(metadata.to_npz())
    np.testing.assert_array_equal(again.bits, metadata.bits)
    np.testing.assert_array_equal(again.weights, metadata.weights)


def test_no_usable_column() -> None:
    with pytest.raises(UserError, match=r"graded: no column gives an attribute.*colour: all its"):
        bits_of({"colour": ["red"] * 5})
