"""What the workers tell the driver while they train, and how the terminal shows it.

Rank 0 pushes rows to a small actor beside the driver; the driver reads them while it waits for
``fit()``, appends them to ``metrics.jsonl`` and TensorBoard, and keeps one live line. A push is
fire and forget: a driver that is gone never holds training up.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from wcl_ray.renamed import METRICS
from wcl_ray.storage import Folder, told
from wcl_ray.terminal import Live, clock, put, warn
from wcl_ray.train.gauges import Gauges

Row = dict[str, Any]
FLUSH = 10.0  # seconds between two looks of TensorBoard at the events


@ray.remote(num_cpus=0, max_restarts=-1)
class MetricsQueue:
    """Holds the rows that were not read yet."""

    def __init__(self) -> None:
        self._rows: list[Row] = []

    def push(self, row: Row) -> None:
        self._rows.append(row)

    def take(self) -> list[Row]:
        rows, self._rows = self._rows, []
        return rows


def start_metrics_queue() -> Any:
    """A queue on the driver's own node."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return MetricsQueue.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]


def guarded(what: str, show: Callable[..., None]) -> Callable[..., None]:
    """A function that only shows something: when it fails that is told once, and it rests."""
    failed = False

    def call(*given: Any) -> None:
        nonlocal failed
        if failed:
            return
        try:
            show(*given)
        except Exception as error:
            failed = True
            warn(f"{what} cannot be written, the run goes on without: {error}")

    return call


class Events:
    """TensorBoard's file of a run folder, written by this thread: the queue of tensorboardX's own
    writer blocks for ever once its thread has met a full disk."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._writer: Any = None
        self._flushed = 0.0

    def add(self, row: Row) -> None:
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event

        if self._writer is None:
            self._place = Path(self._folder.path if self._folder.local else tempfile.mkdtemp())
            self._place.mkdir(parents=True, exist_ok=True)
            self._writer = EventsWriter(str(self._place / "events"))
        for key, value in row.items():
            if isinstance(value, (int, float)) and key not in ("step", "images", "time"):
                event = Event(wall_time=time.time(), step=row.get("step", 0))
                event.summary.CopyFrom(summary.scalar(key, value))
                self._writer.write_event(event)
        if time.monotonic() - self._flushed > FLUSH:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        if not self._folder.local:
            for path in self._place.glob("events.*"):
                self._folder.write(path.name, path.read_bytes())
            shutil.rmtree(self._place, ignore_errors=True)


class MetricsLog:
    """``metrics.jsonl`` and TensorBoard events of a run folder, one row a call.

    Local folders are appended to at once; on an object store, where nothing can be appended, the
    file is written whole every ``upload_seconds`` and at the end. Rows of steps that are trained
    again after a restart replace the earlier ones (:meth:`rewind`).
    """

    FILE = "metrics.jsonl"

    def __init__(self, folder: Folder, upload_seconds: float = 60.0) -> None:
        self._folder = folder
        self._every = upload_seconds
        self._whole = True  # the file holds the rows and nothing else
        self._last_upload = 0.0
        self.rows = self._load()
        events = Events(folder)
        self._show = guarded("TensorBoard events", events.add)
        self._close = guarded("TensorBoard events", events.close)

    def _load(self) -> list[Row]:
        if not self._folder.exists(self.FILE):
            return []
        lines = self._folder.read(self.FILE).decode().splitlines()
        rows: list[Row] = []
        for line in lines:
            try:
                row = json.loads(line)
                rows.append({METRICS.get(key, key): value for key, value in row.items()})
            except json.JSONDecodeError:  # the last line of a killed run
                self._whole = False
                break
        return rows

    def evaluated(self, row: Row) -> bool:
        """Whether the figures of an evaluation are in the log: it may be told twice."""
        return any(
            (old.get("epoch"), old.get("step")) == (row["epoch"], row["step"])
            for old in self.rows
            if "loss" not in old and "round" not in old
        )

    def rewind(self, images: int) -> None:
        """Drop the training rows beyond a position (images seen so far)."""
        kept = [row for row in self.rows if row.get("images", 0) <= images]
        if len(kept) != len(self.rows) or images == 0 or not self._whole:
            self.rows = kept
            self._upload()

    def add(self, row: Row) -> None:
        self._show(row)
        self.rows.append(row)
        if self._folder.local and self._whole:
            self._append(row)
        elif self._folder.local or time.monotonic() - self._last_upload > self._every:
            self._upload()

    def _append(self, row: Row) -> None:
        path = self._folder.file(self.FILE)
        with told(path):
            os.makedirs(self._folder.path, exist_ok=True)
            try:
                with open(path, "a") as stream:
                    stream.write(json.dumps(row) + "\n")
            except OSError:  # perhaps a part of the line
                self._whole = False
                raise

    def _upload(self) -> None:
        text = "".join(json.dumps(row) + "\n" for row in self.rows)
        self._folder.write(self.FILE, text.encode())
        self._last_upload, self._whole = time.monotonic(), True

    def close(self) -> None:
        if not self._folder.local or not self._whole:
            self._upload()
        self._close()


def format_row(row: Row) -> str:
    """One metrics row as the text of the live line."""
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

    Row kinds: ``train`` rows go to the log and the live line, ``resume`` rows tell where training
    started (again), ``evaluation`` rows hold the figures of a checkpoint, ``fault`` rows are images
    that could not be decoded, ``warning`` rows are printed, an ``error`` row has ended the run.
    """

    def __init__(
        self,
        queue: Any,
        log: MetricsLog,
        title: str,
        on_evaluation: Callable[[Row], None] | None = None,
        gauges: Gauges | None = None,
    ) -> None:
        self._queue = queue
        self._on_evaluation = on_evaluation
        self._gauges = guarded("gauges", gauges.set) if gauges is not None else None
        self._restarts = max((row.get("restarts", 0) for row in log.rows), default=0)
        self._log = log
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
        """Handle what is in the queue now."""
        with self._reading, contextlib.suppress(Exception):  # it is started again
            for row in ray.get(self._queue.take.remote()):
                self._try(row)

    def _try(self, row: Row) -> None:
        """Handle a row; the first thing that goes wrong is kept for the driver."""
        try:
            self._handle(row)
        except OSError as error:  # figures only: training goes on, and what follows is written
            if not self._warned:
                warn(f"metrics cannot be written: {error}")
            self._warned = True
        except Exception as error:
            self.failure = self.failure or error

    def _handle(self, row: Row) -> None:
        kind = row.pop("kind")
        if kind == "train":
            row["restarts"] = self._restarts
            self._log.add(row)
            self._live.show(format_row(row), (row["epoch"] + row["share"]) / row["epochs"])
            if self._gauges is not None:
                self._gauges(row)
        elif kind == "resume":
            self._log.rewind(row["images"])
            if row["text"]:
                self._restarts += 1
                self._live.close()
                put(row["text"])
        elif kind == "fault":
            self.faults.append(row)
        elif kind == "evaluation" and not self._log.evaluated(row):
            self._log.add(row)
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
