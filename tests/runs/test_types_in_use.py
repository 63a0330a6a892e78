"""Types of columns that would have no effect are refused before anything is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from pictures import write_parquet

from wcl_ray.config import ClustersConfig, Config, DataConfig, LossConfig
from wcl_ray.data.images import open_images
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
    of_type = "tags" if clusters.get("kind") == "tags" else "date"
    check_types(Config(clusters=ClustersConfig(types=(f"day={of_type}",), **clusters)))  # type: ignore[arg-type]


def test_types_of_columns_that_are_no_tags() -> None:
    config = Config(clusters=ClustersConfig(kind="tags", types=("words=tags", "day=date")))
    with pytest.raises(UserError, match=r"'day' of type date: clusters\.kind tags uses columns of"):
        check_types(config)
    check_types(replace(config, loss=LossConfig(positives="graded")))  # weighs other columns, too


@pytest.mark.parametrize("method", ["attributes", "cmc"])
def test_types_for_a_method_of_metadata(method: str) -> None:
    check_types(Config(method=method, clusters=ClustersConfig(types=("day=date",))))


@pytest.mark.usefixtures("ray_local")
def test_types_of_columns_that_are_not_used(tmp_path: Path) -> None:
    data = DataConfig(path=write_parquet(tmp_path, 96), label="species", split_by="size")
    images = open_images(data, str(tmp_path / "runs"), 0)
    for columns, column, why in (
        ((), "species", "is the label"),
        ((), "size", "is that of data.split-by"),
        (("marks",), "size", "is not among clusters.columns"),
    ):
        clusters = ClustersConfig(columns=columns, types=(f"{column}=category",))
        with pytest.raises(UserError, match=f"no effect on column '{column}', which {why}"):
            check_types(Config(data=data, clusters=clusters), images)
        columns = (*columns, column)
        if column != "species":
            clusters = replace(clusters, columns=columns)
            check_types(Config(data=data, clusters=clusters), images)
