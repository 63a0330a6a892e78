"""Evaluate a finished run on its own images or on others (``jobs/evaluate.py``)."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from wcl_ray.config import EvaluateConfig, ScaleConfig
from wcl_ray.data.images import open_images
from wcl_ray.data.sources.base import check_paths
from wcl_ray.data.split import sample
from wcl_ray.evaluate.left_out import left_out
from wcl_ray.evaluate.run import evaluate_encoder, results_table, retrieval_table
from wcl_ray.runs.capacity import gpus
from wcl_ray.runs.nodes import connect
from wcl_ray.runs.preflight import check_labels
from wcl_ray.runs.summary import ResourceSummary
from wcl_ray.runs.trained import Trained
from wcl_ray.storage import check_target, write_file
from wcl_ray.terminal import put, say, warn


def evaluate_run(
    run: str,
    overrides: dict[str, str | None],
    evaluate: EvaluateConfig,
    scale: ScaleConfig,
    endpoint: str | None = None,
    out: str | None = None,
) -> dict[str, Any]:
    """Embed images with the encoder of a run and measure it.

    Args:
        run: run folder, a path or URI.
        overrides: options of ``data`` that replace those of the run; None keeps the run's.

    Raises:
        UserError: no run, no trained encoder yet, or wrong data options.
    """
    if out is not None:
        check_target(out, "--out", endpoint, ".json")
    trained = Trained.open(run, endpoint)
    config = replace(trained.config, evaluate=evaluate, scale=scale)
    data = trained.data(overrides)
    check_paths(data)
    connect(config.scale)
    with ResourceSummary() as usage:
        with usage.stage("images"):
            find_tables = trained.find_tables(overrides)
            images = open_images(data, config.storage, config.seed, find_tables=find_tables)
            say("images", images.train.describe())
            if images.label is None:
                counts = {"train_images": images.metadata().count(), "test_images": 0}
            else:  # unusable labels are an error before anything is embedded
                counts = check_labels(images)
            train, test = (
                sample(evaluate.max_images, counts[side], config.seed)
                for side in ("train_images", "test_images")
            )
        with usage.stage("evaluate"):
            figures = evaluate_encoder(
                trained.weights,
                images.train_images(train),
                images.test_images(test),
                label=images.label,
                store_size=config.data.stored_size,
                config=evaluate,
                seed=config.seed,
                gpu=gpus(scale) > 0,
                extended=True,
            )
    put(f"\n{results_table({config.clusters.kind: figures})}\n")
    if "map" in figures:
        put(f"{retrieval_table(figures)}\n")
    for text in left_out(figures):
        warn(text)
    usage.report()
    if out is not None:
        write_file(out, json.dumps(figures, indent=2).encode(), endpoint)
    return figures
