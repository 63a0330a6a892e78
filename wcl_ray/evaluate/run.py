"""From an exported encoder and two streams of images to one dict of figures and a table."""

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
from wcl_ray.data.split import sample
from wcl_ray.data.values import value_names
from wcl_ray.device import device_for
from wcl_ray.errors import UserError
from wcl_ray.evaluate.embed import TEST, embed, feature_matrix, resources
from wcl_ray.evaluate.left_out import SHOWN, check_label
from wcl_ray.evaluate.metrics import evaluate_features
from wcl_ray.kmeans.worker_group import free
from wcl_ray.terminal import table

ExtraMetrics = Callable[
    [pa.Table, pa.Table], dict[str, float]
]  # figures of training and test features


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
) -> dict[str, Any]:
    """Embed the images and measure the encoder.

    Args:
        weights: content of ``encoder.safetensors``.
        train: rows of ``Source.images`` with the label; they fit kNN and the probe.
        test: the same of images the encoder never saw; None: only label-free figures.
        label: name of the label column, or None.
        gpu: embed on a GPU, and when that is free again, work out kNN and probe on it.
        cpus: of each task; None: what a node can give, the cluster is ours.
        probe: also the linear probe.
        extra_metrics: further figures from the embedded training and test images.

    Returns:
        Figures of :func:`wcl_ray.evaluate.metrics.evaluate_features`, counts (train_images and
        test_images that were used, faults, and by side ``unreadable``: their count and the first
        of them) and seconds.

    Raises:
        UserError: no readable image, or fewer than two classes.
    """
    started = time.monotonic()
    columns = (TEST, label) if label is not None else (TEST,)
    part = resources(int(gpu)) if cpus is None else {"cpus": cpus, "gpu": gpu}
    rows = _marked(train, False, label, cpus)
    if test is not None:  # one pass: on a GPU every pass waits for the start of an actor
        rows = rows.union(_marked(test, True, label, cpus))
    features = embed(rows, weights, store_size=store_size, columns=columns, views=True, **part)
    refs = features.to_arrow_refs()
    note("embedded", features)
    # a task, since the driver never holds the features; outside of the driver's placement group,
    # which in a search is too small
    if cpus is None:
        cpus = 1.0 if gpu else _free_cpus()
    work = ray.remote(num_cpus=cpus, num_gpus=int(gpu), scheduling_strategy="DEFAULT")(_measure)
    threads, device = max(1, int(cpus)), device_for(gpu)
    found = work.remote(
        refs, test is not None, label, config, seed, probe, extra_metrics, threads, device
    )
    figures: dict[str, Any] = ray.get(found)
    return figures | {"seconds": round(time.monotonic() - started, 1)}


def _free_cpus() -> float:
    """CPUs that some node has free: the mean over the nodes."""
    nodes = sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())
    return float(max(1, free("CPU") // max(1, nodes)))


def _measure(
    refs: list[Any],
    tested: bool,
    label: str | None,
    config: EvaluateConfig,
    seed: int,
    probe: bool,
    extra_metrics: ExtraMetrics | None,
    threads: int,
    device: str,
) -> dict[str, Any]:
    torch.set_num_threads(threads)
    parts = [part for part in ray.get(refs) if part.num_rows]
    unreadable: dict[str, dict[str, Any]] = {}
    train, unreadable["training"] = _readable(parts, False)
    test = None
    if tested:
        test, unreadable["test"] = _readable(parts, True)
    if test is not None and label is not None:
        check_label(label, {str(v) for v in train[label].to_pylist() if v is not None})
    figures = evaluate_features(train, test, label, config, seed, probe, device)
    if extra_metrics is not None and test is not None:
        figures |= extra_metrics(train, test)
    counts = {
        "train_images": len(train),
        "test_images": len(test or ()),
        "faults": sum(side["count"] for side in unreadable.values()),
        "unreadable": unreadable,
    }
    return figures | counts


def _marked(rows: Dataset, test: bool, label: str | None, cpus: float | None) -> Dataset:
    """With a column that tells test images from the others, and labels by name: the two may hold
    theirs in different types."""

    def mark(part: pa.Table) -> Iterator[pa.Table]:  # errors of generators come through as they are
        if label is not None:
            place = part.column_names.index(label)
            named = value_names(part[label], f"data.label {label!r}")
            part = part.set_column(place, label, named)
        yield part.append_column(TEST, pa.array(np.full(len(part), test)))

    return rows.map_batches(mark, batch_format="pyarrow", batch_size=None, num_cpus=cpus or 1)


def _readable(parts: list[pa.Table], test: bool) -> tuple[pa.Table, dict[str, Any]]:
    """Readable images of one side, sorted by id, with the features in one piece: the only copy of
    them that is made. And how many are not readable, and the first of those."""
    small = pa.concat_tables([part.drop_columns(["feature"]) for part in parts])
    side = small[TEST].to_numpy() == test
    good = side & small[FAULT].is_null().to_numpy()
    rows = np.flatnonzero(good)
    if not len(rows):
        which = "test" if test else "training"
        raise UserError(f"evaluation: there is no readable {which} image")
    # blocks arrive in any order, and the probe's split and ties between neighbours depend on it
    rows = rows[np.argsort(small[ID].to_numpy()[rows], kind="stable")]
    place = np.empty(len(good), np.int64)
    place[rows] = np.arange(len(rows))
    width = parts[0]["feature"].type.list_size
    features = np.empty((len(rows), width), np.float32)
    start = 0
    for part in parts:
        own = good[start : start + len(part)]
        if own.any():
            wanted = part["feature"].filter(pa.array(own))
            features[place[start : start + len(part)][own]] = feature_matrix(wanted)
        start += len(part)
    column = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), width)
    bad = small.select([ID, KEY, FAULT]).filter(pa.array(side & ~good)).sort_by(ID)
    first = [f"{row[KEY] or row[ID]}: {row[FAULT]}" for row in bad.slice(0, SHOWN).to_pylist()]
    table = small.drop_columns([FAULT, TEST]).take(pa.array(rows)).append_column("feature", column)
    return table, {"count": bad.num_rows, "first": first}


def subset(rows: Dataset, most: int, total: int, seed: int, cpus: float = 1) -> Dataset:
    """A hash sample of about ``most`` of ``total`` rows, drawn by tasks of so many CPUs."""
    if total <= most:
        return rows

    def pick(part: pa.Table) -> pa.Table:
        return part.filter(pa.array(sample(part[ID].to_numpy(), most, total, seed)))

    return rows.map_batches(pick, batch_format="pyarrow", batch_size=None, num_cpus=cpus)


def results_table(variants: Mapping[str, dict[str, Any]]) -> str:
    """The figures for people, one line a variant."""
    head = ["clusters", "K", "kNN", "linear probe", "RankMe", "alignment", "uniformity"]
    head += ["positives", "without any", "train s"]
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
                f"{found['anchors_without_positive']:.0%}"
                if "anchors_without_positive" in found
                else "-",
                f"{found['train_seconds']:.0f}" if "train_seconds" in found else "-",
            ]
        )
    return table(head, body)
