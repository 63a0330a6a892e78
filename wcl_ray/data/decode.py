"""Image files → one uint8 batch, in threads; what cannot be read is reported, not raised.

torchvision's decoders first (they let other threads run), Pillow for the rest. EXIF rotation is
applied, grey and palette images become RGB, 16 bits become 8, transparency is laid over mid-grey.
The whole image is squashed to a square with antialiasing; its aspect is kept beside it, and the
crops of :mod:`wcl_ray.data.augment` are sampled in the original geometry.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
import torchvision.transforms.v2.functional as F
from PIL import Image, ImageOps
from torchvision.io import ImageReadMode, decode_image

BACKGROUND = 127
MAX_PIXELS = 200_000_000  # more is taken for a decompression bomb
CHUNK = 32  # images that a thread takes at a time
_FAST = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF")  # JPEG, PNG, WebP


@dataclass
class Decoded:
    """A batch of decoded images.

    Attributes:
        images: uint8 (B, 3, size, size), zero where decoding failed.
        aspect: float32 (B,), width / height of the original.
        faults: row → reason.
    """

    images: torch.Tensor
    aspect: torch.Tensor
    faults: dict[int, str] = field(default_factory=dict)


def decode_batch(
    images: Sequence[bytes | None], size: int, pool: ThreadPoolExecutor | None = None
) -> Decoded:
    """Decode a batch.

    Args:
        images: encoded files; None counts as a fault.
        size: side of the square, in pixels.
        pool: threads to decode in; in this thread without one.
    """
    out = torch.zeros(len(images), 3, size, size, dtype=torch.uint8)
    aspect = torch.ones(len(images))

    def one(row: int) -> str | None:
        content = images[row]
        if not content:
            return "empty" if content is not None else "missing"
        try:
            pixels = decode_one(content)
        except Exception as error:  # decoders raise many types, none of them worth a lost run
            return _reason(error)
        aspect[row] = pixels.shape[2] / pixels.shape[1]
        if pixels.shape[1:] != (size, size):
            pixels = F.resize(pixels, [size, size], antialias=True)
        out[row] = pixels
        return None

    def some(rows: range) -> dict[int, str]:
        found = ((row, one(row)) for row in rows)
        return {row: reason for row, reason in found if reason is not None}

    if pool is None:
        return Decoded(out, aspect, some(range(len(images))))
    # handing over single small images would cost more than decoding them
    parts = [range(i, min(i + CHUNK, len(images))) for i in range(0, len(images), CHUNK)]
    faults = {row: reason for part in pool.map(some, parts) for row, reason in part.items()}
    return Decoded(out, aspect, faults)


def decode_one(content: bytes) -> torch.Tensor:
    """uint8 (3, h, w) of one image file.

    Raises:
        RuntimeError, OSError, ValueError: whatever its decoder says of a broken file.
    """
    if not content.startswith(_FAST) or _needs_pillow(content):
        return _decode_pillow(content)
    data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    if content[:3] == b"\xff\xd8\xff":
        try:
            return decode_image(data, ImageReadMode.RGB, apply_exif_orientation=True)
        except RuntimeError:
            if _complete_jpeg(content):  # CMYK and other colour spaces torchvision does not know
                return _decode_pillow(content)
            raise
    pixels = decode_image(data, ImageReadMode.UNCHANGED, apply_exif_orientation=True)
    return _flatten(pixels)


def _flatten(pixels: torch.Tensor) -> torch.Tensor:
    """(1 to 4, h, w) of 8 or 16 bits → RGB of 8 bits over the background."""
    if pixels.dtype == torch.uint16:
        pixels = (pixels.to(torch.int32) >> 8).to(torch.uint8)
    channels = pixels.shape[0]
    colour = pixels[:3] if channels >= 3 else pixels[:1].expand(3, -1, -1)
    if channels in (1, 3):
        return colour.contiguous()
    alpha = pixels[-1:].to(torch.int32)
    mixed = colour.to(torch.int32) * alpha + BACKGROUND * (255 - alpha)
    return ((mixed + 127) // 255).to(torch.uint8)


def _decode_pillow(content: bytes) -> torch.Tensor:
    with Image.open(io.BytesIO(content)) as picture:
        if picture.width * picture.height > MAX_PIXELS:
            raise ValueError(
                f"{picture.width} × {picture.height} pixels, the limit is {MAX_PIXELS}"
            )
        whole = ImageOps.exif_transpose(picture)
        if whole.mode.startswith(("I;16", "I")) and whole.mode != "1":
            values = np.asarray(whole).astype(np.int64)
            shift = 8 if values.max(initial=0) > 255 else 0
            return _flatten(torch.from_numpy((values >> shift).clip(0, 255).astype(np.uint8))[None])
        alpha = whole.mode in ("RGBA", "LA", "PA") or "transparency" in whole.info
        pixels = np.array(whole.convert("RGBA" if alpha else "RGB"))
    return _flatten(torch.from_numpy(pixels).permute(2, 0, 1))


def _needs_pillow(content: bytes) -> bool:
    """PNGs that torchvision would hand on as palette numbers or without their transparency, or
    that are too large (the other decoders have limits of their own)."""
    if not content.startswith(b"\x89PNG") or len(content) < 26:
        return False
    width, height = (int.from_bytes(content[i : i + 4], "big") for i in (16, 20))
    palette = content[25] == 3
    return palette or b"tRNS" in content[:2048] or width * height > MAX_PIXELS


def _complete_jpeg(content: bytes) -> bool:
    return b"\xff\xd9" in content[-64:]


def _reason(error: Exception) -> str:
    text = str(error).split("\n")[0].strip()
    return f"{type(error).__name__}: {text}"[:200]


def check_header(content: bytes | None) -> str | None:
    """Reason why these bytes cannot be an image, or None; looks at the first bytes only."""
    if not content:
        return "empty" if content is not None else "missing"
    try:
        with Image.open(io.BytesIO(content)):
            return None
    except Exception as error:  # Pillow's plugins raise many types
        return _reason(error)
