"""Vectors for the tests of k-means, and what two fits have to share."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

import wcl_ray.kmeans.kmeans
from wcl_ray.kmeans.kmeans import KMeans
from wcl_ray.kmeans.vectors import Vectors
from wcl_ray.kmeans.worker import KMeansWorker
from wcl_ray.kmeans.worker_group import WorkerGroup


def blobs(
    n: int = 4000, d: int = 16, k: int = 20, noise: float = 0.1, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Rows float32 (n, d) around k random directions, and the number of each row's blob."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(k, d))
    truth = rng.integers(0, k, n)
    x = centres[truth] + noise * rng.normal(size=(n, d)) * np.sqrt(d)
    return x.astype(np.float32), truth


TUNABLES = ("sample_iterations", "split_merge", "settled")


def small(k: Any, **options: Any) -> KMeans:
    """A k-means of one actor that leaves room for others on two CPUs.

    Args:
        options: of KMeans, and fields of its Options that it does not offer.
    """
    tunables = {name: options.pop(name) for name in TUNABLES if name in options}
    model = KMeans(k, **{"actors": 1, "cpus": 0.1, **options})
    model._options = replace(model._options, **tunables)
    return model


class Call:
    """``call`` of an actor that is a worker in this process."""

    def __init__(self, worker: KMeansWorker, returns: int = 1) -> None:
        self.worker, self.returns = worker, returns

    def options(self, num_returns: int) -> Call:
        return Call(self.worker, num_returns)

    def remote(self, pieces: Any, method: str, *arguments: Any) -> Any:
        given = [ray.get(a) if isinstance(a, ray.ObjectRef) else a for a in arguments]
        answer = self.worker.call(pieces, method, *given)
        return ray.put(answer) if self.returns == 1 else [ray.put(part) for part in answer]


class InProcess(WorkerGroup):
    """The workers without their processes, which take a second each to start. test_kmeans_actors.py
    shows that the bits are those of the actors."""

    def __init__(
        self, vectors: Vectors, *, actors: int, spherical: bool, kernel: str, seed: int, **_: Any
    ) -> None:
        self.vectors, self.pieces = vectors, vectors.shards(max(1, actors))
        workers = [KMeansWorker(spherical, kernel, 1, seed) for _ in self.pieces]
        self.actors = [SimpleNamespace(call=Call(worker)) for worker in workers]

    def stop(self) -> None:
        self.actors = []


@pytest.fixture
def in_process(ray_local: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits need no actors."""
    monkeypatch.setattr(wcl_ray.kmeans.kmeans, "WorkerGroup", InProcess)


def digest(model: KMeans) -> str:
    """SHA-256 of all bits of the centroids, the ids and the labels."""
    found = hashlib.sha256()
    parts = model.centroids_ if isinstance(model.centroids_, list) else [model.centroids_]
    for array in (*parts, model.ids_, model.labels_):
        found.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return found.hexdigest()


def as_table(x: np.ndarray, start: int = 0) -> pa.Table:
    values = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), x.shape[1])
    return pa.table({"id": np.arange(start, start + len(x)), "feature": values})


def write_parquet(folder: Path, x: np.ndarray, files: int = 3, group: int = 300) -> str:
    """The rows in several files, whose row groups no shard has to respect."""
    folder.mkdir(parents=True, exist_ok=True)
    cuts = [len(x) * i // files for i in range(files + 1)]
    for i in range(files):
        table = as_table(x[cuts[i] : cuts[i + 1]], cuts[i])
        pq.write_table(table, folder / f"part-{i}.parquet", row_group_size=group + 70 * i)
    return str(folder)


def lloyd(x: np.ndarray, c: np.ndarray, passes: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Plain Lloyd in float64: labels of the last pass, its centroids, and the objective."""
    x, c = x.astype(np.float64), c.astype(np.float64)
    distance = np.square(x[:, None] - c[None]).sum(2)
    labels = distance.argmin(1)
    for _ in range(passes - 1):
        c = np.stack([x[labels == j].mean(0) for j in range(len(c))])
        distance = np.square(x[:, None] - c[None]).sum(2)
        labels = distance.argmin(1)
    return labels, c, float(distance.min(1).sum())
