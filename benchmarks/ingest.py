"""Images per second into a training process: the stream against a torch DataLoader.

    python benchmarks/ingest.py --path "cifar10/train-*.parquet" [--repeats 3] [--workers 2]
    python benchmarks/ingest.py --path "cifar10/train-*.parquet" --copies 6     # longer epochs
    python benchmarks/ingest.py --size 256      # 2,560 synthetic photographs of 400 × 533 pixels

Both sides deliver shuffled uint8 batches of (3, S, S) images to one consumer. The DataLoader
holds the encoded files in memory (map style), decodes with the same function in its worker
processes and stacks; the stream composes its batches from clusters as well. The sides alternate,
the median of the repeats counts. Prints a table and, as the last line, one JSON object:
``vs_dataloader`` is the mode that ``data.keep auto`` picks over the DataLoader.
The first epoch of the kept modes has to wait for the blocks to be kept (``keep_seconds``).
``first`` is the time until an epoch's first batch, ``wait`` the share of the time that a training
loop waits for batches if its step takes 50 ms and no CPU.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from wcl_ray.config import DataConfig
from wcl_ray.data.decode import decode_batch
from wcl_ray.data.reader import Reader
from wcl_ray.data.sources import open_source
from wcl_ray.data.sources.base import ID, IMAGE
from wcl_ray.data.stream import Stream, plan_stream
from wcl_ray.errors import UserError
from wcl_ray.runs.nodes import quiet_ray

STEP, STEPS = 0.05, 60  # seconds of a step that does not use the CPU, and number of steps


class Files(Dataset[torch.Tensor]):
    """Encoded files in memory; an item is one decoded batch (fetching by batch is the faster way
    to use a DataLoader, and kinder to the peer)."""

    def __init__(self, files: list[bytes], size: int, batch: int) -> None:
        self.files, self.size, self.batch = files, size, batch
        self.order = np.random.default_rng(0).permutation(len(files))

    def __len__(self) -> int:
        return len(self.files) // self.batch

    def __getitem__(self, number: int) -> torch.Tensor:
        rows = self.order[number * self.batch : (number + 1) * self.batch]
        return decode_batch([self.files[row] for row in rows], self.size).tensors()[0]


def photographs(folder: Path, count: int = 2560) -> str:
    """Write JPEGs of smooth colours under noise, of 60 kB each; returns the folder."""
    rng = np.random.default_rng(0)
    files = []
    for _ in range(count):
        coarse = Image.fromarray(rng.normal(128, 45, (34, 26, 3)).clip(0, 255).astype(np.uint8))
        smooth = np.asarray(coarse.resize((400, 533), Image.Resampling.BICUBIC)).astype(int)
        noise = rng.normal(0, 9, (267, 200, 1)).repeat(2, 0).repeat(2, 1)[:533, :400]
        sink = io.BytesIO()
        picture = Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))
        picture.save(sink, "JPEG", quality=85)
        files.append(sink.getvalue())
    table = pa.table({"id": np.arange(count), "image": files})
    pq.write_table(table, folder / "photographs.parquet", row_group_size=160)
    return str(folder)


def repeat(table: pa.Table, copies: int, folder: Path) -> str:
    """Write a table's images several times, with ids of their own, in row groups of about 9 MB and
    at most 1,000 rows; returns the folder."""
    folder.mkdir()
    rows = max(1, min(1000, len(table) * 9_000_000 // table[IMAGE].nbytes))
    for number in range(copies):
        ids = pa.array(np.arange(len(table)) + number * len(table))
        copy = pa.table({"id": ids, "image": table[IMAGE]})
        pq.write_table(copy, folder / f"copy-{number}.parquet", row_group_size=rows)
    return str(folder)


def timed(batches: Callable[[], Iterator[torch.Tensor]]) -> tuple[float, float]:
    """Images per second of one pass, the first batch included; seconds until the first batch."""
    started, count, first = time.perf_counter(), 0, 0.0
    for images in batches():
        first = first or time.perf_counter() - started
        count += len(images)
    return count / (time.perf_counter() - started), first


def waiting(batches: Callable[[], Iterator[torch.Tensor]]) -> float:
    """Share of the time that steps of ``STEP`` seconds on another device wait for their batch,
    from the second step on."""
    waits, passed = [], batches()
    for _ in range(STEPS):
        started = time.perf_counter()
        if next(passed, None) is None:
            break
        waits.append(time.perf_counter() - started)
        time.sleep(STEP)
    lost = sum(waits[1:])
    return lost / (lost + STEP * (len(waits) - 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--path", help="Parquet files, a folder or shards of images")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="DataLoader processes, and threads")
    parser.add_argument("--batch", type=int, default=256, help="images in a batch")
    parser.add_argument("--size", type=int, default=32, help="side of the decoded images")
    parser.add_argument("--copies", type=int, default=1, help="of each image in the data set")
    options = parser.parse_args()
    if min(options.repeats, options.batch, options.copies) < 1:
        parser.error("--repeats, --batch and --copies start at 1")
    quiet_ray()
    ray.init(address="local", logging_level="ERROR", log_to_driver=False)
    rendered = tempfile.TemporaryDirectory()
    path = options.path or photographs(Path(rendered.name))
    data = DataConfig(path=path, image_size=options.size, store_size=options.size)
    try:
        source = open_source(data)
    except UserError as error:
        parser.error(str(error))
    table = pa.concat_tables(ray.get(source.images().to_arrow_refs()))
    if options.copies > 1:
        data = replace(data, path=repeat(table, options.copies, Path(rendered.name) / "copies"))
        source = open_source(data)
        table = pa.concat_tables(ray.get(source.images().to_arrow_refs()))
    ids = np.sort(table[ID].to_numpy())
    if len(ids) < 3 * options.batch:
        parser.error(f"{len(ids)} images are too few for batches of {options.batch}")
    files = Files(table[IMAGE].to_pylist(), options.size, options.batch)
    clusters = np.random.default_rng(0).integers(0, len(ids) // 20, (len(ids), 1)).astype(np.int32)
    print(f"{len(ids):,} images from {source.describe()}", flush=True)

    def stream_of(keep: str) -> tuple[Stream, float]:
        started = time.perf_counter()
        kept = replace(data, keep=keep)  # type: ignore[arg-type]
        return plan_stream(source, ids, kept), time.perf_counter() - started

    def loader() -> Iterator[torch.Tensor]:
        return iter(DataLoader(files, batch_size=None, num_workers=options.workers, shuffle=True))

    epochs = iter(range(10**6))

    def reading(stream: Stream) -> Callable[[], Iterator[torch.Tensor]]:
        reader = Reader(
            stream, clusters, rank=0, world=1, batch_size=options.batch, seed=0, group=2,
            threads=options.workers,
        )  # fmt: skip

        def tables() -> Iterator[pa.Table]:
            rows = reader.dataset(next(epochs), None)
            return iter(rows.iter_batches(batch_size=None, batch_format="pyarrow"))

        anew = stream.mode == "streaming"
        return lambda: (
            batch.images for batch in reader.epoch(next(epochs), None, tables if anew else None)
        )

    chosen = stream_of("auto")[0].mode
    streams = {mode: stream_of(mode) for mode in ("raw", "encoded", "streaming")}
    sides = {"dataloader": loader} | {mode: reading(s) for mode, (s, _) in streams.items()}
    rates: dict[str, list[float]] = {name: [] for name in sides}
    firsts: dict[str, list[float]] = {name: [] for name in sides}
    waits: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.repeats):
        for name, side in sides.items():
            rate, first = timed(side)
            rates[name].append(rate)
            firsts[name].append(first)
    for _ in range(options.repeats):  # last: an epoch that is broken off ends processes of Ray Data
        for name, side in sides.items():
            waits[name].append(waiting(side))
    speed = {name: statistics.median(values) for name, values in rates.items()}
    result: dict[str, Any] = {"images": len(ids), "auto": chosen}
    print(
        f"\n{'side':<12}{'images/s':>12}{'vs DataLoader':>15}{'first':>9}{'wait':>8}{'to keep':>10}"
    )
    for name, value in speed.items():
        ratio = value / speed["dataloader"]
        first, wait = statistics.median(firsts[name]), statistics.median(waits[name])
        keep = f"{streams[name][1]:.1f} s" if name in streams else ""
        print(f"{name:<12}{value:>12,.0f}{ratio:>15.2f}{first:>7.2f} s{wait:>8.1%}{keep:>10}")
        result |= {
            f"{name}_images_per_second": round(value),
            f"{name}_first_seconds": round(first, 2),
            f"{name}_wait": round(wait, 3),
        }
        if name != "dataloader":
            result[f"vs_dataloader_{name}"] = round(ratio, 2)
            result[f"keep_seconds_{name}"] = round(streams[name][1], 1)
    result["vs_dataloader"] = result[f"vs_dataloader_{chosen}"]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
