"""Partners in streamed batches and streaming speed, with and without jobs/prepare.py.

    python benchmarks/locality.py --images 400000 --store 200             # the size of the claim
    python benchmarks/locality.py --images 400000 --store 200 --nodes 2
    python benchmarks/locality.py --images 40000 --store 80 --repeats 3   # minutes on two cores
    python benchmarks/locality.py --images 40000 --store 80 --files       # an image folder
    python benchmarks/locality.py --images 600000 --repeats 0             # prepare alone

Makes small random PNGs in random order with clusters of ``--cluster-size``, and prepares them. One
process per worker then reads epochs of both, in turn, without training. Positives are the other
images of an anchor's cluster in its batch, on one worker. ``kept`` is what the modes that keep all
images give: the same composition over all images instead of a window of them; ``indexed`` opens
the files of a folder by name in that order. Prints a table and,
as the last line, one JSON object; ``positives_vs_kept`` and ``speed_vs_unprepared`` are the two
claims. Time and memory are those of the whole job of preparing: the memory is that of all processes
of Ray and this one at the peak, without the shared object store.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from memory import watching
from PIL import Image
from ray.cluster_utils import Cluster

from wcl_ray.config import ClustersConfig, Config, DataConfig
from wcl_ray.data import sampler
from wcl_ray.data.reader import Reader
from wcl_ray.data.shards import partners_together, read_placement
from wcl_ray.data.sources import open_source
from wcl_ray.data.stream import Stream, plan_stream
from wcl_ray.runs.nodes import quiet_ray
from wcl_ray.runs.prepare import Shape, prepare

FILE_ROWS, GROUP_ROWS = 20_000, 1000  # of the files that are prepared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=40_000)
    parser.add_argument("--cluster-size", type=int, default=20)
    parser.add_argument("--size", type=int, default=32, help="side of the images, in pixels")
    parser.add_argument("--store", type=int, default=200, help="MB of each node's object store")
    parser.add_argument("--batch", type=int, default=256, help="images, over all workers")
    parser.add_argument("--nodes", type=int, default=1, help="each with a worker")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--part", type=int, default=64, help="of prepare")
    parser.add_argument("--shard-mb", type=float, default=128, help="of prepare")
    parser.add_argument("--files", action="store_true", help="make an image folder, not Parquet")
    parser.add_argument("--work", help="folder for the images. Default: a temporary one")
    options = parser.parse_args()
    work = Path(options.work or tempfile.mkdtemp(prefix="locality"))
    try:
        print(json.dumps(compare(options, work)))
    finally:
        if not options.work:
            shutil.rmtree(work, ignore_errors=True)


def compare(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Prepare and read; prints the table and returns the figures."""
    n, source, out = options.images, str(work / "source"), str(work / "shards")
    rng = np.random.default_rng(0)
    clusters = rng.permutation(np.arange(n) // options.cluster_size).astype(np.int32)[:, None]
    write = write_files if options.files else write_images
    write(work / "source", clusters[:, 0], options.size)
    start_ray(options.nodes, options.store)
    config = Config(
        data=DataConfig(path=source, image_size=options.size),
        clusters=ClustersConfig(kind="hierarchy", columns=("cluster",)),
    )
    with watching() as peak:
        started = time.perf_counter()
        prepare(config, out, Shape(part=options.part, shard_mb=options.shard_mb))
        seconds = time.perf_counter() - started
    placement = read_placement(open_source(DataConfig(path=out)).files)
    assert placement is not None
    figures = {
        "images": n,
        "nodes": options.nodes,
        "store_mb": options.store,
        "source_mb": round(sum(f.stat().st_size for f in Path(source).rglob("*")) / 1e6),
        "shards": placement.count,
        "partners_in_row_group": round(partners_together(clusters[:, 0], placement.groups)[0], 3),
        "prepare_seconds": round(seconds, 1),
        "prepare_peak_mb": round(peak[0] / 1e6),
    }
    sides = {"unprepared": (source, "streaming"), "prepared": (out, "streaming")}
    sides |= {"indexed": (source, "indexed")} if options.files else {}
    return figures | (read(sides, clusters, options) if options.repeats else {})


def read(
    sides: dict[str, tuple[str, str]], clusters: np.ndarray, options: argparse.Namespace
) -> dict[str, Any]:
    """Read epochs of all sides in turn; prints the table and returns the figures.

    Args:
        sides: name → (path, ``data.keep``).
    """
    order = sampler.epoch_order(clusters[:, 0], 2, options.batch, np.random.default_rng(1))
    kept = sampler.meeting(slices(clusters[order, 0], options.batch, options.nodes))
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in sides}
    for repeat in range(options.repeats):
        for name, (path, keep) in sides.items():
            found[name].append(read_epoch(path, keep, clusters, options, repeat))
    median = {name: np.median(rows, axis=0).tolist() for name, rows in found.items()}
    print(f"\n{'side':<12}{'positives':>11}{'without any':>13}{'images/s':>10}")
    print(f"{'kept':<12}{kept[0]:>11.2f}{kept[1]:>13.1%}")
    for name, (positives, alone, speed) in median.items():
        print(f"{name:<12}{positives:>11.2f}{alone:>13.1%}{speed:>10,.0f}")
    ratios = {
        name: [row[2] / other[2] for row, other in zip(rows, found["unprepared"], strict=True)]
        for name, rows in found.items()
    }
    return {
        "positives_vs_kept": round(median["prepared"][0] / kept[0], 3),
        "unprepared_vs_kept": round(median["unprepared"][0] / kept[0], 3),
        "speed_vs_unprepared": round(statistics.median(ratios["prepared"]), 3),
        "speed_ratios": {name: [round(r, 3) for r in row] for name, row in ratios.items()},
    }


