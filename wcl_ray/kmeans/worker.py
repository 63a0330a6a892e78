"""A shard of the rows in one process: the class of the k-means actors."""

from __future__ import annotations

import functools
import operator
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray

from wcl_ray.data.split import uniform
from wcl_ray.errors import UserError
from wcl_ray.kmeans.lloyd import Stats, square_norms, to_grid, unit_rows
from wcl_ray.kmeans.nearest import BLOCK, KERNELS, TILE, Nearest, torch_nearest
from wcl_ray.kmeans.vectors import Piece, duplicated

TOTALS = 64  # clusters whose sums make the fingerprint of the rows


@dataclass(frozen=True)
class Step:
    """Describes one assignment of the rows to centroids, so that it can be repeated.

    Attributes:
        number: counts the steps of a fit; the same number requests the same answer.
        share: of the rows, chosen by a hash of their ids.
        offsets: granularity g has the concatenated centroids offsets[g] … offsets[g + 1] - 1.
        active: granularities to assign, those that have not settled.
        exponent: of the grid (:mod:`wcl_ray.kmeans.lloyd`).
    """

    number: int
    share: float
    offsets: tuple[int, ...]
    active: tuple[int, ...]
    exponent: int


@dataclass
class Partial:
    """A shard's answer to a step: stats and number of moved rows per active granularity, number of
    rows, seconds per shard, and seconds that the bare matrix products would take."""

    stats: dict[int, Stats]
    moved: dict[int, int]
    rows: int
    seconds: list[float]
    floor: list[float]

    def __add__(self, other: Partial) -> Partial:
        return Partial(
            {g: stats + other.stats[g] for g, stats in self.stats.items()},
            {g: moved + other.moved[g] for g, moved in self.moved.items()},
            self.rows + other.rows,
            self.seconds + other.seconds,
            self.floor + other.floor,
        )


@dataclass(frozen=True)
class Scan:
    """Facts about a shard: number of rows, dimensions, largest magnitude, rows with values that are
    not finite (and names of the first ones), a hash of the ids, and zero rows."""

    rows: int
    dimensions: int
    largest: float
    bad: int
    bad_names: tuple[str, ...]
    mark: int
    zeros: int


class Rows:
    """Rows on the grid, their labels, and the running sums of their clusters."""

    def __init__(
        self, ids: np.ndarray, x: np.ndarray, squares: np.ndarray, device: str | None
    ) -> None:
        self.ids, self.x, self.squares = ids, x, squares
        self.on_device: Any = x
        if device is not None:
            import torch

            self.on_device = torch.from_numpy(x).to(device)
        self.labels: dict[int, np.ndarray] = {}
        self.stats: dict[int, Stats] = {}

    def relabel(self, g: int, labels: np.ndarray, k: int) -> int:
        """Set new labels and update the sums; returns the number of rows that changed."""
        old = self.labels.get(g)
        if old is None or self.stats[g].sums.shape[0] != k:
            old = np.full(len(labels), -1, np.int32)
            self.stats[g] = Stats.zeros(k, self.x.shape[1])
        changed = np.flatnonzero(labels != old)
        device = self.on_device if self.on_device is not self.x else None
        if 2 * len(changed) > len(labels):  # cheaper to sum all rows again; the same bits
            self.stats[g] = Stats.zeros(k, self.x.shape[1])
            self.stats[g].add_rows(self.x, self.squares, np.arange(len(labels)), labels, 1, device)
        else:
            self.stats[g].add_rows(self.x, self.squares, changed, old[changed], -1, device)
            self.stats[g].add_rows(self.x, self.squares, changed, labels[changed], 1, device)
        self.labels[g] = labels
        return len(changed)


