"""A metadata table beside images that are anywhere: ``--data.table``, and the one at the top."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from pictures import png, write_parquet
from runs import settle
from test_source import shard, upload, write_tar

from benchmarks.mutate import read_here
from wcl_ray.clusters.assignment import Assignment
from wcl_ray.clusters.table import open_table
from wcl_ray.config import (
    ClustersConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    ModelConfig,
    ScaleConfig,
    TrainConfig,
)
from wcl_ray.data.images import open_images
from wcl_ray.data.sources import open_source
from wcl_ray.data.sources.base import FAULT, ID, IMAGE, KEY, Source, check_paths
from wcl_ray.data.sources.match import find_rows
from wcl_ray.data.sources.table_files import open_table as open_rows
from wcl_ray.data.sources.table_files import plain_table
from wcl_ray.errors import UserError, find_user_error
from wcl_ray.runs.cluster import cluster
from wcl_ray.runs.embed import embed_run
from wcl_ray.runs.evaluate import evaluate_run
from wcl_ray.runs.folder import ENCODER, claim
from wcl_ray.runs.moved import TEST, TRAIN, check_moves, id_summary, side_summaries
from wcl_ray.runs.preflight import open_and_check
from wcl_ray.runs.pretrain import pretrain
from wcl_ray.runs.stored import read_stored
from wcl_ray.runs.trained import Trained
from wcl_ray.storage import Folder

PHOTOS = ("images/cat/1.png", "images/cat/2.jpg", "images/dog/3.png", "images/dog/four.png")
LEGS = {"images/cat/1.png": 1, "images/cat/2.jpg": 2, "images/dog/3.png": 3}
# no row for the fourth photo, and no photo for the last row
ROWS = [("cat/1.png", 1), ("cat/2.jpg", 2), ("dog/3.png", 3), ("dog/5.png", 5)]


def write_images(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(number))
    return root


def csv(rows: list[tuple[Any, ...]], header: str = "file_name,legs") -> str:
    return "\n".join([header, *(",".join(map(str, row)) for row in rows), ""])


def values(source: Source, column: str) -> dict[str, Any]:
    """Name → value of the images of a folder, by metadata and by images, which must agree."""
    tables = [
        pa.concat_tables(read_here(source, (column,), images=images)) for images in (False, True)
    ]
    found = [dict(zip(t[KEY].to_pylist(), t[column].to_pylist(), strict=True)) for t in tables]
    assert found[0] == found[1]
    return found[0]


def rows_of(source: Source, *columns: str) -> dict[Any, dict[str, Any]]:
    """The same through Ray, with the images."""
    images, known = source.images(columns).take_all(), source.metadata(columns).take_all()
    assert all(row[FAULT] is None and row[IMAGE] for row in images)
    pictures = {row[KEY] or row[ID]: {name: row[name] for name in columns} for row in images}
    assert pictures == {row[KEY] or row[ID]: {n: row[n] for n in columns} for row in known}
    return pictures


def failure(data: DataConfig) -> str:
    with pytest.raises(Exception, match="table") as caught:
        open_source(data)
    text = str(find_user_error(caught.value))
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("names", "keys", "rows"),
    [
        (["cat/1.png", "dog/1.png"], ["dog/1.png", "cat/1.png"], [1, 0]),
        (["cat/1.png", "dog/1.png"], ["dog/1", None, "cat/1.JPG"], [2, 0]),
        (["cat/1.png", "dog/1.png"], ["/data/x/dog/1.png", "s3://b/cat/1.png"], [1, 0]),
        (["x/cat/1.png", "x/dog/1.png"], [".\\dog\\1.png", "./cat/1.png"], [1, 0]),
        (["cat/1.png", "dog/2.png"], ["2", "1"], [1, 0]),
        (["a-0.tar/001", "a-1.tar/002"], ["002.jpg", "001.jpg"], [1, 0]),
        (["b/1.png", "b/2.png"], ["scans/2.DCM", "scans/1.dcm"], [1, 0]),
        (["Ka\u0308fer.png"], ["K\u00e4fer.png"], [0]),
        # 9.png is not that of another folder, since most of the others are in their folders
        (["a/1.png", "a/2.png", "b/9.png"], ["a/1.png", "a/2.png", "c/9.png"], [0, 1, -1]),
        # but this table leaves the folders out, except where there are none
        (["1.png", "a/2.png", "b/3.png"], ["1.png", "2.png", "3.png"], [0, 1, 2]),
    ],
)
def test_names_with_and_without_folders_and_suffix(
    names: list[str], keys: list[str], rows: list[int]
) -> None:
    found, _, problem = find_rows(pa.array(names), pa.array(keys))
    assert found.tolist() == rows
    assert problem is None


def test_numbers_are_names() -> None:
    for names, keys in (
        (pa.array([7, 8, 9]), pa.array([9, None, 7, 7000], pa.int32())),
        (pa.array([7, 8, 9]), pa.array(["9.png", "x", "7", "007"])),
        (pa.array(["a/7.png", "8.png", "9.png"]), pa.array([9, None, 7, 7000])),
    ):
        assert find_rows(names, keys)[0].tolist() == [2, -1, 0]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", csv(ROWS)),
        ("t.csv", csv(ROWS).replace(",", ";").encode("utf-16")),
        ("t.tsv", "\ufeff" + csv(ROWS).replace(",", "\t")),
        ("t.txt", csv([(f'"photos/{name}"', legs) for name, legs in ROWS], "Filename,legs")),
        ("t.csv", csv([(f"images/{name}", legs) for name, legs in ROWS], "image,legs")),
        ("t.csv", csv([(f"/data/images/{name[:-4]}", legs) for name, legs in ROWS], "path,legs")),
        ("t.csv", csv([(name[4:], legs) for name, legs in ROWS], "scan,legs")),
        ("t.csv", csv([(i, *row) for i, row in enumerate(ROWS)], "id,file_name,legs")),
        ("t.jsonl", "".join(json.dumps({"key": n, "legs": i}) + "\n" for n, i in ROWS)),
        ("t.parquet", pa.table({"photo": [n for n, _ in ROWS], "legs": [i for _, i in ROWS]})),
        (
            "of images.parquet",
            pa.table(
                {
                    "image": [{"bytes": b"x", "path": "y"}] * 4,
                    "name": pa.array([n for n, _ in ROWS]).dictionary_encode(),
                    "legs": [i for _, i in ROWS],
                }
            ),
        ),
    ],
)
def test_any_table_beside_an_image_folder(tmp_path: Path, name: str, content: Any) -> None:
    write_images(tmp_path / "photos", *PHOTOS)
    if isinstance(content, pa.Table):
        pq.write_table(content, tmp_path / name)
    else:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    source = open_source(DataConfig(path=f"{tmp_path}/photos", table=f"{tmp_path}/{name}"))
    assert values(source, "legs") == LEGS | {"images/dog/four.png": None}
    assert source.match is not None
    assert "3 of 4 images have a row, 1 rows have no image" in source.match.describe()
    assert not source.notes
    assert "image" not in source.columns


@pytest.mark.parametrize("name", ["images.csv", "labels.tsv", "table.jsonl"])
@pytest.mark.parametrize("prefix", ["", "images/"])
def test_a_table_at_the_top_of_a_folder_is_found(tmp_path: Path, name: str, prefix: str) -> None:
    write_images(tmp_path, "images/1.png", "images/2.png")
    rows = [(f"{prefix}{n}.png", n) for n in (1, 2, 3)]
    text = csv(rows, "image,legs")
    if name.endswith(".jsonl"):
        text = "".join(json.dumps({"image": n, "legs": i}) + "\n" for n, i in rows)
    (tmp_path / name).write_text(text.replace(",", "\t") if name.endswith(".tsv") else text)
    source = open_source(DataConfig(path=str(tmp_path)))
    assert source.columns == ("legs",)  # images/ is no class
    assert values(source, "legs") == {"images/1.png": 1, "images/2.png": 2}
    assert "metadata table" in source.describe()
    assert not source.notes
    assert source.match is not None
    assert "2 of 2 images have a row, 1 rows have no image" in source.match.describe()


def test_class_folders_beside_a_table_are_kept(tmp_path: Path) -> None:
    write_images(tmp_path, "cat/1.png", "dog/2.png")
    (tmp_path / "extra.csv").write_text("id,legs\n1,4\n2,3\n")
    source = open_source(DataConfig(path=str(tmp_path)))
    assert source.columns == ("label", "legs")
    assert values(source, "label") == {"cat/1.png": "cat", "dog/2.png": "dog"}
    (tmp_path / "extra.csv").write_text("id,label\n1,tabby\n2,poodle\n")
    source = open_source(DataConfig(path=str(tmp_path)))
    assert values(source, "label") == {"cat/1.png": "tabby", "dog/2.png": "poodle"}
    assert ["'label'" in note and "extra.csv" in note for note in source.notes] == [True]
    assert open_source(DataConfig(path=f"{tmp_path}/*/*.png")).columns == ("label",)


def test_a_table_that_is_not_used_is_named(tmp_path: Path) -> None:
    write_images(tmp_path, "cat/1.png", "dog/2.png")
    (tmp_path / "stray.csv").write_text("id,legs\nx,4\n")
    (tmp_path / "readme.txt").write_text("id,legs\n1,4\n")
    notes = open_source(DataConfig(path=str(tmp_path))).notes
    assert "stray.csv" not in notes[0]
    assert "1 .txt" in notes[0]
    assert "stray.csv: no row belongs" in notes[1]
    assert "'x'" in notes[1]
    (tmp_path / "readme.txt").unlink()
    with pytest.raises(UserError, match=r"data\.key 'id'.*stray\.csv.*--data\.table"):
        open_source(DataConfig(path=str(tmp_path), key="id"))
    for name in ("one.csv", "two.csv"):
        (tmp_path / name).write_text("id,legs\n1,4\n2,3\n")
    notes = open_source(DataConfig(path=str(tmp_path))).notes
    assert "one.csv, two.csv have rows for the images" in notes[-1]
    assert "--data.table" in notes[-1]
    source = open_source(DataConfig(path=str(tmp_path), table=f"{tmp_path}/two.csv"))
    assert source.columns == ("label", "legs")


def test_a_list_of_classes_is_no_table_of_images(tmp_path: Path) -> None:
    write_images(tmp_path, *(f"{n % 2}/{n}.png" for n in range(9)))
    (tmp_path / "classes.csv").write_text("id,name\n0,cat\n1,dog\n")
    source = open_source(DataConfig(path=str(tmp_path)))
    assert source.columns == ("label",)
    assert "classes.csv: it has rows for 2 of 9 images only" in source.notes[0]


def test_row_numbers_are_no_names(tmp_path: Path) -> None:
    """Though two of them are, and are called so."""
    write_images(tmp_path / "a", *(f"bug/{n}.png" for n in range(8, 20)))
    lines = [(n, f"bug_{n + 8}", f"bug/{n + 8}.tif") for n in range(12)]
    (tmp_path / "t.csv").write_text(csv(lines, "id,note,scan"))
    source = open_source(DataConfig(path=f"{tmp_path}/a", table=f"{tmp_path}/t.csv"))
    assert source.columns == ("id", "note")
    assert values(source, "note") == {f"bug/{n}.png": f"bug_{n}" for n in range(8, 20)}


def test_the_table_of_the_option_is_no_file_of_the_source(tmp_path: Path) -> None:
    """Neither the metadata table of the folder, nor a Parquet file of images."""
    write_images(tmp_path, "cat/1.png", "dog/2.png")
    (tmp_path / "metadata.csv").write_text("number,legs\n1,4\n2,3\n")
    with pytest.raises(UserError, match=r"no column 'file_name'.*--data\.table"):
        open_source(DataConfig(path=str(tmp_path)))
    data = DataConfig(path=str(tmp_path), table=f"{tmp_path}/metadata.csv", key="number")
    assert values(open_source(data), "legs") == {"cat/1.png": 4, "dog/2.png": 3}
    (tmp_path / "metadata.csv").unlink()
    pq.write_table(pa.table({"number": [1, 2], "legs": [4, 3]}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"no image column|several formats.*--data\.table"):
        open_source(DataConfig(path=str(tmp_path)))
    source = open_source(replace(data, table=f"{tmp_path}/t.parquet"))
    assert values(source, "legs") == {"cat/1.png": 4, "dog/2.png": 3}


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("label", [None, "rank"])
def test_numbers_are_names_only_in_columns_of_usual_names(
    tmp_path: Path, suffix: str, label: str | None
) -> None:
    """Also if they are texts, as the label of a CSV file is."""
    write_images(tmp_path / "a", *(f"{n}.png" for n in range(10)))
    rows = [(f"p{n}", 9 - n) for n in range(10)]
    path = tmp_path / f"a/t.{suffix}"
    if suffix == "parquet":
        texts = pa.table({"person": [p for p, _ in rows], "rank": [str(r) for _, r in rows]})
        pq.write_table(texts, path)
    elif suffix == "jsonl":
        path.write_text("".join(json.dumps({"person": p, "rank": r}) + "\n" for p, r in rows))
    else:
        path.write_text(csv(rows, "person,rank").replace(",", "," if suffix == "csv" else "\t"))
    data = DataConfig(path=f"{tmp_path}/a", table=str(path), label=label)
    text = failure(data)
    assert "no row belongs to an image" in text
    assert text.endswith("with --data.key")
    assert "the values of --data.key have to be the images'" in failure(replace(data, key="person"))
    source = open_source(replace(data, key="rank"))
    assert values(source, "person") == {f"{n}.png": f"p{9 - n}" for n in range(10)}
    if suffix != "parquet":
        source = open_source(replace(data, table=None))
        assert (source.columns, source.match) == ((), None)
        assert any("no row belongs" in note for note in source.notes)


def test_few_names_do_not_make_a_column_the_images_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "a", *(f"{n}.png" for n in range(10)))
    (tmp_path / "t.csv").write_text(csv([(f"{n + 6}.png", n) for n in range(10)], "scan,legs"))
    data = DataConfig(path=f"{tmp_path}/a", table=f"{tmp_path}/t.csv")
    text = failure(data)
    assert "column 'scan' names 4 of 10 images only" in text
    assert "--data.key scan" in text
    open_images(replace(data, key="scan"), "", 0)
    assert "fewer than half" not in capsys.readouterr().out
    (tmp_path / "t.csv").write_text(csv([(f"{n + 5}.png", n) for n in range(10)], "scan,legs"))
    assert values(open_source(data), "legs")["9.png"] == 4
    # a usual name is enough, but the line is a warning
    (tmp_path / "t.csv").write_text(csv([(f"{n + 6}.png", n) for n in range(10)], "image,legs"))
    open_images(data, "", 0)
    lines = capsys.readouterr().out.splitlines()
    assert [line.startswith("warning: 4 of 10 images have a row") for line in lines] == [True]
    assert "fewer than half; see --data.key" in lines[0]


def test_a_table_joins_a_folder_with_its_own(tmp_path: Path) -> None:
    write_images(tmp_path / "a", "1.png", "2.png")
    (tmp_path / "a/metadata.csv").write_text("file_name,legs,id\n1.png,4,x\n2.png,3,y\n")
    (tmp_path / "t.csv").write_text("id,legs,file_name\ny,8,b\nx,9,a\n")
    source = open_source(DataConfig(path=f"{tmp_path}/a", table=f"{tmp_path}/t.csv"))
    assert values(source, "legs") == {"x": 9, "y": 8}
    assert source.columns == ("legs", "file_name")
    assert len(list(read_here(source, source.columns))) == 1


@pytest.mark.parametrize(
    ("table", "options", "parts"),
    [
        ("name\nx\ny\nz\nu\n", {}, ["'x', 'y', 'z'", "'cat/1.png', 'dog/1.png'", "--data.key"]),
        ("name,legs\n1.png,1\n", {}, ["'1.png' may be cat/1.png and dog/1.png", "folders"]),
        ("name,legs\ncat/1.png,1\ncat/1.png,2\n", {}, ["'cat/1.png' occurs more than once"]),
        ("name\n/x/cat/1\n/y/cat/1\n", {}, ["'/x/cat/1' occurs more", "also as '/y/cat/1'"]),
        ("name\ncat/1.png\n", {"key": "nam"}, ["data.key 'nam'", "did you mean 'name'"]),
        ("name\ncat/1.png\n", {"id": "name"}, ["data.id 'name'", "--data.key"]),
        ("x,y\ncat/1.png,dog/1.png\n", {}, ["'x', 'y' may both be names", "--data.key"]),
        ("name\n", {}, ["t.csv holds no rows"]),
        ("name,legs\ncat/1.png\n", {}, ["t.csv", "line 2 has 1 values"]),
    ],
)
def test_a_table_of_no_use_is_one_line(
    tmp_path: Path, table: str, options: Any, parts: list[str]
) -> None:
    write_images(tmp_path / "a", "cat/1.png", "dog/1.png")
    (tmp_path / "t.csv").write_text(table)
    text = failure(DataConfig(path=f"{tmp_path}/a", table=f"{tmp_path}/t.csv", **options))
    assert [part for part in parts if part not in text] == [], text


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    write_images(tmp_path, "cat/1.png")
    data = DataConfig(path=str(tmp_path), table=f"{tmp_path}/t.csv")
    (tmp_path / "t.xlsx").write_bytes(b"PK")
    assert "t.xlsx cannot be read (tables are CSV" in failure(
        replace(data, table=f"{tmp_path}/t.xlsx")
    )
    for check in (check_paths, open_source):
        with pytest.raises(UserError, match=r"data\.table .*t\.csv"):
            check(data)  # type: ignore[operator]
    with pytest.raises(UserError, match=r"need --data\.path"):
        open_images(DataConfig(table="t.csv"), str(tmp_path), 0)


def test_train_and_test_folders_with_a_label_in_the_table(tmp_path: Path) -> None:
    write_images(tmp_path, "train/1.png", "test/2.png")
    (tmp_path / "t.csv").write_text("file_name,species\n1.png,01\n2.png,1\n")
    source = open_source(DataConfig(path=str(tmp_path), label="species"))
    assert values(source, "species") == {"train/1.png": "01", "test/2.png": "1"}
    assert "are read as one data set" in source.notes[0]


def test_a_table_of_the_training_images_only(tmp_path: Path) -> None:
    """Test images need it for the label only."""
    write_images(tmp_path / "train", "cat/1.png", "dog/2.png")
    write_images(tmp_path / "test", "cat/3.png", "dog/4.png")
    table = tmp_path / "t.csv"
    table.write_text("file_name,legs\n1.png,1\n2.png,2\n")
    data = DataConfig(
        path=f"{tmp_path}/train", eval_path=f"{tmp_path}/test", table=str(table), label="label"
    )
    images = open_images(data, "", 0)
    assert values(images.train, "legs") == {"cat/1.png": 1, "dog/2.png": 2}
    assert images.test is not None
    assert values(images.test, "label") == {"cat/3.png": "cat", "dog/4.png": "dog"}
    with pytest.raises(UserError, match=r"no data\.label 'legs'.*--data\.table: .*no row belongs"):
        open_images(replace(data, label="legs"), "", 0)
    table.rename(tmp_path / "train/t.csv")
    images = open_images(replace(data, table=None, key="file_name"), "", 0)
    assert values(images.train, "legs") == {"cat/1.png": 1, "dog/2.png": 2}
    assert images.test is not None
    assert images.test.match is None
    with pytest.raises(UserError, match=r"data\.key 'file_name': there is no metadata table"):
        open_images(replace(data, table=None, key="file_name", label="legs"), "", 0)


def test_the_training_images_decide_whether_folders_are_classes(tmp_path: Path) -> None:
    write_images(tmp_path / "train", "cat/1.png", "dog/2.png")
    write_images(tmp_path / "test", "cat/3.png", "cat/4.png")
    for folder, numbers in (("train", (1, 2)), ("test", (3, 4))):
        (tmp_path / folder / "t.csv").write_text(csv([(n, n) for n in numbers], "id,legs"))
    data = DataConfig(path=f"{tmp_path}/train", eval_path=f"{tmp_path}/test", label="label")
    images = open_images(data, "", 0)
    assert images.train.columns == ("label", "legs")
    assert images.test is not None
    assert values(images.test, "label") == {"cat/3.png": "cat", "cat/4.png": "cat"}
    # the other way round, cat/ is no class
    swapped = replace(data, path=data.eval_path, eval_path=data.path, label="legs")
    images = open_images(swapped, "", 0)
    assert images.test is not None
    assert images.train.columns == images.test.columns == ("legs",)


def test_a_constant_label_of_the_users_own_is_kept(tmp_path: Path) -> None:
    write_images(tmp_path / "a", "1.png", "2.png")
    (tmp_path / "a/metadata.csv").write_text("file_name,label\n1.png,cat\n2.png,cat\n")
    (tmp_path / "t.csv").write_text("file_name,legs\n1.png,1\n2.png,2\n")
    source = open_source(DataConfig(path=f"{tmp_path}/a", table=f"{tmp_path}/t.csv"))
    assert values(source, "label") == {"1.png": "cat", "2.png": "cat"}
    assert values(source, "legs") == {"1.png": 1, "2.png": 2}


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_parts_of_a_table_whose_columns_differ_in_type(tmp_path: Path, order: str) -> None:
    """A column is empty in one part, and integer in one and decimal in the other."""
    (tmp_path / "t").mkdir()
    parts = [
        pa.table({"id": [1, 2], "day": pa.nulls(2), "n": pa.array([1, 2], pa.int32())}),
        pa.table({"id": [3], "day": ["2021-07-03"], "n": [2.5], "other": ["x"]}),
    ]
    for name, part in zip(order, parts, strict=True):
        pq.write_table(part, tmp_path / f"t/{name}.parquet")
    table = plain_table(open_rows(pafs.LocalFileSystem(), f"{tmp_path}/t", "t", None), "t")
    rows = {row.pop("id"): row for row in table.to_pylist()}
    assert rows == {
        1: {"day": None, "n": 1.0, "other": None},
        2: {"day": None, "n": 2.0, "other": None},
        3: {"day": "2021-07-03", "n": 2.5, "other": "x"},
    }


def test_images_named_by_a_column_file_name_of_parquet(tmp_path: Path) -> None:
    write_images(tmp_path, "1.png")
    pq.write_table(pa.table({"file_name": ["1.png"]}), tmp_path / "a.parquet")
    source = open_source(DataConfig(path=f"{tmp_path}/a.parquet"))
    assert source.image_column == "file_name"


def test_clusters_from_json_lines(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"id": 7, "fine": "a"}\n')
    assert open_table(f"{tmp_path}/t.jsonl", None).rows.column_names == ["id", "fine"]


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("kind", ["numbers", "texts"])
def test_a_table_beside_parquet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    ids: list[Any] = [n if kind == "numbers" else f"bug {n}" for n in range(96)]
    write_parquet(tmp_path / "data", id=ids)
    lines = [(ids[n], f"h{n}", f"c{n}") for n in reversed(range(90))]
    (tmp_path / "t.csv").write_text(csv([*lines, ("no", "h", "c")], "id,habitat,colour"))
    data = DataConfig(path=f"{tmp_path}/data", table=f"{tmp_path}/t.csv", label="habitat")
    images = open_images(data, str(tmp_path), 0)
    text = capsys.readouterr().out
    assert "90 of 96 images have a row, 1 rows have no image" in text
    assert "t.csv replaces the values of 'colour'" in text
    assert images.available == ("species", "size", "marks", "habitat", "colour")
    rows = rows_of(images.train, "colour", "species", "habitat")
    assert rows[ids[5]] == {"colour": "c5", "species": "s1", "habitat": "h5"}
    assert rows[ids[93]] == {"colour": None, "species": "s1", "habitat": None}
    held = images.test_metadata(["habitat"]).take_all()
    kept = images.metadata(["habitat"]).take_all()
    assert len(held) + len(kept) == 96
    assert 5 < len(held) < 40


@pytest.mark.usefixtures("ray_local")
def test_a_table_beside_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    shard(tmp_path / "data/a-0.tar", range(20))
    shard(tmp_path / "data/a-1.tar", range(20, 30))
    (tmp_path / "t.csv").write_text(csv([(f"{n:05d}", n, n) for n in range(10, 40)], "key,n,cls"))
    data = DataConfig(path=f"{tmp_path}/data", table=f"{tmp_path}/t.csv")
    source = open_source(data)
    assert source.columns == ("colour", "marks", "n", "cls")
    rows = rows_of(source, "n", "colour", "cls")
    assert rows["a-1.tar/00022"] == {"n": 22, "colour": "c1", "cls": 22}
    assert rows["a-0.tar/00003"] == {"n": None, "colour": "c0", "cls": None}

    def read(*_: Any) -> None:
        raise AssertionError("the shards are read again")

    inner = source.inner  # type: ignore[attr-defined]
    monkeypatch.setattr(type(inner), "metadata", read)
    assert sum(row["n"] is None for row in source.metadata(["n"]).take_all()) == 10
    monkeypatch.undo()
    write_tar(tmp_path / "data/a-1.tar", [("00003.png", png(3))])
    (tmp_path / "t.csv").write_text("key,n\n00003,1\n")
    assert "may be a-0.tar/00003 and a-1.tar/00003" in failure(data)


@pytest.mark.usefixtures("ray_local")
def test_tables_on_s3(tmp_path: Path, s3: str) -> None:
    write_images(tmp_path / "d", "images/1.png", "images/2.png")
    (tmp_path / "d/images.csv").write_text("file,legs\n1,4\n2,3\n")
    upload(tmp_path / "d", "table", s3)
    expected = {"images/1.png": {"legs": 4}, "images/2.png": {"legs": 3}}
    assert rows_of(open_source(DataConfig(path="s3://bugs/table", endpoint=s3)), "legs") == expected
    for path, table in (
        (str(tmp_path / "d/images"), "s3://bugs/table/images.csv"),
        ("s3://bugs/table/images", str(tmp_path / "d/images.csv")),
        ("s3://bugs/table", "s3://bugs/table/images.csv"),
    ):
        data = DataConfig(path=path, table=table, endpoint=s3)
        check_paths(data)
        source = open_source(data)
        found = rows_of(source, "legs")
        assert {f"images/{name.rpartition('/')[2]}": row for name, row in found.items()} == expected
        assert not source.notes
    with pytest.raises(UserError, match=r"data\.table s3://bugs/no\.csv at .*no such file"):
        check_paths(replace(data, table="s3://bugs/no.csv"))


@pytest.mark.usefixtures("ray_local")
def test_a_moved_table_has_rows_for_the_same_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "a", "1.png", "2.png", "3.png")
    (tmp_path / "t.csv").write_text("id,legs\n1,4\n2,3\n")
    data = DataConfig(path=f"{tmp_path}/a", table=f"{tmp_path}/t.csv")
    config = Config(data=data, name="one", storage=f"{tmp_path}/runs")
    images = open_images(data, "runs", 0)
    assert images.test is None
    ids = sorted(row[ID] for row in images.metadata().take_all())
    run = settle(config)[1]
    claim(run, config, {TRAIN: id_summary(np.array(ids))} | side_summaries(images))
    pq.write_table(pa.table({"id": ["2.png", "1.png"], "legs": [3, 4]}), tmp_path / "t.parquet")
    moved = replace(data, table=f"{tmp_path}/t.parquet")
    again, _ = settle(replace(config, data=moved, resume=True))
    check_moves(run, again.data, open_images(moved, "runs", 0))
    assert "t.parquet; the ids are the same" in capsys.readouterr().out
    assert read_stored(run).options["data"]["table"] == moved.table
    (tmp_path / "other.csv").write_text("id,legs\n1,4\n3,3\n")
    wrong = replace(data, table=f"{tmp_path}/other.csv")
    with pytest.raises(UserError, match=r"data\.table .*other\.csv holds 2 rows of images, but"):
        check_moves(run, wrong, open_images(wrong, "runs", 0))
    for other in (replace(data, table=None), replace(moved, key="id")):
        with pytest.raises(UserError, match=r"data\.(table|key) was"):
            settle(replace(config, data=other, resume=True))


def test_other_images_of_a_run_have_no_table_of_its_own() -> None:
    data = DataConfig(path="a", table="t.csv", key="name", label="legs")
    trained = Trained(Folder("/tmp"), Config(data=data), b"")
    assert trained.data({"label": "x"}).table == "t.csv"
    other = trained.data({"path": "b"})
    assert (other.table, other.key) == (None, None)
    other = trained.data({"path": "b", "table": "u.csv", "key": "id"})
    assert (other.path, other.table, other.key) == ("b", "u.csv", "id")


@pytest.mark.usefixtures("ray_local")
def test_a_run_without_a_table_does_not_read_one_that_is_there_now(tmp_path: Path) -> None:
    """Nor does one of an older version, which read none and stores no rows."""
    write_images(tmp_path / "a", "cat/1.png", "dog/2.png")
    write_images(tmp_path / "b", "cat/3.png", "dog/4.png")
    data = DataConfig(path=f"{tmp_path}/a", eval_path=f"{tmp_path}/b", label="label")

    def start(name: str) -> Folder:
        config = Config(data=data, name=name, storage=f"{tmp_path}/runs")
        run = settle(config)[1]
        claim(run, config, side_summaries(open_and_check(data, "", 0, run).images))
        run.write(ENCODER, b"")
        return run

    run = start("before")
    (tmp_path / "a/t.csv").write_text("id,label,legs\n1,tabby,1\n2,poodle,2\n")
    (tmp_path / "b/t.csv").write_text("id,label\n3,tabby\n4,poodle\n")
    for folder, label in ((run, "cat"), (start("after"), "tabby")):
        trained = Trained.open(folder.uri)
        for images in (
            open_and_check(data, "", 0, folder).images,
            open_images(data, "", 0, find_tables=trained.find_tables({"label": "label"})),
        ):
            assert images.train.columns == (("label",) if label == "cat" else ("label", "legs"))
            assert values(images.train, "label")["cat/1.png"] == label
            assert images.test is not None
            assert values(images.test, "label")["cat/3.png"] == label
    old = Trained.open(run.uri)
    assert old.find_tables({}) == ()
    assert old.find_tables({"eval_path": "x"}) == (TEST,)
    assert old.find_tables({"path": "x"}) == (TRAIN, TEST)
    content = json.loads(run.read("config.json"))
    del content["images"]  # as in version 0.1.0
    run.write("config.json", json.dumps(content).encode())
    assert open_and_check(data, "", 0, run).images.train.columns == ("label",)
    # whose table may be asked for
    asked = open_images(replace(data, key="id"), "", 0, find_tables=old.find_tables({}))
    assert asked.train.columns == ("label", "legs")


def test_vectors_have_no_table(tmp_path: Path) -> None:
    feature = pa.array([[0.5, 1.0]] * 4, pa.list_(pa.float32(), 2))
    pq.write_table(pa.table({"id": range(4), "feature": feature}), tmp_path / "a.parquet")
    config = Config(data=DataConfig(path=str(tmp_path), table="t.csv"))
    clusters = replace(config.clusters, kind="kmeans", k=(2,))
    with pytest.raises(UserError, match=r"--data\.table is for images"):
        cluster(replace(config, clusters=clusters))


def test_clusters_from_names_without_a_suffix(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("file_name,fine\nphotos/cat/2,a\nphotos/cat/1,b\nphotos/x,a\n")
    names = pa.array([f"cat/{n}.png" for n in (1, 2, 3)])
    images = Assignment(np.arange(3), np.zeros((3, 1), np.int32), ("x",), names)
    table = open_table(f"{tmp_path}/t.csv", None).assign(images)
    assert table.clusters[2] == -1
    assert sorted(table.clusters[:2, 0]) == [0, 1]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_a_run_its_evaluations_and_its_features_with_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shards without metadata; label, clusters and an output column come from the table. The
    encoder is evaluated while it is trained, too."""
    (tmp_path / "data").mkdir()
    for part in range(2):
        members = [(f"{n:03d}.png", png(n)) for n in range(part * 48, part * 48 + 48)]
        write_tar(tmp_path / f"data/{part}.tar", members)
    rows = [(f"{n:03d}", f"s{n % 4}", f"c{n % 3}") for n in range(96)]
    (tmp_path / "t.csv").write_text(csv(rows, "key,species,colour"))
    data = DataConfig(
        path=f"{tmp_path}/data", table=f"{tmp_path}/t.csv", label="species", image_size=16
    )
    config = Config(
        data=data,
        clusters=ClustersConfig(columns=("colour",), top_k=(3,)),
        model=ModelConfig(projector=(16, 8)),
        train=TrainConfig(batch_size=24, epochs=5),
        evaluate=EvaluateConfig(every=2),
        scale=ScaleConfig(workers="1", cpus_per_worker=1),
        storage=f"{tmp_path}/runs",
        name="one",
    )
    results = pretrain(config)
    assert results["variants"]["attributes"]["clusters"] == 3
    assert 0 <= results["variants"]["attributes"]["knn"] <= 1
    run = f"{tmp_path}/runs/one"
    lines = Path(run, "metrics.jsonl").read_text().splitlines()
    found = [row for row in map(json.loads, lines) if "knn" in row]
    assert [row["epoch"] for row in found] == [2, 4]
    assert all(0 <= row["knn"] <= 1 and row["rank_me"] >= 1 for row in found)
    assert "after epoch 2: knn" in capsys.readouterr().out
    assert pretrain(replace(config, resume=True)) == results
    scale = config.scale
    assert "knn" in evaluate_run(run, {"label": "colour"}, config.evaluate, scale)
    written = embed_run(run, f"{tmp_path}/features", {}, columns=("colour",), scale=scale)
    assert written["rows"] == 96
    features = pq.read_table(tmp_path / "features").to_pylist()
    assert {row["key"][-3:]: row["colour"] for row in features} == {k: c for k, _, c in rows}
