"""A pretraining run from top to bottom: open → cluster → stream → train → evaluate → write.

Each stage is one function that writes a file to the run folder, and is skipped if that file exists;
training continues from its last checkpoint. Wrong input is an error before training.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from wcl_ray.clusters.assignment import Assignment
from wcl_ray.clusters.similarity import FILE as SIMILARITY
from wcl_ray.clusters.similarity import MetadataBits
from wcl_ray.config import Config, DataConfig
from wcl_ray.data.images import Images
from wcl_ray.data.sources.base import check_paths
from wcl_ray.data.stream import Stream
from wcl_ray.evaluate.choice import ExampleChoice
from wcl_ray.evaluate.examples import EXAMPLES, Examples
from wcl_ray.evaluate.examples import FILE as EXAMPLES_FILE
from wcl_ray.evaluate.left_out import left_out
from wcl_ray.evaluate.run import results_table
from wcl_ray.evaluate.validate import Evaluator
from wcl_ray.runs.batches import stream_images
from wcl_ray.runs.capacity import plan_scale
from wcl_ray.runs.clusters import check_types, cluster_images
from wcl_ray.runs.folder import BASELINE, ENCODER, EVALUATION, PAGE, RESULTS, TRAINED, open_run
from wcl_ray.runs.initial import Start, check_backbone, start_of, with_image_size
from wcl_ray.runs.levels import check_level_options
from wcl_ray.runs.moved import moves
from wcl_ray.runs.nodes import check_shared, connect, environment
from wcl_ray.runs.patterns import name_clusters
from wcl_ray.runs.preflight import open_and_check
from wcl_ray.runs.rounds import Arm, train_rounds
from wcl_ray.runs.summary import ResourceSummary, worker_figures
from wcl_ray.storage import Folder
from wcl_ray.terminal import put, say, warn
from wcl_ray.train.trackers import Trackers, check_trackers, unfinished
from wcl_ray.train.trackers.jsonl import MetricsLog


def pretrain(config: Config, page: Callable[[Folder], str] | None = None) -> dict[str, Any]:
    """Start, continue or look up a pretraining run; prints its progress.

    Args:
        page: writes a page of the finished run to its folder, and returns its name.

    Returns:
        The content of ``results.json``, and the folder of the run as ``run``.

    Raises:
        UserError: wrong input or options, before any training.
    """
    started = time.monotonic()
    with open_run(config, RESULTS) as (config, run):
        check_trackers(config.train.trackers)
        if run.exists(RESULTS):
            results = read_results(config.data, run, page)
            for title, folder in zip(results["variants"], (run, run / BASELINE), strict=False):
                if names := unfinished(folder, config.train.trackers):
                    finish_trackers(folder, names, title, results)
            return results
        config = with_image_size(config)
        check_types(config)
        check_level_options(config.clusters, config.loss)
        check_paths(config.data)
        start = start_of(config, run)
        check_backbone(start.encoder, config.train.layer_decay)
        connect(config.scale)
        check_shared(run)
        with ResourceSummary() as usage:
            with usage.stage("clusters"):
                checked = open_and_check(config.data, config.storage, config.seed, run)
                clusters = cluster_images(config, checked, run)
            with usage.stage("stream"):
                stream = stream_images(
                    checked.images,
                    clusters,
                    run,
                    data=config.data,
                    scale=config.scale,
                    batch_size=config.train.batch_size,
                    samples_per_cluster=config.clusters.samples_per_cluster,
                )
            start.keep(run)
            figures = {}
            for arm in plan_arms(config, checked.images, clusters, stream, start, run):
                with usage.stage("train"):
                    last_clusters = train_rounds(arm)
                with usage.stage("evaluate"):
                    figures[arm.title] = evaluate(arm, last_clusters)
        results = write_results(figures, usage, started, run, page)
        for title, folder in zip(figures, (run, run / BASELINE), strict=False):
            finish_trackers(folder, config.train.trackers, title, results)
        return results


def plan_arms(
    config: Config,
    images: Images,
    clusters: Assignment,
    stream: Stream,
    start: Start,
    run: Folder,
) -> Iterator[Arm]:
    """The run's own arm and, with ``compare``, SimCLR on the same images and batches."""
    data_tasks = stream.mode == "streaming" or bool(config.evaluate.every)
    decoding = stream.decoded_when_read
    metadata = MetadataBits.from_npz(run.read(SIMILARITY)) if config.uses_metadata else None
    start = start.with_method(config, clusters, metadata)
    title = config.clusters.kind if config.method == "cl-infonce" else config.method
    title = "SimCLR" if title in ("instance", "simclr") else title
    arm = Arm(
        config=config,
        run=run,
        images=images,
        stream=stream,
        base=clusters,
        evaluator=Evaluator(
            encoder=start.encoder,
            images=images,
            counts=(len(clusters.ids), images.test_count() if images.label else 0),
            config=config.evaluate,
            store_size=config.data.stored_size,
            seed=config.seed,
        ),
        start=start,
        title=title,
        scale=plan_scale(config.scale, config.train.batch_size, data_tasks, decoding),
        similarity=metadata,
    )
    yield arm
    if config.compare and title != "SimCLR":
        instance = replace(config.clusters, kind="instance", from_=None, missing="singleton")
        loss = replace(config.loss, positives="cluster", negatives="all", level_weights=())
        train = replace(config.train, rounds=0)
        config = replace(config, method="cl-infonce", clusters=instance, loss=loss, train=train)
        base, run = clusters.as_singletons(), run / BASELINE
        start = start.with_method(config, base, None)
        evaluator = replace(arm.evaluator, encoder=start.encoder)
        arm = replace(arm, config=config, run=run, base=base, similarity=None, title="SimCLR")
        yield replace(arm, start=start, evaluator=evaluator)


