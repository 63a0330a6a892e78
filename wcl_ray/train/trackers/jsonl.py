"""metrics.jsonl in the run folder; it is always written."""

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
    """``metrics.jsonl`` of a run folder, one row a call.

    Local folders are appended to at once; on an object store, where nothing can be appended, the
    file is written whole every ``upload_seconds`` and at the end. Rows of steps that are trained
    again after a restart replace the earlier ones (:meth:`rewind`).
    """

    FILE = "metrics.jsonl"

    def __init__(self, run: Folder, upload_seconds: float = 60.0) -> None:
        super().__init__(run)
        self._every = upload_seconds
        self._whole = True  # the file holds the rows and nothing else
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

    def log(self, step: int, metrics: Row) -> None:
        self.rows.append(metrics)
        if self.run.local and self._whole:
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
            except OSError:  # perhaps a part of the line
                self._whole = False
                raise

    def _upload(self) -> None:
        text = "".join(json.dumps(row) + "\n" for row in self.rows)
        self.run.write(self.FILE, text.encode())
        self._last_upload, self._whole = time.monotonic(), True

    def close(self) -> None:
        if not self.run.local or not self._whole:
            self._upload()
