"""Storage that is full, read-only, denied, or no storage at all: one line that names it."""

from __future__ import annotations

import errno
import json
import os
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mounts import Mount
from mounts import mount as mount
from runs import config as config

from wcl_ray.config import Config, EvaluateConfig, ScaleConfig
from wcl_ray.errors import StorageError, UserError, find_user_error
from wcl_ray.runs.cluster import cluster
from wcl_ray.runs.evaluate import evaluate_run
from wcl_ray.runs.folder import claim, open_run
from wcl_ray.runs.pretrain import pretrain
from wcl_ray.runs.snapshot import SNAPSHOT, repair_snapshot
from wcl_ray.storage import Folder, check_target, storage_error, write_file
from wcl_ray.train import checkpoint
from wcl_ray.train.checkpoint import TrainState
from wcl_ray.train.trackers import Trackers
from wcl_ray.train.trackers.jsonl import MetricsLog


def refused(call: Callable[[], Any]) -> str:
    """The one line of what is refused."""
    with pytest.raises(StorageError) as caught:
        call()
    found = find_user_error(caught.value)
    assert found is not None, repr(caught.value)
    assert "\n" not in str(found)
    return str(found)


def fill(place: Path, but: int) -> None:
    """Leave so many bytes."""
    free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
    (place / "filling").write_bytes(bytes(free - but))


def bad_places(tmp_path: Path, mount: Mount, s3: str) -> dict[str, tuple[str, str]]:
    """Kind → storage and the cause that is named."""
    (tmp_path / "file").write_text("x")
    place = mount("size=1m")
    (place / "runs").mkdir()
    fill(place, 0)
    return {
        "a file": (f"{tmp_path}/file", "Not a directory|File exists"),
        "below a file": (f"{tmp_path}/file/runs", "Not a directory"),
        "full": (f"{place}/runs", "no space left, 0 B are free and .* needed"),
        "too long": (f"{tmp_path}/{'x' * 300}", "File name too long"),
        "no bucket": ("s3://nowhere/runs", "bucket does not exist"),
    }


@pytest.mark.parametrize("kind", ["a file", "below a file", "full", "too long", "no bucket"])
def test_storage_is_tried_before_any_work(
    tmp_path: Path, mount: Mount, s3: str, config: Config, kind: str
) -> None:
    """Ray is not even started."""
    storage, cause = bad_places(tmp_path, mount, s3)[kind]
    config = replace(config, storage=storage, data=replace(config.data, endpoint=s3))
    shown = storage.partition("://")[2] or storage
    for given in (config, replace(config, name=None)):
        text = refused(lambda given=given: pretrain(given))
        assert shown in text
        assert re.search(cause, text), text
    for call in (
        lambda: cluster(config, out=f"{storage}/table.parquet"),
        lambda: cluster(config, centroids=f"{storage}/c.npz"),
        lambda: evaluate_run(
            "runs/one", {}, EvaluateConfig(), ScaleConfig(), s3, f"{storage}/figures.json"
        ),
    ):
        with pytest.raises((UserError, StorageError)) as caught:
            call()
        assert shown in str(caught.value)
    if kind == "full":
        assert os.listdir(storage) == []


def test_a_file_in_the_place_of_the_run(config: Config) -> None:
    Path(config.storage).mkdir()
    (Path(config.storage) / "one").write_text("x")
    assert f"{config.storage}/one" in refused(lambda: pretrain(config))


