"""Checkpoints: weights, optimiser and the exact position in the data.

One file with the full (unsharded) state, so that any number of workers can load it. There is no
random state: every random choice is a function of (seed, epoch, image) or of (seed, step, rank).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from wcl_ray.errors import UserError, causes
from wcl_ray.model.encoder import Encoder, EncoderSpec
from wcl_ray.model.micro_batches import MicroBatches
from wcl_ray.storage import storage_error, storage_errors

FILE = "state.pt"


@dataclass
class TrainState:
    """Position of the training.

    Attributes:
        epoch: the current epoch, from 0.
        step: optimiser steps since the start.
        images: images that entered a step since the start.
        consumed: uint8 (ceil(N / 8),), packed bits over positions: the images of this epoch that
            entered a step; None at the start of an epoch.
    """

    epoch: int = 0
    step: int = 0
    images: int = 0
    consumed: np.ndarray | None = None


def plain(model: nn.Module) -> nn.Module:
    """The module inside the wrappers of workers, micro-batches and torch.compile."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (DistributedDataParallel, MicroBatches)):
            inner = model.module
        if inner is None:
            return model
        model = inner


def save(
    folder: str | Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: TrainState,
    identity: dict[str, Any],
) -> None:
    """Write a checkpoint to a folder.

    Args:
        identity: values that a run must share to use the checkpoint (compared by :func:`load`).

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    consumed = None if state.consumed is None else torch.from_numpy(state.consumed.copy())
    content = {
        "model": plain(model).state_dict(),
        "optimizer": optimizer.state_dict(),
        "position": {
            "epoch": state.epoch,
            "step": state.step,
            "images": state.images,
            "consumed": consumed,
        },
        "facts": identity,
    }
    target = Path(folder) / FILE
    partial = target.with_suffix(".partial")
    with storage_errors(str(folder), _size(content)):
        try:
            with open(partial, "wb") as stream:
                torch.save(content, stream)
        except RuntimeError as error:  # torch wraps the error of the disk
            os_error = next((e for e in causes(error) if isinstance(e, OSError)), None)
            if os_error is None:
                raise
            raise os_error from None
        os.replace(partial, target)


def save_local(
    model: nn.Module, optimizer: torch.optim.Optimizer, state: TrainState, identity: dict[str, Any]
) -> str:
    """Write a checkpoint to a new folder on this node (see :func:`save`) and return its path."""
    with storage_errors(os.environ.get("TMPDIR", "/tmp")):
        folder = tempfile.mkdtemp(prefix="wcl-checkpoint-")
    try:
        save(folder, model, optimizer, state, identity)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def upload(storage: Any, checkpoint: Any, name: str) -> Any:
    """Ray Train's upload, run in a thread; a failed one leaves no files behind."""
    try:
        return storage.persist_current_checkpoint(checkpoint, name)
    except OSError as error:
        size = sum(file.stat().st_size for file in Path(checkpoint.path).glob("*"))
        path = storage.build_checkpoint_path_from_name(name)
        with contextlib.suppress(OSError):
            storage.storage_filesystem.delete_dir(path)
        shutil.rmtree(checkpoint.path, ignore_errors=True)
        raise storage_error(path, error, size) from error


def _size(tree: Any) -> int:
    """Bytes of the tensors in nested dicts and lists."""
    if isinstance(tree, torch.Tensor):
        return tree.nbytes
    children = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return sum(map(_size, children))


def load(
    folder: str | Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    identity: dict[str, Any] | None = None,
) -> TrainState:
    """Load a checkpoint into a model and an optimiser; the file is mapped, not read into memory.

    Raises:
        UserError: the checkpoint was made with other images, clusters or another model.
    """
    content = torch.load(Path(folder) / FILE, map_location="cpu", mmap=True, weights_only=True)
    stored = content["facts"]
    for key, value in (identity or {}).items():
        if stored.get(key, value) != value:  # older versions wrote fewer keys
            raise UserError(
                f"the checkpoint in {folder} was made with {key} = {stored[key]}, this run has "
                f"{value}; use another --name"
            )
    plain(model).load_state_dict(content["model"])
    if optimizer is not None:
        optimizer.load_state_dict(content["optimizer"])
    names = {field.name for field in fields(TrainState)}  # other versions have fewer or more
    position = {key: value for key, value in content["position"].items() if key in names}
    if position["consumed"] is not None:
        position["consumed"] = position["consumed"].numpy().copy()
    return TrainState(**position)


def trained_encoder(spec: EncoderSpec, checkpoint: Any) -> Encoder:
    """The encoder with the weights of a Ray Train checkpoint."""
    encoder = spec.build()
    with checkpoint.as_directory() as folder:
        load(folder, encoder, None)
    return encoder
