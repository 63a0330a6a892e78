"""The opened sources of a run, its hold-out split, and stage 1 on them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from ray.data import Dataset

from wcl_ray.clusters.assignment import Assignment
from wcl_ray.clusters.metadata import Clustering, cluster_metadata, columns_of
from wcl_ray.clusters.quality import Quality, measure, render, warning
from wcl_ray.config import ClustersConfig, Config, DataConfig
from wcl_ray.data.demo import make_demo
from wcl_ray.data.source import ID, Source, open_source
from wcl_ray.data.split import held_out
from wcl_ray.data.stream import positions_of
from wcl_ray.errors import UserError
from wcl_ray.storage import Folder
from wcl_ray.terminal import warn


@dataclass(frozen=True)
class Images:
    """Sources of a run. Without ``test`` a share of ``train`` is held out when there is a label.

    Attributes:
        holdout: share held out; 0 when there is a test source or no label.
    """

    train: Source
    test: Source | None
    label: str | None
    holdout: float
    seed: int

    def side(self, rows: Dataset, training: bool) -> Dataset:
        """The rows of one side of the hold-out split."""
        if not self.holdout:
            return rows
        share, seed = self.holdout, self.seed

        def keep(table: pa.Table) -> pa.Table:
            out = held_out(table[ID].to_numpy(), share, seed)
            return table.filter(pa.array(out != training))

        return rows.map_batches(keep, batch_format="pyarrow", batch_size=None)

    def train_images(self) -> Dataset:
        columns = [self.label] if self.label else []
        return self.side(self.train.images(columns), training=True)

    def test_images(self) -> Dataset | None:
        """Images the encoder never sees; None without a label."""
        if self.label is None:
            return None
        if self.test is not None:
            return self.test.images([self.label])
        return self.side(self.train.images([self.label]), training=False)


def open_images(data: DataConfig, storage: str, seed: int) -> Images:
    """Open the sources and check their columns; renders the demo data where no path is given.

    Raises:
        UserError: nothing there, or a column that is not.
    """
    if data.path is None:
        folder = Folder(storage)
        if not folder.local:
            raise UserError(
                f"the demo data is rendered to a local folder, but storage is {storage}; use a "
                "local --storage, or give --data.path"
            )
        demo = make_demo(f"{folder.path}/demo-data", images=data.demo_images, seed=seed)
        data = replace(data, path=demo.train, eval_path=data.eval_path or demo.test)
    train = open_source(data)
    test = open_source(data, data.eval_path) if data.eval_path else None
    if data.label is not None:
        train.check_columns([data.label], "data.label")
        if test is not None:
            test.check_columns([data.label], "data.label")
    holdout = data.holdout if data.label and test is None else 0.0
    return Images(train, test, data.label, holdout, seed)


def build_clusters(config: Config, images: Images) -> tuple[Clustering, list[Quality]]:
    """Stage 1 and its quality report, printed.

    Raises:
        UserError: see :func:`wcl_ray.clusters.metadata.cluster_metadata`; a label with one class.
    """
    source, label = images.train, images.label
    source.check_columns(config.clusters.columns, "clusters.columns")
    columns = columns_of(config.clusters, label, source.columns)
    wanted = list(dict.fromkeys([*columns, *([label] if label else [])]))
    rows = images.side(source.metadata(wanted), training=True)
    clustering = cluster_metadata(rows, config.clusters, label, source.columns, config.seed)
    if label is not None and clustering.classes < 2:
        what = "one class only" if clustering.classes else "no value at all"
        raise UserError(f"data.label {label!r} has {what}; evaluation needs at least two classes")
    quality = qualities(clustering.assignment, clustering.labels, config)
    if config.clusters.kind != "kmeans" or quality[0].clusters < quality[0].images:
        report(clustering, quality, config)
    return clustering, quality


def qualities(table: Assignment, labels: np.ndarray | None, config: Config) -> list[Quality]:
    """Measures of each granularity."""
    group = 1 if config.clusters.kind == "instance" else config.clusters.group
    return [
        measure(name, table.clusters[:, i], labels, config.train.batch_size, group)
        for i, name in enumerate(table.names)
    ]


def read_labels(images: Images, ids: np.ndarray) -> np.ndarray | None:
    """int32 (N,): number of the label of each training image, -1 = missing; None without one."""
    if images.label is None:
        return None
    rows = images.side(images.train.metadata([images.label]), training=True)
    plain = ClustersConfig(kind="instance")
    found = cluster_metadata(rows, plain, images.label, images.train.columns)
    assert found.labels is not None
    place = positions_of(found.assignment.ids, ids)
    return np.where(place >= 0, found.labels[place], -1)


def report(clustering: Clustering, quality: list[Quality], config: Config) -> None:
    """Print what the clusters are made of and how good they are."""
    if clustering.chosen:
        names = [f"{a.name} ({a.entropy:.2f} bits)" for a in clustering.chosen]
        more = f" and {len(names) - 6} more" if len(names) > 6 else ""
        print(f"attributes: {', '.join(names[:6])}{more}")
    for name, reason in clustering.skipped.items():
        print(f"left out: column {name!r}, {reason}")
    show_quality(quality, config)
    for note in clustering.notes:
        warn(note)


def show_quality(quality: list[Quality], config: Config) -> None:
    """Print the table of measures, and what is odd in it."""
    print(f"\n{render(quality, config.train.batch_size)}\n", flush=True)
    if config.clusters.kind != "instance":
        for text in filter(None, map(warning, quality)):
            warn(text)
