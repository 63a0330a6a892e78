"""How far neighbours in feature space share metadata: a criterion that needs no label."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
import torch.nn.functional as F

from wcl_ray.data.source import ID
from wcl_ray.data.stream import positions_of
from wcl_ray.evaluate.embed import feature_matrix


def shared_metadata(
    train_x: torch.Tensor,
    train_z: torch.Tensor,
    test_x: torch.Tensor,
    test_z: torch.Tensor,
    neighbours: int,
    chunk: int = 1024,
) -> float | None:
    """Share of the nearest training images that are in a test image's cluster, as a mean over
    images and granularities.

    The same clusterings judge every encoder, whichever it was trained on. Of a cluster with fewer
    training images than ``neighbours`` so many count as all. Images that are alone, or whose
    cluster has no training image, are left out.

    Args:
        train_x: float (N, F). train_z: int64 (N, G) clusters, -1 = alone.
        test_x: float (M, F). test_z: int64 (M, G).
        neighbours: k of cosine similarity.

    Returns:
        In [0, 1]; None where no image can be judged.
    """
    bank = F.normalize(train_x.float(), dim=1)
    k = min(neighbours, len(bank))
    hits = torch.zeros(train_z.shape[1], dtype=torch.float64)
    counted = torch.zeros_like(hits)
    sizes = [torch.bincount(z[z >= 0], minlength=int(test_z.max()) + 2) for z in train_z.T]
    for start in range(0, len(test_x), chunk):
        queries = F.normalize(test_x[start : start + chunk].float(), dim=1)
        index = (queries @ bank.T).topk(k, dim=1).indices
        for g, size in enumerate(sizes):
            own = test_z[start : start + chunk, g]
            there = torch.where(own >= 0, size[own.clamp(min=0)], 0)
            found = (train_z[index, g] == own[:, None]).sum(1)
            judged = there > 0
            hits[g] += (found[judged] / there[judged].clamp(max=k)).sum()
            counted[g] += judged.sum()
    means = hits[counted > 0] / counted[counted > 0]
    return float(means.mean()) if len(means) else None


def metadata_figure(
    train: pa.Table, test: pa.Table, *, ids: Any, clusters: Any, neighbours: int
) -> dict[str, float]:
    """The figure ``metadata`` of embedded images.

    Args:
        train, test: ``__id`` and ``feature``.
        ids, clusters: references to int64 (N,) sorted and int32 (N, G).
    """
    known, table = ray.get([ids, clusters])

    def parts(rows: pa.Table) -> tuple[torch.Tensor, torch.Tensor]:
        place = positions_of(known, rows[ID].to_numpy())
        z = np.where(place[:, None] >= 0, table[place], -1).astype(np.int64)
        return torch.from_numpy(feature_matrix(rows["feature"]).copy()), torch.from_numpy(z)

    found = shared_metadata(*parts(train), *parts(test), neighbours)
    return {} if found is None else {"metadata": found}
