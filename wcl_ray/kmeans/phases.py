"""The phases of a k-means fit, and with which centroids each of them begins.

``sample``: k-means++, then Lloyd on a hash sample; ``split n`` and ``merge n``: breathing there;
``all``: every row, until it has settled. With two levels: ``coarse``, then ``fine`` inside each
coarse cluster, then ``all``. Given centroids go to ``all`` at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray

from wcl_ray.kmeans.lloyd import Stats
from wcl_ray.kmeans.seeding import allot, plus_plus
from wcl_ray.kmeans.split_merge import grow, shrink
from wcl_ray.kmeans.state import Work
from wcl_ray.kmeans.validate import Data, Options
from wcl_ray.kmeans.worker_group import WorkerGroup

FLAT = 1e15  # N · K · d above which two levels are the default
SEEDS = 20  # sampled rows a centroid for k-means++
SEED_BYTES = 512 << 20  # of that sample at the coordinator
LEAST = 1000  # rows of the sample of the first phases
PART, FEW = 0.4, 12  # no more than this part of the rows, but this many a centroid
BRIEF = ("sample", "split", "merge")  # phases on a sample, of a fixed number of iterations
BREATHE_MOST = 20_000  # centroids that the coordinator compares with each other


@dataclass(frozen=True)
class Phases:
    """The plan of one fit."""

    workers: WorkerGroup
    options: Options
    data: Data

    def names(self, given: bool) -> list[str]:
        """Of all phases, in order; ``given``: first centroids are there."""
        o, data = self.options, self.data
        size = float(data.rows) * max(o.ks) * data.dimensions
        two = (size > FLAT) if o.two_level is None else o.two_level
        if two and len(o.ks) == 1 and o.ks[0] >= 4 and not given:
            return ["coarse", "fine", "all"]
        if not o.sample or given:
            return ["all"]
        cycles = o.split_merge if 1 < max(o.ks) <= BREATHE_MOST else ()
        brief = [f"{way} {i + 1}" for i in range(len(cycles)) for way in ("split", "merge")]
        return ["sample", *brief, "all"]

    def enter(
        self, name: str, work: Work | None, stats: dict[int, Stats], init: list[np.ndarray] | None
    ) -> Work:
        """The first step of a phase, from the last one of the phase before."""
        o = self.options
        if name == "coarse":
            count = round(math.sqrt(o.ks[0]))
            return Work.first(name, [self._seed(count)], 1.0, min(5, o.iterations))
        if name == "fine":
            assert work is not None
            return self._inside(work, stats[0])
        if work is None:
            parts = init or [self._seed(k) for k in o.ks]
        else:
            parts = [work.part(work.centroids, g) for g in range(len(o.ks))]
        way, _, cycle = name.partition(" ")
        if way in BRIEF:
            share = self._share()
            if way == "split":
                parts = self._grown(parts, stats, int(cycle) - 1, share)
            elif way == "merge":
                parts = [
                    shrink(part, stats[g].counts, min(o.ks[g], len(part)), o.spherical)
                    for g, part in enumerate(parts)
                ]
            return Work.first(name, parts, share, o.sample_iterations if way == "sample" else 2)
        limit = o.refine if work is not None and work.groups else o.iterations
        return Work.first(name, parts, 1.0, limit)

    def _share(self) -> float:
        """Share of the rows that the first phases work on. Where there are few rows a centroid, a
        large sample would cost as much as all of them."""
        k, rows = max(self.options.ks), self.data.rows
        wanted = min(self.options.sample * k, max(PART * rows, FEW * k))
        share = max(wanted, LEAST) / rows
        return share if share < 0.7 else 1.0

    def _grown(
        self, parts: list[np.ndarray], stats: dict[int, Stats], cycle: int, share: float
    ) -> list[np.ndarray]:
        """Centroids with a share of them split."""
        o, more, found = self.options, self.options.split_merge[cycle], []
        for g, part in enumerate(parts):
            free = int(share * self.data.rows) - len(part)
            m = max(0, min(max(1, round(more * len(part))), free))
            rng = np.random.default_rng([o.seed, len(part), cycle])
            found.append(grow(part, stats[g], m, o.spherical, rng))
        return found

    def _seed(self, k: int) -> np.ndarray:
        """k-means++ on a hash sample; rows by id, so that shards leave no trace."""
        x, _ = self._sampled(k, None)
        return plus_plus(x, k, np.random.default_rng([self.options.seed, k]))

    def _sampled(self, k: int, coarse: Any) -> tuple[np.ndarray, np.ndarray]:
        rows, d = self.data.rows, self.data.dimensions
        wanted = min(SEEDS * k, max(2 * k, SEED_BYTES // (4 * d)))
        share = 1.0 if 2 * wanted > rows else wanted / rows
        while True:
            parts = self.workers.ask("sample", share, self.data.exponent, d, coarse)
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
        fine = Work.first("fine", [np.concatenate(parts)], 1.0, self.options.iterations)
        return replace(fine, coarse=coarse, groups=tuple(groups))
