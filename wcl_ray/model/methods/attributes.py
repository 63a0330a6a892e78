"""A linear classifier of the image's metadata attributes, trained with the backbone.

One sigmoid per binary attribute (:mod:`wcl_ray.clusters.similarity`): binary cross-entropy, mean
over attributes and both views. No paper's in particular; attributes are not weighted. Images
without metadata are left out; of others, a missing value counts as an attribute that is false.
"""

from __future__ import annotations

import torch.nn.functional as F

from wcl_ray.model.loss import LossResult
from wcl_ray.model.methods import Classifier, LocalBatch, Outputs, mean_loss
from wcl_ray.registry import METHODS


@METHODS.add("attributes")
class Attributes(Classifier):
    """Batches are shuffled images."""

    kind = "instance"
    needs = "metadata"

    def loss(self, outputs: Outputs, batch: LocalBatch) -> LossResult:
        logits = outputs[0].float()
        targets = batch.attributes.repeat(2, 1)
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
        return mean_loss(losses.view(2, -1).mean(0), batch.valid & (batch.attributes > 0).any(1))
