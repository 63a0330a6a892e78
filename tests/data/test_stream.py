"""The stream on a real Ray: every image once per epoch, whatever the mode, workers and restarts."""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pictures import number_of, write_parquet

from wcl_ray.config import DataConfig, ModelConfig
from wcl_ray.data import data_stats, pixels, sampler, stream
from wcl_ray.data import reader as data_reader
from wcl_ray.data.batch import Batch
from wcl_ray.data.blocks import (
    Block,
    Blocks,
    Directory,
    describe,
    inverse,
    locate,
    rows_left,
)
from wcl_ray.data.deal import Places
from wcl_ray.data.pixels import PIXELS
from wcl_ray.data.reader import Reader
from wcl_ray.data.sources import folder as source_folder
from wcl_ray.data.sources import open_source
from wcl_ray.data.sources import parquet as source_parquet
from wcl_ray.data.sources.base import IMAGE
from wcl_ray.data.stream import Stream, plan_stream
from wcl_ray.errors import UserError
from wcl_ray.evaluate.embed import embed
from wcl_ray.model.encoder import EncoderSpec, build_encoder
from wcl_ray.train.progress import Progress

pytestmark = pytest.mark.usefixtures("ray_local")
N = 96


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    return DataConfig(path=write_parquet(tmp_path, N), image_size=16, store_size=16)


def plan(data: DataConfig, ids: np.ndarray, keep: str) -> Stream:
    options = replace(data, keep=keep)  # type: ignore[arg-type]
    return plan_stream(open_source(options), ids, options)


def tables_of(s: Stream) -> list[pa.Table]:
    assert s.blocks is not None
    tables: list[pa.Table] = ray.get(Directory(s.blocks).tables())
    return tables


def reader(s: Stream, clusters: np.ndarray, rank: int = 0, world: int = 1, **more: Any) -> Reader:
    options: dict[str, Any] = {"batch_size": 12, "seed": 0, "group": 2} | more
    return Reader(s, clusters, rank=rank, world=world, **options)


def tables(s: Stream, consumed: np.ndarray | None = None) -> Any:
    def one() -> Iterator[pa.Table]:
        return iter(s.dataset(consumed).iter_batches(batch_size=None, batch_format="pyarrow"))

    return one if s.mode == "streaming" else None


