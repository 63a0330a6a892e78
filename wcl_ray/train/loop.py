"""One training step, from the uint8 batch to the optimiser, in plain torch without Ray.

Shapes: b images of this worker, B of the global batch, c = 3 channels, D dimensions of an
embedding, G granularities of the clusters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from wcl_ray.config import LossConfig, TrainConfig
from wcl_ray.data.augment import Augment
from wcl_ray.data.batch import Batch
from wcl_ray.model.gather import gather
from wcl_ray.model.loss import LossResult
from wcl_ray.model.methods import LocalBatch, Method
from wcl_ray.model.optim import clip_gradients, learning_rate
from wcl_ray.model.similarity import unpack_bits, weighted_jaccard
from wcl_ray.registry import LOSSES
from wcl_ray.train.checkpoint import TrainState
from wcl_ray.train.progress import Progress, StepMetrics


@dataclass
class Learner:
    """Model, optimiser and settings of a worker, and the training step.

    Every worker has an equal part of the global batch, and the gradient is that of one process with
    the global batch, except for batch norm on CPUs and the masks of dropout (see
    :mod:`wcl_ray.model.gather`).

    Attributes:
        model: the encoder, perhaps compiled; with micro-batches inside
            :class:`wcl_ray.model.micro_batches.MicroBatches`; with several workers inside
            DistributedDataParallel.
        cl_infonce: :func:`wcl_ray.model.loss.cl_infonce`, perhaps compiled.
        rank: rank of this worker.
        bf16: autocast to bfloat16.
        attribute_weights: float (A,), of the metadata attributes for graded positives; None: the
            positives are the images of the cluster alone.
        method: the model's modules for another method than Cl-InfoNCE, and its loss.
        state: epoch and step, which seed the views and the masks of dropout.
        progress: progress of the training, which the learning rate depends on.
    """

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    augment: Augment
    cl_infonce: Callable[..., Any]
    train: TrainConfig
    loss: LossConfig
    seed: int
    device: torch.device
    rank: int = 0
    bf16: bool = False
    attribute_weights: torch.Tensor | None = None
    method: Method | None = None
    state: TrainState = field(default_factory=TrainState)
    progress: Progress = field(default_factory=lambda: Progress(1, 0, 0, 0))

    def training_step(self, batch: Batch) -> StepMetrics:
        """One step of the optimiser on this worker's part of a global batch."""
        # uint8 (b, c, S, S), squashed to a square; or (b, 2, c, s, s), the crops of both views
        images_bchw = batch.images.to(self.device, non_blocking=True)
        aspect_b = batch.aspect.to(self.device, non_blocking=True)
        ids_b = batch.ids.to(self.device, non_blocking=True)
        # int64 (b, G + 1): clusters and whether the image is valid, copied and gathered together
        rows_bg = torch.column_stack([batch.clusters, batch.valid])
        rows_bg = rows_bg.to(self.device, non_blocking=True)

        # float32 (2b, c, s, s): view 1 of every image, then view 2
        seed_step(self.seed, self.state.step, self.rank)
        views_2bchw = self.augment.two_views(images_bchw, aspect_b, ids_b, self.state.epoch)
        views_2bchw = views_2bchw.to(memory_format=torch.channels_last)

        attributes = batch.attributes.to(self.device, non_blocking=True)
        inputs = []  # float32 (b, A), without the bits that fill the last byte
        if self.method is not None:
            inputs = [unpack_bits(attributes)[:, : sum(self.method.sizes)]]
        # without the cache of bfloat16 weights, in which micro-batches would sum their gradients
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=False
        ):
            # (2b, D) from each head: Cl-InfoNCE's and, with an instance weight, SimCLR's
            heads_2bd = self.model(views_2bchw, *inputs)

        similarity_bB = None
        if self.attribute_weights is not None:
            anchors, candidates = unpack_bits(attributes), unpack_bits(gather(attributes))
            similarity_bB = weighted_jaccard(anchors, candidates, self.attribute_weights)

        if self.method is None:
            result = batch_loss(
                heads_2bd, rows_bg, self.rank, self.loss, self.cl_infonce, similarity_bB
            )
        else:
            valid_b, offset = rows_bg[:, -1] > 0, self.rank * len(rows_bg)
            rows = rows_bg[:, :-1], valid_b, inputs[0]
            local = LocalBatch(*rows, offset, self.loss.temperature)
            result = self.method.loss(heads_2bd, local)

        self.optimizer.zero_grad(set_to_none=True)
        result.loss.backward()
        norm = clip_gradients(self.model, self.train.clip)
        rate = learning_rate(self.progress.share, self.train)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)  # older checkpoints have none
        self.optimizer.step()
        figures = result.positives, result.without_positive
        return StepMetrics(result.loss.detach(), *figures, norm.detach())


def batch_loss(
    heads_2bd: tuple[torch.Tensor, ...],
    rows_bg: torch.Tensor,
    rank: int,
    loss: LossConfig,
    cl_infonce: Callable[..., Any],
    similarity_bB: torch.Tensor | None = None,
) -> LossResult:
    """This worker's part of the loss of the global batch; the metrics are of the first head.

    Args:
        heads_2bd: (2b, D) embeddings of each head; the first b are view 1.
        rows_bg: int64 (b, G + 1): the clusters of each image, and whether it is valid.
        cl_infonce: :func:`wcl_ray.model.loss.cl_infonce`, perhaps compiled.
        similarity_bB: float (b, B) in [0, 1], of the metadata, for graded positives; None: an image
            is a positive by its cluster alone.
    """
    all_rows = gather(rows_bg)  # (B, G + 1), in order of rank
    clusters, valid = all_rows[:, :-1], all_rows[:, -1] > 0
    offset = rank * len(rows_bg)

    def head_loss(z_2bd: torch.Tensor, clusters: torch.Tensor, **levels: Any) -> LossResult:
        z1, z2 = z_2bd.float().chunk(2)  # (b, D) each
        views = z1, z2, gather(z1), gather(z2)
        local = clusters[offset : offset + len(rows_bg)]
        settings = offset, loss.temperature, LOSSES.get(loss.estimator)
        return LossResult(*cl_infonce(*views, local, clusters, *settings, valid, **levels))

    levels: dict[str, Any] = {"similarity": similarity_bB}
    if clusters.shape[1] > 1:  # not in the warm-up rounds, in which all images are singletons
        levels |= {"siblings": loss.negatives == "siblings", "level_weights": loss.level_weights}
    result = head_loss(heads_2bd[0], clusters, **levels)
    if not loss.instance_weight:
        return result
    instance = head_loss(heads_2bd[1], torch.full_like(clusters[:, :1], -1))
    return result._replace(loss=result.loss + loss.instance_weight * instance.loss)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch's generators on all devices, for dropout and stochastic depth.

    Masks differ between workers and steps, and are the same in a resumed run.
    """
    mixed = np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)
    torch.manual_seed(int(mixed[0]))
