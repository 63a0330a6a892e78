"""The same bits for any number of actors, any source, after a SIGKILL and after a stop."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs as pafs
import pytest
import ray
from blobs import InProcess, as_table, blobs, digest, small, write_parquet

import wcl_ray.kmeans.kmeans
from wcl_ray.errors import UserError
from wcl_ray.kmeans import worker_group
from wcl_ray.kmeans.kmeans import KMeans
from wcl_ray.kmeans.state import FILE, Iteration
from wcl_ray.storage import Folder, filesystem

pytestmark = pytest.mark.usefixtures("ray_local")

X = blobs(5000, 16, 20, noise=0.5)[0]
LONG: dict[str, Any] = {"tolerance": 0.0, "settled": 0.0, "iterations": 6, "sample_iterations": 4}


def dataset(x: np.ndarray) -> ray.data.Dataset:
    """The rows as blocks of very different sizes."""
    cuts = [0, 1, 2200, 2200, 3100, len(x)]
    return ray.data.from_arrow([as_table(x[a:b], a) for a, b in itertools.pairwise(cuts) if a < b])


@pytest.fixture(scope="module")
def reference(ray_local: str) -> dict[bool, str]:
    """SHA-256 with one actor, spherical and Euclidean."""
    return {s: digest(small(20, spherical=s, **LONG).fit(X)) for s in (True, False)}


@pytest.mark.slow
def test_an_actor_and_workers_in_this_process(
    reference: dict[bool, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wcl_ray.kmeans.kmeans, "WorkerGroup", InProcess)
    for spherical in (True, False):
        model = small(20, spherical=spherical, actors=2, **LONG)
        assert digest(model.fit(X)) == reference[spherical]


@pytest.mark.usefixtures("ray_local")
def test_what_an_actor_refuses_reaches_the_user() -> None:
    x = X.copy()
    x[3, 2] = np.nan
    with pytest.raises(UserError, match="1 of 5000 vectors have NaN or infinite values"):
        small(5).fit(x)


@pytest.mark.slow
def test_one_actor_again(reference: dict[bool, str]) -> None:
    assert digest(small(20, **LONG).fit(X)) == reference[True]
    assert reference[True] != reference[False]
    assert digest(small(20, seed=1, **LONG).fit(X)) != reference[True]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("actors", "source", "kernel", "spherical"),
    [
        (5, "parquet", "gemm", False),  # partial sums are added in three rounds
        (2, "dataset", "torch", True),
        (3, "array", "faiss", False),
    ],
)
def test_actors_sources_and_kernels(
    actors: int,
    source: str,
    kernel: str,
    spherical: bool,
    reference: dict[bool, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_group, "FAN_IN", 2)
    data: Any = X
    if source == "parquet":
        data = write_parquet(tmp_path / "rows", X)
    elif source == "dataset":
        data = dataset(X)
    options: dict[str, Any] = {"actors": actors, "kernel": kernel, **LONG}
    model = small(20, spherical=spherical, **options).fit(data)
    assert digest(model) == reference[spherical]


def shard_pids() -> set[int]:
    """Process ids of the k-means actors of this Ray."""
    session = ray._private.worker._global_node.get_session_dir_path()
    actors, raylets = {}, set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:  # the process has just ended
            continue
        if "raylet/raylet" in command and session in command:
            raylets.add(int(entry.name))
        if command.startswith("ray::KMeansWorker") and state != "Z":
            actors[int(entry.name)] = parent
    return {pid for pid, parent in actors.items() if parent in raylets}


class Killer:
    """A progress callback that kills an actor after the iterations ``at``.

    After those of ``in_call`` the process is suspended, and killed during the next call.
    """

    def __init__(self, *at: tuple[str, int], in_call: tuple[tuple[str, int], ...] = ()) -> None:
        self.at, self.in_call = at, in_call
        self.killed: list[int] = []
        self.seen: list[set[int]] = []

    def __call__(self, row: Iteration) -> None:
        self.seen.append(shard_pids())
        place = (row.phase, row.number)
        if place not in (*self.at, *self.in_call):
            return
        victim = max(self.seen[-1])
        self.killed.append(victim)
        if place in self.in_call:
            os.kill(victim, signal.SIGSTOP)
            threading.Timer(1.0, os.kill, (victim, signal.SIGKILL)).start()
        else:
            os.kill(victim, signal.SIGKILL)


@pytest.mark.slow
def test_killed_actors_leave_no_trace(reference: dict[bool, str], tmp_path: Path) -> None:
    """One between two calls and one during a call."""
    killer = Killer(("sample", 2), in_call=(("all", 3),))
    model = small(20, actors=2, progress=killer, **LONG).fit(write_parquet(tmp_path / "rows", X))
    assert len(set(killer.killed)) == 2
    assert all(len(pids) == 2 for pids in killer.seen)
    assert not killer.seen[-1] & set(killer.killed)
    assert len(set.union(*killer.seen)) == 4  # two were started again
    assert digest(model) == reference[True]


@pytest.mark.slow
def test_killed_after_the_last_iteration(reference: dict[bool, str]) -> None:
    """The limit ends this fit before it converges; a restarted actor must compute the labels of the
    last assignment, not those of the means updated from it."""
    killer = Killer(("all", LONG["iterations"]))
    model = small(20, actors=2, progress=killer, **LONG).fit(dataset(X))
    assert len(killer.killed) == 1
    assert digest(model) == reference[True]


@pytest.mark.slow
def test_several_granularities_and_a_kill(tmp_path: Path) -> None:
    options = {**LONG, "k": (5, 20, 9)}
    expected = small(**options).fit(X)
    killer = Killer(("all", 2), ("all", 6))
    again = small(**options, actors=2, progress=killer).fit(X)
    assert len(killer.killed) == 2
    assert digest(again) == digest(expected)


class Stopped(Exception):
    """Raised to end the driver."""


def stop_at(phase: str, number: int) -> Callable[[Iteration], None]:
    def progress(row: Iteration) -> None:
        if (row.phase, row.number) == (phase, number):
            raise Stopped

    return progress


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "stop", "actors"),
    [
        ({"k": 20, **LONG}, ("all", 4), 2),
        ({"k": 20, **LONG}, ("sample", 3), 1),
        # the granularity of one cluster has settled when the fit is stopped
        ({**LONG, "k": (1, 20), "tolerance": 1e-9, "sample": 0}, ("all", 5), 2),
    ],
)
def test_a_resumed_fit_gives_the_same_bits(
    options: dict[str, Any], stop: tuple[str, int], actors: int, tmp_path: Path
) -> None:
    expected = small(**options).fit(X)
    folder = str(tmp_path / "state")
    with pytest.raises(Stopped):
        small(**options, checkpoint=folder, progress=stop_at(*stop)).fit(X)
    assert (tmp_path / "state" / FILE).exists()
    rows: list[Iteration] = []
    again = small(**options, checkpoint=folder, progress=rows.append, actors=actors).fit(X)
    assert (rows[0].phase, rows[0].number) == stop
    assert digest(again) == digest(expected)
    assert [(r.phase, r.number) for r in again.history_] == [
        (r.phase, r.number) for r in expected.history_
    ]
    assert again.history_[-1].objective == expected.history_[-1].objective


@pytest.mark.slow
def test_a_checkpoint_of_other_vectors_or_options(tmp_path: Path) -> None:
    folder = str(tmp_path)
    small(20, checkpoint=folder, **LONG).fit(X)

    def refused(words: str, model: KMeans, x: np.ndarray, **start: Any) -> None:
        with pytest.raises(UserError, match=words):
            model.fit(x, **start)

    changed = X.copy()
    changed[4321, 5] += 1
    refused("of other vectors", small(20, checkpoint=folder, **LONG), changed)
    refused("with 16 dimensions, these have 15", small(20, checkpoint=folder, **LONG), X[:, :15])
    refused("other options", small(21, checkpoint=folder, **LONG), X)
    refused("other options", small(20, checkpoint=folder, **LONG), X, init=X[:20])
    assert len(small(20, checkpoint=folder, **LONG).fit(X).centroids_) == 20


@pytest.mark.slow
def test_rows_and_state_on_s3(tmp_path: Path, s3: str, reference: dict[bool, str]) -> None:
    write_parquet(tmp_path / "rows", X)
    fs, base = filesystem("s3://bugs/kmeans", s3)
    pafs.copy_files(str(tmp_path / "rows"), base, destination_filesystem=fs)
    state = Folder("s3://bugs/state", s3)
    with pytest.raises(Stopped):
        small(20, checkpoint=state, progress=stop_at("all", 3), **LONG).fit(
            "s3://bugs/kmeans", endpoint=s3
        )
    assert state.exists(FILE)
    rows: list[Iteration] = []
    model = small(20, actors=2, checkpoint=state, progress=rows.append, **LONG)
    assert digest(model.fit("s3://bugs/kmeans/*.parquet", endpoint=s3)) == reference[True]
    assert rows[0].number == 3
