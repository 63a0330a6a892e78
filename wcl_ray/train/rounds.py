"""The driver of a run: sources → clusters → stream → training → evaluation, as resumable steps.

Each step leaves a file in the run folder and is skipped when the file is there; Ray Train itself
goes on from its last checkpoint. What can be wrong with the input is found before training.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import ray

from wcl_ray.clusters.assignment import Assignment
from wcl_ray.clusters.metadata import Clustering
from wcl_ray.clusters.quality import Quality
from wcl_ray.config import Config
from wcl_ray.data import compose
from wcl_ray.data.stream import Stream, plan_stream
from wcl_ray.errors import UserError
from wcl_ray.evaluate.run import evaluate_encoder, results_table, subset
from wcl_ray.model.encoder import build_encoder, save_export, save_projector
from wcl_ray.storage import Folder
from wcl_ray.train.board import MetricsLog, start_board
from wcl_ray.train.checkpoint import load_model
from wcl_ray.train.fit import connect, fit, plan_scale
from wcl_ray.train.folder import add_faults, claim, find_run
from wcl_ray.train.images import Images, build_clusters, open_images
from wcl_ray.train.round_clusters import Previous, round_clusters
from wcl_ray.train.validate import validation_config
from wcl_ray.train.worker import Task

CLUSTERED, DONE = "assignment.parquet", "round.json"
ENCODER, PROJECTOR = "encoder.safetensors", "projector.safetensors"


def pretrain(config: Config) -> dict[str, Any]:
    """Run, continue or look up a pretraining run; prints its progress.

    Returns:
        The content of ``results.json``.

    Raises:
        UserError: wrong input or options, before any training.
    """
    started = time.monotonic()
    config, run = find_run(config)
    if run.exists("results.json"):
        stored: dict[str, Any] = json.loads(run.read("results.json"))
        print(f"{run.uri} is finished\n\n{results_table(stored['variants'])}")
        return stored
    build_encoder(config.model, config.data.image_size)  # a wrong name is found at once
    connect(config)
    images = open_images(config.data, config.storage, config.seed)
    say("images", images.train.describe())
    assignment = _clusters(config, images, run)
    stream = _stream(config, images, assignment, run)
    variants: dict[str, tuple[Config, Folder, Assignment]] = {
        config.clusters.kind: (config, run, assignment)
    }
    if config.compare and config.clusters.kind != "instance":
        single = replace(config.clusters, kind="instance", missing="alone")
        baseline = replace(config, clusters=single, train=replace(config.train, rounds=0))
        variants["instance"] = (baseline, run / "baseline", alone(assignment))
    found: dict[str, dict[str, Any]] = {}
    for name, (one, folder, clusters) in variants.items():
        title = "SimCLR" if name == "instance" else name
        found[title] = _variant(one, folder, images, stream, clusters, title)
    results = {"variants": found, "seconds": round(time.monotonic() - started, 1)}
    run.write("results.json", json.dumps(results, indent=2).encode())
    print(f"\n{results_table(found)}\n")
    say("run", f"{run.uri} ({results['seconds']:.0f} s)")
    return results


def cluster(config: Config, out: str | None) -> list[Quality]:
    """Stage 1 alone: print the quality of the clusters, and write the table where asked."""
    connect(config)
    images = open_images(config.data, config.storage, config.seed)
    say("images", images.train.describe())
    clustering, quality = build_clusters(config, images)
    if out is not None:
        folder, _, name = out.rpartition("/")
        Folder(folder or ".", config.data.endpoint).write(name, clustering.assignment.to_parquet())
        say("clusters", f"{len(clustering.assignment.ids):,} rows in {out}")
    return quality


def alone(assignment: Assignment) -> Assignment:
    """The same images, each in a cluster of its own."""
    clusters = np.full((len(assignment.ids), 1), -1, dtype=np.int32)
    return Assignment(assignment.ids, clusters, ("instance",), assignment.keys)


def _clusters(config: Config, images: Images, run: Folder) -> Assignment:
    """Stage 1, or its result from the run folder; claims the run's name once the input is good."""
    folder = round_folder(run, 0)
    if folder.exists(CLUSTERED):
        assignment = Assignment.from_parquet(folder.read(CLUSTERED))
        say("clusters", f"{', '.join(assignment.names)}, as before")
        return assignment
    clustering, quality = build_clusters(config, images)
    count = len(clustering.assignment.ids)
    if count < config.train.batch_size:
        raise UserError(
            f"there are {count} training images, fewer than train.batch-size "
            f"{config.train.batch_size}; lower it"
        )
    claim(run, config)
    folder.write("clusters.json", json.dumps(_facts(clustering, quality), indent=2).encode())
    folder.write(CLUSTERED, clustering.assignment.to_parquet())
    return clustering.assignment


