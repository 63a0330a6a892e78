"""Shrinks large image files, for storage."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image

from wcl_ray.data.decode import check_header, decode_one, encode_jpeg, find_fault, resize


def shrink_files(
    files: Sequence[bytes | None], side: int, quality: int
) -> tuple[list[bytes | None], list[str | None]]:
    """Image files whose shorter side is at most ``side`` pixels, and what is wrong with each.

    Args:
        side: larger images become JPEGs of this shorter side: upright, RGB, transparency blended
            as for training. Smaller ones are left as they are. 0: all are.
        quality: of the JPEGs, up to 100.
    """
    smaller = list(files)

    def shrink(content: bytes, row: int) -> None:
        smaller[row] = shrink_file(content, side, quality)

    if not side:
        return smaller, [check_header(content) for content in files]
    return smaller, [find_fault(content, row, shrink) for row, content in enumerate(files)]


def shrink_file(content: bytes, side: int, quality: int) -> bytes:
    """One image file, see :func:`shrink_files`.

    Raises:
        RuntimeError, OSError, ValueError, SyntaxError: its decoder's error for a broken file.
    """
    with Image.open(io.BytesIO(content)) as picture:  # reads the header only
        if min(picture.size) <= side:
            return content
    pixels = decode_one(content)
    height, width = pixels.shape[1:]
    short = min(height, width)
    return encode_jpeg(resize(pixels, side * height // short, side * width // short), quality)