@pytest.mark.parametrize("keep", ["raw", "encoded"])
def test_many_tasks_read_and_decode(
    data: DataConfig, keep: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Data takes a batch size of a later step for rows of the table of pieces."""
    assert len(tables_of(plan(data, np.arange(N), keep))) == 1  # small files are not worth more
    monkeypatch.setattr(source_parquet, "TASK_BYTES", 1)
    data_stats.taken()
    s = plan_stream(open_source(data), np.arange(N), replace(data, keep=keep))  # type: ignore[arg-type]
    work = data_stats.taken()["images kept"]
    assert (work.rows, work.tasks, work.nodes) == (N, 12, 1)
    assert work.cpu_seconds > 0
    kept = tables_of(s)
    assert len(kept) == 12  # row groups of ten and of two
    assert sum(table.num_rows for table in kept) == N
    assert ray.data.DataContext.get_current().op_resource_reservation_enabled  # as it was


@pytest.mark.slow
def test_many_tasks_embed(data: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_parquet, "TASK_BYTES", 1)
    model = ModelConfig()
    weights = EncoderSpec(model, 16).export(build_encoder(model, 16))
    features = embed(open_source(data).images(), weights, store_size=16).to_arrow_refs()
    tables = ray.get(features)
    assert len([t for t in tables if t.num_rows]) == 12
    assert sorted(i for t in tables for i in t["__id"].to_pylist()) == list(range(N))


@pytest.mark.parametrize("keep", ["raw", "encoded", "streaming"])
def test_each_image_once_with_its_own_pixels(data: DataConfig, keep: str) -> None:
    ids = np.setdiff1d(np.arange(N), [3, 50, 77])  # these are held out
    clusters = (ids % 7).astype(np.int32)[:, None]
    s = plan(data, ids, keep)
    assert s.mode == keep
    assert s.reason.startswith(keep)
    one = reader(s, clusters, threads=2)
    for epoch in range(2):
        seen: list[int] = []
        for batch in one.epoch(epoch, None, tables(s)):
            assert batch.images.shape == (12, 3, 16, 16)
            numbers = [number_of(image) for image in batch.images.numpy()]
            assert numbers == batch.ids.tolist()
            assert numbers == ids[batch.positions].tolist()
            assert batch.clusters[:, 0].tolist() == [n % 7 for n in numbers]
            seen += numbers
        assert len(seen) == len(set(seen)) == 84
        assert one.dropped == len(ids) - 84


@pytest.mark.parametrize("keep", ["raw", "encoded"])
def test_order_is_a_function_of_seed_and_epoch(data: DataConfig, keep: str) -> None:
    ids = np.arange(N)
    clusters = (ids % 7).astype(np.int32)[:, None]
    s = plan(data, ids, keep)

    def order(epoch: int, **more: Any) -> list[int]:
        return list(reader(s, clusters, **more).order(epoch, None).flatten())

    assert order(0) == order(0)
    assert order(0) != order(1)
    assert order(0) != order(0, seed=1)
    assert order(0) == order(0, siblings=True)  # of a single level there are none
    parts = [reader(s, clusters, rank, 3).order(0, None) for rank in range(3)]
    assert list(np.concatenate(parts, axis=1).flatten()) == order(0)  # whatever the workers


def fake_location(rng: np.random.Generator, n: int, unreadable: int) -> np.ndarray:
    location = rng.permutation(n)
    location[:unreadable] = -1
    return location


def fake(
    rng: np.random.Generator, n: int, blocks: int, shared: bool, unreadable: int = 0
) -> Stream:
    """A kept stream without pixels, to test who reads what."""
    location = fake_location(rng, n, unreadable)
    cuts = np.sort(rng.integers(0, n + 1, blocks - 1))
    offsets = np.concatenate([[0], cuts, [n]])
    positions = inverse(location, n)
    known = np.array([(positions[a:b] >= 0).sum() for a, b in pairwise(offsets)])
    group, kept = np.arange(blocks) % 3, ray.put(positions)  # unlike any order of the blocks
    groups = tuple(
        ray.put({int(i): Block(None, kept, offsets[i]) for i in np.flatnonzero(group == g)})
        for g in range(3)
    )
    return Stream(
        mode="raw", reason="", size=8, rows=n, shared=shared, ids=ray.put(np.arange(n)),
        blocks=Blocks(np.diff(offsets), known, group, groups),
        location=ray.put(location) if shared else None,
    )  # fmt: skip


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    n=st.integers(1, 120), blocks=st.integers(1, 6), shared=st.booleans(), seed=st.integers(0, 99),
    worlds=st.tuples(st.integers(1, 4), st.integers(1, 4)), group=st.integers(1, 3),
    local=st.integers(1, 4), stop=st.integers(0, 30), siblings=st.booleans(),
)  # fmt: skip
def test_exactly_once_over_a_restart_with_other_workers(
    n: int, blocks: int, shared: bool, seed: int, worlds: tuple[int, int], group: int, local: int,
    stop: int, siblings: bool,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    s = fake(rng, n, blocks, shared)
    fine = rng.integers(-1, 9, n).astype(np.int32)
    clusters = np.stack([fine // 3, fine], 1) if siblings else fine[:, None]
    consumed = sampler.empty_bits(n)
    seen: list[int] = []
    for world, steps in zip(worlds, (stop, None), strict=True):
        batch = local * world
        places = Places(rng.integers(-1, 2, blocks), rng.integers(0, 2, world), max_blocks=2)
        parts = [
            Reader(
                s, clusters, rank=r, world=world, batch_size=batch, seed=seed, group=group,
                window=10, places=places, siblings=siblings,
            )
            for r in range(world)
        ]  # fmt: skip
        orders = [part.order(4, consumed) for part in parts]
        assert len({order.shape for order in orders}) == 1
        left = n - len(seen)
        for order in orders:
            positions = order[:steps].flatten()
            seen += positions.tolist()
            sampler.set_bits(consumed, positions)
        assert parts[0].dropped == left - sum(order.size for order in orders)
        assert parts[0].dropped < batch + world
    assert len(seen) == len(set(seen))
    assert n - len(seen) < local * worlds[1] + worlds[1]


def test_a_worker_takes_the_references_of_one_node() -> None:
    """And one worker alone looks at all positions, to count what is left of an epoch."""
    n = 60
    s = fake(np.random.default_rng(1), n, 9, shared=False, unreadable=4)
    assert s.blocks is not None
    positions = inverse(fake_location(np.random.default_rng(1), n, 4), n)
    directory = Directory(s.blocks)
    (of_block,) = directory.positions([4])
    assert of_block.tolist() == positions[slice(*s.blocks.offsets[4:6])].tolist()
    assert set(directory._known) == {1, 4, 7}
    assert rows_left(s.blocks, sampler.empty_bits(n)).sum() == n - 4
    consumed = sampler.empty_bits(n)
    sampler.set_bits(consumed, np.arange(0, n, 3))
    left = [p[(p >= 0) & (p % 3 > 0)] for p in np.split(positions, s.blocks.offsets[1:-1])]
    assert rows_left(s.blocks, consumed).tolist() == list(map(len, left))


def shares_of(
    s: Stream, n: int, readable: np.ndarray, batch: int, worlds: tuple[int, int], epochs: int,
    stop: int,
) -> tuple[list[float], float]:  # fmt: skip
    """Share of the training that is done at each step, restarted with other workers after some.

    Returns:
        The shares, and the part of an epoch that a step is (the largest).
    """
    clusters, consumed = np.full((n, 1), -1, np.int32), sampler.empty_bits(n)
    epoch, part = 0, 0.0
    shares: list[float] = []
    for world, until in zip(worlds, (stop, -1), strict=True):
        whole = batch - batch % world
        one = Reader(s, clusters, rank=0, world=world, batch_size=whole, seed=0, group=2)
        while epoch < epochs and len(shares) != until:
            one.epoch(epoch, consumed, lambda: iter(()))
            progress = Progress(epochs, epoch, sampler.count_bits(consumed), one.steps * whole)
            for _ in range(one.steps):
                if len(shares) == until:
                    break
                shares.append(progress.share)
                part = max(part, whole / (progress.done + progress.left))
                left = np.intersect1d(sampler.unset_positions(consumed, n), readable)
                sampler.set_bits(consumed, left[:whole])
                progress.add(whole)
            if progress.left == 0:
                assert progress.images_left == (epochs - epoch - 1) * progress.done
                epoch, consumed = epoch + 1, sampler.empty_bits(n)
    return shares, part


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    n=st.integers(20, 90), unreadable=st.integers(0, 9), mode=st.sampled_from(["raw", "streaming"]),
    shared=st.booleans(), batch=st.integers(4, 9), epochs=st.integers(1, 4),
    worlds=st.tuples(st.integers(1, 4), st.integers(1, 4)), stop=st.integers(0, 40),
)  # fmt: skip
def test_the_learning_rate_falls_until_the_last_step(
    n: int, unreadable: int, mode: str, shared: bool, batch: int, epochs: int,
    worlds: tuple[int, int], stop: int,
) -> None:  # fmt: skip
    """Whatever the batches drop, cannot be read, and however many workers resume."""
    s = replace(fake(np.random.default_rng(0), n, 3, shared, unreadable), mode=mode)
    readable = np.arange(unreadable if mode == "raw" else 0, n)
    shares, part = shares_of(s, n, readable, batch, worlds, epochs, stop)
    assert shares[0] == 0
    assert shares == sorted(shares)  # after the restart, too
    assert max(np.diff([*shares, 1.0])) <= 2 * part / epochs + 1e-9
    first, second = (batch - batch % world for world in worlds)
    if first == second:
        steps = len(readable) // first * epochs
        np.testing.assert_allclose(shares, np.arange(steps) / steps)


@pytest.mark.parametrize("keep", ["raw", "encoded", "streaming"])
def test_consumed_images_do_not_come_back(data: DataConfig, keep: str) -> None:
    ids = np.arange(N)
    s = plan(data, ids, keep)
    one = reader(s, np.zeros((N, 1), np.int32))
    consumed = sampler.empty_bits(N)
    sampler.set_bits(consumed, np.arange(0, N, 2))
    found = [b.ids.numpy() for b in one.epoch(0, consumed, tables(s, consumed))]
    assert sorted(np.concatenate(found).tolist()) == list(range(1, N, 2))
    assert one.steps == len(found)


def test_training_starts_before_a_whole_window_is_read(data: DataConfig) -> None:
    stream = plan(data, np.arange(N), "streaming")
    whole = pa.concat_tables(tables(stream)())
    left = [whole.slice(start, 12) for start in reversed(range(0, N, 12))]
    reading = reader(stream, np.zeros((N, 1), np.int32), batch_size=2, threads=1)
    batches = reading.epoch(0, None, lambda: iter(left.pop, None))
    next(batches)
    assert reading.window > N
    assert left
    batches.close()  # type: ignore[attr-defined]


def test_a_window_of_decoded_images_has_few_bytes(
    data: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_reader, "WINDOW_BYTES", 20_000)  # of images of 768 bytes and more
    stream = plan(data, np.arange(N), "streaming")
    reading = reader(stream, np.zeros((N, 1), np.int32), batch_size=4)
    whole = pa.concat_tables(ray.get(reading.dataset(0, None).to_arrow_refs()))
    sizes: list[int] = []
    window = reading._window

    def counted(epoch: int, table: pa.Table, rng: np.random.Generator) -> Any:
        sizes.append(len(table))
        return window(epoch, table, rng)

    monkeypatch.setattr(reading, "_window", counted)
    parts = [whole.slice(start, 4) for start in range(0, N, 4)]
    seen = [i for batch in reading.epoch(0, None, lambda: iter(parts)) for i in batch.ids.tolist()]
    assert sorted(seen) == list(range(N))
    assert 12 < max(sizes) < 30


@pytest.mark.parametrize(
    ("size", "elsewhere", "decoded", "by_reading_tasks"),
    [
        (64, False, True, True),
        (64, True, True, True),
        (65, False, False, False),
        (65, True, True, False),
    ],
)
def test_small_images_are_decoded_by_the_tasks_that_read(
    data: DataConfig, size: int, elsewhere: bool, decoded: bool, by_reading_tasks: bool
) -> None:
    s = plan(replace(data, store_size=size), np.arange(N), "streaming")
    assert s.decoded_when_read == by_reading_tasks
    rows = reader(s, np.zeros((N, 1), np.int32)).dataset(0, None, elsewhere).materialize()
    for table in ray.get(rows.to_arrow_refs()):
        assert (PIXELS in table.column_names) == decoded
        assert (IMAGE in table.column_names) != decoded
    assert ("(_select)->MapBatches(_decode_rows)" in rows.stats()) == by_reading_tasks


def test_streamed_blocks_come_before_their_task_ends(
    data: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixels, "BLOCK", 4_000)
    s = plan(data, np.arange(N), "streaming")
    blocks = reader(s, np.zeros((N, 1), np.int32)).dataset(0, None).to_arrow_refs()
    assert len(blocks) > 5  # of one task: there are few bytes to read


@pytest.mark.parametrize(
    ("size", "cpus", "store", "tasks"),
    [
        (10**5, 8, 10**10, 1),
        (10**7, 8, 10**10, 5),
        (10**8, 0, 10**10, 6),
        (10**8, 8, 10**10, 16),
        (10**8, 64, 10**10, 50),
        (10**9, 8, 10**10, 62),
        (10**9, 8, 2 * 10**9, 200),
        (10**9, 8, 10**8, 500),
        (10**12, 8, 10**10, 1000),
    ],
)
def test_tasks_are_large_once_all_cpus_have_work(
    size: int, cpus: float, store: float, tasks: int
) -> None:
    assert source_parquet.number_of_tasks(size, cpus, store) == tasks


def broken(data: DataConfig, tmp_path: Path, bad: dict[int, bytes | None]) -> DataConfig:
    from pictures import png

    images = [bad.get(i, png(i)) if i in bad else png(i) for i in range(N)]
    folder = write_parquet(tmp_path / "broken", N, image=pa.array(images, pa.binary()))
    return replace(data, path=folder, max_bad=0.05)


def test_corrupt_images_are_left_out_and_listed(data: DataConfig, tmp_path: Path) -> None:
    from pictures import png

    config = broken(data, tmp_path, {5: b"<html>", 40: None, 70: png(70)[:200]})
    s = plan(config, np.arange(N), "raw")
    assert s.rows == N - 3
    assert {fault["key"] for fault in s.faults} == {"5", "40", "70"}
    one = reader(s, np.zeros((N, 1), np.int32), batch_size=1)
    assert {int(b.ids) for b in one.epoch(0, None)} == set(range(N)) - {5, 40, 70}


@pytest.mark.parametrize("keep", ["encoded", "streaming", "decoded in tasks"])
def test_images_found_corrupt_later_are_not_valid(
    data: DataConfig, tmp_path: Path, keep: str
) -> None:
    from pictures import png

    config = broken(data, tmp_path, {70: png(70)[:200], 71: png(71)[:150]})  # good headers
    in_tasks = keep == "decoded in tasks"
    s = plan(config, np.arange(N), "streaming" if in_tasks else keep)
    one = reader(s, np.zeros((N, 1), np.int32))

    def decoded() -> Iterator[pa.Table]:
        return iter(ray.get(one.dataset(0, None).to_arrow_refs()))

    batches: list[Batch] = list(one.epoch(0, None, decoded if in_tasks else tables(s)))
    assert sorted(np.concatenate([b.ids.numpy() for b in batches]).tolist()) == list(range(N))
    for batch in batches:
        assert batch.positions.tolist() == batch.ids.tolist()
        numbers = np.array([number_of(image) for image in batch.images.numpy()])
        bad = np.isin(batch.ids.numpy(), [70, 71])
        assert batch.valid.tolist() == (~bad).tolist()
        assert numbers[~bad].tolist() == batch.ids[batch.valid].tolist()
        assert set(numbers[bad]) <= set(numbers[~bad])  # their pixels are those of others
    assert {key for key, _ in one.take_faults()} == {"70", "71"}
    assert one.take_faults() == []


def test_too_many_corrupt_images(data: DataConfig, tmp_path: Path) -> None:
    config = broken(data, tmp_path, dict.fromkeys(range(10), b"nonsense"))
    with pytest.raises(UserError, match=r"(?s)10 of 96 images.*max-bad 5.0%.*0: Unidentified"):
        plan(config, np.arange(N), "raw")


@pytest.mark.slow
def test_choice_by_size(data: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def store(amount: int) -> None:
        node = {"Alive": True, "Resources": {"object_store_memory": amount}}
        monkeypatch.setattr(stream.ray, "nodes", lambda: [node])

    ids, raw = np.arange(N), N * 3 * 16 * 16
    store(10 * raw)
    assert plan(data, ids, "auto").mode == "raw"
    big = replace(data, store_size=64)  # files of 16 pixels are smaller than 64 × 64 pixels
    store(6 * raw)
    assert plan(big, ids, "auto").mode == "encoded"
    with pytest.raises(UserError, match="keep raw needs"):
        plan(big, ids, "raw")
    store(1000)
    found = plan(data, ids, "auto")
    assert found.mode == "streaming"
    assert "neither" in found.reason
    source = open_source(data)
    for keep in ("raw", "encoded"):  # a cluster that grows on demand is believed to
        forced = replace(data, keep=keep)  # type: ignore[arg-type]
        found = plan_stream(source, ids, forced, grows=True)
        assert found.mode == keep
        assert "new nodes" in found.reason
        assert not found.shared  # the workers will not all pull all of it
        assert len(tables_of(found)) > 1
    assert "--data.keep raw or encoded" in plan_stream(source, ids, data, grows=True).reason


def folder_of(tmp_path: Path) -> DataConfig:
    from pictures import png

    for n in range(N):
        file = tmp_path / f"images/c{n % 3}/{n:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(n) if n != 40 else png(n)[:200])
    (tmp_path / "images/c0/003.png").unlink()
    (tmp_path / "images/c0/003.png").symlink_to("nowhere")
    return DataConfig(path=str(tmp_path / "images"), image_size=16, store_size=16)


def test_files_on_disk_are_opened_in_the_order_of_the_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = folder_of(tmp_path)
    source = open_source(data)
    rows = source.metadata().to_pandas().sort_values("__id")
    ids = rows["__id"].to_numpy()
    names = [int(key[-7:-4]) for key in rows["__key"]]
    bad = [names.index(3), names.index(40)]
    clusters = np.arange(N, dtype=np.int32)[:, None] // 3
    forced = plan(data, ids, "indexed")
    tiny = {"Alive": True, "Resources": {"object_store_memory": 1000}}
    monkeypatch.setattr(stream.ray, "nodes", lambda: [tiny])
    s = plan_stream(source, ids, data)
    assert (s.mode, s.rows, s.shared) == ("indexed", N, True)
    assert "workers open the files" in s.reason
    parts = [reader(s, clusters, rank, 2, threads=2) for rank in range(2)]
    consumed = sampler.empty_bits(N)
    sampler.set_bits(consumed, np.arange(24))
    for part in (*parts, reader(forced, clusters, batch_size=8)):
        order = part.order(1, consumed)
        assert len(order) == part.steps
        for batch, positions in zip(part.epoch(1, consumed), order, strict=True):
            assert batch.positions.tolist() == positions.tolist()
            good = ~np.isin(positions, bad)
            assert batch.valid.tolist() == good.tolist()
            shown = np.array([number_of(image) for image in batch.images.numpy()])[good]
            assert shown.tolist() == [names[i] for i in positions[good]]
    both = np.concatenate([part.order(1, consumed).flatten() for part in parts])
    assert sorted(both.tolist()) == list(range(24, N))
    found = dict(part for one in parts for part in one.take_faults())
    assert set(found) <= {"c0/003.png", "c1/040.png"}
    assert sorted(row["__id"] for row in s.images().take_all()) == ids.tolist()


@pytest.mark.parametrize("kind", ["parquet", "folder", "table", "webdataset"])
def test_an_epoch_reads_files_in_an_order_of_its_own(
    data: DataConfig, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pictures import png

    monkeypatch.setattr(source_parquet, "TASK_BYTES", 1)
    monkeypatch.setattr(source_folder, "TASK_FILES", 8)
    if kind in ("folder", "table"):
        data = folder_of(tmp_path)
    if kind == "table":
        lines = [f"{n:03d}.png,{n}" for n in range(N)]
        (tmp_path / "table.csv").write_text("\n".join(["file_name,number", *lines]))
        data = replace(data, table=str(tmp_path / "table.csv"))
    if kind == "webdataset":
        for shard in range(8):
            with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
                for n in range(3):
                    member = tarfile.TarInfo(f"{shard}{n}.png")
                    member.size = len(png(n))
                    tar.addfile(member, io.BytesIO(png(n)))
        data = DataConfig(path=f"{tmp_path}/*.tar")
    source = open_source(data)
    columns = ["number"] if kind == "table" else []

    def rows(found: Any) -> list[tuple[Any, ...]]:
        names = ["__id", "__image", *columns]
        return [tuple(row[name] for name in names) for row in found.take_all()]

    plain = rows(source.images(columns))
    orders = [rows(source.images(columns, seed=(3, epoch))) for epoch in (0, 0, 1)]
    assert orders[0] != orders[2]
    assert plain not in orders
    for order in orders:
        assert sorted(order, key=str) == sorted(plain, key=str)


def test_only_files_on_a_disk_are_opened_by_name(data: DataConfig) -> None:
    with pytest.raises(UserError, match=r"is for an image folder on a disk, not for .*3 Pa"):
        plan(data, np.arange(N), "indexed")


def test_readers_in_other_processes(data: DataConfig) -> None:
    s = pickle.loads(pickle.dumps(plan(data, np.arange(N), "raw").reason))
    assert s.startswith("raw")
    kept = plan(data, np.arange(N), "raw")
    clusters = ray.put(np.zeros((N, 1), np.int32))

    @ray.remote
    def work(kept: Stream, clusters: Any, rank: int) -> list[int]:
        one = Reader(kept, clusters, rank=rank, world=2, batch_size=12, seed=0, group=2, threads=1)
        return [int(i) for batch in one.epoch(0, None) for i in batch.ids]

    first, second = ray.get([work.remote(kept, clusters, rank) for rank in range(2)])
    assert len(first) == len(second) == N // 2
    assert sorted(first + second) == list(range(N))


def test_a_reader_that_is_left_early_stops_its_thread(data: DataConfig) -> None:
    import threading

    s = plan(data, np.arange(N), "raw")
    before = threading.active_count()
    batches = reader(s, np.zeros((N, 1), np.int32)).epoch(0, None)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert threading.active_count() <= before


@pytest.mark.slow
def test_spread_puts_small_clusters_together(data: DataConfig) -> None:
    ids = ray.put(np.arange(N))
    rows = (
        open_source(data)
        .images()
        .map_batches(stream._keep_raw, batch_format="pyarrow", fn_kwargs={"ids": ids, "size": 16})
    )
    clusters = (np.arange(N) // 2).astype(np.int32)  # pairs: a partner is easily lost
    spread, why = stream._spread(rows, clusters, nodes=4, kept=1e6)
    assert "whole clusters" in why
    blocks, _ = describe(stream._materialise(spread, all_kept=False))
    location = ray.get(locate.remote(blocks, N))
    assert sorted(location.tolist()) == list(range(N))
    block = np.searchsorted(blocks.offsets, location, side="right") - 1
    assert (block[::2] == block[1::2]).all()
    assert len(np.unique(block)) > 4
    _, why = stream._spread(rows, (np.arange(N) % 2).astype(np.int32), nodes=4, kept=1e6)
    assert "single images" in why