def _facts(clustering: Clustering, quality: list[Quality]) -> dict[str, Any]:
    return {
        "quality": [q.to_dict() for q in quality],
        "attributes": [asdict(a) for a in clustering.chosen],
        "skipped": clustering.skipped,
        "notes": list(clustering.notes),
    }


def _stream(config: Config, images: Images, assignment: Assignment, run: Folder) -> Stream:
    column, reason = compose.composing_column(assignment.clusters)
    rows = images.train.images()
    stream = plan_stream(rows, assignment.ids, config.data, assignment.clusters[:, column])
    say("stream", stream.reason)
    if config.clusters.group > 1 and (assignment.clusters >= 0).any():
        name = assignment.names[column]
        say("batches", f"groups of {config.clusters.group} from {name}: {reason}")
    if stream.faults:
        listed = add_faults(run, list(stream.faults))
        say("faults", f"{listed} unreadable images are left out, see {run.uri}/faults.jsonl")
    if stream.rows < config.train.batch_size:
        raise UserError(
            f"only {stream.rows} of {len(assignment.ids)} training images were found and can be "
            f"read, fewer than train.batch-size {config.train.batch_size}"
        )
    return stream


def fingerprint(assignment: Assignment) -> str:
    """Hash of ids and clusters: a checkpoint fits only the assignment it was trained with."""
    digest = hashlib.sha256(assignment.ids.tobytes())
    digest.update(np.ascontiguousarray(assignment.clusters).tobytes())
    return digest.hexdigest()[:16]


def _variant(
    config: Config, run: Folder, images: Images, stream: Stream, assignment: Assignment, title: str
) -> dict[str, Any]:
    """Train, export and evaluate one kind of clusters; what is done already is not done again."""
    if run.exists("evaluation.json"):
        return dict(json.loads(run.read("evaluation.json")))
    scale = plan_scale(config, streamed=stream.mode == "anew")
    counts = (len(assignment.ids), _count(images) if images.label else 0)
    if not run.exists(ENCODER):
        assignment = _train(config, run, images, stream, assignment, counts, title)
    elif config.clusters.from_features:
        last_round = round_folder(run, config.rounds - 1)
        assignment = Assignment.from_parquet(last_round.read(CLUSTERED))
    say("evaluate", f"{title}: kNN and linear probe" if images.label else f"{title}: no label")
    most, test = config.evaluate.max_images, images.test_images()
    figures = evaluate_encoder(
        run.read(ENCODER),
        subset(images.train_images(), most, counts[0], config.seed),
        None if test is None else subset(test, most, counts[1], config.seed),
        label=images.label,
        store_size=config.data.stored_size,
        config=config.evaluate,
        seed=config.seed,
        gpu=scale.gpu,
    )
    last = config.train.epochs - 1
    rows = [row for row in MetricsLog(run).rows if row.get("epoch") == last and "loss" in row]
    if rows:
        figures |= {key: float(np.mean([r[key] for r in rows])) for key in ("positives", "lonely")}
        figures |= {"images_per_second": rows[-1]["images_per_second"]}
    figures["train_seconds"] = json.loads(run.read("training.json"))["seconds"]
    figures["clusters"] = int(assignment.clusters[:, 0].max(initial=-1)) + 1
    run.write("evaluation.json", json.dumps(figures, indent=2).encode())
    return figures


def _count(images: Images) -> int:
    source = images.test or images.train
    return int(images.side(source.metadata(), training=False).count())


