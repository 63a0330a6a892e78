"""The phases of a k-means fit, and the centroids with which each of them begins.

``sample``: k-means++, then Lloyd on a hash sample; ``split n`` and ``merge n``: breathing k-means
on that sample; ``all``: Lloyd on all rows until they settle. With two levels: ``coarse``, then
``fine`` inside each coarse cluster, then ``all``. Given centroids: ``all`` only.
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

FLAT = 1e15  # N · K · d above which a fit has two levels by default
SEEDS = 5  # sampled rows per centroid for k-means++
SEED_BYTES = 512 << 20  # of that sample at the coordinator
LEAST = 1000  # rows of the sample of the first phases
MOST_SHARE, FEW = 0.25, 12  # the sample is at most this share of the rows, or FEW per centroid
SPARSE = 30  # rows per centroid below which the fit begins with all rows: FEW would save little
BRIEF = ("sample", "split", "merge")  # phases with a fixed number of iterations, on the sample
BREATHE_MOST = 20_000  # centroids that the coordinator can compare with each other


@dataclass(frozen=True)
class Phases:
    """Plans the phases of one fit."""

    workers: WorkerGroup
    options: Options
    data: Data

    def names(self, given: bool) -> list[str]:
        """Names of all phases, in order; ``given``: the initial centroids are given."""
        options, data = self.options, self.data
        size = float(data.rows) * max(options.ks) * data.dimensions
        two_level = (size > FLAT) if options.two_level is None else options.two_level
        if two_level and len(options.ks) == 1 and options.ks[0] >= 4 and not given:
            return ["coarse", "fine", "all"]
        if not options.sample or given or data.rows < SPARSE * max(options.ks):
            return ["all"]
        cycles = options.split_merge if 1 < max(options.ks) <= BREATHE_MOST else ()
        breathing = [f"{kind} {i + 1}" for i in range(len(cycles)) for kind in ("split", "merge")]
        return ["sample", *breathing, "all"]

    def enter(
        self, name: str, work: Work | None, stats: dict[int, Stats], init: list[np.ndarray] | None
    ) -> Work:
        """A phase before its first step.

        Args:
            work, stats: of the phase before; None and {} if there is none.
            init: given initial centroids, float32 (K, d) per granularity, or None.
        """
        options = self.options
        if name == "coarse":
            k = round(math.sqrt(options.ks[0]))
            return Work.first(name, [self._seed(k)], 1.0, min(5, options.iterations))
        if name == "fine":
            assert work is not None
            return self._fine(work, stats[0])
        if work is None:
            parts = init or [self._seed(k) for k in options.ks]
        else:
            parts = [work.part(work.centroids, g) for g in range(len(options.ks))]
        kind, _, cycle = name.partition(" ")
        if kind in BRIEF:
            share = self._share()
            if kind == "split":
                parts = self._split(parts, stats, int(cycle) - 1, share)
            elif kind == "merge":
                parts = [
                    shrink(part, stats[g].counts, min(options.ks[g], len(part)), options.spherical)
                    for g, part in enumerate(parts)
                ]
            limit = options.sample_iterations if kind == "sample" else 2
            return Work.first(name, parts, share, limit)
        limit = options.refine if work is not None and work.groups else options.iterations
        return Work.first(name, parts, 1.0, limit)

    def _share(self) -> float:
        """Share of the rows in the sample of the first phases. It is limited because with few rows
        per centroid the sample would cost as much as all rows."""
        k, rows = max(self.options.ks), self.data.rows
        wanted = min(self.options.sample * k, max(MOST_SHARE * rows, FEW * k))
        share = max(wanted, LEAST) / rows
        return share if share < 0.7 else 1.0

    def _split(
        self, parts: list[np.ndarray], stats: dict[int, Stats], cycle: int, share: float
    ) -> list[np.ndarray]:
        """Split the cycle's share of the centroids; no more centroids than sampled rows."""
        options, grown = self.options, []
        for g, part in enumerate(parts):
            most = int(share * self.data.rows) - len(part)
            m = max(0, min(max(1, round(options.split_merge[cycle] * len(part))), most))
            rng = np.random.default_rng([options.seed, len(part), cycle])
            grown.append(grow(part, stats[g], m, options.spherical, rng))
        return grown

    def _seed(self, k: int) -> np.ndarray:
        """k-means++ on a hash sample, sorted by id so that shards do not matter."""
        x, _ = self._sample(k, None)
        return plus_plus(x, k, np.random.default_rng([self.options.seed, k]))

    def _sample(self, k: int, coarse: Any) -> tuple[np.ndarray, np.ndarray]:
        """A hash sample of at least k rows: float32 (n, d), and their clusters int32 (n,)."""
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

    def _fine(self, work: Work, stats: Stats) -> Work:
        """The phase ``fine``: each coarse cluster gets centroids in proportion to its rows."""
        coarse = work.before
        assert coarse is not None
        coarse = np.ascontiguousarray(coarse[stats.counts > 0])
        counts = stats.counts[stats.counts > 0]
        x, group = self._sample(self.options.ks[0], ray.put(coarse))
        parts, groups = [], [0]
        for c, k in enumerate(allot(counts, self.options.ks[0])):
            rng = np.random.default_rng([self.options.seed, int(k), c])
            rows = x[group == c]
            parts.append(plus_plus(rows, int(k), rng) if len(rows) else coarse[c : c + 1])
            groups.append(groups[-1] + len(parts[-1]))
        fine = Work.first("fine", [np.concatenate(parts)], 1.0, self.options.iterations)
        return replace(fine, coarse=coarse, groups=tuple(groups))
