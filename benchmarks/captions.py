"""Peak memory of counting a column of captions, against pandas and pyarrow on the whole column.

    python benchmarks/captions.py --rows 2000000

Nine captions of ten are different, the others are three common ones. Each side runs in a process of
its own and reads the same Parquet files; memory is the rise of a process's peak resident size over
what it has before it reads. Of ``wcl_ray`` the driver's is given and the largest of any task's.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

FILES = 64


def peak(process: int | str = "self") -> float:
    """MB, the largest resident size of a process so far, without what it mapped of the object
    store, which all share."""
    status = Path(f"/proc/{process}/status").read_text()
    sizes = dict(re.findall(r"(\w+):\s+(\d+) kB", status))
    return (int(sizes["VmHWM"]) - int(sizes["RssShmem"])) / 1024


def write(folder: str, rows: int) -> None:
    ids = np.random.default_rng(0).permutation(rows)
    for part in range(FILES):
        part_ids = ids[part::FILES]
        text = [f"a photograph of number {n}" if n % 10 else f"a cat {n % 3}" for n in part_ids]
        table = pa.table({"__id": part_ids, "label": part_ids % 10, "text": text})
        pq.write_table(table, f"{folder}/{part:02d}.parquet")


def pandas(folder: str) -> list[float]:
    import pandas  # noqa: F401

    before = peak()
    pq.read_table(folder, columns=["text"]).to_pandas()["text"].value_counts()
    return [peak() - before]


def pyarrow(folder: str) -> list[float]:
    before = peak()
    pc.value_counts(pq.read_table(folder, columns=["text"])["text"])
    return [peak() - before]


def children(process: int) -> list[int]:
    """Processes that a process started."""
    children = Path(f"/proc/{process}/task").glob("*/children")
    return [int(child) for file in children for child in file.read_text().split()]


def workers() -> list[float]:
    """Peaks of the processes that ran tasks, which the raylet started."""
    below = [worker for child in children(os.getpid()) for worker in children(child)]
    named = [w for w in below if Path(f"/proc/{w}/cmdline").read_bytes().startswith(b"ray::IDLE")]
    return [peak(worker) for worker in named]


def _start(folder: str) -> Any:
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False

    def read(part: pa.Table) -> Iterator[pa.Table]:
        for path in part["path"].to_pylist():
            for batch in pq.ParquetFile(path).iter_batches(8192):
                yield pa.Table.from_batches([batch])

    files = [{"path": str(path)} for path in sorted(Path(folder).glob("*.parquet"))]
    rows = ray.data.from_items(files, override_num_blocks=FILES)
    return rows.map_batches(read, batch_format="pyarrow", batch_size=1)


def attributes(folder: str) -> list[float]:
    from wcl_ray.clusters import metadata

    data = _start(folder)
    metadata.count_columns(data.limit(10), ["text"], "label")
    driver, task = peak(), min(workers())
    metadata.count_columns(data, ["text"], "label")
    return [peak() - driver, max(workers()) - task]


def words(folder: str) -> list[float]:
    from wcl_ray.clusters import tfidf

    data = _start(folder)
    tfidf.vectors(data.limit(10), ["text"])
    driver, task = peak(), min(workers())
    tfidf.vectors(data, ["text"])
    return [peak() - driver, max(workers()) - task]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        write(folder, rows)
        for side in (pandas, pyarrow, attributes, words):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                start = time.monotonic()
                peaks = pool.apply(side, (folder,))
                took = time.monotonic() - start
            of = [
                f"{name} {mb:,.0f} MB" for name, mb in zip(("driver", "task"), peaks, strict=False)
            ]
            print(f"{side.__name__:12}{', '.join(of)} ({took:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
