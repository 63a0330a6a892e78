"""The run folder: its name, what it was started with, and whether it may be continued.

Layout::

    RUN/config.json                     resolved configuration
        rounds/000/assignment.parquet   id → cluster, one column a granularity
        rounds/000/clusters.json        which attributes, how good the clusters are
        rounds/000/train/               checkpoints, kept by Ray Train (of the last round)
        rounds/000/round.json           the round is done, and its last checkpoint
        metadata/                       clusters of the metadata, when round 0 has its own
        metrics.jsonl, events.*         training metrics, TensorBoard
        evaluations/                    figures of checkpoints, by step (evaluate.every)
        faults.jsonl                    images that were skipped, and why
        encoder.safetensors             the backbone, plain torchvision names
        projector.safetensors           the projector whose output is clustered
        results.json                    the evaluation; its presence means: finished
        baseline/                       the same files for SimCLR, with --compare
"""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from wcl_ray import __version__, stopping
from wcl_ray.config import Config, option_name
from wcl_ray.errors import UserError
from wcl_ray.runs.lock import RunLock
from wcl_ray.runs.stored import FILE, PLACES, C, read_stored
from wcl_ray.storage import Folder

# the file that each stage leaves; a stage is done when it is there
CLUSTERED, ROUND_DONE = "assignment.parquet", "round.json"  # in the folder of a round
ENCODER, PROJECTOR = "encoder.safetensors", "projector.safetensors"
TRAINED, EVALUATION, RESULTS = "training.json", "evaluation.json", "results.json"
BASELINE = "baseline"  # folder of SimCLR, with --compare


@contextmanager
def open_run(config: C, final: str) -> Iterator[tuple[C, Folder]]:
    """The run folder of a configuration, held by this process while the context lasts, still to
    be made (:func:`claim`) or found again.

    What is in the folder decides what is done, so that it is read while no other process can
    change it. A finished run does not change any more, and is only read. A run of an older version
    goes on as :mod:`wcl_ray.runs.stored` says. Where its images lie (``data.path``,
    ``data.eval_path``) may have changed when the run is named; whether they are the same is for
    :func:`wcl_ray.runs.moved.check_moves`.

    Args:
        final: file that is written last.

    Yields:
        The configuration with its name filled in, ``resume`` settled and the stored values that
        hold, and the folder.

    Raises:
        UserError: the name is taken and ``resume`` is off; ``resume`` finds nothing to continue or
            a run with other options; another process is at work on it.
        StorageError: the folder cannot be used.
    """
    storage = Folder(config.storage, config.data.endpoint)
    with ExitStack() as stack:
        if config.name is None and not config.resume:
            config, folder = _fresh(config, storage, stack)
        else:
            config = replace(config, name=config.name or _newest(storage, config))
            folder = storage / str(config.name)
            if not folder.exists(final):
                stack.enter_context(RunLock(folder))
        config = _settled(config, storage, folder)
        if not folder.exists(final):
            folder.check()
        yield config, folder


def _fresh(config: C, storage: Folder, stack: ExitStack) -> tuple[C, Folder]:
    """A new run under a name of its own, also beside others that start in the same second."""
    base = _fresh_name(config)
    for number in itertools.count(1):
        name = base if number == 1 else f"{base}-{number}"
        folder = storage / name
        lock = RunLock(folder)
        if lock.take():
            stack.push(lock)
            if not folder.exists(FILE):
                break
            stack.close()
    return replace(config, name=name), folder


def _settled(config: C, storage: Folder, folder: Folder) -> C:
    """The configuration with ``resume`` as the folder has it, once both agree."""
    there = folder.exists(FILE)
    if config.start_or_resume:
        config = replace(config, resume=there)
    if there and not config.resume:
        raise UserError(
            f"{folder.uri} holds a run already; add --resume to continue it, or choose another "
            "--name"
        )
    if config.resume and not there:
        raise UserError(
            f"--resume: there is no run {config.name!r} in {config.storage}{_runs(storage)}"
        )
    if not there:
        return config
    stored = read_stored(folder, type(config))
    held, other = stored.compare(config)
    _check_same(other, str(config.name))
    stopping.set_resume_hint("the same command goes on")
    return stored.held_by(config, held)


def claim(folder: Folder, config: Config, images: dict[str, Any] | None = None) -> None:
    """Make the run folder, once the input has been found good.

    Args:
        images: what tells the images from others, by side (see :mod:`wcl_ray.runs.moved`).
    """
    if not folder.exists(FILE):
        content = {"version": __version__, "created": time.time(), "images": images or {}}
        content["config"] = config.to_dict()
        folder.write(FILE, json.dumps(content, indent=2).encode())
    again = "" if config.resume or config.start_or_resume else " with --resume"
    stopping.set_resume_hint(f"the same command{again} goes on")


def _fresh_name(config: Config) -> str:
    source = (config.data.path or "demo").rstrip("/").split("://")[-1].split("/")
    words = [w for w in source if w and not set(w) & set("*?")] or ["data"]  # no glob
    text = re.sub(r"[^\w-]+", "-", words[-1].split(".")[0]).strip("-")
    word = text.encode()[:100].decode(errors="ignore") or "data"
    return f"{word}-{config.clusters.kind}-{time.strftime('%Y%m%d-%H%M%S')}"


def _check_same(found: dict[str, tuple[Any, Any]], name: str) -> None:
    text = "; ".join(
        f"{option_name(k)} was {a!r}, now {b!r}" for k, (a, b) in found.items() if k not in PLACES
    )
    if text:
        raise UserError(f"--resume: run {name!r} was started with other options: {text}")


def _newest(storage: Folder, config: Config) -> str:
    best: tuple[int, float, str] | None = None  # few values that it has to hold, then the newest
    for name in storage.names():
        folder = storage / name
        if not folder.exists(FILE):
            continue
        stored = read_stored(folder, type(config))
        held, other = stored.compare(config)
        if not other and not held.keys() & set(PLACES):
            row = (-len(held), stored.created, name)
            best = max(best or row, row)
    if best is None:
        raise UserError(
            f"--resume: no run in {config.storage} has this configuration; give its --name"
            f"{_runs(storage)}"
        )
    return best[2]


def _runs(storage: Folder) -> str:
    runs = [n for n in storage.names() if (storage / n).exists(FILE)]
    return f" (runs there: {', '.join(runs[-8:])})" if runs else " (there are no runs there)"


def add_faults(folder: Folder, faults: list[dict[str, Any]], name: str = "faults.jsonl") -> int:
    """Add skipped images to ``faults.jsonl``, each once; returns how many it lists."""
    lines = folder.read(name).decode().splitlines() if folder.exists(name) else []
    lines = list(dict.fromkeys(lines + [json.dumps(fault, sort_keys=True) for fault in faults]))
    if faults:
        folder.write(name, "".join(line + "\n" for line in lines).encode())
    return len(lines)
