"""Small pictures and data sets for the tests."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def png(number: int, size: int = 16) -> bytes:
    """A picture whose top left pixel tells its number."""
    pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3)).astype(np.uint8)
    pixels[0, 0] = (number // 256, number % 256, 7)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def number_of(pixels: np.ndarray) -> int:
    """The number of a decoded picture (3, s, s) at its own size."""
    return int(pixels[0, 0, 0]) * 256 + int(pixels[1, 0, 0])


def columns(count: int, start: int = 0) -> dict[str, Any]:
    """id, image and metadata of pictures start … start + count - 1."""
    numbers = range(start, start + count)
    return {
        "id": pa.array(numbers, pa.int64()),
        "image": pa.array([png(n) for n in numbers], pa.binary()),
        "species": [f"s{n % 4}" for n in numbers],
        "colour": [("red", "green", "blue")[(n // 2) % 3] for n in numbers],
        "size": [float(n % 17) for n in numbers],
        "marks": [[m for m in ("spot", "ring") if (n // (2 + len(m))) % 2] for n in numbers],
    }


def write_parquet(folder: Path, count: int = 96, files: int = 3, **changes: Any) -> str:
    """Parquet files of pictures; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns(count) | changes)
    step = count // files
    for i in range(files):
        pq.write_table(table.slice(i * step, step), folder / f"part-{i}.parquet", row_group_size=10)
    return str(folder)
