"""Writes the images of a placement as Parquet shards: one pass of Ray Data, which sorts them.

The sort takes place in the object store; what does not fit there is spilled to disk. A shard is one
atomic write, and those that are there are not written again.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import DataContext, Dataset
from ray.data.context import ShuffleStrategy

from wcl_ray.data.data_stats import note
from wcl_ray.data.ids import positions_of
from wcl_ray.data.shards import Placement
from wcl_ray.data.shrink import shrink_files
from wcl_ray.data.sources.base import FAULT, ID, IMAGE, KEY, READ_OPTIONS, Source
from wcl_ray.data.split import uniform
from wcl_ray.data.stream import AT_ONCE, check_faults
from wcl_ray.errors import UserError, reading
from wcl_ray.storage import NOT_SEEN, Folder
from wcl_ray.terminal import Live, say

MANIFEST = "_prepared.json"  # readers of Parquet folders ignore _ files
SHARD, GROUP = "__shard", "__group"


@dataclass(frozen=True)
class Shape:
    """How images and shards are written; see the options of ``jobs/prepare.py``."""

    short_side: int = 256
    quality: int = 90
    shard_mb: float = 128
    part: int = 64


def _shard_name(number: int) -> str:
    return f"shard-{number:06d}.parquet"


def write_shards(
    source: Source,
    folder: Folder,
    shape: Shape,
    manifest: dict[str, Any],
    placement: Placement,
    max_bad: float,
) -> None:
    """Write the shards that are missing.

    Args:
        folder: holds ``MANIFEST``.
        manifest: with ``id_name``, ``id_type`` and ``image_name`` of the columns, and ``seed``.

    Raises:
        UserError: an image that is not in the placement, or too many unreadable ones.
    """
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
                check_faults(bad, total, max_bad)
                written += row["rows"]
                live.show(f"{written:,}/{total:,} images", written / max(1, total))
            note("prepared", counts, written)
        finally:
            live.close()


@contextmanager
def _sorting() -> Iterator[None]:
    """Group by sorting: rows of three times the size of the object store were sorted by Ray 2.60 in
    45 s, while its hash shuffle had not finished after 150 s."""
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
    """The id column, see :func:`wcl_ray.runs.prepare.id_type`."""
    if kind == "string":
        return table[KEY]
    return pa.chunked_array([c.view(kind) for c in table[ID].chunks], pa.type_for_alias(kind))


def totals(folder: Folder, count: int) -> tuple[int, list[dict[str, str]], pa.Schema]:
    """Rows and faults of all ``count`` shards, told by their footers, and the schema.

    Raises:
        UserError: a shard is missing or damaged.
    """
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
