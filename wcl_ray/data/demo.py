"""The demo data: a drawer of beetles, rendered here and now, with what a museum would know of them.

Twelve species (the label) differ in shape, legs, antennae and the pattern of their wings. Colours,
background, pose, size and place are nuisances that say nothing of the species. The museum's notes
do, through noise: every informative attribute is a fixed function of the species that was written
down wrongly with probability ``noise``. Others (season, shelf) say nothing, some are missing.

The information between the notes and the species is known exactly (:func:`true_information`), so
the trade-off of the method, I(Z;T) against H(Z|T), can be studied on it.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import shutil
import sys
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from wcl_ray.data.demo_render import draw

VERSION = 1
SPECIES = (
    "amber", "bishop", "clown", "dusk", "ember", "fiddler",
    "giant", "hermit", "ivory", "jester", "knight", "lantern",
)  # fmt: skip

# Attribute → value of each species. What can be seen: body, wings, antennae, legs.
TRAITS: dict[str, tuple[str, ...]] = {
    "body": tuple(("round", "long", "pear")[s % 3] for s in range(12)),
    "wings": tuple(("plain", "striped", "spotted", "banded")[(s // 3) % 4] for s in range(12)),
    "nocturnal": tuple("yn"[(s // 2) % 2] for s in range(12)),
    "aquatic": tuple("yn"[(s // 6) % 2] for s in range(12)),
    "horned": tuple("yn"[s % 2] for s in range(12)),
    "social": tuple("yn"[((s + 1) // 2 + s // 4) % 2] for s in range(12)),
    "diet": tuple(("leaves", "wood", "dung")[(s + s // 4) % 3] for s in range(12)),
}
MISSING = {"social": 0.05, "diet": 0.15}  # share of nulls
NOISE_ONLY = {"season": ("spring", "summer", "autumn", "winter"), "shelf": (1, 2, 3, 4)}
TAGS = {"rare": (0, 4, 7), "pest": (1, 2, 9, 10), "protected": (3, 4, 5, 11), "flies": (0, 2, 6, 8)}


@dataclass(frozen=True)
class Demo:
    """Where the demo data lies: globs for ``data.path`` and ``data.eval_path``."""

    train: str
    test: str


def make_demo(
    folder: str | Path,
    images: int = 3000,
    test_images: int = 750,
    seed: int = 0,
    noise: float = 0.1,
) -> Demo:
    """Render the demo data to Parquet files, or find it rendered already.

    Args:
        folder: gets a sub-folder for these parameters.
        images, test_images: how many to render.
        noise: probability that an informative attribute is drawn at random instead.

    Returns:
        Globs of the training and test files with columns ``id``, ``image`` (PNG, 32 px),
        ``label``, the attributes, ``length_mm`` and ``tags``.
    """
    facts = {
        "version": VERSION,
        "images": images,
        "test": test_images,
        "seed": seed,
        "noise": noise,
    }
    target = Path(folder) / f"{images}-{test_images}-{seed}-{noise:g}-v{VERSION}"
    if not (target / "demo.json").exists():
        partial = Path(f"{target}.{uuid.uuid4().hex[:8]}.partial")
        partial.mkdir(parents=True)
        for split, count, files, stream in (("train", images, 4, 0), ("test", test_images, 2, 1)):
            table = _table(split, count, np.random.default_rng([seed, stream]), noise)
            for i in range(files):
                part = table.slice(
                    i * count // files, (i + 1) * count // files - i * count // files
                )
                pq.write_table(part, partial / f"{split}-{i}.parquet", row_group_size=256)
        (partial / "demo.json").write_text(json.dumps(facts))
        try:
            os.replace(partial, target)
        except OSError:  # another process was faster
            shutil.rmtree(partial)
            if not (target / "demo.json").exists():
                raise
    return Demo(train=f"{target}/train-*.parquet", test=f"{target}/test-*.parquet")


def notes(count: int, rng: np.random.Generator, noise: float) -> tuple[np.ndarray, dict[str, Any]]:
    """Species (count,) and the museum's notes on each beetle, without drawing them."""
    species = rng.integers(0, len(SPECIES), count)
    columns: dict[str, Any] = {}
    for name, values in TRAITS.items():
        true = np.array(values, dtype=object)[species]
        wrong = rng.random(count) < noise
        columns[name] = np.where(wrong, rng.choice(np.array(sorted(set(values))), count), true)
        columns[name][rng.random(count) < MISSING.get(name, 0.0)] = None
    for name, kinds in NOISE_ONLY.items():
        columns[name] = np.array(kinds, dtype=object)[rng.integers(0, len(kinds), count)]
    columns["length_mm"] = np.round(8 + 2.5 * (species % 5) + rng.normal(0, 2.0, count), 1)
    tags: list[list[str]] = [[] for _ in range(count)]
    for tag, owners in TAGS.items():
        chance = np.where(np.isin(species, owners), 1 - noise, noise)
        for row in np.flatnonzero(rng.random(count) < chance * 0.8):
            tags[row].append(tag)
    columns["tags"] = tags
    return species, columns