def write_images(folder: Path, clusters: np.ndarray, size: int) -> None:
    """Parquet files of random images, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(2)
    for start in range(0, len(clusters), FILE_ROWS):
        file = folder / f"part-{start // FILE_ROWS:05d}.parquet"
        if file.exists():
            continue
        rows = range(start, min(start + FILE_ROWS, len(clusters)))
        columns = {"id": list(rows), "cluster": clusters[start : rows.stop]}
        columns["image"] = pa.array([picture(rng, size) for _ in rows], pa.binary())
        pq.write_table(pa.table(columns), file, row_group_size=GROUP_ROWS)


def write_files(folder: Path, clusters: np.ndarray, size: int) -> None:
    """An image folder with a metadata table, unless it is there."""
    rng, table = np.random.default_rng(2), folder / "metadata.csv"
    if table.exists():
        return
    lines = ["file_name,id,cluster"]
    for row, cluster in enumerate(clusters.tolist()):
        name = f"{row // 1000:05d}/{row:08d}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(rng, size))
        lines.append(f"{name},{row},{cluster}")
    table.write_text("\n".join(lines))


def picture(rng: np.random.Generator, size: int) -> bytes:
    """A PNG of random patches, about 1 kB at 32 pixels."""
    patches = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
    pixels = patches.repeat(size // 8, axis=0).repeat(size // 8, axis=1)
    pixels[::4] ^= rng.integers(0, 32, (len(pixels[::4]), size, 3)).astype(np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG", compress_level=1)
    return sink.getvalue()


def start_ray(nodes: int, store: int) -> None:
    """A local Ray; with several nodes each has one CPU more than its worker."""
    quiet_ray()
    kwargs: dict[str, Any] = {"num_cpus": 2, "object_store_memory": store * 2**20}
    if nodes == 1:
        ray.init(address="local", include_dashboard=False, logging_level="ERROR",
                 log_to_driver=False, **kwargs)  # fmt: skip
        return
    cluster = Cluster(initialize_head=True, head_node_args=kwargs | {"include_dashboard": False})
    for _ in range(nodes - 1):
        cluster.add_node(**kwargs)
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)


def read_epoch(
    path: str, keep: str, clusters: np.ndarray, options: argparse.Namespace, epoch: int
) -> tuple[float, float, float]:
    """Positives per anchor, share of anchors without any, and images per second of all workers,
    the first batch included."""
    data = DataConfig(path=path, image_size=options.size, keep=keep)  # type: ignore[arg-type]
    stream = plan_stream(open_source(data), np.arange(len(clusters)), data)
    parts: list[Any] = [None] * options.nodes
    if keep == "streaming":
        reader = Reader(
            stream, clusters, rank=0, world=options.nodes, batch_size=options.batch, seed=0, group=2
        )
        rows = reader.dataset(epoch, None)
        parts = rows.streaming_split(options.nodes, equal=True)  # type: ignore[assignment]
    kept = ray.put(clusters)
    started = time.perf_counter()
    work = [
        read_part.options(scheduling_strategy="SPREAD").remote(
            stream, part, kept, rank, options.nodes, options.batch, epoch
        )
        for rank, part in enumerate(parts)
    ]
    batches = np.concatenate(ray.get(work))
    return *sampler.meeting(batches), batches.size / (time.perf_counter() - started)


@ray.remote(num_cpus=0.5)
def read_part(
    stream: Stream, part: Any, clusters: np.ndarray, rank: int, world: int, batch: int, epoch: int
) -> np.ndarray:
    """int64 (steps, b): the clusters in the batches of one worker."""
    reader = Reader(stream, clusters, rank=rank, world=world, batch_size=batch, seed=0, group=2)

    def tables() -> Iterator[pa.Table]:
        return iter(part.iter_batches(batch_size=None, batch_format="pyarrow"))

    batches = reader.epoch(epoch, None, tables if part is not None else None)
    return np.stack([batch.clusters[:, 0].numpy() for batch in batches])


def slices(order: np.ndarray, batch: int, world: int) -> np.ndarray:
    """int (steps · world, b): what each worker has of each batch of an order."""
    steps = len(order) // batch
    return order[: steps * batch].reshape(steps * world, batch // world)


if __name__ == "__main__":
    main()
