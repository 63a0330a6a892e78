"""Images to shards for training (``jobs/prepare.py``), a job that can be stopped at any time.

The clusters decide in which row group of which shard an image lies (:mod:`wcl_ray.data.shards`).
That is written first. Ray Data reads the source once, shrinks the images and sorts them by shard
(in the object store, spilled to disk where they do not fit); each shard is one atomic write. A
repeated job leaves out the images of finished shards, before they are decoded.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import DataContext, Dataset
from ray.data.context import ShuffleStrategy

from wcl_ray import stopping
from wcl_ray.clusters.assignment import Assignment
from wcl_ray.config import Config, option_name
from wcl_ray.data.data_stats import note
from wcl_ray.data.ids import positions_of
from wcl_ray.data.images import open_images
from wcl_ray.data.sampler import composing_column
from wcl_ray.data.shards import FILE, Placement, partners_together, place
from wcl_ray.data.shrink import shrink_files
from wcl_ray.data.sources.base import FAULT, ID, IMAGE, KEY, READ_OPTIONS, Source, check_paths
from wcl_ray.data.split import uniform
from wcl_ray.data.stream import AT_ONCE, check_faults
from wcl_ray.errors import UserError, reading
from wcl_ray.runs.clusters import build_clusters, check_types
from wcl_ray.runs.folder import add_faults
from wcl_ray.runs.lock import HEARTBEAT, LOCK, RunLock
from wcl_ray.runs.nodes import check_shared, connect
from wcl_ray.runs.summary import ResourceSummary
from wcl_ray.storage import NOT_SEEN, Folder, filesystem, resolve_input
from wcl_ray.terminal import Live, put, say

MANIFEST, FAULTS = "_prepared.json", "_faults.jsonl"  # readers of Parquet folders ignore _ files
DATA = ("format", "id", "image", "encoding", "table", "key", "label")  # options that are compared
SHARD, GROUP = "__shard", "__group"
SAMPLED = 256  # images whose mean size is that of all, for the size of the shards


@dataclass(frozen=True)
class Shape:
    """How images and shards are written; see the options of ``jobs/prepare.py``."""

    short_side: int = 256
    quality: int = 90
    shard_mb: float = 128
    part: int = 64


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
                manifest |= {"id_type": _id_type(assignment)} | _names(source)
                folder.write(MANIFEST, _json(manifest))
        stopping.set_resume_hint("the same command continues")
        with usage.stage("shards"):
            _write_shards(config, source, folder, shape, manifest, placement)
        rows, faults, schema = _totals(folder, placement.count)
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
    differing = [key for key in manifest if stored.get(key) != manifest[key]]
    if differing:
        text = "; ".join(f"{key} was {stored.get(key)}, now {manifest[key]}" for key in differing)
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


def _id_type(assignment: Assignment) -> str:
    """How ids are written so that they are read as the same: as integers, as the texts that they
    are hashes of, or, if only the larger ones are texts, as unsigned integers."""
    keys = assignment.keys
    if keys is None or keys.null_count == len(keys):
        return "int64"
    return "uint64" if keys.null_count else "string"


def _names(source: Source) -> dict[str, str]:
    """Names of the id and image columns, apart from those of the metadata."""
    image = "image_bytes" if "image" in source.columns else "image"
    if source.id_column is not None:
        return {"id_name": source.id_column, "image_name": image}
    return {"id_name": "image_id" if "id" in source.columns else "id", "image_name": image}


def _shard_name(number: int) -> str:
    return f"shard-{number:06d}.parquet"


def _write_shards(
    config: Config,
    source: Source,
    folder: Folder,
    shape: Shape,
    manifest: dict[str, Any],
    placement: Placement,
) -> None:
    """Write the shards that are missing."""
    present = set(folder.names())
    missing = np.array([_shard_name(i) not in present for i in range(placement.count)])
    if not missing.any():
        return
    total = len(placement.ids)
    written = total - int(missing[placement.shards].sum())
    if written:
        say("shards", f"{(~missing).sum()} of {placement.count} are in {folder.uri} already")
    kwargs = {"placement": ray.put(placement), "missing": missing, "shape": shape}
    live, bad = Live("prepare"), list[dict[str, str]]()
    with _sorting():
        rows = source.images(source.columns).map_batches(
            _placed, batch_size=None, fn_kwargs=kwargs, **READ_OPTIONS
        )
        kwargs = {"folder": folder, "manifest": manifest, "columns": source.columns}
        counts: Dataset = rows.groupby(SHARD).map_groups(
            _write, batch_format="pyarrow", fn_kwargs=kwargs
        )
        try:
            for row in counts.iter_rows():
                bad += json.loads(row["faults"])
                check_faults(bad, total, config.data.max_bad)
                written += row["rows"]
                live.show(f"{written:,}/{total:,} images", written / max(1, total))
            note("prepared", counts, written)
        finally:
            live.close()


@contextmanager
def _sorting() -> Iterator[None]:
    """Group by sorting: the hash shuffle of Ray 2.60 comes to a standstill if the rows are larger
    than the object store."""
    context = DataContext.get_current()
    before = context.shuffle_strategy
    context.shuffle_strategy = ShuffleStrategy.SORT_SHUFFLE_PULL_BASED
    try:
        yield
    finally:
        context.shuffle_strategy = before


def _placed(
    table: pa.Table, placement: Any, missing: np.ndarray, shape: Shape
) -> Iterator[pa.Table]:
    """The images of missing shards, shrunk, with their shard and row group."""
    known: Placement = ray.get(placement)
    positions = positions_of(known.ids, table[ID].to_numpy())
    if (positions < 0).any():
        row = table.select([ID, KEY]).slice(int(np.argmin(positions)), 1).to_pylist()[0]
        raise UserError(
            f"image {row[KEY] or row[ID]!r} was added after the shards were begun; prepare the "
            "images again with another --out"
        )
    kept = missing[known.shards[positions]]
    table, positions = table.filter(pa.array(kept)), positions[kept]
    for start in range(0, len(table), AT_ONCE):
        rows, place = table.slice(start, AT_ONCE), positions[start : start + AT_ONCE]
        files, faults = shrink_files(rows[IMAGE].to_pylist(), shape.short_side, shape.quality)
        faults = [old or new for old, new in zip(rows[FAULT].to_pylist(), faults, strict=True)]
        columns = {
            SHARD: pa.array(known.shards[place]),
            GROUP: pa.array(known.groups[place]),
            IMAGE: pa.array(files, pa.large_binary()),
            FAULT: pa.array(faults, pa.string()),
        }
        rows = rows.drop_columns([IMAGE, FAULT])
        for name, column in columns.items():
            rows = rows.append_column(name, column)
        yield rows


def _write(
    table: pa.Table, folder: Folder, manifest: dict[str, Any], columns: tuple[str, ...]
) -> pa.Table:
    """Write one shard, in random order inside its row groups; returns one row with its counts."""
    if not folder.exists(MANIFEST):  # the driver wrote it: this node does not see that folder
        raise UserError(NOT_SEEN.format(path=folder.path, node=ray.util.get_node_ip_address()))
    shuffled = uniform(table[ID].to_numpy(), manifest["seed"])
    table = table.take(pa.array(np.lexsort((shuffled, table[GROUP].to_numpy()))))
    bad = table.filter(table[FAULT].is_valid()).select([ID, KEY, FAULT]).to_pylist()
    faults = json.dumps([{"key": str(row[KEY] or row[ID]), "reason": row[FAULT]} for row in bad])
    good = table.filter(table[FAULT].is_null())
    image = manifest["image_name"]
    output = pa.table(
        {manifest["id_name"]: _ids(good, manifest["id_type"]), image: good[IMAGE]}
        | {name: good[name] for name in columns}
    ).replace_schema_metadata({"faults": faults})
    begins = np.flatnonzero(np.diff(good[GROUP].to_numpy(), prepend=-1))
    sink = io.BytesIO()
    others = [name for name in output.column_names if name != image]
    with pq.ParquetWriter(
        sink, output.schema, compression="none", use_dictionary=others, write_statistics=others
    ) as writer:
        for begin, end in zip(begins, [*begins[1:], len(good)], strict=True):
            writer.write_table(output.slice(begin, end - begin), row_group_size=end - begin)
    folder.write(_shard_name(table[SHARD][0].as_py()), sink.getvalue())
    return pa.table({"rows": [len(good)], "faults": [faults]})


def _ids(table: pa.Table, kind: str) -> pa.ChunkedArray:
    """The id column, see :func:`_id_type`."""
    if kind == "string":
        return table[KEY]
    return pa.chunked_array([c.view(kind) for c in table[ID].chunks], pa.type_for_alias(kind))


def _totals(folder: Folder, count: int) -> tuple[int, list[dict[str, str]], pa.Schema]:
    """Rows and faults of all shards, told by their footers, and the schema."""
    present = set(folder.names())
    gone = [i for i in range(count) if _shard_name(i) not in present]
    if gone:
        raise UserError(
            f"{len(gone)} of {count} shards have lost all of their images: data.path has changed "
            "since the job was begun; prepare it again with another --out"
        )

    def footer(number: int) -> tuple[int, pa.Schema]:
        path = folder.file(_shard_name(number))
        damage = "is damaged; delete it, and the same command writes it again"
        with reading(path, damage), folder.fs.open_input_file(path) as stream:
            file = pq.ParquetFile(stream)
            return file.metadata.num_rows, file.schema_arrow

    with ThreadPoolExecutor(8) as pool:
        footers = list(pool.map(footer, range(count)))
    faults = [fault for _, schema in footers for fault in json.loads(schema.metadata[b"faults"])]
    return sum(rows for rows, _ in footers), faults, footers[0][1]


def _tell(folder: Folder, manifest: dict[str, Any], schema: pa.Schema, config: Config) -> None:
    """Print the schema, and the command to run next."""
    say("prepared", f"{manifest['rows']:,} images in {manifest['shards']} shards, {folder.uri}")
    width = max(map(len, schema.names))
    for field in schema:
        put(f"  {field.name:<{width}}  {field.type}")
    words = ["python jobs/pretrain.py --data.path", folder.uri]
    words += ["--data.id", manifest["id_name"]] if manifest["id_name"] != "id" else []
    words += ["--data.label", config.data.label] if config.data.label else []
    put(f"\nnext, with the same --clusters options:\n  {' '.join(words)}")
