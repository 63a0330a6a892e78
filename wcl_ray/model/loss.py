"""Cl-InfoNCE with any estimator (:mod:`wcl_ray.model.losses`); the caller gathers embeddings.

Source: Tsai et al., "Learning Weakly-supervised Contrastive Representations", ICLR 2022.
Shapes: b local images, B images of the global batch, D dimensions, G granularities; W = B / b.

Local anchors meet the candidates of the global batch, so work is b × 2B, not (2B)². So is memory up
to b × B = MOST_PAIRS; in larger batches it is linear in B, since logits are not kept for the
backward pass, apart from the (b, B) similarities of graded positives.
Clusters are integers; -1 is a singleton: an image that shares its cluster with no other. If all
images are singletons, both estimators are InfoNCE / SimCLR; with labels as clusters, ``supcon`` is
supervised contrastive learning (Khosla et al., 2020).

The loss is not multiplied by τ / 0.07 as in the code published with the paper: multiply learning
rates taken from there by that factor.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from wcl_ray.model.losses import Estimator, GlobalBatch
from wcl_ray.registry import LOSSES

MOST_PAIRS = 2**24  # of anchors and candidate images whose logits are kept for the backward pass


class LossResult(NamedTuple):
    """float32 scalars on the device. Averaged over the W workers they are means over all valid
    anchors of the global batch: each is a sum over local anchors, times W / number of all anchors.

    Attributes:
        loss: to minimise, in nats.
        positives: other images of the anchor's cluster in the global batch (first granularity), or
            the sum of their weights.
        without_positive: share of anchors without any, whose only positive is their second view.
    """

    loss: torch.Tensor
    positives: torch.Tensor
    without_positive: torch.Tensor


def cl_infonce(
    z1: torch.Tensor,
    z2: torch.Tensor,
    all_z1: torch.Tensor,
    all_z2: torch.Tensor,
    clusters: torch.Tensor,
    all_clusters: torch.Tensor,
    offset: int,
    temperature: float,
    estimator: str | Estimator = "supcon",
    all_valid: torch.Tensor | None = None,
    similarity: torch.Tensor | None = None,
    siblings: bool = False,
    level_weights: tuple[float, ...] = (),
) -> LossResult:
    """Cl-InfoNCE of the local anchors against the global batch, mean over granularities.

    Invalid images are neither anchors nor positives nor candidates of either estimator: the loss is
    that of the batch without them, and their embeddings get no gradient.

    Args:
        z1, z2: (b, D) embeddings of the two views, any float dtype; normalised here.
        all_z1, all_z2: (B, D) the same of all workers, in order of rank.
        clusters: int (b, G); -1 = singleton.
        all_clusters: int (B, G).
        offset: index of the first local image in the global batch.
        temperature: τ > 0, dividing cosine similarities.
        estimator: one of :data:`wcl_ray.registry.LOSSES`, or its name.
        all_valid: bool (B,), true for at least one image; None: all are valid.
        similarity: float (b, B) in [0, 1] to each image, for graded positives: its weight as a
            positive is 1 in the anchor's cluster, else the square of the similarity.
        siblings: contrast each granularity but the first with images of the same cluster of the
            granularity before it only, or of the last one before it in which the anchor has one.
        level_weights: G weights of the granularities, of any sum; empty: equal ones.

    Raises:
        ValueError: an unknown estimator, one whose result is not (G, b), or other than G weights.
    """
    estimate: Estimator = LOSSES.get(estimator) if isinstance(estimator, str) else estimator
    if all_valid is None:
        all_valid = torch.ones(len(all_z1), dtype=torch.bool, device=z1.device)
    valid = all_valid[offset : offset + len(z1)]
    with torch.autocast(z1.device.type, enabled=False):
        z1, z2, all_z1, all_z2 = (_unit(z) for z in (z1, z2, all_z1, all_z2))
        clusters = clusters.masked_fill(~valid[:, None], -1)
        all_clusters = all_clusters.masked_fill(~all_valid[:, None], -1)

        def anchors_loss(start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
            """(G, n) losses of n local anchors, and (n,) sums of their positives."""
            part = slice(start, stop)
            index = torch.arange(start, stop, device=z1.device) + offset
            itself = index[:, None] == torch.arange(len(all_z1), device=z1.device)  # (n, B)
            positives = _same_cluster(clusters[part], all_clusters) & ~itself
            candidates = _same_parent(clusters[part], positives) if siblings else None
            if similarity is not None:
                grades = similarity[part].to(z1.dtype).square()
                grades = grades.masked_fill(itself | ~all_valid, 0.0)
                positives = torch.maximum(positives.to(z1.dtype), grades)
            views = z1[part], z2[part], all_z1, all_z2
            first = offset + start
            levels = estimate(
                GlobalBatch(
                    *views, all_clusters, positives, candidates, all_valid, first, temperature
                )
            )
            expected = len(positives), stop - start
            if levels.shape != expected:
                raise ValueError(
                    f"the estimator returned losses of shape {tuple(levels.shape)}, not (G, b) = "
                    f"{expected}"
                )
            return levels, positives[0].sum(1, dtype=z1.dtype)

        n = len(z1)
        if n * len(all_z1) <= MOST_PAIRS:
            levels, positives = anchors_loss(0, n)
        else:
            # memory linear in B: logits are computed again in the backward pass
            step = max(1, MOST_PAIRS // 4 // len(all_z1))
            parts = [
                checkpoint(anchors_loss, i, min(i + step, n), use_reentrant=False)
                for i in range(0, n, step)
            ]
            levels = torch.cat([losses for losses, _ in parts], dim=1)
            positives = torch.cat([sums for _, sums in parts])
        losses = levels.mean(0)
        if level_weights:
            if len(level_weights) != len(levels):
                raise ValueError(f"{len(level_weights)} level weights for {len(levels)} levels")
            weights = torch.tensor(level_weights, dtype=levels.dtype, device=levels.device)
            losses = (weights[:, None] * levels).sum(0) / sum(level_weights)
        scale = len(all_z1) / n / all_valid.sum(dtype=z1.dtype)

        def mean(rows: torch.Tensor) -> torch.Tensor:
            return torch.where(valid, rows, 0.0).sum() * scale

        return LossResult(mean(losses), mean(positives), mean((positives == 0).to(z1.dtype)))


def _unit(z: torch.Tensor) -> torch.Tensor:
    return F.normalize(z if z.dtype == torch.float64 else z.float(), dim=1)


def _same_cluster(clusters: torch.Tensor, all_clusters: torch.Tensor) -> torch.Tensor:
    """bool (G, b, B): an image of the anchor's cluster, or the anchor itself."""
    anchors, candidates = clusters.T[:, :, None], all_clusters.T[:, None, :]
    return (anchors == candidates) & (anchors >= 0)


def _same_parent(clusters: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """bool (G, b, B): an image of the anchor's cluster at the last granularity before in which it
    has one; all images if there is none."""
    parents = [torch.ones_like(same[0])]
    for column, siblings in zip(clusters.T[:-1], same[:-1], strict=True):
        parents.append(torch.where(column[:, None] < 0, parents[-1], siblings))
    return torch.stack(parents)
