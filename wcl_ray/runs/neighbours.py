"""Search by image in the index of a folder of features (``jobs/neighbours.py``).

The index finds ids; names, columns and thumbnails of images are read from the Parquet files.
"""

from __future__ import annotations

import difflib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import torch

from wcl_ray.data.thumbnails import thumbnails
from wcl_ray.errors import UserError, reading
from wcl_ray.evaluate.embed import centre_crops
from wcl_ray.model.encoder import load_exported, load_projector
from wcl_ray.runs.feature_folder import INDEX, MANIFEST, feature_files, fingerprint
from wcl_ray.runs.trained import Trained
from wcl_ray.storage import Folder, filesystem, resolve_input, storage_errors
from wcl_ray.terminal import warn

INTEGER = re.compile(r"-?[0-9]+")
MOST_COMPARED = 50_000  # names among which those nearest to an unknown one are looked for


@dataclass(frozen=True)
class Neighbour:
    """An image of an index.

    Attributes:
        name: its key, or its id if it has none.
        similarity: cosine with the query, in [-1, 1].
        columns: metadata columns that were embedded with it.
        thumbnail: a JPEG, if the folder has them.
    """

    name: str
    similarity: float
    columns: dict[str, Any]
    thumbnail: bytes | None


@dataclass(frozen=True)
class Neighbours:
    """The images nearest to a query, nearest first. ``query`` is the image itself."""

    query: Neighbour
    nearest: list[Neighbour]
    images: int


def find_neighbours(
    path: str,
    *,
    image: str | None = None,
    id: str | None = None,
    k: int = 10,
    run: str | None = None,
    endpoint: str | None = None,
) -> Neighbours:
    """The images of an index that are nearest to an image.

    Args:
        path: folder of features with an index.
        image: path of an image file. id: id or name of an image in the index, which is not among
            its own neighbours. One of the two.
        k: number of neighbours.
        run: run folder with the encoder, by default the one that computed the index.

    Raises:
        UserError: no index there, a file that is no image, an unknown id (the nearest are named),
            or an encoder other than that of the index.
    """
    if (image is None) == (id is None):
        raise UserError("give the image to look for as --image FILE or as --id ID, one of the two")
    if k < 1:
        raise UserError(f"--k is {k}; it starts at 1")
    folder = Folder(path.rstrip("/") or "/", endpoint)
    if not folder.exists(MANIFEST):
        raise UserError(
            f"{path} holds no features; jobs/embed.py --run RUN --out FOLDER --index writes them"
        )
    if not folder.exists(INDEX):
        raise UserError(f"{path} has no index; repeat its embed.py with --index")
    manifest = json.loads(folder.read(MANIFEST))
    with reading(f"{path}/{INDEX}", "is damaged; embed.py --index writes it again"):
        index = faiss.deserialize_index(np.frombuffer(folder.read(INDEX), np.uint8))
    files = [folder.file(name) for name in feature_files(folder)]
    if not files:
        raise UserError(f"{path} has an index, but no features; repeat its embed.py")
    rows = pads.dataset(files, format="parquet", filesystem=folder.fs)
    if rows.count_rows() != index.ntotal:
        warn(
            f"{path} has features of {rows.count_rows():,} images, but its index only those of "
            f"{index.ntotal:,}; repeat its embed.py"
        )
    if image is not None:
        feature, picture = _embed_file(image, manifest, folder, run, endpoint)
        query, itself = Neighbour(image, 1.0, {}, picture), None
    else:
        itself = _id_of(str(id), rows, path)
        query = _described({itself: 1.0}, rows)[0]
        feature = np.array(index.reconstruct(itself))[None]
    faiss.normalize_L2(feature)
    similarity, ids = index.search(feature, min(k + (itself is not None), index.ntotal))
    scores = dict(zip(ids[0].tolist(), similarity[0].tolist(), strict=True))
    scores.pop(itself, None)
    nearest = dict(list(scores.items())[:k])
    return Neighbours(query, _described(nearest, rows), index.ntotal)


