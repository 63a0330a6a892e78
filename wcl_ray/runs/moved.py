"""Check that a run whose images were moved still has the same images.

Ids of images are the user's own or hashes of names relative to the folder, so they stay the same
when the folder is moved. A run keeps a count and a hash of its ids in ``config.json``, and those of
the images that have a row in its metadata table. A run without the latter was started without a
table, so that none is looked for later.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import ray
from ray.data import Dataset

from wcl_ray.config import DataConfig
from wcl_ray.data.ids import array_digest
from wcl_ray.data.images import SIDES, TEST, TRAIN, Images
from wcl_ray.data.sources.base import ID
from wcl_ray.errors import UserError
from wcl_ray.runs.stored import FILE, LOCATIONS, read_stored
from wcl_ray.storage import Folder
from wcl_ray.terminal import say

# of the images with a row in a metadata table; TABLE: of the training images
TABLE, TEST_TABLE = "table", "test_table"


def id_summary(ids: np.ndarray) -> dict[str, Any]:
    """Count and hash of sorted ids, int64 (N,)."""
    return {"count": len(ids), "ids": array_digest(ids)}


def side_summaries(images: Images) -> dict[str, Any]:
    """The same of test images with a source of their own, under ``test`` if the run uses them, and
    :func:`table_summaries`."""
    summaries = table_summaries(images)
    if images.test is not None and images.label is not None and not images.validation:
        summaries[TEST] = _dataset_id_summary(images.test.metadata())
    return summaries


def table_summaries(images: Images) -> dict[str, Any]:
    """The same of the images with a row in a metadata table, under ``table`` and ``test_table``, if
    there is one."""
    return {
        name: {"count": source.match.matched, "ids": source.match.ids}
        for name, source in ((TABLE, images.train), (TEST_TABLE, images.test))
        if source is not None and source.match is not None
    }


def table_sides(stored: dict[str, Any]) -> tuple[str, ...]:
    """Sides whose images had a metadata table when a run was started; a table that lies beside them
    since then, or that older versions did not read, must not change the columns of the run.

    Args:
        stored: summaries in ``config.json``.
    """
    return tuple(s for s, name in zip(SIDES, (TABLE, TEST_TABLE), strict=True) if name in stored)


def find_tables(run: Folder) -> tuple[str, ...]:
    """Sides at whose top a run or search looks for a table: both until it has been started."""
    return table_sides(read_stored(run).images) if run.exists(FILE) else SIDES


def moves(run: Folder, data: DataConfig) -> dict[str, tuple[Any, Any]]:
    """Locations that have changed since the run was started: option → (then, now)."""
    stored = read_stored(run).options["data"]
    names = [name.removeprefix("data.") for name in LOCATIONS]
    pairs = {name: (stored[name], getattr(data, name)) for name in names}
    return {f"data.{name}": (then, now) for name, (then, now) in pairs.items() if then != now}


def check_moves(
    run: Folder, data: DataConfig, images: Images, train: dict[str, Any] | None = None
) -> None:
    """If locations have changed, compare the images with those of the run and store the new
    locations. What an older version did not store cannot be compared, which is printed.

    Args:
        train: summary of the run's training and validation images if ``config.json`` has none:
            ``count``, and ``ids`` if known.

    Raises:
        UserError: the images differ, or nothing is known of the run's.
    """
    changed = moves(run, data)
    if not changed:
        return
    known = read_stored(run).images
    train, run_images = (
        (known[TRAIN], images) if TRAIN in known else (train, images.without_validation())
    )
    if train is None:
        old, new = next(iter(changed.values()))
        raise UserError(
            f"{run.uri} was started with images in {old} and stores nothing to compare with those "
            f"in {new}; use the old path, or choose another --name"
        )
    current = _dataset_id_summary(run_images.metadata())
    compared = {"data.path": _compare("data.path", data.path, "training images", train, current)}
    now = side_summaries(images)
    if TEST in now:
        compared["data.eval_path"] = _compare(
            "data.eval-path", data.eval_path, "test images", known.get(TEST, {}), now[TEST]
        )
    if "data.table" in changed and TABLE in now:
        compared["data.table"] = _compare(
            "data.table", data.table, "rows of images", known.get(TABLE, {}), now[TABLE]
        )
    content = json.loads(run.read(FILE))
    for name, (old, new) in changed.items():
        content["config"]["data"][name.partition(".")[2]] = new
        result = compared.get(name, "its images are not used")
        say("moved", f"{name.replace('_', '-')} was {old}, now {new}; {result}")
    run.write(FILE, json.dumps(content, indent=2).encode())


def _compare(
    option: str, path: str | None, what: str, old: dict[str, Any], new: dict[str, Any]
) -> str:
    """Compare what is known of both; returns in words what agrees.

    Raises:
        UserError: the ids or their number differ.
    """
    known = old.keys() & new.keys()
    if all(old[key] == new[key] for key in known):
        if "ids" in known:
            return "the ids are the same"
        if "count" in known:
            return f"{new['count']:,} {what} as before, whose ids were not stored"
        return f"nothing was stored about the {what}, so nothing was compared"
    if old["count"] == new["count"]:
        text = f"{new['count']:,} {what}, but not those of the run (other ids)"
    else:
        text = f"{new['count']:,} {what}, the run has {old['count']:,}"
    raise UserError(
        f"--resume: {option} {path} holds {text}; give the current path, or "
        "start a new run under another --name"
    )


def _dataset_id_summary(rows: Dataset) -> dict[str, Any]:
    refs = rows.select_columns([ID]).to_arrow_refs()
    return ray.get(_summarise.remote(refs))  # type: ignore[no-any-return]


@ray.remote(num_cpus=0)
def _summarise(refs: list[Any]) -> dict[str, Any]:
    return id_summary(sorted_ids(refs))


def sorted_ids(refs: list[Any]) -> np.ndarray:
    """The sorted ids in references to tables, int64 (N,)."""
    ids = [table[ID].to_numpy() for table in ray.get(refs) if table.num_rows]
    return np.sort(np.concatenate(ids)) if ids else np.empty(0, np.int64)
