"""Contrastive multiview coding with the metadata as second view (Tian et al., ECCV 2020).

The paper's two-view loss, over the global batch: each view's embedding against an MLP's
embedding of the image's binary attributes (:mod:`wcl_ray.clusters.similarity`), both directions.
Simplified: negatives are those of the batch (the paper keeps a memory bank), and the views are not
contrasted with each other. As in the paper, other images with the same metadata are negatives.
Images without metadata are left out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wcl_ray.config import ModelConfig
from wcl_ray.model.encoder import build_projector
from wcl_ray.model.gather import gather
from wcl_ray.model.loss import LossResult
from wcl_ray.model.methods import LocalBatch, Method, Outputs, mean_loss, unit
from wcl_ray.registry import METHODS


@METHODS.add("cmc")
class CMC(Method):
    """The MLP has the layers of the projector."""

    kind = "instance"
    needs = "metadata"

    def __init__(self, feature_dim: int, model: ModelConfig, sizes: tuple[int, ...]) -> None:
        super().__init__(feature_dim, model, sizes)
        self.metadata = build_projector(sizes[0], model.projector, model.projector_norm)

    def forward(self, features: Tensor, embeddings: Outputs, attributes: Tensor) -> Outputs:
        return embeddings[0], self.metadata(attributes)

    def loss(self, outputs: Outputs, batch: LocalBatch) -> LossResult:
        z, m = map(unit, outputs)  # (2b, D), (b, D)
        used = batch.valid & (batch.attributes > 0).any(1)
        all_used, all_m = gather(used.long()) > 0, gather(m)
        index = torch.arange(len(m), device=m.device) + batch.offset
        itself = index[:, None] == torch.arange(len(all_m), device=m.device)
        outside = ~(all_used | itself)  # (b, B); itself, so that losses are finite
        losses = torch.zeros_like(m[:, 0])
        for view in z.chunk(2):
            for anchors, candidates in ((view, all_m), (m, gather(view))):
                logits = anchors @ candidates.T / batch.temperature
                logits = logits.masked_fill(outside, torch.finfo(logits.dtype).min)
                losses = losses + F.cross_entropy(logits, index, reduction="none") / 4
        return mean_loss(losses, used)
