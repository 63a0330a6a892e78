"""Run by test_cluster.py as a driver on a cluster of two working nodes; prints JSON."""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from PIL import Image
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from runs import N

from wcl_ray.config import DataConfig, EvaluateConfig, ModelConfig
from wcl_ray.data import sampler
from wcl_ray.data.blocks import Directory, describe
from wcl_ray.data.homes import number_homes, places_of
from wcl_ray.data.pixels import cpus_for_decoding
from wcl_ray.data.reader import Reader
from wcl_ray.data.sources import open_source
from wcl_ray.data.sources.base import FAULT, ID, IMAGE, KEY, POSITION
from wcl_ray.data.stream import Stream, plan_stream
from wcl_ray.errors import UserError
from wcl_ray.evaluate.run import evaluate_encoder
from wcl_ray.kmeans.kmeans import KMeans
from wcl_ray.kmeans.placement import find_homes
from wcl_ray.kmeans.vectors import open_vectors
from wcl_ray.kmeans.worker_group import WorkerGroup
from wcl_ray.model.encoder import EncoderSpec, build_encoder
from wcl_ray.runs.nodes import check_shared
from wcl_ray.runs.summary import store_stats
from wcl_ray.storage import Folder

ROWS, PARTS = 6000, 12


def table(part: int) -> pa.Table:
    rng = np.random.default_rng(part)
    ids = np.arange(part, ROWS * PARTS, PARTS)
    vectors = rng.normal(size=(len(ids), 8)).astype(np.float32)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 8)
    return pa.table({"__id": ids, "feature": flat})


