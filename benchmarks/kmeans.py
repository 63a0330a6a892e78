"""k-means on Ray actors against faiss.Kmeans, scikit-learn and the bare matrix product.

    pip install -e ".[bench]" && python benchmarks/kmeans.py [--repeats 3] [--iterations 10]

Same data (a mixture of Gaussians), same first centroids, same number of iterations, one thread
each, plain Euclidean; then two actors with a thread each. Every side runs with the fastest BLAS
kernel of the machine. ``floor`` is the matrix product 2·N·K·d alone, ``2 floors`` two processes
that each do half of it at the same time: what two actors could reach. The median iteration counts
(of scikit-learn, which does not tell, the mean), then the median of the repeats; the sides
alternate. Last, whole fits with the default schedules on two threads: ours (start of the actors,
seeding, sample, early stop, all counted) against faiss.Kmeans without sub-sampling: with its
defaults, and with its early stop, its better starts and its SuperKMeans; on rows of the same kind,
or on the features that jobs/embed.py has written to ``--features FOLDER``, spherical. ``ours`` is
our time over theirs, ``objective`` theirs over ours, ``to it`` the time in which ours reaches their
objective over theirs. The last line is one JSON object: ``vs_faiss``, ``vs_floor`` and
``two_actors`` are the worst over the sizes with K ≥ 1000, ``objective_gap`` how much higher ours is
from the same start; of whole fits ``fit_vs_faiss`` and ``fit_vs_fastest`` (of all its forms)
compare times, ``fit_objective`` is ours over its best.
"""

from __future__ import annotations

import os

from wcl_ray.kmeans import blas

os.environ.update(blas.environment(blas.cpu_flags(), threads=1))  # before numpy is loaded

import argparse
import functools
import itertools
import json
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow.parquet
import ray
import sklearn.cluster
from threadpoolctl import threadpool_info, threadpool_limits

from wcl_ray.kmeans.kmeans import KMeans
from wcl_ray.kmeans.nearest import gemm_nearest
from wcl_ray.kmeans.seeding import plus_plus
from wcl_ray.runs.nodes import quiet_ray

SIZES = [(200_000, 128, 256), (200_000, 128, 1000), (200_000, 128, 4096), (50_000, 2048, 1000)]
FITS = [(200_000, 128, 1000), (200_000, 128, 4096)]


def kernels() -> str:
    """What the BLAS of this process runs with."""
    names = {
        str(part.get("architecture")) for part in threadpool_info() if part["user_api"] == "blas"
    }
    return ", ".join(sorted(names))


def mixture(n: int, d: int, k: int) -> np.ndarray:
    """float32 (n, d): 2k centres of unequal weight and a spread that makes them overlap."""
    rng = np.random.default_rng(n + d + k)
    centres = rng.standard_normal((2 * k, d)).astype(np.float32)
    weights = rng.gamma(2.0, size=2 * k)
    x = centres[rng.choice(2 * k, n, p=weights / weights.sum())]
    x += 1.2 * rng.standard_normal((n, d), dtype=np.float32)
    return x


def product(x: np.ndarray, centroids: np.ndarray, iterations: int) -> tuple[float, float]:
    """Seconds of the bare matrix product."""
    transposed = np.ascontiguousarray(centroids.T)
    out = np.empty((512, len(centroids)), np.float32)
    times = []
    for _ in range(iterations):
        started = time.perf_counter()
        for start in range(0, len(x) - 511, 512):
            np.matmul(x[start : start + 512], transposed, out=out)
        times.append(time.perf_counter() - started)
    return statistics.median(times), float("nan")


def two_products(x: np.ndarray, centroids: np.ndarray, iterations: int) -> tuple[float, float]:
    """Seconds of half of the matrix product in the slower of two processes."""
    half = len(x) // 2
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        parts = [pool.submit(product, p, centroids, iterations) for p in (x[:half], x[half:])]
        return max(part.result()[0] for part in parts), float("nan")


def objective(x: np.ndarray, centroids: np.ndarray) -> float:
    """Sum of squared distances in float64."""
    labels = gemm_nearest(centroids, spherical=False)(x)
    total = 0.0
    for start in range(0, len(x), 4096):
        part = slice(start, start + 4096)
        total += float(np.square(x[part].astype(np.float64) - centroids[labels[part]]).sum())
    return total


