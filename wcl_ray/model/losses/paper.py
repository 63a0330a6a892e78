"""One partner per anchor, the formula of the paper."""

from __future__ import annotations

import torch

from wcl_ray.model.losses import GlobalBatch, logits
from wcl_ray.registry import LOSSES


@LOSSES.add("paper")
def paper(batch: GlobalBatch) -> torch.Tensor:
    """The formula of the paper, with one partner per anchor: for pairs (x_i, y_i), i = 1..n,
    ``mean_i log( e^{f(x_i,y_i)} / (1/n Σ_j e^{f(x_i,y_j)}) )`` equals ``log n - loss`` with
    ``loss = mean_i [ logsumexp_j f(x_i,y_j) - f(x_i,y_i) ]``. Here x is the first view of an image
    and y the second view of its partner; the loss is averaged with that of the views swapped.
    """
    z1, z2, all_z1, all_z2 = batch[:4]
    local = slice(batch.offset, batch.offset + len(z1))
    forward, backward = (
        logits(anchors, candidates, batch).logsumexp(1)
        for anchors, candidates in ((z1, all_z2), (z2, all_z1))
    )
    losses = []
    for column in batch.clusters.T:
        partner = partners(column)
        inverse = torch.argsort(partner)
        one_way = forward - (z1 * all_z2[partner[local]]).sum(1) / batch.temperature
        other_way = backward - (z2 * all_z1[inverse[local]]).sum(1) / batch.temperature
        losses.append((one_way + other_way) / 2)
    return torch.stack(losses)


def partners(clusters: torch.Tensor) -> torch.Tensor:
    """One partner per image: a permutation within each cluster, without fixed points.

    It is a cyclic shift in batch order, and thus the same on every worker.

    Args:
        clusters: int (B,); -1 = singleton.

    Returns:
        int64 (B,): index of the partner; of the image itself for a singleton.
    """
    total = len(clusters)
    index = torch.arange(total, device=clusters.device)
    key = torch.where(clusters < 0, clusters.max().clamp(min=0) + 1 + index, clusters)
    order = torch.argsort(key, stable=True)
    sorted_key = key[order]
    last = torch.ones(total, dtype=torch.bool, device=key.device)
    last[:-1] = sorted_key[1:] != sorted_key[:-1]
    first_of = torch.searchsorted(sorted_key, sorted_key)  # leftmost member of the same cluster
    following = torch.where(last, first_of, index + 1)
    result = torch.empty_like(order)
    result[order] = order[following.clamp(max=total - 1)]
    return result
