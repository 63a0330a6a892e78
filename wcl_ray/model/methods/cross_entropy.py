"""A linear classifier of the classes of --data.label, trained with the backbone.

Softmax cross-entropy, mean over both views. Faithful; without label smoothing or mixing of images.
Batches are composed of images of one class (``--clusters.samples-per-cluster``; 1: shuffled), and
images without a label are left out.
"""

from __future__ import annotations

import torch.nn.functional as F

from wcl_ray.model.loss import LossResult
from wcl_ray.model.methods import Classifier, LocalBatch, Outputs, mean_loss
from wcl_ray.registry import METHODS


@METHODS.add("cross-entropy")
class CrossEntropy(Classifier):
    """The classes are the clusters."""

    kind = "label"
    needs = "label"

    def loss(self, outputs: Outputs, batch: LocalBatch) -> LossResult:
        labels = batch.clusters[:, 0]
        targets = labels.clamp(min=0).repeat(2)
        losses = F.cross_entropy(outputs[0].float(), targets, reduction="none")
        return mean_loss(losses.view(2, -1).mean(0), batch.valid & (labels >= 0))
