"""Cl-InfoNCE, both estimators, as pure functions; the gather is the caller's.

Source: Tsai et al., "Learning Weakly-supervised Contrastive Representations", ICLR 2022.
Shapes: b local images, B images of the global batch, D dimensions, G granularities; W = B / b.

Local anchors meet the candidates of the whole batch, so memory and work are b × 2B, not (2B)².
Clusters are integers; -1 stands for a singleton: an image that shares its cluster with nobody. With
every image a singleton both estimators are InfoNCE / SimCLR; with labels as clusters ``supcon`` is
supervised contrastive learning (Khosla et al., 2020).

The loss is not multiplied by τ / 0.07 as in the code published with the paper: learning rates
ported from there have to be multiplied by that factor.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F


class LossResult(NamedTuple):
    """float32 scalars on the device, whose averages over the W workers are the means over all valid
    anchors of the global batch: sums over the local ones, times W, divided by the number of all.

    Attributes:
        loss: to be minimised, in nats.
        positives: other images of the anchor's cluster in the global batch (first granularity).
        without_positive: share of anchors without any (they only have their own second view).
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
    estimator: str = "supcon",
    all_valid: torch.Tensor | None = None,
) -> LossResult:
    """Cl-InfoNCE of the local anchors against the global batch, mean over granularities.

    ``paper`` draws one partner per anchor and is the formula of the paper: with pairs
    (x_i, y_i), i = 1..n,  ``mean_i log( e^{f(x_i,y_i)} / (1/n Σ_j e^{f(x_i,y_j)}) )`` equals
    ``log n - loss`` with ``loss = mean_i [ logsumexp_j f(x_i,y_j) - f(x_i,y_i) ]``. Here x is the
    first view of an image and y the second view of its partner; the loss is averaged with the one
    where the views change places.

    ``supcon`` takes every view of the cluster's images in the batch, and the image's own other
    view, as positives: mean over them of -log p, the denominator over all other 2B - 1 views.

    Images that are not valid are neither anchors, positives nor candidates of either estimator: the
    loss is that of the batch without them, and their embeddings get no gradient.

    Args:
        z1, z2: (b, D) embeddings of the two views, any float dtype; normalised here.
        all_z1, all_z2: (B, D) the same of all workers, in order of rank.
        clusters: int (b, G); -1 = singleton.
        all_clusters: int (B, G).
        offset: index of the first local image in the global batch.
        temperature: τ > 0, dividing cosine similarities.
        estimator: "supcon" or "paper".
        all_valid: bool (B,), at least one of them true; None: all are.

    Raises:
        ValueError: an unknown estimator.
    """
    if estimator not in ("supcon", "paper"):
        raise ValueError(f"estimator is 'supcon' or 'paper', not {estimator!r}")
    if all_valid is None:
        all_valid = torch.ones(len(all_z1), dtype=torch.bool, device=z1.device)
    valid = all_valid[offset : offset + len(z1)]
    with torch.autocast(z1.device.type, enabled=False):
        z1, z2, all_z1, all_z2 = (_unit(z) for z in (z1, z2, all_z1, all_z2))
        clusters = clusters.masked_fill(~valid[:, None], -1)
        all_clusters = all_clusters.masked_fill(~all_valid[:, None], -1)
        same = _same_cluster(clusters, all_clusters, offset)
        if estimator == "supcon":
            losses = _supcon(z1, z2, all_z1, all_z2, same, all_valid, offset, temperature)
        else:
            views = z1, z2, all_z1, all_z2
            losses = _paper(*views, all_clusters, all_valid, offset, temperature)
        others = same[0].sum(1, dtype=z1.dtype)
        scale = len(all_z1) / len(z1) / all_valid.sum(dtype=z1.dtype)

        def mean(rows: torch.Tensor) -> torch.Tensor:
            return torch.where(valid, rows, 0.0).sum() * scale

        return LossResult(mean(losses), mean(others), mean((others == 0).to(z1.dtype)))


def _unit(z: torch.Tensor) -> torch.Tensor:
    return F.normalize(z if z.dtype == torch.float64 else z.float(), dim=1)


def _same_cluster(clusters: torch.Tensor, all_clusters: torch.Tensor, offset: int) -> torch.Tensor:
    """bool (G, b, B): another image of the anchor's cluster."""
    mine, theirs = clusters.T[:, :, None], all_clusters.T[:, None, :]
    same = (mine == theirs) & (mine >= 0)
    own = torch.arange(len(clusters), device=clusters.device) + offset
    itself = own[:, None] == torch.arange(len(all_clusters), device=clusters.device)
    return same & ~itself


def _supcon(
    z1: torch.Tensor,
    z2: torch.Tensor,
    all_z1: torch.Tensor,
    all_z2: torch.Tensor,
    same: torch.Tensor,
    all_valid: torch.Tensor,
    offset: int,
    temperature: float,
) -> torch.Tensor:
    """(b,) losses of the local images, means over their two views; any number where not valid."""
    b, total = len(z1), len(all_z1)
    rows = torch.arange(b, device=z1.device)
    own = rows + offset
    eye = own[:, None] == torch.arange(total, device=z1.device)  # (b, B)
    left_out = torch.cat([eye | ~all_valid, (~all_valid).expand(b, total)], dim=1)
    losses = []
    for anchor, first, second in ((z1, all_z1, all_z2), (z2, all_z2, all_z1)):
        # first: the anchor's own view, where it must not meet itself; second: the other view
        logits = torch.cat([anchor @ first.T, anchor @ second.T], dim=1) / temperature
        # not -inf, whose product with a mask of zeros is not a number
        logits = logits.masked_fill(left_out, torch.finfo(logits.dtype).min)
        log_all = torch.logsumexp(logits, dim=1)
        for others in same:
            positive = torch.cat([others, others | eye], dim=1)
            count = positive.sum(1, dtype=logits.dtype)
            losses.append(log_all - (logits * positive).sum(1) / count)
    return torch.stack(losses).mean(0)


def partners(clusters: torch.Tensor) -> torch.Tensor:
    """One partner per image: a permutation inside each cluster, without fixed points.

    A cyclic shift in batch order, so that every worker finds the same one.

    Args:
        clusters: int (B,); -1 = singleton.

    Returns:
        int64 (B,): index of the partner; the image itself where it is a singleton.
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


def _paper(
    z1: torch.Tensor,
    z2: torch.Tensor,
    all_z1: torch.Tensor,
    all_z2: torch.Tensor,
    all_clusters: torch.Tensor,
    all_valid: torch.Tensor,
    offset: int,
    temperature: float,
) -> torch.Tensor:
    """(b,) losses of the local images, means over both ways; any number where not valid."""
    least = torch.finfo(z1.dtype).min
    forward, backward = (
        (anchors @ candidates.T / temperature).masked_fill(~all_valid, least)
        for anchors, candidates in ((z1, all_z2), (z2, all_z1))
    )
    local = slice(offset, offset + len(z1))
    losses = []
    for column in all_clusters.T:
        partner = partners(column)
        inverse = torch.argsort(partner)
        losses.append(F.cross_entropy(forward, partner[local], reduction="none"))
        losses.append(F.cross_entropy(backward, inverse[local], reduction="none"))
    return torch.stack(losses).mean(0)
