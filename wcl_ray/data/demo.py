"""Renders the demo data: a drawer of beetles with a museum's notes on them.

Twelve species (the label) differ in their body plan. Colours, background, pose, size and position
are nuisances, independent of the species. The museum's notes depend on it, with noise: some are
wrong, some missing, some belong to another beetle, some are uninformative. Their information is
known exactly (:func:`wcl_ray.data.demo_notes.true_information`), so that the trade-off of the
method, I(Z;T) against H(Z|T), can be studied.

``python -m wcl_ray.data.demo --sheet demo.png`` draws a contact sheet.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import tempfile
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from wcl_ray.data.demo_notes import SPECIES, take_notes
from wcl_ray.data.demo_render import draw
from wcl_ray.storage import Folder

VERSION = 2
PARAMETERS = "demo.json"  # written last: marks the data as complete
ROWS = 256  # of a row group
BLOCK = 125  # beetles drawn at once; their arrays fit in the cache


@dataclass(frozen=True)
class DemoPaths:
    """Globs of the demo data for ``data.path`` and ``data.eval_path``."""

    train: str
    test: str


def make_demo(
    folder: str | Path,
    images: int = 3000,
    test_images: int = 750,
    seed: int = 0,
    noise: float = 0.03,
    misfiled: float = 0.1,
    informative: int = 5,
    nuisance: int = 1,
) -> DemoPaths:
    """Render the demo data to Parquet files unless they exist.

    The files are written to a temporary folder that is renamed when complete. The same arguments
    give the same files.

    Args:
        folder: gets a sub-folder for these parameters.
        images, test_images: number of beetles; no beetle is in both.
        seed: of everything random.
        noise: probability that an informative note differs from the value of the species.
        misfiled: share of beetles with the notes of another beetle of any species.
        informative: number of binary notes that depend on the species (0 to 8), besides five of
            several values.
        nuisance: number of binary notes that are fair coins (0 to 6), besides two with more values.

    Returns:
        Globs of the training and test files with columns ``id`` (string), ``image`` (PNG bytes,
        32 px), ``label``, the notes (strings and integers, nulls in two), ``length_mm`` (float)
        and ``tags`` (list of strings, some empty).

    Raises:
        ValueError: a parameter out of range.
        FileExistsError: the folder exists, but is not marked as complete.
    """
    if images < 1 or test_images < 1:
        raise ValueError(f"demo data: {images} images and {test_images} test images; 1 at least")
    knobs: dict[str, Any] = {
        "noise": noise,
        "misfiled": misfiled,
        "informative": informative,
        "nuisance": nuisance,
    }
    take_notes(1, np.random.default_rng(0), **knobs)  # a wrong value fails before any drawing
    parameters = {"version": VERSION, "images": images, "test_images": test_images, "seed": seed}
    text = json.dumps({**parameters, **knobs}, indent=1)
    digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    target = Path(folder) / f"beetles-{images}-{digest}"
    if not _complete(target, text):
        partial = Path(f"{target}.{uuid.uuid4().hex[:8]}.partial")
        partial.mkdir(parents=True)
        try:
            for split, count, files in (("train", images, 4), ("test", test_images, 2)):
                table = _table(split, count, seed, knobs)
                edges = [i * count // files for i in range(files + 1)]
                for i, (start, end) in enumerate(pairwise(edges)):
                    part = table.slice(start, end - start)
                    pq.write_table(part, partial / f"{split}-{i}.parquet", row_group_size=ROWS)
            (partial / PARAMETERS).write_text(text)
            _publish(partial, target, text)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return DemoPaths(train=f"{target}/train-*.parquet", test=f"{target}/test-*.parquet")


def demo_data(storage: Folder, images: int, seed: int) -> DemoPaths:
    """The demo data in a storage folder; for an object store rendered here and uploaded."""
    if storage.local:
        return make_demo(f"{storage.path}/demo-data", images=images, seed=seed)
    with tempfile.TemporaryDirectory() as temporary:
        rendered = Path(make_demo(temporary, images=images, seed=seed).train).parent
        target = storage / f"demo-data/{rendered.name}"
        parameters = (rendered / PARAMETERS).read_bytes()
        if not (target.exists(PARAMETERS) and target.read(PARAMETERS) == parameters):
            for file in sorted(rendered.glob("*.parquet")):
                target.write(file.name, file.read_bytes())
            target.write(PARAMETERS, parameters)
    return DemoPaths(train=f"{target.uri}/train-*.parquet", test=f"{target.uri}/test-*.parquet")


def _complete(target: Path, text: str) -> bool:
    return (target / PARAMETERS).is_file() and (target / PARAMETERS).read_text() == text


def _publish(partial: Path, target: Path, text: str) -> None:
    try:
        os.replace(partial, target)
    except OSError as error:
        if not _complete(target, text):  # otherwise another process was faster
            raise FileExistsError(
                f"{target} exists and is not complete demo data; remove it and start again"
            ) from error


def _table(split: str, count: int, seed: int, knobs: dict[str, Any]) -> pa.Table:
    notes_rng, looks_rng = np.random.default_rng([seed, split == "test"]).spawn(2)
    species, columns = take_notes(count, notes_rng, **knobs)
    blocks = [draw(species[i : i + BLOCK], looks_rng) for i in range(0, count, BLOCK)]
    with ThreadPoolExecutor(4) as pool:
        files = list(pool.map(_png, np.concatenate(blocks)))
    table: dict[str, Any] = {
        "id": [f"{split}/{i:06d}" for i in range(count)],
        "image": pa.array(files, pa.binary()),
        "label": [SPECIES[s] for s in species],
    }
    for name, values in columns.items():
        kind = pa.list_(pa.string()) if name == "tags" else None
        table[name] = pa.array(list(values), kind, from_pandas=False)
    return pa.table(table)


def _png(pixels: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG", compress_level=1)
    return sink.getvalue()


def contact_sheet(columns: int = 12, rows: int = 8, side: int = 72, seed: int = 7) -> Image.Image:
    """A drawer of beetles, one species per column, each beetle ``side`` pixels wide."""
    gap = max(2, side // 16)
    species = np.tile(np.arange(columns) % len(SPECIES), rows)
    pixels = draw(species, np.random.default_rng(seed), size=side)
    size = (columns * (side + gap) + gap, rows * (side + gap) + gap)
    sheet = Image.new("RGB", size, "white")
    for i, picture in enumerate(pixels):
        x, y = i % columns, i // columns
        sheet.paste(Image.fromarray(picture), (gap + x * (side + gap), gap + y * (side + gap)))
    return sheet


def main() -> None:
    """Write a contact sheet of the demo data."""
    parser = argparse.ArgumentParser(description="Draw a contact sheet of the demo data.")
    parser.add_argument("--sheet", required=True, metavar="PNG", help="file to write")
    contact_sheet().save(parser.parse_args().sheet, optimize=True)


if __name__ == "__main__":
    main()
