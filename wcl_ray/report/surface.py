"""The colour map, and a smooth surface through scores."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np

from wcl_ray.report.axes import BAR, WIDTH, Axis, escape

# viridis: even to the eye, in grey, and for colour-blind people
VIRIDIS = [
    "440154", "482878", "3e4a89", "31688e", "26828e",
    "1f9e89", "35b779", "6ece58", "b5de2b", "fde725",
]  # fmt: skip
_TABLE = np.array([[int(c[i : i + 2], 16) for i in (0, 2, 4)] for c in VIRIDIS], dtype=float)
NEAR = 0.13  # how far a trial vouches for the surface, as a share of the axes


def rgb(shares: np.ndarray) -> np.ndarray:
    """Colours (…, 3) from 0 to 255 of shares from 0 to 1."""
    places = np.linspace(0, 1, len(_TABLE))
    return np.stack([np.interp(shares, places, _TABLE[:, i]) for i in range(3)], axis=-1)


def colour(share: float) -> str:
    """The same of one share, as CSS takes it."""
    return "#" + "".join(f"{round(c):02x}" for c in rgb(np.array(share)).tolist())


def colour_bar(name: str, title: str, scale: Axis, flip: bool) -> str:
    """The colour map beside a plot. ``name`` makes its id; ``flip``: low values are bright."""
    colours = VIRIDIS[::-1] if flip else VIRIDIS
    stops = "".join(
        f'<stop offset="{i / (len(colours) - 1):.3f}" stop-color="#{c}"/>'
        for i, c in enumerate(colours)
    )
    x, top, bottom = WIDTH - BAR + 16, scale.end, scale.start
    texts = [
        f'<path class="tick" d="M{x + 12:.1f} {at:.1f}h4"/>'
        f'<text class="bar" x="{x + 19:.1f}" y="{at + 4:.1f}">{escape(text)}</text>'
        for at, text in scale.ticks()
    ]
    return (
        f'<defs><linearGradient id="{name}" x1="0" x2="0" y1="1" y2="0">{stops}'
        f'</linearGradient></defs><rect x="{x:.1f}" y="{top:.1f}" width="12"'
        f' height="{bottom - top:.1f}" fill="url(#{name})"/>{"".join(texts)}'
        f'<text class="bar head" x="{WIDTH - 2:.0f}" y="{top - 8:.1f}">{escape(title)}</text>'
    )


def surface(points: np.ndarray, values: np.ndarray, weights: np.ndarray) -> np.ndarray | None:
    """Gaussian-kernel regression on a grid, RGBA (rows, columns, 4), the first row on top.

    The width of the kernel is the one that predicts each point best from the others. The image
    fades where no point is near: there the regression would only repeat far ones.

    Args:
        points: (n, 2), from 0 to 1. values: (n,), from 0 to 1. weights: (n,).
    """
    if len(np.unique(points.round(3), axis=0)) < 4:
        return None
    between = ((points[:, None] - points[None]) ** 2).sum(-1)
    widths = np.array([0.08, 0.11, 0.15, 0.2, 0.27])
    errors = []
    for width in widths:
        kernel = np.exp(-between / (2 * width**2)) * weights
        np.fill_diagonal(kernel, 0.0)
        kernel += 1e-6 * weights  # a lonely point is predicted by the mean
        guess = kernel @ values / kernel.sum(1)
        errors.append(float((weights * (guess - values) ** 2).sum()))
    width = widths[int(np.argmin(errors))]
    rows, columns = np.linspace(1, 0, 90), np.linspace(0, 1, 120)
    grid = np.stack(np.meshgrid(columns, rows), axis=-1).reshape(-1, 1, 2)
    far = np.concatenate([((part - points) ** 2).sum(-1) for part in np.array_split(grid, 20)])
    # relative to the nearest point, so that the sum does not vanish far from all
    kernel = np.exp(-(far - far.min(1, keepdims=True)) / (2 * width**2)) * weights
    seen = (np.exp(-far / (2 * NEAR**2)) * weights).sum(1)
    alpha = np.clip(1.25 * seen - 0.25, 0, 1)[:, None] * 255
    image = np.concatenate([rgb(kernel @ values / kernel.sum(1)), alpha], axis=1)
    return image.round().astype(np.uint8).reshape(len(rows), len(columns), 4)


def png(image: np.ndarray, x: Axis, y: Axis) -> str:
    """RGBA pixels as an SVG image that fills a plot."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        whole = kind + data
        return struct.pack(">I", len(data)) + whole + struct.pack(">I", zlib.crc32(whole))

    height, width = image.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in image)
    head = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
    data += chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    return (
        f'<image x="{x.start}" y="{y.end}" width="{x.end - x.start}" height="{y.start - y.end}"'
        ' preserveAspectRatio="none"'
        f' href="data:image/png;base64,{base64.b64encode(data).decode()}"/>'
    )
