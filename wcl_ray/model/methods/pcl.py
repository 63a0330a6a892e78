"""Prototypical contrastive learning: InfoNCE and ProtoNCE (Li et al., ICLR 2021).

Equation 11, with the concentration of equation 12 (α = 10, cut at its 10th and 90th percentile and
scaled to the mean ``loss.temperature``, as in the authors' code); the k-means clusters are those of
the rounds, with the granularities of ``--clusters.k``. Simplified: no momentum encoder (negatives
are those of the batch), both views are anchors, all prototypes of a granularity are negatives (the
paper draws some), and a prototype is the running mean of its cluster's embeddings in this round,
those of the batch included, instead of the k-means centroid; a prototype without an image so far is
left out. Batches are composed of images of one cluster (``--clusters.samples-per-cluster``; 1:
shuffled, as in the paper).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wcl_ray.config import ModelConfig
from wcl_ray.model.gather import gather
from wcl_ray.model.loss import LossResult, cl_infonce
from wcl_ray.model.methods import LocalBatch, Method, Outputs, mean_loss, unit
from wcl_ray.registry import METHODS

ALPHA = 10.0
MOMENTUM = 0.9  # of the running means, for each step in which the cluster occurs


@METHODS.add("pcl")
class PCL(Method):
    """Buffers hold the prototypes of all granularities, one after the other."""

    kind = "kmeans"
    needs = "prototypes"
    means: Tensor
    distances: Tensor
    members: Tensor

    def __init__(self, feature_dim: int, model: ModelConfig, sizes: tuple[int, ...]) -> None:
        super().__init__(feature_dim, model, sizes)
        total = sum(sizes)
        self.register_buffer("means", torch.zeros(total, model.projector[-1]))
        self.register_buffer("distances", torch.zeros(total))  # mean one to the prototype
        self.register_buffer("members", torch.zeros(total))  # images of each cluster

    def begin_round(self, clusters: np.ndarray) -> None:
        self.means.zero_()
        self.distances.zero_()
        if clusters.shape[1] == len(self.sizes):
            counts = [
                np.bincount(column[column >= 0], minlength=size)
                for column, size in zip(clusters.T, self.sizes, strict=True)
            ]
            self.members.copy_(torch.from_numpy(np.concatenate(counts)))

    def forward(self, features: Tensor, embeddings: Outputs, attributes: Tensor) -> Outputs:
        return (embeddings[0],)

    def loss(self, outputs: Outputs, batch: LocalBatch) -> LossResult:
        z = unit(outputs[0])
        (z1, z2), all_z1, all_z2 = z.chunk(2), *map(gather, z.chunk(2))
        all_valid = gather(batch.valid.long()) > 0
        alone = batch.clusters.new_full((len(all_valid), 1), -1)  # every image a singleton
        settings = batch.offset, batch.temperature, "supcon", all_valid
        views = z1, z2, all_z1, all_z2
        result = LossResult(*cl_infonce(*views, alone[: len(z1)], alone, *settings))
        if batch.clusters.shape[1] != len(self.sizes):  # a warm-up round
            return result
        clusters = batch.clusters.masked_fill(~batch.valid[:, None], -1)
        all_clusters, all_z = gather(clusters), torch.stack([all_z1, all_z2]).detach()
        loss, start = result.loss, 0
        for g, size in enumerate(self.sizes):
            level = slice(start, start + size)
            self._update(level, all_clusters[:, g], all_z)
            logits = (
                z
                @ F.normalize(self.means[level], dim=1).T
                / self._temperatures(level, batch.temperature)
            )
            unseen = (self.means[level] == 0).all(1)
            logits = logits.masked_fill(unseen, torch.finfo(logits.dtype).min)
            targets, used = clusters[:, g].clamp(min=0), clusters[:, g] >= 0
            targets = torch.where(used, targets, (~unseen).long().argmax())  # finite losses
            losses = F.cross_entropy(logits, targets.repeat(2), reduction="none")
            loss = loss + mean_loss(losses.view(2, -1).mean(0), used).loss / len(self.sizes)
            start += size
        return result._replace(loss=loss)

    @torch.no_grad()
    def _update(self, level: slice, clusters: Tensor, views: Tensor) -> None:
        """Move the prototypes of a granularity towards the global batch.

        Args:
            clusters: int64 (B,). views: (2, B, D).
        """
        target = clusters.clamp(min=0).repeat(2)
        rows = views.flatten(0, 1) * (clusters >= 0).repeat(2)[:, None]
        means, distances = self.means[level].clone(), self.distances[level].clone()
        count = torch.zeros_like(distances).index_add_(0, target, rows.norm(dim=1))
        seen = count > 0
        weight = torch.where((means == 0).all(1), 1.0, 1 - MOMENTUM) * seen
        mean = torch.zeros_like(means).index_add_(0, target, rows) / count.clamp(min=1)[:, None]
        means += weight[:, None] * (mean - means)
        apart = (rows - F.normalize(means, dim=1)[target]).norm(dim=1) * rows.norm(dim=1)
        apart = torch.zeros_like(distances).index_add_(0, target, apart) / count.clamp(min=1)
        self.means[level] = means
        self.distances[level] = distances + weight * (apart - distances)

    def _temperatures(self, level: slice, temperature: float) -> Tensor:
        """(K,): the concentration φ of each prototype of a granularity, of mean ``temperature``
        over those with images."""
        phi = self.distances[level] / torch.log(self.members[level] + ALPHA)
        known = phi[self.distances[level] > 0]
        if not len(known):
            return torch.full_like(phi, temperature)
        low, high = torch.quantile(known, torch.tensor([0.1, 0.9], device=phi.device))
        phi = torch.where(self.distances[level] > 0, phi.clamp(low, high), high)
        return phi / known.clamp(low, high).mean() * temperature