def shards() -> dict[str, Any]:
    """Actors of k-means sit where their blocks are, and the bits do not depend on it."""
    nodes = [n["NodeID"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU")]
    make = ray.remote(table)
    refs = [  # alternately on both nodes
        make.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(nodes[i % 2], soft=False)
        ).remote(i)
        for i in range(PARTS)
    ]
    ray.wait(refs, num_returns=PARTS, fetch_local=False)
    data = ray.data.from_arrow_refs(refs)
    vectors = open_vectors(data)
    homes = find_homes(vectors)
    workers = WorkerGroup(
        vectors, actors=4, cpus=1, gpu=False, spherical=False, kernel="gemm", seed=0
    )
    where = ray.get([actor.node.remote() for actor in workers.actors])
    local = total = 0
    for shard, node in zip(workers.pieces, where, strict=True):
        for piece in shard:
            total += piece.stop - piece.start
            local += (piece.stop - piece.start) * (homes.node(piece) == node)
    workers.stop()
    bits = []
    for source in (data, pa.concat_tables([table(i) for i in range(PARTS)])):
        given = source if source is data else ray.data.from_arrow(source)
        model = KMeans([16], actors=3 if source is data else 1, iterations=3).fit(given)
        digest = hashlib.sha256(np.ascontiguousarray(model.centroids_[0]).tobytes())
        digest.update(np.ascontiguousarray(model.labels_).tobytes())
        bits.append(digest.hexdigest())
    return {"nodes": len(set(where)), "local": local / total, "bits": bits}


def shared(folder: str) -> dict[str, Any]:
    """The check of the storage: a folder all see, and one that the other nodes do not."""
    check_shared(Folder(folder))
    found = {"left": Folder(folder).names()}
    import wcl_ray.runs.nodes as own

    blind = ray.remote(num_cpus=0)(lambda folder, name: False)
    own._sees = blind  # another machine, whose disk is not this one's
    try:
        check_shared(Folder(folder))
    except UserError as error:
        found["error"] = str(error)
    return found


def evaluated(folder: str) -> dict[str, Any]:
    """Figures by tasks on CPUs, and by an actor and a task that each hold a GPU: how many test
    images, and how many GPUs the task has that works out kNN and probe."""
    import wcl_ray.evaluate.embed
    import wcl_ray.evaluate.run

    def reserved(*unused: Any) -> dict[str, float]:
        return {"gpus": float(len(ray.get_gpu_ids()))}

    for module in (wcl_ray.evaluate.embed, wcl_ray.evaluate.run):
        module.device_for = lambda gpus: "cpu"  # these GPUs are only told of
    data = DataConfig(path=folder, image_size=16)
    model = ModelConfig()
    weights = EncoderSpec(model, 16).export(build_encoder(model, 16))
    found = {}
    for name, gpu in (("cpu", False), ("gpu", True)):
        rows = open_source(data).images(("species",))
        figures = evaluate_encoder(
            weights, rows, rows, label="species", store_size=16, config=EvaluateConfig(), seed=0,
            gpu=gpu, extra_metrics=reserved,
        )  # fmt: skip
        found[name] = [figures["test_images"], figures["gpus"]]
    return found


def decoding(folder: str) -> dict[str, Any]:
    """Where the one block of some images is made, six times: how often on a node with a GPU."""
    data = DataConfig(path=folder, image_size=64, keep="raw")  # not inlined
    images = open_source(data)
    graphics = {n["NodeID"]: n["Resources"].get("GPU", 0) for n in ray.nodes()}
    blocks = [plan_stream(images, np.arange(N), data).blocks for _ in range(6)]
    tables = [Directory(one).tables() for one in blocks if one is not None]
    where = ray.experimental.get_object_locations([ref for (ref,) in tables])
    found = {"gpu": sum(graphics[row["node_ids"][0]] > 0 for row in where.values())}
    return found | ray.get(_stream_on_gpu_node.remote(folder, graphics))


@ray.remote(num_gpus=1)
def _stream_on_gpu_node(folder: str, graphics: dict[str, float]) -> dict[str, Any]:
    """Read a streamed epoch whose images are decoded by tasks: how often on a node with a GPU."""
    data = DataConfig(path=folder, image_size=64, store_size=72, keep="streaming")
    stream = plan_stream(open_source(data), np.arange(N), data)
    clusters = np.zeros((N, 1), np.int32)
    reader = Reader(stream, clusters, rank=0, world=1, batch_size=8, seed=0, group=2)

    refs = reader.dataset(0, None, elsewhere=True).to_arrow_refs()
    where = ray.experimental.get_object_locations(refs)

    def tables() -> Iterator[pa.Table]:
        for ref in refs:
            table = ray.get(ref)
            assert IMAGE not in table.column_names
            yield table

    streamed = sum(len(batch.ids) for batch in reader.epoch(0, None, tables))
    first = [graphics[row["node_ids"][0]] > 0 for row in where.values()]
    cpus = [cpus_for_decoding(1, 1.0), cpus_for_decoding(1, 2.0)]
    return {"streamed": streamed, "decoded_on_gpu_nodes": sum(first), "cpus": cpus}


BLOCKS, IN_BLOCK, SIDE = (13, 9), 40, 256  # 173 MB of pixels: 102 and 71 on the two nodes


def block(number: int, keep: str) -> pa.Table:
    """Pictures of one colour, which tells their number."""
    ids = np.arange(number, sum(BLOCKS) * IN_BLOCK, sum(BLOCKS))
    colours = np.stack([ids // 256, ids % 256, 0 * ids], 1).astype(np.uint8)
    first = {ID: ids, KEY: ids.astype(str), FAULT: pa.nulls(len(ids), pa.string()), POSITION: ids}
    if keep == "raw":
        flat = np.repeat(colours, SIDE * SIDE, 1).tobytes()
        buffers = [None, pa.py_buffer(flat)]
        kind = pa.binary(3 * SIDE * SIDE)
        pixels = pa.FixedSizeBinaryArray.from_buffers(kind, len(ids), buffers)
        return pa.table(first | {"__pixels": pixels, "__aspect": np.ones(len(ids), np.float32)})
    files = []
    for colour in colours:
        sink = io.BytesIO()
        Image.new("RGB", (SIDE, SIDE), tuple(colour.tolist())).save(sink, "BMP")
        files.append(sink.getvalue())
    return pa.table(first | {IMAGE: pa.array(files, pa.large_binary())})


class Counting(Reader):
    """Counts the blocks that are open."""

    held = 0

    def _open(self, numbers: np.ndarray) -> int:
        fetched = super()._open(numbers)
        self.held = max(self.held, len(self._blocks))
        return fetched


@ray.remote(num_cpus=1)
def read(stream: Stream, blocks: np.ndarray, rank: int, largest: int) -> dict[str, Any]:
    """Three epochs of one of two workers, and what it held."""
    places = places_of(blocks, np.arange(2), rank, largest)
    clusters = (np.arange(stream.rows) % 30).astype(np.int32)[:, None]
    reader = Counting(
        stream, clusters, rank=rank, world=2, batch_size=16, seed=0, group=2, window=80,
        places=places,
    )  # fmt: skip
    seen, local, met = [], 0.0, 0.0
    for epoch in range(3):
        order, rows = reader._dealt_order(epoch, None)
        local += float((blocks[reader._block_of(rows)] == rank).mean()) / 3
        met += sampler.meeting(clusters[order, 0])[0] / 3
        ids = []
        for batch in reader.epoch(epoch, None):
            colours = batch.images[:, :2, 0, 0].numpy().astype(int)
            assert (colours[:, 0] * 256 + colours[:, 1]).tolist() == batch.ids.tolist()
            ids += batch.ids.tolist()
        seen.append(ids)
    held = {"max_blocks": places.max_blocks, "held": reader.held, "left": len(reader._blocks)}
    held["known"] = len(reader.directory._known)
    return {"seen": seen, "local": local, "met": met, **held}


def dealt(keep: str) -> dict[str, Any]:
    """Blocks of two nodes, which neither could hold, read by a worker on each."""
    nodes = [n["NodeID"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU")]
    pinned = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
    homes = [0] * BLOCKS[0] + [1] * BLOCKS[1]
    make = ray.remote(block)
    refs = [
        make.options(scheduling_strategy=pinned[home]).remote(number, keep)
        for number, home in enumerate(homes)
    ]
    ids = np.arange(len(refs) * IN_BLOCK)
    ray.wait(refs, num_returns=len(refs), fetch_local=False)
    blocks, _ = describe(refs)
    size = SIDE if keep == "raw" else 16
    stream = Stream(keep, "", size, len(ids), False, ray.put(ids), blocks)
    numbers, largest = number_homes(refs, nodes)
    before = store_stats().spilled_bytes_total
    work = [
        read.options(scheduling_strategy=pinned[rank]).remote(stream, numbers, rank, largest)
        for rank in range(2)
    ]
    found = ray.get(work)
    spilled = store_stats().spilled_bytes_total - before
    return {"homes": numbers.tolist(), "spilled": spilled, "before": before, "workers": found}


if __name__ == "__main__":
    ray.init(logging_level="ERROR", log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    print(
        "JSON" + json.dumps([globals()[name](*words) for name, *words in json.loads(sys.argv[1])])
    )
