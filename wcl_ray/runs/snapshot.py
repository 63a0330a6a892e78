"""Repair of Ray Train's list of checkpoints, which a full disk or a killed process can truncate.

Ray Train writes the list in place after every checkpoint, and finds no checkpoint without it.
"""

from __future__ import annotations

import json
import zipfile

import ray

from wcl_ray.storage import Folder
from wcl_ray.terminal import warn
from wcl_ray.train.checkpoint import FILE

SNAPSHOT = "checkpoint_manager_snapshot.json"


def repair_snapshot(train: Folder) -> None:
    """Replace a list that cannot be read by one of the newest intact checkpoint.

    Args:
        train: Ray Train's folder of a round.
    """
    if not train.exists(SNAPSHOT) or _readable(train):
        return
    names = [name for name in train.names() if name.startswith("checkpoint_") and name != SNAPSHOT]
    newest = next((name for name in reversed(names) if _intact(train / name)), None)
    if newest is None:
        warn(f"{train.uri}/{SNAPSHOT} is damaged and there is no checkpoint; training starts over")
        train.delete(SNAPSHOT)
        return
    warn(f"{train.uri}/{SNAPSHOT} is damaged; {newest} is the newest intact checkpoint")
    last = {"version": 0, "checkpoint_dir_name": newest, "metrics": {}}
    content = {
        "ray_version": ray.__version__,
        "checkpoint_results": [last],
        "checkpoint_report_indices": [0],
        "latest_checkpoint_result": last,
        "pending_training_results": [],
        "pending_validation_specs": [],
        "current_report_index": 1,
        "validated_checkpoint_dir_names": [],
        "timed_out_validation_checkpoint_dir_names": [],
        "failed_validation_checkpoint_dir_names": [],
    }
    train.write(SNAPSHOT, json.dumps(content).encode())


def _readable(train: Folder) -> bool:
    """Whether the list is valid JSON and every checkpoint in it exists."""
    try:
        results = json.loads(train.read(SNAPSHOT))["checkpoint_results"]
        return all((train / result["checkpoint_dir_name"]).exists(FILE) for result in results)
    except (ValueError, KeyError, TypeError):
        return False


def _intact(checkpoint: Folder) -> bool:
    """Whether a checkpoint is complete: a ZIP archive, whose table of contents is at its end."""
    if not checkpoint.exists(FILE):
        return False
    with checkpoint.fs.open_input_file(checkpoint.file(FILE)) as stream:
        return zipfile.is_zipfile(stream)
