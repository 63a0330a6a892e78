"""k-means over shards on Ray actors: the same bits for any number of them.

    model = KMeans(1000).fit("s3://bucket/features/")     # Parquet, a Ray Dataset or an array
    model.centroids_, model.labels_, model.inertia_
    model.predict(other)

A fit starts with k-means++ on a sample, runs Lloyd's iterations on a hash sample of the rows, where
it also splits and merges clusters, then goes on with all rows until they have settled. All sums are
exact (:mod:`wcl_ray.kmeans.lloyd`) and every random choice depends on (id, seed), so
shards, their order and restarts leave no trace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import ray

from wcl_ray.errors import UserError
from wcl_ray.kmeans.fit import Fit
from wcl_ray.kmeans.lloyd import Stats, unit_rows
from wcl_ray.kmeans.nearest import KERNELS
from wcl_ray.kmeans.seeding import means, update, weighted_kmeans
from wcl_ray.kmeans.state import Iteration
from wcl_ray.kmeans.validate import Data, Options, check_finite, validate_input
from wcl_ray.kmeans.vectors import open_vectors
from wcl_ray.kmeans.worker import Step
from wcl_ray.kmeans.worker_group import WorkerGroup
from wcl_ray.storage import Folder


class KMeans:
    """Distributed k-means.

    Args:
        k: clusters; several numbers are several granularities, found in the same passes.
        spherical: rows and centroids of unit length (cosine similarity), else plain Euclidean.
        iterations: maximum passes over all rows.
        sample: rows a centroid in the iterations that come first (where these are more than 40 %
            of all rows: as many as that, and at least 12); 0: none, Lloyd's iterations start from
            k-means++ at once.
        tolerance: relative fall of the objective below which a phase ends.
        min_size: smaller clusters are dissolved at the end, each row going to the nearest that is
            left; 1 dissolves empty ones only.
        nested: cluster the rows at the largest k only, and its centroids for the smaller ones, so
            that every fine cluster lies inside one coarse cluster.
        seed: of everything random.
        actors, cpus, gpu: how many actors (0: what the cluster has), CPUs of each, a GPU each.
        kernel: gemm (matrix products of numpy), faiss or torch; auto: torch with gpu, else gemm.
        checkpoint: folder for the state after every iteration; a fit that finds one goes on.
        progress: called with every :class:`Iteration`.

    Attributes:
        centroids_: float32 (K, d), or a list of them for several k. K may be smaller than k where
            clusters were dissolved.
        inertia_: sum of squared distances to the centroids, or a list.
        counts_: int64 (K,), rows of each cluster, or a list.
        ids_: int64 (N,), increasing. labels_: int32 (N,), or (N, G) for several k, in that order;
            the rows of an array keep theirs. Gathered when first read: 12 bytes a row.
        history_: list of :class:`Iteration`. warnings_: what was odd, for people.

    Raises:
        UserError: k below 1, an unknown kernel.
    """

    def __init__(
        self,
        k: int | Sequence[int],
        *,
        spherical: bool = True,
        iterations: int = 20,
        sample: int = 32,
        tolerance: float = 1e-3,
        min_size: int = 1,
        nested: bool = False,
        seed: int = 0,
        actors: int = 0,
        cpus: float = 1.0,
        gpu: bool = False,
        kernel: Literal["auto", "gemm", "faiss", "torch"] = "auto",
        checkpoint: str | Folder | None = None,
        progress: Callable[[Iteration], None] | None = None,
    ) -> None:
        given = np.asarray(k)
        if given.ndim > 1 or given.dtype.kind not in "iu" or not given.size or given.min() < 1:
            raise UserError(f"k-means: k is a whole number from 1, or several, not {k!r}")
        self.ks = tuple(int(x) for x in np.atleast_1d(given))
        self._single = given.ndim == 0
        if kernel not in ("auto", *KERNELS):
            raise UserError(f"k-means: kernel is auto, {', '.join(KERNELS)}, not {kernel!r}")
        self._finest = int(np.argmax(self.ks)) if nested else None
        self._options = Options(
            ks=(max(self.ks),) if nested else self.ks,
            spherical=spherical,
            iterations=iterations,
            sample=sample,
            tolerance=tolerance,
            min_size=max(1, min_size),
            seed=seed,
        )
        self._group_options: dict[str, Any] = {
            "actors": actors,
            "cpus": cpus,
            "gpu": gpu,
            "spherical": spherical,
            "kernel": kernel if kernel != "auto" else "torch" if gpu else "gemm",
            "seed": seed,
        }
        self._folder = Folder(checkpoint) if isinstance(checkpoint, str) else checkpoint
        self._progress = progress
        self._parents: dict[int, np.ndarray] = {}
        self._gathered: tuple[np.ndarray, np.ndarray] | None = None

    def fit(
        self,
        source: Any,
        *,
        init: Any = None,
        labels: tuple[np.ndarray, np.ndarray] | None = None,
        column: str | None = None,
        id_column: str | None = None,
        endpoint: str | None = None,
    ) -> KMeans:
        """Cluster the rows of a source.

        Args:
            source: an array (N, d), a Ray Dataset, or Parquet files (a folder, a file or a glob,
                local or s3://).
            init: float32 (k, d) to start from, or a list of them.
            labels: start from the means of given clusters: ids int64 (M,), increasing, and labels
                int32 (M,) or (M, G), 0 … k - 1, -1 = none.
            column: with the vectors, id_column: with the ids (see :func:`open_vectors`).

        Raises:
            UserError: see :func:`wcl_ray.kmeans.validate.validate_input`; a checkpoint of other
                vectors or options; ``init`` or ``labels`` that do not fit.
        """
        workers = WorkerGroup(
            open_vectors(source, column, id_column, endpoint), **self._group_options
        )
        try:
            data = validate_input(workers, self._options)
            start = self._start(workers, data, init, labels)
            fit = Fit(workers, self._options, data, self._folder, self._progress)
            work, stats = fit.run(start)
            self.history_, self.warnings_ = fit.history, fit.warnings()
            self._exponent = data.exponent
            step = Step(0, 1.0, work.offsets, (), data.exponent)
            assert work.before is not None
            # the labels belong to these centroids, not to the means after them
            assigned = ray.put(work.before)
            parts = [work.part(work.before, g).copy() for g in range(len(self._options.ks))]
            self._refs = [workers.keep("labels", step, g, assigned) for g in range(len(parts))]
        finally:
            workers.stop()
        self._gathered = None
        self._publish(parts, [stats[g] for g in range(len(parts))])
        return self

    def assign(
        self,
        source: Any,
        *,
        column: str | None = None,
        id_column: str | None = None,
        endpoint: str | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Nearest centroid of each row of a source (as for :meth:`fit`).

        Returns:
            ids int64 (M,), increasing, and labels int32 (M,), or (M, G) for several k.

        Raises:
            UserError: not fitted yet, values that are not finite, other dimensions.
        """
        if not hasattr(self, "centroids_"):
            raise UserError("k-means: fit comes before predict")
        wanted: list[np.ndarray] = [self.centroids_] if self._single else self.centroids_
        if self._finest is not None:
            wanted = [wanted[self._finest]]
        workers = WorkerGroup(
            open_vectors(source, column, id_column, endpoint), **self._group_options
        )
        try:
            scans = workers.ask("scan")
            check_finite(scans)
            d = wanted[0].shape[1]
            other = [scan.dimensions for scan in scans if scan.rows and scan.dimensions != d]
            if other:
                raise UserError(
                    f"k-means: the vectors have {other[0]} dimensions, the centroids {d}"
                )
            offsets = tuple(int(x) for x in np.cumsum([0] + [len(c) for c in wanted]))
            step = Step(0, 1.0, offsets, (), self._exponent)
            centroids = ray.put(np.concatenate(wanted))
            refs = [workers.keep("labels", step, g, centroids) for g in range(len(wanted))]
            return self._gather(refs)
        finally:
            workers.stop()

    def predict(self, source: Any, **where: Any) -> np.ndarray:
        """The labels of :meth:`assign` alone."""
        return self.assign(source, **where)[1]

    @property
    def labels_(self) -> np.ndarray:
        return self._own()[1]

    @property
    def ids_(self) -> np.ndarray:
        return self._own()[0]

    def _own(self) -> tuple[np.ndarray, np.ndarray]:
        if self._gathered is None:
            self._gathered = self._gather(self._refs)
        return self._gathered

    def _gather(self, refs: list[list[Any]]) -> tuple[np.ndarray, np.ndarray]:
        columns, ids = [], np.empty(0, np.int64)
        for shards in refs:
            parts = ray.get(shards)
            ids = np.concatenate([part[0] for part in parts])
            columns.append(np.concatenate([part[1] for part in parts]))
        order = np.argsort(ids, kind="stable")
        if self._finest is not None:  # nested: from the finest to all
            columns = [self._parents[k][columns[0]] for k in self.ks]
        labels = columns[0] if self._single else np.stack(columns, 1)
        return ids[order], labels[order]

    def _start(
        self,
        workers: WorkerGroup,
        data: Data,
        init: Any,
        labels: tuple[np.ndarray, np.ndarray] | None,
    ) -> list[np.ndarray] | None:
        """First centroids that were given, or those of given clusters."""
        ks = self._options.ks
        if init is not None:
            given = [np.asarray(init, np.float32)] if self._single else list(init)
            shapes = [np.shape(part) for part in given]
            if shapes != [(k, data.dimensions) for k in ks]:
                raise UserError(
                    f"k-means: init has shapes {shapes}, k and the vectors ask for "
                    f"{[(k, data.dimensions) for k in ks]}"
                )
            parts = [np.asarray(part, np.float32) for part in given]
            if not all(np.isfinite(part).all() for part in parts):
                raise UserError("k-means: init holds NaN or infinite values")
            return [unit_rows(part) for part in parts] if self._options.spherical else parts
        if labels is None:
            return None
        ids, table = labels[0], np.atleast_2d(np.asarray(labels[1]).T).T
        if len(table) != len(ids) or table.shape[1] != len(ks) or (np.diff(ids) <= 0).any():
            raise UserError("k-means: labels are increasing ids and one label per id and k")
        known, starts = ray.put(ids), []
        for g, k in enumerate(ks):
            column = np.ascontiguousarray(table[:, g], dtype=np.int32)
            if column.max(initial=-1) >= k:
                raise UserError(f"k-means: labels go up to {column.max()}, but k is {k}")
            stats: Stats = workers.total(
                "label_stats", data.exponent, data.dimensions, k, known, ray.put(column)
            )
            if not stats.counts.any():
                raise UserError("k-means: labels name none of the ids of the vectors")
            starts.append(update(stats, self._options.spherical)[0])
        return starts

    def _publish(self, parts: list[np.ndarray], stats: list[Stats]) -> None:
        """Set the public attributes; nested: cluster the finest centroids for the smaller k."""
        if self._finest is not None:
            fine, own = parts[0], stats[0]
            parts, stats, o = [], [], self._options
            for k in self.ks:
                if k >= len(fine):
                    parent = np.arange(len(fine), dtype=np.int32)
                else:
                    parent = weighted_kmeans(fine, own.counts, k, o.spherical, o.seed)
                    parent = np.unique(parent, return_inverse=True)[1].astype(np.int32)
                merged = own.merged(parent)
                centroids = fine if k >= len(fine) else means(merged, o.spherical)[0]
                self._parents[k] = parent
                parts.append(centroids.astype(np.float32))
                stats.append(merged)
        inertia = [own.objective(part) for own, part in zip(stats, parts, strict=True)]
        counts = [own.counts for own in stats]
        self.centroids_: Any = parts[0] if self._single else parts
        self.inertia_: Any = inertia[0] if self._single else inertia
        self.counts_: Any = counts[0] if self._single else counts