class KMeansWorker:
    """Holds the rows of a shard, normalised and on the grid, and answers the calls of a fit.

    Args:
        spherical: rows and centroids have unit length.
        kernel: gemm, faiss or torch. threads: of the kernel. seed: of the sampling hash.
        device: of the kernel torch.
    """

    def __init__(
        self, spherical: bool, kernel: str, threads: int, seed: int, device: str = "cpu"
    ) -> None:
        self.spherical, self.kernel, self.threads, self.seed = spherical, kernel, threads, seed
        self.device = device if kernel == "torch" else None
        self.pieces: list[Piece] = []
        self.loaded: tuple[np.ndarray, np.ndarray] | None = None
        self.all_rows: Rows | None = None
        self.sampled: tuple[float, Rows] | None = None
        self.answer: tuple[int, Partial] | None = None
        self.rates: dict[int, float] = {}

    def node(self) -> str:
        """Id of the node this runs on."""
        return str(ray.get_runtime_context().get_node_id())

    def call(self, pieces: list[Piece], method: str, *arguments: Any) -> Any:
        """Call a method. The pieces to read the rows from come with every call, not with the
        constructor, whose references Ray may have lost when it restarts an actor."""
        self.pieces = pieces
        return getattr(self, method)(*arguments)

    def _load(self) -> tuple[np.ndarray, np.ndarray]:
        """ids int64 (n,), and vectors float32 (n, d) as read, or later those on the grid."""
        if self.loaded is None:
            parts = [part for part in (piece.load() for piece in self.pieces) if len(part[0])]
            widths = sorted({x.shape[1] for _, x in parts})
            if len(widths) > 1:
                raise UserError(f"the vectors have different lengths: {widths}")
            ids = [ids for ids, _ in parts] or [np.empty(0, np.int64)]
            xs = [x for _, x in parts] or [np.empty((0, 0), np.float32)]
            self.loaded = np.concatenate(ids), xs[0] if len(xs) == 1 else np.concatenate(xs)
        return self.loaded

    def scan(self) -> Scan:
        """Check the rows as read."""
        ids, x = self._load()
        finite = np.isfinite(x).all(1) if x.size else np.ones(len(x), bool)
        bad = ids[~finite]
        names = [name for piece in self.pieces for name in piece.names(bad[:5])] if len(bad) else []
        largest = 0.0
        if x.size and not len(bad):
            largest = 1.0 if self.spherical else float(np.abs(x).max())
        with np.errstate(over="ignore"):
            mark = int((uniform(ids, 0) * 2**53).astype(np.uint64).sum(dtype=np.uint64))
        return Scan(
            rows=len(ids),
            dimensions=x.shape[1] if len(ids) else 0,
            largest=largest,
            bad=len(bad),
            bad_names=tuple(names[:5]),
            mark=mark,
            zeros=int((x == 0).all(1).sum()) if x.size else 0,
        )

    def duplicates(self, parts: int) -> list[np.ndarray]:
        """Ids in ``parts`` parts by a hash, so that equal ids of any shards share a part."""
        ids, _ = self._load()
        bucket = (uniform(ids, 1) * parts).astype(np.int64)
        return [ids[bucket == i] for i in range(parts)]

    def duplicated(self, *parts: np.ndarray) -> np.ndarray:
        """Ids that occur more than once in the same part of all shards: int64, sorted."""
        return duplicated(parts)

    def add(self, *parts: Any) -> Any:
        """Add up the answers of workers."""
        return functools.reduce(operator.add, parts)

    def totals(self, exponent: int, d: int) -> Stats:
        """Stats of all rows, in TOTALS clusters by a hash of the id, few enough for exact sums."""
        rows = self._rows(1.0, exponent, d)
        stats = Stats.zeros(TOTALS, d)
        bucket = (uniform(rows.ids, 2) * TOTALS).astype(np.int32)
        stats.add_rows(rows.x, rows.squares, np.arange(len(rows.ids)), bucket, 1)
        return stats

    def bounds(self, exponent: int, d: int) -> np.ndarray:
        """Smallest and largest value of each dimension: float32 (2, d)."""
        x = self._rows(1.0, exponent, d).x
        return np.stack([x.min(0, initial=np.inf), x.max(0, initial=-np.inf)])

    def sample(self, share: float, exponent: int, d: int) -> tuple[np.ndarray, np.ndarray]:
        """A hash sample: ids and vectors."""
        rows = self._rows(1.0, exponent, d)
        chosen = uniform(rows.ids, self.seed + 104729) < share
        return rows.ids[chosen], rows.x[chosen]

    def label_stats(
        self, exponent: int, d: int, k: int, ids: np.ndarray, labels: np.ndarray
    ) -> Stats:
        """Stats of given clusters: labels[i] is that of the row with id ids[i] (increasing). Rows
        with label -1 or no label are in none."""
        rows = self._rows(1.0, exponent, d)
        row_labels = np.full(len(rows.ids), -1, np.int32)
        if len(ids):
            position = np.searchsorted(ids, rows.ids).clip(max=len(ids) - 1)
            labelled = ids[position] == rows.ids
            row_labels[labelled] = labels[position[labelled]]
        stats = Stats.zeros(k, d)
        stats.add_rows(rows.x, rows.squares, np.arange(len(row_labels)), row_labels, 1)
        return stats

    def step(self, step: Step, centroids: np.ndarray, before: np.ndarray | None) -> Partial:
        """Assign the rows to the nearest centroids.

        Args:
            centroids: float32 (ΣK, d), of all granularities.
            before: those of the step before, None at the first step of a phase. A restarted actor
                computes the labels of that step again, so that it counts the same moved rows.
        """
        if self.answer is not None and self.answer[0] == step.number:
            return self.answer[1]  # repeated after a lost reply
        started = time.perf_counter()
        rows = self._rows(step.share, step.exponent, centroids.shape[1])
        known = self.answer is not None and self.answer[0] == step.number - 1
        if before is None or not known:
            for g in step.active:
                rows.labels.pop(g, None)
        if before is not None and not known:
            self._assign(rows, step, before)
        moved = self._assign(rows, step, centroids)
        seconds = time.perf_counter() - started
        products = sum(step.offsets[g + 1] - step.offsets[g] for g in step.active)
        work = 2.0 * len(rows.ids) * products * centroids.shape[1]
        partial = Partial(
            stats={g: rows.stats[g].copy() for g in step.active},
            moved=moved,
            rows=len(rows.ids),
            seconds=[seconds],
            floor=[work / self._rate(centroids)],
        )
        self.answer = step.number, partial
        return partial

    def labels(self, step: Step, g: int, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """ids int64 (n,), and labels int32 (n,) of the last step over all rows, which is repeated
        after a restart."""
        rows = self._rows(1.0, step.exponent, centroids.shape[1])
        if g not in rows.labels:
            self._assign(rows, replace(step, active=(g,)), centroids)
        return rows.ids, rows.labels[g]

    def _assign(self, rows: Rows, step: Step, centroids: np.ndarray) -> dict[int, int]:
        moved = {}
        for g in step.active:
            part = centroids[step.offsets[g] : step.offsets[g + 1]]
            moved[g] = rows.relabel(g, self._nearest(part)(rows.on_device), len(part))
        return moved

    def _nearest(self, centroids: np.ndarray) -> Nearest:
        if self.device is not None:
            return torch_nearest(centroids, self.spherical, self.threads, self.device)
        return KERNELS[self.kernel](centroids, self.spherical, self.threads)

    def _rows(self, share: float, exponent: int, d: int) -> Rows:
        """The rows on the grid, or a hash sample of them."""
        if self.all_rows is None:
            ids, x = self._load()
            x = x if len(ids) else np.empty((0, d), np.float32)
            x = to_grid(unit_rows(x) if self.spherical else x, exponent)
            self.loaded = ids, x  # the vectors as read are not needed again
            self.all_rows = Rows(ids, x, square_norms(x, exponent), self.device)
        if share >= 1:
            return self.all_rows
        if self.sampled is None or self.sampled[0] != share:
            rows = self.all_rows
            chosen = uniform(rows.ids, self.seed) < share
            x, squares = rows.x[chosen], rows.squares[chosen]
            self.sampled = share, Rows(rows.ids[chosen], x, squares, self.device)
        return self.sampled[1]

    def _rate(self, centroids: np.ndarray) -> float:
        """Operations per second of the bare matrix product on this machine, measured once per k."""
        k, d = min(TILE, len(centroids)), centroids.shape[1]
        if k not in self.rates:
            a = np.ones((BLOCK, d), np.float32)
            b = np.ascontiguousarray(centroids[:k].T)
            out = np.empty((BLOCK, k), np.float32)
            times = []
            for _ in range(5):
                started = time.perf_counter()
                np.matmul(a, b, out=out)
                times.append(time.perf_counter() - started)
            self.rates[k] = 2.0 * BLOCK * k * d / max(min(times), 1e-9) * self.threads
        return self.rates[k]
