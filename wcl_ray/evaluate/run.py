"""From an exported encoder and two image streams to one dict of figures and a table."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from wcl_ray.config import Config
from wcl_ray.data.split import sample
from wcl_ray.errors import UserError
from wcl_ray.evaluate.embed import embed
from wcl_ray.evaluate.metrics import evaluate_features


def evaluate_encoder(
    weights: bytes,
    config: Config,
    train: ray.data.Dataset,
    test: ray.data.Dataset | None,
    label: str | None,
    gpu: bool = False,
) -> dict[str, Any]:
    """Embed the images and measure the encoder.

    Args:
        weights: content of ``encoder.safetensors``.
        train: rows of ``Source.images`` with the label; fits kNN and the probe.
        test: rows of images the encoder never saw; None: only label-free figures, on ``train``.
        label: name of the label column, or None.
        gpu: embed on GPUs.

    Returns:
        ``knn``, ``probe`` (accuracies in [0, 1]), the label-free figures, counts and seconds.

    Raises:
        UserError: no image, or the label has fewer than two classes.
    """
    started = time.monotonic()
    train_x, train_y, bad = _features(weights, config, train, label, gpu)
    if len(train_x) == 0:
        raise UserError("evaluation: there is no readable image")
    test_x: np.ndarray | None = None
    test_y: np.ndarray | None = None
    if test is not None and label is not None:
        test_x, test_y, more = _features(weights, config, test, label, gpu)
        bad += more
        check_label(label, train_y)
    # a task, not the driver: features are N-sized
    work = ray.remote(num_cpus=1)(evaluate_features)
    figures = ray.get(work.remote(train_x, train_y, test_x, test_y, config.evaluate, config.seed))
    return {
        **figures,
        "train_images": len(train_x),
        "test_images": 0 if test_x is None else len(test_x),
        "faults": bad,
        "seconds": round(time.monotonic() - started, 1),
    }


def check_label(label: str, values: np.ndarray | None) -> None:
    """Raise a UserError when a label column says nothing."""
    names = set() if values is None else {v for v in values.tolist() if v is not None}
    if len(names) < 2:
        seen = f"one class, {names.pop()!r}" if names else "no value"
        raise UserError(f"data.label {label!r} has {seen}; evaluation needs at least two classes")


def subset(rows: ray.data.Dataset, most: int, total: int, seed: int) -> ray.data.Dataset:
    """A hash sample of about ``most`` of ``total`` rows."""
    if total <= most:
        return rows

    def pick(table: pa.Table) -> pa.Table:
        return table.filter(pa.array(sample(table[ID].to_numpy(), most, total, seed)))

    return rows.map_batches(pick, batch_format="pyarrow", batch_size=None)
