"""Checks before training: the test images and their labels, and whether the backbone takes images
of this size."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray

from wcl_ray.config import DataConfig
from wcl_ray.data.decode import decode_one, find_fault
from wcl_ray.data.images import Images, open_images
from wcl_ray.data.pixels import AT_ONCE
from wcl_ray.data.sources.base import FAULT, ID, IMAGE, KEY
from wcl_ray.data.split import sample
from wcl_ray.data.stream import check_faults
from wcl_ray.data.values import value_names
from wcl_ray.errors import UserError
from wcl_ray.evaluate.left_out import compare_labels, left_out
from wcl_ray.runs.folder import ENCODER
from wcl_ray.runs.moved import find_tables
from wcl_ray.storage import Folder
from wcl_ray.terminal import say, warn

TRIED = 5000  # test images that are decoded, a hash sample


@dataclass(frozen=True)
class CheckedImages:
    """The images of a run after the checks.

    Attributes:
        unreadable: test images that cannot be read, as {"key", "reason"}.
    """

    images: Images
    unreadable: tuple[dict[str, str], ...] = ()


def open_and_check(data: DataConfig, storage: str, seed: int, run: Folder) -> CheckedImages:
    """Open the sources and, until the encoder is trained, check the test images.

    Raises:
        UserError: see :func:`open_images`, :func:`check_labels` and :func:`check_readable`.
    """
    images = open_images(data, storage, seed, find_tables=find_tables(run))
    say("images", images.train.describe())
    if images.label is None or run.exists(ENCODER):
        return CheckedImages(images)
    labels = check_labels(images)
    for text in left_out(labels):
        warn(text)
    tried, unreadable = check_readable(images, labels["test_images"], seed, data.max_bad)
    if unreadable:
        text = f"{len(unreadable):,} of {tried:,} test images that were tried cannot be read"
        say("faults", f"{text}, see {run.uri}/faults.jsonl")
    return CheckedImages(images, tuple(unreadable))


def check_labels(images: Images) -> dict[str, Any]:
    """Compare the labels of the test (or validation) images with those of the training images,
    reading metadata only.

    Returns:
        The result of :func:`wcl_ray.evaluate.left_out.compare_labels`, and the numbers of images
        ``train_images`` and ``test_images``.

    Raises:
        UserError: no test image, none with a label, or none of a class in the training images.
    """
    label = images.label
    assert label is not None
    counts = [
        rows.map_batches(
            _count, batch_format="pyarrow", batch_size=None, fn_kwargs={"label": label}
        ).to_arrow_refs()
        for rows in (images.metadata([label]), images.test_metadata([label]))
    ]
    labels: dict[str, Any] = ray.get(_compare.remote(label, *counts))
    if not labels["test_images"]:
        images.test_count()  # raises an error that says why
        raise UserError("there is no test image; see --data.eval-path")
    return labels


def check_readable(
    images: Images, count: int, seed: int, max_bad: float
) -> tuple[int, list[dict[str, str]]]:
    """Decode a sample of the ``count`` test images.

    Returns:
        The number of images tried, and the unreadable ones as {"key", "reason"}.

    Raises:
        UserError: the share of unreadable ones is above ``max_bad``.
    """
    rows = images.test_images(sample(TRIED, count, seed))
    assert rows is not None
    tried, faults = 0, list[dict[str, str]]()
    tests = rows.map_batches(_try, batch_format="pyarrow", batch_size=None)
    for row in tests.iter_rows():
        tried += row["tried"]
        faults += json.loads(row["faults"])
        check_faults(faults, min(TRIED, count), max_bad, "test images")
    return tried, sorted(faults, key=lambda fault: fault["key"])


def _count(table: pa.Table, label: str) -> pa.Table:
    """Number of images of each label."""
    counts = value_names(table[label], f"data.label {label!r}").value_counts()
    return pa.table({"label": counts.field("values"), "images": counts.field("counts")})


@ray.remote(num_cpus=0.5, scheduling_strategy="DEFAULT")
def _compare(label: str, train: list[Any], test: list[Any]) -> dict[str, Any]:
    totals = []
    for refs in (train, test):
        total: Counter[str | None] = Counter()
        for counts in ray.get(refs):
            for row in counts.to_pylist():
                total[row["label"]] += row["images"]
        totals.append(total)
    sizes = {"train_images": totals[0].total(), "test_images": totals[1].total()}
    if not all(sizes.values()) or len(totals[0].keys() - {None}) < 2:
        return sizes  # later checks raise clearer errors
    return compare_labels(label, *totals) | sizes


def _try(table: pa.Table) -> Iterator[pa.Table]:
    """Decode images; yields rows with the number of images tried and the faults."""
    for start in range(0, len(table), AT_ONCE):
        batch = table.slice(start, AT_ONCE)
        files = zip(batch[FAULT].to_pylist(), batch[IMAGE].to_pylist(), strict=True)
        reasons = [
            fault or find_fault(file, row, lambda content, _: decode_one(content))
            for row, (fault, file) in enumerate(files)
        ]
        names = batch.select([ID, KEY]).to_pylist()
        faults = [
            {"key": str(row[KEY] or row[ID]), "reason": reason}
            for row, reason in zip(names, reasons, strict=True)
            if reason is not None
        ]
        yield pa.table({"tried": [len(batch)], "faults": [json.dumps(faults)]})
