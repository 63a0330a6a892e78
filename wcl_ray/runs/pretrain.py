"""The driver of a run: sources → clusters → stream → training → evaluation, as resumable steps.

Each step leaves a file in the run folder and is skipped when the file is there; Ray Train itself
goes on from its last checkpoint. What can be wrong with the input is found before training.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from wcl_ray.clusters.assignment import Assignment
from wcl_ray.clusters.metadata import Clustering
from wcl_ray.clusters.quality import Quality
from wcl_ray.config import Config
from wcl_ray.data import sampler
from wcl_ray.data.images import Images, open_images
from wcl_ray.data.sources.base import check_paths
from wcl_ray.data.stream import Stream, plan_stream
from wcl_ray.errors import UserError
from wcl_ray.evaluate.left_out import left_out
from wcl_ray.evaluate.run import results_table
from wcl_ray.evaluate.validate import Evaluator
from wcl_ray.runs.capacity import capacity
from wcl_ray.runs.clusters import build_clusters
from wcl_ray.runs.fit import plan_scale
from wcl_ray.runs.folder import add_faults, claim, open_run
from wcl_ray.runs.moved import TRAIN, check_moves, facts_of, facts_of_tests, moves
from wcl_ray.runs.nodes import check_shared, connect
from wcl_ray.runs.preflight import check_backbone, check_labels, check_readable
from wcl_ray.runs.round_clusters import to_cluster
from wcl_ray.runs.rounds import CLUSTERED, ENCODER, TRAINED, Arm, say_batches, train_rounds
from wcl_ray.runs.summary import ResourceSummary
from wcl_ray.storage import Folder
from wcl_ray.terminal import put, say, warn
from wcl_ray.train.metrics_queue import MetricsLog

RESULTS = "results.json"
APART = 0.5  # share of images without a partner in reach above which a run warns


def pretrain(config: Config) -> dict[str, Any]:
    """Run, continue or look up a pretraining run; prints its progress.

    Returns:
        The content of ``results.json``.

    Raises:
        UserError: wrong input or options, before any training.
    """
    started = time.monotonic()
    with open_run(config, RESULTS) as (config, run):
        if run.exists(RESULTS):
            return _finished(run, config)
        check_paths(config.data)
        check_backbone(config)
        connect(config)
        check_shared(run)
        with ResourceSummary() as usage:
            found = _variants(config, run, usage)
        workers = training([run, run / "baseline"])
        used = usage.to_dict() | workers
        seconds = round(time.monotonic() - started, 1)
        results = {"variants": found, "seconds": seconds, "usage": used}
        run.write(RESULTS, json.dumps(results, indent=2).encode())
    put(f"\n{results_table(found)}\n")
    usage.report(workers)
    say("run", f"{run.uri} ({seconds:.0f} s)")
    return results


def _finished(run: Folder, config: Config) -> dict[str, Any]:
    for name, (old, new) in moves(run, config).items():
        warn(f"{name.replace('_', '-')} was {old}; {new} is not looked at")
    stored: dict[str, Any] = json.loads(run.read(RESULTS))
    put(f"{run.uri} is finished\n\n{results_table(stored['variants'])}")
    return stored


def _variants(config: Config, run: Folder, usage: ResourceSummary) -> dict[str, dict[str, Any]]:
    """Clusters, stream, and the training and evaluation of each kind of clusters."""
    with usage.stage("clusters"):
        images = open_images(config.data, config.storage, config.seed)
        say("images", images.train.describe())
        faults = _check_test_images(config, images, run)
        assignment = _clusters(config, images, run)
        if faults:
            add_faults(run, faults)
    with usage.stage("stream"):
        stream = _stream(config, images, assignment, run)
    variants: dict[str, tuple[Config, Folder, Assignment]] = {
        config.clusters.kind: (config, run, assignment)
    }
    if config.compare and config.clusters.kind != "instance":
        single = replace(config.clusters, kind="instance", from_=None, missing="singleton")
        baseline = replace(config, clusters=single, train=replace(config.train, rounds=0))
        variants["instance"] = (baseline, run / "baseline", singletons(assignment))
    found: dict[str, dict[str, Any]] = {}
    for name, (one, folder, clusters) in variants.items():
        title = "SimCLR" if name == "instance" else name
        found[title] = _variant(one, folder, images, stream, clusters, title, usage)
    return found


def _check_test_images(config: Config, images: Images, run: Folder) -> list[dict[str, str]]:
    """Look at the test images before the training; returns those that cannot be read."""
    if images.label is None or run.exists(ENCODER):
        return []
    found = check_labels(images)
    for text in left_out(found):
        warn(text)
    tried, faults = check_readable(config, images, found["test_images"])
    if faults:
        what = f"{len(faults):,} of {tried:,} test images that were tried cannot be read"
        say("faults", f"{what}, see {run.uri}/faults.jsonl")
    return faults


def training(runs: list[Folder]) -> dict[str, Any]:
    """What the training workers of runs said, over all epochs and starts: speed, share of the time
    they waited for data, restarts."""
    epochs: dict[tuple[str, int], dict[str, Any]] = {}  # the figures of a row are since its start
    for folder in runs:
        rows = [row for row in MetricsLog(folder).rows if "images_per_second" in row]
        epochs |= {(folder.uri, row["epoch"]): row for row in rows}
    if not epochs:
        return {}
    seconds = {key: 1 / max(row["images_per_second"], 1e-9) for key, row in epochs.items()}
    whole = sum(seconds.values())
    restarts: dict[str, int] = {}
    for (uri, _), row in epochs.items():
        restarts[uri] = max(restarts.get(uri, 0), row.get("restarts", 0))
    return {
        "images_per_second": len(epochs) / whole,
        "data_wait": sum(seconds[key] * row["data_wait"] for key, row in epochs.items()) / whole,
        "restarts": sum(restarts.values()),
    }


def singletons(assignment: Assignment) -> Assignment:
    """The same images, each in a cluster of its own."""
    clusters = np.full((len(assignment.ids), 1), -1, dtype=np.int32)
    return Assignment(assignment.ids, clusters, ("instance",), assignment.keys)


def _clusters(config: Config, images: Images, run: Folder) -> Assignment:
    """Stage 1, or its result from the run folder; claims the run's name once the input is good."""
    folder = run / "rounds/000"
    if config.clusters.from_features and not config.train.warmup_rounds:
        folder = run / "metadata"  # the first round has clusters of its own
    if folder.exists(CLUSTERED):
        assignment = Assignment.from_parquet(folder.read(CLUSTERED))
        say("clusters", f"{', '.join(assignment.names)}, as before")
        check_moves(run, config, images, facts_of(assignment.ids))
        return assignment
    clustering, quality = build_clusters(config, images)
    count = len(clustering.assignment.ids)
    if count < config.train.batch_size:
        raise UserError(
            f"there are {count} training images, fewer than train.batch-size "
            f"{config.train.batch_size}; lower it"
        )
    if config.clusters.from_features:  # too large a k is found at once
        wanted, ks = to_cluster(config, clustering.assignment)
        if not ks:
            warn(f"clusters.missing: {wanted.sum()} images have no metadata, too few for k-means")
    if run.exists("config.json") and not config.resume:  # by a job that took this one for lost
        raise UserError(f"{run.uri} holds a run already; choose another --name")
    if run.exists("config.json"):  # it was stopped right after that
        check_moves(run, config, images, facts_of(clustering.assignment.ids))
    claim(run, config, {TRAIN: facts_of(clustering.assignment.ids)} | facts_of_tests(images))
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
    column = say_batches(config, assignment)
    rows = images.train.images()
    grows = capacity(config.scale).grows
    clusters = assignment.clusters[:, column]
    stream = plan_stream(rows, assignment.ids, config.data, clusters, grows)
    say("stream", stream.reason)
    if stream.mode == "streaming" and config.clusters.samples_per_cluster > 1:
        _warn_apart(config, clusters)
    if stream.faults:
        listed = add_faults(run, list(stream.faults))
        say("faults", f"{listed} unreadable images are left out, see {run.uri}/faults.jsonl")
    if stream.rows < config.train.batch_size:
        raise UserError(
            f"only {stream.rows} of {len(assignment.ids)} training images were found and can be "
            f"read, fewer than train.batch-size {config.train.batch_size}"
        )
    return stream