def _embed_file(
    image: str, manifest: dict[str, Any], folder: Folder, run: str | None, endpoint: str | None
) -> tuple[np.ndarray, bytes | None]:
    """Feature (1, F) of an image file by the encoder of the index, and its thumbnail."""
    fs, path = filesystem(resolve_input(image), endpoint)
    with storage_errors(image), fs.open_input_stream(path) as stream:
        content = stream.read()
    try:
        trained = Trained.open(run or manifest["run"], endpoint)
    except UserError as error:
        hint = "" if run else "; if the run has moved, give --run"
        raise UserError(f"the encoder of the index {folder.uri}: {error}{hint}") from None
    features = manifest["features"]
    encoder, needed = fingerprint(trained, features), manifest["encoder"]
    if encoder != needed:
        size, of_index = trained.config.data.image_size, manifest.get("image_size")
        sizes = f", for images of {size} pixels instead of {of_index}" if of_index != size else ""
        raise UserError(
            f"the index {folder.uri} is of another encoder than that of {trained.folder.uri} "
            f"({needed}, not {encoder}{sizes}); embed the images again with this run, or give the "
            f"other with --run (the index was made with {manifest['run']})"
        )
    backbone = load_exported(trained.weights)
    size, stored_size = int(backbone.image_size), trained.config.data.stored_size  # type: ignore[arg-type]
    with ThreadPoolExecutor(1) as pool:
        crops, faults = centre_crops([content], size, stored_size, pool)
    if faults:
        raise UserError(f"{image} is not an image that can be read: {faults[0]}")
    with torch.inference_mode():
        x = backbone(crops).float()
        if features == "projector":
            x = load_projector(trained.projector())(x)
    return x.numpy().copy(), thumbnails([content], size)[0]


def _id_of(wanted: str, rows: pads.Dataset, path: str) -> int:
    """The number of an image that the user names by its key or id."""
    names = rows.to_table(columns=["id", "key"])
    row = pc.index(names["key"], pa.scalar(wanted, names["key"].type)).as_py()
    if row < 0 and INTEGER.fullmatch(wanted) and abs(int(wanted)) < 2**63:
        row = pc.index(names["id"], pa.scalar(int(wanted), pa.int64())).as_py()
    if row >= 0:
        return int(names["id"][row].as_py())
    keys = names["key"].drop_null().to_pylist()
    if keys:
        near = [key for key in keys if key.endswith(f"/{wanted}")][:3]
        near = near or difflib.get_close_matches(wanted, keys[:MOST_COMPARED], n=3, cutoff=0.0)
    else:
        ids = names["id"].to_numpy()
        number = int(wanted) if INTEGER.fullmatch(wanted) else 0
        near = [str(i) for i in ids[np.argsort(np.abs(ids - float(number)), kind="stable")[:3]]]
    raise UserError(f"--id {wanted!r} is not in {path}; the nearest: {', '.join(near) or 'none'}")


def _described(scores: dict[int, float], rows: pads.Dataset) -> list[Neighbour]:
    """Ids with their similarities and what the Parquet files hold of them, in the same order."""
    columns = [name for name in rows.schema.names if name != "feature"]
    wanted = pa.array(list(scores), pa.int64())

    def rows_of(file: pads.Fragment) -> list[dict[str, Any]]:
        # ids first: the thumbnails of all images would take long to read
        chosen = pc.is_in(file.to_table(columns=["id"])["id"], value_set=wanted)
        if not pc.any(chosen).as_py():
            return []
        table: pa.Table = file.to_table(columns=columns).filter(chosen)
        return table.to_pylist()

    with ThreadPoolExecutor(16) as pool:
        found = [row for part in pool.map(rows_of, rows.get_fragments()) for row in part]
    by_id = {row.pop("id"): row for row in found}
    neighbours = []
    for number, similarity in scores.items():
        if number not in by_id:
            raise UserError(
                f"the features of image {number} are not there any more; repeat the embed.py that "
                "made the index"
            )
        row = by_id[number]
        name = row.pop("key") or str(number)
        # a folder without thumbnails may have a metadata column of this name
        picture = row.pop("thumbnail") if isinstance(row.get("thumbnail"), bytes) else None
        neighbours.append(Neighbour(name, similarity, row, picture))
    return neighbours
