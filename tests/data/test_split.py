"""Which images are held out: whole groups, and sides that share no image and miss none."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import write_parquet

from wcl_ray.clusters.metadata import columns_of
from wcl_ray.config import ClustersConfig, Config, DataConfig
from wcl_ray.data.images import Images, open_images
from wcl_ray.data.sources.base import ID
from wcl_ray.data.split import held_groups, held_out
from wcl_ray.errors import UserError
from wcl_ray.runs.trained import Trained
from wcl_ray.storage import Folder

N = 240
GROUPS = st.lists(st.one_of(st.none(), st.integers(0, 9)), min_size=1, max_size=60)


@given(GROUPS, st.floats(0.05, 0.95), st.integers(0, 99), st.randoms(use_true_random=False))
def test_groups_are_kept_whole(groups: list[int | None], share: float, seed: int, dice) -> None:  # type: ignore[no-untyped-def]
    ids = np.arange(len(groups)) * 7
    out = held_groups(pa.array(groups, pa.int64()), ids, share, seed)
    by_id = held_out(ids, share, seed)
    for i, group in enumerate(groups):
        same = [j for j, other in enumerate(groups) if group is not None and other == group]
        assert all(out[j] == out[i] for j in same)
        assert group is not None or out[i] == by_id[i]
    # whatever the order of the rows, their chunks and their encoding
    order = np.array(dice.sample(range(len(groups)), len(groups)))
    half = len(groups) // 2
    mixed = pa.array([groups[i] for i in order], pa.int64())
    chunks = pa.chunked_array([mixed[:half], mixed[half:]])
    for form in (chunks, chunks.dictionary_encode(), chunks.cast(pa.string())):
        assert np.array_equal(held_groups(form, ids[order], share, seed), out[order])
    missing = [np.nan if g is None else float(g) for g in groups]  # as pandas writes them
    floats = [None if g is None else float(g) for g in groups]
    assert np.array_equal(
        held_groups(pa.array(missing, pa.float64(), from_pandas=False), ids, share, seed),
        held_groups(pa.array(floats, pa.float64()), ids, share, seed),
    )


def test_groups_that_cannot_be_told_apart() -> None:
    with pytest.raises(UserError, match="values of type list"):
        held_groups(pa.array([["a"], []]), np.arange(2), 0.5, 0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("split")
    unit = [None if n % 11 == 0 else f"u{n % 40}" for n in range(N)]
    train = write_parquet(folder / "train", N, unit=unit, few=["a"] * N)
    ids = pa.array(range(N, N + 24), pa.int64())
    return train, write_parquet(folder / "test", 24, id=ids, unit=["u1"] * 24, few=["a"] * 24)


def sides(images: Images) -> tuple[set[int], set[int] | None]:
    """Ids of both sides, the same whichever way they are asked for."""
    found: list[set[int] | None] = []
    for rows in (images.train_images(), images.test_images()):
        if rows is None:
            found.append(None)
            continue
        table = pa.concat_tables([pa.table(b) for b in rows.iter_batches(batch_format="pyarrow")])
        assert "unit" not in table.column_names
        found.append(set(table[ID].to_pylist()))
        assert len(found[-1] or ()) == table.num_rows
    train, test = found
    assert train is not None
    assert train == {row[ID] for row in images.metadata().take_all()}
    if test is not None:
        assert images.test_count() == len(test)
    return train, test


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("group", [None, "unit"])
@pytest.mark.parametrize("label", [None, "species"])
def test_sides_are_disjoint_and_cover_everything(
    data: tuple[str, str], group: str | None, label: str | None
) -> None:
    options = DataConfig(path=data[0], label=label, split_by=group, holdout=0.25)
    images = open_images(options, "", 3)
    train, test = sides(images)
    everything = set(range(N))
    if label is None:
        assert (train, test) == (everything, None)
        test = set()
    assert test is not None
    assert (train | test, train & test) == (everything, set())
    if group is None and label is not None:  # as it always was
        assert test == set(np.flatnonzero(held_out(np.arange(N), 0.25, 3)).tolist())
    searched = open_images(options, "", 3, validation=0.3)
    fit, validation = sides(searched)
    assert validation
    assert fit
    assert (fit | validation, fit & validation) == (train, set())
    assert not validation & test
    assert searched.without_validation() == images
    if group:
        unit = {n: n % 40 for n in range(N) if n % 11}
        for one, other in ((fit, validation), (fit, test), (validation, test)):
            assert not {unit.get(n, -n) for n in one} & {unit.get(n, -n) for n in other} - {0}

    # a test source is never looked at for the validation
    both = open_images(DataConfig(path=data[0], eval_path=data[1], label="species"), "", 3, 0.3)
    fit, validation = sides(both)
    assert validation
    assert fit | validation == everything
    assert sides(both.without_validation()) == (everything, set(range(N, N + 24)))


@pytest.mark.usefixtures("ray_local")
def test_columns_of_a_side(data: tuple[str, str]) -> None:
    images = open_images(DataConfig(path=data[0], label="species", split_by="unit"), "", 0)
    assert set(images.metadata(["unit"]).take(1)[0]) == {ID, "__key", "unit"}
    assert set(images.metadata(["size"], training=False).take(1)[0]) == {ID, "__key", "size"}
    with pytest.raises(UserError, match=r"data\.split-by 'unt' is not a column.*'unit'"):
        open_images(DataConfig(path=data[0], split_by="unt"), "", 0)
    none = open_images(DataConfig(path=data[0], label="species", split_by="few"), "", 0)
    kept = [none, Images(none.train, None, None, 0.0, 1, "few", 0.1)]
    for one in kept:
        if one.metadata().count():
            with pytest.raises(UserError, match=r"no image is held out: 'few' has too few values"):
                one.test_count()


def test_other_data_have_no_group_of_the_run() -> None:
    run = Trained(Folder("x"), Config(data=DataConfig(path="a", split_by="unit")), b"")
    assert run.data({"label": "kind"}).split_by == "unit"
    assert run.data({"path": "b"}).split_by is None
    assert run.data({"path": "b", "split_by": "scene"}).split_by == "scene"


@pytest.mark.usefixtures("ray_local")
def test_the_group_is_no_metadata_unless_named(data: tuple[str, str]) -> None:
    images = open_images(DataConfig(path=data[0], split_by="unit"), "", 3)
    assert "unit" not in images.available
    assert "few" in images.available
    plain = columns_of(ClustersConfig(), None, images.available)
    assert "unit" not in plain
    named = columns_of(ClustersConfig(columns=("unit",)), None, images.available)
    assert named == ["unit"]
