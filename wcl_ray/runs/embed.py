"""Features of any images to Parquet (``jobs/embed.py``), as a job that can be stopped anywhere.

Every file of the output appears whole, under a name made of the ids in it. A job that starts finds
the ids that are there already and leaves their images out before decoding, so a stopped job goes
on, and new images of a source that grew are added. (Ray Data's own checkpoints need the ids where
the files are read; ids that are hashes of names are only made after that.)
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import Dataset

from wcl_ray import stopping
from wcl_ray.config import DataConfig, ScaleConfig
from wcl_ray.data.data_stats import note
from wcl_ray.data.images import open_images
from wcl_ray.data.sources.base import FAULT, ID, KEY, check_paths
from wcl_ray.data.stream import check_faults, positions_of
from wcl_ray.errors import UserError, reading
from wcl_ray.runs.folder import add_faults
from wcl_ray.runs.lock import LOCK, SIGN, RunLock
from wcl_ray.runs.nodes import check_shared, connect
from wcl_ray.runs.summary import ResourceSummary
from wcl_ray.runs.trained import Trained
from wcl_ray.storage import NOT_SEEN, Folder
from wcl_ray.terminal import Live, clock, say

ROWS = 4096  # images a file
FACTS, FAULTS = "_embedding.json", "_faults.jsonl"  # readers of Parquet folders pass over _ files
SQUASHED = "of the squashed image"  # what encoders see up to 64 pixels
NAMES = {"id": ID, "key": KEY, "feature": "feature"}  # columns of the output


def embed_run(
    run: str,
    out: str,
    given: dict[str, Any],
    *,
    features: Literal["projector", "backbone"] = "backbone",
    columns: tuple[str, ...] = (),
    scale: ScaleConfig | None = None,
) -> dict[str, Any]:
    """Embed images with the encoder of a run: columns ``id`` int64, ``key`` string, ``feature``
    (fixed-size list of float32, of unit length from the projector) and the wanted ones.

    Args:
        run: run folder. out: folder for the Parquet files; both a path or URI.
        given: options of ``data`` that replace those of the run; None keeps the run's.
        columns: metadata columns to hand on.

    Returns:
        The content of ``_embedding.json``.

    Raises:
        UserError: no finished run, wrong data options, a folder with other features, a duplicate
            id, or too many unreadable images.
    """
    scale = scale or ScaleConfig()
    trained = Trained.open(run, given.get("endpoint"))
    data = replace(trained.data(given), label=None, split_by=None)  # they are not looked at
    check_paths(data)
    folder = Folder(out.rstrip("/") or "/", data.endpoint)
    facts = _facts(trained, data, features, columns)
    with RunLock(folder, instead="use another --out"):
        _check_folder(folder, facts)
        folder.check()
        if folder.exists(FACTS):
            stopping.set_resume_hint("the same command goes on")
        return _embed(trained, data, folder, facts, scale)


def _embed(
    trained: Trained, data: DataConfig, folder: Folder, facts: dict[str, Any], scale: ScaleConfig
) -> dict[str, Any]:
    """Embed what is missing into a folder that no other process writes to."""
    columns, features = tuple(facts["columns"]), facts["features"]
    connect(scale)
    check_shared(folder)
    with ResourceSummary() as usage:
        with usage.stage("plan"):
            images = open_images(data, trained.config.storage, trained.config.seed)
            source = images.train
            source.check_columns(columns, "--columns")
            say("images", source.describe())
            parts = [name for name in folder.names() if name.endswith(".parquet")]
            refs = source.metadata().to_arrow_refs()
            plan = _plan.remote(refs, folder, parts)
            total, todo, _ = ray.get(plan)
        if todo < total:
            say("embed", f"{total - todo:,} of {total:,} images are in {folder.uri} already")
        folder.write(FACTS, json.dumps(facts, indent=2).encode())
        stopping.set_resume_hint("the same command goes on")
        rows = source.images(columns)
        if todo < total:
            rows = rows.map_batches(
                _missing, batch_format="pyarrow", batch_size=None, fn_kwargs={"plan": plan}
            )
        made = trained.embed(rows, features, scale, columns).map_batches(
            _write,
            batch_format="pyarrow",
            batch_size=ROWS,
            num_cpus=0.5,
            fn_kwargs={"folder": folder, "columns": columns},
        )
        with usage.stage("embed"):
            written, faults = _follow(made, folder, facts, total, todo, data.max_bad)
    facts |= {"rows": total - todo + written, "faults": faults}
    folder.write(FACTS, json.dumps(facts, indent=2).encode())
    if faults:
        say("faults", f"{faults} unreadable images, see {folder.uri}/{FAULTS}")
    usage.report()
    say("features", f"{facts['rows']:,} rows in {folder.uri}")
    return facts


def _follow(
    made: Dataset, folder: Folder, facts: dict[str, Any], total: int, todo: int, max_bad: float
) -> tuple[int, int]:
    """Show how far the tasks are; returns how many rows they wrote, and how many faults."""
    started, written = time.monotonic(), 0
    faults: list[dict[str, str]] = []
    live = Live("embed")
    try:
        for row in made.iter_rows() if todo else ():
            written += row["rows"]
            faults += json.loads(row["faults"])
            facts["dimensions"] = int(row["dimensions"])
            check_faults(faults, total, max_bad)
            speed = max(1, written + len(faults)) / (time.monotonic() - started)
            left = clock((todo - written - len(faults)) / speed)
            text = f"{total - todo + written:,}/{total:,} images  {speed:,.0f}/s  {left} left"
            live.show(text, (total - todo + written) / total)
        if todo:
            note("embedded", made, written + len(faults))
    finally:
        live.close()
        add_faults(folder, faults, FAULTS)
    return written, len(faults)


def _facts(
    trained: Trained, data: DataConfig, features: str, columns: tuple[str, ...]
) -> dict[str, Any]:
    """What all files of a folder have in common."""
    digest = hashlib.sha256(trained.weights)
    if features == "projector":
        digest.update(trained.projector())
    return {
        "run": trained.folder.uri,
        "encoder": digest.hexdigest()[:16],
        "features": features,
        "images": (data.path or "demo").rstrip("/"),
        "format": data.format,
        "id": data.id,
        "image": data.image,
        "encoding": data.encoding,
        "columns": list(columns),
        "crops": SQUASHED if trained.config.data.image_size <= 64 else "of the file",
    }


def _check_folder(folder: Folder, facts: dict[str, Any]) -> None:
    taken = [name for name in facts["columns"] if name in NAMES]
    if taken:
        raise UserError(f"--columns {taken[0]!r} is a name that the output uses itself")
    if not folder.exists(FACTS):
        if set(folder.names()) - {SIGN, LOCK}:
            raise UserError(f"--out {folder.uri} is not empty and holds no features; use another")
        return
    stored = {"crops": SQUASHED} | json.loads(folder.read(FACTS))  # as before version 0.2.0
    facts.setdefault("dimensions", stored.get("dimensions"))
    both = facts.keys() & stored.keys() - {"run", "dimensions"}  # another version has other facts
    other = [key for key in facts if key in both and stored[key] != facts[key]]
    if other:
        text = "; ".join(f"{key} was {stored[key]}, now {facts[key]}" for key in other)
        raise UserError(f"--out {folder.uri} holds other features ({text}); use another folder")


@ray.remote(num_cpus=1)
def _plan(refs: list[Any], folder: Folder, parts: list[str]) -> tuple[int, int, np.ndarray]:
    """Number of images, of those without features, and the sorted ids of the others."""
    tables = [table for table in ray.get(refs) if table.num_rows]
    if not tables:
        raise UserError("there are no images")
    table = pa.concat_tables([table.select([ID, KEY]) for table in tables])
    ids = table[ID].to_numpy()
    order = np.argsort(ids, kind="stable")
    same = np.flatnonzero(np.diff(ids[order]) == 0)
    if len(same):
        row = table.slice(int(order[same[0]]), 1).to_pylist()[0]
        name = row[KEY] or row[ID]
        raise UserError(
            f"id {name!r} occurs more than once ({len(same)} duplicates in all); every image needs "
            "its own, see --data.id"
        )
    done = [np.empty(0, np.int64)]
    for part in parts:
        file = folder.file(part)
        damage = "is damaged; delete it, and its images are embedded again"
        with reading(file, damage), folder.fs.open_input_file(file) as stream:
            done.append(pq.read_table(stream, columns=["id"])["id"].to_numpy())
    there = np.sort(np.concatenate(done))
    missing = int((positions_of(there, ids) < 0).sum())
    return len(ids), missing, there


def _missing(table: pa.Table, plan: Any) -> pa.Table:
    done = ray.get(plan)[2]
    return table.filter(pa.array(positions_of(done, table[ID].to_numpy()) < 0))


def _write(table: pa.Table, folder: Folder, columns: tuple[str, ...]) -> pa.Table:
    """Write a batch as one file; returns one row that counts what is in it."""
    if not folder.exists(FACTS):  # which the driver wrote: this node has another disk
        raise UserError(NOT_SEEN.format(path=folder.path, node=ray.util.get_node_ip_address()))
    bad = table.filter(table[FAULT].is_valid()).select([ID, KEY, FAULT]).to_pylist()
    faults = [{"key": str(row[KEY] or row[ID]), "reason": row[FAULT]} for row in bad]
    good = table.filter(table[FAULT].is_null()).sort_by(ID)
    if good.num_rows:
        named = {name: good[own] for name, own in NAMES.items()} | {c: good[c] for c in columns}
        sink = io.BytesIO()
        pq.write_table(pa.table(named), sink)
        digest = hashlib.sha256(good[ID].to_numpy().tobytes()).hexdigest()
        folder.write(f"part-{digest[:16]}.parquet", sink.getvalue())
    counts = {
        "rows": [good.num_rows],
        "dimensions": [table["feature"].type.list_size],
        "faults": [json.dumps(faults)],
    }
    return pa.table(counts)
