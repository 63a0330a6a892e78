"""The run folder: its name, what it was started with, and whether it may be continued.

Layout::

    RUN/config.json                     resolved configuration
        rounds/000/assignment.parquet   id → cluster, one column a granularity
        rounds/000/clusters.json        which attributes, how good the clusters are
        rounds/000/train/               checkpoints, kept by Ray Train (of the last round)
        rounds/000/round.json           the round is done, and its last checkpoint
        metadata/                       clusters of the metadata, when round 0 has its own
        metrics.jsonl, events.*         training metrics, TensorBoard
        faults.jsonl                    images that were skipped, and why
        encoder.safetensors             the backbone, plain torchvision names
        projector.safetensors           the projector whose output is clustered
        results.json                    the evaluation; its presence means: finished
        baseline/                       the same files for SimCLR, with --compare
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

from wcl_ray import __version__
from wcl_ray.config import Config
from wcl_ray.errors import UserError
from wcl_ray.storage import Folder

# Options that may differ between the start of a run and its continuation.
_FREE = (
    "name", "resume", "start_or_resume", "storage", "cache", "compare", "scale.", "evaluate.every",
    "train.checkpoint_", "train.sync_bn", "concurrent", "retries",
)  # fmt: skip


def find_run(config: Config) -> tuple[Config, Folder]:
    """The run folder of a configuration, still to be made (:func:`claim`) or found again.

    Returns:
        The configuration with its name filled in, and the folder.

    Raises:
        UserError: the name is taken and ``resume`` is off; ``resume`` finds nothing to continue or
            a run with other options.
    """
    storage = Folder(config.storage, config.data.endpoint)
    if config.start_or_resume:
        there = (storage / str(config.name)).exists("config.json")
        config = replace(config, resume=there)
    if config.resume:
        name = config.name or _newest(storage, config)
        config = replace(config, name=name)
        folder = storage / name  # type: ignore[operator]
        if not folder.exists("config.json"):
            raise UserError(
                f"--resume: there is no run {name!r} in {config.storage}{_runs(storage)}"
            )
        _check_same(json.loads(folder.read("config.json"))["config"], config, str(name))
        return config, folder
    name = config.name or _fresh_name(config)
    folder = storage / name
    if folder.exists("config.json"):
        raise UserError(
            f"{folder.uri} holds a run already; add --resume to continue it, or choose another "
            "--name"
        )
    return replace(config, name=name), folder


def claim(folder: Folder, config: Config) -> None:
    """Make the run folder, once the input has been found good."""
    if not folder.exists("config.json"):
        content = {"version": __version__, "created": time.time(), "config": config.to_dict()}
        folder.write("config.json", json.dumps(content, indent=2).encode())


def read_config(folder: Folder) -> dict[str, Any]:
    """Stored configuration of a run, as nested dicts.

    Raises:
        UserError: the folder is no run.
    """
    if not folder.exists("config.json"):
        raise UserError(f"{folder.uri} is no run folder: it has no config.json")
    return dict(json.loads(folder.read("config.json"))["config"])


def _fresh_name(config: Config) -> str:
    source = (config.data.path or "demo").rstrip("/").split("://")[-1].split("/")
    words = [w for w in source if w and not set(w) & set("*?[")] or ["data"]  # no glob
    return f"{words[-1].split('.')[0]}-{config.clusters.kind}-{time.strftime('%Y%m%d-%H%M%S')}"


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted names."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found.update(flat(value, f"{prefix}{key}."))
        else:
            found[prefix + key] = value
    return found


def differences(stored: dict[str, Any], wanted: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Options that must agree but do not: dotted name → (stored, wanted)."""
    old, new = flat(stored), flat(wanted)
    names = [k for k in sorted(old.keys() | new.keys()) if not k.startswith(_FREE)]
    return {k: (old.get(k), new.get(k)) for k in names if old.get(k) != new.get(k)}


def _check_same(stored: dict[str, Any], config: Config, name: str) -> None:
    found = differences(stored, config.to_dict())
    if found:
        text = "; ".join(
            f"{k.replace('_', '-')} was {a!r}, now {b!r}" for k, (a, b) in found.items()
        )
        raise UserError(f"--resume: run {name!r} was started with other options: {text}")


def _newest(storage: Folder, config: Config) -> str:
    best: tuple[float, str] | None = None
    for name in storage.names():
        folder = storage / name
        if not folder.exists("config.json"):
            continue
        content = json.loads(folder.read("config.json"))
        if not differences(content["config"], config.to_dict()):
            best = max(best or (0.0, ""), (content["created"], name))
    if best is None:
        raise UserError(
            f"--resume: no run in {config.storage} has this configuration; give its --name"
            f"{_runs(storage)}"
        )
    return best[1]


def _runs(storage: Folder) -> str:
    runs = [n for n in storage.names() if (storage / n).exists("config.json")]
    return f" (runs there: {', '.join(runs[-8:])})" if runs else " (there are no runs there)"


def add_faults(folder: Folder, faults: list[dict[str, Any]], name: str = "faults.jsonl") -> int:
    """Add skipped images to ``faults.jsonl``, each once; returns how many it lists."""
    lines = folder.read(name).decode().splitlines() if folder.exists(name) else []
    lines = list(dict.fromkeys(lines + [json.dumps(fault, sort_keys=True) for fault in faults]))
    if faults:
        folder.write(name, "".join(line + "\n" for line in lines).encode())
    return len(lines)
