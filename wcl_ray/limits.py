"""Ray's resource errors as one line: where, how much is missing, and the remedy."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import suppress

import ray
import torch
from ray.exceptions import (
    ObjectStoreFullError,
    OutOfDiskError,
    OutOfMemoryError,
    RayTaskError,
    RuntimeEnvSetupError,
)

from wcl_ray.errors import StorageError, UserError, causes
from wcl_ray.terminal import bytes_text

KEEP_LESS = "keep less in it (--data.keep streaming, or a smaller --data.image-size)"
SPILL = "RAY_object_spilling_directory"


def object_store_full(error: BaseException) -> StorageError | None:
    """A permanent StorageError if Ray had no space for an object, else None."""
    if _cause(error, OutOfDiskError):
        fault = (
            f"Ray's object store is full, and so is the disk it spills to: {_spill_folder(error)}"
        )
        remedy = f"let Ray spill to another disk ({SPILL}=FOLDER before it starts)"
        return StorageError(f"{fault}; free some space, {remedy}, or {KEEP_LESS}", permanent=True)
    if _cause(error, ObjectStoreFullError):
        fault = "Ray's object store is full and nothing in it can be spilled"
        remedy = "start Ray with a larger one (ray start --object-store-memory BYTES)"
        return StorageError(f"{fault}; {remedy}, or {KEEP_LESS}", permanent=True)
    return None


def gpu_full(error: BaseException) -> UserError | None:
    """A UserError if a worker's GPU had no memory for a tensor, else None."""
    full = _cause(error, torch.OutOfMemoryError)
    if full is None:
        return None
    asked = re.search(r"allocate ([\d.]+ \w+)", str(full))
    of = re.search(r"capacity of ([\d.]+ \w+)", str(full))
    lacking = f" (of {of[1]}, for a tensor of {asked[1]})" if asked and of else ""
    return UserError(
        f"a worker's GPU ran out of memory{lacking}; give a (smaller) --train.micro-batch-size and "
        "repeat the command with --resume"
    )


def limit_reached(error: BaseException) -> UserError | StorageError | None:
    """Explain an exception of Ray that the user can do something about; None for any other."""
    if (killed := _cause(error, OutOfMemoryError)) is not None:
        text = str(killed)
        address = re.search(r"node \(IP: ([^,)]+)", text)
        used = re.search(r"([\d.]+)GB[a-z ]* / ([\d.]+)GB", text)
        node = f"the node {address[1]}" if address else "a node"
        in_use = f" ({used[1]} of {used[2]} GB in use)" if used else ""
        return UserError(
            f"{node} ran out of memory{in_use}, and Ray killed a process; lower --scale.workers, "
            "--train.batch-size or --data.image-size, or end other programs on the node"
        )
    if (setup := _cause(error, RuntimeEnvSetupError)) is not None:
        reason = " ".join(str(setup).split())[:300]
        return UserError(f"Ray could not set up the runtime environment of the job: {reason}")
    return object_store_full(error)


def _cause(error: BaseException, kind: type[Exception]) -> BaseException | None:
    """The exception of a type among the causes, other than Ray's wrapper for tasks."""
    matches = (e for e in causes(error) if isinstance(e, kind) and not isinstance(e, RayTaskError))
    return next(matches, None)


def _spill_folder(error: BaseException) -> str:
    """The folder that Ray spills to; on this node also the free space of its disk."""
    folder = ""
    with suppress(Exception):  # Ray has no public way to ask
        spilling = ray._private.worker._global_node._get_object_spilling_config()
        folder = str(json.loads(spilling)["params"]["directory_path"])
    folder = folder or "its session folder"
    address = re.search(r"\(pid=\d+, ip=([^,)]+)", str(error))  # of the task that failed
    if address and address[1] != ray.util.get_node_ip_address():
        return f"{folder} on the node {address[1]}"
    with suppress(OSError):
        disk = shutil.disk_usage(folder)
        free = f"{bytes_text(disk.free)} of {bytes_text(disk.total)} are free"
        return f"{folder}, where {free} and Ray keeps 5 % free"
    return folder
