"""Batches of one worker, made of image files or pixels; images that cannot be decoded are noted."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from threading import Lock

import numpy as np
import pyarrow as pa
import torch

from wcl_ray.data.augment import Augment
from wcl_ray.data.decode import Decoded
from wcl_ray.data.pixels import decode_files, kept_pixels
from wcl_ray.data.sources.base import FAULT, ID, IMAGE, KEY, POSITION
from wcl_ray.errors import UserError

# bytes; threads that decode smaller files at once wait for Python's lock longer than they decode
SMALL_FILE = 4096


@dataclass
class Batch:
    """This worker's part of a global batch: b images.

    Attributes:
        images: uint8 (b, 3, S, S), squashed to a square; or (b, 2, 3, s, s), the crops of both
            views.
        aspect: float32 (b,), width / height of the originals.
        ids: int64 (b,).
        positions: int64 (b,), to mark as consumed.
        clusters: int64 (b, G); -1 = singleton.
        attributes: uint8 (b, A / 8), packed metadata; A is 0 without graded positives.
        valid: bool (b,), false for images that cannot be decoded: they hold the pixels of another
            image of the batch and must not enter the loss.
    """

    images: torch.Tensor
    aspect: torch.Tensor
    ids: torch.Tensor
    positions: torch.Tensor
    clusters: torch.Tensor
    attributes: torch.Tensor
    valid: torch.Tensor


class BatchMaker:
    """Makes batches, in any number of threads.

    Args:
        size: S, side of squashed images.
        clusters, attributes, augment, pin: see :class:`wcl_ray.data.reader.Reader`.
    """

    def __init__(
        self,
        size: int,
        clusters: np.ndarray,
        attributes: np.ndarray | None,
        augment: Augment | None,
        pin: bool,
    ) -> None:
        self.size, self.clusters, self.attributes = size, clusters, attributes
        self.augment, self.pin = augment, pin
        self._small_files = Lock()
        self._faults: list[tuple[str, str]] = []

    def take_faults(self) -> list[tuple[str, str]]:
        """(key or id, reason) of images that failed to decode since the last call."""
        faults, self._faults = self._faults, []
        return faults

    def of_files(
        self,
        epoch: int,
        positions: np.ndarray,
        ids: np.ndarray,
        files: list[bytes | None],
        keys: list[str | None],
        known_faults: dict[int, str] | None = None,
    ) -> Batch:
        """Decode a batch.

        Args:
            known_faults: row → why an image cannot be read.
        """
        small = sum(len(file or b"") for file in files) < SMALL_FILE * len(files)
        with self._small_files if small else nullcontext():
            decoded = decode_files(files, ids, self.size, self.augment, epoch)
        decoded.faults.update(known_faults or {})
        return self._of_decoded(positions, ids, keys, decoded)

    def of_streamed(self, epoch: int, table: pa.Table) -> Batch:
        """The batch of streamed rows, decoded by tasks before or here."""
        positions, ids = (table[name].to_numpy().copy() for name in (POSITION, ID))
        faults = {i: fault for i, fault in enumerate(table[FAULT].to_pylist()) if fault}
        keys = table[KEY].to_pylist()
        if IMAGE in table.column_names:
            return self.of_files(epoch, positions, ids, table[IMAGE].to_pylist(), keys, faults)
        side = self.augment.size if self.augment else self.size
        pixels, aspect = (values.copy() for values in kept_pixels(table, side))
        if self.augment:
            pixels = pixels.reshape(len(ids), 2, 3, side, side)
        return self._of_decoded(positions, ids, keys, Decoded(pixels, aspect, faults))

    def of_pixels(
        self, positions: np.ndarray, ids: np.ndarray, images: torch.Tensor, aspect: torch.Tensor
    ) -> Batch:
        """The batch of images that can all be read."""
        attributes = np.empty((len(positions), 0), np.uint8)
        if self.attributes is not None:
            attributes = self.attributes[positions]
        return Batch(
            images=images,
            aspect=aspect,
            ids=torch.from_numpy(ids),
            positions=torch.from_numpy(positions.astype(np.int64)),
            clusters=torch.from_numpy(self.clusters[positions].astype(np.int64)),
            attributes=torch.from_numpy(attributes),
            valid=torch.ones(len(positions), dtype=torch.bool),
        )

    def _of_decoded(
        self, positions: np.ndarray, ids: np.ndarray, keys: list[str | None], decoded: Decoded
    ) -> Batch:
        """A batch; faults are noted under the images' keys or ids."""
        faults = decoded.faults
        images, aspect = decoded.tensors()
        batch = self.of_pixels(positions, ids, images.pin_memory() if self.pin else images, aspect)
        if faults:
            named = [(keys[row] or str(int(ids[row])), why) for row, why in faults.items()]
            self._faults.extend(named)
            if len(faults) == len(positions):
                raise UserError(
                    f"none of {len(faults)} images of a batch can be decoded; the first is "
                    f"{named[0][0]}: {named[0][1]}"
                )
            _replace(batch, faults)
        return batch


def _replace(batch: Batch, faults: dict[int, str]) -> None:
    """Replace broken images, marked as not valid, by the pixels of others in the batch.

    All workers keep equal batch sizes, and batch norm sees real images.
    """
    good = [row for row in range(len(batch.ids)) if row not in faults]
    for i, row in enumerate(faults):
        other = good[i % len(good)]
        batch.images[row], batch.aspect[row] = batch.images[other], batch.aspect[other]
        batch.valid[row] = False
