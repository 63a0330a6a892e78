"""How much neighbours in feature space share metadata: an objective that needs no label."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
import torch.nn.functional as F

from wcl_ray.clusters.metadata import attribute_bits, columns_of
from wcl_ray.data.ids import positions_of
from wcl_ray.data.images import Images
from wcl_ray.data.sources.base import ID
from wcl_ray.errors import UserError
from wcl_ray.evaluate.embed import feature_tensor
from wcl_ray.evaluate.knn import TEMPERATURE
from wcl_ray.search.options import SearchConfig

CAVEAT = (
    "judged by the attributes that the clusters are made of: it shows how well an encoder has "
    "learned them, not whether they matter"
)
MAX_ATTRIBUTES = 64  # compared, those of the highest entropy: 8 bytes per image
CHUNK = 512  # test images compared at a time
MIN_IMAGES = 5  # test images with an attribute, and without it, needed to judge by it


def attribute_gap(
    train_x: torch.Tensor,
    train_a: torch.Tensor,
    test_x: torch.Tensor,
    test_a: torch.Tensor,
    neighbours: int,
) -> float | None:
    """How much more frequent an attribute is among the neighbours of images that have it.

    The nearest training images of an image vote on each attribute as in the kNN classifier. The gap
    is the mean vote for test images with the attribute minus that for those without; the metric is
    the mean gap over attributes. Every encoder is judged by the same attributes, whichever clusters
    it was trained on: 0 is chance, 1 the best. They are the attributes that clusters are made of;
    holding some out would make the clusters worse.

    Args:
        train_x: float (N, F). train_a: bool (N, A).
        test_x: float (M, F). test_a: bool (M, A).
        neighbours: k, by cosine similarity.

    Returns:
        The mean gap, None if no attribute has five test images with and five without it.
    """
    bank = F.normalize(train_x.float(), dim=1)
    k = min(neighbours, len(bank))
    having = torch.zeros(test_a.shape[1], dtype=torch.float64)
    lacking = torch.zeros_like(having)
    for start in range(0, len(test_x), CHUNK):
        queries = F.normalize(test_x[start : start + CHUNK].float(), dim=1)
        similarity, index = (queries @ bank.T).topk(k, dim=1)
        weight = torch.softmax(similarity / TEMPERATURE, dim=1)
        vote = (weight[:, :, None] * train_a[index]).sum(1)
        has = test_a[start : start + CHUNK]
        having += (vote * has).sum(0)
        lacking += (vote * ~has).sum(0)
    count = test_a.sum(0)
    usable = (count >= MIN_IMAGES) & (len(test_a) - count >= MIN_IMAGES)
    if not usable.any():
        return None
    gap = having[usable] / count[usable] - lacking[usable] / (len(test_a) - count[usable])
    return float(gap.mean())


def read_attributes(config: SearchConfig, images: Images) -> tuple[np.ndarray, np.ndarray]:
    """Read the attributes by which neighbours are compared.

    Returns:
        int64 (N,) sorted ids of all images outside the test split, and uint8 (N, 8), one bit for
        each of at most 64 attributes. Empty if none is usable and the objective is another.

    Raises:
        UserError: there is no usable attribute.
    """
    columns = columns_of(config.clusters, images.label, images.available)
    rows = images.without_validation().metadata(columns)
    try:
        return attribute_bits(rows, columns, config.clusters, MAX_ATTRIBUTES)
    except UserError:
        if config.objective == "metadata":
            raise
        return np.empty(0, np.int64), np.empty((0, 1), np.uint8)


def can_judge(known: np.ndarray, packed: np.ndarray, ids: np.ndarray) -> bool:
    """Whether :func:`attribute_gap` is defined for some test images.

    Args:
        known, packed: of :func:`read_attributes`. ids: int64 (M,), of the test images.
    """
    positions = positions_of(known, ids)
    count = np.unpackbits(packed[positions[positions >= 0]], axis=1).sum(0)
    return bool(((count >= MIN_IMAGES) & (len(ids) - count >= MIN_IMAGES)).any())


def metadata_figure(
    train: pa.Table, test: pa.Table, *, ids: Any, bits: Any, neighbours: int
) -> dict[str, float]:
    """The metric ``metadata`` of embedded images; empty if it is undefined.

    Args:
        train, test: ``__id`` and ``feature``.
        ids, bits: references to the result of :func:`read_attributes`.
    """
    known, packed = ray.get([ids, bits])

    def tensors(rows: pa.Table) -> tuple[torch.Tensor, torch.Tensor]:
        at = positions_of(known, rows[ID].to_numpy())
        has = np.unpackbits(packed[at.clip(min=0)], axis=1).astype(bool) & (at >= 0)[:, None]
        return feature_tensor(rows["feature"]), torch.from_numpy(has)

    if len(known) == 0:
        return {}
    gap = attribute_gap(*tensors(train), *tensors(test), neighbours)
    return {} if gap is None else {"metadata": gap}
