"""The demo data: deterministic, labelled, and with the information it promises."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from wcl_ray.clusters.quality import measure
from wcl_ray.data.demo import NOISE_ONLY, TRAITS, contact_sheet, make_demo, notes, true_information


def test_files(tmp_path: Path) -> None:
    demo = make_demo(tmp_path, images=100, test_images=40)
    folder = Path(demo.train).parent
    train = pa.concat_tables([pq.read_table(f) for f in sorted(folder.glob("train-*.parquet"))])
    test = pa.concat_tables([pq.read_table(f) for f in sorted(folder.glob("test-*.parquet"))])
    assert (train.num_rows, test.num_rows) == (100, 40)
    assert len(set(train["id"].to_pylist() + test["id"].to_pylist())) == 140
    attributes = set(train.column_names) - {"id", "image", "label"}
    assert len(attributes) >= 8
    assert train["diet"].null_count > 0
    assert {tag for tags in train["tags"].to_pylist() for tag in tags} >= {"rare", "pest"}
    picture = Image.open(io.BytesIO(train["image"][0].as_py()))
    assert picture.size == (32, 32)
    assert np.array(picture).std() > 10
    labels = train["label"].to_pylist()
    assert len(set(labels)) == 12
    assert labels != sorted(labels)


def test_same_seed_same_pixels_and_no_second_rendering(tmp_path: Path) -> None:
    first = make_demo(tmp_path / "a", 60, 20, seed=3)
    file = Path(first.train).parent / "train-0.parquet"
    stamp = file.stat().st_mtime_ns
    make_demo(tmp_path / "a", 60, 20, seed=3)
    assert file.stat().st_mtime_ns == stamp
    again = make_demo(tmp_path / "b", 60, 20, seed=3)
    other = make_demo(tmp_path / "b", 60, 20, seed=4)
    tables = [
        pq.read_table(Path(d.train).parent / "train-0.parquet") for d in (first, again, other)
    ]
    assert tables[0].equals(tables[1])
    assert not tables[0].equals(tables[2])
    assert not list((tmp_path / "a").glob("*.partial"))


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.4])
@pytest.mark.parametrize(
    "columns", [["body"], ["body", "wings"], ["nocturnal", "social", "diet"], ["horned", "season"]]
)
def test_true_information(columns: list[str], noise: float) -> None:
    species, values = notes(200_000, np.random.default_rng(0), noise)
    code = np.zeros(len(species), dtype=np.int64)
    for name in columns:
        kinds = [*(str(k) for k in (NOISE_ONLY.get(name) or sorted(set(TRAITS[name])))), "None"]
        found = np.array([kinds.index(str(v)) for v in values[name]])
        code = code * len(kinds) + found
    estimate = measure("z", code.astype(np.int64), species, 256, 2)
    shared, rest = true_information(columns, noise)
    assert estimate.i_zt == pytest.approx(shared, abs=0.01)
    assert estimate.h_z_t == pytest.approx(rest, abs=0.01)


def test_knobs_move_information() -> None:
    columns = ["body", "wings", "horned"]
    by_noise = [true_information(columns, noise) for noise in (0.0, 0.1, 0.3)]
    assert by_noise[0][0] > by_noise[1][0] > by_noise[2][0]
    assert by_noise[0][1] < by_noise[1][1] < by_noise[2][1]
    with_season = true_information([*columns, "season"], 0.1)
    assert with_season[0] == pytest.approx(by_noise[1][0])
    assert with_season[1] == pytest.approx(by_noise[1][1] + 2)


def test_contact_sheet() -> None:
    sheet = np.array(contact_sheet(columns=3, rows=2, scale=1))
    assert sheet.shape == (2 * 38 + 6, 3 * 38 + 6, 3)
    assert len(np.unique(sheet.reshape(-1, 3), axis=0)) > 500
