"""How far neighbours in feature space share metadata: a criterion that needs no label."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
import torch.nn.functional as F

from wcl_ray.clusters.metadata import attribute_bits, columns_of
from wcl_ray.data.images import Images
from wcl_ray.data.sources.base import ID
from wcl_ray.data.stream import positions_of
from wcl_ray.errors import UserError
from wcl_ray.evaluate.embed import feature_tensor
from wcl_ray.evaluate.knn import TEMPERATURE
from wcl_ray.search.options import SearchConfig

CAVEAT = (
    "judged by the attributes that the clusters are made of: it tells how well an encoder has "
    "learned them, not whether they matter"
)
MOST = 64  # attributes that are compared, those of the highest entropy: 8 bytes an image
FEW = 5  # test images with, and without, an attribute that are needed to judge by it


def attribute_gap(
    train_x: torch.Tensor,
    train_a: torch.Tensor,
    test_x: torch.Tensor,
    test_a: torch.Tensor,
    neighbours: int,
    chunk: int = 512,
) -> float | None:
    """How much more of an attribute there is around the images that have it than around others.

    An image's nearest training images vote on each attribute as in the kNN classifier. The gap is
    the mean vote at the test images that have the attribute minus that at those that have not; the
    figure is the mean gap over attributes. It judges every encoder by the same attributes,
    whichever clusters it was trained on: 0 is chance, 1 the best. None are held out, since that
    would make the clusters worse; they are those that the clusters are made of.

    Args:
        train_x: float (N, F). train_a: bool (N, A).
        test_x: float (M, F). test_a: bool (M, A).
        neighbours: k of cosine similarity.

    Returns:
        None where no attribute has five test images on each side.
    """
    bank = F.normalize(train_x.float(), dim=1)
    k = min(neighbours, len(bank))
    having = torch.zeros(test_a.shape[1], dtype=torch.float64)
    lacking = torch.zeros_like(having)
    for start in range(0, len(test_x), chunk):
        queries = F.normalize(test_x[start : start + chunk].float(), dim=1)
        similarity, index = (queries @ bank.T).topk(k, dim=1)
        weight = torch.softmax(similarity / TEMPERATURE, dim=1)
        vote = (weight[:, :, None] * train_a[index]).sum(1)
        own = test_a[start : start + chunk]
        having += (vote * own).sum(0)
        lacking += (vote * ~own).sum(0)
    count = test_a.sum(0)
    judged = (count >= FEW) & (len(test_a) - count >= FEW)
    if not judged.any():
        return None
    gap = having[judged] / count[judged] - lacking[judged] / (len(test_a) - count[judged])
    return float(gap.mean())


def read_attributes(config: SearchConfig, images: Images) -> tuple[np.ndarray, np.ndarray]:
    """The attributes by which neighbours are compared.

    Returns:
        int64 (N,) sorted ids of all images outside the test split, and uint8 (N, 8), a bit for
        each of at most 64 attributes.

    Raises:
        UserError: there is no usable attribute.
    """
    whole = images.without_validation()
    columns = columns_of(config.clusters, images.label, images.available)
    try:
        return attribute_bits(whole.metadata(columns), columns, config.clusters, MOST)
    except UserError:
        if config.objective == "metadata":
            raise
        return np.empty(0, np.int64), np.empty((0, 1), np.uint8)


def judged(known: np.ndarray, packed: np.ndarray, ids: np.ndarray) -> bool:
    """Whether :func:`attribute_gap` can judge by any attribute of these images.

    Args:
        known, packed: of :func:`read_attributes`. ids: int64 (M,), of the test images.
    """
    place = positions_of(known, ids)
    count = np.unpackbits(packed[place[place >= 0]], axis=1).sum(0)
    return bool(((count >= FEW) & (len(ids) - count >= FEW)).any())


def metadata_figure(
    train: pa.Table, test: pa.Table, *, ids: Any, bits: Any, neighbours: int
) -> dict[str, float]:
    """The figure ``metadata`` of embedded images.

    Args:
        train, test: ``__id`` and ``feature``.
        ids, bits: references to what :func:`read_attributes` gives.
    """
    known, packed = ray.get([ids, bits])

    def parts(rows: pa.Table) -> tuple[torch.Tensor, torch.Tensor]:
        place = positions_of(known, rows[ID].to_numpy())
        own = np.unpackbits(packed[place.clip(min=0)], axis=1).astype(bool) & (place >= 0)[:, None]
        return feature_tensor(rows["feature"]), torch.from_numpy(own)

    if len(known) == 0:
        return {}
    found = attribute_gap(*parts(train), *parts(test), neighbours)
    return {} if found is None else {"metadata": found}
