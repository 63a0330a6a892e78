"""Storage, the run folder, metrics and checkpoints."""

from __future__ import annotations

import json
import os
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ray.train import Checkpoint
from runs import settle

import wcl_ray.runs.lock
from wcl_ray.config import Config, DataConfig, ModelConfig, TrainConfig
from wcl_ray.errors import UserError
from wcl_ray.evaluate.validate import push_evaluations, validate
from wcl_ray.model.encoder import EncoderSpec
from wcl_ray.runs.folder import add_faults, claim, open_run
from wcl_ray.runs.stored import differences
from wcl_ray.storage import Folder, filesystem
from wcl_ray.train import checkpoint
from wcl_ray.train.checkpoint import TrainState
from wcl_ray.train.metrics_queue import MetricsWriter, format_row
from wcl_ray.train.trackers import Trackers
from wcl_ray.train.trackers.jsonl import MetricsLog


def test_write_is_atomic_and_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write("a/b.json", b"old")
    folder.write("a/b.json", b"new")
    assert folder.read("a/b.json") == b"new"
    assert (folder / "a").names() == ["b.json"]
    assert (folder / "none").names() == []


def test_failed_write_keeps_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(str(tmp_path))
    folder.write("x", b"old")

    def broken(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        folder.write("x", b"new")
    assert folder.read("x") == b"old"
    assert folder.names() == ["x"]


def test_unknown_scheme_is_named() -> None:
    with pytest.raises(ValueError, match="ftp://"):
        filesystem("ftp://host/x")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(storage=str(tmp_path / "runs"))


def start(config: Config) -> None:
    """What a run leaves that was stopped."""
    with open_run(config, "results.json") as (resolved, folder):
        claim(folder, resolved)


def test_used_name_needs_resume(config: Config) -> None:
    config = replace(config, name="one")
    start(config)
    with pytest.raises(UserError, match="add --resume"):
        settle(config)
    again, same = settle(replace(config, resume=True))
    assert same.uri == f"{config.storage}/one"
    assert again.name == "one"
    assert same.names() == ["config.json"]


def test_default_names_say_what_is_inside(config: Config) -> None:
    resolved, _ = settle(config)
    assert resolved.name is not None
    assert resolved.name.startswith("demo-attributes-")
    data = replace(config.data, path="s3://bucket/birds/train-*.parquet")
    named, _ = settle(replace(config, data=data))
    assert named.name is not None
    assert named.name.startswith("birds-")


def test_runs_without_a_name_that_start_in_the_same_second(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "strftime", lambda form: "now")
    monkeypatch.setattr(wcl_ray.runs.lock, "_running", lambda pid: True)
    names = []
    with ExitStack() as stack:
        for pid in range(3):
            monkeypatch.setattr(os, "getpid", lambda pid=pid: 10_000_000 + pid)
            names.append(stack.enter_context(open_run(config, "results.json"))[0].name)
    assert names == ["demo-attributes-now", "demo-attributes-now-2", "demo-attributes-now-3"]
    assert not Path(config.storage).exists()  # nothing came of them


def test_what_a_run_is_decides_itself_while_it_is_held(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another job makes and leaves the run after this one has started, before it is held."""
    config = replace(config, name="one")
    plain = wcl_ray.runs.lock.RunLock.__enter__

    def late(lock: Any) -> Any:
        lock.folder.write("config.json", json.dumps({"config": config.to_dict()}).encode())
        return plain(lock)

    monkeypatch.setattr(wcl_ray.runs.lock.RunLock, "__enter__", late)
    with pytest.raises(UserError, match="holds a run already"):
        settle(config)
    other = replace(config, train=TrainConfig(lr=0.5))
    for flags in ({"resume": True}, {"start_or_resume": True}):
        with pytest.raises(UserError, match=r"train.lr was 0.001, now 0.5"):
            settle(replace(other, **flags))  # type: ignore[arg-type]
        assert settle(replace(config, **flags))[0].resume  # type: ignore[arg-type]


def test_resume_finds_the_newest_with_the_same_options(config: Config) -> None:
    for name, epochs in [("a", 3), ("b", 4), ("c", 3)]:
        start(replace(config, name=name, train=TrainConfig(epochs=epochs)))
    wanted = replace(config, resume=True, train=TrainConfig(epochs=3))
    assert settle(wanted)[0].name == "c"
    with pytest.raises(UserError, match=r"no run in .* \(runs there: a, b, c\)"):
        settle(replace(config, resume=True, train=TrainConfig(epochs=9)))
    with pytest.raises(UserError, match="no run 'd'"):
        settle(replace(wanted, name="d"))
    assert Folder(config.storage).names() == ["a", "b", "c"]


@pytest.mark.parametrize("how", ["start_or_resume", "resume", "newest"])
def test_a_run_keeps_the_image_size_of_weights_that_are_gone(config: Config, how: str) -> None:
    data, model = DataConfig(), ModelConfig(weights="gone.safetensors")
    config = replace(config, name="one", data=data, model=model)
    assert config.data.image_size == 0
    start(replace(config, data=replace(config.data, image_size=48)))
    flags = {"resume": True, "name": None} if how == "newest" else {how: True}
    again, _ = settle(replace(config, **flags))  # type: ignore[arg-type]
    assert (again.name, again.data.image_size) == ("one", 48)
    other = replace(config, data=replace(config.data, image_size=64), resume=True)
    with pytest.raises(UserError, match=r"data.image-size was 48, now 64"):
        settle(other)
    small = replace(config, data=replace(config.data, store_size=40), resume=True)
    with pytest.raises(UserError, match=r"data.store-size was 0, now 40"):
        settle(small)


def test_resume_with_other_options_names_them(config: Config) -> None:
    one = replace(config, name="one")
    start(one)
    other = replace(one, resume=True, train=TrainConfig(lr=0.5))
    with pytest.raises(UserError, match=r"train.lr was 0.001, now 0.5"):
        settle(other)
    free = replace(one, resume=True, scale=replace(one.scale, workers="2"))
    assert settle(free)[0].name == "one"


def test_differences_ignore_what_may_change() -> None:
    a, b = Config(), Config(storage="elsewhere", train=TrainConfig(checkpoint_steps=5))
    assert differences(a.to_dict(), b.to_dict()) == {}


def test_faults_are_listed_once(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    assert add_faults(folder, []) == 0
    assert not folder.exists("faults.jsonl")
    assert add_faults(folder, [{"key": "a", "reason": "cut"}, {"key": "b", "reason": "text"}]) == 2
    assert add_faults(folder, [{"reason": "cut", "key": "a"}]) == 2


def row(images: int) -> dict[str, float]:
    return {"step": images // 10, "images": images, "loss": 1.0}


def test_metrics_log_rewinds_to_the_checkpoint(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    log = MetricsLog(folder)
    for images in (10, 20, 30):
        log.log(images, row(images))
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 4, "ima')  # killed while writing
    log = MetricsLog(folder)
    log.rewind(20)
    log.log(30, row(30))
    log.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["images"] for line in lines] == [10, 20, 30]


def test_an_evaluation_that_the_driver_did_not_read(tmp_path: Path) -> None:
    """Ray Train has noted it as done, and the board is gone with the driver."""
    spec = EncoderSpec(ModelConfig(projector=(16, 8)), 16)
    encoder = spec.build()
    optimizer = torch.optim.SGD(encoder.parameters())
    checkpoint.save(tmp_path, encoder, optimizer, TrainState(), {})
    evaluator: Any = SimpleNamespace(encoder=spec, measure=lambda *unused, **given: {"knn": 0.5})
    run, rows, told = Folder(str(tmp_path / "run")), list[Any](), list[Any]()
    lost = SimpleNamespace(push=SimpleNamespace(remote=lambda row: None))
    saved = Checkpoint(str(tmp_path))
    for epoch in (1, 2):
        where = {"epoch": epoch, "step": 10 * epoch}
        validate(saved, **where, evaluator=evaluator, queue=lost, run=run)
    log = Trackers(run, ())
    log.log({"epoch": 1, "step": 10, "knn": 0.5})  # this one was read
    queue = SimpleNamespace(push=SimpleNamespace(remote=rows.append))
    follower = MetricsWriter(queue, log, "it", on_evaluation=told.append)
    for _ in range(2):  # starts
        push_evaluations(queue, run)
        while rows:
            follower._handle(rows.pop(0))
    assert told == [{"epoch": 2, "step": 20, "knn": 0.5}]
    log.close()
    assert [row["epoch"] for row in MetricsLog(run).rows] == [1, 2]


def test_live_line_shows_what_matters() -> None:
    line = format_row(
        {
            "epoch": 2, "share": 0.5, "epochs": 10, "loss": 3.21, "positives": 2.25,
            "anchors_without_positive": 0.04,
            "images_per_second": 12345.6, "data_wait": 0.07, "eta_seconds": 3725,
        }
    )  # fmt: skip
    for part in ("2.50/10", "3.21", "2.2", "4%", "12,346 images/s", "7%", "1:02:05 left"):
        assert part in line


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    consumed = np.array([7, 0, 128], np.uint8)
    position = TrainState(epoch=2, step=11, images=704, consumed=consumed)
    assert checkpoint.plain(torch.compile(torch.nn.ReLU())).__class__ is torch.nn.ReLU  # no len()
    checkpoint.save(tmp_path, torch.compile(model), optimizer, position, {"assignment": "abc"})

    other = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    fresh = torch.optim.AdamW(other.parameters(), lr=0.1)
    found = checkpoint.load(tmp_path, other, fresh, {"assignment": "abc"})
    assert (found.epoch, found.step, found.images) == (2, 11, 704)
    assert found.consumed is not None
    assert found.consumed.tolist() == consumed.tolist()
    found.consumed[0] = 1  # writable, not the mapped file
    for old, new in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(old, new)
    for one, steps in ((model, optimizer), (other, fresh)):  # the optimiser's state came along
        one.zero_grad()
        one(torch.ones(2, 3)).sum().backward()
        steps.step()
    for old, new in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(old, new)
    with pytest.raises(UserError, match="assignment = abc, this run has xyz"):
        checkpoint.load(tmp_path, other, None, {"assignment": "xyz"})
