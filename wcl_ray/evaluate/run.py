"""From an exported encoder and two streams of images to one dict of figures and a table."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import ray
from ray.data import Dataset

from wcl_ray.clusters.quality import table
from wcl_ray.config import EvaluateConfig
from wcl_ray.data.source import FAULT, ID
from wcl_ray.data.split import sample
from wcl_ray.errors import UserError
from wcl_ray.evaluate.embed import embed
from wcl_ray.evaluate.metrics import evaluate_features


def evaluate_encoder(
    weights: bytes,
    train: Dataset,
    test: Dataset | None,
    *,
    label: str | None,
    store_size: int,
    config: EvaluateConfig,
    seed: int,
    gpu: bool,
) -> dict[str, Any]:
    """Embed the images and measure the encoder.

    Args:
        weights: content of ``encoder.safetensors``.
        train: rows of ``Source.images`` with the label; they fit kNN and the probe.
        test: the same of images the encoder never saw; None: only label-free figures.
        label: name of the label column, or None.
        gpu: embed on a GPU.

    Returns:
        Figures of :func:`wcl_ray.evaluate.metrics.evaluate_features`, counts and seconds.

    Raises:
        UserError: no readable image, or fewer than two classes.
    """
    started = time.monotonic()
    columns = (label,) if label is not None else ()
    cpus = max(1.0, ray.cluster_resources().get("CPU", 1) // 2)
    options: dict[str, Any] = {"store_size": store_size, "columns": columns, "gpu": gpu}
    train_table, bad = _readable(embed(train, weights, cpus=cpus, views=True, **options))
    if train_table is None:
        raise UserError("evaluation: there is no readable training image")
    test_table = None
    if test is not None and label is not None:
        test_table, more = _readable(embed(test, weights, cpus=cpus, **options))
        bad += more
        if test_table is None:
            raise UserError("evaluation: there is no readable test image")
        check_label(label, {str(v) for v in train_table[label].to_pylist() if v is not None})
    work = ray.remote(num_cpus=1)(_measure)  # the driver never holds the features
    figures: dict[str, Any] = ray.get(
        work.remote(ray.put(train_table), ray.put(test_table), label, config, seed)
    )
    return {
        **figures,
        "train_images": train_table.num_rows,
        "test_images": 0 if test_table is None else test_table.num_rows,
        "faults": bad,
        "seconds": round(time.monotonic() - started, 1),
    }


def _measure(
    train: pa.Table, test: pa.Table | None, label: str | None, config: EvaluateConfig, seed: int
) -> dict[str, Any]:
    return evaluate_features(train, test, label, config, seed)


def _readable(rows: Dataset) -> tuple[pa.Table | None, int]:
    parts = [part for part in ray.get(rows.to_arrow_refs()) if part.num_rows]
    if not parts:
        return None, 0
    whole = pa.concat_tables(parts)
    good = whole.filter(whole[FAULT].is_null())
    return (good if good.num_rows else None), whole.num_rows - good.num_rows


def check_label(label: str, classes: set[str]) -> None:
    """Raise a UserError when a label column says nothing."""
    if len(classes) < 2:
        seen = f"one class only, {classes.pop()!r}" if classes else "no value at all"
        raise UserError(f"data.label {label!r} has {seen}; evaluation needs at least two classes")


def subset(rows: Dataset, most: int, total: int, seed: int) -> Dataset:
    """A hash sample of about ``most`` of ``total`` rows."""
    if total <= most:
        return rows

    def pick(part: pa.Table) -> pa.Table:
        return part.filter(pa.array(sample(part[ID].to_numpy(), most, total, seed)))

    return rows.map_batches(pick, batch_format="pyarrow", batch_size=None)


def results_table(variants: Mapping[str, dict[str, Any]]) -> str:
    """The figures for people, one line a variant."""
    head = ["clusters", "K", "kNN", "linear probe", "RankMe", "alignment", "uniformity"]
    head += ["positives", "alone", "train s"]
    body = []
    for name, found in variants.items():
        body.append(
            [
                name,
                f"{found['clusters']:,}" if found.get("clusters") else "-",
                *(f"{found[key]:.1%}" if key in found else "-" for key in ("knn", "probe")),
                *(f"{found[k]:.2f}" if k in found else "-" for k in ("rank_me", "alignment")),
                f"{found['uniformity']:.2f}" if "uniformity" in found else "-",
                f"{found['positives']:.1f}" if "positives" in found else "-",
                f"{found['lonely']:.0%}" if "lonely" in found else "-",
                f"{found['train_seconds']:.0f}" if "train_seconds" in found else "-",
            ]
        )
    return table(head, body)
