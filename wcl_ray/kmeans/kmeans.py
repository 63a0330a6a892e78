"""k-means over shards on Ray actors, bit for bit the same for any number of them.

    model = KMeans(1000).fit("s3://bucket/features/")     # Parquet, a Ray Dataset or an array
    model.centroids_, model.labels_, model.inertia_
    model.predict(other)

A fit starts with k-means++ on a sample (random rows for more than 50,000 centroids), runs Lloyd's
iterations on a hash sample of the rows, where it also splits and merges clusters, and continues
with all rows until they settle. All sums are exact (:mod:`wcl_ray.kmeans.lloyd`) and every random
choice depends on (id, seed), so the result does not depend on shards, their order or restarts.
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
        k: number of clusters; several numbers: several granularities, computed in the same passes.
        spherical: rows and centroids have unit length (cosine similarity), else plain Euclidean.
        iterations: maximum number of passes over all rows.
        sample: sampled rows per centroid in the first iterations, but at most a quarter of all rows
            or 12 per centroid, whichever is more, and at least 1,000; 0, or fewer than 30 rows per
            centroid: no sample, k-means++ and then all rows.
        tolerance: relative decrease of the objective below which a phase ends.
        min_size: smaller clusters are dissolved at the end, and their rows go to the nearest
            remaining cluster; 1 dissolves empty ones only.
        nested: cluster the rows at the largest k only, and its centroids for the smaller ones, so
            that every fine cluster lies inside one coarse cluster.
        seed: for all random choices.
        actors, cpus, gpu: number of actors (0: as many as the cluster has room for), CPUs of each,
            whether each takes a GPU.
        kernel: gemm (matrix products of numpy), faiss or torch; auto: torch with gpu, else gemm.
        checkpoint: folder for the state after every iteration; a later fit continues from it.
        progress: called with every :class:`Iteration`.

    Attributes:
        centroids_: float32 (K, d), or a list of them for several k. K is smaller than k if
            clusters were dissolved.
        inertia_: sum of squared distances to the centroids, or a list.
        counts_: int64 (K,), rows of each cluster, or a list.
        ids_: int64 (N,), increasing. labels_: int32 (N,), or (N, G) for several k, in the order of
            ids_, which for an array is that of its rows. Gathered when first read: 12 bytes a row.
        history_: list of :class:`Iteration`. warnings_: warnings to show the user.

    Raises:
        UserError: k below 1, an unknown kernel.
    """

    def __init__(
        self,
        k: int | Sequence[int],
        *,
        spherical: bool = True,
        iterations: int = 20,
        sample: int = 16,
        tolerance: float = 3e-3,
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
        ks = np.asarray(k)
        if ks.ndim > 1 or ks.dtype.kind not in "iu" or not ks.size or ks.min() < 1:
            raise UserError(f"k-means: k must be a positive integer, or several, not {k!r}")
        self.ks = tuple(int(x) for x in np.atleast_1d(ks))
        self._single = ks.ndim == 0
        if kernel not in ("auto", *KERNELS):
            raise UserError(f"k-means: kernel must be auto, {', '.join(KERNELS)}, not {kernel!r}")
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
        """Cluster the rows of a source; returns self.

        Args:
            source: an array (N, d), a Ray Dataset, or Parquet files (a folder, a file or a glob,
                local or s3://).
            init: initial centroids, float32 (k, d), or a list of them for several k.
            labels: clusters whose means are the initial centroids: ids int64 (M,), increasing, and
                labels int32 (M,) or (M, G), 0 … k - 1, -1 = none.
            column, id_column: of the vectors and the ids (see :func:`open_vectors`).
            endpoint: of the S3 storage, if it is not AWS.

        Raises:
            UserError: see :func:`wcl_ray.kmeans.validate.validate_input`; a checkpoint of other
                vectors or options; ``init`` or ``labels`` that do not match k or the vectors.
        """
        workers = WorkerGroup(
            open_vectors(source, column, id_column, endpoint), **self._group_options
        )
        try:
            data = validate_input(workers, self._options)
            initial = self._initial_centroids(workers, data, init, labels)
            fit = Fit(workers, self._options, data, self._folder, self._progress)
            work, stats = fit.run(initial)
            self.history_, self.warnings_ = fit.history, fit.warnings()
            self._exponent = data.exponent
            step = Step(0, 1.0, work.offsets, (), data.exponent)
            assert work.before is not None
            # labels are the nearest of these centroids, not of the means updated from them
            assigned = ray.put(work.before)
            centroids = [work.part(work.before, g).copy() for g in range(len(self._options.ks))]
            self._refs = [workers.keep("labels", step, g, assigned) for g in range(len(centroids))]
        finally:
            workers.stop()
        self._gathered = None
        self._publish(centroids, [stats[g] for g in range(len(centroids))])
        return self

    def assign(
        self,
        source: Any,
        *,
        column: str | None = None,
        id_column: str | None = None,
        endpoint: str | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Assign each row of a source (see :meth:`fit`) to its nearest centroid.

        Returns:
            ids int64 (M,), increasing, and labels int32 (M,), or (M, G) for several k.

        Raises:
            UserError: not fitted yet, values that are not finite, other dimensions.
        """
        if not hasattr(self, "centroids_"):
            raise UserError("k-means: call fit before predict")
        centroids: list[np.ndarray] = [self.centroids_] if self._single else self.centroids_
        if self._finest is not None:
            centroids = [centroids[self._finest]]
        workers = WorkerGroup(
            open_vectors(source, column, id_column, endpoint), **self._group_options
        )
        try:
            scans = workers.ask("scan")
            check_finite(scans)
            d = centroids[0].shape[1]
            widths = [scan.dimensions for scan in scans if scan.rows and scan.dimensions != d]
            if widths:
                raise UserError(
                    f"k-means: the vectors have {widths[0]} dimensions, the centroids {d}"
                )
            offsets = tuple(int(x) for x in np.cumsum([0] + [len(c) for c in centroids]))
            step = Step(0, 1.0, offsets, (), self._exponent)
            ref = ray.put(np.concatenate(centroids))
            refs = [workers.keep("labels", step, g, ref) for g in range(len(centroids))]
            return self._gather(refs)
        finally:
            workers.stop()

    def predict(self, source: Any, **columns: Any) -> np.ndarray:
        """The labels of :meth:`assign`, which takes the same arguments."""
        return self.assign(source, **columns)[1]

    @property
    def labels_(self) -> np.ndarray:
        """int32 (N,), or (N, G) for several k."""
        return self._ids_and_labels()[1]

    @property
    def ids_(self) -> np.ndarray:
        """int64 (N,), increasing."""
        return self._ids_and_labels()[0]

    def _ids_and_labels(self) -> tuple[np.ndarray, np.ndarray]:
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
        if self._finest is not None:  # nested: the finest labels give all others
            columns = [self._parents[k][columns[0]] for k in self.ks]
        labels = columns[0] if self._single else np.stack(columns, 1)
        return ids[order], labels[order]

    def _initial_centroids(
        self,
        workers: WorkerGroup,
        data: Data,
        init: Any,
        labels: tuple[np.ndarray, np.ndarray] | None,
    ) -> list[np.ndarray] | None:
        """``init``, or the means of the clusters of ``labels``; None if neither is given."""
        ks = self._options.ks
        if init is not None:
            parts = [np.asarray(init, np.float32)] if self._single else list(init)
            shapes = [np.shape(part) for part in parts]
            if shapes != [(k, data.dimensions) for k in ks]:
                raise UserError(
                    f"k-means: init has shapes {shapes}; k and the vectors require "
                    f"{[(k, data.dimensions) for k in ks]}"
                )
            parts = [np.asarray(part, np.float32) for part in parts]
            if not all(np.isfinite(part).all() for part in parts):
                raise UserError("k-means: init has NaN or infinite values")
            return [unit_rows(part) for part in parts] if self._options.spherical else parts
        if labels is None:
            return None
        ids, table = labels[0], np.atleast_2d(np.asarray(labels[1]).T).T
        if len(table) != len(ids) or table.shape[1] != len(ks) or (np.diff(ids) <= 0).any():
            raise UserError(
                "k-means: labels must be increasing ids, and one label per id and per k"
            )
        ids_ref, centroids = ray.put(ids), []
        for g, k in enumerate(ks):
            column = np.ascontiguousarray(table[:, g], dtype=np.int32)
            if column.max(initial=-1) >= k:
                raise UserError(f"k-means: labels go up to {column.max()}, but k is {k}")
            stats: Stats = workers.total(
                "label_stats", data.exponent, data.dimensions, k, ids_ref, ray.put(column)
            )
            if not stats.counts.any():
                raise UserError("k-means: no id of labels is an id of the vectors")
            centroids.append(update(stats, self._options.spherical)[0])
        return centroids

    def _publish(self, centroids: list[np.ndarray], stats: list[Stats]) -> None:
        """Set the public attributes; nested: cluster the finest centroids for the smaller k."""
        if self._finest is not None:
            fine, fine_stats, options = centroids[0], stats[0], self._options
            centroids, stats = [], []
            for k in self.ks:
                if k >= len(fine):
                    parent = np.arange(len(fine), dtype=np.int32)
                else:
                    parent = weighted_kmeans(
                        fine, fine_stats.counts, k, options.spherical, options.seed
                    )
                    parent = np.unique(parent, return_inverse=True)[1].astype(np.int32)
                merged = fine_stats.merged(parent)
                coarse = fine if k >= len(fine) else means(merged, options.spherical)[0]
                self._parents[k] = parent
                centroids.append(coarse.astype(np.float32))
                stats.append(merged)
        inertia = [stat.objective(c) for stat, c in zip(stats, centroids, strict=True)]
        counts = [stat.counts for stat in stats]
        self.centroids_: Any = centroids[0] if self._single else centroids
        self.inertia_: Any = inertia[0] if self._single else inertia
        self.counts_: Any = counts[0] if self._single else counts
