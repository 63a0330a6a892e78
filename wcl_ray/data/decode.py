"""Decodes image files into a uint8 batch, in threads; faults are reported, not raised.

torchvision decodes JPEG and WebP, without holding the GIL. Pillow decodes the rest, including PNG:
torchvision's PNG decoder ends the process on damaged pixels. Large JPEGs are decoded at 1/2, 1/4 or
1/8 of their size (by Pillow) if that is enough. EXIF rotation is applied, grey and palette images
become RGB, 16 bits become 8, transparent pixels are blended with mid-grey. :func:`decode_batch`
squashes the image to a square with antialiasing and returns its aspect, so that
:mod:`wcl_ray.data.augment` samples crops in the original geometry. :func:`decode_crops` cuts crops
out of the original pixels.

torch and torchvision are imported late: that takes seconds, and tasks that read small PNGs need
neither.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image

if TYPE_CHECKING:
    import torch

BACKGROUND = 127
MAX_PIXELS = 200_000_000  # more is treated as a decompression bomb
CHUNK = 32  # images that a thread takes at a time
FULL_CHUNK = 8  # the same if the thread holds them at full size
WHOLE = np.array([[0.0, 0.0, 1.0, 1.0]])  # the box of all of an image
_JPEG = b"\xff\xd8\xff"
_TURNS = {  # EXIF orientation → what turns the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ROTATION = {"exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"}  # may hold a rotation


@dataclass
class Decoded:
    """A batch of decoded images.

    Attributes:
        images: uint8 (B, 3, size, size) or (B, views, 3, size, size), zero where decoding failed.
        aspect: float32 (B,), width / height of the original.
        faults: row → reason.
    """

    images: np.ndarray
    aspect: np.ndarray
    faults: dict[int, str] = field(default_factory=dict)

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """``images`` and ``aspect``, not copied."""
        import torch

        return torch.from_numpy(self.images), torch.from_numpy(self.aspect)


def decode_batch(
    images: Sequence[bytes | None], size: int, pool: ThreadPoolExecutor | None = None
) -> Decoded:
    """Decode a batch.

    Args:
        images: encoded files; None counts as a fault.
        size: side of the square, in pixels.
        pool: threads to decode in; None: this thread.
    """
    out = np.zeros((len(images), 3, size, size), np.uint8)
    aspect = np.ones(len(images), np.float32)

    def decode(content: bytes, row: int) -> None:
        source = _open(content, size)
        aspect[row] = _aspect(source)
        out[row] = _resize(_pixels_for(source, WHOLE, size), size)

    def decode_chunk(rows: range) -> dict[int, str | None]:
        return {row: find_fault(images[row], row, decode) for row in rows}

    # chunks, since handing single small images to a thread costs more than decoding them
    return Decoded(out, aspect, _faults(decode_chunk, len(images), CHUNK, pool))


def decode_crops(
    images: Sequence[bytes | None],
    boxes_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    views: int,
    size: int,
    pool: ThreadPoolExecutor | None = None,
) -> Decoded:
    """Decode each image once and cut its crops out of the original pixels.

    Args:
        images: encoded files; None counts as a fault.
        boxes_of: rows int64 (n,) and their aspects float32 (n,) → float (n, views, 4): left, top,
            right, bottom as shares of width and height.
        size: s, side of the crops in pixels.
        pool: threads to decode in; None: this thread.

    Returns:
        ``images`` uint8 (B, views, 3, s, s), antialiased.
    """
    import torch

    out = np.zeros((len(images), views, 3, size, size), np.uint8)
    aspect = np.ones(len(images), np.float32)

    def decode_chunk(rows: range) -> dict[int, str | None]:
        opened: dict[int, Image.Image | np.ndarray] = {}

        def open_row(content: bytes, row: int) -> None:
            opened[row] = _open(content, size)
            aspect[row] = _aspect(opened[row])

        def cut(content: bytes, row: int) -> None:
            boxes = all_boxes[index[row]]
            pixels = _pixels_for(opened.pop(row), boxes, size)
            height, width = pixels.shape[1:]
            for view, box in enumerate(boxes.tolist()):
                sides = zip(box, (width, height) * 2, strict=True)
                # centre crops often end on half a pixel; rounding must not depend on the last bit
                left, top, right, bottom = (round(share * side - 1e-3) for share, side in sides)
                left, top = min(left, width - 1), min(top, height - 1)
                crop = pixels[:, top : max(bottom, top + 1), left : max(right, left + 1)]
                out[row, view] = _resize(crop, size)

        faults = {row: find_fault(images[row], row, open_row) for row in rows}
        good = np.array(list(opened), dtype=np.int64)
        all_boxes = boxes_of(torch.from_numpy(good), torch.from_numpy(aspect[good])).numpy()
        index = {row: i for i, row in enumerate(opened)}
        return faults | {row: find_fault(images[row], row, cut) for row in index}

    return Decoded(out, aspect, _faults(decode_chunk, len(images), FULL_CHUNK, pool))


def _faults(
    decode_chunk: Callable[[range], dict[int, str | None]],
    count: int,
    step: int,
    pool: ThreadPoolExecutor | None,
) -> dict[int, str]:
    """Decode ``count`` rows in chunks; returns the faults, row → reason."""
    chunks = [range(i, min(i + step, count)) for i in range(0, count, step)]
    results = (map if pool is None else pool.map)(decode_chunk, chunks)
    rows = (item for result in results for item in result.items())
    return {row: reason for row, reason in rows if reason is not None}


def find_fault(content: bytes | None, row: int, work: Callable[[bytes, int], object]) -> str | None:
    """Call ``work`` on an image; returns what is wrong with the image, or None."""
    if not content:
        return "empty" if content is not None else "missing"
    try:
        work(content, row)
    except Exception as error:  # decoders raise many types, and no image may end the run
        return _reason(error)
    return None


def _open(content: bytes, size: int) -> Image.Image | np.ndarray:
    """The decoded pixels; of a JPEG that may be decoded at a reduced size: the opened file."""
    if not content.startswith(_JPEG):
        return decode_one(content)
    if min(_jpeg_size(content)) >= 2 * size:
        return Image.open(io.BytesIO(content), formats=["JPEG"])
    return _decode_jpeg(content)


def _aspect(source: Image.Image | np.ndarray) -> float:
    if isinstance(source, np.ndarray):
        return source.shape[2] / source.shape[1]
    aspect = source.width / source.height
    return 1 / aspect if _is_sideways(source) else aspect


def _orientation(picture: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 if there is none."""
    value = picture.getexif().get(ExifTags.Base.Orientation)
    return value if value in _TURNS else 1


