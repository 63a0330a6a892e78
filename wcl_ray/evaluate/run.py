"""Measure an exported encoder on training and test images, and print the figures as a table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.data import Dataset

from wcl_ray.config import EvaluateConfig
from wcl_ray.data.data_stats import note
from wcl_ray.data.sources.base import FAULT, ID, KEY
from wcl_ray.data.values import value_names
from wcl_ray.device import device_for
from wcl_ray.errors import UserError
from wcl_ray.evaluate.choice import ExampleChoice
from wcl_ray.evaluate.embed import PICTURED, TEST, embed, feature_tensor, resources
from wcl_ray.evaluate.examples import EXAMPLES
from wcl_ray.evaluate.left_out import MAX_NAMED, check_label
from wcl_ray.evaluate.metrics import evaluate_features
from wcl_ray.kmeans.worker_group import free
from wcl_ray.terminal import table

# figures from the embedded training and test images
ExtraMetrics = Callable[[pa.Table, pa.Table], dict[str, float]]


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
    cpus: float | None = None,
    probe: bool = True,
    extra_metrics: ExtraMetrics | None = None,
    examples: ExampleChoice | None = None,
    extended: bool = False,
) -> dict[str, Any]:
    """Embed the images and measure the encoder.

    Args:
        weights: content of ``encoder.safetensors``.
        train: rows of ``Source.images`` with the label; they fit kNN and the probe.
        test: the same for images the encoder never saw; None: only label-free figures.
        label: name of the label column, or None.
        gpu: embed on a GPU, then compute kNN and probe on it.
        cpus: CPUs of each task; None: chosen for an otherwise idle cluster.
        probe: also fit the linear probe.
        extra_metrics: further figures from the embedded training and test images.
        examples: choose images for the page of the run, too.
        extended: also retrieval and few-shot probes.

    Returns:
        Figures of :func:`wcl_ray.evaluate.metrics.evaluate_features`, counts (train_images and
        test_images that were used, faults, and by side ``unreadable``: their count and the first
        of them) and seconds; with ``examples`` also EXAMPLES: these, or why there are none.

    Raises:
        UserError: no readable image, or fewer than two classes.
    """
    started = time.monotonic()
    columns = (TEST, label) if label is not None else (TEST,)
    scale = resources(int(gpu)) if cpus is None else {"cpus": cpus, "gpu": gpu}
    rows = _marked(train, False, label, cpus, examples)
    if test is not None:  # one pass: on a GPU each pass waits for an actor to start
        rows = rows.union(_marked(test, True, label, cpus, examples))
    features = embed(rows, weights, store_size=store_size, columns=columns, views=True, **scale)
    refs = features.to_arrow_refs()
    note("embedded", features)
    # in a task, since the driver never holds the features; outside the driver's placement group,
    # which is too small in a search
    if cpus is None:
        cpus = 1.0 if gpu else _free_cpus()
    task = ray.remote(num_cpus=cpus, num_gpus=int(gpu), scheduling_strategy="DEFAULT")(_measure)
    threads, device = max(1, int(cpus)), device_for(gpu)
    figures: dict[str, Any] = ray.get(
        task.remote(
            refs,
            test is not None,
            label,
            config,
            seed,
            probe,
            extra_metrics,
            threads,
            device,
            examples,
            extended,
        )
    )
    return figures | {"seconds": round(time.monotonic() - started, 1)}


def _free_cpus() -> float:
    """Mean number of free CPUs per node, which at least one node has."""
    nodes = sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())
    return float(max(1, free("CPU") // max(1, nodes)))


def _measure(
    refs: list[Any],
    with_test: bool,
    label: str | None,
    config: EvaluateConfig,
    seed: int,
    probe: bool,
    extra_metrics: ExtraMetrics | None,
    threads: int,
    device: str,
    examples: ExampleChoice | None,
    extended: bool,
) -> dict[str, Any]:
    torch.set_num_threads(threads)
    blocks = [block for block in ray.get(refs) if block.num_rows]
    unreadable: dict[str, dict[str, Any]] = {}
    train, unreadable["training"] = _readable(blocks, False)
    test = None
    if with_test:
        test, unreadable["test"] = _readable(blocks, True)
    if test is not None and label is not None:
        check_label(label, {str(v) for v in train[label].to_pylist() if v is not None})
    figures = evaluate_features(train, test, label, config, seed, probe, device, extended)
    if extra_metrics is not None and test is not None:
        figures |= extra_metrics(train, test)
    counts = {
        "train_images": len(train),
        "test_images": len(test or ()),
        "faults": sum(side["count"] for side in unreadable.values()),
        "unreadable": unreadable,
    }
    figures |= counts
    if examples is not None:
        try:
            figures[EXAMPLES] = examples.choose(train, test, label, device)
        except Exception as error:  # they are for the eye, and no reason to lose the figures
            figures[EXAMPLES] = f"{type(error).__name__}: {error}"
    return figures


def _marked(
    rows: Dataset,
    test: bool,
    label: str | None,
    cpus: float | None,
    examples: ExampleChoice | None = None,
) -> Dataset:
    """Add columns that mark test images and images to picture, and turn labels into strings, since
    the types of both sides may differ."""
    pictured = None if examples is None else examples.pictured(test)

    def mark(table: pa.Table) -> Iterator[pa.Table]:  # Ray keeps the errors of generators unchanged
        if label is not None:
            labels = value_names(table[label], f"data.label {label!r}")
            table = table.set_column(table.column_names.index(label), label, labels)
        if pictured is not None:
            table = table.append_column(PICTURED, pa.array(pictured(table[ID].to_numpy())))
        yield table.append_column(TEST, pa.array(np.full(len(table), test)))

    return rows.map_batches(mark, batch_format="pyarrow", batch_size=None, num_cpus=cpus or 1)


def _readable(blocks: list[pa.Table], test: bool) -> tuple[pa.Table, dict[str, Any]]:
    """Readable images of one side sorted by id, with the features in one chunk, their only copy;
    and the number of unreadable images with the first of them."""
    others = pa.concat_tables([block.drop_columns(["feature"]) for block in blocks])
    side = others[TEST].to_numpy() == test
    good = side & others[FAULT].is_null().to_numpy()
    rows = np.flatnonzero(good)
    if not len(rows):
        raise UserError(f"evaluation: no readable {'test' if test else 'training'} image")
    # blocks arrive in any order, on which the probe's split and ties of neighbours would depend
    rows = rows[np.argsort(others[ID].to_numpy()[rows], kind="stable")]
    target = np.empty(len(good), np.int64)  # row of the result by row of the blocks
    target[rows] = np.arange(len(rows))
    width = blocks[0]["feature"].type.list_size
    features = np.empty((len(rows), width), np.float32)
    start = 0
    for block in blocks:
        chosen = good[start : start + len(block)]
        if chosen.any():
            x = feature_tensor(block["feature"].filter(pa.array(chosen)))
            features[target[start : start + len(block)][chosen]] = x.numpy()
        start += len(block)
    column = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), width)
    bad = others.select([ID, KEY, FAULT]).filter(pa.array(side & ~good)).sort_by(ID)
    first = [f"{row[KEY] or row[ID]}: {row[FAULT]}" for row in bad.slice(0, MAX_NAMED).to_pylist()]
    table = others.drop_columns([FAULT, TEST]).take(pa.array(rows)).append_column("feature", column)
    return table, {"count": bad.num_rows, "first": first}


def results_table(variants: Mapping[str, dict[str, Any]]) -> str:
    """The figures as a table, one line per variant."""
    formats = {  # by key: column and format
        "knn": ("kNN", ".1%"),
        "probe": ("linear probe", ".1%"),
        "rank_me": ("RankMe", ".2f"),
        "alignment": ("alignment", ".2f"),
        "uniformity": ("uniformity", ".2f"),
        "positives": ("positives", ".1f"),
        "anchors_without_positive": ("without any", ".0%"),
        "train_seconds": ("train s", ".0f"),
    }
    body = []
    for name, figures in variants.items():
        clusters = f"{figures['clusters']:,}" if figures.get("clusters") else "-"
        cells = (
            format(figures[key], f) if key in figures else "-" for key, (_, f) in formats.items()
        )
        body.append([name, clusters, *cells])
    return table(["clusters", "K", *(column for column, _ in formats.values())], body)


def retrieval_table(figures: dict[str, Any]) -> str:
    """Retrieval and few-shot probes as a table, see ``extended`` of
    :func:`wcl_ray.evaluate.metrics.evaluate_features`."""
    chance, rows = figures["chance"], [["encoder"], ["chance"]]
    names = [name for name in figures if name.startswith("recall@")]
    for name in [*names, "map"]:
        rows[0].append(f"{figures[name]:.1%}")
        rows[1].append(f"{chance[name]:.1%}")
    for result in figures["few_shot"].values():
        rows[0].append(f"{result['mean']:.1%} ± {100 * result['std']:.1f}")
        rows[1].append(f"{chance['few_shot']:.1%}")
    shots = [f"{shots}-shot" for shots in figures["few_shot"]]
    return table(["features", *names, "mAP", *shots], rows)
