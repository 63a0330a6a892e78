"""The coordinator of a k-means fit: Lloyd's iterations, phase by phase."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import ray

from wcl_ray import stopping
from wcl_ray.kmeans.lloyd import Stats
from wcl_ray.kmeans.phases import BRIEF, Phases
from wcl_ray.kmeans.seeding import update
from wcl_ray.kmeans.state import Iteration, Work, load_work, save_work
from wcl_ray.kmeans.validate import Data, Options
from wcl_ray.kmeans.worker import Partial, Step
from wcl_ray.kmeans.worker_group import WorkerGroup
from wcl_ray.storage import Folder

RESUMES = "the same command continues from the last iteration"
NOISE = 1e-6  # relative rise of the objective that float32 rounding of the centroids explains


class Fit:
    """One fit.

    Args:
        folder: for the checkpoint, or None.
        progress: called after each iteration.
    """

    def __init__(
        self,
        workers: WorkerGroup,
        options: Options,
        data: Data,
        folder: Folder | None,
        progress: Callable[[Iteration], None] | None,
    ) -> None:
        self.workers, self.options, self.data = workers, options, data
        self.phases = Phases(workers, options, data)
        self.folder, self.progress = folder, progress
        self.history: list[Iteration] = []
        self.steps = 0
        self.rises, self.clusters_left = 0, sum(options.ks)

    def run(self, init: list[np.ndarray] | None) -> tuple[Work, dict[int, Stats]]:
        """Run all phases, from the checkpoint if there is one.

        Args:
            init: initial centroids, float32 (K, d) per granularity; None: drawn from a sample.

        Returns:
            The last phase, whose ``before`` are the centroids of the labels, and its stats.
        """
        phases = self.phases.names(given=init is not None)
        fingerprint = self._fingerprint(init)
        checkpoint = None
        if self.folder is not None:
            checkpoint = load_work(self.folder, fingerprint, self.data.dimensions)
        work: Work | None = None
        if checkpoint is not None:
            work, self.history = checkpoint
            stopping.set_resume_hint(RESUMES)
        stats: dict[int, Stats] = {}
        for name in phases:
            if work is not None and phases.index(work.phase) > phases.index(name):
                continue
            if work is None or work.phase != name:
                work = self.phases.enter(name, work, stats, init)
            stats = self._iterate(work, fingerprint)
        assert work is not None
        return self._finish(work, stats)

    def warnings(self) -> list[str]:
        """Warnings to show the user."""
        texts = list(self.data.warnings)
        if self.rises:
            texts.append(f"the objective rose in {self.rises} iterations")
        total = sum(self.options.ks)
        if self.clusters_left < 0.8 * total:
            texts.append(
                f"{self.clusters_left} of {total} clusters are left, the others had fewer than "
                f"{self.options.min_size} rows"
            )
        empty = max((row.empty for row in self.history), default=0)
        if empty > 0.2 * total:
            texts.append(f"up to {empty} clusters were empty; k is too large for these vectors")
        return texts

    def _fingerprint(self, init: list[np.ndarray] | None) -> str:
        """Identifies the vectors, the options and the initial centroids."""
        if init is None:
            return self.data.fingerprint
        digest = hashlib.sha256(self.data.fingerprint.encode())
        for centroids in init:
            digest.update(np.ascontiguousarray(centroids).tobytes())
        return digest.hexdigest()[:24]

    def _iterate(self, work: Work, fingerprint: str) -> dict[int, Stats]:
        """Iterate until every granularity has settled or the limit is reached.

        Afterwards ``work.before`` are the centroids of the last assignment, and ``work.centroids``
        those updated from it, with which the next phase starts.
        """
        stats: dict[int, Stats] = {}
        before = None if work.before is None else ray.put(work.before)
        while True:
            started = time.perf_counter()
            work.number += 1
            current = ray.put(work.centroids)
            partial = self._step(work, current, before)
            settled, split, empty = [], [], 0
            updated = work.centroids.copy()
            objectives = dict(work.last)
            for g in work.active:
                stats[g] = partial.stats[g]
                objectives[g] = stats[g].objective(work.part(work.centroids, g)) / partial.rows
                centroids, splits = update(stats[g], self.options.spherical)
                empty += int((stats[g].counts == 0).sum())
                if not splits and self._settled(work, g, objectives[g], partial):
                    settled.append(g)  # its centroids stay those of the assignment
                    continue
                work.part(updated, g)[:] = centroids
                if splits:
                    split.append(g)
            self._report(work, partial, objectives, stats, empty, started)
            # a split may raise the objective, so objectives are not compared across it
            work.last = {g: value for g, value in objectives.items() if g not in split}
            work.before, work.centroids, before = work.centroids, updated, current
            work.active = tuple(g for g in work.active if g not in settled)
            if not work.active or work.number >= work.limit:
                return stats
            if self.folder is not None:
                save_work(self.folder, work, fingerprint, self.history)
                stopping.set_resume_hint(RESUMES)

    def _step(self, work: Work, current: Any, before: Any) -> Partial:
        self.steps += 1
        step = Step(
            number=self.steps,
            share=work.share,
            offsets=work.offsets,
            active=work.active,
            exponent=self.data.exponent,
        )
        return self.workers.total("step", step, current, before)  # type: ignore[no-any-return]

    def _settled(self, work: Work, g: int, objective: float, partial: Partial) -> bool:
        options = self.options
        if work.phase.partition(" ")[0] in BRIEF:  # runs a fixed number of iterations
            return False
        if work.before is not None and partial.moved[g] < options.settled * partial.rows:
            return True
        if g not in work.last:
            return False
        decrease = work.last[g] - objective
        if decrease < -NOISE * objective:
            self.rises += 1
        return decrease < options.tolerance * objective

    def _report(
        self,
        work: Work,
        partial: Partial,
        objectives: dict[int, float],
        stats: dict[int, Stats],
        empty: int,
        started: float,
    ) -> None:
        shares = [stats[g].counts / partial.rows for g in work.active]
        slowest = int(np.argmax(partial.seconds))
        row = Iteration(
            phase=work.phase,
            number=work.number,
            limit=work.limit,
            objective=tuple(objectives[g] for g in sorted(objectives)),
            moved=max(partial.moved.values()) / partial.rows,
            imbalance=max(float(len(p) * (p * p).sum()) for p in shares),
            empty=empty,
            seconds=time.perf_counter() - started,
            straggler=max(partial.seconds) / max(float(np.median(partial.seconds)), 1e-9),
            rate=partial.floor[slowest] / max(partial.seconds[slowest], 1e-9),
        )
        self.history.append(row)
        if self.progress is not None:
            self.progress(row)

    def _finish(self, work: Work, stats: dict[int, Stats]) -> tuple[Work, dict[int, Stats]]:
        """Dissolve clusters below min_size; their rows go to the nearest remaining cluster."""
        assert work.before is not None
        granularities = range(len(work.offsets) - 1)
        while True:
            missing = [g for g in granularities if g not in stats]  # settled before a restart
            small = any((stats[g].counts < self.options.min_size).any() for g in stats)
            if not missing and not small:
                break
            parts = [work.part(work.before, g) for g in granularities]
            for g in stats:
                parts[g] = parts[g][self._large(stats[g].counts)]
            remaining = Work.first(work.phase, parts, 1.0, work.limit)
            unchanged = remaining.offsets == work.offsets
            work = replace(remaining, before=remaining.centroids)
            stats = self._step(work, ray.put(work.centroids), None).stats
            if unchanged and not missing:  # no cluster can be dissolved any more
                break
        self.clusters_left = len(work.centroids)
        return work, stats

    def _large(self, counts: np.ndarray) -> np.ndarray:
        """bool (K,): clusters to keep for now, at least the largest. Only the smaller half of the
        clusters that are too small goes at a time: its rows may make the others large enough."""
        small = np.flatnonzero(counts < self.options.min_size)
        order = small[np.argsort(counts[small], kind="stable")]
        dissolved = max(int((counts == 0).sum()), (len(small) + 1) // 2)
        keep = np.ones(len(counts), bool)
        keep[order[:dissolved]] = False
        if not keep.any():
            keep[int(np.argmax(counts))] = True
        return keep
