"""The phases of a k-means fit, and the centroids with which each of them begins.

``sample``: k-means++ (random rows for more than 50,000 centroids), then Lloyd on a hash sample;
``split n`` and ``merge n``: breathing k-means on that sample; ``all``: Lloyd on all rows until they
settle. Given centroids, or few rows per centroid: ``all`` only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wcl_ray.kmeans.lloyd import Stats
from wcl_ray.kmeans.seeding import plus_plus
from wcl_ray.kmeans.split_merge import grow, shrink
from wcl_ray.kmeans.state import Work
from wcl_ray.kmeans.validate import Data, Options
from wcl_ray.kmeans.worker_group import WorkerGroup

SEEDS = 5  # sampled rows per centroid for k-means++
SEED_BYTES = 512 << 20  # of that sample at the coordinator
MOST_SEEDED = 50_000  # centroids for which k-means++, of 10 K² d operations, is worth its time
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
        return Work.first(name, parts, 1.0, options.iterations)

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
        """k-means++ on a hash sample, sorted by id so that shards do not matter; above MOST_SEEDED
        any of its rows."""
        rows, d = self.data.rows, self.data.dimensions
        wanted = min(SEEDS * k, max(2 * k, SEED_BYTES // (4 * d)))
        if k > MOST_SEEDED:
            wanted = k + k // 10
        share = 1.0 if 2 * wanted > rows else wanted / rows
        while True:
            parts = self.workers.ask("sample", share, self.data.exponent, d)
            ids = np.concatenate([part[0] for part in parts])
            if len(ids) >= k or share >= 1:
                break
            share = min(1.0, 2 * share)
        x = np.concatenate([part[1] for part in parts])[np.argsort(ids)]
        rng = np.random.default_rng([self.options.seed, k])
        if k > MOST_SEEDED:
            return x[rng.choice(len(x), k, replace=False)]
        return plus_plus(x, k, rng)
