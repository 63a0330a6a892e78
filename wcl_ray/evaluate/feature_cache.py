"""Features of images that were made before: Parquet parts below the cache folder.

The parts of one writer have names of their own, and a list of them is written last. So writers of
the same features do not mix, and what was not written to the end is not there.
"""

from __future__ import annotations

import hashlib
import io
import json
import uuid
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import Dataset

from wcl_ray.clusters.cache import unwritten
from wcl_ray.data.sources.base import FAULT, ID
from wcl_ray.storage import Folder
from wcl_ray.terminal import say, warn

DONE = "done.json"
LARGEST = 2 << 30  # bytes of features that are kept
CPUS = 0.1  # of a task that reads or writes a part: other things hold the CPUs
COLUMNS = (ID, FAULT, "feature")


def weights_digest(*contents: bytes | None) -> str:
    """Hash of exported weights: of the tensors and the facts about them, whose order in the file is
    left to chance."""
    found = hashlib.sha256()
    for content in contents:
        if content is None:
            found.update(b"none")
            continue
        start = 8 + int.from_bytes(content[:8], "little")  # of the tensors, behind the header
        header = json.dumps(json.loads(content[8:start]), sort_keys=True).encode()
        found.update(len(header).to_bytes(8, "little") + header)
        found.update(len(content).to_bytes(8, "little"))
        found.update(memoryview(content)[start:])
    return found.hexdigest()[:40]


def load_features(folder: Folder | None, name: str) -> Dataset | None:
    """Features as they were kept, ``__id``, ``__fault`` and ``feature`` in the order of then; None
    when they were not (or not to the end)."""
    if folder is None:
        return None
    own = folder / f"features/{name}"
    try:
        if not own.exists(DONE):
            return None
        parts = json.loads(own.read(DONE))["parts"]
        read = [_read.remote(own, part["file"], part["hash"]) for part in parts]
        ray.get([good for _, good in read])
    except (OSError, ValueError, KeyError, TypeError, ray.exceptions.RayError) as error:
        text = getattr(error, "cause", None) or error
        warn(f"the features in {own.uri} cannot be read ({text}); they are made again")
        return None
    say("features", f"from the cache in {folder.uri}")
    return ray.data.from_arrow_refs([table for table, _ in read])


def keep_features(folder: Folder | None, name: str, features: Dataset) -> None:
    """Keep features that are materialised; too many, or in a folder that cannot be written, are
    not kept."""
    if folder is None or (features.size_bytes() or 0) > LARGEST:
        return
    own, token = folder / f"features/{name}", uuid.uuid4().hex[:12]
    try:
        refs = features.to_arrow_refs()
        files = [f"{token}-{number:05d}.parquet" for number in range(len(refs))]
        hashes = ray.get([_write.remote(own, f, ref) for f, ref in zip(files, refs, strict=True)])
        parts = [{"file": f, "hash": h} for f, h in zip(files, hashes, strict=True) if h]
        if parts:
            own.write(DONE, json.dumps({"parts": parts}).encode())
    except (OSError, ray.exceptions.RayError) as error:
        unwritten(folder, getattr(error, "cause", None) or error)


@ray.remote(num_cpus=CPUS, scheduling_strategy="DEFAULT")
def _write(folder: Folder, file: str, table: pa.Table) -> str | None:
    """Write a part; returns its hash. Empty ones, which may lack the columns, are left out."""
    if not table.num_rows:
        return None
    sink = io.BytesIO()
    pq.write_table(table.select(COLUMNS), sink)
    folder.write(file, sink.getvalue())
    return hashlib.sha256(sink.getvalue()).hexdigest()


@ray.remote(num_cpus=CPUS, num_returns=2, scheduling_strategy="DEFAULT")
def _read(folder: Folder, file: str, digest: str) -> tuple[Any, bool]:
    content = folder.read(file)
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(f"{file} is damaged")
    return pq.read_table(io.BytesIO(content)), True
