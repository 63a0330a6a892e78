"""What Ray itself ran out of, as one line that says where, how much is missing, and what to do."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import suppress

import ray
from ray.exceptions import (
    ObjectStoreFullError,
    OutOfDiskError,
    OutOfMemoryError,
    RayTaskError,
    RuntimeEnvSetupError,
)

from wcl_ray.errors import StorageError, UserError, causes
from wcl_ray.terminal import bytes_text

LESS = "keep less there (--data.keep streaming, or a smaller --data.image-size)"
SPILL = "RAY_object_spilling_directory"


def no_room(error: BaseException) -> StorageError | None:
    """A lasting StorageError where Ray had no room for an object, else None."""
    if _inside(error, OutOfDiskError):
        what = (
            f"Ray's object store is full, and so is the disk it spills to: {_spill_folder(error)}"
        )
        other = f"let Ray spill to another disk ({SPILL}=FOLDER before it starts)"
        return StorageError(f"{what}; make room there, {other}, or {LESS}", lasting=True)
    if _inside(error, ObjectStoreFullError):
        what = "Ray's object store is full and nothing in it can be spilled"
        more = "start Ray with a larger one (ray start --object-store-memory BYTES)"
        return StorageError(f"{what}; {more}, or {LESS}", lasting=True)
    return None


def limit_reached(error: BaseException) -> UserError | StorageError | None:
    """What the user can do about what Ray raised; None where it is nothing of the kind."""
    if (killed := _inside(error, OutOfMemoryError)) is not None:
        text = str(killed)
        place = re.search(r"node \(IP: ([^,)]+)", text)
        used = re.search(r"([\d.]+)GB[a-z ]* / ([\d.]+)GB", text)
        what = f"the node {place[1]} ran out of memory" if place else "a node ran out of memory"
        what += f" ({used[1]} of {used[2]} GB in use)" if used else ""
        return UserError(
            f"{what}, and Ray killed a process; lower --scale.workers, --train.batch-size or "
            "--data.image-size, or end other programs there"
        )
    if (setup := _inside(error, RuntimeEnvSetupError)) is not None:
        why = " ".join(str(setup).split())[:300]
        return UserError(f"Ray could not set up the runtime environment of the job: {why}")
    return no_room(error)


def _inside(error: BaseException, kind: type[Exception]) -> BaseException | None:
    """The exception of a kind without the task that raised it."""
    inside = (e for e in causes(error) if isinstance(e, kind) and not isinstance(e, RayTaskError))
    return next(inside, None)


def _spill_folder(error: BaseException) -> str:
    """The folder, and how full its disk is where it is that of this node."""
    folder = ""
    with suppress(Exception):  # Ray tells nobody but its own parts
        spilling = ray._private.worker._global_node._get_object_spilling_config()
        folder = str(json.loads(spilling)["params"]["directory_path"])
    folder = folder or "its session folder"
    raised = re.search(r"\(pid=\d+, ip=([^,)]+)", str(error))  # by a task
    if raised and raised[1] != ray.util.get_node_ip_address():
        return f"{folder} on the node {raised[1]}"
    with suppress(OSError):
        disk = shutil.disk_usage(folder)
        free = f"{bytes_text(disk.free)} of {bytes_text(disk.total)} are free"
        return f"{folder}, where {free} and Ray leaves 5 %"
    return folder
