"""Every row of the table of inputs: it is read, or refused in one line; never a traceback."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from inputs import INPUTS, Input, Read
from pictures import png
from PIL import Image
from runs import settle

from benchmarks.mutate import mutate, read_here, render, trial
from wcl_ray.config import Config, DataConfig
from wcl_ray.data.decode import decode_batch
from wcl_ray.data.sources import open_source
from wcl_ray.data.sources.base import FAULT, ID, IMAGE, KEY
from wcl_ray.data.sources.folder import FolderSource
from wcl_ray.data.sources.hive import hive_value
from wcl_ray.data.sources.listing import list_files
from wcl_ray.data.sources.tables import read_csv, read_json_lines
from wcl_ray.data.values import value_names
from wcl_ray.errors import UserError, find_user_error
from wcl_ray.kmeans.vectors import open_vectors
from wcl_ray.storage import filesystem, resolve_input


def rows_of(data: DataConfig) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """Rows by id or name with their faults, decoding included, and the notes."""
    source = open_source(data)
    names = source.columns
    known = list(read_here(source, names, images=False))
    rows = []
    for part in read_here(source, names):
        bad = decode_batch(part[IMAGE].to_pylist(), 8).faults
        for number, row in enumerate(part.to_pylist()):
            rows.append(row | {FAULT: row[FAULT] or bad.get(number)})
    assert sum(map(len, known)) == len(rows)
    return sorted(rows, key=lambda row: row[KEY] or row[ID]), source.notes


@pytest.mark.parametrize("case", INPUTS, ids=lambda case: case.name.replace(" ", "-"))
def test_input(tmp_path: Path, case: Input) -> None:
    made = case.make(tmp_path)
    data = made if isinstance(made, DataConfig) else DataConfig(path=str(made))
    expected = case.expected
    if not isinstance(expected, Read):
        with pytest.raises(UserError) as caught:
            rows_of(data)
        text = str(caught.value)
        assert "\n" not in text
        assert [part for part in expected.parts if part not in text] == [], text
        return
    rows, notes = rows_of(data)
    assert len(rows) == expected.rows
    faults = {row[KEY] or row[ID]: row[FAULT] for row in rows if row[FAULT]}
    assert faults.keys() == expected.faults.keys()
    assert all(part in faults[name] for name, part in expected.faults.items()), faults
    for column, values in expected.values.items():
        assert [row[column] for row in rows] == values
    assert all(any(part in note for note in notes) for part in expected.notes), notes
    assert bool(notes) == bool(expected.notes), notes
    assert all("\n" not in note for note in notes)


def test_names_in_the_table_are_told_apart() -> None:
    names = [case.name for case in INPUTS]
    assert len(set(names)) == len(names) >= 60


@pytest.mark.slow
def test_mutated_files_are_read_or_refused() -> None:
    counts, bad = mutate(320, seed=1, workers=1)
    assert bad == []
    assert sum(found["files"] for found in counts.values()) == 320
    assert sum(found["faults"] for found in counts.values()) > 20, render(counts)


def test_a_footer_that_leaves_rows_out_is_refused(tmp_path: Path) -> None:
    """The footer of this mutated file says that its last row group holds no rows."""
    assert trial(tmp_path, "parquet", 154)[0] == "user error"


def _dies_or_hangs(root: Path, kind: str, seed: int) -> tuple[str, int, int, str]:
    if kind == "dies":
        os._exit(3)
    while kind == "hangs":
        pass
    return "read", 1, 0, ""


@pytest.mark.slow
def test_crashes_and_hangs_are_counted() -> None:
    kinds = ("dies", "hangs", "good")
    counts, bad = mutate(6, workers=2, seconds=0.5, kinds=kinds, run=_dies_or_hangs)
    assert (counts["dies"]["crash"], counts["hangs"]["hang"], counts["good"]["read"]) == (2, 2, 2)
    assert len(bad) == 4


@pytest.mark.usefixtures("ray_local")
def test_odd_inputs_through_ray(tmp_path: Path) -> None:
    """What the tasks raise comes back as the same one line; what they read is whole."""
    names = {case.name: case for case in INPUTS}
    for name in ("parquet with broken pages", "tar with a damaged header"):
        (tmp_path / name).mkdir()
        case = names[name]
        made = case.make(tmp_path / name)
        data = made if isinstance(made, DataConfig) else DataConfig(path=str(made))
        with pytest.raises(Exception, match=r"parquet|tar") as caught:
            open_source(data).images().take_all()
        text = str(find_user_error(caught.value))
        assert all(part in text for part in case.expected.parts)  # type: ignore[union-attr]
    for name in ("a name in latin-1", "folders of partitions", "columns called like our own"):
        (tmp_path / name).mkdir()
        made = names[name].make(tmp_path / name)
        source = open_source(DataConfig(path=str(made)))
        assert len(source.images(source.columns).take_all()) == names[name].expected.rows  # type: ignore[union-attr]


@pytest.mark.usefixtures("ray_local")
def test_kept_images_beside_columns_of_our_names(tmp_path: Path) -> None:
    from wcl_ray.data.pixels import kept_pixels
    from wcl_ray.data.stream import _keep_raw

    case = next(case for case in INPUTS if case.name == "columns called like our own")
    source = open_source(DataConfig(path=str(case.make(tmp_path))))
    (table,) = (
        source.images(["pixels", "bucket"])
        .repartition(1)
        .iter_batches(batch_format="pyarrow", batch_size=None)
    )
    (kept,) = _keep_raw(table, ray.put(np.sort(table["__id"].to_numpy())), 16)
    assert kept_pixels(kept, 16)[0].shape == (4, 3, 16, 16)
    assert sorted(kept["pixels"].to_pylist()) == [1, 2, 3, 4]


@pytest.mark.parametrize("key", ["photos [2019]/1.png", "a+b & c%20/#1?.png", "Käfer/*.png"])
def test_odd_keys_of_a_store(s3: str, key: str) -> None:
    folder = key.rpartition("/")[0]
    fs, path = filesystem(f"s3://bugs/keys/{key}", s3)
    with fs.open_output_stream(path) as stream:
        stream.write(png(1))
    for uri in (f"s3://bugs/keys/{folder}", f"s3://bugs/keys/{key}", f"s3://bugs/keys/{folder}/*"):
        rows, _ = rows_of(DataConfig(path=uri, endpoint=s3))
        assert [(row[IMAGE], row[FAULT]) for row in rows] == [(png(1), None)]


def test_an_existing_path_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "photos [2019]"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve_input("photos [2019]") == "photos [2019]"
    assert filesystem((folder / "a b").as_uri())[1] == str(folder / "a b")
    config = Config(data=DataConfig(path=str(folder)), storage=str(tmp_path / "runs"))
    assert str(settle(config)[0].name).startswith("photos-2019-attributes-")


def test_a_folder_that_may_not_be_read() -> None:
    """As another user where root runs the tests, who may read all."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        closed = Path(folder) / "a"
        closed.mkdir()
        closed.chmod(0)
        root = os.geteuid() == 0
        try:
            if root:
                os.seteuid(65534)
            with pytest.raises(UserError, match=r"cannot be read.*Permission denied"):
                list_files(folder, None)
        finally:
            if root:
                os.seteuid(0)


