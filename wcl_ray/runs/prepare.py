"""Images to shards for training (``jobs/prepare.py``), a job that can be stopped at any time.

The clusters decide in which row group of which shard an image lies (:mod:`wcl_ray.data.shards`).
That is written first; then :mod:`wcl_ray.runs.shard_files` writes the shards. A repeated job leaves
out the images of finished shards, before they are decoded.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa

from wcl_ray import stopping
from wcl_ray.clusters.assignment import Assignment
from wcl_ray.config import Config, option_name
from wcl_ray.data.images import open_images
from wcl_ray.data.sampler import composing_column
from wcl_ray.data.shards import FILE, Placement, partners_together, place
from wcl_ray.data.shrink import shrink_files
from wcl_ray.data.sources.base import IMAGE, Source, check_paths
from wcl_ray.data.stream import check_faults
from wcl_ray.errors import UserError
from wcl_ray.runs.clusters import build_clusters, check_types
from wcl_ray.runs.folder import add_faults
from wcl_ray.runs.lock import HEARTBEAT, LOCK, RunLock
from wcl_ray.runs.nodes import check_shared, connect
from wcl_ray.runs.shard_files import MANIFEST, Shape, totals, write_shards
from wcl_ray.runs.summary import ResourceSummary
from wcl_ray.storage import Folder, filesystem, resolve_input
from wcl_ray.terminal import put, say

FAULTS = "_faults.jsonl"  # readers of Parquet folders ignore _ files
DATA = ("format", "id", "image", "encoding", "table", "key", "label")  # options that are compared
SAMPLED = 256  # images whose mean size is that of all, for the size of the shards


def prepare(config: Config, out: str, shape: Shape | None = None) -> dict[str, Any]:
    """Write the images of ``data.path``, with their metadata, as Parquet shards.

    Args:
        config: its data, clusters and scale are used.
        out: folder for the shards, a path or URI.

    Returns:
        The content of ``_prepared.json``.

    Raises:
        UserError: wrong input or options, a folder with something else, or too many unreadable
            images.
    """
    shape = shape or Shape()
    check_types(config)
    if config.clusters.from_features:
        raise UserError(
            "k-means of features needs an encoder: cluster first with jobs/cluster.py --run RUN "
            "--out clusters.parquet, then give --clusters.from clusters.parquet"
        )
    check_paths(config.data)
    folder = Folder(out.rstrip("/") or "/", config.data.endpoint)
    _check_outside(folder, config)
    manifest = _manifest(config, shape)
    with RunLock(folder, instead="use another --out"):
        _check_folder(folder, manifest)
        folder.check()
        return _prepare(config, folder, shape, manifest)


def _prepare(
    config: Config, folder: Folder, shape: Shape, manifest: dict[str, Any]
) -> dict[str, Any]:
    """Prepare into a folder that this process holds."""
    connect(config.scale)
    check_shared(folder)
    with ResourceSummary() as usage:
        images = replace(open_images(config.data, config.storage, config.seed), holdout=0.0)
        source = images.train
        say("images", source.describe())
        with usage.stage("clusters"):
            if folder.exists(FILE) and "id_type" in manifest:
                placement = Placement.from_parquet(folder.read(FILE))
            else:
                assignment = build_clusters(config, images)[0].assignment
                placement = _place(config, assignment, _mean_bytes(source, shape), shape)
                folder.write(MANIFEST, _json(manifest))
                folder.write(FILE, placement.to_parquet())
                manifest |= {"id_type": id_type(assignment)} | _names(source)
                folder.write(MANIFEST, _json(manifest))
        stopping.set_resume_hint("the same command continues")
        with usage.stage("shards"):
            write_shards(source, folder, shape, manifest, placement, config.data.max_bad)
        rows, faults, schema = totals(folder, placement.count)
    if faults:
        count = add_faults(folder, faults, FAULTS)
        say("faults", f"{count} unreadable images are left out, see {folder.uri}/{FAULTS}")
        check_faults(faults, len(placement.ids), config.data.max_bad)
    if rows + len(faults) != len(placement.ids):
        raise UserError(
            f"{len(placement.ids) - rows - len(faults)} images are no longer in "
            f"{source.uri}; prepare it again with another --out"
        )
    manifest |= {"rows": rows, "faults": len(faults), "shards": placement.count}
    folder.write(MANIFEST, _json(manifest))
    usage.report()
    _tell(folder, manifest, schema, config)
    return manifest


def _json(manifest: dict[str, Any]) -> bytes:
    return json.dumps(manifest, indent=2).encode()


def _manifest(config: Config, shape: Shape) -> dict[str, Any]:
    """What the shards in one folder must have in common."""
    tree = config.to_dict()
    data = {f"data.{name}": tree["data"][name] for name in DATA}
    clusters = {f"clusters.{option_name(name)}": value for name, value in tree["clusters"].items()}
    shapes = {option_name(name): value for name, value in asdict(shape).items()}
    path = (config.data.path or "demo").rstrip("/")
    return {"data.path": path, **data, **clusters, "seed": config.seed, **shapes}


def _check_outside(folder: Folder, config: Config) -> None:
    """Raise a UserError if the shards would be written among the images."""
    if config.data.path is None:
        return
    fs, path = filesystem(resolve_input(config.data.path), config.data.endpoint)
    if fs.equals(folder.fs) and folder.path.startswith(f"{path}/"):
        raise UserError(f"--out {folder.uri} is inside --data.path; use a folder beside it")


def _check_folder(folder: Folder, manifest: dict[str, Any]) -> None:
    """Take what an earlier start wrote into the manifest.

    Raises:
        UserError: the folder holds something else.
    """
    if not folder.exists(MANIFEST):
        if set(folder.names()) - {HEARTBEAT, LOCK}:
            raise UserError(f"--out {folder.uri} is not empty and holds no shards; use another")
        return
    stored = json.loads(folder.read(MANIFEST))
    # a newer version may have more options
    differing = [key for key in manifest.keys() & stored.keys() if stored[key] != manifest[key]]
    if differing:
        text = "; ".join(
            f"{key} was {stored.get(key)}, now {manifest[key]}" for key in sorted(differing)
        )
        raise UserError(f"--out {folder.uri} holds other shards ({text}); use another folder")
    manifest |= stored


def _place(config: Config, table: Assignment, image_bytes: float, shape: Shape) -> Placement:
    """Place the images by all granularities if each lies inside the one before, else by the one
    that batches are composed by."""
    column, _ = composing_column(table.clusters)
    nested = all(table.is_nested(level) for level in range(1, len(table.names)))
    columns = list(range(len(table.names))) if nested else [column]
    placement = place(
        table.ids,
        table.clusters[:, columns],
        image_bytes,
        shape.shard_mb * 1e6,
        shape.part,
        config.seed,
    )
    share, alone = partners_together(table.clusters[:, column], placement.groups)
    names = " inside ".join(table.names[i] for i in reversed(columns))
    say(
        "shards",
        f"{placement.count} by {names}; {share:.1%} of the partners of an image lie in its row "
        f"group, {alone:.1%} of the images with a partner have none there",
    )
    return placement


def _mean_bytes(source: Source, shape: Shape) -> float:
    """Mean size of the image files as they will be written."""
    rows = source.images().select_columns([IMAGE]).limit(SAMPLED).take_all()
    files, faults = shrink_files([row[IMAGE] for row in rows], shape.short_side, shape.quality)
    sizes = [len(file) for file, fault in zip(files, faults, strict=True) if file and not fault]
    return float(np.mean(sizes)) if sizes else 1.0


def id_type(assignment: Assignment) -> str:
    """How ids are written so that they are read as the same: as integers, as the texts that they
    are hashes of, or, if only the larger ones are texts, as unsigned integers."""
    keys = assignment.keys
    if keys is None or keys.null_count == len(keys):
        return "int64"
    return "uint64" if keys.null_count else "string"


def _names(source: Source) -> dict[str, str]:
    """Names of the id and image columns, other than those of the metadata."""
    taken = set(source.columns)
    identity = source.id_column or _free_name("id", "image_id", taken)
    return {"id_name": identity, "image_name": _free_name("image", "image_bytes", taken)}


def _free_name(first: str, second: str, taken: set[str]) -> str:
    names = itertools.chain([first, second], (f"{second}_{n}" for n in itertools.count(2)))
    return next(name for name in names if name not in taken)


def _tell(folder: Folder, manifest: dict[str, Any], schema: pa.Schema, config: Config) -> None:
    """Print the schema, and the command to run next."""
    say("prepared", f"{manifest['rows']:,} images in {manifest['shards']} shards, {folder.uri}")
    width = max(map(len, schema.names))
    for field in schema:
        put(f"  {field.name:<{width}}  {field.type}")
    words = ["python jobs/pretrain.py --data.path", folder.uri]
    words += ["--data.id", manifest["id_name"]] if manifest["id_name"] != "id" else []
    words += ["--data.image", manifest["image_name"]] if manifest["image_name"] != "image" else []
    words += ["--data.label", config.data.label] if config.data.label else []
    put(f"\nnext, with the same --clusters options:\n  {' '.join(words)}")
