"""TensorBoard's events in the run folder."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from wcl_ray.registry import TRACKERS
from wcl_ray.storage import Folder
from wcl_ray.train.trackers import Row, Tracker

FLUSH = 10.0  # seconds between two looks of TensorBoard at the events


@TRACKERS.add("tensorboard")
class TensorBoard(Tracker):
    """TensorBoard's file of a run folder, written by this thread: the queue of tensorboardX's own
    writer blocks for ever once its thread has met a full disk."""

    def __init__(self, run: Folder) -> None:
        super().__init__(run)
        self._writer: Any = None
        self._flushed = 0.0

    def log(self, step: int, metrics: Row) -> None:
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event

        if self._writer is None:
            self._place = Path(self.run.path if self.run.local else tempfile.mkdtemp())
            self._place.mkdir(parents=True, exist_ok=True)
            self._writer = EventsWriter(str(self._place / "events"))
        for key, value in metrics.items():
            if isinstance(value, (int, float)) and key not in ("step", "images", "time"):
                event = Event(wall_time=time.time(), step=step)
                event.summary.CopyFrom(summary.scalar(key, value))
                self._writer.write_event(event)
        if time.monotonic() - self._flushed > FLUSH:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        if not self.run.local:
            for path in self._place.glob("events.*"):
                self.run.write(path.name, path.read_bytes())
            shutil.rmtree(self._place, ignore_errors=True)
