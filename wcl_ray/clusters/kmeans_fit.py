"""The coordinator of a k-means fit: checks, first centroids, phases of Lloyd's iterations."""

from __future__ import annotations

import hashlib
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import ray

from wcl_ray.clusters.breathe import grow, shrink
from wcl_ray.clusters.crew import Crew
from wcl_ray.clusters.kmeans_state import Iteration, Work, load_work, save_work
from wcl_ray.clusters.lloyd import BITS, Stats, exponent_of
from wcl_ray.clusters.seeding import allot, plus_plus, update
from wcl_ray.clusters.shard import Partial, Scan, Step
from wcl_ray.errors import UserError
from wcl_ray.storage import Folder

FLAT = 1e15  # N · K · d above which two levels are the default
SEEDS = 20  # sampled rows a centroid for k-means++
SEED_BYTES = 512 << 20  # of that sample at the coordinator
LARGEST = 1e15  # magnitude of values
BRIEF = ("sample", "split", "merge")  # phases on a sample, of a fixed number of iterations
BREATHE_MOST = 20_000  # centroids that the coordinator compares with each other
NOISE = 1e-6  # relative rise of the objective that float32 centroids explain


@dataclass(frozen=True)
class Options:
    """What changes the result of a fit; see :class:`wcl_ray.clusters.kmeans.KMeans`."""

    ks: tuple[int, ...]
    spherical: bool
    iterations: int
    sample: int
    sample_iterations: int
    breathe: tuple[float, ...]
    tolerance: float
    settled: float
    min_size: int
    two_level: bool | None
    refine: int
    seed: int


@dataclass
class Data:
    """What the coordinator knows of the rows."""

    rows: int
    dimensions: int
    exponent: int
    fingerprint: str
    warnings: list[str] = field(default_factory=list)


def look(crew: Crew, options: Options) -> Data:
    """Check the rows of all shards and put them on the grid.

    Raises:
        UserError: no rows, fewer than k, different dimensions, values that are not finite,
            too large or too small, duplicate ids, or all rows equal.
    """
    scans: list[Scan] = crew.ask("scan")
    rows = sum(scan.rows for scan in scans)
    widths = sorted({scan.dimensions for scan in scans if scan.rows})
    if rows == 0:
        raise UserError("k-means: there are no vectors")
    if len(widths) > 1:
        raise UserError(f"k-means: the vectors have different lengths: {widths}")
    check_finite(scans)
    most = max(options.ks)
    if rows < most:
        raise UserError(f"k-means: k = {most} is more than the {rows} vectors there are")
    twice = crew.duplicates()
    if len(twice):
        some = ", ".join(str(i) for i in twice[:5])
        raise UserError(
            f"k-means: {len(twice)} ids occur more than once ({some}); every row needs its own"
        )
    d, largest = widths[0], max(scan.largest for scan in scans)
    if 0 < largest < 1 / LARGEST or largest > LARGEST:
        raise UserError(
            f"k-means: the largest value of the vectors is {largest:.3g}, whose square is no "
            "float32; scale the vectors"
        )
    exponent = exponent_of(largest)
    whole: Stats = crew.total(8 * d, "totals", exponent, d)
    low, high = np.stack(crew.ask("bounds", exponent, d)).transpose(1, 0, 2)
    if (high.max(0) - low.min(0) <= 2.0 ** (exponent - BITS)).all():  # one step of the grid
        what = "point the same way" if options.spherical else "are equal"
        raise UserError(f"k-means: all {rows} vectors {what}, there is nothing to cluster")
    digest = hashlib.sha256(whole.sums.tobytes() + whole.squares.tobytes())
    mark = sum(scan.mark for scan in scans) % 2**64
    digest.update(repr((rows, d, mark, options)).encode())
    data = Data(rows, d, exponent, digest.hexdigest()[:24])
    zeros = sum(scan.zeros for scan in scans)
    if zeros and options.spherical:
        data.warnings.append(f"{zeros} vectors are zero and have no direction")
    if rows < 39 * most:
        data.warnings.append(f"k = {most} leaves {rows / most:.1f} rows a cluster; 39 are advised")
    return data


