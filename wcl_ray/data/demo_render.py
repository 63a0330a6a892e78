"""Draws beetles from signed distances to ellipses and strokes, a batch at once.

Coordinates: x to the right, y down, the picture is [-1, 1]², the beetle faces up. B: beetles,
s: pixels of a side. Symmetric parts are drawn on |x|.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

OVERSAMPLE = 2
Points = tuple[np.ndarray, np.ndarray]


class Plan(NamedTuple):
    """Body plan of a species: half width and half height of the body, widening to the rear
    (−1 to 1), wing pattern, antennae, headgear, legs, half width of the head."""

    width: float
    height: float
    taper: float
    wings: str
    antennae: str
    head: str
    legs: str
    skull: float


PLANS = (
    Plan(0.52, 0.47, 0.0, "spots", "short", "", "short", 0.26),  # ladybird
    Plan(0.48, 0.50, 0.12, "plain", "clubs", "comb", "bent", 0.34),  # scarab
    Plan(0.34, 0.50, 0.0, "plain", "", "jaws", "bent", 0.27),  # stag
    Plan(0.45, 0.50, 0.0, "plain", "", "horn", "bent", 0.24),  # rhino
    Plan(0.25, 0.56, -0.15, "bands", "sweeping", "", "long", 0.17),  # longhorn
    Plan(0.36, 0.48, 0.40, "stripes", "short", "snout", "bent", 0.16),  # weevil
    Plan(0.27, 0.56, 0.05, "lamp", "straight", "", "short", 0.25),  # firefly
    Plan(0.40, 0.56, 0.10, "rim", "straight", "", "oars", 0.24),  # diver
    Plan(0.50, 0.54, -0.50, "bands", "straight", "", "bent", 0.20),  # shield
    Plan(0.30, 0.50, 0.25, "spots", "straight", "fangs", "long", 0.29),  # tiger
    Plan(0.23, 0.62, -0.20, "eyes", "short", "", "short", 0.19),  # click
    Plan(0.33, 0.60, -0.40, "stripes", "short", "", "short", 0.24),  # jewel
)

# Lines on the head: mirrored or not, half thickness, points relative to the front of the body.
Shapes = dict[str, tuple[bool, float, tuple[tuple[float, float], ...]]]
ANTENNAE: Shapes = {
    "short": (True, 0.03, ((0.1, -0.1), (0.22, -0.24))),
    "straight": (True, 0.03, ((0.1, -0.1), (0.42, -0.36))),
    "clubs": (True, 0.03, ((0.1, -0.1), (0.4, -0.26))),
    "sweeping": (True, 0.03, ((0.1, -0.1), (0.36, -0.26), (0.6, 0.02), (0.72, 0.5))),
}
HEADS: Shapes = {
    "horn": (False, 0.07, ((0.0, 0.0), (0.02, -0.26), (0.1, -0.42))),
    "jaws": (True, 0.055, ((0.14, -0.1), (0.34, -0.24), (0.26, -0.42), (0.12, -0.46))),
    "fangs": (True, 0.04, ((0.12, -0.1), (0.16, -0.27), (0.04, -0.31))),
    "snout": (False, 0.05, ((0.0, 0.0), (0.02, -0.28), (-0.08, -0.4))),
    "comb": (True, 0.04, ((0.0, -0.29), (0.07, -0.16), (0.15, -0.28), (0.22, -0.13), (0.32, -0.2))),
}


def draw(species: np.ndarray, rng: np.random.Generator, size: int = 32) -> np.ndarray:
    """uint8 (B, size, size, 3): one beetle of each given species (ints 0 to 11).

    The species decides the body plan; colours, background, place, size and turn are random.
    """
    b, s = len(species), size * OVERSAMPLE
    axis = (np.arange(s, dtype=np.float32) + 0.5) / s * 2 - 1
    flat_x, flat_y = np.meshgrid(axis, axis)
    picture = _background(flat_x, flat_y, b, rng)
    x, y = _pose(flat_x, flat_y, b, rng)
    u = np.abs(x)
    w, h, taper, skull = (_numbers(species, name) for name in ("width", "height", "taper", "skull"))
    w, h = w * _around_one(rng, b, 0.06), h * _around_one(rng, b, 0.05)
    shell, dark, mark = _liveries(rng, b)
    soft = np.float32(2.4 / s)

    outline = _ellipse(x, y, w * (1 + taper * np.clip(y / h, -1, 1)), h)
    picture *= 1 - 0.4 * np.exp(-((np.maximum(0, _shift(outline, 2, s)) / 0.12) ** 2))[..., None]
    _paint(picture, _legs(u, y, w, h, species), dark, soft)
    _paint(picture, _headgear(u, x, y, h, species), dark, soft)
    _paint(picture, _ellipse(x, y + h * 0.98, skull, np.float32(0.19)), dark, soft)
    for side in (-1, 1):
        eye = _ellipse(x - side * skull * 0.62, y + h * 1.04, np.float32(0.075), np.float32(0.075))
        _paint(picture, eye, np.full((b, 3), 0.97, np.float32), soft)
        pupil = np.hypot(x - side * skull * 0.62, y + h * 1.07) - np.float32(0.035)
        _paint(picture, pupil, np.full((b, 3), 0.05, np.float32), soft)
    _paint(picture, outline - 0.025, dark, soft)
    _paint(picture, outline + 0.02, shell, soft)
    pattern = _wings(x, u, y, w, h, outline, species)
    _paint(picture, np.maximum(pattern, outline + 0.04), mark, soft)
    _paint(picture, np.maximum(u - 0.018, np.maximum(outline, -y - h * 0.55)), dark, soft)
    collar = np.abs(y + h * 0.55) - 0.02
    _paint(picture, np.maximum(collar, outline), dark, soft)
    gloss = _ellipse(x + w * 0.42, y + h * 0.18, w * 0.13, h * 0.24)
    _paint(picture, np.maximum(gloss, outline + 0.05), np.ones_like(shell), soft, 0.45)
    small = picture.reshape(b, size, OVERSAMPLE, size, OVERSAMPLE, 3).mean((2, 4))
    return (small.clip(0, 1) * 255).round().astype(np.uint8)


def _numbers(species: np.ndarray, name: str) -> np.ndarray:
    return np.array([getattr(p, name) for p in PLANS], np.float32)[species][:, None, None]


def _having(species: np.ndarray, name: str, value: str) -> np.ndarray:
    """Indices of the beetles whose plan has this value."""
    return np.flatnonzero(np.array([getattr(p, name) == value for p in PLANS])[species])


def _around_one(rng: np.random.Generator, b: int, spread: float) -> np.ndarray:
    return rng.normal(1, spread, (b, 1, 1)).astype(np.float32)


def _background(x: np.ndarray, y: np.ndarray, b: int, rng: np.random.Generator) -> np.ndarray:
    """float32 (B, s, s, 3): two colours in a gradient of random direction, with a soft light."""
    hues = rng.random(b) + rng.uniform(-0.15, 0.15, (2, b))
    start, end = (_hsv(h % 1, rng.uniform(0.1, 0.4, b), rng.uniform(0.7, 1.0, b)) for h in hues)
    angle = rng.uniform(0, 2 * np.pi, (b, 1, 1)).astype(np.float32)
    t = ((x * np.cos(angle) + y * np.sin(angle)) / 2.8 + 0.5).clip(0, 1)[..., None]
    picture = start[:, None, None] * (1 - t) + end[:, None, None] * t
    centre = rng.uniform(-1, 1, (2, b, 1, 1)).astype(np.float32)
    square = (x - centre[0]) ** 2 + (y - centre[1]) ** 2
    light = rng.uniform(-0.15, 0.15, (b, 1, 1)).astype(np.float32)
    picture += (light * np.exp(-square / np.float32(0.3)))[..., None]
    return np.ascontiguousarray(picture.clip(0, 1), dtype=np.float32)


def _pose(x: np.ndarray, y: np.ndarray, b: int, rng: np.random.Generator) -> Points:
    """Coordinates of the pixels relative to the beetle, which is rotated, moved and scaled."""
    angle = rng.normal(0, 0.3, (b, 1, 1)).astype(np.float32)
    scale = rng.uniform(0.86, 1.08, (b, 1, 1)).astype(np.float32)
    move = rng.uniform(-0.1, 0.1, (2, b, 1, 1)).astype(np.float32)
    dx, dy = x - move[0], y - 0.16 - move[1]
    cos, sin = np.cos(angle), np.sin(angle)
    return (dx * cos + dy * sin) / scale, (dy * cos - dx * sin) / scale


def _liveries(rng: np.random.Generator, b: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Colours (B, 3) of shell, legs and pattern: any hue, the pattern in contrast."""
    hue, bright = rng.random(b), rng.uniform(0.4, 0.95, b)
    shell = _hsv(hue, rng.uniform(0.6, 0.95, b), bright)
    dark = _hsv(hue, rng.uniform(0.3, 0.6, b), rng.uniform(0.1, 0.2, b))
    light = bright < 0.68
    value = np.where(light, rng.uniform(0.9, 1.0, b), rng.uniform(0.1, 0.25, b))
    mark = _hsv(rng.random(b), np.where(light, rng.uniform(0.2, 0.6, b), 0.5), value)
    return shell, dark, mark


