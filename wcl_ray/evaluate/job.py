"""Evaluate a finished run on its own images or on others (``jobs/evaluate.py``)."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from wcl_ray.config import Config, DataConfig, EvaluateConfig, ScaleConfig, from_dict
from wcl_ray.errors import UserError
from wcl_ray.evaluate.run import evaluate_encoder, results_table, subset
from wcl_ray.storage import Folder
from wcl_ray.train.fit import connect, plan_scale
from wcl_ray.train.folder import read_config
from wcl_ray.train.images import open_images
from wcl_ray.train.rounds import ENCODER, say


def evaluate_run(
    run: str,
    given: dict[str, str | None],
    evaluate: EvaluateConfig,
    scale: ScaleConfig,
    endpoint: str | None = None,
    out: str | None = None,
) -> dict[str, Any]:
    """Embed images with the encoder of a run and measure it.

    Args:
        run: run folder, a path or URI.
        given: options of ``data`` that replace those of the run; None keeps the run's.

    Raises:
        UserError: no run, no trained encoder yet, or wrong data options.
    """
    folder = Folder(run.rstrip("/"), endpoint)
    stored: Config = from_dict(read_config(folder))
    if not folder.exists(ENCODER):
        raise UserError(f"{run} has no {ENCODER} yet: finish it with pretrain.py … --resume")
    config = replace(stored, evaluate=evaluate, scale=scale)
    data = _other_data(config.data, given)
    connect(config)
    images = open_images(data, config.storage, config.seed)
    say("images", images.train.describe())
    rows, test = images.train_images(), images.test_images()
    total = images.side(images.train.metadata(), training=True).count()
    if test is not None:
        source = images.test or images.train
        count = images.side(source.metadata(), training=False).count()
        test = subset(test, evaluate.max_images, count, config.seed)
    figures = evaluate_encoder(
        folder.read(ENCODER),
        subset(rows, evaluate.max_images, total, config.seed),
        test,
        label=images.label,
        store_size=config.data.stored_size,
        config=evaluate,
        seed=config.seed,
        gpu=plan_scale(config, streamed=False).gpu,
    )
    print(f"\n{results_table({config.clusters.kind: figures})}\n")
    if out is not None:
        base, _, name = out.rpartition("/")
        Folder(base or ".", endpoint).write(name, json.dumps(figures, indent=2).encode())
    return figures


def _other_data(data: DataConfig, given: dict[str, str | None]) -> DataConfig:
    changed = {key: value for key, value in given.items() if value is not None}
    if "path" in changed:  # other images: nothing of the run's sources holds for them
        data = replace(data, path=None, eval_path=None, id=None, image=None, format="auto")
    return replace(data, **changed)  # type: ignore[arg-type]
