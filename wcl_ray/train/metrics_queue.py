"""The metrics and events that workers send to the driver during training, and their display.

Rank 0 pushes rows to a small actor beside the driver; the driver reads them while it waits for
``fit()``, hands them to the trackers, and updates one live line. Workers do not wait for a push, so
a lost driver never blocks training.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from wcl_ray.terminal import Live, clock, put, warn
from wcl_ray.train.trackers import Row, Trackers


@ray.remote(num_cpus=0, max_restarts=-1)
class MetricsQueue:
    """Holds the rows not read yet."""

    def __init__(self) -> None:
        self._rows: list[Row] = []

    def push(self, row: Row) -> None:
        self._rows.append(row)

    def take(self) -> list[Row]:
        rows, self._rows = self._rows, []
        return rows


def start_metrics_queue() -> Any:
    """Start a queue on the driver's node."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return MetricsQueue.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]


def format_row(row: Row) -> str:
    """The text of the live line for a metrics row."""
    left = row.get("eta_seconds")
    return (
        f"epoch {row['epoch'] + row['share']:5.2f}/{row['epochs']}  loss {row['loss']:.3f}  "
        f"positives {row['positives']:.1f}  "
        f"without any {row['anchors_without_positive']:.0%}  "
        f"{row['images_per_second']:,.0f} images/s  waiting {row['data_wait']:.0%}"
        + (f"  {clock(left)} left" if left is not None else "")
    )


class MetricsWriter:
    """Reads the queue in a thread while the driver waits in ``fit()``.

    Row kinds: ``train`` rows go to the trackers and the live line, ``resume`` rows hold the
    position at which workers (re)start, ``evaluation`` rows the figures of a checkpoint, ``fault``
    rows an image that cannot be decoded, ``warning`` rows a text to print, and an ``error`` row the
    error that ended the run.
    """

    def __init__(
        self,
        queue: Any,
        trackers: Trackers,
        title: str,
        on_evaluation: Callable[[Row], None] | None = None,
    ) -> None:
        self._queue = queue
        self._on_evaluation = on_evaluation
        self._restarts = max((row.get("restarts", 0) for row in trackers.file.rows), default=0)
        self._trackers = trackers
        self._live = Live(title)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._reading = threading.Lock()
        self.faults: list[Row] = []
        self.error = ""
        self._warned = False
        self.failure: Exception | None = None

    def __enter__(self) -> MetricsWriter:
        self._thread.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._stop.set()
        self._thread.join(timeout=30)
        self._live.close()

    def _follow(self) -> None:
        while True:
            last = self._stop.wait(0.5)
            self.read()
            if last:
                return

    def read(self) -> None:
        """Handle all rows in the queue."""
        with self._reading, contextlib.suppress(Exception):  # Ray restarts a lost queue
            for row in ray.get(self._queue.take.remote()):
                self._try(row)

    def _try(self, row: Row) -> None:
        """Handle a row; keep the first exception for the driver."""
        try:
            self._handle(row)
        except OSError as error:  # only metrics are lost: training continues
            if not self._warned:
                warn(f"metrics cannot be written: {error}")
            self._warned = True
        except Exception as error:
            self.failure = self.failure or error

    def _handle(self, row: Row) -> None:
        kind = row.pop("kind")
        if kind == "train":
            row["restarts"] = self._restarts
            self._trackers.log(row)
            self._live.show(format_row(row), (row["epoch"] + row["share"]) / row["epochs"])
        elif kind == "resume":
            self._trackers.file.rewind(row["images"])
            if row["text"]:
                self._restarts += 1
                self._live.close()
                put(row["text"])
        elif kind == "fault":
            self.faults.append(row)
        elif kind == "evaluation" and not self._trackers.file.evaluated(row):
            self._trackers.log(row)
            figures = {k: v for k, v in row.items() if k not in ("epoch", "step")}
            text = "  ".join(f"{key} {value:.3f}" for key, value in figures.items())
            self._live.close()
            put(f"after epoch {row['epoch']}: {text}")
            if self._on_evaluation is not None:
                self._on_evaluation(row)
        elif kind == "warning":
            self._live.close()
            warn(row["text"])
        elif kind == "error":
            self.error = row["text"]