def _hsv(h: np.ndarray, s: np.ndarray, v: np.ndarray) -> np.ndarray:
    """HSV → RGB, float32 (B, 3)."""
    k = (np.array([5.0, 3.0, 1.0]) + 6 * h[:, None]) % 6
    return (v[:, None] * (1 - s[:, None] * np.minimum(k, 4 - k).clip(0, 1))).astype(np.float32)


def _paint(
    picture: np.ndarray, distance: np.ndarray, colour: np.ndarray, soft: Any, strength: float = 1
) -> None:
    """Fill where the distance is negative, with a soft edge."""
    alpha = (0.5 - distance / soft).clip(0, 1)[..., None] * np.float32(strength)
    picture += alpha * (colour[:, None, None].astype(np.float32) - picture)


def _shift(field: np.ndarray, pixels: int, s: int) -> np.ndarray:
    """The field moved to the lower right by ``pixels`` of 64, for a shadow."""
    step = max(1, pixels * s // 64)
    moved = field.copy()
    moved[:, step:, step:] = field[:, :-step, :-step]
    return moved


def _ellipse(x: np.ndarray, y: np.ndarray, width: Any, height: Any) -> np.ndarray:
    """Approximate signed distance to an ellipse around the origin."""
    radius = np.sqrt((x / width) ** 2 + (y / height) ** 2)
    return (radius - 1) * np.minimum(width, height)


def _stroke(p: Points, a: tuple[Any, Any], b: tuple[Any, Any], thick: float) -> np.ndarray:
    """Signed distance to a line from a to b with round ends."""
    px, py, bx, by = p[0] - a[0], p[1] - a[1], b[0] - a[0], b[1] - a[1]
    t = ((px * bx + py * by) / (bx * bx + by * by)).clip(0, 1)
    return np.hypot(px - t * bx, py - t * by) - np.float32(thick)


def _path(p: Points, points: list[tuple[Any, Any]], thick: float) -> np.ndarray:
    """Signed distance to a polyline."""
    distance = _stroke(p, points[0], points[1], thick)
    for a, b in pairwise(points[1:]):
        distance = np.minimum(distance, _stroke(p, a, b, thick))
    return distance


def _legs(u: np.ndarray, y: np.ndarray, w: Any, h: Any, species: np.ndarray) -> np.ndarray:
    """Signed distance to three pairs of legs: short, bent, long, or with oars behind."""
    distance = np.full(u.shape, 1.0, np.float32)
    reach = {"short": 0.16, "bent": 0.28, "long": 0.4, "oars": 0.2}
    for kind, length in reach.items():
        i = _having(species, "legs", kind)
        p, wi, hi = (u[i], y[i]), w[i], h[i]
        for at, bend in ((-0.42, -0.16), (0.05, 0.04), (0.5, 0.2)):
            hip, knee = (wi * 0.7, hi * at), (wi + length * 0.6, hi * at + bend * 0.6)
            foot = (wi + length, hi * at + bend + 0.14)
            thick = 0.04
            if kind == "oars" and at == 0.5:
                knee, foot, thick = (wi + 0.22, hi * at - 0.1), (wi + 0.36, hi * at + 0.3), 0.075
            distance[i] = np.minimum(distance[i], _path(p, [hip, knee, foot], thick))
    return distance


def _headgear(
    u: np.ndarray, x: np.ndarray, y: np.ndarray, h: Any, species: np.ndarray
) -> np.ndarray:
    """Signed distance to antennae and whatever else the head carries."""
    distance = np.full(u.shape, 1.0, np.float32)
    for part, shapes in (("antennae", ANTENNAE), ("head", HEADS)):
        for kind, (mirrored, thick, points) in shapes.items():
            i = _having(species, part, kind)
            p, top = ((u if mirrored else x)[i], y[i]), -h[i]
            line = _path(p, [(right, top + down) for right, down in points], thick)
            if kind == "clubs":
                right, down = points[-1]
                line = np.minimum(line, np.hypot(p[0] - right, p[1] - top - down) - 0.085)
            distance[i] = np.minimum(distance[i], line)
    return distance


def _wings(
    x: np.ndarray, u: np.ndarray, y: np.ndarray, w: Any, h: Any, outline: Any, species: np.ndarray
) -> np.ndarray:
    """Signed distance to the pattern: nothing, spots, eyes, stripes, bands, a rim or a lamp."""
    distance = np.full(u.shape, 1.0, np.float32)
    for kind in ("spots", "eyes", "stripes", "bands", "rim", "lamp"):
        i = _having(species, "wings", kind)
        ui, yi, wi, hi = u[i], y[i], w[i], h[i]
        if kind == "spots":
            for at, down, r in ((0.5, -0.25, 0.1), (0.55, 0.25, 0.11), (0.3, 0.65, 0.09)):
                distance[i] = np.minimum(distance[i], np.hypot(ui - at * wi, yi - down * hi) - r)
        elif kind == "eyes":
            distance[i] = np.abs(np.hypot(ui - 0.5 * wi, yi + 0.3 * hi) - 0.07) - 0.03
        elif kind == "stripes":
            distance[i] = (np.abs(ui / wi - 0.5) - 0.15) * wi
        elif kind == "bands":
            distance[i] = (np.abs(np.mod(yi / hi + 0.4, 0.56) - 0.28) - 0.13) * hi
            distance[i] = np.maximum(distance[i], -yi - 0.5 * hi)
        elif kind == "rim":
            distance[i] = -outline[i] - 0.13
        else:
            distance[i] = -yi + 0.5 * hi
    return distance