def by_faiss(x: np.ndarray, centroids: np.ndarray, iterations: int) -> tuple[float, float]:
    """Seconds an iteration, and the objective of the centroids after the last one."""
    faiss.omp_set_num_threads(1)
    d, k = x.shape[1], len(centroids)
    model = faiss.Kmeans(d, k, niter=iterations, max_points_per_centroid=len(x))
    model.train(x, init_centroids=centroids)
    ends = [0.0, *(row["time"] for row in model.iteration_stats or ())]  # since the start
    seconds = statistics.median(b - a for a, b in itertools.pairwise(ends))
    # its own figure is a sum in float32; this one is the centroids' in float64
    return seconds, objective(x, np.asarray(model.centroids))


def by_sklearn(x: np.ndarray, centroids: np.ndarray, iterations: int) -> tuple[float, float]:
    k = len(centroids)
    model = sklearn.cluster.KMeans(
        k, init=centroids, n_init=1, max_iter=iterations, tol=0, algorithm="lloyd"
    )
    with threadpool_limits(1):
        started = time.perf_counter()
        model.fit(x)
        seconds = time.perf_counter() - started
    return seconds / (model.n_iter_ + 1), float(model.inertia_)  # one assignment at the end


def by_actors(count: int, kernel: str) -> Callable[..., tuple[float, float]]:
    def run(x: np.ndarray, centroids: np.ndarray, iterations: int) -> tuple[float, float]:
        model = KMeans(
            len(centroids), spherical=False, iterations=iterations + 1, tolerance=0,
            actors=count, kernel=kernel,  # type: ignore[arg-type]
        )  # fmt: skip
        model._options = replace(model._options, settled=0)  # as many iterations as asked for
        model.fit(x, init=centroids)
        seconds = statistics.median(row.seconds for row in model.history_[:iterations])
        return seconds, float(model.inertia_)  # of the centroids after ``iterations`` updates

    return run


def unit(x: np.ndarray) -> bool:
    """Whether all rows have unit length."""
    return bool((abs(np.square(x).sum(1) - 1) < 1e-4).all())


Progress = list[tuple[float, float]]  # seconds since the start of a fit, objective


def fit_faiss(x: np.ndarray, k: int, **options: Any) -> Progress:
    faiss.omp_set_num_threads(2)
    options |= {"max_points_per_centroid": len(x), "spherical": unit(x)}
    model = faiss.Kmeans(x.shape[1], k, **options)
    started = time.perf_counter()
    model.train(x)
    seconds = time.perf_counter() - started
    return [(seconds, objective(x, np.asarray(model.centroids)))]


def fit_actors(x: np.ndarray, k: int) -> Progress:
    """After every pass over all rows, and at the end."""
    spherical = unit(x)
    started = time.perf_counter()
    model = KMeans(k, spherical=spherical, actors=2).fit(x)
    end = time.perf_counter() - started
    passes = [row for row in model.history_ if row.phase == "all"]
    later = np.cumsum([0.0] + [row.seconds for row in passes[:0:-1]])[::-1]
    path = [(end - s, len(x) * row.objective[0]) for s, row in zip(later, passes, strict=True)]
    return [*path[:-1], (end, float(model.inertia_))]


def iterations(repeats: int, count: int, scale: float) -> dict[str, float]:
    """Single iterations from the same start; returns the worst ratios."""
    sides: dict[str, Callable[..., tuple[float, float]]] = {
        "floor": product,
        "faiss": by_faiss,
        "sklearn": by_sklearn,
        "1 actor": by_actors(1, "gemm"),
        "1 actor, faiss": by_actors(1, "faiss"),
        "2 actors": by_actors(2, "gemm"),
        "2 floors": two_products,
    }
    worst = {"vs_faiss": 0.0, "vs_floor": 0.0, "two_actors": 0.0, "objective_gap": -1.0}
    print(f"BLAS kernels {kernels()}; seconds an iteration (× the floor), one thread an actor\n")
    head = "".join(f"{name:>16}" for name in (*sides, "objective gap"))
    print(f"{'N, d, K':<18}{head}")
    for n, d, k in SIZES:
        n = int(n * scale)
        x = mixture(n, d, k)
        rng = np.random.default_rng(0)
        start = plus_plus(x[rng.choice(n, min(n, 20 * k), replace=False)], k, rng)
        runs: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for _ in range(repeats):
            for name, side in sides.items():
                runs[name].append(side(x, start, count))
        speed = {name: statistics.median(s for s, _ in rows) for name, rows in runs.items()}
        gap = runs["1 actor"][0][1] / runs["faiss"][0][1] - 1  # above 0: ours is worse
        cells = [f"{s:.3f} ({s / speed['floor']:.2f})" for s in speed.values()] + [f"{gap:.1e}"]
        line = "".join(f"{cell:>16}" for cell in cells)
        print(f"{f'{n}, {d}, {k}':<18}{line}", flush=True)
        worst["objective_gap"] = max(worst["objective_gap"], gap)
        if k >= 1000:
            one = speed["1 actor"]
            worst["vs_faiss"] = max(worst["vs_faiss"], one / speed["faiss"])
            worst["vs_floor"] = max(worst["vs_floor"], one / speed["floor"])
            worst["two_actors"] = max(worst["two_actors"], speed["2 actors"] / one)
    return worst


