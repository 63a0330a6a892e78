"""The demo data: deterministic, labelled, and with the information it promises."""

from __future__ import annotations

import functools
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wcl_ray.clusters.quality import measure
from wcl_ray.data import demo
from wcl_ray.data.demo import DemoPaths, contact_sheet, demo_data, make_demo
from wcl_ray.data.demo_notes import BITS, COINS, SPECIES, TRAITS, take_notes, true_information
from wcl_ray.data.demo_render import draw
from wcl_ray.data.sources.listing import list_files
from wcl_ray.storage import Folder


def read(paths: DemoPaths, split: str = "train") -> pa.Table:
    files = sorted(Path(paths.train).parent.glob(f"{split}-*.parquet"))
    return pa.concat_tables([pq.read_table(f) for f in files])


def test_files(tmp_path: Path) -> None:
    paths = make_demo(tmp_path, images=1100, test_images=40)
    train, test = read(paths), read(paths, "test")
    assert (train.num_rows, test.num_rows) == (1100, 40)
    assert len(list(tmp_path.glob("*/train-*.parquet"))) == 4
    assert pq.ParquetFile(next(tmp_path.glob("*/train-0.parquet"))).num_row_groups > 1
    assert len(set(train["id"].to_pylist() + test["id"].to_pylist())) == 1140
    assert not set(train["image"].to_pylist()) & set(test["image"].to_pylist())
    assert train.schema == test.schema
    attributes = set(train.column_names) - {"id", "image", "label"}
    assert len(attributes) >= 8
    types = {str(train.schema.field(name).type) for name in attributes}
    assert types >= {"string", "int64", "double"}
    assert train["diet"].null_count > 0
    assert train["social"].null_count > 0
    tags = train["tags"].to_pylist()
    assert {tag for row in tags for tag in row} >= {"pest", "photographed"}
    assert [] in tags
    labels = train["label"].to_pylist()
    assert set(labels) == set(SPECIES)
    assert labels != sorted(labels)
    for name in SPECIES:  # no note and no tag gives the label away
        assert not any(name in str(train[column].to_pylist()) for column in attributes)


def test_images_are_png_of_32_pixels(tmp_path: Path) -> None:
    for data in read(make_demo(tmp_path, 30, 10))["image"].to_pylist():
        picture = Image.open(io.BytesIO(data))
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (32, 32))
        assert np.array(picture).std() > 10


