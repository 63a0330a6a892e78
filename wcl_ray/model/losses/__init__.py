"""Estimators of the loss, one per module. A new one is an :class:`Estimator` decorated with
``@LOSSES.add("NAME")``; its caller gathers embeddings, weights anchors and takes the mean. In large
batches it is called with a part of the anchors at a time, and only the four views get gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch


class GlobalBatch(NamedTuple):
    """Local anchors and the candidates of the global batch. b local images, B of the global batch,
    D dimensions, G granularities.

    Attributes:
        z1, z2: (b, D) embeddings of both views of the local images, of unit length.
        all_z1, all_z2: (B, D) the same of all workers, in order of rank.
        clusters: int (B, G); -1: a singleton, or invalid.
        positives: (G, b, B), whether another image is a positive of the anchor: bool, or float
            weights in [0, 1]. Its own other view, not among them, always is one.
        candidates: bool (G, b, B), the images that the anchor is contrasted with at each level;
            None: all.
        valid: bool (B,); invalid images may be neither positives nor candidates.
        offset: index of the first local image in the global batch.
        temperature: τ > 0, dividing cosine similarities.
    """

    z1: torch.Tensor
    z2: torch.Tensor
    all_z1: torch.Tensor
    all_z2: torch.Tensor
    clusters: torch.Tensor
    positives: torch.Tensor
    candidates: torch.Tensor | None
    valid: torch.Tensor
    offset: int
    temperature: float


# (G, b) losses of the local images in nats at each granularity, means over both views; any finite
# number for an invalid image
Estimator = Callable[[GlobalBatch], torch.Tensor]


def logits(anchors: torch.Tensor, candidates: torch.Tensor, batch: GlobalBatch) -> torch.Tensor:
    """(b, B) cosine similarities over τ; the lowest finite number for invalid candidates, since the
    product of -inf with a zero is NaN.

    Args:
        anchors: (b, D), of unit length. candidates: (B, D), of unit length.
    """
    least = torch.finfo(anchors.dtype).min
    bias = torch.zeros_like(candidates[:, 0]).masked_fill(~batch.valid, least)
    return torch.addmm(bias, anchors / batch.temperature, candidates.T)
