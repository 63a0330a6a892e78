"""Cl-InfoNCE with any estimator (:mod:`wcl_ray.model.losses`); the caller gathers embeddings.

Source: Tsai et al., "Learning Weakly-supervised Contrastive Representations", ICLR 2022.
Shapes: b local images, B images of the global batch, D dimensions, G granularities; W = B / b.

Local anchors meet the candidates of the global batch, so work is b × 2B, not (2B)². So is memory up
to b × B = MOST_PAIRS; in larger batches it is linear in B, since anchors are treated in parts whose
logits are not kept, apart from the (b, B) similarities of graded positives. Parts are not compiled.
Clusters are integers; -1 is a singleton: an image that shares its cluster with no other. If all
images are singletons, both estimators are InfoNCE / SimCLR; with labels as clusters, ``supcon`` is
supervised contrastive learning (Khosla et al., 2020).

The loss is not multiplied by τ / 0.07 as in the code published with the paper: multiply learning
rates taken from there by that factor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from wcl_ray.model.losses import Estimator, GlobalBatch
from wcl_ray.registry import LOSSES

MOST_PAIRS = 2**24  # of anchors and candidate images whose logits are kept for the backward pass


PartialLoss = Callable[..., tuple[torch.Tensor, torch.Tensor]]


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
    that of the batch without them, 0 if none is valid, and their embeddings get no gradient.

    Args:
        z1, z2: (b, D) embeddings of the two views, any float dtype; normalised here.
        all_z1, all_z2: (B, D) the same of all workers, in order of rank.
        clusters: int (b, G); -1 = singleton.
        all_clusters: int (B, G).
        offset: index of the first local image in the global batch.
        temperature: τ > 0, dividing cosine similarities.
        estimator: one of :data:`wcl_ray.registry.LOSSES`, or its name.
        all_valid: bool (B,); None: all are valid.
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

        scale = len(all_z1) / len(z1) / all_valid.sum(dtype=z1.dtype).clamp(min=1)

        def mean(rows: torch.Tensor, start: int = 0) -> torch.Tensor:
            return torch.where(valid[start : start + len(rows)], rows, 0.0).sum() * scale

        def anchors_loss(
            start: int,
            z1: torch.Tensor,
            z2: torch.Tensor,
            all_z1: torch.Tensor,
            all_z2: torch.Tensor,
        ) -> tuple[torch.Tensor, torch.Tensor]:
            """Part of the loss of the n local anchors from ``start`` on, whose views are z1 and z2,
            and (n,) sums of their positives."""
            stop = start + len(z1)
            part = slice(start, stop)
            index = torch.arange(start, stop, device=z1.device) + offset
            itself = index[:, None] == torch.arange(len(all_z1), device=z1.device)  # (n, B)
            positives = _same_cluster(clusters[part], all_clusters) & ~itself
            candidates = _same_parent(clusters[part], positives) if siblings else None
            if similarity is not None:
                grades = similarity[part].to(z1.dtype).square()
                grades = grades.masked_fill(itself | ~all_valid, 0.0)
                positives = torch.maximum(positives.to(z1.dtype), grades)
            views = z1, z2, all_z1, all_z2
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
            losses = _mean_of_levels(levels, level_weights)
            return mean(losses, start), positives[0].sum(1, dtype=z1.dtype)

        views = z1, z2, all_z1, all_z2
        if len(z1) * len(all_z1) <= MOST_PAIRS:
            loss, positives = anchors_loss(0, *views)
        else:
            # logits of more than 32 MB: glibc keeps smaller blocks when they are freed
            size = max(1, MOST_PAIRS // 2 // len(all_z1))
            in_parts: Callable[..., tuple[torch.Tensor, torch.Tensor]] = _in_parts
            if torch.compiler.is_compiling():  # as a decorator it would import torch._dynamo
                in_parts = torch.compiler.disable(_in_parts)
            loss, positives = in_parts(anchors_loss, size, *views)
        return LossResult(loss, mean(positives), mean((positives == 0).to(z1.dtype)))


def _in_parts(
    anchors_loss: PartialLoss, size: int, *views: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of the loss over parts of ``size`` anchors, and (b,) sums of positives.

    The loss is a sum over anchors, so the gradient of each part is computed while its logits are
    there, and added up. The result has the sum as its gradient, but no second derivatives.
    """
    needed = torch.is_grad_enabled() and any(view.requires_grad for view in views)
    z1, z2, *batch = (view.detach() for view in views)
    gradients = [torch.zeros_like(view) for view in views] if needed else []
    losses, positives = [], []
    for start in range(0, len(z1), size):
        part = slice(start, start + size)
        leaves = [z.requires_grad_(needed) for z in (z1[part], z2[part], *batch)]
        loss, counts = anchors_loss(start, *leaves)
        if loss.requires_grad:
            sums = (gradients[0][part], gradients[1][part], *gradients[2:])
            of_part = torch.autograd.grad(loss, leaves, allow_unused=True)
            for total, gradient in zip(sums, of_part, strict=True):
                if gradient is not None:
                    total += gradient
        losses.append(loss.detach())
        positives.append(counts)
    loss = torch.stack(losses).sum()
    for view, gradient in zip(views, gradients, strict=False):
        loss = loss + (gradient * (view - view.detach())).sum()  # adds 0, with that gradient
    return loss, torch.cat(positives)


def _mean_of_levels(levels: torch.Tensor, weights: tuple[float, ...]) -> torch.Tensor:
    """(b,) weighted means of losses (G, b)."""
    if not weights:
        return levels.mean(0)
    if len(weights) != len(levels):
        raise ValueError(f"{len(weights)} level weights for {len(levels)} levels")
    column = torch.tensor(weights, dtype=levels.dtype, device=levels.device)[:, None]
    return (column * levels).sum(0) / sum(weights)


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
