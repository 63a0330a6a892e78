"""Every kind of file people have, against Pillow; broken files are faults."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from wcl_ray.data import decode
from wcl_ray.data.decode import check_header, decode_batch, decode_one


def gradient(height: int = 24, width: int = 40) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 6, y * 10, (x + y) * 4], axis=2).astype(np.uint8)


def encode(picture: Image.Image, kind: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    picture.save(sink, kind, **options)
    return sink.getvalue()


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
    pixels = decode_one(content).permute(1, 2, 0).numpy().astype(int)
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
        assert np.array_equal(decode_one(content).permute(1, 2, 0).numpy(), expected)
    la = encode(Image.merge("LA", (RGB.convert("L"), Image.fromarray(alpha))), "PNG")
    assert (decode_one(la)[:, :, :20] == decode.BACKGROUND).all()
    palette = RGB.quantize(4)
    clear = encode(palette, "PNG", transparency=palette.getpixel((0, 0)))
    assert (decode_one(clear)[:, 0, 0] == decode.BACKGROUND).all()


def test_sixteen_bits() -> None:
    grey = (np.arange(24 * 40).reshape(24, 40) * 68).astype(np.uint16)
    content = encode(Image.fromarray(grey), "PNG")
    found = decode_one(content)[0].numpy().astype(int)
    assert np.abs(found - (grey >> 8)).max() <= 1
    tiff = encode(Image.fromarray(grey), "TIFF")
    assert np.abs(decode_one(tiff)[0].numpy().astype(int) - (grey >> 8)).max() <= 1


def test_exif_rotation() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    content = encode(RGB, "JPEG", quality=98, exif=exif)
    pixels = decode_one(content).permute(1, 2, 0).numpy().astype(int)
    assert pixels.shape == (40, 24, 3)
    assert np.abs(pixels - np.rot90(gradient(), -1)).max() <= 12


def test_batch_squashes_and_keeps_the_aspect() -> None:
    batch = decode_batch([encode(RGB, "PNG"), encode(Image.fromarray(gradient(16, 16)), "PNG")], 16)
    assert batch.images.shape == (2, 3, 16, 16)
    assert batch.images.dtype == torch.uint8
    assert batch.aspect.tolist() == pytest.approx([40 / 24, 1.0])
    assert np.array_equal(batch.images[1].permute(1, 2, 0).numpy(), gradient(16, 16))
    assert batch.faults == {}


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
    assert torch.equal(batch.images[0], batch.images[6])


def test_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MAX_PIXELS", 500)
    for kind in ("PNG", "BMP"):
        batch = decode_batch([encode(RGB, kind)], 16)
        assert "40 × 24 pixels, the limit is 500" in batch.faults[0]


def test_header_check() -> None:
    assert check_header(encode(RGB, "PNG")) is None
    assert check_header(None) == "missing"
    assert check_header(b"") == "empty"
    assert "cannot identify" in str(check_header(b"hello"))
