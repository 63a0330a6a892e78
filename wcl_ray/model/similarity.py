"""The similarity of images by binary attributes, in plain torch."""

from __future__ import annotations

import torch


def unpack_bits(packed: torch.Tensor) -> torch.Tensor:
    """uint8 (n, A / 8), packed as by ``numpy.packbits`` → float32 (n, A) of zeros and ones.

    >>> unpack_bits(torch.tensor([[0b10000001]], dtype=torch.uint8))
    tensor([[1., 0., 0., 0., 0., 0., 0., 1.]])
    """
    shifts = torch.arange(7, -1, -1, device=packed.device, dtype=torch.uint8)
    return (packed[:, :, None] >> shifts & 1).flatten(1).float()


def weighted_jaccard(
    anchors: torch.Tensor, candidates: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Weight of the attributes that two images share over that of those that either has.

    Args:
        anchors: float (b, A) of zeros and ones. candidates: float (B, A).
        weights: float (A,), not negative.

    Returns:
        float (b, B) in [0, 1]; 0 with an image that has no attribute.
    """
    shared = (anchors * weights) @ candidates.T
    either = (anchors @ weights)[:, None] + (candidates @ weights)[None] - shared
    return (shared / either.clamp(min=torch.finfo(shared.dtype).tiny)).clamp(0, 1)
