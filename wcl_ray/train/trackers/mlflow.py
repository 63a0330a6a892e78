"""MLflow, at the server of ``MLFLOW_TRACKING_URI``."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

from wcl_ray.registry import TRACKERS
from wcl_ray.storage import Folder
from wcl_ray.texts import flat
from wcl_ray.train.trackers import Row, Tracker, numbers, run_name, run_options

ATTACHED = ("config.json", "results.json", "report.html", "encoder.safetensors")
EXPERIMENT = "wcl_ray"
LONGEST, AT_ONCE = 500, 100  # characters of a parameter; parameters of a request


@TRACKERS.add("mlflow")
class MLflow(Tracker):
    """A run of MLflow for each run folder, whose id is kept there in ``mlflow.json``, so that a
    resumed run continues it. Its experiment is ``MLFLOW_EXPERIMENT_NAME``, else ``wcl_ray``."""

    PACKAGE = "mlflow"
    ID_FILE = "mlflow.json"

    def __init__(self, run: Folder) -> None:
        super().__init__(run)
        from mlflow import MlflowClient  # takes seconds

        self._client: Any = MlflowClient()
        self._id = self.remember(self._create)
        self._client.update_run(self._id, status="RUNNING")

    def _create(self) -> str:
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        run = self._client.create_run(experiment, run_name=run_name(self.run))
        created = str(run.info.run_id)
        options = flat(run_options(self.run))
        params = [Param(key, str(value)[:LONGEST]) for key, value in options.items()]
        for start in range(0, len(params), AT_ONCE):
            self._client.log_batch(created, params=params[start : start + AT_ONCE])
        return created

    def log(self, step: int, metrics: Row) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        rows = [Metric(key, value, now, step) for key, value in numbers(metrics).items()]
        self._client.log_batch(self._id, metrics=rows)

    def finish(self, step: int, results: dict[str, Any]) -> None:
        self.log(step, flat(results["variants"]))
        with tempfile.TemporaryDirectory() as folder:
            for name in filter(self.run.exists, ATTACHED):
                path = Path(folder) / name
                path.write_bytes(self.run.read(name))
                self._client.log_artifact(self._id, str(path))
        self._client.set_terminated(self._id, "FINISHED")

    def close(self) -> None:
        if self._client.get_run(self._id).info.status == "RUNNING":
            self._client.set_terminated(self._id, "KILLED")  # until the next round or resume
