"""The run folder: its layout, its name, and whether a run may be started or continued in it.

Layout::

    RUN/config.json                     resolved configuration
        rounds/000/assignment.parquet   id → cluster, one column per granularity
        rounds/000/clusters.json        attributes and quality of the clusters
        rounds/000/train/               checkpoints of Ray Train (of the last round only)
        rounds/000/round.json           the round is done; name of its last checkpoint
        rounds/001/                     with k-means: the last round of the warm-up, which trains
                                        the epochs of all of it, then those with clusters
        metadata/                       clusters of the metadata, if round 0 has its own
        metrics.jsonl, events.*         training metrics; TensorBoard
        evaluations/                    metrics of checkpoints, by step (evaluate.every)
        faults.jsonl                    skipped images, and why
        encoder.safetensors             the backbone, with torchvision's parameter names
        projector.safetensors           the projector whose output is clustered
        examples.parquet                images to look at, chosen by the evaluation
        exports/                        the encoder for other libraries (jobs/export.py)
        results.json                    the evaluation; the run is finished
        report.html                     the page of the finished run
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
from wcl_ray.runs.stored import FILE, LOCATIONS, C, read_stored
from wcl_ray.storage import Folder

# the last file that each stage writes: if it exists, the stage is done
CLUSTERED, ROUND_DONE = "assignment.parquet", "round.json"  # in the folder of a round
ENCODER, PROJECTOR = "encoder.safetensors", "projector.safetensors"
TRAINED, EVALUATION, RESULTS = "training.json", "evaluation.json", "results.json"
PAGE = "report.html"
BASELINE = "baseline"  # folder of SimCLR, with --compare


@contextmanager
def open_run(config: C, final: str) -> Iterator[tuple[C, Folder]]:
    """Find the run folder of a configuration and hold it while the context lasts; a new folder is
    created by :func:`claim`.

    The content of the folder decides which stages are done, so it is read only while no other
    process can change it. A finished run no longer changes and is not held. A run of an older
    version is continued as described in :mod:`wcl_ray.runs.stored`. A named run may have other
    locations of its images (``data.path``, ``data.eval_path``, ``data.table``);
    :func:`wcl_ray.runs.moved.check_moves` checks that the images are the same.

    Args:
        final: name of the file that is written last.

    Yields:
        The configuration with ``name``, ``resume`` and the values kept from the run filled in, its
        image size included; and the folder.

    Raises:
        UserError: the name is taken and ``resume`` is off; ``resume`` finds nothing to continue or
            a run with other options; another process holds the folder.
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
        config = _resolve(config, storage, folder)
        if not folder.exists(final):
            folder.check()
        yield config, folder


def _fresh(config: C, storage: Folder, stack: ExitStack) -> tuple[C, Folder]:
    """Hold the folder of a new run, under a name that no other run has."""
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


def _resolve(config: C, storage: Folder, folder: Folder) -> C:
    """The configuration with ``resume`` resolved and the values kept from an existing run."""
    exists = folder.exists(FILE)
    if config.start_or_resume:
        config = replace(config, resume=exists)
    if exists and not config.resume:
        raise UserError(
            f"{folder.uri} holds a run already; add --resume to continue it, or choose another "
            "--name"
        )
    if config.resume and not exists:
        raise UserError(
            f"--resume: there is no run {config.name!r} in {config.storage}{_runs(storage)}"
        )
    if not exists:
        return config
    stored = read_stored(folder, type(config))
    kept, conflicts = stored.compare(config)
    _refuse_conflicts(conflicts, str(config.name))
    stopping.set_resume_hint("the same command continues")
    return stored.apply(config, kept)


def claim(folder: Folder, config: Config, images: dict[str, Any] | None = None) -> None:
    """Create the run folder, once the input has been checked.

    Args:
        images: count and hash of the ids of each side (see :mod:`wcl_ray.runs.moved`).
    """
    if not folder.exists(FILE):
        content = {"version": __version__, "created": time.time(), "images": images or {}}
        content["config"] = config.to_dict()
        folder.write(FILE, json.dumps(content, indent=2).encode())
    again = "" if config.resume or config.start_or_resume else " with --resume"
    stopping.set_resume_hint(f"the same command{again} continues")


def _fresh_name(config: Config) -> str:
    source = (config.data.path or "demo").rstrip("/").split("://")[-1].split("/")
    words = [w for w in source if w and not set(w) & set("*?")] or ["data"]  # no glob
    text = re.sub(r"[^\w-]+", "-", words[-1].split(".")[0]).strip("-")
    word = text.encode()[:100].decode(errors="ignore") or "data"
    kind = config.clusters.kind if config.method == "cl-infonce" else config.method
    return f"{word}-{kind}-{time.strftime('%Y%m%d-%H%M%S')}"


def _refuse_conflicts(conflicts: dict[str, tuple[Any, Any]], name: str) -> None:
    text = "; ".join(
        f"{option_name(option)} was {old!r}, now {new!r}"
        for option, (old, new) in conflicts.items()
        if option not in LOCATIONS or (option == "data.table" and None in (old, new))
    )
    if text:
        raise UserError(f"--resume: run {name!r} was started with other options: {text}")


def _newest(storage: Folder, config: Config) -> str:
    best: tuple[int, float, str] | None = None  # the fewest values kept, then the newest
    for name in storage.names():
        folder = storage / name
        if not folder.exists(FILE):
            continue
        stored = read_stored(folder, type(config))
        kept, conflicts = stored.compare(config)
        if not conflicts and not kept.keys() & set(LOCATIONS):
            candidate = (-len(kept), stored.created, name)
            best = max(best or candidate, candidate)
    if best is None:
        raise UserError(
            f"--resume: no run in {config.storage} has this configuration; give its --name"
            f"{_runs(storage)}"
        )
    return best[2]


def _runs(storage: Folder) -> str:
    runs = [name for name in storage.names() if (storage / name).exists(FILE)]
    return f" (runs there: {', '.join(runs[-8:])})" if runs else " (there are no runs there)"


def add_faults(folder: Folder, faults: list[dict[str, Any]], name: str = "faults.jsonl") -> int:
    """Add skipped images to ``faults.jsonl``, without duplicates; returns their total number."""
    lines = folder.read(name).decode().splitlines() if folder.exists(name) else []
    lines = list(dict.fromkeys(lines + [json.dumps(fault, sort_keys=True) for fault in faults]))
    if faults:
        folder.write(name, "".join(line + "\n" for line in lines).encode())
    return len(lines)
