"""Features of images, computed with Ray Data: by actors on GPUs, by tasks on CPUs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.data import ActorPoolStrategy, Dataset

from wcl_ray.config import AugmentConfig
from wcl_ray.data.augment import Augment, centre, centre_boxes, normalise
from wcl_ray.data.decode import Decoded, decode_batch, decode_crops
from wcl_ray.data.pixels import PIXELS, join_faults, kept_pixels
from wcl_ray.data.sources.base import FAULT, ID, IMAGE, KEY
from wcl_ray.data.thumbnails import thumbnails
from wcl_ray.device import device_for
from wcl_ray.evaluate.geometry import distances
from wcl_ray.model.encoder import load_exported, load_projector

TEST = "__test"  # bool column: test images
PICTURED = "__pictured"  # bool column: images that embed returns a thumbnail of
THUMBNAIL = "__thumbnail"  # binary column: JPEG of the centre crop, null for other images
DISTANCE = "__distance"  # float32 column, see embed


def embed(
    rows: Dataset,
    weights: bytes,
    *,
    store_size: int,
    columns: tuple[str, ...] = (),
    actors: int = 1,
    cpus: float = 1,
    gpu: bool = False,
    batch_size: int = 256,
    views: bool = False,
    projector: bytes | None = None,
    pictures: bool = False,
) -> Dataset:
    """Features of the centre crops, in eval mode.

    Args:
        rows: of :meth:`wcl_ray.data.sources.base.Source.images`, or of
            :meth:`wcl_ray.data.stream.Stream.images`.
        weights: content of ``encoder.safetensors``.
        store_size: side of kept pixels, and side to which files are decoded for encoders of at most
            64 pixels. For larger ones only the crops are decoded.
        columns: metadata columns to keep.
        cpus: CPUs of each task or actor.
        gpu: use ``actors`` actors with a GPU each.
        views: add ``__distance``, the squared distance of the normalised features of the centre
            crop and a random view, for the alignment; null for test images (``__test``) and
            unreadable ones.
        projector: content of ``projector.safetensors``: return its output, normalised to unit
            length, instead of the backbone's.
        pictures: add ``__thumbnail`` (see :mod:`wcl_ray.data.thumbnails`). Without it this is added
            only if the rows have a column ``__pictured``, for the images that it names.

    Returns:
        Rows ``__id``, ``__key``, ``__fault``, ``feature`` (fixed-size list of float32; null for
        unreadable images), and the columns.
    """
    common: dict[str, Any] = {"batch_format": "pyarrow", "num_cpus": cpus}
    settings = (store_size, columns, cpus, views, device_for(gpu), pictures)
    weights_ref = ray.put((weights, projector))
    if not gpu:  # tasks reuse their processes, survive a lost node and need no idle actors
        # a batch_size here would merge blocks, and with them the files that a task reads
        kwargs = {"weights_ref": weights_ref, "settings": settings, "batch_size": batch_size}
        return rows.map_batches(_embed_in_task, batch_size=None, fn_kwargs=kwargs, **common)
    return rows.map_batches(
        _Embedder,
        fn_constructor_args=settings,
        fn_kwargs={"weights_ref": weights_ref},
        compute=ActorPoolStrategy(size=actors),
        num_gpus=1,
        batch_size=batch_size,
        **common,
    )


def centre_crops(
    files: Sequence[bytes | None], image_size: int, store_size: int, pool: ThreadPoolExecutor
) -> tuple[torch.Tensor, dict[int, str]]:
    """Decode the centre crops of image files, as the evaluation sees them.

    Args:
        store_size: see :func:`embed`.

    Returns:
        float (B, 3, image_size, image_size), normalised, and row → why it cannot be read.
    """
    if image_size <= 64:
        decoded = decode_batch(files, store_size, pool)
        return centre(*decoded.tensors(), image_size), decoded.faults

    def boxes(rows: torch.Tensor, aspect: torch.Tensor) -> torch.Tensor:
        return centre_boxes(aspect, image_size)[:, None]

    decoded = decode_crops(files, boxes, 1, image_size, pool)
    crops, _ = decoded.tensors()
    return normalise(crops[:, 0].to(torch.float32) / 255), decoded.faults


def resources(gpus: int) -> dict[str, Any]:
    """``actors``, ``cpus`` and ``gpu`` for :func:`embed`. Actors on GPUs get half of the CPUs of
    their nodes; the rest is for the tasks that read and write."""
    if not gpus:
        return {"cpus": 1.0, "gpu": False}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = [r.get("CPU", 0.0) // (2 * r["GPU"]) for r in nodes if r.get("GPU", 0) >= 1]
    return {"actors": gpus, "cpus": float(max(1, min(cpus, default=1.0))), "gpu": True}


_CACHE: dict[Any, _Embedder] = {}  # of this process, at most one


def _embed_in_task(
    table: pa.Table, weights_ref: Any, settings: tuple[Any, ...], batch_size: int
) -> Iterator[pa.Table]:
    key = (weights_ref.hex(), settings)
    if key not in _CACHE:
        _CACHE.clear()
        _CACHE[key] = _Embedder(*settings)
    for start in range(0, len(table), batch_size):
        yield _CACHE[key](table.slice(start, batch_size), weights_ref)


class _Embedder:
    """Computes the features of blocks; loads the weights at the first."""

    def __init__(
        self,
        store_size: int,
        columns: tuple[str, ...],
        cpus: float,
        views: bool,
        device: str,
        pictures: bool,
    ) -> None:
        threads = max(1, int(cpus))
        torch.set_num_threads(threads)
        self.device = torch.device(device)
        self.store_size, self.columns = store_size, columns
        self.views, self.pictures = views, pictures
        self.pool = ThreadPoolExecutor(threads)
        self.backbone: torch.nn.Module | None = None
        self.projector: torch.nn.Module | None = None

    def _load(self, weights_ref: Any) -> None:
        backbone, projector = ray.get(weights_ref)
        self.backbone = load_exported(backbone).to(self.device)
        if projector is not None:
            self.projector = load_projector(projector).to(self.device)
        self.image_size = int(self.backbone.image_size)  # type: ignore[arg-type]
        self.augment = Augment(AugmentConfig(), self.image_size, seed=0)

    def __call__(self, table: pa.Table, weights_ref: Any) -> pa.Table:
        if self.backbone is None:
            self._load(weights_ref)
        faults = table[FAULT].to_pylist()
        aspect: torch.Tensor | None = None
        if PIXELS in table.column_names:
            pixels, aspects = kept_pixels(table, self.store_size)
            images = torch.from_numpy(pixels.copy()).to(self.device)
            aspect = torch.from_numpy(aspects.copy()).to(self.device)
        else:
            decoded = self._decode(table)
            faults = join_faults(faults, decoded)
            images, aspects_of_files = (tensor.to(self.device) for tensor in decoded.tensors())
            if images.ndim == 4:
                aspect = aspects_of_files
        columns = {name: table[name] for name in (ID, KEY, *self.columns)}
        columns[FAULT] = pa.array(faults, pa.string())
        bad = np.array([fault is not None for fault in faults], dtype=bool)
        if aspect is None:  # crops: the centre, then perhaps a view
            crops, images = normalise(images[:, 0].to(torch.float32) / 255), images[:, -1]
        else:
            crops = centre(images, aspect, self.image_size)
        features = self._features(crops)
        columns["feature"] = _feature_column(features, bad)
        if self.views:
            columns[DISTANCE] = self._distances(table, images, aspect, bad, features)
        if self.pictures or PICTURED in table.column_names:
            columns[THUMBNAIL] = self._thumbnails(table)
        return pa.table(columns)

    def _thumbnails(self, table: pa.Table) -> pa.Array:
        """Of all images or of those of ``__pictured``; null for others and for unreadable ones."""
        rows = np.arange(len(table))
        if not self.pictures:
            rows = np.flatnonzero(table[PICTURED].to_numpy())
        files = table[IMAGE].take(pa.array(rows)).to_pylist()
        jpegs: list[bytes | None] = [None] * len(table)
        for row, jpeg in zip(rows, thumbnails(files, self.image_size, self.pool), strict=True):
            jpegs[row] = jpeg
        return pa.array(jpegs, pa.binary())

    def _decode(self, table: pa.Table) -> Decoded:
        """The images; above 64 pixels, only their centre crops and the crops of a random view."""
        files = table[IMAGE].to_pylist()
        if self.image_size <= 64:
            return decode_batch(files, self.store_size, self.pool)
        ids = torch.from_numpy(table[ID].to_numpy().copy())

        def boxes(rows: torch.Tensor, aspect: torch.Tensor) -> torch.Tensor:
            crops = [centre_boxes(aspect, self.image_size)]
            if self.views:
                crops.append(self.augment.boxes(ids[rows], aspect, 0)[:, 0])
            return torch.stack(crops, 1)

        return decode_crops(files, boxes, 1 + self.views, self.image_size, self.pool)

    def _distances(
        self,
        table: pa.Table,
        images: torch.Tensor,
        aspect: torch.Tensor | None,
        bad: np.ndarray,
        features: np.ndarray,
    ) -> pa.Array:
        skipped = bad
        if TEST in table.column_names:
            skipped = bad | table[TEST].to_numpy(zero_copy_only=False)
        rows = torch.from_numpy(np.flatnonzero(~skipped)).to(self.device)
        ids = torch.from_numpy(table[ID].to_numpy().copy()).to(self.device)
        values = np.zeros(len(bad), np.float32)
        if len(rows):
            row_aspect = None if aspect is None else aspect[rows]
            views = self.augment.view(images[rows], row_aspect, ids[rows], 0, 0)
            pair = features[~skipped], self._features(views)
            values[~skipped] = distances(*map(torch.from_numpy, pair)).numpy()
        return pa.array(values, mask=skipped)

    @torch.inference_mode()
    def _features(self, x: torch.Tensor) -> np.ndarray:
        assert self.backbone is not None
        if self.device.type == "cpu":
            x = x.to(memory_format=torch.channels_last)
        features = self.backbone(x)
        if self.projector is not None:
            features = torch.nn.functional.normalize(self.projector(features), dim=1)
        return features.float().cpu().numpy()  # type: ignore[no-any-return]


def _feature_column(features: np.ndarray, bad: np.ndarray) -> pa.Array:
    width = features.shape[1]
    flat = pa.array(np.ascontiguousarray(features).reshape(-1))
    mask = pa.array(bad) if bad.any() else None
    return pa.FixedSizeListArray.from_arrays(flat, width, mask=mask)


def feature_tensor(column: pa.ChunkedArray) -> torch.Tensor:
    """float32 (N, F) of a feature column without nulls. Not to be written to: the chunk of a column
    with only one is not copied."""
    chunks = [torch.from_dlpack(c.flatten()) for c in column.chunks if len(c)]
    flat = chunks[0] if len(chunks) == 1 else torch.cat([*chunks, torch.empty(0)])
    return flat.reshape(-1, column.type.list_size)
