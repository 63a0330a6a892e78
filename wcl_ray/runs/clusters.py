"""Stage 1 of a run: the clusters of its training images, and their quality."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np

from wcl_ray.clusters.assignment import Assignment
from wcl_ray.clusters.columns import render as render_columns
from wcl_ray.clusters.features import images_to_cluster
from wcl_ray.clusters.metadata import Clustering, check, cluster_metadata, columns_of
from wcl_ray.clusters.quality import Quality, measure, render, warning
from wcl_ray.clusters.similarity import FILE as SIMILARITY
from wcl_ray.clusters.similarity import MetadataBits, metadata_bits
from wcl_ray.clusters.table import open_table
from wcl_ray.config import ClustersConfig, Config
from wcl_ray.data.ids import positions_of
from wcl_ray.data.images import Images
from wcl_ray.errors import UserError
from wcl_ray.registry import KINDS
from wcl_ray.runs.folder import CLUSTERED, add_faults, claim
from wcl_ray.runs.levels import check_levels, warn_siblings
from wcl_ray.runs.moved import TRAIN, check_moves, id_summary, side_summaries
from wcl_ray.runs.preflight import CheckedImages
from wcl_ray.runs.stored import FILE
from wcl_ray.storage import Folder, resolve_input
from wcl_ray.terminal import put, say, warn


def cluster_images(config: Config, checked: CheckedImages, run: Folder) -> Assignment:
    """Cluster the metadata, or read the clusters in the run folder; claims a new run's name.

    With graded positives or a method of metadata these are written as well.

    Raises:
        UserError: see :func:`build_clusters`; fewer images than a batch or than clusters; the run
            is another's, or has other images.
    """
    images, folder = checked.images, run / "rounds/000"
    if config.clusters.from_features and not config.warmup_rounds:
        folder = run / "metadata"  # the first round has clusters of its own
    if folder.exists(CLUSTERED):
        assignment = Assignment.read(folder)
        say("clusters", f"{', '.join(assignment.names)}, as before")
        check_moves(run, config.data, images, id_summary(assignment.ids))
    else:
        check_types(config, images)
        clustering, quality = build_clusters(config, images)
        assignment = clustering.assignment
        _check_counts(assignment, config.clusters, config.train.batch_size)
        if not (config.clusters.from_features and config.clusters.kind == "kmeans"):
            check_levels(config.loss, assignment)
            samples = config.clusters.samples_per_cluster
            warn_siblings(config.loss, assignment, config.train.batch_size, samples)
        similarity = build_similarity(config, images, assignment)
        if run.exists(FILE):
            if not config.resume:  # created meanwhile by a job that took this one for dead
                raise UserError(f"{run.uri} holds a run already; choose another --name")
            check_moves(run, config.data, images, id_summary(assignment.ids))
        claim(run, config, {TRAIN: id_summary(assignment.ids)} | side_summaries(images))
        folder.write("clusters.json", _summary(clustering, quality))
        if similarity is not None:
            run.write(SIMILARITY, similarity.to_npz())
        folder.write(CLUSTERED, assignment.to_parquet())  # last: the stage is done
    if checked.unreadable:
        add_faults(run, list(checked.unreadable))
    return assignment


def check_types(config: Config, images: Images | None = None) -> None:
    """Raise a UserError if ``clusters.types`` has no effect.

    Args:
        images: None: the columns are not checked.
    """
    clusters = config.clusters
    if not clusters.types:
        return
    no_effect = "clusters.types has no effect on"
    kind, loss_reads_types = f"clusters.kind {clusters.kind}", config.uses_metadata
    if not clusters.uses_types and not loss_reads_types:
        what = "clusters.from" if clusters.kind == "table" else kind
        only = " without clusters.features metadata" if clusters.kind == "kmeans" else ""
        raise UserError(f"{no_effect} {what}{only}; leave it out")
    only_type = KINDS.get(clusters.kind).only_type
    for name, type_name in clusters.column_types.items():
        if only_type not in (None, type_name) and not loss_reads_types:
            raise UserError(
                f"{no_effect} column {name!r} of type {type_name}: {kind} uses columns of type "
                f"{only_type} alone; leave it out"
            )
    if images is None:
        return
    images.train.check_columns(tuple(clusters.column_types), "clusters.types")
    named = _named_metadata(clusters, images)
    for name in clusters.column_types:
        if name == images.label or name not in (named or images.available):
            why = "is the label" if name == images.label else "is not among clusters.columns"
            if not named and name == images.group:
                why = "is that of data.split-by, and not named in clusters.columns"
            raise UserError(f"{no_effect} column {name!r}, which {why}; leave it out")


def _check_counts(assignment: Assignment, clusters: ClustersConfig, batch_size: int) -> None:
    """Raise if the images are too few for a batch; warn if too few for k-means of features."""
    count = len(assignment.ids)
    if count < batch_size:
        raise UserError(
            f"there are {count} training images, fewer than train.batch-size {batch_size}; lower it"
        )
    if clusters.from_features:
        selected, ks = images_to_cluster(clusters, assignment)
        if not ks:
            warn(f"clusters.missing: {selected.sum()} images have no metadata, too few for k-means")


def _named_metadata(clusters: ClustersConfig, images: Images) -> tuple[str, ...]:
    """The metadata columns in ``clusters.columns``, which with ``clusters.from`` may name columns
    of that table as well."""
    if clusters.kind != "table":
        return clusters.columns
    columns = [name for name in images.train.columns if name != images.label]
    return tuple(name for name in clusters.columns if name in columns)


def similarity_columns(config: Config, images: Images) -> list[str]:
    """The metadata columns that weigh positives.

    Raises:
        UserError: there are none, or the label is among them.
    """
    named = _named_metadata(config.clusters, images)
    images.train.check_columns(named, "clusters.columns")
    columns = list(named) or [name for name in images.available if name != images.label]
    if not columns:
        raise UserError(
            f"{_needed_by(config)} needs metadata columns, but there are none; --data.table adds "
            "those of a file"
        )
    if images.label in columns:
        raise UserError(
            f"clusters.columns holds the label {images.label!r}, which would give away the answer "
            "of the evaluation; leave it out"
        )
    return columns


def _needed_by(config: Config) -> str:
    """The option that asks for the attributes of the images, for errors."""
    graded = config.loss.positives == "graded"
    return "loss.positives graded" if graded else f"method {config.method}"


def build_similarity(config: Config, images: Images, assignment: Assignment) -> MetadataBits | None:
    """The metadata that weigh positives or that the method needs; None if neither does.

    Raises:
        UserError: there are no usable metadata, or the label is among them or equivalent to a
            column.
    """
    if not config.uses_metadata:
        return None
    columns, label = similarity_columns(config, images), images.label
    named = _named_metadata(config.clusters, images)
    types = config.clusters.column_types
    images.train.check_columns(tuple(types), "clusters.types")
    rows = images.metadata([*columns, *([label] if label else [])])
    similarity = metadata_bits(
        rows, columns, named, assignment.ids, types, label, _needed_by(config)
    )
    graded = "graded by " if config.loss.positives == "graded" else ""
    say("positives" if graded else "metadata", f"{graded}{similarity.describe()}")
    if KINDS.get(config.clusters.kind).needs != "columns":  # else they have been shown
        for note in similarity.notes:
            warn(note)
    return similarity.metadata


def _summary(clustering: Clustering, quality: list[Quality]) -> bytes:
    """Content of ``clusters.json``."""
    summary = {
        "quality": [q.to_dict() for q in quality],
        "attributes": [asdict(a) for a in clustering.chosen],
        "columns": [asdict(column) for column in clustering.columns],
        "skipped": clustering.skipped,
        "notes": list(clustering.notes),
    }
    return json.dumps(summary, indent=2).encode()


def build_clusters(
    config: Config, images: Images, *, strict: bool = True, show: bool = True
) -> tuple[Clustering, list[Quality]]:
    """Cluster the training images without an encoder, and measure the clusters.

    Args:
        strict: raise if there is a single cluster, or if all images are singletons.
        show: print the quality report.

    Raises:
        UserError: see :func:`wcl_ray.clusters.metadata.cluster_metadata` and
            :func:`wcl_ray.clusters.table.open_table`; a label with one class.
    """
    clustering = _clustering(config, config.clusters, images)
    label = images.label
    if label is not None and clustering.classes < 2:
        count = "only one class" if clustering.classes else "no values"
        raise UserError(f"data.label {label!r} has {count}; evaluation needs at least two classes")
    if strict:
        check(clustering.assignment, config.clusters.kind)
    quality = qualities(clustering.assignment, clustering.labels, config)
    if show and (config.clusters.kind != "kmeans" or quality[0].clusters < quality[0].images):
        report(clustering, quality, config)
    return clustering, quality


def _clustering(config: Config, clusters: ClustersConfig, images: Images) -> Clustering:
    """Clusters of the metadata or of ``clusters.from``, useful or not."""
    source, label, data = images.train, images.label, config.data
    if clusters.from_ is not None:
        uri = _table_of(clusters.from_, data.endpoint)
        id_column = source.id_column
        others = _named_metadata(clusters, images) if config.uses_metadata else ()
        table = open_table(uri, id_column, clusters.columns, data.endpoint, data.encoding, others)
        base = singletons(config, images)
        return replace(base, assignment=table.assign(base.assignment))
    source.check_columns(clusters.columns, "clusters.columns")
    source.check_columns(tuple(clusters.column_types), "clusters.types")
    columns = columns_of(clusters, label, images.available)
    rows = images.metadata(list(dict.fromkeys([*columns, *([label] if label else [])])))
    return cluster_metadata(rows, clusters, label, images.available, config.seed, strict=False)


def _table_of(uri: str, endpoint: str | None) -> str:
    """URI of a table of clusters: ``uri``, or the last assignment in it if it is a run folder.

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
    """An assignment of every training image to no cluster, and the labels of the images."""
    return _clustering(config, ClustersConfig(kind="instance"), images)


