"""A linear classifier of the image's metadata attributes, trained with the backbone.

One sigmoid per binary attribute (:mod:`wcl_ray.clusters.similarity`): binary cross-entropy, mean
over attributes and both views. No paper's in particular; attributes are not weighted. Images
without metadata are left out; of others, a missing value counts as an attribute that is false.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from wcl_ray.config import ModelConfig
from wcl_ray.model.loss import LossResult
from wcl_ray.model.methods import LocalBatch, Method, mean_loss
from wcl_ray.registry import METHODS


@METHODS.add("attributes")
class Attributes(Method):
    """Batches are shuffled images."""

    kind = "instance"
    needs = "metadata"
    projects = False

    def __init__(self, feature_dim: int, model: ModelConfig, sizes: tuple[int, ...]) -> None:
        super().__init__(feature_dim, model, sizes)
        self.classifier = nn.Linear(feature_dim, sizes[0])

    def forward(
        self, features: torch.Tensor, embeddings: tuple[torch.Tensor, ...], attributes: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        return (self.classifier(features),)

    def loss(self, outputs: tuple[torch.Tensor, ...], batch: LocalBatch) -> LossResult:
        logits = outputs[0].float()
        targets = batch.attributes.repeat(2, 1)
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
        return mean_loss(losses.view(2, -1).mean(0), batch.valid & (batch.attributes > 0).any(1))
