"""Every kind of file people have, against Pillow; broken files are faults."""

from __future__ import annotations

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from wcl_ray.data import decode
from wcl_ray.data.decode import check_header, decode_batch, decode_one


def gradient(height: int = 24, width: int = 40) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 6, y * 10, (x + y) * 4], axis=2).astype(np.uint8)


def encode(picture: Image.Image, kind: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    picture.save(sink, kind, **options)
    return sink.getvalue()


def raw_png(width: int, height: int, bits: int, pixels: bytes) -> bytes:
    """A PNG of given compressed pixels with correct checksums."""
    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")):
        check = struct.pack(">I", zlib.crc32(name + data))
        content += struct.pack(">I", len(data)) + name + data + check
    return content


RGB = Image.fromarray(gradient())


@pytest.mark.parametrize(
    ("name", "content", "expected", "tolerance"),
    [
        ("jpeg", encode(RGB, "JPEG", quality=98), gradient(), 12),
        ("png", encode(RGB, "PNG"), gradient(), 0),
        ("webp", encode(RGB, "WEBP", lossless=True), gradient(), 0),
        ("bmp", encode(RGB, "BMP"), gradient(), 0),
        ("tiff", encode(RGB, "TIFF"), gradient(), 0),
        ("gif", encode(RGB.quantize(256), "GIF"), np.array(RGB.quantize(256).convert("RGB")), 0),
        ("grey", encode(RGB.convert("L"), "PNG"), np.array(RGB.convert("L").convert("RGB")), 0),
        (
            "grey jpeg",
            encode(RGB.convert("L"), "JPEG"),
            np.array(RGB.convert("L").convert("RGB")),
            12,
        ),
        ("palette", encode(RGB.quantize(64), "PNG"), np.array(RGB.quantize(64).convert("RGB")), 0),
        ("cmyk", encode(RGB.convert("CMYK"), "JPEG", quality=98), gradient(), 12),
        ("one bit", encode(RGB.convert("1"), "PNG"), np.array(RGB.convert("1").convert("RGB")), 0),
    ],
)
def test_formats(name: str, content: bytes, expected: np.ndarray, tolerance: int) -> None:
    pixels = decode_one(content).transpose(1, 2, 0).astype(int)
    assert pixels.shape == expected.shape, name
    assert np.abs(pixels - expected).max() <= tolerance


def test_transparency_is_laid_over_mid_grey() -> None:
    alpha = np.zeros((24, 40), np.uint8)
    alpha[:, 20:] = 255
    rgba = np.dstack([gradient(), alpha])
    expected = np.where(alpha[..., None] == 255, gradient(), decode.BACKGROUND)
    for content in (
        encode(Image.fromarray(rgba), "PNG"),
        encode(Image.fromarray(rgba), "WEBP", lossless=True),
    ):
        assert np.array_equal(decode_one(content).transpose(1, 2, 0), expected)
    la = encode(Image.merge("LA", (RGB.convert("L"), Image.fromarray(alpha))), "PNG")
    assert (decode_one(la)[:, :, :20] == decode.BACKGROUND).all()
    palette = RGB.quantize(4)
    clear = encode(palette, "PNG", transparency=palette.getpixel((0, 0)))
    assert (decode_one(clear)[:, 0, 0] == decode.BACKGROUND).all()


def test_sixteen_bits() -> None:
    grey = (np.arange(24 * 40).reshape(24, 40) * 68).astype(np.uint16)
    content = encode(Image.fromarray(grey), "PNG")
    found = decode_one(content)[0].astype(int)
    assert np.abs(found - (grey >> 8)).max() <= 1
    tiff = encode(Image.fromarray(grey), "TIFF")
    assert np.abs(decode_one(tiff)[0].astype(int) - (grey >> 8)).max() <= 1
    dark = Image.fromarray(np.full((8, 8), 200, np.uint16))
    assert (decode_one(encode(dark, "TIFF")) == decode_one(encode(dark, "PNG"))).all()


def test_sixteen_bit_colour() -> None:
    colour = (gradient().astype(np.uint16) << 8) | 0x5A  # Pillow cannot write these
    height, width = colour.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colour)
    content = raw_png(width, height, 16, zlib.compress(rows))
    found = decode_one(content).transpose(1, 2, 0).astype(int)
    assert np.abs(found - gradient()).max() <= 1