STOP: dict[str, Any] = {"early_stop_threshold": 1e-4}  # relative decrease of the objective
FITTERS: dict[str, Callable[[np.ndarray, int], Progress]] = {
    "2 actors": fit_actors,
    "faiss": fit_faiss,
    "faiss, early stop": functools.partial(fit_faiss, **STOP),
    "the same, k-means++": functools.partial(
        fit_faiss, init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS, **STOP
    ),
    "the same, AFK-MC²": functools.partial(
        fit_faiss, init_method=faiss.ClusteringInitMethod_AFK_MC2, **STOP
    ),
    "the same, SuperKMeans": functools.partial(fit_faiss, use_super_kmeans=True, **STOP),
}


def fits(repeats: int, scale: float, folder: str | None) -> dict[str, float]:
    """Whole fits with the default schedules.

    Returns:
        The worst ratios, of median times and of the first repeat's objectives.
    """
    ratio = {"fit_vs_faiss": 0.0, "fit_vs_fastest": 0.0, "fit_objective": 0.0}
    if folder:
        table = pyarrow.parquet.read_table(folder, columns=["feature"])
        x = np.stack(table["feature"].to_numpy()).astype(np.float32)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        sets = [(x, k) for _, _, k in FITS]
    else:
        sets = [(mixture(int(n * scale), d, k), k) for n, d, k in FITS]
    for x, k in sets:
        n, d = x.shape
        fit_actors(x[: 2 * k], k)  # the first fit of a process also starts parts of Ray
        runs: dict[str, list[Progress]] = {name: [] for name in FITTERS}
        for _ in range(repeats):
            for name, fit in FITTERS.items():
                runs[name].append(fit(x, k))
        ours = runs["2 actors"]
        medians = {name: statistics.median(r[-1][0] for r in rows) for name, rows in runs.items()}
        print(f"\nwhole fits, N, d, K = {n}, {d}, {k}")
        print(
            f"{'':<24}{'seconds':>9}{'least to most':>18}{'ours':>9}{'objective':>11}{'to it':>9}"
        )
        for name, rows in runs.items():
            seconds = sorted(row[-1][0] for row in rows)
            least_to_most = f"{seconds[0]:.2f} to {seconds[-1]:.2f}"
            share = f"{medians['2 actors'] / medians[name]:.2f} ×"
            theirs = rows[0][-1][1]
            times = [next((s for s, o in row if o <= theirs), math.inf) for row in ours]
            reached = f"{statistics.median(times) / medians[name]:.2f} ×"
            line = f"{name:<24}{medians[name]:>9.2f}{least_to_most:>18}{share:>9}"
            print(f"{line}{theirs / ours[0][-1][1]:>11.4f}{reached:>9}", flush=True)
        peers = [name for name in runs if name != "2 actors"]
        for key, value in {
            "fit_vs_faiss": medians["2 actors"] / medians["faiss"],
            "fit_vs_fastest": medians["2 actors"] / min(medians[name] for name in peers),
            "fit_objective": ours[0][-1][1] / min(runs[name][0][-1][1] for name in peers),
        }.items():
            ratio[key] = max(ratio[key], value)
    return ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--scale", type=float, default=1.0, help="of the rows, for a quick look")
    parser.add_argument("--features", help="folder of jobs/embed.py, for the whole fits")
    parser.add_argument("--only", choices=["iterations", "fits"], help="one of the two parts")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error("--repeats starts at 1")
    if options.features and not Path(options.features).exists():
        parser.error(f"--features {options.features}: there is no such folder")
    quiet_ray()
    ray.init(address="local", num_cpus=2, logging_level="ERROR", log_to_driver=False)
    figures: dict[str, float] = {}
    if options.only != "fits":
        figures |= iterations(options.repeats, options.iterations, options.scale)
    if options.only != "iterations":
        figures |= fits(options.repeats, options.scale, options.features)
    print(json.dumps({name: float(f"{value:.4g}") for name, value in figures.items()}))


if __name__ == "__main__":
    main()
