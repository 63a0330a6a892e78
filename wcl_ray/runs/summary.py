"""The end-of-run summary: time per stage, use of the object store, speed of the workers."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import ray

from wcl_ray.data.data_stats import Pass, taken
from wcl_ray.storage import Folder
from wcl_ray.terminal import bytes_text, say
from wcl_ray.train.trackers.jsonl import MetricsLog

INTERVAL = 2.0  # seconds between two readings of the object store


class ResourceSummary:
    """Measures the stages of a run, and polls the object store in a thread while the run lasts.

    Attributes:
        seconds: stage → seconds, in order of their first start.
        peak: largest number of bytes seen in the object stores of all nodes together.
        capacity: of all object stores, in bytes, at the time of the peak.
        passes: cost of each pass of Ray Data, added up by :meth:`to_dict`.
        spilled, restored: bytes written to disk and read back since the start, by everything on
            the cluster.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.peak = self.capacity = 0
        self.spilled = self.restored = 0
        self.passes: dict[str, Pass] = {}
        self._before: tuple[int, int] | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> ResourceSummary:
        taken()  # discard those of an earlier run in this process
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=10)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time inside to a stage."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started

    def look(self) -> None:
        """Read the state of the object stores once."""
        store = store_stats()
        if store is None:
            return
        now = (store.spilled_bytes_total, store.restored_bytes_total)
        before, self._before = self._before or now, now
        # a node that leaves takes its counts with it, so sums may fall
        self.spilled += max(0, now[0] - before[0])
        self.restored += max(0, now[1] - before[1])
        if store.object_store_bytes_used >= self.peak:
            self.peak = store.object_store_bytes_used
            self.capacity = store.object_store_bytes_avail

    def _watch(self) -> None:
        last = False
        while not last:
            last = self._stop.wait(INTERVAL)
            self.look()

    def to_dict(self) -> dict[str, Any]:
        """The summary for ``results.json``."""
        for name, cost in taken().items():
            self.passes[name] = self.passes.get(name, Pass()) + cost
        return {
            "seconds": {name: round(s, 1) for name, s in self.seconds.items()},
            "object_store_peak": self.peak,
            "object_store": self.capacity,
            "spilled": self.spilled,
            "restored": self.restored,
            "data": {name: asdict(total) for name, total in self.passes.items()},
        }

    def report(self, workers: dict[str, Any] | None = None) -> None:
        """Print the summary.

        Args:
            workers: see :func:`worker_figures`.
        """
        for topic, text in summary(self.to_dict() | (workers or {})):
            say(topic, text)


def summary(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines of the summary: (topic, text).

    Args:
        figures: of :meth:`ResourceSummary.to_dict` and, for training, of :func:`worker_figures`.
    """
    times = ", ".join(f"{name} {s:.0f} s" for name, s in figures["seconds"].items())
    store = (
        f"peak {bytes_text(figures['object_store_peak'])} of "
        f"{bytes_text(figures['object_store'])}, spilled {bytes_text(figures['spilled'])}"
    )
    if figures["restored"]:
        store += f", read back {bytes_text(figures['restored'])}"
    lines = [("time", times), ("store", store)]
    for name, cost in figures["data"].items():
        text = (
            f"{name}: {cost['rows']:,} rows, {cost['tasks']} task(s) on {cost['nodes']} node(s), "
            f"{cost['cpu_seconds']:.1f} s of CPU"
        )
        lines.append(("data", text))
    if "data_wait" in figures:
        text = (
            f"{figures['images_per_second']:,.0f} images/s, {figures['data_wait']:.0%} of the time "
            f"waiting for data, {figures['restarts']} restart(s)"
        )
        lines.append(("workers", text))
    return lines


def worker_figures(runs: list[Folder]) -> dict[str, Any]:
    """Averages over all epochs of runs: ``images_per_second``, ``data_wait`` (share of the training
    time spent waiting for data) and ``restarts``."""
    epochs: dict[tuple[str, int], dict[str, Any]] = {}  # a row has averages since its epoch began
    for folder in runs:
        rows = [row for row in MetricsLog(folder).rows if "images_per_second" in row]
        epochs |= {(folder.uri, row["epoch"]): row for row in rows}
    if not epochs:
        return {}
    seconds = {key: 1 / max(row["images_per_second"], 1e-9) for key, row in epochs.items()}
    total = sum(seconds.values())
    restarts: dict[str, int] = {}
    for (uri, _), row in epochs.items():
        restarts[uri] = max(restarts.get(uri, 0), row.get("restarts", 0))
    return {
        "images_per_second": len(epochs) / total,
        "data_wait": sum(seconds[key] * row["data_wait"] for key, row in epochs.items()) / total,
        "restarts": sum(restarts.values()),
    }


def store_stats() -> Any:
    """Totals of the object stores of all nodes, None if they cannot be read."""
    from ray._private.internal_api import get_memory_info_reply  # what `ray memory` prints

    try:
        return get_memory_info_reply(ray._private.state.state, timeout_seconds=10).store_stats
    except Exception:  # the cluster may be busy or shutting down
        return None
