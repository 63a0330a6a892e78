"""The command line, YAML files and config.json are three spellings of one configuration."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from wcl_ray.cli import keys, parse
from wcl_ray.config import Config, from_dict

# Fixed by the users of the jobs: removing or renaming one breaks their scripts.
FROZEN = [
    "data.path",
    "data.id",
    "data.image",
    "data.label",
    "data.eval-path",
    "data.image-size",
    "clusters.kind",
    "clusters.columns",
    "clusters.top-k",
    "clusters.level",
    "loss.temperature",
    "loss.estimator",
    "model.backbone",
    "train.batch-size",
    "train.epochs",
    "train.lr",
    "scale.workers",
    "storage",
    "name",
    "seed",
    "resume",
]


def fails(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        parse(argv)
    assert caught.value.code == 2
    printed = capsys.readouterr()
    return " ".join((printed.err + printed.out).split())


def test_frozen_option_names() -> None:
    assert set(FROZEN) <= set(keys(Config))


def test_flags_and_defaults() -> None:
    config = parse(["--clusters.top-k", "5", "10", "--train.lr", "0.1", "--scale.workers", "1:4"])
    assert config.clusters.top_k == (5, 10)
    assert config.train.lr == 0.1
    assert config.scale.range() == (1, 4)
    assert parse([]) == Config()


def test_yaml_and_flags_win(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "data: {path: some/where, image-size: 48}\n"
        "train:\n  epochs: 7\n  compile: true\n  channels_last: false\n"
        "clusters: {top_k: [3, 5]}\nname: null\n".replace("name: null\n", "")
    )
    config = parse(["--train.epochs", "9", f"--config={file}"])
    assert config.train.epochs == 9
    assert config.train.compile
    assert not config.train.channels_last
    assert config.data.image_size == 48
    assert config.clusters.top_k == (3, 5)


def test_config_of_a_run_can_be_used_again(tmp_path: Path) -> None:
    config = parse(["--clusters.top-k", "5", "10", "--name", "x", "--train.compile", "--compare"])
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"version": "0", "created": 1.0, "config": config.to_dict()}))
    again = parse(["--config", str(file)])
    assert again == replace(config, name=None)


def test_config_round_trip() -> None:
    config = parse(["--clusters.top-k", "5", "10", "--name", "x", "--train.audit"])
    assert from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="surprise"):
        from_dict(config.to_dict() | {"surprise": 1})


def test_lists_with_commas() -> None:
    wanted = parse(["--clusters.kind", "kmeans", "--clusters.k", "100", "1000"])
    assert wanted.clusters.k == (100, 1000)
    for words in (["--clusters.k", "100,1000"], ["--clusters.k=100,1000"]):
        assert parse(["--clusters.kind", "kmeans", *words]) == wanted
    assert parse(["--clusters.separator", ","]).clusters.separator == ","  # takes one value


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--train.epoch", "3"], ["--train.epoch", "did you mean --train.epochs?"]),
        (["--epochs", "3"], ["did you mean --train.epochs?"]),
        (["--train.epochs", "many"], ["--train.epochs", "many"]),
        (["--train.epochs", "0"], ["train.epochs starts at 1"]),
        (["--scale.workers", "4:2"], ["MIN is larger than MAX"]),
        (["--scale.workers", "two"], ["scale.workers is N, MIN:MAX or auto"]),
        (["--loss.estimator", "simclr"], ["--loss.estimator", "paper", "supcon"]),
        (["--loss.temperature", "0"], ["loss.temperature", "above 0"]),
        (["--config"], ["--config needs the name"]),
        (["--config", "/no/such.yaml"], ["/no/such.yaml", "No such file"]),
    ],
)
def test_errors(argv: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(argv, capsys)
    for word in words:
        assert word in message


def test_unknown_yaml_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("train: {epoch: 3}")
    message = fails(["--config", str(file)], capsys)
    assert "unknown key 'train.epoch'; did you mean train.epochs?" in message
    file.write_text("train: [")
    assert "not valid YAML" in fails(["--config", str(file)], capsys)
    file.write_text("- 1\n- 2")
    assert "expected keys and values" in fails(["--config", str(file)], capsys)


def test_help_documents_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    missing = [key for key in keys(Config) if f"--{key}" not in text]
    assert not missing
    assert "helptext" not in text
