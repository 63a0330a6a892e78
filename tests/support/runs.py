"""Small runs and their folders, as jobs and tests find them."""

from __future__ import annotations

import json
import runpy
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import write_parquet

from wcl_ray.config import (
    ClustersConfig,
    Config,
    DataConfig,
    ModelConfig,
    ScaleConfig,
    TrainConfig,
)
from wcl_ray.model.encoder import EncoderSpec, save_projector
from wcl_ray.runs.folder import ENCODER, EVALUATION, PROJECTOR, claim, open_run
from wcl_ray.runs.stored import C
from wcl_ray.storage import Folder

ROOT = Path(__file__).parents[2]
N = 192


@pytest.fixture
def config(tmp_path: Path) -> Config:
    data = write_parquet(tmp_path / "data", N)
    return Config(
        data=DataConfig(path=data, label="species", image_size=16),
        clusters=ClustersConfig(columns=("colour", "marks"), top_k=(4,)),
        model=ModelConfig(projector=(16, 8)),
        train=TrainConfig(batch_size=24, epochs=2, audit=True),
        scale=ScaleConfig(workers="1", cpus_per_worker=1),
        storage=str(tmp_path / "runs"),
        name="one",
    )


def steps_of(run: Path) -> dict[int, dict[int, list[np.ndarray]]]:
    """Epoch → step → (ids, positions) of each worker, from the files of the audit.

    A step that was trained again after a restart counts with its last version only.
    """
    found: dict[int, dict[int, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    for epoch in sorted((run / "audit").iterdir()):
        worlds: dict[int, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
        for file in epoch.glob("[0-9]*"):  # a killed process leaves hidden half-written files
            step, _, rest = file.stem.partition("-")
            worlds[int(step)][rest.split("-of-")[1]].append(file)
        for step, versions in worlds.items():
            last = max(
                versions.values(), key=lambda files: max(f.stat().st_mtime_ns for f in files)
            )
            for file in last:
                found[int(epoch.name)][step].append(np.fromfile(file, "<i8").reshape(-1, 2))
    return found


def check_exactly_once(run: Path, images: int, batch: int, epochs: int) -> None:
    found = steps_of(run)
    assert sorted(found) == list(range(epochs))
    for steps in found.values():
        rows = np.concatenate([part for parts in steps.values() for part in parts])
        ids = rows[:, 0].tolist()
        assert len(ids) == len(set(ids))
        assert images - batch < len(ids) <= images


def job(tmp_path: Path, *words: str, script: str = "pretrain.py") -> list[str]:
    return [sys.executable, str(ROOT / "jobs" / script), *words]


def run_script(monkeypatch: pytest.MonkeyPatch, script: str, *words: str) -> None:
    """A job in this process and its Ray, which saves the start of another."""
    monkeypatch.setattr(sys, "argv", [script, *words])
    runpy.run_path(str(ROOT / "jobs" / script), run_name="__main__")


def descendants(pid: int) -> list[int]:
    parents: dict[int, list[int]] = defaultdict(list)
    for process in Path("/proc").glob("[0-9]*"):
        try:
            fields = (process / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(fields[1])].append(int(process.name))
    found, waiting = [], [pid]
    while waiting:
        one = waiting.pop()
        found.append(one)
        waiting += parents[one]
    return found


def settle(config: C) -> tuple[C, Folder]:
    """The run as it is found, held for a moment only."""
    with open_run(config, "results.json") as found:
        return found


def untrained_run(folder: Path, backbone: str = "small", data: DataConfig | None = None) -> str:
    """A run folder as a finished run leaves it, with random weights."""
    data = data or DataConfig(path=str(folder / "images"), label="species", image_size=16)
    model = ModelConfig(backbone=backbone, projector=(16, 8))
    run = Folder(str(folder))
    torch.manual_seed(0)
    spec = EncoderSpec(model, data.image_size)
    encoder = spec.build().eval()
    for module in encoder.backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as if trained: each channel its own
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    claim(run, Config(data=data, model=model), {"train": {"count": 77, "ids": "0"}})
    run.write(ENCODER, spec.export(encoder))
    run.write(PROJECTOR, save_projector(encoder))
    figures = {"knn": 0.914, "probe": 0.887, "rank_me": 33.3, "classes": 4}
    run.write(EVALUATION, json.dumps(figures).encode())
    return str(folder)
