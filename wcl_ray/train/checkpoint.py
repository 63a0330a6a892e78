"""What a checkpoint holds: weights, optimiser and the exact position in the data.

One file, full (unsharded) state, fixed name: any number of workers can load it. There is no random
state to keep: every random choice is a function of (seed, epoch, image) or of (seed, step, rank).
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
from wcl_ray.storage import storage_error, storage_errors

FILE = "state.pt"


@dataclass
class TrainState:
    """Where training stands.

    Attributes:
        epoch: epoch being trained, from 0.
        step: optimiser steps done since the start.
        images: images that entered a step since the start.
        consumed: packed bits over positions, uint8 (ceil(N / 8),): the images of this epoch that
            entered a step; empty at the start of an epoch.
    """

    epoch: int = 0
    step: int = 0
    images: int = 0
    consumed: np.ndarray | None = None


def plain(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel and torch.compile wrappers."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, DistributedDataParallel):
            inner = model.module
        if inner is None:
            return model
        model = inner


def save(
    folder: str | Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    position: TrainState,
    facts: dict[str, Any],
) -> None:
    """Write a checkpoint into a folder.

    Args:
        facts: what has to be equal for a checkpoint to fit (compared by :func:`load`).

    Raises:
        StorageError: the folder is full or cannot be written.
    """
    consumed = None if position.consumed is None else torch.from_numpy(position.consumed.copy())
    state = {
        "model": plain(model).state_dict(),
        "optimizer": optimizer.state_dict(),
        "position": {
            "epoch": position.epoch,
            "step": position.step,
            "images": position.images,
            "consumed": consumed,
        },
        "facts": facts,
    }
    target = Path(folder) / FILE
    partial = target.with_suffix(".partial")
    with storage_errors(str(folder), _size(state)):
        try:
            with open(partial, "wb") as stream:
                torch.save(state, stream)
        except RuntimeError as error:  # torch's own, with that of the disk inside
            refused = next((e for e in causes(error) if isinstance(e, OSError)), None)
            if refused is None:
                raise
            raise refused from None
        os.replace(partial, target)


def save_local(
    model: nn.Module, optimizer: torch.optim.Optimizer, state: TrainState, facts: dict[str, Any]
) -> str:
    """Write a checkpoint into a new folder on this node, see :func:`save`; returns the folder."""
    with storage_errors(os.environ.get("TMPDIR", "/tmp")):
        folder = tempfile.mkdtemp(prefix="wcl-checkpoint-")
    try:
        save(folder, model, optimizer, state, facts)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def upload(storage: Any, checkpoint: Any, name: str) -> Any:
    """Ray Train's upload, in a thread; what it leaves of a failed one takes no room."""
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
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return sum(_size(part) for part in parts)


def load(
    folder: str | Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    facts: dict[str, Any] | None = None,
) -> TrainState:
    """Read a checkpoint into a model and an optimiser; the file is mapped, not copied to memory.

    Raises:
        UserError: the checkpoint was made for other images, clusters or another model.
    """
    state = torch.load(Path(folder) / FILE, map_location="cpu", mmap=True, weights_only=True)
    made_with = state["facts"]
    for key, value in (facts or {}).items():
        if made_with.get(key, value) != value:  # an older version wrote fewer facts
            raise UserError(
                f"the checkpoint in {folder} was made with {key} = {made_with[key]}, this run has "
                f"{value}; use another --name"
            )
    plain(model).load_state_dict(state["model"])
    if optimizer is not None:
        optimizer.load_state_dict(state["optimizer"])
    names = {field.name for field in fields(TrainState)}  # other versions have fewer or more
    position = {key: value for key, value in state["position"].items() if key in names}
    consumed = position["consumed"]
    return TrainState(
        **position | {"consumed": None if consumed is None else consumed.numpy().copy()}
    )


def trained_encoder(spec: EncoderSpec, checkpoint: Any) -> Encoder:
    """The encoder with the weights of a checkpoint of Ray Train."""
    encoder = spec.build()
    with checkpoint.as_directory() as folder:
        load_model(folder, encoder)
    return encoder


def load_model(folder: str | Path, model: nn.Module) -> nn.Module:
    """Only the weights, for evaluation and export."""
    load(folder, model, None)
    return model
