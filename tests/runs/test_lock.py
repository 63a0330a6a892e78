"""Two processes that want one run folder."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wcl_ray.config import ClustersConfig, Config, DataConfig
from wcl_ray.errors import UserError
from wcl_ray.runs import cluster as cluster_job
from wcl_ray.runs import embed as embed_job
from wcl_ray.runs.lock import HEARTBEAT, RunLock
from wcl_ray.storage import Folder

EVERY = 0.2


def test_the_job_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = {"runtime_env": {}, "metadata": {"job_submission_id": "raysubmit_2"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(given))
    assert RunLock(Folder(str(tmp_path))).identity["job"] == "raysubmit_2"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert RunLock(Folder(str(tmp_path))).identity["job"] is None


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    found = Folder(str(tmp_path / "one"))
    found.write("config.json", b"{}")
    return found


def sign(folder: Folder) -> dict[str, Any]:
    return dict(json.loads(folder.read(HEARTBEAT)))


def leave(folder: Folder, **changes: Any) -> None:
    """The sign of another process."""
    identity = RunLock(folder).identity | {"token": "other", "time": time.time(), "host": "far"}
    folder.write(HEARTBEAT, json.dumps(identity | changes).encode())


@pytest.mark.parametrize("where", ["disk", "s3"])
def test_held_while_it_lasts(folder: Folder, where: str, s3: str) -> None:
    if where == "s3":
        folder = Folder("s3://bugs/held/one", s3)
        folder.write("config.json", b"{}")
    with RunLock(folder, EVERY):
        first = sign(folder)
        assert first["pid"] == os.getpid()
        time.sleep(3 * EVERY)
        assert sign(folder)["time"] > first["time"]  # renewed
    assert not folder.exists(HEARTBEAT)


def test_a_new_folder_is_held_before_anything_is_in_it(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "runs/new"))
    with RunLock(folder, EVERY):
        assert folder.names() == [HEARTBEAT]
    assert not (tmp_path / "runs").exists()  # nothing came of it


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"{}", b"\xff"])
def test_something_else_in_its_place(folder: Folder, content: bytes) -> None:
    folder.write(HEARTBEAT, content)
    with RunLock(folder, EVERY):
        assert sign(folder)["pid"] == os.getpid()


def test_two_at_once_on_an_object_store(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job whose claim was written last continues."""
    folder = Folder("s3://bugs/both/one", s3)
    lock = RunLock(folder, EVERY)
    monkeypatch.setattr(lock, "_write", lambda: leave(folder, machine="other", pid=8))
    assert not lock.take()


STARTERS = """
import random, sys, time
from pathlib import Path
from wcl_ray.errors import UserError
from wcl_ray.storage import Folder
from wcl_ray.runs.lock import RunLock

which, uri, endpoint, marks, times, every = sys.argv[1:]
every, marks = float(every), Path(marks)
chance = random.Random(int(which))
for name in ("_read", "_write"):  # delays of a slow storage, up to what the protocol allows for
    def slow(self, *given, plain=getattr(RunLock, name)):
        time.sleep(chance.random() * every / 20)
        return plain(self, *given)
    setattr(RunLock, name, slow)
for number in range(int(times)):
    while not (marks / f"go-{number}").exists():
        time.sleep(0.001)
    lock = RunLock(Folder(uri.format(number=number), endpoint or None), every)
    held = lock.take()
    (marks / f"{number}-{which}-{'held' if held else 'busy'}").touch()
    while not (marks / f"end-{number}").exists():
        time.sleep(0.001)
    lock.__exit__()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "times", "stale"), [("disk", 50, False), ("disk", 50, True), ("s3", 2, False)]
)
def test_one_of_four_that_start_at_once(
    tmp_path: Path, s3: str, where: str, times: int, stale: bool
) -> None:
    """Also where all find the sign of a process that is gone."""
    uri = f"{tmp_path}/runs/{{number}}" if where == "disk" else "s3://bugs/starters/{number}"
    endpoint = "" if where == "disk" else s3
    if stale:
        for number in range(times):
            folder = Folder(uri.format(number=number))
            leave(folder, machine="other", time=0)
    words = [uri, endpoint, str(tmp_path), str(times), "0.1" if where == "disk" else "1.5"]
    starters = [
        subprocess.Popen([sys.executable, "-c", STARTERS, str(which), *words]) for which in range(4)
    ]
    try:
        for number in range(times):
            (tmp_path / f"go-{number}").touch()
            limit = time.monotonic() + 60
            while len(told := list(tmp_path.glob(f"{number}-*"))) < 4:
                assert time.monotonic() < limit
                time.sleep(0.002)
            assert sum(mark.name.endswith("held") for mark in told) == 1, told
            (tmp_path / f"end-{number}").touch()
        assert [starter.wait(timeout=30) for starter in starters] == [0] * 4
    finally:
        for starter in starters:
            starter.kill()
    if where == "disk":
        assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_another_at_work(folder: Folder) -> None:
    code = f"""
