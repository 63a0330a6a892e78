"""Metrics of a run for Prometheus, through Ray's metrics endpoint of the driver's node."""

from __future__ import annotations

from typing import Any

from ray.util.metrics import Gauge

GAUGES = {  # key of a row of metrics.jsonl → name and description
    "images_per_second": ("wcl_ray_images_per_second", "Training images a second, all workers"),
    "data_wait": ("wcl_ray_data_wait", "Share of the training time spent waiting for data, 0 to 1"),
    "loss": ("wcl_ray_loss", "Cl-InfoNCE loss, nats"),
    "positives": ("wcl_ray_positives", "Positives an anchor meets in a batch"),
    "workers": ("wcl_ray_workers", "Training workers"),
    "restarts": ("wcl_ray_restarts", "Restarts of the training from a checkpoint"),
}


class Gauges:
    """One gauge for each of :data:`GAUGES`, tagged with the run."""

    def __init__(self, run: str) -> None:
        self._gauges = {
            key: Gauge(name, description=text, tag_keys=("run",))
            for key, (name, text) in GAUGES.items()
        }
        # Ray takes ASCII only
        self._tags = {"run": run.encode("ascii", "backslashreplace").decode()}

    def set(self, row: dict[str, Any]) -> None:
        """Show the values of a row."""
        for key, gauge in self._gauges.items():
            if key in row:
                gauge.set(float(row[key]), tags=self._tags)
