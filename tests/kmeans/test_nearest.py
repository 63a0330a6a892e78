"""The nearest centroid of a row, for any kernel and any position of the row in a block."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from wcl_ray.kmeans import blas
from wcl_ray.kmeans.lloyd import unit_rows
from wcl_ray.kmeans.nearest import KERNELS, TILE, WIDE
from wcl_ray.kmeans.rescoring import Rescoring


def random(n: int, d: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def near_ties(c: np.ndarray, n: int, spherical: bool) -> np.ndarray:
    """Rows half-way between two centroids, to the precision of float32."""
    a, b = np.random.default_rng(3).integers(0, len(c), (2, n))
    middle = c[a] + c[b]
    return unit_rows(middle) if spherical else (middle / 2).astype(np.float32)


def distances(x: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Squared distances in float64: (n, K)."""
    x, c = x.astype(np.float64), c.astype(np.float64)
    return np.stack([np.square(x - centroid).sum(1) for centroid in c], 1)


@pytest.mark.parametrize("spherical", [True, False])
@pytest.mark.parametrize("k", [1, 3, TILE, TILE + 77])
def test_kernels_agree_with_float64(k: int, spherical: bool) -> None:
    c, x = random(k, 16, 1), random(1500, 16, 2)
    if spherical:
        c, x = unit_rows(c), unit_rows(x)
    expected = distances(x, c).argmin(1)
    for kernel, make in KERNELS.items():
        labels = make(c, spherical)(x)
        assert labels.dtype == np.int32
        assert np.array_equal(labels, expected), kernel
        assert len(make(c, spherical)(x[:0])) == 0


@pytest.mark.parametrize("offset", [0.0, 1.0, 1000.0])
def test_wide_rows_near_and_far_from_the_origin(offset: float) -> None:
    """Wide rows are not copied, unless the mean has to be subtracted from them."""
    c, x = random(40, WIDE + 9, 1) + np.float32(offset), random(1500, WIDE + 9, 2)
    x += np.float32(offset)
    expected = distances(x, c).argmin(1)
    for kernel, make in KERNELS.items():
        assert np.array_equal(make(c, False)(x), expected), kernel


@pytest.mark.parametrize("kernel", KERNELS)
def test_threads_change_nothing(kernel: str) -> None:
    c, x = random(50, 8, 1), random(5000, 8, 2)
    expected = KERNELS[kernel](c, False, 1)(x)
    assert np.array_equal(KERNELS[kernel](c, False, 2)(x), expected)


@pytest.mark.parametrize("spherical", [True, False])
@pytest.mark.parametrize("kernel", KERNELS)
def test_ties_go_to_the_lower_number(kernel: str, spherical: bool) -> None:
    for k in (3, 1030, TILE + 500):
        c = random(k, 16, k)
        c = unit_rows(c) if spherical else c
        first = k // 2
        c[first:] = c[np.random.default_rng(0).integers(0, first, k - first)]
        x = c[np.random.default_rng(1).integers(0, k, 1500)] + 0.01 * random(1500, 16, 5)
        labels = KERNELS[kernel](c, spherical)(x)
        assert labels.max() < first
    assert not KERNELS[kernel](c, True)(np.zeros((5, 16), np.float32)).any()


@pytest.mark.parametrize("kernel", KERNELS)
def test_rows_far_from_the_origin_keep_their_precision(kernel: str) -> None:
    c = (random(20, 16, 1) + 1e4).astype(np.float32)
    x = (c[np.arange(2000) % 20] + 0.3 * random(2000, 16, 2)).astype(np.float32)
    assert np.array_equal(KERNELS[kernel](c, False)(x), distances(x, c).argmin(1))


@pytest.mark.parametrize("spherical", [True, False])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_label_does_not_depend_on_the_position_of_the_row(kernel: str, spherical: bool) -> None:
    for k, d in ((20, 129), (TILE + 9, 24)):
        c = unit_rows(random(k, d, 1))
        x = near_ties(c, 2500, spherical)
        nearest = KERNELS[kernel](c, spherical)
        labels = nearest(x)
        for cut in (1, 777, 1024, 2499):
            assert np.array_equal(np.concatenate([nearest(x[:cut]), nearest(x[cut:])]), labels)
        order = np.random.default_rng(0).permutation(len(x))
        assert np.array_equal(nearest(x[order]), labels[order])
        if kernel != "gemm":  # these leave near ties to float64
            assert np.array_equal(Rescoring(c, spherical)(x), labels)


SCRIPT = """
import sys
import numpy as np
sys.path.insert(0, {path!r})
from test_nearest import near_ties, random, unit_rows
from wcl_ray.kmeans.nearest import gemm_nearest
c = unit_rows(random(40, 129, 1))
x = near_ties(c, 3000, True)
nearest = gemm_nearest(c, True)
order = np.random.default_rng(0).permutation(3000)
assert (nearest(x[order]) == nearest(x)[order]).all()
"""


@pytest.mark.slow
def test_position_does_not_matter_with_any_blas_kernel() -> None:
    """OpenBLAS's Haswell kernel rounds half of the rows differently."""
    cores = ["Sandybridge", "Haswell", "SkylakeX"]
    best = blas.best_core(blas.cpu_flags())
    for core in cores[: cores.index(best) + 1] if best else [""]:
        environment = {**os.environ, "OPENBLAS_CORETYPE": core, "OPENBLAS_NUM_THREADS": "1"}
        script = SCRIPT.format(path=os.path.dirname(__file__))
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


def test_rescoring_decides_by_every_digit() -> None:
    """Two centroids closer together than float32 products can tell."""
    c = np.array([[1.0, 0.0], [1.0, 2.0**-30]], np.float32)
    x = np.array([[0.5, 1.0], [0.5, -1.0], [0.5, 0.0]], np.float32)
    assert Rescoring(c, True)(x).tolist() == [1, 0, 0]
    for kernel in ("faiss", "torch"):
        assert KERNELS[kernel](c, True)(x).tolist() == [1, 0, 0], kernel


def test_blas_environment() -> None:
    avx512 = {"avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"}
    assert blas.best_core(frozenset(avx512)) == "SkylakeX"
    assert blas.best_core(frozenset({"avx2", "fma"})) == "Haswell"
    assert blas.best_core(frozenset()) is None
    assert "OPENBLAS_CORETYPE" not in blas.environment(frozenset(), 3)
    assert blas.environment(frozenset(), 3)["OMP_NUM_THREADS"] == "3"
