"""A linear classifier of the classes of --data.label, trained with the backbone.

Softmax cross-entropy, mean over both views. Faithful; without label smoothing or mixing of images.
Images without a label are left out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from wcl_ray.config import ModelConfig
from wcl_ray.model.loss import LossResult
from wcl_ray.model.methods import LocalBatch, Method, mean_loss
from wcl_ray.registry import METHODS


@METHODS.add("cross-entropy")
class CrossEntropy(Method):
    """The classes are the clusters."""

    kind = "label"
    needs = "label"
    projects = False

    def __init__(self, feature_dim: int, model: ModelConfig, sizes: tuple[int, ...]) -> None:
        super().__init__(feature_dim, model, sizes)
        self.classifier = nn.Linear(feature_dim, sizes[0])

    def forward(
        self, features: torch.Tensor, embeddings: tuple[torch.Tensor, ...], attributes: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        return (self.classifier(features),)

    def loss(self, outputs: tuple[torch.Tensor, ...], batch: LocalBatch) -> LossResult:
        labels = batch.clusters[:, 0]
        targets = labels.clamp(min=0).repeat(2)
        losses = F.cross_entropy(outputs[0].float(), targets, reduction="none")
        return mean_loss(losses.view(2, -1).mean(0), batch.valid & (labels >= 0))
