"""All images of the cluster in the batch are positives."""

from __future__ import annotations

import torch

from wcl_ray.model.losses import GlobalBatch, logits
from wcl_ray.registry import LOSSES


@LOSSES.add("supcon")
def supcon(batch: GlobalBatch) -> torch.Tensor:
    """Every view of the cluster's images in the batch, and the image's own other view, are
    positives: mean over them of -log p, the denominator over all other 2B - 1 views, or over those
    of the candidates at a level.

    With labels as clusters it is supervised contrastive learning (Khosla et al., 2020). With
    weights instead of clusters the mean is weighted, the own other view having weight 1, as in
    y-aware InfoNCE (Dufumier et al., MICCAI 2021).
    """
    z1, z2, all_z1, all_z2, _, positives, candidates, _, offset, temperature = batch
    rows = torch.arange(len(z1), device=z1.device)
    itself = rows, rows + offset
    weights = positives.to(z1.dtype)  # (G, b, B)
    pulled = weights @ (all_z1 + all_z2)  # (G, b, D): Σ of the weighted positives, both views
    total_weight = 2 * weights.sum(2) + 1  # and the image's own other view
    both_views = []
    for anchor, other, first, second in ((z1, z2, all_z1, all_z2), (z2, z1, all_z2, all_z1)):
        # first: the view of the anchor, which must not meet itself; second: the other view
        same_view = logits(anchor, first, batch)
        same_view[itself] = torch.finfo(same_view.dtype).min
        other_view = logits(anchor, second, batch)
        if candidates is None:
            log_all = torch.logaddexp(same_view.logsumexp(1), other_view.logsumexp(1))[None]
        else:
            log_all = torch.stack(
                [_log_sum(same_view, other_view, level, itself) for level in candidates]
            )
        mean_positive = ((pulled + other) * anchor).sum(2) / temperature / total_weight
        both_views.append(log_all - mean_positive)
    return torch.stack(both_views).mean(0)


def _log_sum(
    same_view: torch.Tensor,
    other_view: torch.Tensor,
    candidates: torch.Tensor,
    itself: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """(b,) logsumexp over the candidates of a level and the image's own other view."""
    outside = ~candidates
    outside[itself] = False
    least = torch.finfo(same_view.dtype).min
    first, second = (x.masked_fill(outside, least).logsumexp(1) for x in (same_view, other_view))
    return torch.logaddexp(first, second)
