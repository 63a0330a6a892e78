"""MLflow and Weights & Biases: a run of theirs for each run folder, with its files."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from wcl_ray.errors import UserError
from wcl_ray.registry import TRACKERS
from wcl_ray.runs.pretrain import finish_trackers
from wcl_ray.storage import Folder
from wcl_ray.train.trackers import Trackers, check_trackers, run_name, run_options, unfinished

RESULTS: dict[str, Any] = {"variants": {"attributes": {"knn": 0.75, "unreadable": {}}}}
OPTIONS = {"loss": {"temperature": 0.2}, "clusters": {"columns": ["colour"]}}


@pytest.fixture
def run(tmp_path: Path) -> Folder:
    folder = Folder(str(tmp_path / "runs/bugs"))
    folder.write("config.json", json.dumps({"config": OPTIONS}).encode())
    folder.write("encoder.safetensors", b"weights")
    folder.write("report.html", b"<!DOCTYPE html>")
    return folder


def train(run: Folder, name: str) -> None:
    """Two rounds, the second of which repeats a step, and the end."""
    for steps in ((10, 20), (20, 30)):
        trackers = Trackers(run, [name])
        assert name in trackers._others
        for step in steps:
            trackers.log({"step": step, "epoch": 1, "loss": 5.0 - step / 10, "text": "x"})
        trackers.close()
    trackers = Trackers(run, [name])
    trackers.finish(RESULTS)
    trackers.close()
    assert name in trackers._others  # it did not fail


@pytest.mark.slow
def test_mlflow(run: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "insects")
    train(run, "mlflow")
    client = MlflowClient()
    experiment = client.get_experiment_by_name("insects")
    assert experiment is not None
    (logged,) = client.search_runs([experiment.experiment_id])
    assert (logged.info.run_name, logged.info.status) == ("bugs", "FINISHED")
    assert logged.data.params["loss.temperature"] == "0.2"
    losses = client.get_metric_history(logged.info.run_id, "loss")
    assert [(m.step, m.value) for m in losses] == [(10, 4.0), (20, 3.0), (20, 3.0), (30, 2.0)]
    assert logged.data.metrics["attributes.knn"] == 0.75
    files = {file.path for file in client.list_artifacts(logged.info.run_id)}
    assert files == {"config.json", "report.html", "encoder.safetensors"}


@pytest.mark.slow
def test_wandb_offline(run: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    train(run, "wandb")
    folders = sorted((Path(run.path) / "wandb").glob("offline-run-*"))
    identity = json.loads(run.read("wandb.json"))["id"]
    assert len(folders) == 3
    assert all(identity in folder.name for folder in folders)
    written = b"".join(path.read_bytes() for f in folders for path in f.glob("*.wandb"))
    for text in (b"attributes.knn", b"temperature", b"encoder.safetensors", b"report.html"):
        assert text in written


@pytest.mark.slow
def test_results_reach_a_tracker_once(run: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the driver died, or the server did not answer, when the run had finished."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{run.path}/mlflow.db")
    assert unfinished(run, ["tensorboard", "mlflow", "wandb"]) == ["mlflow", "wandb"]
    Trackers(run, ["mlflow"]).close()
    assert unfinished(run, ["mlflow"]) == ["mlflow"]
    finish_trackers(run, ["mlflow"], "attributes", RESULTS)
    assert unfinished(run, ["mlflow"]) == []


def test_a_baseline_has_the_name_and_options_of_its_run(run: Folder) -> None:
    assert [run_name(folder) for folder in (run, run / "baseline")] == ["bugs", "bugs/baseline"]
    assert run_options(run / "baseline") == run_options(run) == OPTIONS


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    check_trackers(["jsonl", "tensorboard", "prometheus"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'wandb is not installed: pip install "wcl_ray\[wandb\]"'):
        check_trackers(["tensorboard", "wandb"])


def test_trackers_are_found_without_their_packages() -> None:
    """Help and checks of options import neither."""
    code = "import sys; from wcl_ray.registry import TRACKERS; TRACKERS.get('mlflow')"
    code += "; TRACKERS.get('wandb'); print('wandb' in sys.modules, 'mlflow' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]
    assert {"mlflow", "wandb"} <= set(TRACKERS.names())
