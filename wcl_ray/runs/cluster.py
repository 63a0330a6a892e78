"""Stage 1 alone (``jobs/cluster.py``): clusters of metadata, or k-means of features."""

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
from wcl_ray.data.images import open_images
from wcl_ray.data.sources.base import check_paths
from wcl_ray.data.stream import positions_of
from wcl_ray.errors import UserError
from wcl_ray.kmeans.state import FILE
from wcl_ray.kmeans.vectors import Vectors, has_vectors, open_vectors, side_columns
from wcl_ray.runs.capacity import gpus
from wcl_ray.runs.clusters import build_clusters, qualities, show_quality, singletons
from wcl_ray.runs.lock import RunLock
from wcl_ray.runs.nodes import connect
from wcl_ray.runs.summary import ResourceSummary
from wcl_ray.runs.trained import Trained
from wcl_ray.storage import Folder, check_target, write_file
from wcl_ray.terminal import say

HOPELESS_SHARE = ClustersConfig(kind="instance")


def cluster(
    config: Config,
    *,
    run: str | None = None,
    column: str | None = None,
    out: str | None = None,
    centroids: str | None = None,
    checkpoint: str | None = None,
) -> list[Quality]:
    """Build clusters, print how good they are, and write the table id → cluster where asked.

    k-means of features takes vectors when ``data.path`` holds Parquet files of them, else images
    and a run.

    Args:
        run: folder of a run whose encoder makes the features.
        column: of the vectors.
        out: Parquet file for the table. centroids: ``.npz`` file for the centroids.
        checkpoint: folder for the state of k-means of vectors, after every iteration.

    Raises:
        UserError: options that do not go together, or wrong input.
    """
    data = config.data
    of_features = config.clusters.kind == "kmeans" and config.clusters.features != "metadata"
    given = {"run": run, "vector-column": column, "centroids": centroids, "checkpoint": checkpoint}
    for name, target in (("out", out), ("centroids", centroids)):
        if target is not None:
            check_target(target, f"--{name}", data.endpoint)
    vectors = None
    if not of_features:
        for name, value in given.items():
            if value is not None:
                raise UserError(f"--{name} goes with --clusters.kind kmeans and features")
    elif run is None:
        vectors = _vectors(data, column)
        if checkpoint is None:
            stopping.set_resume_hint(
                f"{stopping.START_OVER}; with --checkpoint FOLDER k-means goes on"
            )
        elif Folder(checkpoint, data.endpoint).exists(FILE):
            stopping.set_resume_hint("the same command goes on from the last iteration")
    elif column is not None or checkpoint is not None:
        raise UserError(
            "--vector-column and --checkpoint go with vectors, not with --run; jobs/embed.py "
            "makes vectors of images"
        )
    else:
        stopping.set_resume_hint(
            f"{stopping.START_OVER}; jobs/embed.py and then --checkpoint go on"
        )
    trained = None if run is None else Trained.open(run, data.endpoint)
    images_at = data
    if trained is not None and data.path is None:
        images_at = trained.data({"label": data.label})
    if vectors is None:
        check_paths(images_at)
    held: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if checkpoint is not None:
        folder = Folder(checkpoint, data.endpoint)
        held = RunLock(folder, instead="use another --checkpoint")
    connect(config.scale)
    with ResourceSummary() as usage, held, usage.stage("clusters"):
        if not of_features:
            images = open_images(data, config.storage, config.seed)
            say("images", images.train.describe())
            clustering, quality = build_clusters(config, images)
            table = clustering.assignment
        else:
            if vectors is not None:
                found, base = _of_vectors(config, vectors, checkpoint)
            else:
                assert trained is not None
                found, base = _of_run(config, trained, images_at)
            table = replace(base.assignment, clusters=found.clusters, names=found.names)
            quality = qualities(table, base.labels, config)
            show_quality(quality, config)
            if centroids is not None:
                sink = io.BytesIO()
                named = dict(zip(found.names, found.centroids, strict=True))
                np.savez(sink, **named)  # type: ignore[arg-type]
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
        what = "data.path is not given" if data.path is None else f"{data.path} holds no vectors"
        raise UserError(
            f"k-means clusters features, but {what}; give Parquet files of vectors (jobs/embed.py "
            "makes them), images and the --run whose encoder makes the features, or "
            "--clusters.features metadata"
        )
    return open_vectors(data.path, column, data.id, data.endpoint)


def _of_run(
    config: Config, trained: Trained, data: DataConfig
) -> tuple[FeatureClusters, Clustering]:
    """k-means of what the encoder of a run makes of the images."""
    assert config.clusters.features != "metadata"
    images = open_images(data, trained.config.storage, trained.config.seed)
    images = replace(images, holdout=0.0)  # all are clustered
    say("images", images.train.describe())
    base = singletons(config, images)
    ids = base.assignment.ids
    ks = choose_k(config.clusters, len(ids))
    gpu = gpus(config.scale) > 0
    which = config.clusters.features
    say("features", f"{which} of {trained.folder.uri}")
    made = trained.embed(images.train_images(), which, config.scale).materialize()
    note("embedded", made)
    found = cluster_features(made, ids, ks, config.clusters, seed=config.seed, gpu=gpu)
    return found, base


def _of_vectors(
    config: Config, vectors: Vectors, checkpoint: str | None
) -> tuple[FeatureClusters, Clustering]:
    """k-means of the vectors in Parquet files, and their keys and labels."""
    say("vectors", f"{vectors.rows:,} rows, column {vectors.pieces[0].column!r}")
    label = config.data.label
    rows = side_columns(vectors, label)  # a missing label is found before the work
    ks = choose_k(config.clusters, vectors.rows)
    found = cluster_features(
        vectors,
        None,
        ks,
        config.clusters,
        seed=config.seed,
        gpu=gpus(config.scale) > 0,
        checkpoint=Folder(checkpoint, config.data.endpoint) if checkpoint else None,
    )
    base = cluster_metadata(rows, HOPELESS_SHARE, label, ())
    place = positions_of(base.assignment.ids, found.ids)
    keys = base.assignment.keys
    own = Assignment(
        found.ids, found.clusters, found.names, None if keys is None else keys.take(pa.array(place))
    )
    labels = None if base.labels is None else base.labels[place]
    return found, Clustering(own, labels, base.classes)
