"""Sources one by one, local and on S3 (moto's server), and what is said of wrong ones."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from pictures import columns, png, write_parquet
from werkzeug.serving import WSGIRequestHandler

from wcl_ray.config import DataConfig
from wcl_ray.data.ids import hash_strings
from wcl_ray.data.sources import open_source
from wcl_ray.data.sources import parquet as source_parquet
from wcl_ray.data.sources.base import FAULT, ID, IMAGE, KEY
from wcl_ray.data.sources.listing import list_files
from wcl_ray.data.sources.webdataset import _samples
from wcl_ray.errors import UserError, find_user_error
from wcl_ray.storage import Folder, filesystem

pytestmark = pytest.mark.usefixtures("ray_local")
Rows = list[dict[str, Any]]


def images(data: DataConfig, *names: str) -> Rows:
    rows: Rows = open_source(data).images(names).take_all()
    return sorted(rows, key=lambda row: row[ID])


def metadata(data: DataConfig, *names: str) -> Rows:
    rows: Rows = open_source(data).metadata(names).take_all()
    assert all(IMAGE not in row for row in rows)
    return sorted(rows, key=lambda row: row[ID])


def failure(data: DataConfig) -> str:
    with pytest.raises(UserError) as caught:
        open_source(data)
    return str(caught.value)


def test_parquet_bytes(tmp_path: Path) -> None:
    data = DataConfig(path=write_parquet(tmp_path))
    source = open_source(data)
    assert source.columns == ("species", "colour", "size", "marks")
    rows = images(data, "species", "marks")
    assert [row[ID] for row in rows] == list(range(96))
    assert all(row[IMAGE] == png(row[ID]) for row in rows)
    assert all(row[FAULT] is None and row[KEY] is None for row in rows)
    assert rows[5]["species"] == "s1"
    assert len(metadata(data, "size")) == 96


@pytest.mark.parametrize("path", ["part-*.parquet", "part-0.parquet", "*-[01].parquet"])
def test_globs_and_files(tmp_path: Path, path: str) -> None:
    write_parquet(tmp_path)
    expected = {"part-*.parquet": 96, "part-0.parquet": 32, "*-[01].parquet": 64}[path]
    assert len(images(DataConfig(path=f"{tmp_path}/{path}"))) == expected


def test_parquet_without_ids_gets_stable_ones(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path)
    for file in tmp_path.glob("*.parquet"):
        pq.write_table(pq.read_table(file).drop_columns(["id"]), file, row_group_size=7)
    rows = images(DataConfig(path=folder))
    assert len({row[ID] for row in rows}) == 96
    keys = {f"part-{f}.parquet#{row}" for f in range(3) for row in range(32)}
    assert {row[KEY] for row in rows} == keys
    assert all(row[ID] == hash_strings([row[KEY]])[0] for row in rows)
    by_key = {row[KEY]: row[IMAGE] for row in rows}
    assert by_key["part-1.parquet#5"] == png(37)
    assert {row[ID] for row in metadata(DataConfig(path=folder))} == {row[ID] for row in rows}


def test_string_ids_are_hashed(tmp_path: Path) -> None:
    names = [f"picture-{i}" for i in range(96)]
    rows = images(DataConfig(path=write_parquet(tmp_path, id=names)))
    assert {row[KEY] for row in rows} == set(names)
    assert {row[ID] for row in rows} == set(hash_strings(names).tolist())


def test_hugging_face_struct_and_paths(tmp_path: Path) -> None:
    (tmp_path / "pixels").mkdir()
    (tmp_path / "pixels/3.png").write_bytes(png(3))
    structs = [{"bytes": png(i), "path": None} for i in range(3)]
    structs.append({"bytes": None, "path": "pixels/3.png"})  # type: ignore[dict-item]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(
        pa.table({"id": range(4), "image": pa.array(structs, kind)}), tmp_path / "a.parquet"
    )
    rows = images(DataConfig(path=str(tmp_path / "a.parquet")))
    assert [row[IMAGE] for row in rows] == [png(i) for i in range(4)]

    table = pa.table(
        {"id": range(3), "image_path": ["pixels/3.png", f"{tmp_path}/pixels/3.png", "no"]}
    )
    pq.write_table(table, tmp_path / "b.parquet")
    rows = images(DataConfig(path=str(tmp_path / "b.parquet")))
    assert [row[IMAGE] for row in rows] == [png(3), png(3), None]
    assert rows[2][FAULT] == "file not found: no"


@pytest.mark.parametrize("layout", ["path", "struct", "bytes"])
def test_names_of_images_are_shared_out(tmp_path: Path, layout: str) -> None:
    """A table of names is small, but not what it names."""
    names = [f"pixels/{i}.png" for i in range(1000)]
    column: Any = pa.array(names)
    if layout == "struct":
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        column = pa.array([{"bytes": None, "path": name} for name in names], kind)
    if layout == "bytes":
        column = pa.array([png(i) for i in range(1000)], pa.binary())
    table = pa.table({"id": range(1000), "image": column})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=50)
    found = open_source(DataConfig(path=str(tmp_path / "a.parquet"), image="image"))
    assert isinstance(found, source_parquet.ParquetSource)
    pieces, _, size = source_parquet._pieces(found.files, "image")
    assert len(pieces) == 20
    assert (size > 1000 * source_parquet.FILE_BYTES) == (layout != "bytes")
    assert size > 1000 * len(png(0)) / 2


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_folder_with_metadata(tmp_path: Path, kind: str) -> None:
    (tmp_path / "sub").mkdir()
    names = ["a.png", "sub/b.PNG", "missing.png"]
    for i, name in enumerate(names[:2]):
        (tmp_path / name).write_bytes(png(i))
    rows = [{"file_name": n, "habitat": f"h{i}", "legs": i} for i, n in enumerate(names)]
    if kind == "csv":
        with (tmp_path / "metadata.csv").open("w") as stream:
            writer = csv.DictWriter(stream, ["file_name", "habitat", "legs"])
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "jsonl":
        (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "metadata.parquet")
    data = DataConfig(path=str(tmp_path))
    assert open_source(data).columns == ("habitat", "legs")
    found = {row[KEY]: row for row in images(data, "legs", "habitat")}
    assert set(found) == set(names)
    assert found["a.png"][IMAGE] == png(0)
    assert found["sub/b.PNG"][IMAGE] == png(1)
    assert "file not found" in found["missing.png"][FAULT]
    assert [found[n]["legs"] for n in names] == [0, 1, 2]


def test_class_folders(tmp_path: Path) -> None:
    for i, name in enumerate(["cat/1.png", "cat/deep/2.png", "dog/1.jpg"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(i))
    (tmp_path / "cat/.hidden.png").write_bytes(b"x")
    rows = images(DataConfig(path=str(tmp_path)), "label")
    assert {row[KEY]: row["label"] for row in rows} == {
        "cat/1.png": "cat",
        "cat/deep/2.png": "cat",
        "dog/1.jpg": "dog",
    }


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def shard(path: Path, numbers: range) -> None:
    members = []
    for n in numbers:
        tree = {"colour": f"c{n % 3}", "marks": ["a", "b"][: n % 3]}
        members += [
            (f"{n:05d}.png", png(n)),
            (f"{n:05d}.json", json.dumps(tree).encode()),
            (f"{n:05d}.cls", str(n % 5).encode()),
        ]
    write_tar(path, members)


def test_webdataset(tmp_path: Path) -> None:
    shard(tmp_path / "a-0.tar", range(20))
    shard(tmp_path / "a-1.tar", range(20, 30))
    data = DataConfig(path=str(tmp_path))
    assert open_source(data).columns == ("colour", "marks", "cls")
    rows = {row[KEY]: row for row in images(data, "colour", "cls", "marks")}
    assert len(rows) == 30
    row = rows["a-1.tar/00022"]
    assert row[IMAGE] == png(22)
    assert (row["colour"], row["cls"], list(row["marks"])) == ("c1", 2, ["a"])
    assert {r[ID] for r in metadata(data, "cls")} == {r[ID] for r in rows.values()}


@pytest.mark.parametrize("kind", ["ids", "row numbers", "paths", "folder", "shards", "joined"])
def test_only_images_to_keep(tmp_path: Path, kind: str) -> None:
    """Whatever the format, the same as if others were left out afterwards."""
    names, options = ["species"], {}
    if kind == "shards":
        (tmp_path / "data").mkdir()
        shard(tmp_path / "data/a.tar", range(30))
        names = ["colour"]
    elif kind in ("folder", "paths"):
        for n in range(24):
            (tmp_path / f"data/s{n % 3}").mkdir(parents=True, exist_ok=True)
            (tmp_path / f"data/s{n % 3}/{n}.png").write_bytes(png(n))
        names = ["label"]
    else:
        write_parquet(tmp_path / "data")
    if kind == "paths":
        table = {"file": [f"s{n % 3}/{n}.png" for n in range(24)], "label": list("abc") * 8}
        pq.write_table(pa.table(table), tmp_path / "data/all.parquet", row_group_size=5)
        options = {"path": str(tmp_path / "data/all.parquet")}
    if kind == "joined":
        pq.write_table(pa.table({"id": range(96), "kind": ["x", "y"] * 48}), tmp_path / "t.parquet")
        options, names = {"table": str(tmp_path / "t.parquet")}, ["kind", "species"]
    data = DataConfig(**{"path": str(tmp_path / "data"), "id": None} | options)  # type: ignore[arg-type]
    if kind in ("ids", "joined"):
        data = replace(data, id="id")
    source = open_source(data)
    every = images(data, *names)
    kept = sorted(
        source.images(names, lambda ids: ids % 2 == 1).take_all(), key=lambda row: row[ID]
    )
    assert 0 < len(kept) < len(every)
    assert kept == [row for row in every if row[ID] % 2]
    assert source.images(names, lambda ids: ids == -1).count() == 0


def test_row_groups_without_an_image_to_keep_are_not_read(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "data", 20, files=1)
    file = tmp_path / "data/part-0.parquet"
    column = pq.ParquetFile(file).metadata.row_group(0).column(1)
    assert column.path_in_schema == "image"
    content = bytearray(file.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    file.write_bytes(content)
    source = open_source(DataConfig(path=path))
    assert source.images((), lambda ids: ids >= 10).count() == 10
    with pytest.raises(UserError, match=r"part-0\.parquet: rows 0 to 9"):
        source.images().materialize()


def test_webdataset_image_member(tmp_path: Path) -> None:
    pairs = [m for n in (1, 3) for m in ((f"{n}.left.png", png(n)), (f"{n}.right.png", png(n + 1)))]
    write_tar(tmp_path / "a.tar", pairs)
    path = str(tmp_path)
    assert "left.png, right.png may all be" in failure(DataConfig(path=path))
    rows = images(DataConfig(path=path, image="right.png"))
    assert {row[IMAGE] for row in rows} == {png(2), png(4)}
    assert "end in: left.png, right.png" in failure(DataConfig(path=path, image="top.png"))
    write_tar(tmp_path / "a.tar", [("1.mask.png", png(1)), ("1.png", png(2)), ("._1.png", b"x")])
    assert [row[IMAGE] for row in images(DataConfig(path=path))] == [png(2)]
    write_tar(tmp_path / "a.tar", [("1.jpg", png(1)), ("1.png", png(2))])
    assert "jpg, png may all be" in failure(DataConfig(path=path))
    write_tar(tmp_path / "a.tar", [("1.jpg", png(1)), ("2.png", png(2)), ("3.txt", b"no image")])
    rows = images(DataConfig(path=path))
    assert {row[KEY]: row[FAULT] for row in rows} == {
        "a.tar/1": None,
        "a.tar/2": None,
        "a.tar/3": "no image",
    }


def test_webdataset_numbers_are_never_truncated(tmp_path: Path) -> None:
    members = []
    for n in range(60):
        tree = {"score": 1 if n < 55 else 0.5, "whole": 2 if n < 55 else 2.0}
        members += [(f"{n}.png", png(n)), (f"{n}.json", json.dumps(tree).encode())]
    write_tar(tmp_path / "a.tar", members)
    data = DataConfig(path=str(tmp_path))
    assert [row["whole"] for row in metadata(data, "whole")] == [2] * 60
    with pytest.raises(Exception, match="score") as caught:
        metadata(data, "score")
    assert "a.tar: column 'score' is of type int64" in str(find_user_error(caught.value))


def test_webdataset_broken_shards(tmp_path: Path) -> None:
    data = DataConfig(path=str(tmp_path))
    (tmp_path / "a.tar.gz").write_bytes(b"\x1f\x8b")
    assert "unpack them to plain .tar" in failure(data)
    (tmp_path / "a.tar").write_bytes(b"\x1f\x8b" * 600)
    assert "a.tar is not a readable tar shard (plain, not compressed)" in failure(data)
    write_tar(tmp_path / "a.tar", [("1.png", png(1)), ("1.json", b"{")])
    assert "a.tar: 1.json is not valid JSON" in failure(data)


def upload(folder: Path, prefix: str, endpoint: str) -> None:
    fs, base = filesystem(f"s3://bugs/{prefix}", endpoint)
    for path in folder.rglob("*"):
        if path.is_file():
            with fs.open_output_stream(f"{base}/{path.relative_to(folder)}") as stream:
                stream.write(path.read_bytes())


def test_s3(tmp_path: Path, s3: str) -> None:
    write_parquet(tmp_path / "p")
    upload(tmp_path / "p", "tables", s3)
    for path in ("s3://bugs/tables", "s3://bugs/tables/part-*.parquet"):
        rows = images(DataConfig(path=path, endpoint=s3), "species")
        assert [row[ID] for row in rows] == list(range(96))
        assert rows[50][IMAGE] == png(50)
    (tmp_path / "w").mkdir()
    shard(tmp_path / "w/x.tar", range(5))
    upload(tmp_path / "w", "shards", s3)
    assert len(images(DataConfig(path="s3://bugs/shards", endpoint=s3))) == 5
    (tmp_path / "f/cat").mkdir(parents=True)
    (tmp_path / "f/cat/1.png").write_bytes(png(1))
    upload(tmp_path / "f", "folder", s3)
    assert images(DataConfig(path="s3://bugs/folder", endpoint=s3))[0][IMAGE] == png(1)
    table = pa.table({"id": [1], "image_uri": ["s3://bugs/folder/cat/1.png"]})
    pq.write_table(table, tmp_path / "uris.parquet")
    rows = images(DataConfig(path=str(tmp_path / "uris.parquet"), endpoint=s3))
    assert rows[0][IMAGE] == png(1)


def test_s3_shards_are_read_in_one_stream(
    tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard(tmp_path / "x.tar", range(40))
    upload(tmp_path, "stream", s3)
    count = 0

    def request(*_: Any) -> None:
        nonlocal count
        count += 1

    monkeypatch.setattr(WSGIRequestHandler, "log_request", request)
    files = list_files("s3://bugs/stream", s3)
    for wanted in (("png",), ()):
        count = 0
        samples = list(_samples(files, files.paths[0], wanted))
        assert len(samples) == 40
        assert samples[7]["image"] == (png(7) if wanted else None)
        assert count < 10  # one a member would be 120 at least


def test_s3_run_folder(s3: str) -> None:
    folder = Folder("s3://bugs/bare", s3)
    folder.write("one/config.json", b"{}")
    assert folder.exists("one/config.json")
    assert folder.names() == ["one"]
    assert (folder / "one").read("config.json") == b"{}"


def test_s3_errors(s3: str) -> None:
    assert "s3://bugs/nothing" in failure(DataConfig(path="s3://bugs/nothing", endpoint=s3))
    text = failure(DataConfig(path="s3://other/x", endpoint=s3))
    assert "s3://other/x" in text
    assert s3 in text
    text = failure(DataConfig(path="s3://bugs/x", endpoint="http://127.0.0.1:9"))
    assert "s3://bugs/x at http://127.0.0.1:9 cannot be read" in text


def test_errors(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / "p")
    assert "no such file" in failure(DataConfig(path="/no/where"))
    assert "no file matches" in failure(DataConfig(path=f"{folder}/*.csv"))
    text = failure(DataConfig(path=folder, id="ident"))
    assert "'ident' is not a column" in text
    assert "species" in text
    text = failure(DataConfig(path=folder, image="picture"))
    assert "'picture'" in text
    assert "image (binary)" in text
    assert "is of type double" in failure(DataConfig(path=folder, image="size"))
    source = open_source(DataConfig(path=folder))
    with pytest.raises(UserError, match=r"did you mean 'species'.*colour"):
        source.check_columns(["specie"], "data.label")
    (tmp_path / "e").mkdir()
    assert "empty" in failure(DataConfig(path=str(tmp_path / "e")))
    (tmp_path / "e/notes.txt").write_text("x")
    assert "no Parquet files, images" in failure(DataConfig(path=str(tmp_path / "e")))
    (tmp_path / "e/broken.parquet").write_text("x")
    assert "broken.parquet is not a readable" in failure(DataConfig(path=str(tmp_path / "e")))
    (tmp_path / "e/a.png").write_bytes(png(1))
    assert "several formats (1 for folder, 1 for parquet)" in failure(
        DataConfig(path=str(tmp_path / "e"))
    )


def test_unclear_image_column(tmp_path: Path) -> None:
    table = pa.table({"front": [png(1)], "back": [png(2)]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert "front, back may all be the images" in failure(DataConfig(path=str(tmp_path)))
    pq.write_table(pa.table({"x": [1]}), tmp_path / "a.parquet")
    assert "no image column" in failure(DataConfig(path=str(tmp_path)))


def test_metadata_without_file_name(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "metadata.csv").write_text("name,legs\na.png,6\n")
    assert "no column 'file_name'" in failure(DataConfig(path=str(tmp_path)))


@pytest.mark.parametrize("read", [images, metadata])
def test_missing_id_is_an_error(tmp_path: Path, read: Any) -> None:
    ids = pa.array([*range(60), None, *range(61, 96)], pa.int64())
    data = DataConfig(path=write_parquet(tmp_path, id=ids))
    with pytest.raises(Exception, match="part-1") as caught:
        read(data)
    # the third row group of the second file
    assert "'id' is empty in row 28;" in str(find_user_error(caught.value))
    assert "UDF" not in str(find_user_error(caught.value))


def test_float_id_is_an_error(tmp_path: Path) -> None:
    text = failure(DataConfig(path=write_parquet(tmp_path), id="size"))
    assert "'size'" in text
    assert "ids are integers or strings" in text


def test_types_agree_over_files(tmp_path: Path) -> None:
    def write(name: str, start: int, values: pa.Array) -> None:
        pictures = {k: v for k, v in columns(4, start).items() if k in ("id", "image")}
        pq.write_table(pa.table(pictures | {"value": values}), tmp_path / name)

    data = DataConfig(path=str(tmp_path))
    write("a.parquet", 0, pa.array([1, 2, 3, 4], pa.int32()))
    write("b.parquet", 4, pa.array([0.5, 1.5, None, 2.5]))
    found = open_source(data).metadata(["value"]).to_arrow_refs()
    assert {table.schema.field("value").type for table in ray.get(found)} == {pa.float64()}
    assert [row["value"] for row in metadata(data, "value")] == [1, 2, 3, 4, 0.5, 1.5, None, 2.5]
    write("a.parquet", 0, pa.nulls(4))
    write("b.parquet", 4, pa.array(["x", "y", None, "x"]).dictionary_encode())
    rows = metadata(data, "value")
    assert [row["value"] for row in rows] == [None] * 4 + ["x", "y", None, "x"]
    write("a.parquet", 0, pa.array([1, 2, 3, 4]))
    with pytest.raises(UserError, match=r"b\.parquet: column 'value' is of type string.* int64"):
        open_source(data).metadata(["value"])
    pq.write_table(pa.table(columns(4, 4)), tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"b\.parquet has no column 'value'"):
        open_source(data).images(["value"])
    assert len(images(data)) == 8


def test_many_parquet_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_parquet(tmp_path)
    for file in tmp_path.glob("*.parquet"):
        pq.write_table(pq.read_table(file).drop_columns(["id"]), file, row_group_size=7)
    data = DataConfig(path=folder)
    few = images(data, "colour", "size")
    monkeypatch.setattr(source_parquet, "MANY", 2)  # footers are then read inside the tasks
    assert images(data, "colour", "size") == few
    assert [row[ID] for row in metadata(data)] == [row[ID] for row in few]


def test_parquet_without_rows(tmp_path: Path) -> None:
    pq.write_table(pa.table(columns(4)).slice(0, 0), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="hold no rows"):
        open_source(DataConfig(path=str(tmp_path))).images()
    pq.write_table(pa.table(columns(4)), tmp_path / "b.parquet")
    assert len(images(DataConfig(path=str(tmp_path)))) == 4


def test_large_images_are_read_in_small_parts(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    pictures = [noise.bytes(1_000_000) for _ in range(40)]
    pq.write_table(pa.table({"id": range(40), "image": pictures}), tmp_path / "a.parquet")
    source = open_source(DataConfig(path=str(tmp_path)))
    assert isinstance(source, source_parquet.ParquetSource)
    piece = pa.table({"file": [0], "group": [0], "first": [0]})
    parts = list(source_parquet._read_piece(piece, source, {}, images=True))
    assert max(part.nbytes for part in parts) < 20e6
    assert [b for part in parts for b in part[IMAGE].to_pylist()] == pictures


def test_names_that_look_hidden(tmp_path: Path) -> None:
    names = ["cat/_DSC0001.JPG", "dog/1.png", "cover.png"]
    for i, name in enumerate([*names, ".cache/x.png", "cat/._1.png"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(i))
    rows = images(DataConfig(path=str(tmp_path)), "label")
    labels = {row[KEY]: row["label"] for row in rows}
    assert labels == {"cat/_DSC0001.JPG": "cat", "dog/1.png": "dog", "cover.png": None}


def test_metadata_tables_in_sub_folders(tmp_path: Path) -> None:
    for i, part in enumerate(("train", "more")):
        (tmp_path / part).mkdir()
        (tmp_path / part / "1.png").write_bytes(png(i))
        (tmp_path / part / "metadata.csv").write_text(f"file_name,legs\n1.png,{i}\n")
    rows = images(DataConfig(path=str(tmp_path)), "legs")
    assert {row[KEY]: (row["legs"], row[IMAGE]) for row in rows} == {
        "train/1.png": (0, png(0)),
        "more/1.png": (1, png(1)),
    }


def test_user_columns_may_have_any_name(tmp_path: Path) -> None:
    extra = {"fault": ["crack"] * 96, "key": [str(i) for i in range(96)]}
    data = DataConfig(path=write_parquet(tmp_path, **extra))
    rows = images(data, "fault", "key")
    assert rows[3]["fault"] == "crack"
    assert rows[3]["key"] == "3"
    assert rows[3][FAULT] is None
    assert columns(1)["id"].to_pylist() == [0]
    assert np.issubdtype(type(rows[3][ID]), np.integer) or isinstance(rows[3][ID], int)
