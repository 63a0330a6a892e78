"""Rounds of clustering (E step) and training (M step); each is a resumable step of a run.

A round leaves ``assignment.parquet``, ``clusters.json``, its checkpoints and, when it is done,
``round.json`` with the name of its last checkpoint, from which the next round goes on. Clusters of
metadata do not change, so they make one round.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import ray

from wcl_ray.clusters.assignment import FILE, Assignment
from wcl_ray.config import Config
from wcl_ray.data import sampler
from wcl_ray.data.images import Images
from wcl_ray.data.stream import Stream, plan_stream
from wcl_ray.evaluate.validate import Evaluator, validation_config
from wcl_ray.model.encoder import build_encoder, save_export, save_projector
from wcl_ray.runs.capacity import capacity
from wcl_ray.runs.clusters import read_labels
from wcl_ray.runs.fit import Scale, fit
from wcl_ray.runs.round_clusters import Previous, round_clusters
from wcl_ray.runs.shared import Shared
from wcl_ray.storage import Folder
from wcl_ray.terminal import say
from wcl_ray.train.checkpoint import load_model
from wcl_ray.train.metrics_queue import MetricsLog, Row, start_metrics_queue
from wcl_ray.train.worker import Task

CLUSTERED, DONE, TRAINED = FILE, "round.json", "training.json"
ENCODER, PROJECTOR = "encoder.safetensors", "projector.safetensors"


@dataclass(frozen=True)
class Arm:
    """One kind of clusters to train on.

    Attributes:
        run: folder of the arm.
        base: clusters of the metadata, or every image a singleton.
        look: how its encoders are measured.
        title: for people.
        on_evaluation: called in a thread with every evaluation during training.
        shared: with the other trials of a search.
        known_labels: int32 (N,), labels of the images in ``base`` where they were read before.
    """

    config: Config
    run: Folder
    images: Images
    stream: Stream
    base: Assignment
    evaluator: Evaluator
    title: str
    scale: Scale
    on_evaluation: Callable[[Row], None] | None = None
    shared: Shared | None = None
    known_labels: np.ndarray | None = None

    @functools.cached_property
    def labels(self) -> np.ndarray | None:
        """int32 (N,), labels of the images in ``base``, -1 = missing; None without any."""
        if self.known_labels is not None:
            return self.known_labels
        return read_labels(self.config, self.images, self.base.ids)

    def folder(self, r: int) -> Folder:
        return self.run / f"rounds/{r:03d}"

    def first_epoch(self, r: int) -> int:
        """Epoch with which round r begins; that of round ``rounds`` is the end."""
        return self.config.train.epochs * r // self.config.rounds

    def clustered(self, r: int) -> bool:
        """Whether round r clusters features; the others train on ``base``."""
        return self.config.clusters.from_features and r >= self.config.train.warmup_rounds


def train_rounds(arm: Arm) -> Assignment:
    """All rounds of an arm and the export of its encoder; finished steps are not done again.

    Returns:
        The clusters of the last round.
    """
    config, run = arm.config, arm.run
    if run.exists(ENCODER):
        return _assignment(arm, config.rounds - 1, None)
    say("train", f"{arm.title}: {config.train.epochs} epochs on {arm.scale.describe()}")
    previous: Previous | None = None
    seconds = 0.0
    for r in range(config.rounds):
        folder = arm.folder(r)
        assignment = _assignment(arm, r, previous)
        if not folder.exists(DONE):
            _train_round(arm, r, assignment, previous)
        row = json.loads(folder.read(DONE))
        seconds += row["seconds"]
        train = folder / "train"
        checkpoint = ray.train.Checkpoint(train.file(row["checkpoint"]), train.fs)
        previous = Previous(checkpoint, assignment)
        if r:
            (arm.folder(r - 1) / "train").remove()  # this round's checkpoints go on
    encoder = build_encoder(config.model, config.data.image_size, config.loss.dual)
    with checkpoint.as_directory() as path:
        load_model(path, encoder)
    run.write(TRAINED, json.dumps({"seconds": round(seconds, 1)}).encode())
    run.write(PROJECTOR, save_projector(encoder, config.loss.feature_head))
    run.write(ENCODER, save_export(encoder, config.model, config.data.image_size))
    return assignment


def _train_round(arm: Arm, r: int, assignment: Assignment, previous: Previous | None) -> None:
    """The M step: train on the clusters of a round until its last epoch."""
    config, run, rounds = arm.config, arm.run, arm.config.rounds
    title = arm.title if rounds == 1 else f"{arm.title}, round {r + 1} of {rounds}"
    task = Task(
        config=config,
        stream=_placed(arm, r, assignment),
        clusters=ray.put(assignment.clusters),
        images=len(assignment.ids),
        fingerprint=fingerprint(assignment),
        queue=start_metrics_queue(),
        audit=run / "audit" if config.train.audit else None,
        until=arm.first_epoch(r + 1),
        run=Folder(config.storage, config.data.endpoint) / str(config.name),
        start=previous.checkpoint if previous else None,
    )
    started = time.monotonic()
    validation = validation_config(config, arm.evaluator, task.queue, run)
    checkpoint = fit(task, arm.scale, run, arm.folder(r), title, validation, arm.on_evaluation)
    row = {
        "checkpoint": checkpoint.path.rstrip("/").rpartition("/")[2],
        "seconds": round(time.monotonic() - started, 1),
    }
    arm.folder(r).write(DONE, json.dumps(row).encode())


def _assignment(arm: Arm, r: int, previous: Previous | None) -> Assignment:
    """The E step: k-means of what the round before learned, where the clusters hang on it."""
    if not arm.clustered(r):
        return arm.base
    config, folder = arm.config, arm.folder(r)
    if folder.exists(CLUSTERED):
        return Assignment.from_parquet(folder.read(CLUSTERED))
    say("features", f"round {r + 1} of {config.rounds}: {config.clusters.features}")
    started = time.monotonic()
    assignment, figures = round_clusters(
        config, arm.stream, arm.base, arm.labels, folder, previous, arm.scale, arm.shared
    )
    log = MetricsLog(arm.run)
    last = next((row for row in reversed(log.rows) if "images" in row), {"step": 0, "images": 0})
    row = {"round": r, "epoch": arm.first_epoch(r), "step": last["step"]}
    row |= {"images": last["images"]}
    if not any(old.get("round") == r for old in log.rows):  # left by a driver that was killed here
        log.add({**row, **figures, "cluster_seconds": round(time.monotonic() - started, 1)})
    log.close()
    folder.write(CLUSTERED, assignment.to_parquet())  # last: the step is done
    return assignment


def _placed(arm: Arm, r: int, assignment: Assignment) -> Stream:
    """The kept blocks; dealt anew where they lie on several nodes and the clusters are new."""
    if not arm.clustered(r):
        return arm.stream
    column = say_batches(arm.config, assignment)
    if arm.stream.shared:
        return arm.stream
    rows, data = arm.images.train.images(), arm.config.data
    grows = capacity(arm.config.scale).grows
    return plan_stream(rows, assignment.ids, data, assignment.clusters[:, column], grows)


def say_batches(config: Config, assignment: Assignment) -> int:
    """Print by which granularity batches are composed; returns its column."""
    column, reason = sampler.composing_column(assignment.clusters)
    if config.clusters.samples_per_cluster > 1 and (assignment.clusters >= 0).any():
        name = assignment.names[column]
        say("batches", f"groups of {config.clusters.samples_per_cluster} from {name}: {reason}")
    return column


def fingerprint(assignment: Assignment) -> str:
    """Hash of ids and clusters: a checkpoint fits only the assignment it was trained with."""
    digest = hashlib.sha256(assignment.ids.tobytes())
    digest.update(np.ascontiguousarray(assignment.clusters).tobytes())
    return digest.hexdigest()[:16]
