"""Runs that another version has started, and images that lie elsewhere than then."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from pictures import png, write_parquet
from runs import settle

from wcl_ray import __version__
from wcl_ray.cli import parse
from wcl_ray.config import Config, DataConfig, TrainConfig
from wcl_ray.data.images import open_images
from wcl_ray.errors import UserError
from wcl_ray.runs.folder import claim
from wcl_ray.runs.moved import TRAIN, check_moves, id_summary, side_summaries
from wcl_ray.runs.pretrain import pretrain
from wcl_ray.runs.stored import read_stored
from wcl_ray.runs.trained import Trained
from wcl_ray.search.checks import same_space
from wcl_ray.search.options import SearchConfig
from wcl_ray.search.record import Record, stored_count
from wcl_ray.storage import Folder
from wcl_ray.train import checkpoint
from wcl_ray.train.checkpoint import TrainState

# A run of version 0.1.0 that was killed after its clusters, and a search after its first trial
STORED = Path(__file__).parent / "stored"


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stored runs in a folder of their own, where their images are ``data``."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(STORED, tmp_path / "runs")
    return tmp_path / "runs"


def change(run: Path, alter: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((run / "config.json").read_text())
    alter(content)
    (run / "config.json").write_text(json.dumps(content))


def own_options() -> list[str]:
    """The command that started the stored run."""
    return [
        "--data.path", "data", "--data.label", "species", "--data.image-size", "16",
        "--clusters.columns", "colour", "marks", "--clusters.top-k", "4", "--model.projector",
        "16", "8", "--train.batch-size", "24", "--train.epochs", "2",
    ]  # fmt: skip


def other_version(content: dict[str, Any]) -> None:
    """As if options and defaults had changed since."""
    options = content["config"]
    del options["train"]["compile"], options["evaluate"]
    options["train"] |= {"lr": 0.002, "gone": 3}
    options["attic"] = {"old": 1}


def test_stored_options_of_an_older_version(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(runs / "run", other_version)
    command = parse([*own_options(), "--name", "run", "--resume"])
    config, _ = settle(command)
    held = replace(command.train, lr=0.002, sync_bn=False, warmup_rounds=1)
    loss = replace(command.loss, instance_weight=0.0)  # of dual and dual_weight
    assert config == replace(command, train=held, loss=loss)
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if "train.gone, attic" in line]) == 1
    assert [line for line in lines if "version 0.1.0" in line and "train.lr 0.002" in line]
    with pytest.raises(UserError, match=r"train\.lr was 0\.002, now 0\.5$"):
        settle(parse([*own_options(), "--train.lr", "0.5", "--name", "run", "--resume"]))
    # a new option at another value than its default was not what the run did
    with pytest.raises(UserError, match=r"train\.compile was False, now True$"):
        settle(parse([*own_options(), "--train.compile", "--name", "run", "--resume"]))
    # within one version nothing has changed, so that an option that is missing was left out
    change(runs / "run", lambda content: content.update(version=__version__))
    with pytest.raises(UserError, match=r"train\.lr was 0\.002, now 0\.001"):
        settle(command)


def test_micro_batches_may_change(runs: Path) -> None:
    command = parse([*own_options(), "--train.micro-batch-size", "8", "--name", "run", "--resume"])
    assert settle(command)[0].train.micro_batch_size == 8


def test_a_run_that_had_a_cache_goes_on(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(runs / "run", lambda content: content["config"].update(cache="runs/cache"))
    command = parse([*own_options(), "--name", "run", "--resume"])
    assert settle(command)[0].data == command.data
    assert re.search(r"are ignored: .*\bcache", capsys.readouterr().out)


def test_newest_run_is_found_among_those_of_an_older_version(runs: Path) -> None:
    shutil.copytree(runs / "run", runs / "newer")
    change(runs / "newer", lambda c: (c.update(created=c["created"] + 9), other_version(c)))
    assert settle(parse([*own_options(), "--resume"]))[0].name == "run"  # the very same options
    change(runs / "run", lambda content: content["config"]["train"].update(epochs=3))
    config, folder = settle(parse([*own_options(), "--resume"]))
    assert (config.name, config.train.lr) == ("newer", 0.002)
    assert folder.uri.endswith("newer")


def test_damaged_and_impossible_stored_options(runs: Path) -> None:
    change(runs / "run", lambda content: content["config"]["train"].update(epochs=0))
    with pytest.raises(
        UserError, match=r"version 0\.1\.0, and .* does not accept it: train\.epochs"
    ):
        read_stored(Folder(str(runs / "run"))).config(Config)
    (runs / "run/config.json").write_text('{"version": "0.1.0"')
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        settle(parse([*own_options(), "--name", "run", "--resume"]))


def test_other_jobs_read_the_runs_of_another_version(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(runs / "run", other_version)
    with pytest.raises(UserError, match="has no encoder"):
        Trained.open(str(runs / "run"))
    (runs / "run/encoder.safetensors").write_bytes(b"weights")
    assert Trained.open(str(runs / "run")).config.train.lr == 0.002
    assert capsys.readouterr().out.count("train.gone, attic") == 1
    config = parse(["--config", str(runs / "run/config.json")])  # the same options once more
    assert (config.train.lr, config.train.epochs, config.name) == (0.002, 2, None)
    printed = capsys.readouterr().out
    assert "train.gone, attic.old" in printed.partition("left out: ")[2]
    assert "is now called" not in printed  # nobody has to rename what a run has stored


def test_search_of_an_older_version(runs: Path) -> None:
    words = [*own_options()[:-1], "4", "--trial-epochs", "2", "--trials", "3"]
    words += ["--scheduler", "none", "--concurrent", "1", "--confirm", "1"]
    words += ["--name", "search", "--resume"]
    change(runs / "search", lambda content: content["config"].pop("prune"))
    config, folder = settle(parse(words, cls=SearchConfig))
    assert isinstance(config, SearchConfig)
    assert config.search == ("clusters.top-k=2,4",)  # not given now, so the stored space holds
    outcome = Record(folder, config, "clusters.top-k").outcome()
    assert [trial.status for trial in outcome.trials] == ["finished"]
    again = parse(["--config", str(runs / "search/config.json")], cls=SearchConfig)
    assert again.search == config.search
    space = json.loads((runs / "search/space.json").read_text())
    assert same_space(space, [row | {"new": 1} for row in space])
    assert not same_space(space, [space[0] | {"low": 0.5}, *space[1:]])


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_run_of_an_older_version_is_finished_with_moved_images(runs: Path, tmp_path: Path) -> None:
    write_parquet(tmp_path / "fewer", 93)
    write_parquet(tmp_path / "other", 96, id=np.arange(1000, 1096))
    write_parquet(tmp_path / "photos", 96)
    command = parse(["--scale.workers", "1", "--name", "run", "--resume"])  # no other option
    for path, said in (
        ("fewer", "holds 80 training images, the run has 83"),
        ("other", "training images"),
    ):
        with pytest.raises(UserError, match=said):
            pretrain(replace(command, data=DataConfig(path=path)))
    before = pq.read_table(runs / "run/rounds/000/assignment.parquet")
    results = pretrain(replace(command, data=DataConfig(path="photos")))
    assert set(results["variants"]["attributes"]) >= {"knn", "probe"}  # with the stored label
    rows = [json.loads(x) for x in (runs / "run/metrics.jsonl").read_text().splitlines()]
    assert {row["epochs"] for row in rows} == {2}  # not today's default
    assert pq.read_table(runs / "run/rounds/000/assignment.parquet").equals(before)
    trained = Trained.open(str(runs / "run"))
    assert trained.config.data.path == "photos"  # where other jobs look for them
    assert json.loads((runs / "run/config.json").read_text())["version"] == "0.1.0"


def write_folder(folder: Path) -> None:
    for number in range(6):
        place = folder / f"class{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.png").write_bytes(png(number))


def write_table(folder: Path) -> None:
    write_parquet(folder, 6)
    for file in folder.glob("*.parquet"):
        pq.write_table(pq.read_table(file).drop_columns(["id"]), file)


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("write", [write_folder, write_table])
def test_ids_survive_a_move(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    write: Callable[[Path], None],
) -> None:
    """Ids that are hashes of names, of training and of test images."""
    monkeypatch.chdir(tmp_path)
    for name in ("train", "test"):
        write(tmp_path / name)
    label = "label" if write is write_folder else "species"
    data = DataConfig(path="train", eval_path="test", label=label)
    config = Config(data=data, name="one")
    images = open_images(data, "runs", 0)
    ids = np.sort([row["__id"] for row in images.metadata().take_all()])
    run = settle(config)[1]
    claim(run, config, {TRAIN: id_summary(ids)} | side_summaries(images))
    shutil.move("train", "elsewhere")
    shutil.move("test", "exam")
    moved = replace(data, path=str(tmp_path / "elsewhere"), eval_path="exam")
    again, _ = settle(replace(config, data=moved, resume=True))
    check_moves(run, again.data, open_images(moved, "runs", 0))
    assert capsys.readouterr().out.count("the ids are the same") == 2
    assert read_stored(run).options["data"]["eval_path"] == "exam"
    first = min(path for path in (tmp_path / "exam").rglob("*") if path.is_file())
    first.rename(first.with_stem("another"))
    wrong = replace(moved, eval_path="./exam")
    with pytest.raises(UserError, match=r"data\.eval-path ./exam holds 6 test images, but not"):
        check_moves(run, wrong, open_images(wrong, "runs", 0))


@pytest.mark.usefixtures("ray_local")
def test_search_of_an_older_version_with_moved_images(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It stored the number of the training images, and nothing of the test images."""
    for name, count in (("fewer", 93), ("photos", 96), ("exam", 12)):
        write_parquet(tmp_path / name, count)
    folder = Folder(str(runs / "search"))
    config = read_stored(folder, SearchConfig).config(SearchConfig)
    data = replace(config.data, path="fewer")
    images = open_images(data, "runs", config.seed, config.validation)
    with pytest.raises(UserError, match=r"data\.path fewer holds \d+ training images, the run has"):
        check_moves(folder, data, images, stored_count(folder))
    data = replace(data, path="photos")
    images = open_images(data, "runs", config.seed, config.validation)
    check_moves(folder, data, images, stored_count(folder))
    assert "83 training images as before, whose ids were not stored" in capsys.readouterr().out
    data = replace(data, eval_path="exam")
    check_moves(folder, data, open_images(data, "runs", config.seed), {"count": 96})
    printed = capsys.readouterr().out
    assert "data.eval-path was None, now exam; nothing was stored about the test images" in printed


def test_moved_images_need_the_name(runs: Path) -> None:
    """Without a name the images tell which run is meant."""
    words = [*own_options(), "--data.path", "elsewhere", "--resume"]
    assert settle(parse([*words, "--name", "run"]))[0].data.path == "elsewhere"
    with pytest.raises(UserError, match="give its --name"):
        settle(parse(words))


def test_checkpoint_of_another_version(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    checkpoint.save(tmp_path, model, optimizer, TrainState(epoch=2, step=5), {"assignment": "abc"})
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    del state["position"]["images"]
    state["position"]["later"] = 1
    torch.save(state, tmp_path / "state.pt")
    facts = {"assignment": "abc", "later": "x"}
    assert checkpoint.load(tmp_path, model, None, facts) == TrainState(epoch=2, step=5)
    with pytest.raises(UserError, match="assignment = abc, this run has xyz"):
        checkpoint.load(tmp_path, model, None, {"assignment": "xyz"})


def test_version_of_a_run_is_kept(tmp_path: Path) -> None:
    config = Config(storage=str(tmp_path), name="one", train=TrainConfig(epochs=3))
    claim(settle(config)[1], config)
    assert not read_stored(Folder(str(tmp_path / "one"))).older
