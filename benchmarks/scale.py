"""What a row, a block and a shard cost the driver, a worker and the k-means coordinator.

    python benchmarks/scale.py [--only NAME …] [--rows 1e6 1e7] [--out benchmarks/scale.json]
    python benchmarks/scale.py --paper          # the tables of scale.md, from benchmarks/scale.json

No images, and no cluster: the real functions run on made-up ids and clusters, on fake blocks of 100
rows and on two actors that answer for 10,000 fake shards. A line gives wall and CPU seconds of the
process (driver, worker or coordinator; what Ray's other processes do shows in the wall time only),
the CPU time of one row, image, block, shard, reference or file, the growth of the process's memory
at its peak (mapped parts of the object store included), and where there is a natural peer the ratio
of the CPU times, ours / peer. Everything runs once: differences of 20 % mean nothing, and on a busy
machine wall times mean little. The largest of ``--rows`` is the one to trust.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import os
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch
import torchvision
from memory import measure
from PIL import Image
from scale_paper import Figures, paper
from scale_shards import blocks, coordinator, sums

from wcl_ray.clusters.assignment import FILE as STORED
from wcl_ray.clusters.assignment import Assignment, number_codes, stored_ranges
from wcl_ray.config import ModelConfig, TrainConfig
from wcl_ray.data import sampler
from wcl_ray.data.blocks import DESCRIBED, Block, Blocks
from wcl_ray.data.deal import Places
from wcl_ray.data.decode import decode_batch
from wcl_ray.data.ids import hash_strings, positions_of
from wcl_ray.data.reader import Reader
from wcl_ray.data.stream import Stream
from wcl_ray.model.encoder import build_encoder
from wcl_ray.model.optim import build_optimizer
from wcl_ray.runs.nodes import quiet_ray
from wcl_ray.runs.rounds import fingerprint
from wcl_ray.storage import Folder
from wcl_ray.train import checkpoint

BATCH, WORLD, NODES, BLOCKS = 8192, 64, 8, 10_000  # of an epoch's order
FIGURES: Figures = {}  # name → n → seconds, and bytes of one row
FILE = Path(__file__).with_suffix(".json")


def line(
    name: str,
    n: int,
    unit: str,
    call: Callable[[], Any],
    peer: tuple[str, Callable[[], Any]] | None = None,
    size: Callable[[Any], float] | None = None,
) -> Any:
    """Measure, print and keep one figure; returns the result. ``size``: bytes of the result."""
    whole, result = measure(call)
    row = {key: value / n for key, value in whole.items()}
    text = f"{name:<32}{n:>10,} {unit:<5}{whole['wall']:>8.2f} s wall {whole['cpu']:>8.2f} s CPU"
    text += f"{1e6 * row['cpu']:>11.3f} µs/{unit:<5}peak{row['peak']:>8,.0f} B/{unit:<5}"
    if size is not None:
        row["bytes"] = size(result) / n
        text += f"  holds {row['bytes']:,.1f} B/{unit}"
    if peer is not None:
        row["ratio"] = whole["cpu"] / max(measure(peer[1])[0]["cpu"], 1e-9)
        text += f"  {row['ratio']:.2f} × {peer[0]}"
    print(text, flush=True)
    FIGURES.setdefault(name, {})[str(n)] = row
    return result


def table_of(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random ids, as many in order, and clusters of 50 images as a column."""
    rng = np.random.default_rng(n)
    ids = rng.integers(-(2**63), 2**63 - 1, n)
    return ids, np.unique(ids), rng.integers(0, max(1, n // 50), (n, 1)).astype(np.int32)


def ids_and_clusters(n: int) -> None:
    """The table id → cluster at the driver: made, written, read, broadcast, searched."""
    names = [f"s3://bucket/photos/part-00017.parquet#{i}" for i in range(200_000)]
    line("hash string ids", len(names), "row", lambda: hash_strings(names))
    ids, ordered, clusters = table_of(n)
    codes = clusters[:, 0].astype(np.int64)
    table = line(
        "sort by id, find duplicates", n, "row",
        lambda: Assignment.from_rows(ids, clusters, ("a",)),
        ("numpy argsort", lambda: np.argsort(ids, kind="stable")),
    )  # fmt: skip
    line(
        "number clusters by size", n, "row", lambda: number_codes(codes, codes < 0),
        ("numpy sort", lambda: np.sort(codes)),
    )  # fmt: skip
    content = line(
        "assignment to Parquet", n, "row", table.to_parquet,
        ("numpy.save", lambda: np.save(io.BytesIO(), ids)), size=len,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as path:
        folder = Folder(path)
        folder.write(STORED, content)
        line("assignment from Parquet", n, "row", lambda: Assignment.read(folder))
        line("assignment by ranges", n, "row", lambda: deque(stored_ranges(folder), maxlen=0))
    line("fingerprint", n, "row", lambda: fingerprint(table))
    ref = line("ray.put ids", n, "row", lambda: ray.put(ordered), ("copy", ordered.copy))
    line("ray.get ids", n, "row", lambda: ray.get(ref), ("copy", ordered.copy))

    def search() -> None:
        for start in range(0, n, 8192):
            positions_of(ordered, ids[start : start + 8192])

    line(
        "position of an id", n, "row", search,
        ("Arrow hash look-up", lambda: pc.index_in(pa.array(ids), value_set=pa.array(ordered))),
    )  # fmt: skip


def epochs(n: int) -> None:
    """What one worker does at the start of an epoch, in a step and for a checkpoint."""
    _, _, clusters = table_of(n)
    location = np.random.default_rng(0).permutation(n)
    cuts = np.linspace(0, n, BLOCKS + 1).astype(np.int64)
    nodes = np.arange(BLOCKS) * NODES // BLOCKS
    members: list[dict[int, Block]] = [{} for _ in range(NODES)]
    for number in range(BLOCKS):
        if number % DESCRIBED == 0:
            start, stop = cuts[number], cuts[min(BLOCKS, number + DESCRIBED)]
            positions = ray.put(location[start:stop])
        members[nodes[number]][number] = Block(None, positions, cuts[number] - start)
    rows = np.diff(cuts)
    blocks = Blocks(rows, rows, nodes, tuple(map(ray.put, members)))
    places = Places(nodes, np.arange(WORLD) * NODES // WORLD)
    shuffle = ("permutation", lambda: np.random.default_rng(0).permutation(n))
    alone = np.full((n, 1), -1, np.int32)
    for name, column, shared in (
        ("order of an epoch, shared", clusters, True),
        ("order of an epoch, dealt", clusters, False),
        ("order of an epoch, all singletons", alone, True),
    ):
        where = ray.put(location) if shared else None
        stream = Stream("raw", "", 32, n, shared, None, blocks, where)
        reader = Reader(
            stream, column, rank=0, world=WORLD, batch_size=BATCH, seed=0, group=2, places=places
        )  # fmt: skip
        line(name, n, "row", functools.partial(reader.order, 0, None), shuffle)
    line("choose the granularity", n, "row", lambda: sampler.composing_column(clusters))
    bits, fresh = sampler.empty_bits(n), sampler.empty_bits(n)

    def mark() -> None:
        for start in range(0, n, BATCH // WORLD * 100):
            sampler.set_bits(fresh, location[start : start + BATCH // WORLD * 100])

    line("mark as consumed", n, "row", mark)
    line("merge a bitmap", n, "row", lambda: np.bitwise_or(bits, fresh, out=bits))
    line("look up a bit", n, "row", lambda: sampler.has_bits(bits, location))
    line("list what is left", n, "row", lambda: sampler.unset_positions(sampler.empty_bits(n), n))


def checkpoints(n: int) -> None:
    """A ResNet-50 with AdamW and the position in the data of so many images."""
    encoder = build_encoder(ModelConfig(backbone="resnet50"), 224)
    optimizer = build_optimizer(encoder, TrainConfig())
    for weight in encoder.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    with tempfile.TemporaryDirectory() as folder:
        where = checkpoint.TrainState(consumed=sampler.empty_bits(n))
        line(
            "checkpoint, ResNet-50", 1, "file",
            lambda: checkpoint.save(folder, encoder, optimizer, where, {}),
            ("weights alone", lambda: torch.save(encoder.state_dict(), f"{folder}/peer")),
            size=lambda _: os.path.getsize(f"{folder}/{checkpoint.FILE}"),
        )  # fmt: skip


def images(n: int) -> None:
    """Decoding JPEGs of 500 × 375 pixels in one thread, as for training at 224 pixels."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.random((1, 3, 24, 32)).astype(np.float32)) * 255
    smooth = torch.nn.functional.interpolate(coarse, (375, 500), mode="bicubic")[0]
    noisy = smooth + 12 * torch.from_numpy(rng.standard_normal((3, 375, 500), dtype=np.float32))
    jpeg = torchvision.io.encode_jpeg(noisy.clamp(0, 255).to(torch.uint8), 94).numpy().tobytes()
    torch.set_num_threads(1)

    def pillow() -> None:
        for _ in range(400):
            picture = Image.open(io.BytesIO(jpeg)).convert("RGB")
            np.asarray(picture.resize((256, 256), Image.Resampling.BILINEAR))

    line(
        "decode and shrink a JPEG", 400, "image", lambda: decode_batch([jpeg] * 400, 256),
        ("Pillow", pillow), size=lambda _: 400.0 * len(jpeg),
    )  # fmt: skip


ROWS = {f.__name__: f for f in (ids_and_clusters, epochs)}  # measured for each of --rows
ONCE = {f.__name__: f for f in (images, checkpoints)}
FAKES = {f.__name__: f for f in (blocks, sums, coordinator)}
PARTS: dict[str, Callable[..., None]] = {**ROWS, **ONCE, **FAKES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--rows", type=float, nargs="+", default=[1e6, 1e7])
    parser.add_argument("--shards", type=int, default=10_000, help="fake blocks, fake shards")
    parser.add_argument("--out", type=Path, help="JSON file for the figures; keeps others")
    parser.add_argument("--paper", action="store_true", help="print the tables, measure nothing")
    options = parser.parse_args()
    if options.paper:
        print(paper(json.loads(FILE.read_text())))
        return
    quiet_ray()
    ray.init("local", num_cpus=2, object_store_memory=int(4e9), logging_level="ERROR")
    rows = sorted(int(n) for n in options.rows)
    for name in options.only:
        print(f"\n{name}: {(PARTS[name].__doc__ or '').strip()}")
        if name in FAKES:
            FAKES[name](line, options.shards)
        for n in rows if name in ROWS else rows[-1:] if name in ONCE else ():
            PARTS[name](n)
    if options.out:
        known = json.loads(options.out.read_text()) if options.out.exists() else {}
        options.out.write_text(json.dumps(known | FIGURES, indent=1) + "\n")


if __name__ == "__main__":
    main()