@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {"quality": 98}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})],
)
def test_exif_rotation(kind: str, options: dict[str, Any]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    content = encode(RGB, kind, exif=exif, **options)
    pixels = decode_one(content).transpose(1, 2, 0).astype(int)
    assert pixels.shape == (40, 24, 3)
    assert np.abs(pixels - np.rot90(gradient(), -1)).max() <= 12


def test_batch_squashes_and_keeps_the_aspect() -> None:
    batch = decode_batch([encode(RGB, "PNG"), encode(Image.fromarray(gradient(16, 16)), "PNG")], 16)
    assert batch.images.shape == (2, 3, 16, 16)
    assert batch.images.dtype == np.uint8
    assert batch.aspect.tolist() == pytest.approx([40 / 24, 1.0])
    assert np.array_equal(batch.images[1].transpose(1, 2, 0), gradient(16, 16))
    assert batch.faults == {}


def test_moving_images_give_their_first_frame() -> None:
    frames = [RGB, Image.fromarray(255 - gradient())]
    for kind, options in (("WEBP", {"lossless": True}), ("PNG", {})):
        content = encode(RGB, kind, save_all=True, append_images=frames[1:], **options)
        assert np.array_equal(decode_one(content).transpose(1, 2, 0), gradient())


def test_transparent_colour_after_a_long_profile() -> None:
    profile = np.random.default_rng(0).bytes(6000)
    first = tuple(gradient()[0, 0].tolist())
    content = encode(RGB, "PNG", transparency=first, icc_profile=profile)
    assert content.find(b"tRNS") > 4096
    assert (decode_one(content)[:, 0, 0] == decode.BACKGROUND).all()
    assert np.array_equal(decode_one(content)[:, 5, 5], gradient()[5, 5])


def test_resize_is_that_of_pillow() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 15, 3)).astype(np.uint8)
    picture = Image.fromarray(pixels).resize((300, 180), Image.Resampling.BICUBIC)
    batch = decode_batch([encode(picture, "PNG")], 32)
    expected = np.asarray(picture.resize((32, 32), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(batch.images[0].transpose(1, 2, 0) - expected).max() <= 2


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("JPEG", "RGB"), ("JPEG", "CMYK"), ("PNG", "RGB"), ("WEBP", "RGB"), ("BMP", "RGB")],
)
def test_truncated_files_are_faults(kind: str, mode: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    content = encode(Image.fromarray(noise).convert(mode), kind)
    for share in (0.3, 0.9):
        batch = decode_batch([content[: int(len(content) * share)]], 16)
        assert 0 in batch.faults
        assert ".cpp" not in batch.faults[0]
        assert (batch.images == 0).all()


def test_faults_do_not_stop_a_batch() -> None:
    good = encode(RGB, "JPEG")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    cut = encode(Image.fromarray(noise), "PNG")[:2000]
    files = [good, None, b"", b"<html>not found</html>", cut, good[:60], good]
    with ThreadPoolExecutor(2) as pool:
        batch = decode_batch(files, 16, pool)
    assert sorted(batch.faults) == [1, 2, 3, 4, 5]
    assert batch.faults[1] == "missing"
    assert batch.faults[2] == "empty"
    assert all(batch.faults[row] for row in (3, 4, 5))
    assert (batch.images[1:6] == 0).all()
    assert np.array_equal(batch.images[0], batch.images[6])


def test_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MAX_PIXELS", 500)
    exif = Image.Exif()
    exif[0x010E] = "x" * 3000  # the header's size comes after it
    files = [encode(RGB, kind) for kind in ("JPEG", "PNG", "BMP")]
    files += [encode(RGB, "JPEG", progressive=True, exif=exif), encode(RGB, "WEBP", exif=exif)]
    for content in files:
        batch = decode_batch([content], 16)
        assert "40 × 24 pixels, the limit is 500" in batch.faults[0]


def test_jpeg_with_a_false_size_takes_no_memory() -> None:
    content = bytearray(encode(RGB, "JPEG"))
    frame = content.find(b"\xff\xc0")
    content[frame + 5 : frame + 9] = b"\xff\xdc\xff\xdc"
    batch = decode_batch([bytes(content)], 16)
    assert "65500 × 65500 pixels, the limit is" in batch.faults[0]


def test_damaged_png_pixels_do_not_end_the_process() -> None:
    filter_9 = zlib.compress(b"".join(b"\x09" + bytes(24) for _ in range(8)))  # there are 0 to 4
    for pixels in (filter_9, b"\x78\x9c" + bytes(range(60)), filter_9[:9]):
        assert 0 in decode_batch([raw_png(8, 8, 8, pixels)], 8).faults


@given(st.binary(max_size=300), st.integers(0, 400))
def test_any_bytes_are_a_fault_at_most(tail: bytes, cut: int) -> None:
    for head in (encode(RGB, "JPEG"), encode(RGB, "PNG"), encode(RGB, "WEBP"), b""):
        batch = decode_batch([head[:cut] + tail], 8)
        assert batch.images.shape == (1, 3, 8, 8)
        assert batch.faults.keys() <= {0}


def test_header_check() -> None:
    assert check_header(encode(RGB, "PNG")) is None
    assert check_header(None) == "missing"
    assert check_header(b"") == "empty"
    assert check_header(b"hello") == "UnidentifiedImageError: cannot identify image file"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("size", [8, 64])
def test_a_damaged_tag_does_not_keep_the_rotation_from_being_read(kind: str, size: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Model] = "text"
    content = exif.tobytes()
    model, width = (tag.to_bytes(2, "big") for tag in (ExifTags.Base.Model, 0x0100))
    damaged = content.replace(model, width, 1)  # a text where a number belongs
    sink = io.BytesIO()
    picture = Image.fromarray(gradient(40, 64))
    picture.save(sink, kind, exif=damaged)
    decoded = decode_batch([sink.getvalue()], size)
    assert decoded.faults == {}
    assert decoded.aspect.tolist() == [pytest.approx(picture.height / picture.width)]
