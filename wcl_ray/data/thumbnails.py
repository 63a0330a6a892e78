"""Small JPEGs of the centre crops that an encoder sees."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from wcl_ray.data.augment import MEAN, STD

SIDE = 96  # pixels at most
QUALITY = 85


def thumbnails(crops: torch.Tensor) -> list[bytes]:
    """JPEG files of normalised crops (B, 3, s, s) float, at most 96 pixels wide."""
    from torchvision.io import encode_jpeg  # takes seconds, and not every process needs it

    mean, std = (torch.tensor(v, device=crops.device)[:, None, None] for v in (MEAN, STD))
    x = crops.float() * std + mean
    if x.shape[-1] > SIDE:
        x = F.interpolate(x, size=(SIDE, SIDE), mode="bilinear", antialias=True)
    pixels = (x.clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    return [bytes(encode_jpeg(image, QUALITY).numpy()) for image in pixels]
