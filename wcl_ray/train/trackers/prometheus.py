"""Prometheus gauges at Ray's metrics endpoint on the driver's node."""

from __future__ import annotations

from ray.util.metrics import Gauge

from wcl_ray.registry import TRACKERS
from wcl_ray.storage import Folder
from wcl_ray.train.trackers import Row, Tracker

GAUGES = {  # key of a row of metrics.jsonl → name and description
    "images_per_second": ("wcl_ray_images_per_second", "Training images a second, all workers"),
    "data_wait": ("wcl_ray_data_wait", "Share of the training time spent waiting for data, 0 to 1"),
    "loss": ("wcl_ray_loss", "Cl-InfoNCE loss, nats"),
    "positives": ("wcl_ray_positives", "Positives an anchor meets in a batch"),
    "workers": ("wcl_ray_workers", "Training workers"),
    "restarts": ("wcl_ray_restarts", "Restarts of the training from a checkpoint"),
}


@TRACKERS.add("prometheus")
class Prometheus(Tracker):
    """The gauges of :data:`GAUGES`, tagged with the run."""

    def __init__(self, run: Folder) -> None:
        super().__init__(run)
        self._gauges = {
            key: Gauge(name, description=text, tag_keys=("run",))
            for key, (name, text) in GAUGES.items()
        }
        # Ray accepts only ASCII
        self._tags = {"run": run.uri.encode("ascii", "backslashreplace").decode()}

    def log(self, step: int, metrics: Row) -> None:
        for key, gauge in self._gauges.items():
            if key in metrics:
                gauge.set(float(metrics[key]), tags=self._tags)