def _train(
    config: Config,
    run: Folder,
    images: Images,
    stream: Stream,
    base: Assignment,
    counts: tuple[int, int],
    title: str,
) -> Assignment:
    """All rounds of a variant and its export; finished rounds are not done again.

    Returns:
        The clusters of the last round.
    """
    scale = plan_scale(config, streamed=stream.mode == "anew")
    say("train", f"{title}: {config.train.epochs} epochs on {scale.describe()}")
    previous, rounds, seconds = Previous(None, None), config.rounds, 0.0
    for r in range(rounds):
        folder = round_folder(run, r)
        assignment = _round_assignment(config, images, stream, base, run, r, previous, scale.gpu)
        done = folder.exists(DONE)
        if not done:
            until = config.train.epochs * (r + 1) // rounds
            name = title if rounds == 1 else f"{title}, round {r + 1} of {rounds}"
            task = Task(
                config=config,
                stream=_placed(config, images, stream, assignment, r),
                clusters=ray.put(assignment.clusters),
                images=len(assignment.ids),
                fingerprint=fingerprint(assignment),
                board=start_board(),
                audit=run / "audit" if config.train.audit else None,
                until=until,
                start=previous.checkpoint,
            )
            started = time.monotonic()
            validation = validation_config(config, images, counts, task.board)
            checkpoint = fit(task, scale, run, folder, name, validation)
            row = {"checkpoint": checkpoint.path.rstrip("/").rpartition("/")[2]}
            row |= {"seconds": round(time.monotonic() - started, 1)}
            folder.write(DONE, json.dumps(row).encode())
        row = json.loads(folder.read(DONE))
        seconds += row["seconds"]
        train = folder / "train"
        checkpoint = ray.train.Checkpoint(train.file(row["checkpoint"]), train.fs)
        if r and (round_folder(run, r - 1) / "train").names():
            train.fs.delete_dir((round_folder(run, r - 1) / "train").path)  # this round's go on
        previous = Previous(checkpoint, assignment)
    encoder = build_encoder(config.model, config.data.image_size, config.loss.dual)
    with checkpoint.as_directory() as path:
        load_model(path, encoder)
    run.write("training.json", json.dumps({"seconds": round(seconds, 1)}).encode())
    run.write(PROJECTOR, save_projector(encoder, 1 if config.loss.dual else 0))
    run.write(ENCODER, save_export(encoder, config.model, config.data.image_size))
    return assignment


def _round_assignment(
    config: Config,
    images: Images,
    stream: Stream,
    base: Assignment,
    run: Folder,
    r: int,
    previous: Previous,
    gpu: bool,
) -> Assignment:
    """The clusters of a round: those of the metadata, or k-means after the warm-up."""
    if not config.clusters.from_features or r < config.train.warmup_rounds:
        return base
    folder = round_folder(run, r)
    if folder.exists(CLUSTERED):
        return Assignment.from_parquet(folder.read(CLUSTERED))
    say("features", f"round {r + 1} of {config.rounds}: {config.clusters.features}")
    started = time.monotonic()
    assignment, figures = round_clusters(config, images, stream, base, folder, previous, gpu)
    log = MetricsLog(run)
    seen = log.rows[-1]["images"] if log.rows else 0
    position = {"round": r, "epoch": config.train.epochs * r // config.rounds, "images": seen}
    log.add({**position, **figures, "seconds": round(time.monotonic() - started, 1)})
    log.close()
    return assignment


def _placed(
    config: Config, images: Images, stream: Stream, assignment: Assignment, r: int
) -> Stream:
    """The kept blocks; dealt anew where they lie on several nodes and the clusters are new."""
    if r < max(1, config.train.warmup_rounds) or not config.clusters.from_features:
        return stream
    column, reason = compose.composing_column(assignment.clusters)
    if config.clusters.group > 1:
        name = assignment.names[column]
        say("batches", f"groups of {config.clusters.group} from {name}: {reason}")
    if stream.shared:
        return stream
    rows = images.train.images()
    return plan_stream(rows, assignment.ids, config.data, assignment.clusters[:, column])


def round_folder(run: Folder, r: int) -> Folder:
    """``rounds/000`` …"""
    return run / f"rounds/{r:03d}"


def say(what: str, text: str) -> None:
    """One line of the run's story."""
    print(f"{what:<10}{text}", flush=True)
