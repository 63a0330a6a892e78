"""The coordinator of a k-means fit: Lloyd's iterations, phase by phase, and their end."""

from __future__ import annotations

import hashlib
import itertools
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

NOISE = 1e-6  # relative rise of the objective that float32 centroids explain


class Fit:
    """One fit.

    Args:
        progress: called with each iteration.
        folder: of the checkpoint, or None.
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
        self.rose, self.left = 0, sum(options.ks)

    def run(self, init: list[np.ndarray] | None) -> tuple[Work, dict[int, Stats]]:
        """All phases, from the checkpoint if there is one.

        Args:
            init: float32 (K, d) per granularity, to start from; None: k-means++.

        Returns:
            The last phase, whose ``before`` are the centroids the labels belong to, and the stats.
        """
        phases = self.phases.names(given=init is not None)
        found = None
        if self.folder is not None:
            found = load_work(self.folder, self._mark(init), self.data.dimensions)
        work: Work | None = None
        if found is not None:
            work, self.history = found
            stopping.set_resume_hint("the same command goes on from the last iteration")
        stats: dict[int, Stats] = {}
        for name in phases:
            if work is not None and phases.index(work.phase) > phases.index(name):
                continue
            if work is None or work.phase != name:
                work = self.phases.enter(name, work, stats, init)
            stats = self._iterate(work, self._mark(init))
        assert work is not None
        return self._finish(work, stats)

    def warnings(self) -> list[str]:
        """What was odd, for people."""
        found = list(self.data.warnings)
        if self.rose:
            found.append(f"the objective rose in {self.rose} iterations")
        most = max((row.empty for row in self.history), default=0)
        if self.left < 0.8 * sum(self.options.ks):
            found.append(
                f"{self.left} of {sum(self.options.ks)} clusters are left, the others had fewer "
                f"than {self.options.min_size} rows"
            )
        if most > 0.2 * sum(self.options.ks):
            found.append(f"up to {most} clusters were empty; k is too large for these vectors")
        return found

    def _mark(self, init: list[np.ndarray] | None) -> str:
        if init is None:
            return self.data.fingerprint
        digest = hashlib.sha256(self.data.fingerprint.encode())
        for centroids in init:
            digest.update(np.ascontiguousarray(centroids).tobytes())
        return digest.hexdigest()[:24]

    def _iterate(self, work: Work, mark: str) -> dict[int, Stats]:
        """Steps until every granularity has settled or the limit is reached.

        Afterwards ``work.before`` are the centroids of the last assignment; ``work.centroids`` the
        ones after it, from which the next phase starts.
        """
        stats: dict[int, Stats] = {}
        coarse = None if work.coarse is None else ray.put(work.coarse)
        before = None if work.before is None else ray.put(work.before)
        while True:
            started = time.perf_counter()
            work.number += 1
            current = ray.put(work.centroids)
            part = self._step(work, current, before, coarse)
            done, split, empty = [], [], 0
            fresh = work.centroids.copy()
            objectives = dict(work.last)
            for g in work.active:
                own = work.part(work.centroids, g)
                stats[g] = part.stats[g]
                objectives[g] = stats[g].objective(own) / part.rows
                after, splits = self._update(stats[g], work.groups)
                empty += int((stats[g].counts == 0).sum())
                if not splits and self._settled(work, g, objectives[g], part):
                    done.append(g)  # it stays as it was assigned
                    continue
                work.part(fresh, g)[:] = after
                if splits:
                    split.append(g)
            self._report(work, part, objectives, stats, empty, started)
            # a split may raise the objective, so it is not compared across one
            work.last = {g: value for g, value in objectives.items() if g not in split}
            work.before, work.centroids, before = work.centroids, fresh, current
            work.active = tuple(g for g in work.active if g not in done)
            if not work.active or work.number >= work.limit:
                return stats
            if self.folder is not None:
                save_work(self.folder, work, mark, self.history)
                stopping.set_resume_hint("the same command goes on from the last iteration")

    def _update(self, stats: Stats, groups: tuple[int, ...]) -> tuple[np.ndarray, int]:
        """Lloyd's update; of two levels, inside each coarse cluster: no split leaves it."""
        parts, splits = [], 0
        for start, stop in itertools.pairwise(groups or (0, len(stats.counts))):
            after, count = update(stats.part(start, stop), self.options.spherical)
            parts.append(after)
            splits += count
        return np.concatenate(parts), splits

    def _step(self, work: Work, current: Any, before: Any, coarse: Any) -> Partial:
        self.steps += 1
        step = Step(
            number=self.steps,
            share=work.share,
            offsets=work.offsets,
            active=work.active,
            exponent=self.data.exponent,
            groups=work.groups,
        )
        return self.workers.total("step", step, current, before, coarse)  # type: ignore[no-any-return]

    def _settled(self, work: Work, g: int, objective: float, part: Partial) -> bool:
        o = self.options
        if work.phase.partition(" ")[0] in BRIEF:  # as many iterations as asked for
            return False
        if work.before is not None and part.moved[g] < o.settled * part.rows:
            return True
        if g not in work.last:
            return False
        fall = work.last[g] - objective
        if fall < -NOISE * objective:
            self.rose += 1
        return fall < o.tolerance * objective

    def _report(
        self,
        work: Work,
        part: Partial,
        objectives: dict[int, float],
        stats: dict[int, Stats],
        empty: int,
        started: float,
    ) -> None:
        shares = [stats[g].counts / part.rows for g in work.active]
        slowest = int(np.argmax(part.seconds))
        row = Iteration(
            phase=work.phase,
            number=work.number,
            limit=work.limit,
            objective=tuple(objectives[g] for g in sorted(objectives)),
            moved=max(part.moved.values()) / part.rows,
            imbalance=max(float(len(p) * (p * p).sum()) for p in shares),
            empty=empty,
            seconds=time.perf_counter() - started,
            straggler=max(part.seconds) / max(float(np.median(part.seconds)), 1e-9),
            rate=part.floor[slowest] / max(part.seconds[slowest], 1e-9),
        )
        self.history.append(row)
        if self.progress is not None:
            self.progress(row)

    def _finish(self, work: Work, stats: dict[int, Stats]) -> tuple[Work, dict[int, Stats]]:
        """Dissolve clusters below min_size: their rows go to the nearest that is left."""
        assert work.before is not None
        everything = tuple(range(len(work.offsets) - 1))
        while True:
            missing = [g for g in everything if g not in stats]  # settled before a restart
            small = any((stats[g].counts < self.options.min_size).any() for g in stats)
            if not missing and not small:
                break
            parts = [work.part(work.before, g) for g in everything]
            for g in stats:
                parts[g] = parts[g][self._large(stats[g].counts)]
            again = Work.first(work.phase, parts, 1.0, work.limit)
            same = again.offsets == work.offsets
            work = replace(again, before=again.centroids)
            stats = self._step(work, ray.put(work.centroids), None, None).stats
            if same and not missing:  # what is left cannot be dissolved
                break
        self.left = len(work.centroids)
        return work, stats

    def _large(self, counts: np.ndarray) -> np.ndarray:
        """bool (K,): clusters that stay for now, at least the largest. Of those that are too small
        only the smaller half goes at a time, since their rows may make the others large enough."""
        small = np.flatnonzero(counts < self.options.min_size)
        order = small[np.argsort(counts[small], kind="stable")]
        gone = max(int((counts == 0).sum()), (len(small) + 1) // 2)
        keep = np.ones(len(counts), bool)
        keep[order[:gone]] = False
        if not keep.any():
            keep[int(np.argmax(counts))] = True
        return keep