@pytest.mark.parametrize(
    ("columns", "damage", "text"),
    [
        ({}, lambda c: c[:4] + b"\xff" * 300 + c[304:], "a.PARQUET cannot be read"),
        ({}, lambda c: c[:-40] + b"\xff" * 30 + c[-10:], "a.PARQUET cannot be read as Parquet"),
        ({"key": [[1]] * 4}, None, "a.PARQUET: column 'key' cannot be read as names"),
    ],
)
def test_odd_files_of_vectors(tmp_path: Path, columns: Any, damage: Any, text: str) -> None:
    path = tmp_path / "a.PARQUET"
    feature = np.random.default_rng(0).random((4, 100)).tolist()
    pq.write_table(pa.table({"feature": feature} | columns), path)
    path.write_bytes(damage(path.read_bytes()) if damage else path.read_bytes())

    def load() -> None:
        for piece in open_vectors(str(tmp_path)).pieces:
            piece.load()
            piece.label_table(None)

    with pytest.raises(UserError, match=text):
        load()


def test_an_unknown_encoding_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.encoding 'cp9999' is not known"):
        DataConfig(encoding="cp9999")


def test_first_frames_and_turned_images(tmp_path: Path) -> None:
    """The rows above only say that images are read; these two also come out right."""
    turned = next(case for case in INPUTS if case.name == "jpeg turned by exif")
    turned.make(tmp_path)
    with Image.open(tmp_path / "a.jpg") as picture:
        assert picture.size == (40, 24)
    batch = decode_batch([(tmp_path / "a.jpg").read_bytes()], 8)
    assert batch.aspect.tolist() == pytest.approx([24 / 40])


