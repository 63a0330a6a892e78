"""metrics.jsonl in the run folder; always written."""

from __future__ import annotations

import json
import os
import time

from wcl_ray.registry import TRACKERS
from wcl_ray.renamed import METRICS
from wcl_ray.storage import Folder, storage_errors
from wcl_ray.train.trackers import Row, Tracker


@TRACKERS.add("jsonl")
class MetricsLog(Tracker):
    """``metrics.jsonl`` of a run folder, one line per row.

    Rows are appended to a local file at once; in an object store, which cannot append, the file is
    rewritten every ``upload_seconds`` and at the end. Rows of steps that a restart repeats replace
    the earlier ones (:meth:`rewind`).
    """

    FILE = "metrics.jsonl"

    def __init__(self, run: Folder, upload_seconds: float = 60.0) -> None:
        super().__init__(run)
        self._every = upload_seconds
        self._intact = True  # the file holds exactly the rows
        self._last_upload = 0.0
        self.rows = self._load()

    def _load(self) -> list[Row]:
        if not self.run.exists(self.FILE):
            return []
        lines = self.run.read(self.FILE).decode().splitlines()
        rows: list[Row] = []
        for line in lines:
            try:
                row = json.loads(line)
                rows.append({METRICS.get(key, key): value for key, value in row.items()})
            except json.JSONDecodeError:  # the last line of a killed run
                self._intact = False
                break
        return rows

    def evaluated(self, row: Row) -> bool:
        """Whether the figures of an evaluation are in the log already: they may come twice."""
        return any(
            (old.get("epoch"), old.get("step")) == (row["epoch"], row["step"])
            for old in self.rows
            if "loss" not in old and "round" not in old
        )

    def rewind(self, images: int) -> None:
        """Drop the training rows after a position, the number of images seen."""
        kept = [row for row in self.rows if row.get("images", 0) <= images]
        if len(kept) != len(self.rows) or images == 0 or not self._intact:
            self.rows = kept
            self._upload()

    def log(self, step: int, metrics: Row) -> None:
        self.rows.append(metrics)
        if self.run.local and self._intact:
            self._append(metrics)
        elif self.run.local or time.monotonic() - self._last_upload > self._every:
            self._upload()

    def _append(self, row: Row) -> None:
        path = self.run.file(self.FILE)
        with storage_errors(path):
            os.makedirs(self.run.path, exist_ok=True)
            try:
                with open(path, "a") as stream:
                    stream.write(json.dumps(row) + "\n")
            except OSError:  # part of the line may have been written
                self._intact = False
                raise

    def _upload(self) -> None:
        text = "".join(json.dumps(row) + "\n" for row in self.rows)
        self.run.write(self.FILE, text.encode())
        self._last_upload, self._intact = time.monotonic(), True

    def close(self) -> None:
        if not self.run.local or not self._intact:
            self._upload()