def true_information(columns: Sequence[str], noise: float = 0.1) -> tuple[float, float]:
    """I(Z;T) and H(Z|T) in bits, where Z is the joint value of the given attributes.

    Given the species t the attributes are independent, and attribute j has value v with
    probability ``(1 - m)·((1 - noise)·[v = f_j(t)] + noise / |values|)``, or is missing with
    probability m. With T uniform, H(Z|T) is the mean over t of the sum of their entropies, and
    I(Z;T) = H(Z) - H(Z|T) with P(z) summed over all joint values.

    Raises:
        KeyError: a column that is no trait and no pure noise.
    """
    tables = [_channel(name, noise) for name in columns if name in TRAITS]
    blind = sum(math.log2(len(NOISE_ONLY[name])) for name in columns if name not in TRAITS)
    given = sum(float(-(p * np.log2(np.maximum(p, 1e-300))).sum()) for p in tables) / len(SPECIES)
    joint = 0.0
    for cells in itertools.product(*(range(p.shape[1]) for p in tables)):
        of_t = np.ones(len(SPECIES))
        for p, cell in zip(tables, cells, strict=True):
            of_t = of_t * p[:, cell]
        z = float(of_t.mean())
        joint -= z * math.log2(z) if z > 0 else 0.0
    return joint - given, given + blind


def _channel(name: str, noise: float) -> np.ndarray:
    """P(value | species), (12, values + missing)."""
    kinds = sorted(set(TRAITS[name]))
    table = np.full((len(SPECIES), len(kinds) + 1), noise / len(kinds))
    for species, value in enumerate(TRAITS[name]):
        table[species, kinds.index(value)] += 1 - noise
    missing = MISSING.get(name, 0.0)
    table[:, :-1] *= 1 - missing
    table[:, -1] = missing
    return table


def _table(split: str, count: int, rng: np.random.Generator, noise: float) -> pa.Table:
    species, columns = notes(count, rng, noise)
    pixels = np.concatenate(
        [draw(species[i : i + 250], rng) for i in range(0, count, 250)]
        or [np.empty((0, 32, 32, 3))]
    )
    with ThreadPoolExecutor(4) as pool:
        files = list(pool.map(_png, pixels))
    found: dict[str, Any] = {
        "id": [f"{split}/{i:06d}" for i in range(count)],
        "image": pa.array(files, pa.binary()),
        "label": [SPECIES[s] for s in species],
    }
    for name, values in columns.items():
        kind = pa.list_(pa.string()) if name == "tags" else None
        found[name] = pa.array(values if name == "tags" else values.tolist(), kind)
    return pa.table(found)


def _png(pixels: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def contact_sheet(columns: int = 12, rows: int = 8, scale: int = 2, seed: int = 7) -> Image.Image:
    """A drawer of beetles, one column a species, drawn at ``scale`` times their size."""
    side, gap = 32 * scale, 6
    species = np.tile(np.arange(columns) % len(SPECIES), rows)
    pixels = draw(species, np.random.default_rng(seed), size=side)
    sheet = Image.new("RGB", (columns * (side + gap) + gap, rows * (side + gap) + gap), "white")
    for i, picture in enumerate(pixels):
        x, y = i % columns, i // columns
        sheet.paste(Image.fromarray(picture), (gap + x * (side + gap), gap + y * (side + gap)))
    return sheet


if __name__ == "__main__":
    contact_sheet().quantize(64).save(sys.argv[1], optimize=True)
