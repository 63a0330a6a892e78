"""Checks of a search space before any trial."""

from __future__ import annotations

import json
from typing import Any

from wcl_ray.clusters.metadata import columns_of
from wcl_ray.data.images import Images
from wcl_ray.errors import UserError
from wcl_ray.registry import KINDS
from wcl_ray.runs.capacity import check_batch
from wcl_ray.runs.initial import Start, check_backbone, start_of
from wcl_ray.search.options import SearchConfig
from wcl_ray.search.space import Dimension, granularity_option


def same_space(stored: list[dict[str, Any]], space: list[dict[str, Any]]) -> bool:
    """Whether a stored space equals this one, in the fields that both versions have."""
    current = json.loads(json.dumps(space))
    pairs = zip(stored, current, strict=False)
    return len(stored) == len(current) and all(
        old[field] == new[field] for old, new in pairs for field in old.keys() & new.keys()
    )


def check_point(config: SearchConfig, dimension: Dimension, point: Any, start: Start) -> None:
    """Raise a UserError if a value of the space cannot be trained."""
    try:
        trial = config.of_trial({dimension.key: dimension.decode(point)})
    except ValueError as error:  # it conflicts with other options
        raise UserError(f"search.{dimension.key}: {error}") from None
    workers = (trial.scale.range() or (1, 1))[1]
    check_batch(trial.train.batch_size, workers, "search.train.batch-size")
    if dimension.key.startswith("model.") or dimension.key == "train.layer-decay":
        start = start.adapt(trial) or start_of(trial, None)
        check_backbone(start.encoder, trial.train.layer_decay)


def check_columns(config: SearchConfig, images: Images, dimension: Dimension) -> None:
    """Raise a UserError if the clusters of a value cannot be built from the columns of the data."""
    key = dimension.key
    if not key.startswith("clusters."):
        return
    kinds = [config.clusters.kind]
    for point in dimension.points(2):
        clusters = config.of_trial({key: dimension.decode(point)}).clusters
        if clusters.from_ is None:
            images.train.check_columns(clusters.columns, f"search.{key}")
        columns_of(clusters, images.label, images.available)
        kinds.append(clusters.kind)
    affected = {kind for kind in KINDS.names() if granularity_option(kind) == key}
    if affected and not affected & set(kinds):
        raise UserError(
            f"search.{key} has no effect on clusters of kind {config.clusters.kind}; it is for "
            f"{' and '.join(sorted(affected))}"
        )
