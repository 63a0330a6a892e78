"""A folder of features: what its files have in common, and the index for a search by image.

The index holds the ids and the features, scaled to unit length, so that inner products are cosine
similarities; the search is exact. ``_embedding.json`` holds the fingerprint of the encoder.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import faiss
import pyarrow.parquet as pq
import ray

from wcl_ray.config import DataConfig
from wcl_ray.data.sources.base import ID, KEY
from wcl_ray.errors import UserError
from wcl_ray.evaluate.embed import THUMBNAIL, feature_tensor
from wcl_ray.runs.lock import HEARTBEAT, LOCK
from wcl_ray.runs.trained import Trained
from wcl_ray.storage import Folder
from wcl_ray.terminal import warn

MANIFEST, INDEX = "_embedding.json", "_index.faiss"  # readers of Parquet folders ignore _ files
SQUASHED = "of the squashed image"  # what encoders see up to 64 pixels
# output column → column of the stream
NAMES = {"id": ID, "key": KEY, "feature": "feature", "thumbnail": THUMBNAIL}


def feature_files(folder: Folder) -> list[str]:
    """Names of the Parquet files."""
    return [name for name in folder.names() if name.endswith(".parquet")]


def fingerprint(trained: Trained, features: str) -> str:
    """Hash of the weights that compute the features, ``backbone`` or ``projector``."""
    digest = hashlib.sha256(trained.weights)
    if features == "projector":
        digest.update(trained.projector())
    return digest.hexdigest()[:16]


def new_manifest(
    trained: Trained, data: DataConfig, features: str, columns: tuple[str, ...]
) -> dict[str, Any]:
    """What the features in one folder must have in common."""
    run = trained.folder
    return {
        "run": run.path if run.local else run.uri,
        "encoder": fingerprint(trained, features),
        "image_size": trained.config.data.image_size,
        "features": features,
        "images": (data.path or "demo").rstrip("/"),
        "format": data.format,
        "id": data.id,
        "image": data.image,
        "encoding": data.encoding,
        "table": data.table,
        "key": data.key,
        "columns": list(columns),
        "crops": SQUASHED if trained.config.data.image_size <= 64 else "of the file",
    }


def check_folder(folder: Folder, manifest: dict[str, Any]) -> None:
    """Check that a folder is empty or has features with the same manifest, which takes over what
    the folder's has besides.

    Raises:
        UserError: it holds other files or other features, or a column has a reserved name.
    """
    written = NAMES.keys() - (set() if manifest["thumbnails"] else {"thumbnail"})
    reserved = [name for name in manifest["columns"] if name in written]
    if reserved:
        raise UserError(f"--columns {reserved[0]!r} is the name of a column that is always written")
    if not folder.exists(MANIFEST):
        if set(folder.names()) - {HEARTBEAT, LOCK}:
            raise UserError(f"--out {folder.uri} is not empty and holds no features; use another")
        return
    stored = {"crops": SQUASHED} | json.loads(folder.read(MANIFEST))  # as before version 0.2.0
    has_thumbnails = stored.get("thumbnails", False)
    if manifest["thumbnails"] and not has_thumbnails:
        warn(f"{folder.uri} was begun without --index: its search will show names, not images")
    manifest["thumbnails"] = has_thumbnails
    manifest.setdefault("dimensions", stored.get("dimensions"))
    both = manifest.keys() & stored.keys() - {"run", "dimensions"}  # versions differ in their keys
    differing = [key for key in manifest if key in both and stored[key] != manifest[key]]
    if differing:
        text = "; ".join(f"{key} was {stored[key]}, now {manifest[key]}" for key in differing)
        raise UserError(f"--out {folder.uri} holds other features ({text}); use another folder")


@ray.remote(num_cpus=1)
def build_index(folder: Folder) -> int:
    """Write the index of all features in a folder; returns their number.

    Raises:
        UserError: there are none.
    """
    index: Any = None
    for name in feature_files(folder):
        with folder.fs.open_input_file(folder.file(name)) as stream:
            table = pq.read_table(stream, columns=["id", "feature"])
        x = feature_tensor(table["feature"]).numpy().copy()
        index = index or faiss.index_factory(x.shape[1], "IDMap2,Flat", faiss.METRIC_INNER_PRODUCT)
        faiss.normalize_L2(x)
        index.add_with_ids(x, table["id"].to_numpy())
    if index is None:
        raise UserError(f"{folder.uri} holds no features to write an index of")
    folder.write(INDEX, faiss.serialize_index(index).tobytes())
    return int(index.ntotal)
