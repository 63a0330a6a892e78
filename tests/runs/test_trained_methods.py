"""A run with a method that has modules of its own, from training to the files."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import N, check_exactly_once
from runs import config as config
from safetensors.torch import load_file

from wcl_ray.config import Config, ScaleConfig
from wcl_ray.runs.pretrain import pretrain


def epochs_of(run: Path) -> dict[int, dict[str, Any]]:
    """Epoch → its last row of metrics."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {row["epoch"]: row for row in rows if "loss" in row}


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_metadata_as_second_view_on_two_workers_is_resumed(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(
        config,
        method="cmc",
        data=replace(config.data, label=None),
        train=replace(config.train, deterministic=True),
        scale=ScaleConfig(workers="2", cpus_per_worker=0.5),
    )
    assert set(pretrain(config)["variants"]) == {"cmc"}
    run, train = tmp_path / "runs/one", tmp_path / "runs/one/rounds/000/train"
    before = epochs_of(run)[1]
    assert before["workers"] == 2
    assert before["positives"] == 0

    first, last = sorted(train.glob("checkpoint_2*"))
    states = [torch.load(f / "state.pt", weights_only=True)["model"] for f in (first, last)]
    own = {key for key in states[1] if key.startswith("method.metadata.")}
    assert all(not torch.equal(states[0][key], states[1][key]) for key in own)  # they are trained
    exported = load_file(run / "encoder.safetensors")
    assert own
    assert not [key for key in exported if "metadata" in key]
    backbone = [key for key in states[1] if key.startswith("backbone.")]
    assert all(
        torch.equal(exported[key.removeprefix("backbone.")], states[1][key]) for key in backbone
    )

    shutil.rmtree(last)  # as if it had been stopped after the first epoch
    for name in ("results.json", "evaluation.json", "encoder.safetensors"):
        (run / name).unlink()
    (run / "rounds/000/round.json").unlink()
    capsys.readouterr()
    pretrain(replace(config, resume=True))
    assert "resuming from epoch 1, step 8" in capsys.readouterr().out
    assert epochs_of(run)[1]["loss"] == before["loss"]  # to the last bit
    check_exactly_once(run, N, 24, 2)
