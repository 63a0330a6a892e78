"""Image files → one uint8 batch, in threads; what cannot be read is reported, not raised.

torchvision decodes JPEG and WebP (other threads run meanwhile), Pillow the rest, PNG too: on
damaged pixels torchvision's PNG decoder ends the whole process. EXIF rotation is applied, grey and
palette images become RGB, 16 bits become 8, transparency is laid over mid-grey.
:func:`decode_batch` squashes the whole image to a square with antialiasing; its aspect is kept
beside it, and the crops of :mod:`wcl_ray.data.augment` are sampled in the original geometry.
:func:`decode_crops` cuts crops out of the file's own pixels; of a JPEG, which Pillow can decode at
1/2, 1/4 or 1/8 of its size, no more than they need.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
import torchvision.transforms.v2.functional as F
from PIL import ExifTags, Image, ImageOps
from torchvision.io import ImageReadMode, decode_image

BACKGROUND = 127
MAX_PIXELS = 200_000_000  # more is taken for a decompression bomb
CHUNK = 32  # images that a thread takes at a time
WHOLE = 8  # images of which a thread holds all pixels
_JPEG = b"\xff\xd8\xff"
_TURNED = {"exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"}  # may hold a rotation


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
        return _fault(images[row], row, work)

    def work(content: bytes, row: int) -> None:
        pixels = decode_one(content)
        aspect[row] = pixels.shape[2] / pixels.shape[1]
        if pixels.shape[1:] != (size, size):
            pixels = F.resize(pixels, [size, size], antialias=True)
        out[row] = pixels

    def some(rows: range) -> dict[int, str]:
        found = ((row, one(row)) for row in rows)
        return {row: reason for row, reason in found if reason is not None}

    if pool is None:
        return Decoded(out, aspect, some(range(len(images))))
    # handing over single small images would cost more than decoding them
    parts = [range(i, min(i + CHUNK, len(images))) for i in range(0, len(images), CHUNK)]
    faults = {row: reason for part in pool.map(some, parts) for row, reason in part.items()}
    return Decoded(out, aspect, faults)


def decode_crops(
    images: Sequence[bytes | None],
    boxes_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    views: int,
    size: int,
    pool: ThreadPoolExecutor | None = None,
) -> Decoded:
    """Decode each image once and cut its crops out of what the file has.

    Args:
        images: encoded files; None counts as a fault.
        boxes_of: rows int64 (n,) and their aspects float32 (n,) → float (n, views, 4): left, top,
            right, bottom as shares of width and height.
        size: s, side of the crops in pixels.
        pool: threads to decode in; in this thread without one.

    Returns:
        ``images`` uint8 (B, views, 3, s, s), antialiased.
    """
    out = torch.zeros(len(images), views, 3, size, size, dtype=torch.uint8)
    aspect = torch.ones(len(images))

    def some(rows: range) -> dict[int, str]:
        opened: dict[int, Image.Image | torch.Tensor] = {}

        def work(content: bytes, row: int) -> None:
            opened[row] = _open(content, size)
            aspect[row] = _aspect(opened[row])

        def cut(content: bytes, row: int) -> None:
            own = boxes[at[row]]
            pixels = _enough(opened.pop(row), own, size)
            height, width = pixels.shape[1:]
            for view, box in enumerate(own.tolist()):
                sides = zip(box, (width, height) * 2, strict=True)
                # halves are frequent in centre crops; the last bit of a share should not decide
                left, top, right, bottom = (round(share * side - 1e-3) for share, side in sides)
                left, top = min(left, width - 1), min(top, height - 1)
                part = pixels[:, top : max(bottom, top + 1), left : max(right, left + 1)]
                out[row, view] = F.resize(part, [size, size], antialias=True)

        faults = {row: _fault(images[row], row, work) for row in rows}
        good = torch.tensor(list(opened), dtype=torch.int64)
        boxes = boxes_of(good, aspect[good])
        at = {row: i for i, row in enumerate(opened)}
        faults |= {row: _fault(images[row], row, cut) for row in at}
        return {row: reason for row, reason in faults.items() if reason is not None}

    parts = [range(i, min(i + WHOLE, len(images))) for i in range(0, len(images), WHOLE)]
    found = map(some, parts) if pool is None else pool.map(some, parts)
    faults = {row: reason for part in found for row, reason in part.items()}
    return Decoded(out, aspect, faults)


def _fault(content: bytes | None, row: int, work: Callable[[bytes, int], None]) -> str | None:
    """What is wrong with an image, found by working on it."""
    if not content:
        return "empty" if content is not None else "missing"
    try:
        work(content, row)
    except Exception as error:  # decoders raise many types, none of them worth a lost run
        return _reason(error)
    return None


def _open(content: bytes, size: int) -> Image.Image | torch.Tensor:
    """A JPEG that may be worth decoding at a part of its size, not decoded yet; else the pixels."""
    if content.startswith(_JPEG) and min(_jpeg_size(content)) >= 2 * size:
        return Image.open(io.BytesIO(content), formats=["JPEG"])
    return decode_one(content)


def _aspect(source: Image.Image | torch.Tensor) -> float:
    if isinstance(source, torch.Tensor):
        return source.shape[2] / source.shape[1]
    aspect = source.width / source.height
    return 1 / aspect if _lies(source) else aspect


def _lies(picture: Image.Image) -> bool:
    """Whether it is to be turned by a quarter."""
    return picture.getexif().get(ExifTags.Base.Orientation, 1) >= 5


def _enough(source: Image.Image | torch.Tensor, boxes: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 (3, h, w), in which each box has at least ``size`` pixels where the file has them."""
    if isinstance(source, torch.Tensor):
        return source
    stored = source.size
    width, height = stored[::-1] if _lies(source) else stored
    sides = (boxes[:, 2:] - boxes[:, :2]) * torch.tensor([width, height])
    part = max((k for k in (1, 2, 4, 8) if k * size <= float(sides.min())), default=1)
    source.draft(None, (stored[0] // part, stored[1] // part))
    with source:
        pixels = np.array(ImageOps.exif_transpose(source).convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def decode_one(content: bytes) -> torch.Tensor:
    """uint8 (3, h, w) of one image file.

    Raises:
        RuntimeError, OSError, ValueError, SyntaxError: whatever its decoder says of a broken file.
    """
    if content.startswith(_JPEG):
        _jpeg_size(content)
        data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        try:
            return decode_image(data, ImageReadMode.RGB, apply_exif_orientation=True)
        except RuntimeError:
            if _complete_jpeg(content):  # CMYK and other colour spaces torchvision does not know
                return _decode_pillow(content)
            raise
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP" and not _needs_pillow(content):
        data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        return _flatten(decode_image(data, ImageReadMode.UNCHANGED))
    return _decode_pillow(content)


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
    # trying all of Pillow's plugins in turn would take as long as a small image
    formats = ["PNG"] if content.startswith(b"\x89PNG") else None
    with Image.open(io.BytesIO(content), formats=formats) as picture:
        _check_size(picture.width, picture.height)
        picture.load()  # PNGs may tell their rotation after the pixels
        plain = picture.format == "PNG" and not _TURNED & picture.info.keys()
        whole = picture if plain else ImageOps.exif_transpose(picture)
        if whole.mode.startswith("I"):
            values = np.asarray(whole).astype(np.int64)
            # 32-bit files hold 8 or 16 bits, only their values tell
            shift = 8 if whole.mode != "I" or values.max(initial=0) > 255 else 0
            return _flatten(torch.from_numpy((values >> shift).clip(0, 255).astype(np.uint8))[None])
        alpha = whole.mode in ("RGBA", "LA", "PA") or "transparency" in whole.info
        pixels = np.array(whole.convert("RGBA" if alpha else "RGB"))
    return _flatten(torch.from_numpy(pixels).permute(2, 0, 1))


def _needs_pillow(content: bytes) -> bool:
    """WebPs that move or are turned, which torchvision refuses or leaves as they are, and too
    large ones."""
    if content[12:16] != b"VP8X" or len(content) < 30:
        return False  # the simple kinds have neither, and at most 16,383 pixels a side
    width, height = (1 + int.from_bytes(content[i : i + 3], "little") for i in (24, 27))
    return bool(content[20] & 0b1010) or width * height > MAX_PIXELS


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} × {height} pixels, the limit is {MAX_PIXELS}")


def _jpeg_size(content: bytes) -> tuple[int, int]:
    """Width and height by a JPEG's header; (0, 0): the decoder will say what is wrong.

    Raises:
        ValueError: it is too large; said before a decoder takes memory for it, since 700 bytes can
            ask for 13 GB.
    """
    place = 2
    while place + 9 <= len(content):
        if content[place] != 0xFF:  # not a marker
            break
        marker = content[place + 1]
        if marker == 0xFF:  # padding
            place += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame
            height, width = (
                int.from_bytes(content[place + i : place + i + 2], "big") for i in (5, 7)
            )
            _check_size(width, height)
            return width, height
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:  # without a length
            place += 2
        else:
            place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return 0, 0


def _complete_jpeg(content: bytes) -> bool:
    return b"\xff\xd9" in content[-64:]


def _reason(error: Exception) -> str:
    """One line that is the same for the same fault: without addresses and the decoder's paths."""
    text = str(error).split("\n")[0].strip()
    text = re.sub(r"^\S+, \S+\.cpp:\d+, ", "", text)
    text = re.sub(r" <_io\.\S+ object at 0x[0-9a-f]+>", "", text)
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