def _turned(picture: Image.Image) -> Image.Image:
    """The picture as EXIF says that it is upright. Pillow's ``exif_transpose`` writes all of EXIF
    again, which fails if any tag is damaged."""
    turn = _TURNS.get(_orientation(picture))
    return picture if turn is None else picture.transpose(turn)


def _is_sideways(picture: Image.Image) -> bool:
    """Whether EXIF rotates the picture by a quarter turn."""
    return _orientation(picture) >= 5


def _pixels_for(source: Image.Image | np.ndarray, boxes: np.ndarray, size: int) -> np.ndarray:
    """uint8 (3, h, w), large enough for ``size`` pixels in each box if the file has as many.

    Args:
        boxes: float (n, 4), as shares of width and height.
    """
    if isinstance(source, np.ndarray):
        return source
    stored = source.size
    width, height = stored[::-1] if _is_sideways(source) else stored
    sides = (boxes[:, 2:] - boxes[:, :2]) * [width, height]
    divisor = max((k for k in (1, 2, 4, 8) if k * size <= float(sides.min())), default=1)
    source.draft(None, (stored[0] // divisor, stored[1] // divisor))
    with source:
        return np.array(_turned(source).convert("RGB")).transpose(2, 0, 1)


def decode_one(content: bytes) -> np.ndarray:
    """uint8 (3, h, w) of one image file.

    Raises:
        RuntimeError, OSError, ValueError, SyntaxError: its decoder's error for a broken file.
    """
    if content.startswith(_JPEG):
        _jpeg_size(content)
        return _decode_jpeg(content)
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP" and not _needs_pillow(content):
        return _flatten(_torchvision_decode(content, "UNCHANGED"))
    return _decode_pillow(content)


def _decode_jpeg(content: bytes) -> np.ndarray:
    try:
        return _torchvision_decode(content, "RGB", apply_exif_orientation=True)
    except RuntimeError:
        if _complete_jpeg(content):  # may be a colour space that torchvision lacks, like CMYK
            return _decode_pillow(content)
        raise


def _resize(pixels: np.ndarray, size: int) -> np.ndarray:
    """uint8 (3, h, w) → (3, size, size), see :func:`resize`."""
    return pixels if pixels.shape[1:] == (size, size) else resize(pixels, size, size)


def resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 (3, h, w) → (3, height, width), bilinear with antialiasing."""
    import torch

    images = torch.from_numpy(pixels)[None]
    resized = torch.nn.functional.interpolate(
        images, (height, width), mode="bilinear", antialias=True
    )
    return resized[0].numpy()  # type: ignore[no-any-return]


def encode_jpeg(pixels: np.ndarray, quality: int) -> bytes:
    """A JPEG file of uint8 (3, h, w); ``quality`` up to 100."""
    sink = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(sink, "JPEG", quality=quality)
    return sink.getvalue()


def _flatten(pixels: np.ndarray) -> np.ndarray:
    """(1 to 4, h, w) of 8 or 16 bits → 8-bit RGB blended with the background."""
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    channels = len(pixels)
    colour = pixels[:3] if channels >= 3 else np.repeat(pixels[:1], 3, axis=0)
    if channels in (1, 3):
        return colour
    alpha = pixels[-1:].astype(np.int32)
    mixed = colour * alpha + BACKGROUND * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)


def _torchvision_decode(content: bytes, mode: str, **options: bool) -> np.ndarray:
    import torch
    from torchvision.io import ImageReadMode, decode_image

    data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return decode_image(data, ImageReadMode[mode], **options).numpy()  # type: ignore[no-any-return]


def _decode_pillow(content: bytes) -> np.ndarray:
    # trying all of Pillow's plugins takes as long as decoding a small image
    formats = ["PNG"] if content.startswith(b"\x89PNG") else None
    with Image.open(io.BytesIO(content), formats=formats) as picture:
        _check_size(picture.width, picture.height)
        picture.load()  # the rotation of a PNG may follow its pixels
        upright = picture.format == "PNG" and not _ROTATION & picture.info.keys()
        turned = picture if upright else _turned(picture)
        if turned.mode.startswith("I"):
            values = np.asarray(turned).astype(np.int64)
            # 32-bit files hold 8 or 16 bits; only their values tell which
            shift = 8 if turned.mode != "I" or values.max(initial=0) > 255 else 0
            return _flatten((values >> shift).clip(0, 255).astype(np.uint8)[None])
        alpha = turned.mode in ("RGBA", "LA", "PA") or "transparency" in turned.info
        pixels = np.array(turned.convert("RGBA" if alpha else "RGB"))
    return _flatten(pixels.transpose(2, 0, 1))


def _needs_pillow(content: bytes) -> bool:
    """Whether a WebP is animated (torchvision rejects it), has EXIF (torchvision ignores its
    rotation) or is too large."""
    if content[12:16] != b"VP8X" or len(content) < 30:
        return False  # simple formats have neither, and at most 16,383 pixels per side
    width, height = (1 + int.from_bytes(content[i : i + 3], "little") for i in (24, 27))
    return bool(content[20] & 0b1010) or width * height > MAX_PIXELS


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} × {height} pixels, the limit is {MAX_PIXELS}")


def _jpeg_size(content: bytes) -> tuple[int, int]:
    """Width and height in a JPEG's header; (0, 0) if broken: the decoder will report why.

    Raises:
        ValueError: too large; checked before a decoder allocates, since 700 bytes can ask for
            13 GB.
    """
    at = 2
    while at + 9 <= len(content):
        if content[at] != 0xFF:  # not a marker
            break
        marker = content[at + 1]
        if marker == 0xFF:  # padding
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame
            height, width = (int.from_bytes(content[at + i : at + i + 2], "big") for i in (5, 7))
            _check_size(width, height)
            return width, height
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:  # without a length
            at += 2
        else:
            at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return 0, 0


def _complete_jpeg(content: bytes) -> bool:
    return b"\xff\xd9" in content[-64:]


def _reason(error: Exception) -> str:
    """One line without addresses and source paths, so that equal faults read the same."""
    text = str(error).split("\n")[0].strip()
    text = re.sub(r"^\S+, \S+\.cpp:\d+, ", "", text)
    text = re.sub(r" <_io\.\S+ object at 0x[0-9a-f]+>", "", text)
    return f"{type(error).__name__}: {text}"[:200]


def check_header(content: bytes | None) -> str | None:
    """Why these bytes cannot be an image, or None; reads only the header."""
    if not content:
        return "empty" if content is not None else "missing"
    try:
        with Image.open(io.BytesIO(content)):
            return None
    except Exception as error:  # Pillow's plugins raise many types
        return _reason(error)
