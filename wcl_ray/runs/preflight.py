"""What can be known before training is looked at before training: the test images and their labels,
and whether the backbone takes images of this size."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray
import torch

from wcl_ray.config import Config
from wcl_ray.data.decode import decode_batch
from wcl_ray.data.images import Images
from wcl_ray.data.sources.base import FAULT, ID, IMAGE, KEY
from wcl_ray.data.stream import AT_ONCE, check_faults
from wcl_ray.data.values import value_names
from wcl_ray.errors import UserError
from wcl_ray.evaluate.left_out import compare_labels
from wcl_ray.evaluate.run import subset
from wcl_ray.model.encoder import build_encoder, wrong_size

TRIED = 5000  # test images that are decoded, a hash sample


def check_backbone(config: Config) -> None:
    """Build the encoder and train it on two images, without learning from them.

    Raises:
        UserError: an unknown backbone, one that does not take images of ``data.image_size``, or
            features of them that are not finite.
    """
    size, name = config.data.image_size, config.model.backbone
    encoder = build_encoder(config.model, size, config.loss.dual)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    try:
        heads = encoder.train()(images)
    except Exception as error:  # whatever a library's network raises
        raise wrong_size(name, size, error) from error
    if not all(torch.isfinite(head).all() for head in heads):
        raise wrong_size(name, size, "its features are not finite")


def check_labels(images: Images) -> dict[str, Any]:
    """Compare the labels of the test (or validation) images with those trained on, from the
    metadata alone.

    Returns:
        What :func:`wcl_ray.evaluate.left_out.compare_labels` gives, and ``train_images`` and
        ``test_images``, their numbers.

    Raises:
        UserError: no test image at all, none with a label, or none of a class that is trained on.
    """
    label = images.label
    assert label is not None
    counts = [
        rows.map_batches(
            _count, batch_format="pyarrow", batch_size=None, fn_kwargs={"label": label}
        ).to_arrow_refs()
        for rows in (images.metadata([label]), images.test_metadata([label]))
    ]
    found: dict[str, Any] = ray.get(_compare.remote(label, *counts))
    if not found["test_images"]:
        images.test_count()  # which says why
        raise UserError("there is no test image; see --data.eval-path")
    return found


def check_readable(config: Config, images: Images, count: int) -> tuple[int, list[dict[str, str]]]:
    """Decode a sample of the ``count`` test images.

    Returns:
        How many were tried, and the unreadable ones, as {"key", "reason"}.

    Raises:
        UserError: more of them are unreadable than ``data.max_bad`` allows.
    """
    rows = images.test_images()
    assert rows is not None
    rows = subset(rows, TRIED, count, config.seed)
    tried, faults = 0, list[dict[str, str]]()
    tests = rows.map_batches(_try, batch_format="pyarrow", batch_size=None)
    for row in tests.iter_rows():
        tried += row["tried"]
        faults += json.loads(row["faults"])
        check_faults(faults, min(TRIED, count), config.data.max_bad, "test images")
    return tried, sorted(faults, key=lambda fault: fault["key"])


def _count(table: pa.Table, label: str) -> pa.Table:
    """Number of images of each label."""
    counts = value_names(table[label], f"data.label {label!r}").value_counts()
    return pa.table({"label": counts.field("values"), "images": counts.field("counts")})


@ray.remote(num_cpus=0.5, scheduling_strategy="DEFAULT")
def _compare(label: str, train: list[Any], test: list[Any]) -> dict[str, Any]:
    sides = []
    for refs in (train, test):
        side: Counter[str | None] = Counter()
        for part in ray.get(refs):
            for row in part.to_pylist():
                side[row["label"]] += row["images"]
        sides.append(side)
    sizes = {"train_images": sides[0].total(), "test_images": sides[1].total()}
    if not all(sizes.values()) or len(sides[0].keys() - {None}) < 2:
        return sizes  # which others say more about
    return compare_labels(label, *sides) | sizes


def _try(table: pa.Table) -> Iterator[pa.Table]:
    """One row: how many images were decoded, and which cannot be."""
    for start in range(0, len(table), AT_ONCE):
        part = table.slice(start, AT_ONCE)
        found = decode_batch(part[IMAGE].to_pylist(), 8).faults
        reasons = [fault or found.get(i) for i, fault in enumerate(part[FAULT].to_pylist())]
        names = part.select([ID, KEY]).to_pylist()
        faults = [
            {"key": str(row[KEY] or row[ID]), "reason": reason}
            for row, reason in zip(names, reasons, strict=True)
            if reason is not None
        ]
        yield pa.table({"tried": [len(part)], "faults": [json.dumps(faults)]})
