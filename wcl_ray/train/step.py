"""Parts of a training step that need no Ray: how far training is, seeds, the loss over workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from wcl_ray.config import LossConfig
from wcl_ray.model.gather import gather
from wcl_ray.model.loss import LossResult
from wcl_ray.registry import LOSSES


@dataclass
class Progress:
    """How far training is; the learning rate, the live line and the time left follow it.

    Only images that enter a step count, not those that a last, incomplete batch drops or that
    cannot be read: the last of S equal steps begins at a share of (S - 1) / S. After a restart in
    the middle of an epoch, with any number of workers, the share is not behind that of the last
    step before it.

    Attributes:
        epochs: of the whole training.
        epoch: the one being trained, from 0.
        done: images of this epoch that entered a step, those before a restart included.
        left: images of this epoch that still will.
    """

    epochs: int
    epoch: int
    done: int
    left: int

    def add(self, batch: int) -> None:
        """Count a step."""
        self.done += batch
        self.left -= batch

    @property
    def of_epoch(self) -> float:
        """Share of this epoch that is done, in [0, 1]."""
        return self.done / max(1, self.done + self.left)

    @property
    def share(self) -> float:
        """Share of the training that is done, in [0, 1]."""
        return (self.epoch + self.of_epoch) / self.epochs

    @property
    def images_left(self) -> int:
        """Images that all steps to come will see, other epochs being like this one."""
        return self.left + (self.epochs - self.epoch - 1) * (self.done + self.left)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch's generators on all devices, for dropout and stochastic depth.

    Workers draw different masks, steps too, and a resumed run draws those of an uninterrupted one.
    """
    mixed = np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)
    torch.manual_seed(int(mixed[0]))


def batch_loss(
    heads: tuple[torch.Tensor, ...],
    rows: torch.Tensor,
    rank: int,
    loss: LossConfig,
    cl_infonce: Callable[..., Any],
) -> LossResult:
    """This worker's part of the loss of the global batch; its figures are those of the first head.

    Args:
        heads: (2b, D) embeddings of each head, the first b of them are view 1.
        rows: int64 (b, G + 1): the clusters of each image, and whether it is valid.
        cl_infonce: :func:`wcl_ray.model.loss.cl_infonce`, compiled or not.
    """
    everyone = gather(rows)
    clusters, valid = everyone[:, :-1], everyone[:, -1] > 0
    offset = rank * len(rows)

    def of_head(head: torch.Tensor, clusters: torch.Tensor) -> LossResult:
        z1, z2 = head.float().chunk(2)
        views = z1, z2, gather(z1), gather(z2)
        local = clusters[offset : offset + len(rows)]
        settings = offset, loss.temperature, LOSSES.get(loss.estimator)
        return LossResult(*cl_infonce(*views, local, clusters, *settings, valid))

    result = of_head(heads[0], clusters)
    if not loss.dual:
        return result
    instance = of_head(heads[1], torch.full_like(clusters[:, :1], -1))
    return result._replace(loss=result.loss + loss.dual_weight * instance.loss)
