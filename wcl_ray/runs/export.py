"""The encoder of a finished run for other libraries (``jobs/export.py``)."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from wcl_ray.data.images import SIDES
from wcl_ray.errors import UserError
from wcl_ray.export import TrainedEncoder, check_features
from wcl_ray.registry import EXPORTS
from wcl_ray.runs.folder import EVALUATION
from wcl_ray.runs.stored import read_stored
from wcl_ray.runs.trained import Trained
from wcl_ray.storage import Folder, check_target, write_file
from wcl_ray.terminal import bytes_text, say

EXPORTED = "exports"  # folder of a run
FIGURES = {  # key of evaluation.json → name and format
    "knn": ("kNN", ".1%"),
    "probe": ("linear probe", ".1%"),
    "rank_me": ("RankMe", ".1f"),
    "alignment": ("alignment", ".2f"),
    "uniformity": ("uniformity", ".2f"),
}


def export_run(run: str, to: str, out: str | None = None, endpoint: str | None = None) -> str:
    """Write the encoder of a run in another library's format, once that library has given the same
    features with it.

    Args:
        run: run folder, a path or URI.
        to: a name in :data:`wcl_ray.registry.EXPORTS`.
        out: the file, or the folder if the format has several; by default in ``RUN/exports``.

    Returns:
        The path or URI of what was written.

    Raises:
        UserError: no finished run, a format that does not take its backbone, a package that is not
            installed, or an output that cannot be written.
    """
    trained = Trained.open(run, endpoint)
    encoder = TrainedEncoder.of(trained.weights, run_facts(trained))
    with tempfile.TemporaryDirectory() as name:
        local = Path(name)
        loaded = EXPORTS.get(to)(encoder, local)
        difference = check_features(encoder, loaded.features)
        files = {path.name: path.read_bytes() for path in sorted(local.iterdir())}
    default = f"{trained.folder.uri}/{EXPORTED}"
    if len(files) == 1:
        [(file, content)] = files.items()
        target = out or f"{default}/{file}"
        check_target(target, "--out", endpoint, Path(file).suffix)
        write_file(target, content, endpoint)
    else:
        target = (out or f"{default}/{to}").rstrip("/")
        _write_folder(Folder(target, endpoint), files)
    size = bytes_text(sum(map(len, files.values())))
    say("export", f"{target} ({size}); features differ by at most {difference:.1g}")
    say("input", loaded.input)
    return target


def _write_folder(folder: Folder, files: dict[str, bytes]) -> None:
    """Write files atomically, and last the one without which no library opens the folder."""
    others = set(folder.names()) - files.keys()
    if others:
        raise UserError(f"--out {folder.uri} holds other files ({min(others)}); use another folder")
    for name in sorted(files, key=lambda name: name == "config.json"):
        folder.write(name, files[name])


def run_facts(trained: Trained) -> dict[str, str]:
    """What people should know of the encoder of a run: heading → text."""
    config, folder = trained.config, trained.folder
    images = read_stored(folder).images
    counts = [f"{images[side]['count']:,} {side}" for side in SIDES if side in images]
    data = (config.data.path or "the built-in demo data").rstrip("/").rpartition("/")[2]
    clusters = config.clusters.kind if config.method == "cl-infonce" else "none"
    facts = {
        "run": folder.uri.rpartition("/")[2],
        "backbone": config.model.backbone,
        "starting weights": config.model.weights.rpartition("/")[2],
        "images": f"{data}, {', '.join(counts)} images" if counts else data,
        "method": config.method,
        "clusters": clusters,
        "epochs": f"{config.train.epochs}, batches of {config.train.batch_size}",
        "seed": str(config.seed),
    }
    if folder.exists(EVALUATION):
        figures = json.loads(folder.read(EVALUATION))
        label = f" ({config.data.label}, {figures['classes']} classes)" if "knn" in figures else ""
        for key, (name, form) in FIGURES.items():
            if key in figures:
                facts[name] = format(figures[key], form) + (label if "%" in form else "")
    return facts
