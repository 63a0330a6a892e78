"""Rounds of clustering (E step) and training (M step): a loop of resumable stages.

A round writes ``assignment.parquet``, ``clusters.json``, checkpoints and, when it is done,
``round.json`` with the name of its last checkpoint, from which the next round continues. Clusters
of metadata do not change between rounds, so there is only one. The warm-up does not cluster either,
so its rounds are trained as one, in the folder of the last.
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

from wcl_ray.clusters.assignment import Assignment
from wcl_ray.clusters.similarity import MetadataBits
from wcl_ray.config import Config
from wcl_ray.data.images import Images
from wcl_ray.data.stream import Stream
from wcl_ray.evaluate.validate import Evaluator, validation_config
from wcl_ray.model.encoder import save_projector
from wcl_ray.runs.batches import deal_images, say_batches, say_partners
from wcl_ray.runs.capacity import Scale
from wcl_ray.runs.clusters import read_labels
from wcl_ray.runs.fit import fit
from wcl_ray.runs.folder import CLUSTERED, ENCODER, PROJECTOR, ROUND_DONE, TRAINED
from wcl_ray.runs.initial import Start
from wcl_ray.runs.levels import check_levels
from wcl_ray.runs.round_clusters import RoundResult, round_clusters
from wcl_ray.runs.shared import Shared
from wcl_ray.storage import Folder
from wcl_ray.terminal import say
from wcl_ray.train.checkpoint import trained_encoder
from wcl_ray.train.metrics_queue import start_metrics_queue
from wcl_ray.train.trackers import Row, Trackers
from wcl_ray.train.worker import Task


@dataclass(frozen=True)
class Arm:
    """A training on one kind of clusters: the run itself, its SimCLR baseline, or a trial.

    Attributes:
        run: folder of the arm.
        base: clusters of the metadata, or every image a singleton.
        evaluator: measures its encoders.
        start: how its encoder begins.
        title: shown to the user.
        similarity: metadata for graded positives or the method; None: training uses none.
        on_evaluation: called in a thread with the row of every evaluation during training.
        shared: objects shared with the other trials of a search.
        known_labels: int32 (N,), labels of the images in ``base`` if they have been read already.
    """

    config: Config
    run: Folder
    images: Images
    stream: Stream
    base: Assignment
    evaluator: Evaluator
    start: Start
    title: str
    scale: Scale
    similarity: MetadataBits | None = None
    on_evaluation: Callable[[Row], None] | None = None
    shared: Shared | None = None
    known_labels: np.ndarray | None = None

    @functools.cached_property
    def labels(self) -> np.ndarray | None:
        """int32 (N,), labels of the images in ``base``, -1 = missing; None if there are none."""
        if self.known_labels is not None:
            return self.known_labels
        return read_labels(self.config, self.images, self.base.ids)

    def folder(self, r: int) -> Folder:
        """Folder of round r."""
        return self.run / f"rounds/{r:03d}"

    def first_epoch(self, r: int) -> int:
        """First epoch of round r; for r = ``rounds`` the number of epochs."""
        return self.config.train.epochs * r // self.config.rounds

    def clustered(self, r: int) -> bool:
        """Whether round r clusters features; other rounds train on ``base``."""
        return self.config.clusters.from_features and r >= self.config.warmup_rounds

    @property
    def first_round(self) -> int:
        """The first round that is trained: the last of the warm-up, with the epochs of all of it.
        Runs of older versions trained each round on its own, and go on so."""
        first = self.folder(0)
        if not self.config.clusters.from_features or first.exists(ROUND_DONE):
            return 0
        return 0 if (first / "train").names() else max(0, self.config.warmup_rounds - 1)


def train_rounds(arm: Arm) -> Assignment:
    """Train all rounds of an arm and export its encoder; skips finished stages.

    Returns:
        The clusters of the last round.
    """
    rounds = arm.config.rounds
    if arm.run.exists(ENCODER):
        return cluster_round(arm, rounds - 1, None)
    size = arm.config.train.micro_batch_size
    parts = f", in micro-batches of up to {size} images" if size else ""
    say("train", f"{arm.title}: {arm.config.train.epochs} epochs on {arm.scale.describe()}{parts}")
    last: RoundResult | None = None
    seconds = 0.0
    for r in range(arm.first_round, rounds):
        assignment = cluster_round(arm, r, last)
        last = train_round(arm, r, assignment, last)
        seconds += last.seconds
        if r:
            (arm.folder(r - 1) / "train").remove()  # this round has checkpoints of its own
    assert last is not None
    export_encoder(arm, last, seconds)
    return assignment


def cluster_round(arm: Arm, r: int, last: RoundResult | None) -> Assignment:
    """The E step: k-means of the features of the last round's encoder; ``base`` if the round does
    not cluster features."""
    if not arm.clustered(r):
        return arm.base
    config, folder = arm.config, arm.folder(r)
    if folder.exists(CLUSTERED):
        return Assignment.read(folder)
    say("features", f"round {r + 1} of {config.rounds}: {config.clusters.features}")
    started = time.monotonic()
    assignment, figures = round_clusters(
        config, arm.stream, arm.base, arm.labels, folder, last, arm.start, arm.scale, arm.shared
    )
    check_levels(config.loss, assignment)
    figures["cluster_seconds"] = round(time.monotonic() - started, 1)
    _log_clusters(arm, r, figures)
    folder.write(CLUSTERED, assignment.to_parquet())  # last: the stage is done
    return assignment


def _log_clusters(arm: Arm, r: int, figures: dict[str, float]) -> None:
    """Add the figures of a round's clusters to the metrics, once."""
    log = Trackers(arm.run, arm.config.train.trackers)
    rows = log.file.rows
    last = next((row for row in reversed(rows) if "images" in row), {"step": 0, "images": 0})
    row = {"round": r, "epoch": arm.first_epoch(r), "step": last["step"]}
    row |= {"images": last["images"], **figures}
    if not any(old.get("round") == r for old in rows):  # written before the driver was killed
        log.log(row)
    log.close()


