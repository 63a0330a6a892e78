"""Trackers of the metrics of a run, one per module. A new one is a :class:`Tracker` under
``@TRACKERS.add("NAME")``; it runs on the driver."""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Callable, Iterable
from typing import Any

from wcl_ray.errors import UserError
from wcl_ray.registry import TRACKERS
from wcl_ray.storage import Folder
from wcl_ray.terminal import warn

Row = dict[str, Any]


class Tracker:
    """Receives the metrics of a run. If it raises, the user is warned, the tracker is not called
    again, and training continues."""

    PACKAGE = ""  # that it needs; also the name of the extra that installs it
    ID_FILE = ""  # of the run folder, in which a tracker with runs of its own keeps their id

    def __init__(self, run: Folder) -> None:
        self.run = run

    def remember(self, create: Callable[[], str]) -> str:
        """The id of the tracker's own run, created once for each run folder."""
        if not self.run.exists(self.ID_FILE):
            self.run.write(self.ID_FILE, json.dumps({"id": create()}).encode())
        return str(json.loads(self.run.read(self.ID_FILE))["id"])

    def mark_finished(self) -> None:
        """Note that the tracker's own run has the results."""
        if self.ID_FILE:
            stored = json.loads(self.run.read(self.ID_FILE))
            self.run.write(self.ID_FILE, json.dumps(stored | {"finished": True}).encode())

    def log(self, step: int, metrics: Row) -> None:
        """Receive one row.

        Args:
            step: optimiser steps so far. After a restart, earlier steps are repeated.
            metrics: name → number, as in ``metrics.jsonl``: of training about every ten steps, of
                evaluations, and of new clusters.
        """
        raise NotImplementedError

    def finish(self, step: int, results: dict[str, Any]) -> None:
        """Called once when the run is finished; its folder then holds the encoder and the page.

        Args:
            step: the last one.
            results: content of ``results.json``.
        """

    def close(self) -> None:
        """Called at the end of a round of training, also if it failed, and after ``finish``."""


def numbers(row: Row) -> dict[str, float]:
    """The numbers of a row, without its position."""
    skipped = ("step", "time")
    return {
        key: float(value)
        for key, value in row.items()
        if isinstance(value, (int, float)) and key not in skipped
    }


def run_name(run: Folder) -> str:
    """The name of a run folder; of the SimCLR baseline in it, with that of its run."""
    *_, parent, name = f"/{run.path.rstrip('/')}".split("/")
    return f"{parent}/{name}" if name == "baseline" else name


def run_options(run: Folder) -> dict[str, Any]:
    """The options of a run, by section; of a baseline those of its run."""
    folder = run
    if not run.exists("config.json"):
        folder = Folder(run.uri.rstrip("/").rpartition("/")[0], run.endpoint)
    if not folder.exists("config.json"):
        return {}
    return dict(json.loads(folder.read("config.json"))["config"])


def check_trackers(names: Iterable[str]) -> None:
    """Raise a UserError if a tracker's package is not installed."""
    for package in filter(None, (TRACKERS.get(name).PACKAGE for name in names)):
        if importlib.util.find_spec(package) is None:
            raise UserError(f'{package} is not installed: pip install "wcl_ray[{package}]"')


def unfinished(run: Folder, names: Iterable[str]) -> list[str]:
    """The trackers with runs of their own that have no results of a finished run."""
    without_results = []
    for name in names:
        file = TRACKERS.get(name).ID_FILE
        if file and not (run.exists(file) and json.loads(run.read(file)).get("finished")):
            without_results.append(name)
    return without_results


class Trackers:
    """The trackers of a run: ``metrics.jsonl``, which a resumed run continues, TensorBoard, and the
    chosen ones.

    Attributes:
        file: the log ``metrics.jsonl``, the only one whose errors are raised.
    """

    def __init__(self, run: Folder, names: Iterable[str]) -> None:
        self.file = TRACKERS.get("jsonl")(run)
        self._others: dict[str, Tracker] = {}
        for name in dict.fromkeys(["tensorboard", *names]):
            if name != "jsonl":
                self._try(name, functools.partial(self._open, name))

    def _open(self, name: str) -> None:
        self._others[name] = TRACKERS.get(name)(self.file.run)

    def _try(self, name: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # whatever a library raises
            self._others.pop(name, None)
            reason = f"{type(error).__name__}: {error}"
            warn(f"tracker {name} failed, the run continues without it: {reason}")

    def log(self, row: Row) -> None:
        """Send a row to all trackers."""
        for name, tracker in list(self._others.items()):
            self._try(name, functools.partial(tracker.log, row.get("step", 0), dict(row)))
        self.file.log(row.get("step", 0), row)

    def finish(self, results: dict[str, Any]) -> None:
        """Send the results of a finished run to all trackers."""
        step = max((int(row.get("step", 0)) for row in self.file.rows), default=0)

        def finish(tracker: Tracker) -> None:
            tracker.finish(step, results)
            tracker.mark_finished()

        for name, tracker in list(self._others.items()):
            self._try(name, functools.partial(finish, tracker))

    def close(self) -> None:
        """Close all trackers."""
        for name, tracker in list(self._others.items()):
            self._try(name, tracker.close)
        self.file.close()
