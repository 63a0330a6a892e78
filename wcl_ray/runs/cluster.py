"""Clustering without training (``jobs/cluster.py``): of metadata, or of features by k-means."""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace

import numpy as np
import pyarrow as pa

from wcl_ray import stopping
from wcl_ray.clusters.assignment import Assignment
from wcl_ray.clusters.features import FeatureClusters, choose_k, cluster_features
from wcl_ray.clusters.metadata import Clustering, cluster_metadata
from wcl_ray.clusters.quality import Quality
from wcl_ray.config import ClustersConfig, Config, DataConfig
from wcl_ray.data.data_stats import note
from wcl_ray.data.ids import positions_of
from wcl_ray.data.images import open_images
from wcl_ray.data.sources.base import check_paths
from wcl_ray.errors import UserError
from wcl_ray.kmeans.state import FILE
from wcl_ray.kmeans.vectors import Vectors, has_vectors, label_dataset, open_vectors
from wcl_ray.runs.capacity import gpus
from wcl_ray.runs.clusters import build_clusters, check_types, qualities, show_quality, singletons
from wcl_ray.runs.lock import RunLock
from wcl_ray.runs.nodes import connect
from wcl_ray.runs.summary import ResourceSummary
from wcl_ray.runs.trained import Trained
from wcl_ray.storage import Folder, check_target, write_file
from wcl_ray.terminal import say

SINGLETONS = ClustersConfig(kind="instance")


def cluster(
    config: Config,
    *,
    run: str | None = None,
    column: str | None = None,
    out: str | None = None,
    centroids: str | None = None,
    checkpoint: str | None = None,
) -> list[Quality]:
    """Build clusters, print their quality, and write the table id → cluster if asked.

    Without ``run``, k-means of features clusters the vectors in the Parquet files of ``data.path``.

    Args:
        run: folder of a run whose encoder computes the features of the images.
        column: of the vectors.
        out: Parquet file for the table. centroids: ``.npz`` file for the centroids.
        checkpoint: folder for the state of k-means of vectors, written after every iteration.

    Raises:
        UserError: options that exclude each other, or wrong input.
    """
    data = config.data
    of_features = config.clusters.kind == "kmeans" and config.clusters.features != "metadata"
    for name, target in (("out", out), ("centroids", centroids)):
        if target is not None:
            check_target(target, f"--{name}", data.endpoint)
    check_types(config)
    vectors = None
    if not of_features:
        paths = {"run": run, "centroids": centroids, "checkpoint": checkpoint}
        for name, value in (paths | {"vector-column": column}).items():
            if value is not None:
                raise UserError(f"--{name} needs --clusters.kind kmeans of features")
    elif run is None:
        vectors = _vectors(data, column)
        if checkpoint is None:
            stopping.set_resume_hint(
                f"{stopping.START_OVER}; with --checkpoint FOLDER k-means continues"
            )
        elif Folder(checkpoint, data.endpoint).exists(FILE):
            stopping.set_resume_hint("the same command continues from the last iteration")
    elif column is not None or checkpoint is not None:
        raise UserError(
            "--vector-column and --checkpoint are for vectors, not for --run; jobs/embed.py "
            "computes vectors of images"
        )
    else:
        stopping.set_resume_hint(
            f"{stopping.START_OVER}; jobs/embed.py and then --checkpoint continue"
        )
    trained = None if run is None else Trained.open(run, data.endpoint)
    image_data = data
    if trained is not None and data.path is None:
        image_data = trained.data({"label": data.label, "table": data.table, "key": data.key})
    if vectors is None:
        check_paths(image_data)
    lock: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if checkpoint is not None:
        folder = Folder(checkpoint, data.endpoint)
        lock = RunLock(folder, instead="use another --checkpoint")
    connect(config.scale)
    with ResourceSummary() as usage, lock, usage.stage("clusters"):
        if not of_features:
            images = open_images(data, config.storage, config.seed)
            say("images", images.train.describe())
            check_types(config, images)
            clustering, quality = build_clusters(config, images)
            table = clustering.assignment
        else:
            if vectors is not None:
                result, base = _cluster_vectors(config, vectors, checkpoint)
            else:
                assert trained is not None
                result, base = _cluster_run(config, trained, image_data)
            table = replace(base.assignment, clusters=result.clusters, names=result.names)
            quality = qualities(table, base.labels, config)
            show_quality(quality, config)
            if centroids is not None:
                sink = io.BytesIO()
                arrays = dict(zip(result.names, result.centroids, strict=True))
                np.savez(sink, **arrays)  # type: ignore[arg-type]
                write_file(centroids, sink.getvalue(), data.endpoint)
                say("centroids", f"in {centroids}")
    usage.report()
    if out is not None:
        write_file(out, table.to_parquet(), data.endpoint)
        say("clusters", f"{len(table.ids):,} rows in {out}")
    return quality


def _vectors(data: DataConfig, column: str | None) -> Vectors:
    """The vectors of ``data.path``."""
    if data.path is None or (column is None and not has_vectors(data.path, data.endpoint)):
        problem = "data.path is not given" if data.path is None else f"{data.path} holds no vectors"
        raise UserError(
            f"k-means clusters features, but {problem}; give Parquet files of vectors (jobs/"
            "embed.py writes them), or images and the --run whose encoder computes the features, "
            "or use --clusters.features metadata"
        )
    if data.table:
        raise UserError(
            "--data.table is for images, not for vectors; jobs/embed.py --columns writes its "
            "columns beside the vectors"
        )
    return open_vectors(data.path, column, data.id, data.endpoint)


def _cluster_run(
    config: Config, trained: Trained, data: DataConfig
) -> tuple[FeatureClusters, Clustering]:
    """k-means of the features that the encoder of a run computes of the images."""
    assert config.clusters.features != "metadata"
    find_tables = trained.find_tables({"path": config.data.path})
    trained_on = trained.config
    images = open_images(data, trained_on.storage, trained_on.seed, find_tables=find_tables)
    images = replace(images, holdout=0.0)  # test images are clustered, too
    say("images", images.train.describe())
    base = singletons(config, images)
    ids = base.assignment.ids
    ks = choose_k(config.clusters, len(ids))
    gpu = gpus(config.scale) > 0
    head = config.clusters.features
    say("features", f"{head} of {trained.folder.uri}")
    features = trained.embed(images.train_images(), head, config.scale).materialize()
    note("embedded", features)
    return cluster_features(features, ids, ks, config.clusters, seed=config.seed, gpu=gpu), base


def _cluster_vectors(
    config: Config, vectors: Vectors, checkpoint: str | None
) -> tuple[FeatureClusters, Clustering]:
    """k-means of the vectors in Parquet files, and an assignment with their keys and labels."""
    say("vectors", f"{vectors.rows:,} rows, column {vectors.pieces[0].column!r}")
    label = config.data.label
    rows = label_dataset(vectors, label)  # a missing label column is an error before the work
    ks = choose_k(config.clusters, vectors.rows)
    result = cluster_features(
        vectors,
        None,
        ks,
        config.clusters,
        seed=config.seed,
        gpu=gpus(config.scale) > 0,
        checkpoint=Folder(checkpoint, config.data.endpoint) if checkpoint else None,
    )
    base = cluster_metadata(rows, SINGLETONS, label, ())
    positions = positions_of(base.assignment.ids, result.ids)
    keys = base.assignment.keys
    assignment = Assignment(
        result.ids,
        result.clusters,
        result.names,
        None if keys is None else keys.take(pa.array(positions)),
    )
    labels = None if base.labels is None else base.labels[positions]
    return result, Clustering(assignment, labels, base.classes)
