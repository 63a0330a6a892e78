"""Trackers of the metrics of a run, one per module. A new one is a :class:`Tracker` under
``@TRACKERS.add("NAME")``; it runs on the driver."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

from wcl_ray.registry import TRACKERS
from wcl_ray.storage import Folder
from wcl_ray.terminal import warn

Row = dict[str, Any]


class Tracker:
    """Receives the metrics of a run. If it raises, the user is warned, the tracker is not called
    again, and training continues."""

    def __init__(self, run: Folder) -> None:
        self.run = run

    def log(self, step: int, metrics: Row) -> None:
        """Receive one row.

        Args:
            step: optimiser steps so far. After a restart, earlier steps are repeated.
            metrics: name → number, as in ``metrics.jsonl``: of training about every ten steps, of
                evaluations, and of new clusters.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Called once at the end of training, also if it failed."""


class Trackers:
    """The trackers of a run: ``metrics.jsonl``, which a resumed run continues, and the chosen ones.

    Attributes:
        file: the log ``metrics.jsonl``, the only one whose errors are raised.
    """

    def __init__(self, run: Folder, names: Iterable[str]) -> None:
        self.file = TRACKERS.get("jsonl")(run)
        self._others: dict[str, Tracker] = {}
        for name in names:
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

    def close(self) -> None:
        """Close all trackers."""
        for name, tracker in list(self._others.items()):
            self._try(name, tracker.close)
        self.file.close()
