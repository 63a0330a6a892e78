"""Stage 1 of a run: the clusters of its training images, and what they are worth."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np

from wcl_ray.clusters.assignment import Assignment
from wcl_ray.clusters.features import images_to_cluster
from wcl_ray.clusters.metadata import Clustering, check, cluster_metadata, columns_of
from wcl_ray.clusters.quality import Quality, measure, render, warning
from wcl_ray.clusters.table import open_table
from wcl_ray.config import ClustersConfig, Config
from wcl_ray.data.images import Images
from wcl_ray.data.stream import positions_of
from wcl_ray.errors import UserError
from wcl_ray.runs.folder import CLUSTERED, add_faults, claim
from wcl_ray.runs.moved import TRAIN, check_moves, facts_of, facts_of_tests
from wcl_ray.runs.preflight import Opened
from wcl_ray.runs.stored import FILE
from wcl_ray.storage import Folder, resolve_input
from wcl_ray.terminal import put, say, warn


def cluster_images(config: Config, opened: Opened, run: Folder) -> Assignment:
    """Clusters of the metadata, or those in the run folder; claims the run's name once the input is
    good.

    Raises:
        UserError: see :func:`build_clusters`; fewer images than a batch or than clusters; the run
            is another's, or has other images.
    """
    images, folder = opened.images, run / "rounds/000"
    if config.clusters.from_features and not config.train.warmup_rounds:
        folder = run / "metadata"  # the first round has clusters of its own
    if folder.exists(CLUSTERED):
        assignment = Assignment.from_parquet(folder.read(CLUSTERED))
        say("clusters", f"{', '.join(assignment.names)}, as before")
        check_moves(run, config.data, images, facts_of(assignment.ids))
    else:
        clustering, quality = build_clusters(config, images)
        assignment = clustering.assignment
        _check_counts(assignment, config.clusters, config.train.batch_size)
        if run.exists(FILE):
            if not config.resume:  # made meanwhile, by a job that took this one for lost
                raise UserError(f"{run.uri} holds a run already; choose another --name")
            check_moves(run, config.data, images, facts_of(assignment.ids))
        claim(run, config, {TRAIN: facts_of(assignment.ids)} | facts_of_tests(images))
        folder.write("clusters.json", _summary(clustering, quality))
        folder.write(CLUSTERED, assignment.to_parquet())  # last: the stage is done
    if opened.unreadable:
        add_faults(run, list(opened.unreadable))
    return assignment


def _check_counts(assignment: Assignment, clusters: ClustersConfig, batch_size: int) -> None:
    """Whether there are images enough for a batch and, later, for k-means of features."""
    count = len(assignment.ids)
    if count < batch_size:
        raise UserError(
            f"there are {count} training images, fewer than train.batch-size {batch_size}; lower it"
        )
    if clusters.from_features:
        wanted, ks = images_to_cluster(clusters, assignment)
        if not ks:
            warn(f"clusters.missing: {wanted.sum()} images have no metadata, too few for k-means")


def _summary(clustering: Clustering, quality: list[Quality]) -> bytes:
    """Content of ``clusters.json``."""
    summary = {
        "quality": [q.to_dict() for q in quality],
        "attributes": [asdict(a) for a in clustering.chosen],
        "skipped": clustering.skipped,
        "notes": list(clustering.notes),
    }
    return json.dumps(summary, indent=2).encode()


def build_clusters(
    config: Config, images: Images, *, strict: bool = True, show: bool = True
) -> tuple[Clustering, list[Quality]]:
    """Stage 1 and its quality report.

    Args:
        strict: one cluster only, or single images only, are an error.
        show: print the report.

    Raises:
        UserError: see :func:`wcl_ray.clusters.metadata.cluster_metadata` and
            :func:`wcl_ray.clusters.table.open_table`; a label with one class.
    """
    clustering = _clustering(config, config.clusters, images)
    label = images.label
    if label is not None and clustering.classes < 2:
        what = "one class only" if clustering.classes else "no value at all"
        raise UserError(f"data.label {label!r} has {what}; evaluation needs at least two classes")
    if strict:
        check(clustering.assignment, config.clusters.kind)
    quality = qualities(clustering.assignment, clustering.labels, config)
    if show and (config.clusters.kind != "kmeans" or quality[0].clusters < quality[0].images):
        report(clustering, quality, config)
    return clustering, quality


def _clustering(config: Config, clusters: ClustersConfig, images: Images) -> Clustering:
    """Clusters of the metadata or of ``clusters.from``; of any use or not."""
    source, label, data = images.train, images.label, config.data
    if clusters.from_ is not None:
        where = _table_of(clusters.from_, data.endpoint)
        id_column = source.id_column
        table = open_table(where, id_column, clusters.columns, data.endpoint, data.encoding)
        base = singletons(config, images)
        return replace(base, assignment=table.assign(base.assignment))
    source.check_columns(clusters.columns, "clusters.columns")
    columns = columns_of(clusters, label, images.available)
    rows = images.metadata(list(dict.fromkeys([*columns, *([label] if label else [])])))
    return cluster_metadata(rows, clusters, label, images.available, config.seed, strict=False)


def _table_of(uri: str, endpoint: str | None) -> str:
    """The last clusters of a run, or the table itself.

    Raises:
        UserError: a run without clusters.
    """
    run = Folder(resolve_input(uri).rstrip("/"), endpoint)
    if not run.exists(FILE):
        return uri
    for name in reversed((run / "rounds").names()):
        if run.exists(f"rounds/{name}/{CLUSTERED}"):
            return f"{run.path if run.local else run.uri}/rounds/{name}/{CLUSTERED}"
    raise UserError(
        f"clusters.from {uri} is the folder of a run, but holds no rounds/*/{CLUSTERED}"
    )


def singletons(config: Config, images: Images) -> Clustering:
    """Every training image a singleton, and their labels."""
    return _clustering(config, ClustersConfig(kind="instance"), images)


def qualities(table: Assignment, labels: np.ndarray | None, config: Config) -> list[Quality]:
    """Measures of each granularity."""
    group = 1 if config.clusters.kind == "instance" else config.clusters.samples_per_cluster
    return [
        measure(name, table.clusters[:, i], labels, config.train.batch_size, group)
        for i, name in enumerate(table.names)
    ]


def read_labels(config: Config, images: Images, ids: np.ndarray) -> np.ndarray | None:
    """int32 (N,): number of the label of each training image, -1 = missing; None without one."""
    if images.label is None:
        return None
    known = singletons(config, images)
    assert known.labels is not None
    place = positions_of(known.assignment.ids, ids)
    return np.where(place >= 0, known.labels[place], np.int32(-1))


def report(clustering: Clustering, quality: list[Quality], config: Config) -> None:
    """Print what the clusters are made of and how good they are."""
    if clustering.chosen:
        names = [f"{a.name} ({a.entropy:.2f} bits)" for a in clustering.chosen]
        more = f" and {len(names) - 6} more" if len(names) > 6 else ""
        put(f"attributes: {', '.join(names[:6])}{more}")
    for name, reason in clustering.skipped.items():
        put(f"left out: column {name!r}, {reason}")
    show_quality(quality, config)
    for note in clustering.notes:
        warn(note)


def show_quality(quality: list[Quality], config: Config) -> None:
    """Print the table of measures, and what is odd in it."""
    put(f"\n{render(quality, config.train.batch_size)}\n")
    if config.clusters.kind != "instance":
        for text in filter(None, map(warning, quality)):
            warn(text)