def test_same_seed_same_files_and_no_second_rendering(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_demo(tmp_path / "a", 60, 20, seed=3)
    again = make_demo(tmp_path / "b", 60, 20, seed=3)
    other = make_demo(tmp_path / "b", 60, 20, seed=4)
    wrong = make_demo(tmp_path / "b", 60, 20, seed=3, noise=0.5)
    assert len({first.train, again.train, other.train, wrong.train}) == 4
    for file in sorted(Path(first.train).parent.iterdir()):
        assert file.read_bytes() == (Path(again.train).parent / file.name).read_bytes()
    assert not read(first).equals(read(other))
    assert read(first)["image"] == read(wrong)["image"]  # the notes do not change the looks
    assert read(first)["diet"] != read(wrong)["diet"]
    monkeypatch.setattr(demo, "draw", None)  # drawing again would fail
    assert make_demo(tmp_path / "a", 60, 20, seed=3) == first


def test_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def tired(*arguments: Any) -> np.ndarray:
        calls.append(arguments)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return draw(*arguments)

    monkeypatch.setattr(demo, "draw", tired)
    with pytest.raises(KeyboardInterrupt):
        make_demo(tmp_path, 60, 20)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    facts = next(Path(make_demo(tmp_path, 60, 20).train).parent.glob("demo.json"))
    assert json.loads(facts.read_text())["images"] == 60
    facts.unlink()
    with pytest.raises(FileExistsError, match="not complete demo data; remove it"):
        make_demo(tmp_path, 60, 20)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"images": 0}, "0 images"),
        ({"noise": 1.5}, "noise is a probability"),
        ({"misfiled": -0.1}, "misfiled is a probability"),
        ({"informative": 9}, "informative is 9; it is in 0 to 8"),
        ({"nuisance": 7}, "nuisance is 7; it is in 0 to 6"),
    ],
)
def test_wrong_knobs(tmp_path: Path, knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_demo(tmp_path, **{"images": 10, "test_images": 10, **knobs})
    assert list(tmp_path.iterdir()) == []


def codes(columns: dict[str, Any], names: list[str]) -> np.ndarray:
    code = np.zeros(len(columns[names[0]]), np.int64)
    for name in names:
        values, index = np.unique(columns[name].astype(str), return_inverse=True)
        code = code * len(values) + index
    return code


@functools.cache
def notes(noise: float, misfiled: float) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Of 200,000 beetles."""
    return take_notes(200_000, np.random.default_rng(0), noise, misfiled)


@functools.cache
def drawn() -> np.ndarray:
    """125 pictures of each species, in turns."""
    return draw(np.arange(1500) % 12, np.random.default_rng(0))


@pytest.mark.parametrize(("noise", "misfiled"), [(0.0, 0.0), (0.03, 0.1), (0.3, 0.0), (0.1, 0.5)])
@pytest.mark.parametrize(
    "names",
    [["body"], ["body", "horned"], ["nocturnal", "social", "diet"], ["flies", "month"],
     ["ridges", "sex", "region", "damp"]],
)  # fmt: skip
def test_true_information_of_columns(names: list[str], noise: float, misfiled: float) -> None:
    """200,000 beetles: the estimates differ from the truth by less than 0.01 bit."""
    species, columns = notes(noise, misfiled)
    found = measure("z", codes(columns, names), species, 256, 2)
    shared, rest = true_information(names, noise, misfiled)
    assert found.i_zt == pytest.approx(shared, abs=0.01)
    assert found.h_z_t == pytest.approx(rest, abs=0.01)


@pytest.mark.parametrize(("informative", "nuisance"), [(0, 2), (3, 0), (5, 1), (8, 2)])
def test_true_information_of_bits(informative: int, nuisance: int) -> None:
    """The joint pattern of all binary notes. Estimates from N rows are biased by at most about
    patterns · species / (2 N ln 2), at which the tolerance of 0.01 bit begins."""
    knobs: dict[str, Any] = {"informative": informative, "nuisance": nuisance}
    species, columns = take_notes(200_000, np.random.default_rng(1), **knobs)
    names = [name for name in columns if name in BITS or name in COINS]
    assert len(names) == informative + nuisance
    found = measure("z", codes(columns, names), species, 256, 2)
    shared, rest = true_information(**knobs)
    bias = 3 * 2 ** len(names) * 12 / (2 * 200_000 * np.log(2)) / 2  # a missing value: 3 for 2
    assert -0.01 < found.i_zt - shared < bias + 0.01
    assert -0.01 < rest - found.h_z_t < bias + 0.01


@settings(max_examples=25)
@given(
    informative=st.integers(1, 7),
    nuisance=st.integers(0, 5),
    noise=st.floats(0.01, 0.4),
    misfiled=st.floats(0, 0.8),
)
def test_knobs_move_information(
    informative: int, nuisance: int, noise: float, misfiled: float
) -> None:
    def info(**change: Any) -> tuple[float, float]:
        knobs = {"noise": noise, "misfiled": misfiled, "informative": informative}
        return true_information(**{**knobs, "nuisance": nuisance, **change})

    shared, rest = info()
    assert 0 < shared < np.log2(12)
    more_noise = info(noise=noise + 0.05)
    assert more_noise[0] < shared
    assert more_noise[1] > rest
    assert info(misfiled=misfiled + 0.1)[0] < shared
    one_more = info(informative=informative + 1)
    assert one_more[0] > shared
    assert one_more[1] > rest
    coin = info(nuisance=nuisance + 1)
    assert coin == pytest.approx((shared, rest + 1))


def test_no_channel_no_doubt() -> None:
    assert true_information(["region"], 0, 0) == pytest.approx((np.log2(3), 0))
    assert true_information(["nocturnal"], 0.5, 0) == pytest.approx((0, 1))
    assert true_information(["nocturnal"], 0, 1) == pytest.approx((0, 1))
    assert true_information(["sex", "shelf"]) == pytest.approx((0, 4))


@pytest.mark.parametrize(
    ("columns", "message"),
    [(["weight"], "no exact information for 'weight'"), ([*BITS, *TRAITS] * 2, "too many joint")],
)
def test_true_information_refuses(columns: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        true_information(columns)


@pytest.mark.slow
def test_colours_do_not_tell_the_species() -> None:
    """Nearest neighbours in the colours of border and middle are near chance (1/12)."""
    species = np.arange(1500) % 12
    pixels = drawn().astype(np.float32) / 255
    border = np.concatenate([pixels[:, :2].mean((1, 2)), pixels[:, -2:].mean((1, 2))], 1)
    middle = pixels[:, 14:22, 13:19].mean((1, 2))
    for colours in (border, middle):
        far = ((colours[1000:, None] - colours[None, :1000]) ** 2).sum(2)
        votes = np.eye(12)[species[:1000]][np.argsort(far, 1)[:, :20]].sum(1)
        assert (votes.argmax(1) == species[1000:]).mean() < 0.2


def test_species_differ_in_shape() -> None:
    """The mean picture of one species, colour taken out, is not that of another."""
    species = np.arange(1500) % 12
    pixels = drawn().astype(np.float32).mean(3)
    pixels = (pixels - pixels.mean((1, 2), keepdims=True)) / pixels.std((1, 2), keepdims=True)
    means = np.stack([pixels[species == s].mean(0) for s in range(12)]).reshape(12, -1)
    halves = np.stack([pixels[species == s][::2].mean(0) for s in range(12)]).reshape(12, -1)
    far = ((means[:, None] - means[None]) ** 2).mean(2) + np.eye(12)
    assert far.min() > 2 * ((means - halves) ** 2).mean(1).max()


def test_contact_sheet(tmp_path: Path) -> None:
    sheet = np.array(contact_sheet(columns=3, rows=2, side=32))
    assert sheet.shape == (2 * 34 + 2, 3 * 34 + 2, 3)
    assert len(np.unique(sheet.reshape(-1, 3), axis=0)) > 500
    file = tmp_path / "sheet.png"
    subprocess.run([sys.executable, "-m", "wcl_ray.data.demo", "--sheet", str(file)], check=True)
    assert min(Image.open(file).size) > 300


def test_on_an_object_store(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = functools.partial(make_demo, test_images=10)
    monkeypatch.setattr(demo, "make_demo", few)
    storage = Folder("s3://bugs/demo-runs", s3)
    paths = demo_data(storage, 30, seed=1)
    assert paths.train.startswith("s3://bugs/demo-runs/demo-data/beetles-30-")
    found = list_files(paths.train, s3)
    assert len(found.paths) == 4
    local = few(tmp_path, 30, seed=1)
    with found.fs.open_input_file(sorted(found.paths)[0]) as stream:
        there = stream.read()
    assert there == Path(local.train.replace("*", "0")).read_bytes()
    assert demo_data(storage, 30, seed=1) == paths
