"""TensorBoard events in the run folder."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from wcl_ray.registry import TRACKERS
from wcl_ray.storage import Folder
from wcl_ray.train.trackers import Row, Tracker

FLUSH_SECONDS = 10.0


@TRACKERS.add("tensorboard")
class TensorBoard(Tracker):
    """The TensorBoard file of a run, written without tensorboardX's writer thread, whose queue
    blocks forever after an error such as a full disk."""

    def __init__(self, run: Folder) -> None:
        super().__init__(run)
        self._writer: Any = None
        self._flushed = 0.0

    def log(self, step: int, metrics: Row) -> None:
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event

        if self._writer is None:
            self._folder = Path(self.run.path if self.run.local else tempfile.mkdtemp())
            self._folder.mkdir(parents=True, exist_ok=True)
            self._writer = EventsWriter(str(self._folder / "events"))
        for key, value in metrics.items():
            if isinstance(value, (int, float)) and key not in ("step", "images", "time"):
                event = Event(wall_time=time.time(), step=step)
                event.summary.CopyFrom(summary.scalar(key, value))
                self._writer.write_event(event)
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        if not self.run.local:
            for path in self._folder.glob("events.*"):
                self.run.write(path.name, path.read_bytes())
            shutil.rmtree(self._folder, ignore_errors=True)
