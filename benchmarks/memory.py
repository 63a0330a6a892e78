"""Time and memory of a call, for benchmarks."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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


@contextmanager
def watching(seconds: float = 0.3) -> Iterator[list[int]]:
    """The bytes of this process and its descendants at the peak, shared memory left out: a list of
    one number, which grows while the context lasts."""
    peak, stop = [0], threading.Event()

    def look() -> None:
        while not stop.wait(seconds):
            peak[0] = max(peak[0], _tree())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def _tree() -> int:
    """Bytes of this process and its descendants without shared memory."""
    children, memory = defaultdict[int, list[int]](list), dict[int, int]()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            resident, shared = map(int, (folder / "statm").read_text().split()[1:3])
            children[int(parent)].append(int(folder.name))
            memory[int(folder.name)] = (resident - shared) * os.sysconf("SC_PAGE_SIZE")
    waiting, total = [os.getpid()], 0
    while waiting:
        process = waiting.pop()
        total += memory.get(process, 0)
        waiting += children[process]
    return total