def train_round(arm: Arm, r: int, assignment: Assignment, last: RoundResult | None) -> RoundResult:
    """The M step: train on the clusters of a round to its last epoch."""
    config, run, folder = arm.config, arm.run, arm.folder(r)
    if not folder.exists(ROUND_DONE):
        task = Task(
            config=config,
            encoder=arm.start.encoder,
            stream=stream_round(arm, r, assignment),
            clusters=ray.put(assignment.clusters),
            images=len(assignment.ids),
            fingerprint=fingerprint(assignment),
            queue=start_metrics_queue(),
            audit=run / "audit" if config.train.audit else None,
            until=arm.first_epoch(r + 1),
            run=Folder(config.storage, config.data.endpoint) / str(config.name),
            start=last.checkpoint if last else None,
            weights=None if last or arm.start.weights is None else ray.put(arm.start.weights),
            similarity=None if arm.similarity is None else ray.put(arm.similarity),
        )
        title = arm.title
        if config.rounds > 1:
            title += f", round {r + 1} of {config.rounds}" if arm.clustered(r) else ", warm-up"
        validation = validation_config(arm.evaluator, task.queue, run)
        started = time.monotonic()
        checkpoint = fit(task, arm.scale, run, folder, title, validation, arm.on_evaluation)
        name = checkpoint.path.rstrip("/").rpartition("/")[2]
        row = {"checkpoint": name, "seconds": round(time.monotonic() - started, 1)}
        folder.write(ROUND_DONE, json.dumps(row).encode())
    row, train = json.loads(folder.read(ROUND_DONE)), folder / "train"
    checkpoint = ray.train.Checkpoint(train.file(row["checkpoint"]), train.fs)
    return RoundResult(checkpoint, assignment, row["seconds"])


def stream_round(arm: Arm, r: int, assignment: Assignment) -> Stream:
    """The stream of a round: blocks on several nodes are dealt again by new clusters."""
    if not arm.clustered(r):
        return arm.stream
    column = say_batches(assignment, arm.config.clusters.samples_per_cluster)
    if arm.stream.mode == "streaming" and arm.config.clusters.samples_per_cluster > 1:
        batch = arm.config.train.batch_size // arm.scale.max_workers
        say_partners(arm.images, assignment, column, batch)
    if arm.stream.shared:
        return arm.stream
    return deal_images(arm.images, assignment, column, arm.config.data, arm.config.scale)


def export_encoder(arm: Arm, last: RoundResult, seconds: float) -> None:
    """Write the encoder and the projector of the last checkpoint, and the training time."""
    spec, run = arm.start.encoder, arm.run
    encoder = trained_encoder(spec, last.checkpoint)
    run.write(TRAINED, json.dumps({"seconds": round(seconds, 1)}).encode())
    if len(encoder.projectors):
        run.write(PROJECTOR, save_projector(encoder, arm.config.feature_head))
    run.write(ENCODER, spec.export(encoder))  # last: the stage is done


def fingerprint(assignment: Assignment) -> str:
    """Hash of ids and clusters: a checkpoint fits only the assignment it was trained with."""
    digest = hashlib.sha256(assignment.ids.tobytes())
    digest.update(np.ascontiguousarray(assignment.clusters).tobytes())
    return digest.hexdigest()[:16]
