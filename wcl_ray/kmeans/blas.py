"""Selects the matrix kernel of the BLAS in numpy and faiss, without importing either.

The OpenBLAS in the wheels falls back to an older kernel on processors that it does not know, up to
3.5 times slower. It reads its environment once, when it is loaded.
"""

from __future__ import annotations

from pathlib import Path


def cpu_flags() -> frozenset[str]:
    """Feature flags of this machine's processor; empty if they cannot be read."""
    path = Path("/proc/cpuinfo")
    text = path.read_text() if path.exists() else ""
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return frozenset(line.partition(":")[2].split())


def environment(flags: frozenset[str], threads: int) -> dict[str, str]:
    """Environment variables for a process that multiplies matrices in ``threads`` threads."""
    variables = {
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
    }
    core = best_core(flags)
    return variables | ({"OPENBLAS_CORETYPE": core} if core else {})


def best_core(flags: frozenset[str]) -> str | None:
    """OpenBLAS's name of the fastest x86 kernel for a processor, None if unknown."""
    if {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"} <= flags:
        return "SkylakeX"
    return "Haswell" if {"avx2", "fma"} <= flags else None
