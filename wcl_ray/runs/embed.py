"""Features of any images to Parquet (``jobs/embed.py``), a job that can be stopped at any time.

Each output file is written atomically, under a name derived from the ids in it. A job first reads
the ids that have features already and skips their images before decoding: so a stopped job
continues, and images added to the source are added. (Ray Data's own checkpoints need the ids when
the files are read; ids that are hashes of names are computed only after that.)
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
from wcl_ray.data.ids import positions_of
from wcl_ray.data.images import open_images
from wcl_ray.data.sources.base import FAULT, ID, KEY, check_paths
from wcl_ray.data.stream import check_faults
from wcl_ray.errors import UserError, reading
from wcl_ray.runs.feature_folder import (
    INDEX,
    MANIFEST,
    NAMES,
    build_index,
    check_folder,
    feature_files,
    new_manifest,
)
from wcl_ray.runs.folder import add_faults
from wcl_ray.runs.lock import RunLock
from wcl_ray.runs.nodes import check_shared, connect
from wcl_ray.runs.summary import ResourceSummary
from wcl_ray.runs.trained import Trained
from wcl_ray.storage import NOT_SEEN, Folder
from wcl_ray.terminal import Live, clock, say

ROWS = 4096  # images per file
FAULTS = "_faults.jsonl"  # readers of Parquet folders ignore _ files


def embed_run(
    run: str,
    out: str,
    overrides: dict[str, Any],
    *,
    features: Literal["projector", "backbone"] = "backbone",
    columns: tuple[str, ...] = (),
    scale: ScaleConfig | None = None,
    index: bool = False,
) -> dict[str, Any]:
    """Embed images with the encoder of a run: columns ``id`` int64, ``key`` string, ``feature``
    (fixed-size list of float32; the projector's have unit length) and the requested ones.

    Args:
        run: run folder. out: folder for the Parquet files. Both a path or URI.
        overrides: options of ``data`` that replace those of the run; None keeps the run's.
        columns: metadata columns to copy to the output.
        index: also write a FAISS index and, in the column ``thumbnail``, small JPEGs (see
            :mod:`wcl_ray.runs.feature_folder`). A folder that has an index keeps it up to date.

    Returns:
        The content of ``_embedding.json``.

    Raises:
        UserError: no finished run, wrong data options, a folder with other features, a duplicate
            id, or too many unreadable images.
    """
    scale = scale or ScaleConfig()
    trained = Trained.open(run, overrides.get("endpoint"))
    data = replace(trained.data(overrides), label=None, split_by=None)  # not used here
    if not columns:
        data = replace(data, table=None, key=None)
    check_paths(data)
    folder = Folder(out.rstrip("/") or "/", data.endpoint)
    manifest = new_manifest(trained, data, features, columns) | {"thumbnails": index}
    with RunLock(folder, instead="use another --out"):
        check_folder(folder, manifest)
        folder.check()
        index = index or folder.exists(INDEX)
        if folder.exists(MANIFEST):
            stopping.set_resume_hint("the same command continues")
        tables = trained.find_tables(overrides)
        return _embed(trained, data, tables, folder, manifest, scale, index)


def _embed(
    trained: Trained,
    data: DataConfig,
    find_tables: tuple[str, ...],
    folder: Folder,
    manifest: dict[str, Any],
    scale: ScaleConfig,
    index: bool,
) -> dict[str, Any]:
    """Embed the images without features into a folder that this process holds."""
    columns, features = tuple(manifest["columns"]), manifest["features"]
    connect(scale)
    check_shared(folder)
    with ResourceSummary() as usage:
        with usage.stage("plan"):
            config = trained.config
            images = open_images(data, config.storage, config.seed, find_tables=find_tables)
            source = images.train
            source.check_columns(columns, "--columns")
            say("images", source.describe())
            files = feature_files(folder)
            refs = source.metadata().to_arrow_refs()
            plan = _plan.remote(refs, folder, files)
            total, todo, _ = ray.get(plan)
        if todo < total:
            say("embed", f"{total - todo:,} of {total:,} images are in {folder.uri} already")
        folder.write(MANIFEST, json.dumps(manifest, indent=2).encode())
        stopping.set_resume_hint("the same command continues")
        rows = source.images(columns)
        if todo < total:
            rows = rows.map_batches(
                _without_features, batch_format="pyarrow", batch_size=None, fn_kwargs={"plan": plan}
            )
        pictures = manifest["thumbnails"]
        counts = trained.embed(rows, features, scale, columns, pictures).map_batches(
            _write,
            batch_format="pyarrow",
            batch_size=ROWS,
            num_cpus=0.5,
            fn_kwargs={"folder": folder, "columns": columns},
        )
        with usage.stage("embed"):
            written, faults = _follow(counts, folder, manifest, total, todo, data.max_bad)
        if index:
            with usage.stage("index"):
                say("index", f"{ray.get(build_index.remote(folder)):,} images")
    manifest |= {"rows": total - todo + written, "faults": faults}
    folder.write(MANIFEST, json.dumps(manifest, indent=2).encode())
    if faults:
        say("faults", f"{faults} unreadable images, see {folder.uri}/{FAULTS}")
    usage.report()
    say("features", f"{manifest['rows']:,} rows in {folder.uri}")
    return manifest


def _follow(
    counts: Dataset, folder: Folder, manifest: dict[str, Any], total: int, todo: int, max_bad: float
) -> tuple[int, int]:
    """Run the tasks and show their progress; returns the numbers of rows written and of faults."""
    started, written = time.monotonic(), 0
    faults: list[dict[str, str]] = []
    live = Live("embed")
    try:
        for row in counts.iter_rows() if todo else ():
            written += row["rows"]
            faults += json.loads(row["faults"])
            manifest["dimensions"] = int(row["dimensions"])
            check_faults(faults, total, max_bad)
            speed = max(1, written + len(faults)) / (time.monotonic() - started)
            left = clock((todo - written - len(faults)) / speed)
            text = f"{total - todo + written:,}/{total:,} images  {speed:,.0f}/s  {left} left"
            live.show(text, (total - todo + written) / total)
        if todo:
            note("embedded", counts, written + len(faults))
    finally:
        live.close()
        add_faults(folder, faults, FAULTS)
    return written, len(faults)


@ray.remote(num_cpus=1)
def _plan(refs: list[Any], folder: Folder, files: list[str]) -> tuple[int, int, np.ndarray]:
    """Numbers of all images and of those without features, and the sorted ids that have some."""
    tables = [table for table in ray.get(refs) if table.num_rows]
    if not tables:
        raise UserError("there are no images")
    table = pa.concat_tables([table.select([ID, KEY]) for table in tables])
    ids = table[ID].to_numpy()
    order = np.argsort(ids, kind="stable")
    repeated = np.flatnonzero(np.diff(ids[order]) == 0)
    if len(repeated):
        row = table.slice(int(order[repeated[0]]), 1).to_pylist()[0]
        name = row[KEY] or row[ID]
        raise UserError(
            f"id {name!r} occurs more than once ({len(repeated)} duplicates in all); every image "
            "needs its own, see --data.id"
        )
    embedded = [np.empty(0, np.int64)]
    for file in files:
        path = folder.file(file)
        damage = "is damaged; delete it, and its images are embedded again"
        with reading(path, damage), folder.fs.open_input_file(path) as stream:
            embedded.append(pq.read_table(stream, columns=["id"])["id"].to_numpy())
    done = np.sort(np.concatenate(embedded))
    missing = int((positions_of(done, ids) < 0).sum())
    return len(ids), missing, done


def _without_features(table: pa.Table, plan: Any) -> pa.Table:
    done = ray.get(plan)[2]
    return table.filter(pa.array(positions_of(done, table[ID].to_numpy()) < 0))


def _write(table: pa.Table, folder: Folder, columns: tuple[str, ...]) -> pa.Table:
    """Write a batch as one file; returns one row with its counts."""
    if not folder.exists(MANIFEST):  # the driver wrote it: this node does not see that folder
        raise UserError(NOT_SEEN.format(path=folder.path, node=ray.util.get_node_ip_address()))
    bad = table.filter(table[FAULT].is_valid()).select([ID, KEY, FAULT]).to_pylist()
    faults = [{"key": str(row[KEY] or row[ID]), "reason": row[FAULT]} for row in bad]
    good = table.filter(table[FAULT].is_null()).sort_by(ID)
    if good.num_rows:
        output = {name: good[c] for name, c in NAMES.items() if c in good.column_names}
        output |= {c: good[c] for c in columns}
        sink = io.BytesIO()
        pq.write_table(pa.table(output), sink)
        digest = hashlib.sha256(good[ID].to_numpy().tobytes()).hexdigest()
        folder.write(f"part-{digest[:16]}.parquet", sink.getvalue())
    counts = {
        "rows": [good.num_rows],
        "dimensions": [table["feature"].type.list_size],
        "faults": [json.dumps(faults)],
    }
    return pa.table(counts)
