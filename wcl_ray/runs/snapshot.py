"""Ray Train's list of checkpoints, mended where a full disk or a lost process has cut it short.

Ray Train writes the list in place, after every checkpoint; without it no checkpoint is found again.
"""

from __future__ import annotations

import json
import zipfile

import ray

from wcl_ray.storage import Folder
from wcl_ray.terminal import warn
from wcl_ray.train.checkpoint import FILE

LIST = "checkpoint_manager_snapshot.json"


def mend_snapshot(train: Folder) -> None:
    """Write a list that cannot be read again, with the newest checkpoint that is whole.

    Args:
        train: Ray Train's folder of a round.
    """
    if not train.exists(LIST) or _readable(train):
        return
    names = [name for name in train.names() if name.startswith("checkpoint_") and name != LIST]
    whole = next((name for name in reversed(names) if _whole(train / name)), None)
    if whole is None:
        warn(f"{train.uri}/{LIST} is damaged and there is no checkpoint; training starts anew")
        train.delete(LIST)
        return
    warn(f"{train.uri}/{LIST} is damaged; {whole} is the newest checkpoint that is whole")
    last = {"version": 0, "checkpoint_dir_name": whole, "metrics": {}}
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
    train.write(LIST, json.dumps(content).encode())


def _readable(train: Folder) -> bool:
    """Whether the list is whole and all that it names is there."""
    try:
        results = json.loads(train.read(LIST))["checkpoint_results"]
        return all((train / result["checkpoint_dir_name"]).exists(FILE) for result in results)
    except (ValueError, KeyError, TypeError):
        return False


def _whole(checkpoint: Folder) -> bool:
    """A file of torch is a ZIP archive, whose contents are listed at its end."""
    if not checkpoint.exists(FILE):
        return False
    with checkpoint.fs.open_input_file(checkpoint.file(FILE)) as stream:
        return zipfile.is_zipfile(stream)
