"""Small JPEGs of the centre crops that an encoder sees."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from wcl_ray.data.augment import centre_boxes
from wcl_ray.data.decode import decode_crops, encode_jpeg

THUMBNAIL_SIZE = 80  # pixels
QUALITY = 80


def thumbnails(
    files: Sequence[bytes | None], image_size: int, pool: ThreadPoolExecutor | None = None
) -> list[bytes | None]:
    """JPEG files of 80 × 80 pixels, cut out of image files like the centre crops for an encoder of
    ``image_size`` pixels; None for files that cannot be read."""

    def boxes(_: torch.Tensor, aspect: torch.Tensor) -> torch.Tensor:
        return centre_boxes(aspect, image_size)[:, None]

    decoded = decode_crops(files, boxes, 1, THUMBNAIL_SIZE, pool)
    return [
        None if row in decoded.faults else encode_jpeg(image, QUALITY)
        for row, image in enumerate(decoded.images[:, 0])
    ]
