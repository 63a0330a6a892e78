"""Weights & Biases. ``WANDB_PROJECT``, ``WANDB_MODE=offline`` and the like apply."""

from __future__ import annotations

import os
import secrets
import tempfile
from pathlib import Path
from typing import Any

from wcl_ray.registry import TRACKERS
from wcl_ray.storage import Folder
from wcl_ray.texts import flat
from wcl_ray.train.trackers import Row, Tracker, numbers, run_name, run_options

ATTACHED = ("results.json", "report.html", "encoder.safetensors")
PROJECT = "wcl_ray"


@TRACKERS.add("wandb")
class WeightsAndBiases(Tracker):
    """A run of Weights & Biases for each run folder, whose id is kept there in ``wandb.json``, so
    that a resumed run continues it."""

    PACKAGE = "wandb"
    ID_FILE = "wandb.json"

    def __init__(self, run: Folder) -> None:
        super().__init__(run)
        import wandb  # takes seconds

        self._files = tempfile.TemporaryDirectory(prefix="wandb")
        local = run.local and "WANDB_DIR" not in os.environ
        self._wandb = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run_name(run),
            id=self.remember(lambda: secrets.token_hex(4)),
            resume="allow",
            config=run_options(run),
            dir=run.path if local else None,  # by default ./wandb
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
        )
        # a resumed run repeats steps, and the steps of wandb itself may not go back
        self._wandb.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Row) -> None:
        self._wandb.log({"step": step, **numbers(metrics)})

    def finish(self, step: int, results: dict[str, Any]) -> None:
        import wandb

        self._wandb.summary.update(flat(results["variants"]))
        artifact = wandb.Artifact(f"run-{self._wandb.id}", type="run")
        for name in filter(self.run.exists, ATTACHED):
            path = Path(self._files.name) / name
            path.write_bytes(self.run.read(name))
            artifact.add_file(str(path), name=name)
        self._wandb.log_artifact(artifact)

    def close(self) -> None:
        self._wandb.finish()
        self._files.cleanup()
