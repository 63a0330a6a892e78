"""Plans on the driver how images are kept: as pixels, as files, or not at all.

Ray Data reads the source once. Images that fit in the object store stay there as blocks of rows,
which the workers read in every epoch without a copy: decoded and squashed pixels (``raw``), else
image files (``encoded``), which give sharper crops above 64 pixels. If neither fits, each epoch
reads the source again: the workers open image files on a disk by name, in the order of the batches
(``indexed``); Ray Data reads all else (``streaming``).

A training image is addressed by its position, the index of its id in the sorted ids of the
assignment. It is looked up where the image is read, and travels with it. Images that are not in the
assignment (held out) are dropped before decoding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import Dataset

from wcl_ray.config import DataConfig
from wcl_ray.data import sampler
from wcl_ray.data.blocks import Blocks, Directory, describe, locate
from wcl_ray.data.data_stats import note
from wcl_ray.data.decode import check_header, decode_batch
from wcl_ray.data.ids import positions_of
from wcl_ray.data.pixels import AT_ONCE, join_faults, pixel_columns
from wcl_ray.data.sources.base import FAULT, ID, IMAGE, KEY, POSITION, Source
from wcl_ray.errors import UserError
from wcl_ray.terminal import bytes_text

SHARE = 0.5  # of the object store that kept images may take
BLOCK = 64e6  # bytes of a dealt block, if there are fewer than
MOST_BLOCKS = 20_000  # since the driver holds references to all
SMALL = 64  # pixels a side, at most, of streamed images that are decoded when they are read
REPLICATED = 0.25  # of the smallest node's store: less than this is read by all workers


@dataclass(frozen=True)
class Stream:
    """What the workers need to read the images.

    Attributes:
        mode: raw, encoded, indexed or streaming.
        reason: why this mode was chosen, to show the user.
        size: S, side of the stored images in pixels.
        rows: readable training images (in modes indexed and streaming: all training images).
        shared: every worker may read every block; else blocks are dealt to workers.
        ids: reference to int64 (N,), sorted.
        blocks: the kept blocks (pyarrow tables).
        location: reference to int64 (N,) unless blocks are dealt: row of a position in the
            concatenated blocks, or in the index; -1 = none.
        index: mode indexed: reference to the :class:`FileIndex`.
        source: modes indexed and streaming: reference to the :class:`Source` of the images, read
            again each epoch, with ``columns``.
        decoded_when_read: mode streaming: the tasks that read decode, too. The threads of a worker
            wait for Python's lock longer than they decode small images.
        faults: unreadable images, as {"key", "reason"}.
    """

    mode: str
    reason: str
    size: int
    rows: int
    shared: bool
    ids: Any
    blocks: Blocks | None = None
    location: Any = None
    index: Any = None
    source: Any = None
    columns: tuple[str, ...] = ()
    decoded_when_read: bool = False
    faults: tuple[dict[str, str], ...] = field(default=(), repr=False)

    def images(self) -> Dataset:
        """Every readable training image once: ``__id``, ``__key``, ``__fault``, and pixels and
        aspect (mode raw) or the file."""
        if self.source is not None:
            return self.dataset(None)
        assert self.blocks is not None
        return ray.data.from_arrow_refs(Directory(self.blocks).tables())

    def dataset(self, consumed: np.ndarray | None, seed: Sequence[int] | None = None) -> Dataset:
        """Modes indexed and streaming: the training images that are not consumed yet, still
        encoded.

        Args:
            seed: of a random order of the files, or parts of files; None: as they lie.
        """
        source: Source = ray.get(self.source)  # an image folder's holds the names of all files
        rows = source.images(self.columns, seed=seed)
        rows.context.enable_progress_bars = False  # a worker's context is not that of the driver
        fn_kwargs = {"ids": self.ids, "consumed": None if consumed is None else ray.put(consumed)}
        return rows.map_batches(
            _select, batch_format="pyarrow", batch_size=None, fn_kwargs=fn_kwargs
        )


def plan_stream(
    source: Source,
    ids: np.ndarray,
    data: DataConfig,
    clusters: np.ndarray | None = None,
    grows: bool = False,
    columns: Sequence[str] = (),
) -> Stream:
    """Decide how to keep the images, and keep them.

    Args:
        columns: metadata columns that are kept with the images.
        ids: int64 (N,), sorted ids of the training images.
        clusters: int32 (N,); if blocks are dealt to workers on several nodes, images of small
            clusters go into the same block.
        grows: nodes are added on demand, so that a forced mode may still fit later.

    Raises:
        UserError: more images are unreadable than ``data.max_bad`` allows, or a forced mode does
            not fit.
    """
    size, images = data.stored_size, source.images(columns)
    mode, reason, kept = _choose(source, images, len(ids), data, grows)
    ids_ref = ray.put(ids)
    if mode in ("indexed", "streaming"):
        stream = Stream(mode, reason, size, len(ids), True, ids_ref)
        stream = replace(stream, source=ray.put(source), columns=tuple(columns))
        if mode == "indexed":
            return _indexed(stream, source, ids)
        return replace(stream, decoded_when_read=size <= SMALL)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    smallest = min(node["Resources"].get("object_store_memory", 0) for node in nodes)
    shared = (len(nodes) == 1 and not grows) or kept < REPLICATED * smallest
    rows = images.map_batches(
        _keep_raw if mode == "raw" else _keep_encoded,
        batch_format="pyarrow",
        # a number would count rows of the source's table of files or row groups, and join the
        # tasks that read them
        batch_size=None,
        fn_kwargs={"ids": ids_ref, "size": size},
    )
    if not shared:
        rows, how = _spread(rows, clusters, max(2, len(nodes)), kept)
        reason += f"; {how}"
    blocks, faults = describe(_materialise(rows, all_kept=shared))
    check_faults(faults, len(ids), data.max_bad)
    return Stream(
        mode=mode,
        reason=reason,
        size=size,
        rows=int(blocks.readable.sum()),
        shared=shared,
        ids=ids_ref,
        blocks=blocks,
        location=locate.remote(blocks, len(ids)) if shared else None,
        faults=tuple(faults),
    )


def check_faults(
    faults: list[dict[str, str]], total: int, max_share: float, noun: str = "images"
) -> None:
    """Raise a UserError if more than a share of the images cannot be read."""
    if len(faults) > max_share * total:
        first = "\n  ".join(f"{f['key']}: {f['reason']}" for f in faults[:5])
        raise UserError(
            f"{len(faults)} of {total} {noun} cannot be read, more than data.max-bad "
            f"{max_share:.1%} allows, such as\n  {first}\nrepair or remove them, or raise "
            "--data.max-bad"
        )


def _indexed(stream: Stream, source: Source, ids: np.ndarray) -> Stream:
    """A stream whose images are opened by name.

    Raises:
        UserError: they are not image files on a disk.
    """
    index = source.file_index()
    if index is None:
        raise UserError(
            f"data.keep indexed is for an image folder on a disk, not for {source.describe()}"
        )
    positions = positions_of(ids, index.rows[ID].to_numpy())
    location = np.full(len(ids), -1, dtype=np.int64)
    location[positions[positions >= 0]] = np.flatnonzero(positions >= 0)
    rows = int((location >= 0).sum())
    return replace(stream, rows=rows, index=ray.put(index), location=ray.put(location))


def _choose(
    source: Source, images: Dataset, n: int, data: DataConfig, grows: bool
) -> tuple[str, str, float]:
    """Mode, reason, and kept bytes."""
    size, keep = data.stored_size, data.keep
    alive = [node for node in ray.nodes() if node["Alive"]]
    store = sum(node["Resources"].get("object_store_memory", 0) for node in alive)
    room = SHARE * store
    raw = float(n * 3 * size * size)
    budget = f"{bytes_text(room)} of the object store's {bytes_text(store)}"
    if keep in ("indexed", "streaming"):
        return keep, f"{keep}: chosen by data.keep", 0.0
    if keep in ("auto", "raw") and raw <= room:
        text = f"raw: {n:,} images at {size} px take {bytes_text(raw)}; {budget} may be used"
        if keep == "auto" and data.crops_files:
            text += "; --data.keep encoded gives sharper crops, but reads more slowly"
        return "raw", text, raw
    later = f"{budget} may be used so far, new nodes have to add the rest"
    if keep == "raw" and grows:
        return "raw", f"raw: {bytes_text(raw)}, chosen by data.keep; {later}", raw
    if keep == "raw":
        raise UserError(f"data.keep raw needs {bytes_text(raw)}, but only {budget} may be used")
    head = images.select_columns([IMAGE]).limit(64).take_all()
    lengths = [len(row[IMAGE]) for row in head if row[IMAGE]]
    encoded = n * float(np.mean(lengths)) if lengths else 0.0
    encoded_text = bytes_text(encoded)
    if encoded <= room:
        text = f"encoded: {n:,} image files take about {encoded_text}; {budget} may be used"
        return "encoded", text, encoded
    if keep == "encoded" and grows:
        return "encoded", f"encoded: {encoded_text}, chosen by data.keep; {later}", encoded
    if keep == "encoded":
        raise UserError(
            f"data.keep encoded needs about {encoded_text}, but only {budget} may be used"
        )
    both = f"pixels ({bytes_text(raw)}) nor files ({encoded_text})"
    text = f"streaming: neither {both} fit in {budget}"
    if source.file_index() is not None and not grows:
        text = f"indexed: neither {both} fit in {budget}; workers open the files on disk by name"
        return "indexed", text, 0.0
    if grows:
        text += "; if new nodes will add enough, use --data.keep raw or encoded"
    return "streaming", text, 0.0


def _select(table: pa.Table, ids: Any, consumed: Any = None) -> pa.Table:
    """The rows of training images that are not consumed, with their positions."""
    positions = positions_of(ray.get(ids), table[ID].to_numpy())
    wanted = positions >= 0
    if consumed is not None:
        wanted &= ~sampler.has_bits(ray.get(consumed), positions.clip(min=0))
    table = table.append_column(POSITION, pa.array(positions, pa.int64()))
    return table.filter(pa.array(wanted))


def _keep_raw(table: pa.Table, ids: Any, size: int) -> Iterator[pa.Table]:
    table = _select(table, ids)
    for start in range(0, len(table), AT_ONCE):
        yield _decoded(table.slice(start, AT_ONCE), size)


def _decoded(table: pa.Table, size: int) -> pa.Table:
    decoded = decode_batch(table[IMAGE].to_pylist(), size)
    faults = join_faults(table[FAULT].to_pylist(), decoded)
    return _kept(table, pixel_columns(decoded), faults)


def _keep_encoded(table: pa.Table, ids: Any, size: int) -> pa.Table:
    table = _select(table, ids)
    pairs = zip(table[FAULT].to_pylist(), table[IMAGE].to_pylist(), strict=True)
    faults = [known or check_header(file) for known, file in pairs]
    return _kept(table, {IMAGE: table[IMAGE].cast(pa.large_binary())}, faults)


def _kept(table: pa.Table, columns: dict[str, Any], faults: list[str | None]) -> pa.Table:
    """The table with its image column replaced by ``columns``, and with ``faults``."""
    fixed = {name: table[name] for name in (ID, KEY, POSITION)}
    fixed |= {FAULT: pa.array(faults, pa.string())}
    others = [name for name in table.column_names if name not in (*fixed, IMAGE)]
    return pa.table(fixed | columns | {name: table[name] for name in others})


def _spread(
    rows: Dataset, clusters: np.ndarray | None, nodes: int, kept: float
) -> tuple[Dataset, str]:
    """Distribute rows to blocks by a hash of the id, or of the cluster if clusters are small.

    A worker composes within a few of its own blocks. If clusters have so few images that most
    partners would be in other blocks, whole clusters go into one block.

    Returns:
        The rows, and how they were distributed, to show the user.
    """
    count = max(4 * nodes, min(MOST_BLOCKS, int(kept / BLOCK)))
    together = False
    if clusters is not None:
        window = min(max(sampler.window_of(0), len(clusters) // count), len(clusters) // nodes)
        together = sampler.isolated_share(clusters, window) > 0.1
    clusters_ref = ray.put(clusters) if together else None

    def bucket(table: pa.Table) -> pa.Table:
        values = table[ID].to_numpy()
        if clusters_ref is not None:
            cluster = ray.get(clusters_ref)[table[POSITION].to_numpy()]
            values = np.where(cluster >= 0, cluster, values)
        return table.append_column("__bucket", pa.array(values, pa.int64()))

    rows = rows.map_batches(bucket, batch_format="pyarrow", batch_size=None)
    unit = "whole clusters" if together else "single images"
    how = f"dealt to {count} blocks by {unit}, since the blocks are spread over {nodes} nodes"
    return rows.repartition(count, keys=["__bucket"]), how


def _materialise(rows: Dataset, all_kept: bool) -> list[Any]:
    """References to the blocks of the rows.

    Args:
        all_kept: every block that is made is kept, so that Ray Data needs to reserve no resources
            for a consumer; the reservation would leave a CPU idle.
    """
    context = rows.context
    before = context.op_resource_reservation_enabled
    context.op_resource_reservation_enabled = before and not all_kept
    try:
        kept = rows.materialize()
    finally:
        context.op_resource_reservation_enabled = before  # shared with the caller's data set
    note("images kept", kept)
    return [ref for bundle in kept.iter_internal_ref_bundles() for ref in bundle.block_refs]
