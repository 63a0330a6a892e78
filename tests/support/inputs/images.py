"""Image files of every kind, whole and broken."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .expected import Input, Made, Read


def gradient(height: int = 24, width: int = 40) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 6 % 256, y * 10 % 256, (x + y) * 4 % 256], axis=2).astype(np.uint8)


RGB = Image.fromarray(gradient())
TURNED = Image.Exif()
TURNED[0x0112] = 6


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    picture.save(sink, kind, **options)
    return sink.getvalue()


def one(content: bytes, name: str) -> Callable[[Path], Made]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder

    return make


def picture(name: str, file: str, kind: str, source: Image.Image = RGB, **options: Any) -> Input:
    return Input(name, one(encoded(source, kind, **options), file), Read(1))


def broken(name: str, file: str, content: bytes, reason: str = "") -> Input:
    return Input(name, one(content, file), Read(1, {file: reason}))


MOVING = {"save_all": True, "append_images": [Image.fromarray(255 - gradient())]}
GREY_16 = Image.fromarray((np.arange(24 * 40).reshape(24, 40) * 68).astype(np.uint16))
CLEAR = Image.fromarray(np.dstack([gradient(), gradient()[..., 0]]))
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8))
PNG, JPEG = encoded(NOISE, "PNG"), encoded(NOISE, "JPEG")

IMAGES = [
    picture("jpeg", "a.jpg", "JPEG"),
    picture("jpeg in grey", "a.jpeg", "JPEG", RGB.convert("L")),
    picture("jpeg in cmyk", "a.JPG", "JPEG", RGB.convert("CMYK")),
    picture("progressive jpeg", "a.jpe", "JPEG", progressive=True),
    picture("jpeg turned by exif", "a.jpg", "JPEG", exif=TURNED),
    picture("jpeg as a browser saves it", "a.jfif", "JPEG"),
    picture("png", "a.png", "PNG"),
    picture("png of 1 bit", "a.png", "PNG", RGB.convert("1")),
    picture("png of 8 bits in grey", "a.png", "PNG", RGB.convert("L")),
    picture("png of 16 bits", "a.png", "PNG", GREY_16),
    picture("png with a palette", "a.png", "PNG", RGB.quantize(7)),
    picture("png with alpha", "a.png", "PNG", CLEAR),
    picture("moving png", "a.png", "PNG", **MOVING),
    picture("webp", "a.webp", "WEBP"),
    picture("lossless webp with alpha", "a.webp", "WEBP", CLEAR, lossless=True),
    picture("moving webp", "a.webp", "WEBP", **MOVING),
    picture("gif", "a.gif", "GIF"),
    picture("moving gif", "a.gif", "GIF", **MOVING),
    picture("bmp", "a.bmp", "BMP"),
    picture("tiff", "a.tif", "TIFF"),
    picture("tiff of 16 bits", "a.tiff", "TIFF", GREY_16),
    picture("tiff of floats", "a.tiff", "TIFF", RGB.convert("F")),
    picture("tiff in lab", "a.tiff", "TIFF", RGB.convert("LAB")),
    picture("portable pixmap", "a.ppm", "PPM"),
    picture("portable greymap", "a.pgm", "PPM", RGB.convert("L")),
    picture("avif", "a.avif", "AVIF"),
    picture("jpeg 2000", "a.jp2", "JPEG2000"),
    picture("a single pixel", "a.png", "PNG", Image.fromarray(gradient(1, 1))),
    picture("a line of 6000 pixels", "a.png", "PNG", Image.fromarray(gradient(1, 6000))),
    picture("png under the name of a jpeg", "a.jpg", "PNG"),
    broken("jpeg cut off", "a.jpg", JPEG[: len(JPEG) // 2]),
    broken("png cut off", "a.png", PNG[: len(PNG) // 2]),
    broken("webp cut off", "a.webp", encoded(NOISE, "WEBP")[:500]),
    broken("gif cut off", "a.gif", encoded(NOISE.quantize(200), "GIF")[:900]),
    broken("tiff cut off", "a.tif", encoded(NOISE, "TIFF")[:900]),
    broken("bmp cut off", "a.bmp", encoded(NOISE, "BMP")[:900]),
    broken("an empty image", "a.png", b"", "empty"),
    broken("text under the name of a jpeg", "a.jpg", b"hello, I am no image", "cannot identify"),
    broken("a web page under the name of a png", "a.png", b"<html>404</html>", "cannot identify"),
    broken("an svg under the name of a png", "a.png", b"<svg xmlns='x'/>", "cannot identify"),
]
