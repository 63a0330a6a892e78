"""Time and memory of a call, for benchmarks."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa


def measure(call: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Wall and CPU seconds of this process, growth of its memory at the peak, and the result."""
    ctypes.CDLL(None).malloc_trim(0)  # give back what was freed before
    pa.default_memory_pool().release_unused()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _memory("VmRSS")
    started, cpu = time.perf_counter(), time.process_time()
    result = call()
    cost = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - started}
    return cost | {"peak": max(0.0, _memory("VmHWM") - before)}, result


def _memory(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith(name))