@pytest.mark.parametrize(
    "texts",
    [
        ["007", "7"],
        ["250.1", "250.10"],
        ["1E2", "100"],
        ["true", "1"],
        ["NA", "DE"],
        ["1152921504606846977", "1152921504606846978", "0.5"],
    ],
)
def test_csv_texts_that_numbers_do_not_tell_apart(texts: list[str]) -> None:
    lines = [f"{i}.png,{text}" for i, text in enumerate([*texts, ""])]
    table = read_csv("\n".join(["file_name,y", *lines]), "metadata.csv")
    assert table["y"].to_pylist() == [*texts, None]


def test_csv_numbers_are_numbers() -> None:
    table = read_csv("file_name,a,b\n0.png,1,1.50\n1.png,NA,2.00\n2.png,3,0.25", "metadata.csv")
    assert table["a"].to_pylist() == [1, None, 3]
    assert table["b"].to_pylist() == [1.5, 2.0, 0.25]


def test_json_integers_of_any_size() -> None:
    lines = "".join(f'{{"y": {10**25 + i}}}\n' for i in range(2))
    assert read_json_lines(lines, "m.jsonl")["y"].to_pylist() == [f"{10**25 + i}" for i in range(2)]
    assert read_json_lines('{"y": 9223372036854775809}', "m.jsonl")["y"].type == pa.uint64()


def test_a_csv_label_does_not_depend_on_its_file(tmp_path: Path) -> None:
    names = []
    for folder, labels in (("train", ["01", "1.10"]), ("test", ["01", "1.10", "b"])):
        (tmp_path / folder).mkdir()
        rows = [f"{i}.png,{label}" for i, label in enumerate(labels)]
        (tmp_path / folder / "metadata.csv").write_text("\n".join(["file_name,y", *rows]))
        source = open_source(DataConfig(path=str(tmp_path / folder), label="y"))
        assert isinstance(source, FolderSource)
        names.append(value_names(source.table["y"], "y").to_pylist())
    assert names == [["01", "1.10"], ["01", "1.10", "b"]]


def test_partitions_whose_names_are_not_utf8() -> None:
    paths = [f"art=%{code}/a.parquet" for code in ("E4", "F6")]
    assert [hive_value(path, "art") for path in paths] == ["%E4", "%F6"]


def test_parts_of_a_data_set_beside_another_folder_are_no_classes(tmp_path: Path) -> None:
    for name in ("train", "val", "extra"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(png(0))
    with pytest.raises(UserError, match="are splits of a data set, not classes"):
        open_source(DataConfig(path=str(tmp_path), label="label"))


def test_two_names_of_one_image_are_one_id(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(0))
    (tmp_path / "metadata.csv").write_text("file_name,y\na.png,1\n./a.png,2\n")
    source = open_source(DataConfig(path=str(tmp_path)))
    (part,) = read_here(source, ("y",), images=False)
    assert len(set(part[ID].to_pylist())) == 1  # a duplicate, which is an error by its name


@pytest.mark.usefixtures("ray_local")
def test_what_plain_functions_of_ray_data_refuse_comes_back() -> None:
    """Here a label that is a mapping in the count of labels before training."""
    from wcl_ray.runs.preflight import _count

    rows = ray.data.from_arrow(pa.table({"y": [{"a": 1}]}))
    counts = rows.map_batches(_count, batch_format="pyarrow", fn_kwargs={"label": "y"})
    with pytest.raises(Exception, match="y") as caught:
        counts.take_all()
    text = str(find_user_error(caught.value))
    assert text.startswith("data.label 'y'")
    assert "\n" not in text
