"""Features of images that were made before: Parquet parts below the cache folder."""

from __future__ import annotations

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import Dataset

from wcl_ray.clusters.cache import unwritten
from wcl_ray.storage import Folder
from wcl_ray.terminal import say, warn

DONE = "done.json"
LARGEST = 2 << 30  # bytes of features that are kept
CPUS = 0.1  # of a task that reads or writes a part: other things hold the CPUs


def load_features(folder: Folder | None, name: str) -> Dataset | None:
    """Features as they were kept, None when they were not (or not to the end)."""
    if folder is None or not (own := folder / f"features/{name}").exists(DONE):
        return None
    parts = json.loads(own.read(DONE))["parts"]
    refs = [_read.remote(own, part) for part in range(parts)]
    try:
        ray.get([_rows.remote(ref) for ref in refs])
    except ray.exceptions.RayTaskError as error:
        warn(f"the features in {own.uri} cannot be read ({error.cause}); they are made again")
        return None
    say("features", f"from the cache in {folder.uri}")
    return ray.data.from_arrow_refs(refs)


def keep_features(folder: Folder | None, name: str, features: Dataset) -> None:
    """Keep features that are materialised; too many, or in a folder that cannot be written, are
    not kept."""
    if folder is None or (features.size_bytes() or 0) > LARGEST:
        return
    own = folder / f"features/{name}"
    refs = features.to_arrow_refs()
    try:
        ray.get([_write.remote(own, part, ref) for part, ref in enumerate(refs)])
        own.write(DONE, json.dumps({"parts": len(refs)}).encode())
    except (OSError, ray.exceptions.RayTaskError) as error:
        unwritten(folder, error if isinstance(error, OSError) else error.cause)


@ray.remote(num_cpus=CPUS, scheduling_strategy="DEFAULT")
def _write(folder: Folder, part: int, table: pa.Table) -> None:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    folder.write(f"part-{part:05d}.parquet", sink.getvalue())


@ray.remote(num_cpus=CPUS, scheduling_strategy="DEFAULT")
def _read(folder: Folder, part: int) -> Any:
    return pq.read_table(io.BytesIO(folder.read(f"part-{part:05d}.parquet")))


@ray.remote(num_cpus=CPUS, scheduling_strategy="DEFAULT")
def _rows(table: pa.Table) -> int:
    return int(table.num_rows)
