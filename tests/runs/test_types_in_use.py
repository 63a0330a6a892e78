"""Types of columns that would have no effect are refused before anything is read."""

from __future__ import annotations

from dataclasses import replace

import pytest

from wcl_ray.config import ClustersConfig, Config, LossConfig
from wcl_ray.errors import UserError
from wcl_ray.runs.clusters import check_types


@pytest.mark.parametrize(
    ("clusters", "words"),
    [
        ({"kind": "hierarchy"}, "clusters.kind hierarchy;"),
        ({"kind": "label"}, "clusters.kind label;"),
        ({"kind": "instance"}, "clusters.kind instance;"),
        ({"kind": "kmeans"}, "clusters.kind kmeans without clusters.features metadata;"),
        ({"from_": "clusters.parquet"}, "clusters.from;"),
    ],
)
def test_types_without_effect_are_refused(clusters: dict[str, str], words: str) -> None:
    config = Config(clusters=ClustersConfig(types=("day=date",), **clusters))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=f"clusters.types has no effect on {words}"):
        check_types(config)
    check_types(replace(config, loss=LossConfig(positives="graded")))
    check_types(replace(config, clusters=replace(config.clusters, types=())))


@pytest.mark.parametrize(
    "clusters", [{}, {"kind": "tags"}, {"kind": "kmeans", "features": "metadata"}]
)
def test_types_with_an_effect(clusters: dict[str, str]) -> None:
    check_types(Config(clusters=ClustersConfig(types=("day=date",), **clusters)))  # type: ignore[arg-type]
