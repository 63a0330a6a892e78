"""Images that lie elsewhere than when a run was started: the same ones, or an error.

The ids of images are the user's own, or hashes of names relative to the folder, so they stay when
the folder is moved. Which ids a run has is in its ``config.json`` as a count and a hash.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import ray
from ray.data import Dataset

from wcl_ray.config import DataConfig
from wcl_ray.data.ids import array_digest
from wcl_ray.data.images import Images
from wcl_ray.data.sources.base import ID
from wcl_ray.errors import UserError
from wcl_ray.runs.stored import FILE, PLACES, read_stored
from wcl_ray.storage import Folder
from wcl_ray.terminal import say

TRAIN, TEST = "train", "test"


def facts_of(ids: np.ndarray) -> dict[str, Any]:
    """Count and hash of sorted ids, int64 (N,)."""
    return {"count": len(ids), "ids": array_digest(ids)}


def facts_of_tests(images: Images) -> dict[str, Any]:
    """The same of test images that have a source of their own, by side."""
    if images.test is None or images.label is None or images.validation:
        return {}
    return {TEST: _facts(images.test.metadata())}


def moves(run: Folder, data: DataConfig) -> dict[str, tuple[Any, Any]]:
    """Places that are others than when the run was started: option → (then, now)."""
    stored = read_stored(run).options["data"]
    names = [name.removeprefix("data.") for name in PLACES]
    places = {name: (stored[name], getattr(data, name)) for name in names}
    return {f"data.{name}": (then, now) for name, (then, now) in places.items() if then != now}


def check_moves(
    run: Folder, data: DataConfig, images: Images, train: dict[str, Any] | None = None
) -> None:
    """Go on with images from another place when they are those of the run; it is noted there.

    What an older version did not store cannot be compared, which is said.

    Args:
        train: facts of the run's training images, those for validation included, where
            ``config.json`` has none: ``count``, and ``ids`` where they are known.

    Raises:
        UserError: they are not.
    """
    changed = moves(run, data)
    if not changed:
        return
    known = read_stored(run).images
    train, side = (known[TRAIN], images) if TRAIN in known else (train, images.without_validation())
    if train is None:
        old, new = next(iter(changed.values()))
        raise UserError(
            f"{run.uri} was started with images in {old} and does not tell whether those in {new} "
            "are the same; put them there, or choose another --name"
        )
    compared = {
        "data.path": _compare("data.path", data.path, "training", train, _facts(side.metadata()))
    }
    now = facts_of_tests(images).get(TEST)
    if now is not None:
        compared["data.eval_path"] = _compare(
            "data.eval-path", data.eval_path, "test", known.get(TEST, {}), now
        )
    content = json.loads(run.read(FILE))
    for name, (old, new) in changed.items():
        content["config"]["data"][name.partition(".")[2]] = new
        result = compared.get(name, "its images are not used")
        say("moved", f"{name.replace('_', '-')} was {old}, now {new}; {result}")
    run.write(FILE, json.dumps(content, indent=2).encode())


def _compare(
    option: str, where: str | None, what: str, old: dict[str, Any], new: dict[str, Any]
) -> str:
    """What was found to agree.

    Raises:
        UserError: something that is known of both sides differs.
    """
    known = old.keys() & new.keys()
    if all(old[key] == new[key] for key in known):
        if "ids" in known:
            return "the ids are the same"
        if "count" in known:
            return f"{new['count']:,} {what} images as before, whose ids were not stored"
        return f"nothing is known of the {what} images there were, so nothing was compared"
    if old["count"] == new["count"]:
        text = f"{new['count']:,} {what} images, but not those of the run (other ids)"
    else:
        text = f"{new['count']:,} {what} images, the run has {old['count']:,}"
    raise UserError(
        f"--resume: {option} {where} holds {text}; give the place where its files are now, or "
        "start a new run under another --name"
    )


def _facts(rows: Dataset) -> dict[str, Any]:
    facts: dict[str, Any] = ray.get(_read.remote(rows.select_columns([ID]).to_arrow_refs()))
    return facts


@ray.remote(num_cpus=0)
def _read(refs: list[Any]) -> dict[str, Any]:
    parts = [table[ID].to_numpy() for table in ray.get(refs) if table.num_rows]
    return facts_of(np.sort(np.concatenate(parts)) if parts else np.empty(0, np.int64))
