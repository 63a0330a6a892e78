"""Decoded images as columns of Arrow tables, and the tasks that decode for the workers.

Streamed images that are squashed to at most 64 pixels a side are decoded by the tasks that read
them. Workers decode larger images themselves, unless they train on GPUs and the nodes without GPUs
have more CPUs than the workers: then tasks on these nodes decode what other tasks have read. The
pixels are the same, up to how processors of different kinds round.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import Dataset

from wcl_ray.data.decode import Decoded, decode_batch, decode_crops
from wcl_ray.data.sources.base import FAULT, ID, IMAGE

if TYPE_CHECKING:
    import torch

    from wcl_ray.data.augment import Augment

PIXELS, ASPECT = "__pixels", "__aspect"
AT_ONCE = 512  # images decoded into one table
BLOCK = 32 * 2**20  # bytes of decoded images: the first batches do not wait for the end of a task


def decode_files(
    files: Sequence[bytes | None], ids: np.ndarray, size: int, augment: Augment | None, epoch: int
) -> Decoded:
    """Decode files as training sees them.

    Args:
        ids: int64 (B,).
        size: S, side of the square if the images are squashed.
        augment: cuts the crops of both views out of the files; None: the images are squashed.

    Returns:
        ``images`` uint8 (B, 2, 3, s, s) or (B, 3, S, S).
    """
    if augment is None:
        return decode_batch(files, size)
    import torch

    id_tensor = torch.from_numpy(ids)

    def boxes(rows: torch.Tensor, aspect: torch.Tensor) -> torch.Tensor:
        return augment.boxes(id_tensor[rows], aspect, epoch)

    return decode_crops(files, boxes, 2, augment.size)


def pixel_columns(decoded: Decoded) -> dict[str, pa.Array]:
    """``__pixels``, of fixed width, and ``__aspect``."""
    count, *shape = decoded.images.shape
    buffers = [None, pa.py_buffer(decoded.images)]
    kind = pa.binary(math.prod(shape))
    pixels = pa.FixedSizeBinaryArray.from_buffers(kind, count, buffers)
    return {PIXELS: pixels, ASPECT: pa.array(decoded.aspect)}


def kept_pixels(table: pa.Table, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Views of the columns of :func:`pixel_columns`: uint8 (rows, 3, S, S) of squashed images or
    (2 rows, 3, s, s) of crops, ``size`` being S or s, and float32 (rows,)."""
    pixels = table[PIXELS].combine_chunks()
    if isinstance(pixels, pa.ChunkedArray):
        pixels = pixels.chunk(0)
    width = pixels.type.byte_width
    flat = np.frombuffer(pixels.buffers()[1], np.uint8)
    flat = flat[pixels.offset * width : (pixels.offset + len(pixels)) * width]
    return flat.reshape(-1, 3, size, size), table[ASPECT].to_numpy()


def decode_in_tasks(
    rows: Dataset, size: int, augment: Augment | None, epoch: int, elsewhere: bool
) -> Dataset:
    """The rows with ``__pixels`` and ``__aspect`` instead of ``__image``, see
    :func:`decode_files`.

    Args:
        elsewhere: decode on nodes without GPUs while their CPUs are free, not in the tasks that
            read.
    """
    if augment is not None:
        augment = augment.plain()
    kwargs = {"size": size, "augment": augment, "epoch": epoch}
    place: dict[str, Any] = {}
    if elsewhere and (nodes := [node["NodeID"] for node in _nodes_without_gpus()]):
        # Ray prefers the node of the process that submits a task, here a worker on a GPU node
        place["label_selector"] = {"ray.io/node-id": f"in({','.join(nodes)})"}
        place["fallback_strategy"] = [{"label_selector": {}}]
    if not elsewhere:
        rows.context.target_max_block_size = BLOCK
    return rows.map_batches(
        _decode_rows, batch_format="pyarrow", batch_size=None, fn_kwargs=kwargs, **place
    )


def _decode_rows(
    table: pa.Table, size: int, augment: Augment | None, epoch: int
) -> Iterator[pa.Table]:
    for start in range(0, len(table), AT_ONCE):
        part = table.slice(start, AT_ONCE)
        ids = part[ID].to_numpy().copy()
        decoded = decode_files(part[IMAGE].to_pylist(), ids, size, augment, epoch)
        faults = join_faults(part[FAULT].to_pylist(), decoded)
        columns = {name: part[name] for name in part.column_names if name not in (IMAGE, FAULT)}
        yield pa.table(columns | {FAULT: pa.array(faults, pa.string())} | pixel_columns(decoded))


def join_faults(known: Sequence[str | None], decoded: Decoded) -> list[str | None]:
    """Why each image cannot be read: known before, or found by the decoder."""
    return [fault or decoded.faults.get(row) for row, fault in enumerate(known)]


def cpus_for_decoding(workers: int, cpus: float) -> float:
    """CPUs of the running nodes without GPUs, if the tasks that read should decode there, else 0.

    Args:
        workers: number of workers on GPUs.
        cpus: of each worker.
    """
    elsewhere = sum(node["Resources"].get("CPU", 0.0) for node in _nodes_without_gpus())
    return float(elsewhere) if elsewhere > workers * cpus else 0.0


def _nodes_without_gpus() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"] and not node["Resources"].get("GPU")]
