"""All images of the cluster in the batch are positives."""

from __future__ import annotations

import torch

from wcl_ray.model.losses import GlobalBatch
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
    z1, z2, all_z1, all_z2, _, positives, candidates, all_valid, offset, temperature = batch
    b, total = len(z1), len(all_z1)
    rows = torch.arange(b, device=z1.device)
    index = rows + offset
    eye = index[:, None] == torch.arange(total, device=z1.device)  # (b, B)
    masked = torch.cat([eye | ~all_valid, (~all_valid).expand(b, total)], dim=1)
    both_views = []
    for anchor, first, second in ((z1, all_z1, all_z2), (z2, all_z2, all_z1)):
        # first: the view of the anchor, which must not meet itself; second: the other view
        logits = torch.cat([anchor @ first.T, anchor @ second.T], dim=1) / temperature
        # not -inf, whose product with zeros in the mask is NaN
        least = torch.finfo(logits.dtype).min
        logits = logits.masked_fill(masked, least)
        log_all = torch.logsumexp(logits, dim=1)
        losses = []
        for level, others in enumerate(positives):
            if candidates is not None:
                outside = ~(candidates[level] | eye).repeat(1, 2)
                log_all = torch.logsumexp(logits.masked_fill(outside, least), dim=1)
            positive = torch.cat([others, torch.maximum(others, eye.to(others.dtype))], dim=1)
            total_weight = positive.sum(1, dtype=logits.dtype)
            losses.append(log_all - (logits * positive).sum(1) / total_weight)
        both_views.append(torch.stack(losses))
    return torch.stack(both_views).mean(0)
