"""The driver's record of the trials of a search, written to ``trials.json`` after every event."""

from __future__ import annotations

import json
import time
from typing import Any

from wcl_ray.search.options import SearchConfig
from wcl_ray.search.outcome import Outcome, Trial
from wcl_ray.search.results import correlations
from wcl_ray.storage import Folder

FILE = "trials.json"


def stored_count(folder: Folder) -> dict[str, int] | None:
    """``count`` of the training images of a search's trials; None before the first has ended."""
    trials = json.loads(folder.read(FILE))["trials"] if folder.exists(FILE) else {}
    counts = {row["quality"]["images"] for row in trials.values() if row.get("quality")}
    return {"count": max(counts)} if counts else None


class Record:
    """All trials of a search, over all its starts.

    Attributes:
        trials: id → row of JSON types; its ``at`` is the age of the search at each evaluation, in
            seconds.
        details: title → text, for the page.
    """

    def __init__(self, folder: Folder, config: SearchConfig, granularity: str | None) -> None:
        self.folder, self.config, self.granularity = folder, config, granularity
        self.trials: dict[str, dict[str, Any]] = {}
        self.details: dict[str, str] = {}
        self.validation = 0
        self._before = 0.0
        self._started = time.monotonic()
        self._running: dict[str, float] = {}
        if folder.exists(FILE):
            stored = json.loads(folder.read(FILE))
            self.trials, self._before = stored["trials"], stored["seconds"]
            self.details, self.validation = stored["facts"], stored["validation"]

    @property
    def seconds(self) -> float:
        """Duration of the search, over all its starts."""
        return self._before + time.monotonic() - self._started

    def start(self, trial: str, values: dict[str, Any], default: bool) -> dict[str, Any]:
        """Record that a trial starts, for the first time or again; returns its row."""
        new = {"number": len(self.trials), "status": "unfinished", "values": values}
        new |= {"evaluations": {}, "at": {}, "seconds": 0.0, "restarts": -1}
        new |= {"quality": {}, "error": "", "default": default}
        row = self.trials.setdefault(trial, new)
        row["restarts"] += 1
        row |= {"status": "unfinished", "error": ""}
        self._running[trial] = time.monotonic() - row["seconds"]
        self.write()
        return row

    def evaluated(self, trial: str, epoch: int, figures: dict[str, float]) -> bool:
        """Record an evaluation; returns False if it is known already."""
        row = self.trials[trial]
        row["seconds"] = round(time.monotonic() - self._running[trial], 1)
        if str(epoch) in row["evaluations"]:
            return False
        row["evaluations"][str(epoch)] = figures
        row["at"][str(epoch)] = round(self.seconds, 1)
        self.write()
        return True

    def end(self, trial: str, status: str, quality: dict[str, Any], error: str = "") -> None:
        """Record that a trial has finished, was stopped or has failed for good."""
        row = self.trials[trial]
        row |= {"status": status, "quality": quality, "error": error}
        if trial in self._running:
            row["seconds"] = round(time.monotonic() - self._running.pop(trial), 1)
        self.write()

    def forget(self, known: set[str]) -> list[str]:
        """Drop trials that Tune does not know: they started after its last snapshot, and it will
        start others instead.

        Returns:
            Their ids.
        """
        lost = [trial for trial in self.trials if trial not in known]
        for trial in lost:
            del self.trials[trial]
        for number, row in enumerate(self.trials.values()):
            row["number"] = number
        return lost

    def write(self) -> None:
        """Write ``trials.json``."""
        content = {"trials": self.trials, "seconds": round(self.seconds, 1)}
        content |= {"facts": self.details, "validation": self.validation}
        self.folder.write(FILE, json.dumps(content, indent=1).encode())

    def outcome(self) -> Outcome:
        """The record as plain data for the table, the Parquet file and the page."""
        config, metric = self.config, self.config.objective
        evaluations = {
            trial: {int(e): figures for e, figures in row["evaluations"].items()}
            for trial, row in self.trials.items()
        }
        ranks, basis = correlations(evaluations, metric) if metric in ("knn", "probe") else ({}, "")
        details = dict(self.details)
        if ranks:
            details["rank correlations"] = basis
        return Outcome(
            name=self.folder.uri.rstrip("/").rpartition("/")[2],
            metric=metric,
            mode=config.mode,
            epochs=config.epochs,
            granularity=self.granularity,
            trials=tuple(_trial(key, row, metric) for key, row in self.trials.items()),
            validation=self.validation,
            seconds=self.seconds,
            details=details,
            correlations=ranks,
        )


def _trial(key: str, row: dict[str, Any], metric: str) -> Trial:
    curve = sorted((int(epoch), f[metric]) for epoch, f in row["evaluations"].items())
    last = row["evaluations"][str(curve[-1][0])] if curve else {}
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in row["values"].items()}
    return Trial(
        number=row["number"],
        id=key,
        status=row["status"],
        values=values,
        epoch=curve[-1][0] if curve else 0,
        score=curve[-1][1] if curve else None,
        figures=last,
        quality=row["quality"],
        curve=tuple(curve),
        seconds=row["seconds"],
        restarts=row["restarts"],
        error=row["error"],
        default=row["default"],
    )