def _warn_apart(config: Config, clusters: np.ndarray) -> None:
    """Say so when clusters are too small for images read in the order of their files."""
    workers = plan_scale(config, streamed=True).most
    window = sampler.window_of(config.train.batch_size // workers)
    share = sampler.apart(clusters, window)
    if share > APART:
        warn(
            f"images that are read anew are composed among {window:,} at a time; {share:.0%} of "
            "those with a partner will meet none there, unless the files are sorted by cluster: "
            "make the clusters coarser, or let the images be kept (data.keep; more memory, smaller "
            "data.image-size)"
        )


def _variant(
    config: Config,
    run: Folder,
    images: Images,
    stream: Stream,
    assignment: Assignment,
    title: str,
    usage: ResourceSummary,
) -> dict[str, Any]:
    """Train, export and evaluate one kind of clusters; what is done already is not done again."""
    if run.exists("evaluation.json"):
        return dict(json.loads(run.read("evaluation.json")))
    scale = plan_scale(config, streamed=stream.mode == "streaming")
    evaluator = Evaluator(images, (len(assignment.ids), images.test_count() if images.label else 0))
    arm = Arm(config, run, images, stream, assignment, evaluator, title, scale)
    with usage.stage("train"):
        assignment = train_rounds(arm)
    say("evaluate", f"{title}: kNN and linear probe" if images.label else f"{title}: no label")
    with usage.stage("evaluate"):
        figures = evaluator.measure(run.read(ENCODER), config, scale.gpu)
    for text in left_out(figures):
        warn(text)
    last = config.train.epochs - 1
    rows = [row for row in MetricsLog(run).rows if row.get("epoch") == last and "loss" in row]
    if rows:
        figures |= {
            key: float(np.mean([r[key] for r in rows]))
            for key in ("positives", "anchors_without_positive")
        }
        figures |= {"images_per_second": rows[-1]["images_per_second"]}
    figures["train_seconds"] = json.loads(run.read(TRAINED))["seconds"]
    figures["clusters"] = int(assignment.clusters[:, 0].max(initial=-1)) + 1
    run.write("evaluation.json", json.dumps(figures, indent=2).encode())
    return figures
