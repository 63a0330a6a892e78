"""What a value is: the same answer for every use, type and encoding."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import ray
from hypothesis import given, settings
from hypothesis import strategies as st

from wcl_ray.clusters.metadata import cluster_metadata
from wcl_ray.config import ClustersConfig
from wcl_ray.data.sources.base import ID, KEY
from wcl_ray.data.split import held_groups
from wcl_ray.data.values import kind_of, numbers, plain, value_names
from wcl_ray.errors import UserError, find_user_error
from wcl_ray.evaluate.run import _marked

DAY = datetime.datetime(2020, 3, 1)
INTEGERS = {
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.uint64(): st.integers(0, 2**64 - 1),
    pa.int8(): st.integers(-128, 127),
    pa.decimal128(38, 0): st.integers(-(10**38) + 1, 10**38 - 1).map(Decimal),
}
OTHERS = {
    pa.float64(): st.floats(allow_nan=False, allow_infinity=False),
    pa.float32(): st.floats(width=32, allow_nan=False, allow_infinity=False),
    pa.decimal128(20, 5): st.decimals(-(10**9), 10**9, places=5),
    pa.string(): st.text(),
    pa.binary(): st.binary(),
    pa.bool_(): st.booleans(),
    pa.date32(): st.dates(),
    pa.timestamp("us"): st.datetimes(datetime.datetime(1700, 1, 1), datetime.datetime(2200, 1, 1)),
    pa.timestamp("us", "Asia/Tokyo"): st.datetimes(
        datetime.datetime(1700, 1, 1), datetime.datetime(2200, 1, 1)
    ),
    pa.time64("us"): st.times(),
}


def name(column: pa.Array | pa.ChunkedArray) -> list[str | None]:
    found: list[str | None] = value_names(column, "x").to_pylist()
    return found


@pytest.mark.parametrize("kind", [*INTEGERS, *OTHERS], ids=str)
def test_different_values_have_different_names(kind: pa.DataType) -> None:
    values = {**INTEGERS, **OTHERS}[kind]

    @settings(max_examples=40)
    @given(st.lists(values, min_size=2, max_size=30))
    def check(drawn: list[Any]) -> None:
        column = pa.array([*drawn, *drawn[:3], None], kind)
        names = name(column)
        assert names[-1] is None
        known = [(v, n) for v, n in zip(column.to_pylist(), names, strict=True) if n is not None]
        assert len({v for v, _ in known}) == len({n for _, n in known}) == len(set(known))
        missing = {v for v, n in zip(column.to_pylist(), names, strict=True) if n is None}
        assert missing <= {None, "", b""}
        if not pa.types.is_decimal(kind):
            assert name(column.dictionary_encode()) == names
        assert name(pa.chunked_array([column[:2], column[2:]])) == names
        if kind_of(kind) == "number" and not pa.types.is_decimal(kind):
            raw, there = numbers(plain(column))
            assert [v == w for v, w in zip(raw[there].tolist(), drawn, strict=False)] == [
                True for _ in drawn
            ]

    check()


@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-200, 200), max_size=20))
def test_equal_numbers_have_equal_names_in_every_type(drawn: list[int]) -> None:
    names = name(pa.array(drawn, pa.int64()))
    assert names == [str(v) for v in drawn]
    assert name(pa.array(list(map(Decimal, drawn)), pa.decimal128(25, 3))) == names
    assert name(pa.array(names, pa.string_view())) == names
    assert name(pa.array(names, pa.large_string())) == names
    for kind in (pa.int8(), pa.int16(), pa.int32(), pa.uint8(), pa.uint64()):
        low, high = (-(2 ** (kind.bit_width - 1)), 2 ** (kind.bit_width - 1) - 1)
        fit = [v for v in drawn if max(low, 0 if str(kind)[0] == "u" else low) <= v <= high]
        assert name(pa.array(fit, kind)) == [str(v) for v in fit]
    exact = [v for v in drawn if abs(v) <= 2**53]
    assert name(pa.array([float(v) for v in exact])) == [str(v) for v in exact]


def test_missing_values_and_forms_of_one_value() -> None:
    assert name(pa.array([0.0, -0.0, 1.0, float("nan"), float("inf"), None])) == [
        *("0", "0", "1"),
        *(None, None, None),
    ]
    assert name(pa.array(["", None, " ", "nan"])) == [None, None, " ", "nan"]
    assert name(pa.array([b"", b"a", b"\xff"])) == [None, "a", "0xff"]
    assert name(pa.array([True, False, None])) == ["true", "false", None]
    day = ["2020-03-01"]
    assert name(pa.array([DAY.date()], pa.date32())) == day
    assert name(pa.array([DAY.date()], pa.date64())) == day
    for unit in ("s", "ms", "us", "ns"):
        assert name(pa.array([DAY], pa.timestamp(unit))) == day
        assert name(pa.array([DAY], pa.timestamp(unit, "UTC"))) == ["2020-03-01 00:00:00Z"]
    assert name(pc.run_end_encode(pa.array([5, 5, 6]))) == ["5", "5", "6"]
    assert name(pa.nulls(2)) == [None, None]
    for column in (pa.array([["a"]]), pa.array([{"a": 1}]), pa.array([[1.0]], pa.list_(pa.int8()))):
        with pytest.raises(UserError, match=r"data.label 'x': values of type .* cannot be told"):
            value_names(column, "data.label 'x'")


N = 48
TAXA = [47219 + n % 8 for n in range(N)]
LABELS = {
    "taxon ids": (pa.array(TAXA), 8),
    "beyond 2^63": (pa.array([2**63 + n % 3 for n in range(N)], pa.uint64()), 3),
    "beyond 2^53": (pa.array([2**53 + n % 4 for n in range(N)]), 4),
    "integers with a hole": (pa.array([[0.0, 1.0, float("nan")][n % 3] for n in range(N)]), 2),
    "signed zeros": (pa.array([[0.0, -0.0, 1.0][n % 3] for n in range(N)]), 2),
    "empty texts": (pa.array([["", "a", "b", None][n % 4] for n in range(N)]), 2),
    "near floats": (pa.array([1.0 + n % 3 * 1e-9 for n in range(N)]), 3),
    "dictionary": (pa.array([f"t{n % 5}" for n in range(N)]).dictionary_encode(), 5),
    "dates": (pa.array([DAY + datetime.timedelta(n % 4) for n in range(N)]), 4),
    "bytes": (pa.array([[b"K\xe4fer", b"Spinne"][n % 2] for n in range(N)]), 2),
    "booleans": (pa.array([n % 2 == 0 for n in range(N)]), 2),
}


def table(**columns: Any) -> pa.Table:
    ids = {ID: np.arange(N), KEY: pa.nulls(N, pa.string())}
    return pa.table(ids | columns)


@pytest.mark.usefixtures("ray_local")
def test_training_report_and_evaluation_have_the_same_classes() -> None:
    """Also the classes of a hierarchy of one level and whole groups of a split."""
    for case, (values, classes) in LABELS.items():
        rows = ray.data.from_arrow(table(t=values))
        made = cluster_metadata(rows, ClustersConfig(kind="label"), "t", ())
        trained = made.assignment.clusters[:, 0]
        assert (len(made.assignment.sizes()), made.classes) == (classes, classes), case
        assert np.array_equal(trained, made.labels), case
        marked = pa.concat_tables(ray.get(_marked(rows, True, "t", None).to_arrow_refs()))
        evaluated = marked.sort_by(ID)["t"].to_pylist()
        pairs = set(zip(trained.tolist(), evaluated, strict=True))
        missing = {(-1, None)} if (trained < 0).any() else set()
        assert missing <= pairs, case
        assert len(pairs - missing) == classes == len({v for _, v in pairs - missing}), case
    level = ClustersConfig(kind="hierarchy", columns=("t",))
    found = cluster_metadata(ray.data.from_arrow(table(t=TAXA)), level, None, ("t",))
    assert len(found.assignment.sizes()) == 8


def test_groups_by_their_exact_values() -> None:
    ids = np.arange(N)
    for values, groups in LABELS.values():
        out = held_groups(values, ids, 0.5, 3)
        names = name(values)
        sides = {(n, bool(o)) for n, o in zip(names, out, strict=True) if n is not None}
        assert len(sides) == groups


@pytest.mark.usefixtures("ray_local")
def test_a_column_that_is_a_label_of_large_integers_is_refused() -> None:
    rows = table(taxon=TAXA, code=[f"c{t}" for t in TAXA], size=[n % 3 for n in range(N)])
    with pytest.raises(UserError, match="'code' is equivalent to the label 'taxon'"):
        cluster_metadata(
            ray.data.from_arrow(rows), ClustersConfig(), "taxon", ("taxon", "code", "size")
        )


@pytest.mark.usefixtures("ray_local")
def test_categories_and_tags_of_large_integers() -> None:
    rows = table(kind=[4096 + n % 4 for n in range(N)], tags=[[47219 + n % 3] for n in range(N)])
    found = cluster_metadata(ray.data.from_arrow(rows), ClustersConfig(), None, ("kind", "tags"))
    assert {(a.column, a.test, int(a.value)) for a in found.chosen} == {
        *(("kind", "is", 4096 + n) for n in range(4)),
        *(("tags", "has", 47219 + n) for n in range(3)),
    }
    months = table(month=[202300 + 1 + n % 12 for n in range(N)])
    found = cluster_metadata(ray.data.from_arrow(months), ClustersConfig(), None, ("month",))
    assert [a.share for a in found.chosen].count(0.75) == 1
    assert len(found.assignment.sizes()) == 5


@pytest.mark.usefixtures("ray_local")
def test_a_hierarchy_of_lists() -> None:
    order, genus = [f"o{n % 2}" for n in range(N)], [n % 6 for n in range(N)]
    paths = [[o, str(g)][: 1 + n % 5] for n, (o, g) in enumerate(zip(order, genus, strict=True))]
    paths[7], paths[8] = None, []  # type: ignore[call-overload]
    first = [p[0] if p else None for p in paths]
    second = [p[1] if p and len(p) > 1 else None for p in paths]
    config = ClustersConfig(kind="hierarchy", columns=("a", "b"), level=(1, 2))
    wanted = cluster_metadata(
        ray.data.from_arrow(table(a=first, b=pa.array(second))), config, None, ("a", "b")
    ).assignment
    alone = ClustersConfig(kind="hierarchy", columns=("path",), level=(1, 2))
    for kind in (pa.list_(pa.string()), pa.large_list(pa.string())):
        whole = table(path=pa.array(paths, kind))
        pieces = [whole.slice(start, 13) for start in range(0, N, 13)]
        found = cluster_metadata(ray.data.from_arrow(pieces), alone, None, ("path",)).assignment
        assert np.array_equal(found.clusters, wanted.clusters)
    leaf = [[n % 2, n % 6] for n in range(N)]
    label = [f"t{n % 6}" for n in range(N)]
    with pytest.raises(UserError, match="'path' is equivalent to the label 't'"):
        cluster_metadata(ray.data.from_arrow(table(path=leaf, t=label)), alone, "t", ("path",))


@pytest.mark.usefixtures("ray_local")
def test_a_list_as_a_label_is_one_error() -> None:
    rows = ray.data.from_arrow(table(t=[["a"], ["b"]] * (N // 2), size=list(range(N))))
    for kind in ("label", "instance", "attributes"):
        with pytest.raises(Exception, match=r"\w") as caught:
            cluster_metadata(rows, ClustersConfig(kind=kind), "t", ("size",))  # type: ignore[arg-type]
        error = find_user_error(caught.value)
        assert "data.label 't': values of type list<item: string>" in str(error)
        assert "give a column with one number, text or date in each row" in str(error)
