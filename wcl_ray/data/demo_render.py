"""Drawing beetles: signed distances to ellipses and strokes, a whole batch at once.

Coordinates: x to the right, y down, the picture is [-1, 1]². B: beetles, s: pixels of a side.
"""

from __future__ import annotations

from typing import Any

import numpy as np

OVERSAMPLE = 2
Points = tuple[np.ndarray, np.ndarray]

BODY = ((0.40, 0.46), (0.27, 0.58), (0.34, 0.52))  # half width and height: round, long, pear


def draw(species: np.ndarray, rng: np.random.Generator, size: int = 32) -> np.ndarray:
    """uint8 (B, size, size, 3): one beetle of each given species (ints 0 to 11).

    Species decides body, wing pattern, antennae, horn and legs; the rest is drawn at random.
    """
    b, s = len(species), size * OVERSAMPLE
    axis = (np.arange(s, dtype=np.float32) + 0.5) / s * 2 - 1
    x0, y0 = np.meshgrid(axis, axis)
    picture = _background(x0, y0, b, rng)
    x, y = _pose(x0, y0, b, rng)
    kind, wings = species % 3, (species // 3) % 4
    half = np.array(BODY, np.float32)[kind] * rng.normal(1, 0.05, (b, 2)).astype(np.float32)
    width, height = half[:, 0, None, None], half[:, 1, None, None]
    body = _colours(rng, b, (0.35, 0.95), (0.35, 0.85))
    dark = body * 0.35
    pixel = np.float32(2.0 / s)

    _shade(picture, x - 0.05, y - 0.08, width, height, rng)
    ink = _legs(x, y, width, height, long=(species % 4 < 2))
    ink = np.minimum(ink, _antennae(x, y, height, species))
    _paint(picture, ink, dark * 0.6, pixel)
    head = _ellipse(x, y + height * 0.98, width * 0.52, np.float32(0.17))
    _paint(picture, head, dark, pixel)
    horn = _stroke((x, y), (0 * width, -height), (0 * width, -height - 0.34), 0.045)
    _paint(picture, np.where((species % 2 == 0)[:, None, None], horn, 1.0), dark, pixel)
    outline = _body(x, y, width, height, kind)
    _paint(picture, outline, body, pixel)
    other = _colours(rng, b, (0.35, 0.95), (0.5, 1.0))
    pattern = _pattern(x, y, width, height, wings)
    _paint(picture, np.maximum(pattern, outline + 0.03), other, pixel)
    seam = np.maximum(np.abs(x) - 0.015, outline)
    _paint(picture, seam, dark, pixel)
    gloss = _ellipse(x + width * 0.35, y + height * 0.3, width * 0.16, height * 0.22)
    _paint(picture, np.maximum(gloss, outline), np.minimum(1, body * 0.5 + 0.5), pixel, 0.55)
    for side in (-1, 1):
        eye = _ellipse(
            x - side * width * 0.3, y + height * 1.02, np.float32(0.06), np.float32(0.06)
        )
        _paint(picture, eye, np.ones((b, 3), np.float32), pixel)
    small = picture.reshape(b, size, OVERSAMPLE, size, OVERSAMPLE, 3).mean((2, 4))
    small += rng.normal(0, 0.015, small.shape)
    return (small.clip(0, 1) * 255).round().astype(np.uint8)


def _background(x: np.ndarray, y: np.ndarray, b: int, rng: np.random.Generator) -> np.ndarray:
    """Two colours in a gradient of random direction, with a soft blotch."""
    one, two = (_colours(rng, b, (0.1, 0.6), (0.45, 1.0)) for _ in range(2))
    angle = rng.uniform(0, 2 * np.pi, (b, 1, 1))
    t = ((x * np.cos(angle) + y * np.sin(angle)) / 2.8 + 0.5).clip(0, 1)[..., None]
    picture = one[:, None, None] * (1 - t) + two[:, None, None] * t
    place = rng.uniform(-1, 1, (2, b, 1, 1))
    far = (x - place[0]) ** 2 + (y - place[1]) ** 2
    picture += (rng.uniform(-0.3, 0.3, (b, 1, 1)) * np.exp(-far / 0.3))[..., None]
    return np.ascontiguousarray(picture.clip(0, 1), dtype=np.float32)


def _pose(x: np.ndarray, y: np.ndarray, b: int, rng: np.random.Generator) -> Points:
    """Pixels in the beetle's own coordinates: turned, moved, scaled."""
    angle = rng.normal(0, 0.45, (b, 1, 1)).astype(np.float32)
    scale = rng.uniform(0.78, 1.12, (b, 1, 1)).astype(np.float32)
    move = rng.uniform(-0.14, 0.14, (2, b, 1, 1)).astype(np.float32)
    dx, dy = x - move[0], y - 0.1 - move[1]
    cos, sin = np.cos(angle), np.sin(angle)
    return (dx * cos + dy * sin) / scale, (dy * cos - dx * sin) / scale


def _colours(
    rng: np.random.Generator, b: int, saturation: tuple[float, float], value: tuple[float, float]
) -> np.ndarray:
    """float32 (B, 3): random hue, saturation and value within ranges."""
    h, s, v = rng.random(b), rng.uniform(*saturation, b), rng.uniform(*value, b)
    k = (np.array([5.0, 3.0, 1.0]) + 6 * h[:, None]) % 6
    return (v[:, None] * (1 - s[:, None] * np.minimum(k, 4 - k).clip(0, 1))).astype(np.float32)


def _paint(
    picture: np.ndarray, distance: np.ndarray, colour: np.ndarray, pixel: Any, strength: float = 1
) -> None:
    """Fill where the distance is negative, with a soft edge of one pixel."""
    alpha = (0.5 - distance / pixel).clip(0, 1)[..., None] * np.float32(strength)
    picture += alpha * (colour[:, None, None].astype(np.float32) - picture)


def _ellipse(x: np.ndarray, y: np.ndarray, width: Any, height: Any) -> np.ndarray:
    """Approximate signed distance to an ellipse around the origin."""
    radius = np.sqrt((x / width) ** 2 + (y / height) ** 2)
    return (radius - 1) * np.minimum(width, height)


def _stroke(p: Points, a: Points, b: Points, thick: float) -> np.ndarray:
    """Signed distance to a line from a to b with round ends."""
    px, py, bx, by = p[0] - a[0], p[1] - a[1], b[0] - a[0], b[1] - a[1]
    t = ((px * bx + py * by) / (bx * bx + by * by)).clip(0, 1)
    return np.hypot(px - t * bx, py - t * by) - np.float32(thick)


def _body(
    x: np.ndarray, y: np.ndarray, w: np.ndarray, h: np.ndarray, kind: np.ndarray
) -> np.ndarray:
    pear = (kind == 2)[:, None, None]
    wide = np.where(pear, w * (1 + 0.45 * np.clip(y / h, -1, 1)), w)
    return _ellipse(x, y, wide, h)


def _legs(
    x: np.ndarray, y: np.ndarray, w: np.ndarray, h: np.ndarray, long: np.ndarray
) -> np.ndarray:
    """Three pairs of bent legs."""
    reach = np.where(long, 0.38, 0.2)[:, None, None].astype(np.float32)
    found = np.full(x.shape, 1.0, np.float32)
    mirrored = np.abs(x)
    for height, bend in ((-0.45, -0.18), (0.05, 0.02), (0.5, 0.22)):
        hip = (w * 0.7, h * height)
        knee = (w + reach * 0.7, h * height + bend * 0.6)
        foot = (w + reach, h * height + bend + 0.16)
        found = np.minimum(found, _stroke((mirrored, y), hip, knee, 0.035))
        found = np.minimum(found, _stroke((mirrored, y), knee, foot, 0.03))
    return found


def _antennae(x: np.ndarray, y: np.ndarray, h: np.ndarray, species: np.ndarray) -> np.ndarray:
    """None, straight ones, or clubbed ones."""
    mirrored = np.abs(x)
    zero = np.zeros_like(h)
    tip = (zero + 0.34, -h - 0.36)
    line = _stroke((mirrored, y), (zero + 0.06, -h - 0.05), tip, 0.025)
    club = np.minimum(line, np.hypot(mirrored - tip[0], y - tip[1]) - 0.075)
    style = (species // 2 % 3)[:, None, None]
    return np.where(style == 0, 1.0, np.where(style == 1, line, club))


def _pattern(
    x: np.ndarray, y: np.ndarray, w: np.ndarray, h: np.ndarray, wings: np.ndarray
) -> np.ndarray:
    """Plain, stripes along, spots, or bands across."""
    u, v = np.abs(x) / w, y / h
    stripes = (np.abs(u - 0.5) - 0.14) * w
    spots = np.full(x.shape, 1.0, np.float32)
    for cu, cv in ((0.5, -0.45), (0.5, 0.1), (0.38, 0.6)):
        spots = np.minimum(spots, np.hypot((u - cu) * w, (v - cv) * h) - 0.085)
    bands = (np.abs(np.mod(v + 1.0, 0.66) - 0.33) - 0.13) * h
    choice = wings[:, None, None]
    return np.select([choice == 1, choice == 2, choice == 3], [stripes, spots, bands], 1.0)


def _shade(
    picture: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    w: np.ndarray,
    h: np.ndarray,
    rng: np.random.Generator,
) -> None:
    """A soft shadow under the body."""
    far = np.maximum(0, np.sqrt((x / w) ** 2 + (y / h) ** 2) - 0.8)
    picture *= 1 - 0.45 * np.exp(-((far / 0.25) ** 2))[..., None]
