"""Evaluation while training goes on: Ray Train runs it on a checkpoint as a task of its own."""

from __future__ import annotations

import functools
from typing import Any

import ray.train

from wcl_ray.config import Config
from wcl_ray.evaluate.run import evaluate_encoder, subset
from wcl_ray.model.encoder import build_encoder, save_export
from wcl_ray.train.checkpoint import load_model
from wcl_ray.train.images import Images

SHOWN = ("knn", "probe", "rank_me", "alignment", "uniformity", "spread")


def validation_config(
    config: Config, images: Images, counts: tuple[int, int], board: Any
) -> ray.train.ValidationConfig | None:
    """What Ray Train runs on checkpoints of every ``evaluate.every`` epochs; None when it is 0."""
    if not config.evaluate.every:
        return None
    task = functools.partial(validate, config=config, images=images, counts=counts, board=board)
    # the task itself only waits for others; a GPU would be taken from the workers
    return ray.train.ValidationConfig(fn=task, ray_remote_kwargs={"num_cpus": 0})


def validate(
    checkpoint: ray.train.Checkpoint,
    epoch: int,
    step: int,
    *,
    config: Config,
    images: Images,
    counts: tuple[int, int],
    board: Any,
) -> dict[str, Any]:
    """Measure a checkpoint on CPUs and tell the board.

    Args:
        counts: number of training and of test images, for the samples.

    Returns:
        The figures of SHOWN.
    """
    encoder = build_encoder(config.model, config.data.image_size, config.loss.dual)
    with checkpoint.as_directory() as folder:
        load_model(folder, encoder)
    most, test = config.evaluate.max_images, images.test_images()
    figures = evaluate_encoder(
        save_export(encoder, config.model, config.data.image_size),
        subset(images.train_images(), most, counts[0], config.seed),
        None if test is None else subset(test, most, counts[1], config.seed),
        label=images.label,
        store_size=config.data.stored_size,
        config=config.evaluate,
        seed=config.seed,
        gpu=False,
    )
    found = {key: figures[key] for key in SHOWN if key in figures}
    board.push.remote({"kind": "evaluation", "epoch": epoch, "step": step, **found})
    return found