def evaluate(arm: Arm, clusters: Assignment) -> dict[str, Any]:
    """Evaluate the encoder of an arm; returns the metrics of the evaluation and the last epoch.

    Args:
        clusters: of the last round.
    """
    run = arm.run
    if run.exists(EVALUATION):
        return dict(json.loads(run.read(EVALUATION)))
    measures = "kNN and linear probe" if arm.images.label else "no label"
    say("evaluate", f"{arm.title}: {measures}")
    choice = ExampleChoice.among(clusters, arm.evaluator.counts, arm.config.seed)
    evaluator = replace(arm.evaluator, examples=choice)
    figures = evaluator.measure(run.read(ENCODER), arm.scale.gpu)
    write_examples(figures.pop(EXAMPLES), arm, clusters)
    for text in left_out(figures):
        warn(text)
    last = arm.config.train.epochs - 1
    rows = [row for row in MetricsLog(run).rows if row.get("epoch") == last and "loss" in row]
    if rows:
        for key in ("positives", "anchors_without_positive"):
            figures[key] = float(np.mean([row[key] for row in rows]))
        figures["images_per_second"] = rows[-1]["images_per_second"]
    figures["train_seconds"] = json.loads(run.read(TRAINED))["seconds"]
    figures["clusters"] = int(clusters.clusters[:, 0].max(initial=-1)) + 1
    run.write(EVALUATION, json.dumps(figures, indent=2).encode())
    return figures


def write_examples(examples: Examples | str, arm: Arm, clusters: Assignment) -> None:
    """Write the images for the page, with the words of their clusters.

    Args:
        examples: a text: why there are none.
    """
    if isinstance(examples, str):
        warn(f"the page of the run will have no images: {examples}")
        return
    try:
        examples = name_clusters(examples, arm.config.clusters, clusters.names, arm.images, arm.run)
    except Exception as error:
        warn(f"the page of the run will not name clusters: {type(error).__name__}: {error}")
    arm.run.write(EXAMPLES_FILE, examples.to_parquet())


def write_results(
    figures: dict[str, dict[str, Any]],
    usage: ResourceSummary,
    started: float,
    run: Folder,
    page: Callable[[Folder], str] | None = None,
) -> dict[str, Any]:
    """Write ``results.json``, which finishes the run, and print it."""
    workers = worker_figures([run, run / BASELINE])
    seconds = round(time.monotonic() - started, 1)
    results = {"variants": figures, "seconds": seconds, "usage": usage.to_dict() | workers}
    results["environment"] = environment()
    run.write(RESULTS, json.dumps(results, indent=2).encode())
    put(f"\n{results_table(figures)}\n")
    usage.report(workers)
    write_page(page, run)
    say("run", f"{run.uri} ({seconds:.0f} s)")
    return results | {"run": run.uri}


def finish_trackers(run: Folder, names: Sequence[str], title: str, results: dict[str, Any]) -> None:
    """Send the figures of the arm of a title to its trackers."""
    trackers = Trackers(run, names)
    trackers.finish(results | {"variants": {title: results["variants"][title]}})
    trackers.close()


def write_page(page: Callable[[Folder], str] | None, run: Folder) -> None:
    """Write the page of a finished run. A failure is a warning, since the run is not lost."""
    if page is None:
        return
    try:
        say("page", f"{run.uri}/{page(run)}")
    except Exception as error:
        text = " ".join(str(error).split())
        warn(
            f"the page of the run was not written ({type(error).__name__}: {text}); "
            f"jobs/report.py --run {run.uri} makes it again"
        )


def read_results(
    data: DataConfig, run: Folder, page: Callable[[Folder], str] | None = None
) -> dict[str, Any]:
    """Read the results of a finished run, and print them again; writes a missing page."""
    for name, (old, new) in moves(run, data).items():
        warn(f"{name.replace('_', '-')} was {old}; {new} is not used, as the run is finished")
    stored: dict[str, Any] = json.loads(run.read(RESULTS))
    put(f"{run.uri} is finished\n\n{results_table(stored['variants'])}")
    if not run.exists(PAGE):
        write_page(page, run)
    return stored | {"run": run.uri}
