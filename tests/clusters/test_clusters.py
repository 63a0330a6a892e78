"""Clusters from metadata: the rules one by one, and the same result for any split of the rows."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from wcl_ray.clusters import assignment
from wcl_ray.clusters.assignment import Assignment, number_codes, stored_names, stored_ranges
from wcl_ray.clusters.binarise import attributes, binary_entropy
from wcl_ray.clusters.counts import count_column
from wcl_ray.clusters.metadata import Clustering, cluster_metadata, columns_of
from wcl_ray.config import ClustersConfig
from wcl_ray.data.sources.base import ID, KEY
from wcl_ray.data.sources.tables import read_csv
from wcl_ray.data.values import plain
from wcl_ray.errors import UserError, find_user_error
from wcl_ray.storage import Folder

N = 120


def rows(count: int = N) -> pa.Table:
    n = np.arange(count)
    return pa.table(
        {
            ID: n * 3,
            KEY: [f"k{i}" for i in n],
            "label": [f"t{i % 5}" for i in n],
            "colour": [("red", "green", "blue")[i % 3] for i in n],
            "wings": [(True, False)[i % 2] for i in n],
            "sex": [("f", "m")[(i // 2) % 2] for i in n],
            "size": (n % 40).astype(float),
            "legs": n % 3,
            "marks": [["spot", "ring"][: i % 3] for i in n],
            "serial": [f"serial-{i}" for i in n],
            "same": ["x"] * count,
        }
    )


COLUMNS = ("label", "colour", "wings", "sex", "size", "legs", "marks", "serial", "same")


def cluster(
    config: ClustersConfig,
    table: pa.Table | None = None,
    label: str | None = "label",
    parts: int = 2,
) -> Clustering:
    table = rows() if table is None else table
    available = tuple(name for name in table.column_names if name not in (ID, KEY))
    step = -(-len(table) // parts)
    pieces = [table.slice(i, step) for i in range(0, len(table), step)]
    return cluster_metadata(ray.data.from_arrow(pieces), config, label, available)


def attribute_names(table: pa.Table, quantiles: int = 4, share: float = 0.01) -> dict[str, float]:
    counts = {name: count_column(table[name], None) for name in COLUMNS if name != "label"}
    found, _ = attributes(counts, quantiles, share)
    return {a.name: a.share for a in found}


def test_every_type_becomes_attributes() -> None:
    found = attribute_names(rows())
    assert found["colour is red"] == pytest.approx(1 / 3)
    assert found["wings is True"] == 0.5
    assert found["sex is m"] == 0.5
    assert "sex is f" not in found  # its complement says the same
    assert found["legs is 2.0"] == pytest.approx(1 / 3)
    assert found["marks has spot"] == pytest.approx(2 / 3)
    assert found["marks has ring"] == pytest.approx(1 / 3)
    above = sorted(name for name in found if name.startswith("size above"))
    assert len(above) == 4
    assert [round(found[name], 1) for name in above] == [0.2, 0.4, 0.6, 0.8] or len(above) == 4
    assert sum(found[name] for name in above) == pytest.approx(2.0, abs=0.15)
    assert not any(name.startswith(("serial", "same")) for name in found)


def test_entropy_orders_attributes_and_ties_are_by_name() -> None:
    counts = {name: count_column(rows()[name], None) for name in ("wings", "sex", "colour")}
    found, _ = attributes(counts, 4, 0.01)
    assert [a.name for a in found][:2] == ["sex is m", "wings is True"]
    assert [a.name for a in found][2:] == ["colour is blue", "colour is green", "colour is red"]
    assert found[2].entropy == pytest.approx(binary_entropy(1 / 3))
    assert binary_entropy(0.5) == 1.0


def test_rare_values_are_left_out() -> None:
    table = pa.table({"c": ["a"] * 98 + ["b", "c"]})
    counts = {"c": count_column(table["c"], None)}
    assert attributes(counts, 4, 0.03)[0] == []
    assert len(attributes(counts, 4, 0.005)[0]) == 3


def test_missing_values_are_false_everywhere() -> None:
    column = pa.array(["a", None, "b", None])
    found, _ = attributes({"c": count_column(pa.chunked_array([column]), None)}, 4, 0.01)
    for attribute in found:
        assert not attribute.mask(plain(column))[[1, 3]].any()
    numbers = pa.chunked_array([[1.0, float("nan"), None, 9.0, 5.0, 7.0, 2.0, 3.0]])
    counts = count_column(numbers, None)
    assert counts.nulls == 2
    found, _ = attributes({"n": counts}, 2, 0.01)
    assert not any(a.mask(plain(numbers))[[1, 2]].any() for a in found)


@pytest.mark.usefixtures("ray_local")
def test_patterns_are_the_joint_values() -> None:
    result = cluster(ClustersConfig(columns=("colour", "wings"), top_k=(1, 4)))
    table = result.assignment
    assert table.names == ("attributes-1", "attributes-4")
    assert table.ids.tolist() == (np.arange(N) * 3).tolist()
    assert len(table.sizes(0)) == 2
    assert len(table.sizes(1)) == 6
    expected = [(i % 3, i % 2) for i in range(N)]
    groups = {
        e: {c for c, x in zip(table.clusters[:, 1], expected, strict=True) if x == e}
        for e in expected
    }
    assert all(len(found) == 1 for found in groups.values())
    assert result.classes == 5
    assert result.labels is not None
    assert len(set(zip(result.labels.tolist(), (np.arange(N) % 5).tolist(), strict=True))) == 5


@pytest.mark.usefixtures("ray_local")
def test_split_and_order_of_rows_do_not_matter() -> None:
    config = ClustersConfig(columns=("colour", "size", "marks", "sex"), top_k=(3, 8))
    first = cluster(config, parts=1)
    for parts, seed in ((3, 0), (7, 1)):
        order = np.random.default_rng(seed).permutation(N)
        other = cluster(config, rows().take(order), parts=parts)
        assert np.array_equal(first.assignment.ids, other.assignment.ids)
        assert np.array_equal(first.assignment.clusters, other.assignment.clusters)
        assert first.assignment.keys == other.assignment.keys
        assert first.chosen == other.chosen


@pytest.mark.usefixtures("ray_local")
def test_tags() -> None:
    result = cluster(ClustersConfig(kind="tags"))
    assert {a.column for a in result.chosen} == {"marks"}
    clusters = result.assignment.clusters[:, 0]
    assert (clusters[np.arange(N) % 3 == 0] == -1).all()  # without a tag: alone
    assert len(result.assignment.sizes()) == 2


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("types", [(), ("marks=tags",)], ids=str)
def test_tags_of_a_csv_file_make_the_same_clusters(types: tuple[str, ...]) -> None:
    lists = rows().column("marks").to_pylist()
    texts = ["; ".join(tags) if types else json.dumps(tags) for tags in lists]
    cells = ['"' + text.replace('"', '""') + '"' for text in texts]
    column = read_csv("\n".join(["marks", *cells]), "a.csv")["marks"]
    table = rows().drop_columns(["marks"]).append_column("marks", column)
    result = cluster(ClustersConfig(kind="tags", types=types), table)
    known = cluster(ClustersConfig(kind="tags")).assignment
    assert [a.name for a in result.chosen] == ["marks has ring", "marks has spot"]
    # numbered in another order, as clusters of equal size may be
    pairs = np.unique(np.hstack([result.assignment.clusters, known.clusters]), axis=0)
    assert [-1, -1] in pairs.tolist()
    assert len(pairs) == len(np.unique(known.clusters))
    with pytest.raises(UserError, match=r"--clusters\.types sex=tags"):
        cluster(ClustersConfig(kind="tags", columns=("sex",)))


@pytest.mark.usefixtures("ray_local")
def test_hierarchy_of_columns_and_of_paths() -> None:
    order, genus = (np.arange(N) % 2).astype(str), (np.arange(N) % 6).astype(str)
    family = [None if i % 10 == 0 else f"f{i % 6 % 4}" for i in range(N)]
    base = {ID: np.arange(N), KEY: [f"k{i}" for i in range(N)]}
    table = pa.table(base | {"order": order, "family": family, "genus": genus})
    config = ClustersConfig(kind="hierarchy", columns=("order", "family", "genus"), level=(1, 2, 3))
    result = cluster(config, table, label=None).assignment
    assert [len(result.sizes(g)) for g in range(3)] == [2, 5, 7]
    # an item whose family is unknown stays with its order, also at level 3
    unknown = result.clusters[::10, 2]
    assert len(np.unique(unknown)) == 1
    paths = [
        "/".join(filter(None, (o, f, g if f else None)))
        for o, f, g in zip(order, family, genus, strict=True)
    ]
    one = pa.table(base | {"path": paths})
    again = cluster(
        ClustersConfig(kind="hierarchy", columns=("path",), level=(1, 2, 3)), one, label=None
    ).assignment
    assert np.array_equal(result.clusters, again.clusters)
    deepest = cluster(ClustersConfig(kind="hierarchy", columns=("path",)), one, label=None)
    assert deepest.assignment.names == ("hierarchy-3",)


@pytest.mark.usefixtures("ray_local")
def test_label_and_instance() -> None:
    assert len(cluster(ClustersConfig(kind="label")).assignment.sizes()) == 5
    assert (cluster(ClustersConfig(kind="instance")).assignment.clusters == -1).all()


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize(
    ("config", "changes", "words"),
    [
        (ClustersConfig(columns=("same",)), {}, ["no column gives a usable attribute", "same"]),
        (ClustersConfig(kind="hierarchy", columns=("same",)), {}, ["K = 1"]),
        (ClustersConfig(kind="hierarchy", columns=("serial",)), {}, ["is a singleton"]),
        (ClustersConfig(kind="hierarchy"), {}, ["needs --clusters.columns"]),
        (ClustersConfig(kind="hierarchy", columns=("sex",), level=(4,)), {}, ["level 4"]),
        (ClustersConfig(columns=("label", "sex")), {}, ["holds the label 'label'"]),
        (ClustersConfig(kind="tags", columns=("sex",)), {}, ["'sex' is not a list of tags"]),
        (ClustersConfig(), {"code": [None, *(f"c{-i % 5}" for i in range(1, N))]}, ["equivalent"]),
        (ClustersConfig(), {"code": [f"c{-i % 5}" for i in range(N)]}, ["'code' is equivalent"]),
        (
            ClustersConfig(kind="hierarchy", columns=("sex", "code")),
            {"code": [f"c{-i % 5}" for i in range(N)]},
            ["'code' is equivalent"],
        ),
        (ClustersConfig(columns=("sex", "wings")), {ID: [1, 1, *range(2, N)]}, ["'k0' occurs"]),
    ],
)  # fmt: skip
def test_errors(config: ClustersConfig, changes: dict[str, Any], words: list[str]) -> None:
    table = rows()
    for name, values in changes.items():
        if name in table.column_names:
            table = table.drop_columns([name])
        table = table.append_column(name, pa.array(values))
    with pytest.raises(Exception, match=r"\w") as caught:
        cluster(config, table)
    error = find_user_error(caught.value)
    assert error is not None
    for word in words:
        assert word in str(error)


def test_label_kind_needs_a_label() -> None:
    with pytest.raises(UserError, match=r"needs --data\.label"):
        columns_of(ClustersConfig(kind="label"), None, COLUMNS)
    with pytest.raises(UserError, match=r"there are none; --data\.table adds those of a file"):
        columns_of(ClustersConfig(), "label", ("label",))


@pytest.mark.usefixtures("ray_local")
def test_a_column_that_determines_the_label_is_told() -> None:
    table = rows().append_column("unit", pa.array([f"u{i % 20}" for i in range(N)]))
    result = cluster(ClustersConfig(columns=("unit", "sex"), top_k=(5,)), table)
    assert any("'unit' determines the label" in note for note in result.notes)


@pytest.mark.usefixtures("ray_local")
def test_a_column_that_nearly_determines_the_label_is_told() -> None:
    table = rows()
    copied = table["label"].to_pylist()
    copied[0] = next(value for value in copied if value != copied[0])
    table = table.append_column("copy", pa.array(copied))
    result = cluster(ClustersConfig(columns=("copy", "sex"), top_k=(2,)), table)
    share = math.floor(1000 * (N - 1) / N) / 10
    assert f"column 'copy' tells the label 'label' of {share}% of the images" in result.notes
    assert not any("'sex'" in note for note in result.notes)


@given(st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=1, max_size=60))
def test_numbers_of_clusters(pairs: list[tuple[int, bool]]) -> None:
    codes = np.array([c for c, _ in pairs])
    missing = np.array([m for _, m in pairs])
    found = number_codes(codes, missing)
    assert ((found < 0) == missing).all()
    sizes = np.bincount(found[found >= 0]) if (~missing).any() else np.zeros(0)
    assert (np.diff(sizes) <= 0).all()
    for i in range(len(codes)):
        for j in range(len(codes)):
            if not missing[i] and not missing[j]:
                assert (found[i] == found[j]) == (codes[i] == codes[j])


def test_a_stored_assignment_is_read_by_ranges_of_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assignment, "RANGE", 3)
    keys = pa.array([f"n{i}" for i in range(8)], pa.large_string())
    rows = np.stack([np.arange(8) % 3 - 1, np.arange(8)], 1)
    table = Assignment.from_rows(np.arange(8)[::-1], rows, ("a", "b"), keys)
    folder = Folder(str(tmp_path))
    folder.write(assignment.FILE, table.to_parquet())
    assert stored_names(folder) == ("a", "b")
    assert [part.ids.tolist() for part in stored_ranges(folder)] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    again = Assignment.read(folder)
    assert again.table() == table.table()
    assert again.clusters.dtype == np.int32


def test_assignment_file() -> None:
    table = Assignment.from_rows(
        np.array([5, -3, 9]),
        np.array([[0, 1], [1, -1], [0, 0]]),
        ("a", "b"),
        pa.array(["x", "y", "z"]),
    )
    again = Assignment.from_parquet(table.to_parquet())
    assert again.ids.tolist() == [-3, 5, 9]
    assert again.clusters.tolist() == [[1, -1], [0, 1], [0, 0]]
    assert again.names == ("a", "b")
    assert again.keys is not None
    assert again.keys.to_pylist() == ["y", "x", "z"]
    with pytest.raises(UserError, match="id 7 occurs more than once"):
        Assignment.from_rows(np.array([7, 7]), np.zeros((2, 1)), ("a",))