def check_finite(scans: list[Scan]) -> None:
    """Raise a UserError that counts and names the rows with NaN or infinite values."""
    bad = [(number, scan) for number, scan in enumerate(scans) if scan.bad]
    if bad:
        where = ", ".join(f"{scan.bad} in shard {number}" for number, scan in bad[:8])
        ids = [i for _, scan in bad for i in scan.bad_ids][:5]
        total = sum(scan.rows for scan in scans)
        raise UserError(
            f"k-means: {sum(scan.bad for _, scan in bad)} of {total} vectors hold NaN or infinite "
            f"values ({where}), the first with ids {', '.join(map(str, ids))}; leave them out or "
            "mend what made them"
        )


class Fit:
    """One fit.

    Args:
        progress: called with each iteration.
        folder: of the checkpoint, or None.
    """

    def __init__(
        self,
        crew: Crew,
        options: Options,
        data: Data,
        folder: Folder | None,
        progress: Callable[[Iteration], None] | None,
    ) -> None:
        self.crew, self.options, self.data = crew, options, data
        self.folder, self.progress = folder, progress
        self.history: list[Iteration] = []
        self.steps = 0
        self.rose = 0

    def run(self, init: list[np.ndarray] | None) -> tuple[Work, dict[int, Stats]]:
        """All phases, from the checkpoint if there is one.

        Args:
            init: float32 (K, d) per granularity, to start from; None: k-means++.

        Returns:
            The last phase, whose ``before`` are the centroids the labels belong to, and the stats.
        """
        phases = self._phases(given=init is not None)
        found = None
        if self.folder is not None:
            found = load_work(self.folder, self._mark(init), self.data.dimensions)
        work: Work | None = None
        if found is not None:
            work, self.history = found
        stats: dict[int, Stats] = {}
        for name in phases:
            if work is not None and phases.index(work.phase) > phases.index(name):
                continue
            if work is None or work.phase != name:
                work = self._enter(name, work, stats, init)
            stats = self._iterate(work, self._mark(init))
        assert work is not None
        return self._finish(work, stats)

    def warnings(self) -> list[str]:
        """What was odd, for people."""
        found = list(self.data.warnings)
        if self.rose:
            found.append(f"the objective rose in {self.rose} iterations")
        most = max((row.empty for row in self.history), default=0)
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

    def _phases(self, given: bool) -> list[str]:
        o, data = self.options, self.data
        size = float(data.rows) * max(o.ks) * data.dimensions
        two = (size > FLAT) if o.two_level is None else o.two_level
        if two and len(o.ks) == 1 and o.ks[0] >= 4 and not given:
            return ["coarse", "fine"] + (["all"] if o.refine else [])
        if not o.sample or given:
            return ["all"]
        cycles = o.breathe if 1 < max(o.ks) <= BREATHE_MOST else ()
        brief = [f"{way} {i + 1}" for i in range(len(cycles)) for way in ("split", "merge")]
        return ["sample", *brief, "all"]

    def _enter(
        self, name: str, work: Work | None, stats: dict[int, Stats], init: list[np.ndarray] | None
    ) -> Work:
        """The first step of a phase, from the last one of the phase before."""
        o = self.options
        if name == "coarse":
            count = round(math.sqrt(o.ks[0]))
            return self._work(name, [self._seed(count)], 1.0, min(5, o.iterations))
        if name == "fine":
            assert work is not None
            return self._inside(work, stats[0])
        if work is None:
            parts = init or [self._seed(k) for k in o.ks]
        else:
            parts = [work.part(work.centroids, g) for g in range(len(o.ks))]
        way, _, cycle = name.partition(" ")
        if way in BRIEF:
            share = o.sample * max(o.ks) / self.data.rows
            share = share if share < 0.7 else 1.0
            if way == "split":
                parts = self._grown(parts, stats, o.breathe[int(cycle) - 1], share)
            elif way == "merge":
                parts = [
                    shrink(part, stats[g].counts, min(o.ks[g], len(part)), o.spherical)
                    for g, part in enumerate(parts)
                ]
            return self._work(name, parts, share, o.sample_iterations if way == "sample" else 2)
        limit = o.refine if work is not None and work.groups else o.iterations
        return self._work(name, parts, 1.0, limit)

    def _grown(
        self, parts: list[np.ndarray], stats: dict[int, Stats], more: float, share: float
    ) -> list[np.ndarray]:
        """Centroids with a share of them split."""
        o, found = self.options, []
        for g, part in enumerate(parts):
            free = int(share * self.data.rows) - len(part)
            m = max(0, min(max(1, round(more * len(part))), free))
            rng = np.random.default_rng([o.seed, len(part), len(self.history)])
            found.append(grow(part, stats[g], m, o.spherical, rng))
        return found

    def _work(self, phase: str, parts: list[np.ndarray], share: float, limit: int) -> Work:
        offsets = tuple(int(x) for x in np.cumsum([0] + [len(part) for part in parts]))
        centroids = np.ascontiguousarray(np.concatenate(parts), dtype=np.float32)
        return Work(phase, centroids, offsets, share, max(1, limit), tuple(range(len(parts))))

    def _seed(self, k: int) -> np.ndarray:
        """k-means++ on a hash sample; rows by id, so that shards leave no trace."""
        x, _ = self._sampled(k, None)
        return plus_plus(x, k, np.random.default_rng([self.options.seed, k]))

    def _sampled(self, k: int, coarse: Any) -> tuple[np.ndarray, np.ndarray]:
        rows, d = self.data.rows, self.data.dimensions
        wanted = min(SEEDS * k, max(2 * k, SEED_BYTES // (4 * d)))
        share = 1.0 if 2 * wanted > rows else wanted / rows
        while True:
            parts = self.crew.ask("sample", share, self.data.exponent, d, coarse)
            ids = np.concatenate([part[0] for part in parts])
            if len(ids) >= k or share >= 1:
                break
            share = min(1.0, 2 * share)
        order = np.argsort(ids)
        x = np.concatenate([part[1] for part in parts])[order]
        return x, np.concatenate([part[2] for part in parts])[order]

    def _inside(self, work: Work, stats: Stats) -> Work:
        """First centroids inside each coarse cluster, in proportion to its rows."""
        coarse = work.before
        assert coarse is not None
        coarse = np.ascontiguousarray(coarse[stats.counts > 0])
        counts = stats.counts[stats.counts > 0]
        x, group = self._sampled(self.options.ks[0], ray.put(coarse))
        parts, groups = [], [0]
        for c, k in enumerate(allot(counts, self.options.ks[0])):
            rng = np.random.default_rng([self.options.seed, int(k), c])
            own = x[group == c]
            parts.append(plus_plus(own, int(k), rng) if len(own) else coarse[c : c + 1])
            groups.append(groups[-1] + len(parts[-1]))
        fine = self._work("fine", [np.concatenate(parts)], 1.0, self.options.iterations)
        return replace(fine, coarse=coarse, groups=tuple(groups))

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
        size = 8 * len(work.centroids) * (self.data.dimensions + 2)
        return self.crew.total(size, "step", step, current, before, coarse)  # type: ignore[no-any-return]

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
                return work, stats
            parts, groups = [], work.groups
            for g in everything:
                own = work.part(work.before, g)
                if g in stats:
                    keep = self._large(stats[g].counts, groups)
                    own = own[keep]
                    if groups:
                        groups = tuple(int(x) for x in np.cumsum([0, *keep])[list(groups)])
                parts.append(own)
            again = self._work(work.phase, parts, 1.0, work.limit)
            same = again.offsets == work.offsets
            work = replace(again, coarse=work.coarse, groups=groups, before=again.centroids)
            coarse = None if work.coarse is None else ray.put(work.coarse)
            stats = self._step(work, ray.put(work.centroids), None, coarse).stats
            if same and not missing:  # what is left cannot be dissolved
                return work, stats

    def _large(self, counts: np.ndarray, groups: tuple[int, ...]) -> np.ndarray:
        """bool (K,): clusters that stay; of each coarse cluster (of all) at least the largest."""
        keep = counts >= self.options.min_size
        ends = groups or (0, len(counts))
        for start, stop in itertools.pairwise(ends):
            if stop > start and not keep[start:stop].any():
                keep[start + int(np.argmax(counts[start:stop]))] = True
        return keep