def test_a_read_only_mount(
    mount: Mount, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    place = mount("size=1m")
    config = replace(config, storage=str(place))
    with open_run(replace(config, name="done"), "results.json") as (resolved, folder):
        claim(folder, resolved)
        folder.write("results.json", b'{"variants": {}}')
    (place / "one").mkdir()
    mount("ro")
    for given in (config, replace(config, name="two"), replace(config, name=None)):
        assert "Read-only file system" in refused(lambda given=given: pretrain(given))
    pretrain(replace(config, name="done", resume=True))
    assert "done is finished" in capsys.readouterr().out  # as before: nothing is written


def test_a_folder_without_permission(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    for path in (*reversed(tmp_path.parents), tmp_path):
        if path.stat().st_uid == os.getuid() and str(path).startswith("/tmp/pytest"):
            path.chmod(0o755)
    folder = Folder(f"{tmp_path}/locked/one")
    if os.getuid():
        assert "Permission denied" in refused(folder.check)
        return
    child = os.fork()
    if not child:  # root may write anywhere
        os.setuid(65534)
        with suppress(BaseException):
            folder.check()
        try:
            folder.check()
        except StorageError as error:
            os._exit(0 if "Permission denied" in str(error) and error.permanent else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_store_that_denies() -> None:
    text = (
        "When initiating multiple part upload for key 'x' in bucket 'b': AWS Error ACCESS_DENIED "
        "during CreateMultipartUpload operation: Access Denied (Request ID: 5skZ4)"
    )
    error = storage_error("s3://b/x", OSError(text))
    assert str(error) == "s3://b/x cannot be used: Access Denied (ACCESS_DENIED)"
    assert error.permanent
    slow = OSError("When uploading part: AWS Error NETWORK_CONNECTION: timed out")
    assert not storage_error("s3://b/x", slow).permanent


def test_trying_leaves_nothing(tmp_path: Path) -> None:
    Folder(f"{tmp_path}/a/b").check()
    check_target(f"{tmp_path}/a/b/table.parquet", "--out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("letter", ["x", "é"])
def test_names_as_long_as_the_disk_takes(tmp_path: Path, letter: str) -> None:
    """A file that passes the check can be written, whatever its name is while it is written."""
    for size in (200, 238, 254, 255, 256, 300):
        name = letter * (size // len(letter.encode())) + "x" * (size % len(letter.encode()))
        uri = f"{tmp_path}/new/{name}"
        if size <= 255:
            check_target(uri, "--out")
            write_file(uri, b"whole")
            assert Path(uri).read_bytes() == b"whole"
            Path(uri).unlink()
        else:
            assert "File name too long" in refused(lambda uri=uri: check_target(uri, "--out"))
    assert list(tmp_path.glob("new/*")) == []


def test_a_key_longer_than_a_store_takes(monkeypatch: pytest.MonkeyPatch, s3: str) -> None:
    """The check tries a key as long as that of the file."""
    tried = []
    write = Folder._write

    def note(self: Folder, target: str, content: bytes) -> None:
        tried.append(target)
        write(self, target, content)

    monkeypatch.setattr(Folder, "_write", note)
    check_target(f"s3://bugs/{'k' * 900}", "--out", s3)
    assert [len(key) for key in tried] == [len("bugs/") + 900]


def test_metrics_on_a_full_disk_neither_block_nor_get_lost(
    mount: Mount, capsys: pytest.CaptureFixture[str]
) -> None:
    place = mount("size=1m")
    log = Trackers(Folder(str(place)), ("tensorboard",))
    log.log({"step": 0, "loss": 0.5})
    fill(place, 0)
    refusals = []

    def write() -> None:
        for step in range(1, 500):
            try:
                log.log({"step": step, "loss": 0.5, "images": step})
            except OSError as error:
                refusals.append(error)
        with suppress(OSError):
            log.close()

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    assert "no space left" in str(refusals[0])
    assert capsys.readouterr().out.count("tracker tensorboard failed") <= 1
    (place / "filling").unlink()
    again = MetricsLog(Folder(str(place)))  # with a part of a line at the end
    known = len(again.rows)
    again.log(500, {"step": 500, "loss": 0.5, "images": 500})
    again.close()
    rows = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == known + 1 >= 2
    assert rows[-1]["step"] == 500


def test_a_full_folder_of_temporary_files(mount: Mount) -> None:
    place = mount("size=1m")
    model = torch.nn.Linear(1000, 1000)
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(StorageError, match=f"{place} .*no space left.* and 4 MB needed"):
        checkpoint.save(place, model, optimizer, TrainState(), {})


@pytest.mark.parametrize("content", [b"", b'{"checkpoint_res', b"[]"])
def test_a_list_of_checkpoints_that_is_cut_off(tmp_path: Path, content: bytes) -> None:
    model = torch.nn.Linear(2, 2)
    folder = Folder(str(tmp_path))
    for name in ("checkpoint_1", "checkpoint_2", "checkpoint_3"):
        (tmp_path / name).mkdir()
        optimizer = torch.optim.AdamW(model.parameters())
        checkpoint.save(tmp_path / name, model, optimizer, TrainState(), {})
    whole = (tmp_path / "checkpoint_3/state.pt").read_bytes()
    (tmp_path / "checkpoint_3/state.pt").write_bytes(whole[: len(whole) // 2])
    folder.write(SNAPSHOT, content)
    repair_snapshot(folder)
    state = json.loads(folder.read(SNAPSHOT))
    assert state["latest_checkpoint_result"]["checkpoint_dir_name"] == "checkpoint_2"
    before = folder.read(SNAPSHOT)
    repair_snapshot(folder)
    assert folder.read(SNAPSHOT) == before


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_a_disk_that_runs_full_in_training(
    mount: Mount, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, a good last checkpoint, and the run resumes once there is room."""
    place = mount("size=20m")  # a checkpoint has 15
    config = replace(config, storage=str(place), train=replace(config.train, epochs=3))
    started = time.monotonic()
    with pytest.raises(UserError) as caught:
        pretrain(config)
    assert time.monotonic() - started < 120
    text = str(caught.value)
    assert re.search(
        r"rounds/000/train/checkpoint_.* no space left, .* free and 14.8 MB needed", text
    )
    assert "--resume continues" in text
    saved = list((place / "one/rounds/000/train").glob("checkpoint_*/state.pt"))
    assert len(saved) == 1
    mount("size=200m")
    (place / "one/rounds/000/train" / SNAPSHOT).write_bytes(b"")  # as where its own writing failed
    pretrain(replace(config, resume=True))
    assert "resuming from epoch 1, step 6" in capsys.readouterr().out
    assert (place / "one/results.json").exists()


def test_what_is_full_is_told_apart_from_what_is_not() -> None:
    full = storage_error("/x/y", OSError(errno.ENOSPC, "No space left on device"), 5_000_000)
    assert "/x/y cannot be written: no space left" in str(full)
    assert "5 MB needed" in str(full)
    assert full.permanent
    broken = storage_error("/x/y", OSError(errno.EIO, "Input/output error"))
    assert str(broken) == "/x/y cannot be used: Input/output error"
    assert not broken.permanent