def qualities(table: Assignment, labels: np.ndarray | None, config: Config) -> list[Quality]:
    """The quality of each granularity."""
    group = 1 if config.clusters.kind == "instance" else config.clusters.samples_per_cluster
    return [
        measure(name, table.clusters[:, i], labels, config.train.batch_size, group)
        for i, name in enumerate(table.names)
    ]


def read_labels(config: Config, images: Images, ids: np.ndarray) -> np.ndarray | None:
    """int32 (N,): class of each training image, -1 = missing; None without a label column."""
    if images.label is None:
        return None
    labelled = singletons(config, images)
    assert labelled.labels is not None
    positions = positions_of(labelled.assignment.ids, ids)
    return np.where(positions >= 0, labelled.labels[positions], np.int32(-1))


def report(clustering: Clustering, quality: list[Quality], config: Config) -> None:
    """Print the types of the columns, the attributes that the clusters are built from, and their
    quality."""
    if clustering.columns:
        put(f"\n{render_columns(clustering.columns)}\n")
    if clustering.chosen:
        names = [f"{a.name} ({a.entropy:.2f} bits)" for a in clustering.chosen]
        rest = f" and {len(names) - 6} more" if len(names) > 6 else ""
        put(f"attributes: {', '.join(names[:6])}{rest}")
    show_quality(quality, config)
    for note in clustering.notes:
        warn(note)


def show_quality(quality: list[Quality], config: Config) -> None:
    """Print the table of cluster quality, and warnings about it."""
    put(f"\n{render(quality, config.train.batch_size)}\n")
    if config.clusters.kind != "instance":
        for text in filter(None, map(warning, quality)):
            warn(text)
