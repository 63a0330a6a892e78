"""Shards for training: the same images and metadata, each once, clusters together, resumable."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import png, write_parquet
from PIL import Image
from runs import descendants, job, run_script

from wcl_ray.config import ClustersConfig, Config, DataConfig
from wcl_ray.data import sampler
from wcl_ray.data import shards as placing
from wcl_ray.data.reader import Reader
from wcl_ray.data.shards import Placement, partners_together
from wcl_ray.data.shrink import shrink_file, shrink_files
from wcl_ray.data.sources import open_source
from wcl_ray.data.sources import parquet as source_parquet
from wcl_ray.data.stream import plan_stream
from wcl_ray.errors import UserError
from wcl_ray.runs.prepare import Shape, prepare

N = 192
SMALL = Shape(shard_mb=0.05, part=8)


def config_of(path: str, **clusters: Any) -> Config:
    options: dict[str, Any] = {"kind": "hierarchy", "columns": ("pair",)} | clusters
    return Config(data=DataConfig(path=path, image_size=16), clusters=ClustersConfig(**options))


def pairs(count: int) -> list[str]:
    """Clusters of four, far apart in the files."""
    return [f"p{n % (count // 4)}" for n in range(count)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_parquet(tmp_path_factory.mktemp("source"), N, pair=pairs(N))


@pytest.fixture(scope="module")
def shards(source: str, ray_local: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "shards"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placing, "GROUP_ROWS", 32)  # two row groups to a shard
        prepare(config_of(source), str(out), SMALL)
    return out


def rows_of(path: str, **options: Any) -> dict[int, dict[str, Any]]:
    opened = open_source(DataConfig(path=path, **options))
    rows = opened.images(opened.columns).take_all()
    found = {row["__id"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.parquet")}


def test_the_shards_hold_what_the_source_does(source: str, shards: Path) -> None:
    assert rows_of(str(shards)) == rows_of(source)
    files = sorted(shards.glob("shard-*.parquet"))
    manifest = json.loads((shards / "_prepared.json").read_text())
    assert (manifest["rows"], manifest["faults"], manifest["shards"]) == (N, 0, len(files))
    assert len(files) >= 3
    assert {file.name.split(".")[0] for file in files} == {
        f"shard-{i:06d}" for i in range(len(files))
    }


def test_clusters_are_together_in_random_order(shards: Path) -> None:
    placement = Placement.from_parquet((shards / "_placement.parquet").read_bytes())
    assert placement.ids.tolist() == list(range(N))
    number = 0
    for file in sorted(shards.glob("shard-*.parquet")):
        footer = pq.ParquetFile(file)
        for group in range(footer.num_row_groups):
            table = footer.read_row_group(group, columns=["id", "pair"])
            assert (placement.groups[table["id"].to_numpy()] == number).all()
            names, counts = np.unique(table["pair"].to_pylist(), return_counts=True)
            assert set(counts) == {4}
            assert len(names) > 4
            assert table["pair"].to_pylist() != sorted(table["pair"].to_pylist())
            number += 1
    assert number == placement.groups.max() + 1


def test_the_same_command_writes_only_what_is_missing(source: str, shards: Path) -> None:
    before = contents(shards)
    times = {name: (shards / name).stat().st_mtime_ns for name in before}
    prepare(config_of(source), str(shards), SMALL)  # nothing is missing
    lost = "shard-000001.parquet"
    (shards / lost).unlink()
    prepare(config_of(source), str(shards), SMALL)
    assert contents(shards) == before  # the same bytes
    again = {name: (shards / name).stat().st_mtime_ns for name in before}
    assert {name for name in times if times[name] != again[name]} == {lost}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"clusters": {"columns": ("colour",)}}, "holds other shards.*colour"),
        ({"shape": replace(SMALL, part=4)}, "part was 8, now 4"),
        ({"clusters": {"kind": "kmeans", "columns": ()}}, "needs an encoder.*--clusters.from"),
        ({"out": "inside"}, "is inside --data.path"),
        ({"out": "foreign"}, "is not empty and holds no shards"),
    ],
)
def test_one_line_says_what_is_wrong(
    source: str, shards: Path, tmp_path: Path, changes: dict[str, Any], text: str
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    places = {"inside": f"{source}/sub", "foreign": str(tmp_path), "shards": str(shards)}
    out = places[changes.get("out", "shards")]
    with pytest.raises(UserError, match=text):
        prepare(config_of(source, **changes.get("clusters", {})), out, changes.get("shape", SMALL))
    assert os.listdir(tmp_path) == ["mine.txt"]


def test_bad_images_are_listed(ray_local: str, tmp_path: Path) -> None:
    images = [b"no image" if n in (3, 70) else png(n) for n in range(96)]
    data = write_parquet(tmp_path / "data", pair=pairs(96), image=pa.array(images, pa.binary()))
    config, out = config_of(data), tmp_path / "out"
    with pytest.raises(UserError, match=r"(?s)2 of 96 images cannot be read.*max-bad 1.0%.*3: "):
        prepare(config, str(out), SMALL)
    config = replace(config, data=replace(config.data, max_bad=0.1))
    assert prepare(config, str(out), SMALL)["rows"] == 94  # continues
    listed = [json.loads(line) for line in (out / "_faults.jsonl").read_text().splitlines()]
    assert {fault["key"] for fault in listed} == {"3", "70"}
    assert set(rows_of(str(out))) == set(range(96)) - {3, 70}


def test_ids_of_paths_and_a_table_stay(ray_local: str, s3: str, tmp_path: Path) -> None:
    """The ids decide which images are held out. To an object store."""
    for n in range(24):
        file = tmp_path / f"images/class{n % 2}/{n:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(n))
    table = tmp_path / "table.csv"
    lines = [f"{n:03d}.png,{n % 6},not an id {n},red" for n in range(24)]
    table.write_text("\n".join(["file_name,pair,id,image", *lines]))
    config = config_of(str(tmp_path / "images"))
    config = replace(config, data=replace(config.data, table=str(table), endpoint=s3))
    manifest = prepare(config, "s3://bugs/prepared", replace(SMALL, part=2))
    assert (manifest["id_name"], manifest["image_name"]) == ("image_id", "image_bytes")
    read = rows_of("s3://bugs/prepared", endpoint=s3, id="image_id")
    assert read == rows_of(config.data.path or "", table=str(table))


def test_metadata_with_the_names_of_the_shards(ray_local: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    rows = ["file_name,image,image_bytes,id,pair"]
    for n in range(16):
        (tmp_path / f"data/{n}.png").write_bytes(png(n))
        rows.append(f"{n}.png,https://x/{n}.png,{n},{n},p{n % 4}")
    (tmp_path / "data/metadata.csv").write_text("\n".join(rows))
    config = config_of(str(tmp_path / "data"))
    prepare(replace(config, data=replace(config.data, id=None)), str(tmp_path / "out"), SMALL)
    manifest = json.loads((tmp_path / "out/_prepared.json").read_text())
    names = {"id": manifest["id_name"], "image": manifest["image_name"]}
    opened = open_source(DataConfig(path=str(tmp_path / "out"), **names))
    assert set(opened.columns) == {"image", "image_bytes", "id", "pair"} - set(names.values())
    read = opened.images(["image"] if "image" in opened.columns else []).take_all()
    assert sorted(row["__image"] for row in read) == sorted(png(n) for n in range(16))
    assert all(row["image"].startswith("https://") for row in read)


def test_large_images_are_shrunk() -> None:
    def jpeg(width: int, height: int, **options: Any) -> bytes:
        sink = io.BytesIO()
        Image.linear_gradient("L").resize((width, height)).save(sink, "JPEG", **options)
        return sink.getvalue()

    turned = Image.Exif()
    turned[0x0112] = 6
    for content, size in (
        (jpeg(300, 200), (96, 64)),
        (jpeg(300, 200, exif=turned), (64, 96)),
        (png(1, 128), (64, 64)),
    ):
        shrunk = Image.open(io.BytesIO(shrink_file(content, 64, 90)))
        assert (shrunk.format, shrunk.mode, shrunk.size) == ("JPEG", "RGB", size)
    assert len(shrink_file(png(1, 128), 64, 90)) > len(shrink_file(png(1, 128), 64, 30))
    small = jpeg(300, 64)
    files, faults = shrink_files([small, None, jpeg(300, 200)[:400], b"?"], 64, 90)
    assert files[0] is small
    assert faults[0] is None
    assert all(faults[1:])
    files, faults = shrink_files([jpeg(300, 200), b"?"], 0, 90)
    assert files[0] == jpeg(300, 200)
    assert [bool(fault) for fault in faults] == [False, True]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["source", "shards"])
def test_streaming_meets_partners_only_in_shards(
    source: str, shards: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_parquet, "TASK_BYTES", 1)  # a task for every row group
    data = DataConfig(path={"source": source, "shards": str(shards)}[kind], keep="streaming")
    ids = np.arange(N)
    clusters = np.unique(pairs(N), return_inverse=True)[1].astype(np.int32)[:, None]
    stream = plan_stream(open_source(data), ids, data)
    one = Reader(
        stream, clusters, rank=0, world=1, batch_size=8, seed=0, group=2, window=32
    )  # fmt: skip

    def tables(epoch: int) -> Any:
        def read() -> Iterator[pa.Table]:
            rows = stream.dataset(None, (0, epoch))
            return iter(rows.iter_batches(batch_size=None, batch_format="pyarrow"))

        return read

    orders = []
    for epoch in range(2):
        batches = [b.positions.numpy() for b in one.epoch(epoch, None, tables(epoch))]
        assert sorted(np.concatenate(batches).tolist()) == ids.tolist()
        positives, alone = sampler.meeting(clusters[np.stack(batches), 0])
        if kind == "shards":
            assert positives >= 0.9
            assert alone < 0.1
        else:
            assert alone > 0.3
        orders.append(np.concatenate(batches).tolist())
    assert orders[0] != orders[1]


def test_finer_clusters_stay_together_in_coarse_ones(
    ray_local: str, source: str, shards: Path, tmp_path: Path
) -> None:
    """What a later round asks for is not known when the shards are written."""
    coarse, later = np.arange(N) // 16, np.arange(N) // 4  # twelve clusters, and four in each
    table = pa.table({"id": np.arange(N), "coarse": coarse})
    pq.write_table(table, tmp_path / "coarse.parquet")
    config = config_of(source, kind="table", columns=(), from_=str(tmp_path / "coarse.parquet"))
    prepare(config, str(tmp_path / "out"), replace(SMALL, part=9))
    kept = Placement.from_parquet((tmp_path / "out/_placement.parquet").read_bytes())
    other = Placement.from_parquet((shards / "_placement.parquet").read_bytes())
    assert partners_together(later, kept.groups) == (1.0, 0.0)
    assert partners_together(later, other.groups)[0] < 0.5


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_a_killed_job_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    count = 1536
    images = pa.array([png(n, 64) for n in range(count)], pa.binary())
    data = write_parquet(tmp_path / "data", count, pair=pairs(count), image=images)
    out = tmp_path / "shards"
    words = [
        "--data.path", data, "--clusters.kind", "hierarchy", "--clusters.columns", "pair",
        "--out", str(out), "--part", "2", "--shard-mb", "0.1",
    ]  # fmt: skip
    environment = os.environ | {"RAY_TMPDIR": "/tmp"}
    first = subprocess.Popen(
        job(tmp_path, *words, script="prepare.py"), env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    limit = time.monotonic() + 200
    while len(list(out.glob("shard-*"))) < 3:
        assert first.poll() is None, first.stdout.read().decode()  # type: ignore[union-attr]
        assert time.monotonic() < limit
        time.sleep(0.005)
    for pid in descendants(first.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    first.wait()
    finished = {file.name: file.stat().st_mtime_ns for file in out.glob("shard-*")}
    capsys.readouterr()
    run_script(monkeypatch, "prepare.py", *words)
    printed = capsys.readouterr().out
    assert f"{len(finished)} of " in printed
    written = {file.name: file.stat().st_mtime_ns for file in out.glob("shard-*")}
    assert 3 <= len(finished) < len(written)
    assert finished.items() <= written.items()
    ids = [i for file in out.glob("shard-*") for i in pq.read_table(file)["id"].to_pylist()]
    assert sorted(ids) == list(range(count))
    assert "jobs/pretrain.py --data.path" in printed
