"""Fake blocks and fake shards: what 10,000 of them cost the driver and the k-means coordinator.

Measured by ``benchmarks/scale.py``; every function takes its ``line`` and a number of shards.
"""

from __future__ import annotations

import functools
import operator
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from wcl_ray.data.blocks import Blocks, Directory, describe
from wcl_ray.data.sources.base import FAULT, ID, KEY, POSITION
from wcl_ray.kmeans.lloyd import Stats
from wcl_ray.kmeans.seeding import update
from wcl_ray.kmeans.vectors import Piece, Vectors, open_vectors
from wcl_ray.kmeans.worker import Partial
from wcl_ray.kmeans.worker_group import PARTS, WorkerGroup

Line = Callable[..., Any]


@ray.remote(num_cpus=0)
def _hold(blocks: Blocks) -> int:
    return len(Directory(blocks).tables())


@ray.remote(num_cpus=0.5)
def _nothing(number: int) -> int:
    return number


def blocks(line: Line, shards: int) -> None:
    """Bookkeeping of kept blocks, and tasks that do nothing."""
    none, keys = pa.nulls(100, pa.string()), pa.array([""] * 100)
    rows = np.random.default_rng(1).permutation(100 * shards).reshape(shards, -1)
    tables = [pa.table({ID: part, KEY: keys, FAULT: none, POSITION: part}) for part in rows]
    refs = line("ray.put small blocks", shards, "block", lambda: [ray.put(t) for t in tables])
    describe(refs[:32])  # processes are there
    known, _ = line("describe the blocks", shards, "block", lambda: describe(refs))
    line("hand references to a worker", shards, "ref", lambda: ray.get(_hold.remote(known)))
    with ProcessPoolExecutor(2) as pool:  # its processes start in the first measure
        line(
            "tasks that do nothing", shards, "task",
            lambda: ray.get([_nothing.remote(i) for i in range(shards)]),
            ("process pool", lambda: list(pool.map(abs, range(shards)))),
        )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(64, np.float32)), 8)
        for i in range(1000):
            pq.write_table(pa.table({"feature": vectors}), f"{folder}/{i:04d}.parquet")
        line("open files of vectors, on disk", 1000, "file", lambda: open_vectors(folder))


def sums(line: Line, shards: int) -> None:
    """A k-means actor: rows of 128 dimensions added to 10,000 clusters."""
    rng, count = np.random.default_rng(0), 400_000
    x, squares = np.ones((count, 128), np.float32), np.ones(count)
    labels, order = rng.integers(0, 10_000, count).astype(np.int32), np.arange(count)
    stats = Stats.zeros(10_000, 128)
    line(
        "add a row to its cluster", count, "row",
        lambda: stats.add_rows(x, squares, order, labels, 1),
        ("numpy add.at", lambda: np.add.at(stats.sums, labels, x)),
    )  # fmt: skip


@ray.remote(num_cpus=0)
class Fake:
    """Answers for many shards of a k-means fit, with zeros."""

    def __init__(self, k: int, d: int) -> None:
        self.partial = Partial({0: Stats.zeros(k, d)}, {0: 1}, 1, [1.0], [1.0])

    def call(self, pieces: list[Any], method: str, *arguments: Any) -> Any:
        if method == "duplicates":
            return [np.empty(0, np.int64)] * arguments[0]
        return np.empty(0, np.int64) if method == "duplicated" else self.partial


def group_of(actors: list[Any], shards: int) -> WorkerGroup:
    """A group whose fake shards share a few actors."""
    workers = WorkerGroup.__new__(WorkerGroup)
    workers.actors = [actors[i % len(actors)] for i in range(shards)]
    workers.pieces = [[] for _ in range(shards)]
    return workers


def coordinator(line: Line, shards: int) -> None:
    """k-means: partial sums of fake shards, duplicate ids, cutting, and the update."""
    sizes = ((shards, 16, 16), (shards, 100, 128), (shards // 10, 1000, 128))
    for count, k, d in sizes:
        actors = [Fake.remote(k, d) for _ in range(2)]  # type: ignore[attr-defined]
        group_of(actors, 8).total("step")  # processes are there
        call = functools.partial(group_of(actors, count).total, "step")
        line(f"sum of {8 * k * (d + 2):,} B", count, "shard", call)
        for actor in actors:
            ray.kill(actor)
    one = Partial({0: Stats.zeros(1000, 128)}, {0: 1}, 1, [1.0], [1.0])
    total = np.zeros((1000, 130))
    line(
        "add partial sums of 1.04 MB", 1000, "shard",
        lambda: functools.reduce(operator.add, [one] * 1000),
        ("numpy in place", lambda: [np.add(total, total, out=total) for _ in range(1000)]),
    )  # fmt: skip
    stats = Stats(np.ones((20_000, 128)), np.ones(20_000, np.int64), np.ones(20_000))
    line("update a centroid of 128", 20_000, "row", lambda: update(stats, True))
    actors = [Fake.remote(1, 1) for _ in range(2)]  # type: ignore[attr-defined]
    group_of(actors, 8).ask("step")
    for count in (50, 150):
        workers = group_of(actors, count)
        line("find duplicates", count * min(count, PARTS), "ref", workers.duplicates)
    for count in (500, 1000):
        vectors = Vectors(tuple(Piece(0, 100, 100 * i) for i in range(count)))
        line("cut files into shards", count**2, "pair", lambda: vectors.shards(count))  # noqa: B023