import sys, time
from wcl_ray.storage import Folder
from wcl_ray.runs.lock import RunLock
with RunLock(Folder({folder.path!r}), {EVERY}):
    print("held", flush=True)
    time.sleep(60)
"""
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"in use by process {other.pid} on .*stop it"):
            RunLock(folder, EVERY).__enter__()
        other.send_signal(signal.SIGKILL)
        other.wait()
        started = time.monotonic()
        with RunLock(folder, EVERY):  # a process that is seen to be gone is not waited for
            assert time.monotonic() - started < 2 * EVERY
            assert sign(folder)["pid"] == os.getpid()
    finally:
        other.kill()
        other.wait()


def test_a_lost_machine_is_waited_for(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    leave(folder, machine="other", pid=7, job="raysubmit_1")
    started = time.monotonic()
    with RunLock(folder, EVERY):
        assert 4 * EVERY <= time.monotonic() - started < 20 * EVERY
        assert sign(folder)["token"] != "other"
    assert "process 7 on far, job raysubmit_1 was at work" in capsys.readouterr().out


def test_an_old_sign_is_not(folder: Folder) -> None:
    leave(folder, machine="other", time=time.time() - 3600)
    started = time.monotonic()
    with RunLock(folder, EVERY):
        assert time.monotonic() - started < EVERY


def test_a_process_that_was_given_up_stops(
    folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a suspended machine: another has gone on with the run since."""
    stopped: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    try:
        with RunLock(folder, EVERY):
            leave(folder, machine="other", pid=9)
            time.sleep(4 * EVERY)
            assert stopped == [signal.SIGTERM]
        assert sign(folder)["token"] == "other"  # it is not taken away
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "process 9 on far has taken " in capsys.readouterr().out


def test_two_jobs_that_embed_into_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would write images that the other has not written yet, so that they are there twice."""
    trained = SimpleNamespace(
        weights=b"",
        folder=Folder(str(tmp_path)),
        config=Config(),
        data=lambda overrides: DataConfig(path=str(tmp_path)),
    )
    monkeypatch.setattr(embed_job.Trained, "open", lambda run, endpoint: trained)
    monkeypatch.setattr(embed_job, "RunLock", functools.partial(RunLock, interval=EVERY))
    out = Folder(f"{tmp_path}/out")
    with RunLock(out, EVERY) as other:
        other.identity["pid"] = os.getppid()  # a process that is there
        other._write()
        with pytest.raises(UserError, match=r"in use by .* or use another --out"):
            embed_job.embed_run("run", out.uri, {})
    assert not (tmp_path / "out").exists()


def test_two_jobs_with_one_checkpoint_of_kmeans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_job, "RunLock", functools.partial(RunLock, interval=EVERY))
    monkeypatch.setattr(cluster_job, "connect", lambda config: None)
    monkeypatch.setattr(cluster_job, "_vectors", lambda data, column: None)
    config = Config(clusters=ClustersConfig(kind="kmeans", k=(2,)))
    folder = Folder(f"{tmp_path}/state")
    with RunLock(folder, EVERY) as other:
        other.identity["pid"] = os.getppid()
        other._write()
        with pytest.raises(UserError, match=r"in use by .* or use another --checkpoint"):
            cluster_job.cluster(config, checkpoint=folder.uri)
