"""The clusters of one round: embed the images with the last weights, k-means, compare, write down.

Round r has r = 0 … R-1. The first ``train.warmup_rounds`` train on single images. A later round
clusters the features that the round before left, starting from the means of the new features under
the old clusters.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.data import Dataset

from wcl_ray.clusters.agreement import agreement, size_histogram
from wcl_ray.clusters.assignment import Assignment
from wcl_ray.clusters.cache import (
    array_digest,
    digest,
    keep,
    kmeans_facts,
    load_with_facts,
)
from wcl_ray.clusters.features import cluster_features, to_cluster
from wcl_ray.clusters.metadata import Clustering
from wcl_ray.config import Config
from wcl_ray.data.data_stats import note
from wcl_ray.data.fingerprint import covers_images
from wcl_ray.data.images import Images
from wcl_ray.data.sources.base import FAULT, ID
from wcl_ray.data.split import sample
from wcl_ray.data.stream import Stream
from wcl_ray.errors import UserError
from wcl_ray.evaluate.embed import embed, feature_matrix, resources
from wcl_ray.evaluate.feature_cache import keep_features, load_features, weights_digest
from wcl_ray.evaluate.geometry import feature_std, rank_me, uniformity
from wcl_ray.model.encoder import EncoderSpec, save_projector
from wcl_ray.runs.capacity import Scale
from wcl_ray.runs.clusters import cache_of, qualities, read_labels, show_quality
from wcl_ray.storage import Folder
from wcl_ray.terminal import say, warn
from wcl_ray.train.checkpoint import trained_encoder

COLLAPSE_ROWS = 5000  # sampled for the collapse metrics


@dataclass(frozen=True)
class RoundResult:
    """What a round leaves, and the next starts from.

    Attributes:
        checkpoint: its last one.
        seconds: of training.
    """

    checkpoint: ray.train.Checkpoint
    assignment: Assignment
    seconds: float = 0.0


def round_clusters(
    config: Config,
    images: Images,
    stream: Stream,
    base: Assignment,
    folder: Folder,
    previous: RoundResult | None,
    scale: Scale,
    shareable: bool,
) -> tuple[Assignment, dict[str, Any]]:
    """Clusters from the features of the weights that the round before left.

    Args:
        base: the metadata's clusters, or all images singletons; singletons of it are
            clustered.
        folder: of the round; gets ``clusters.json``.
        previous: None: random weights.
        scale: of the training; where other runs share the cluster, this takes what one worker does.
        shareable: other runs may come to the same weights, so that the features are kept.

    Returns:
        The assignment, and figures for ``metrics.jsonl``.
    """
    wanted, ks = to_cluster(config.clusters, base)
    if not ks:
        return base, {}
    old = previous.assignment if previous else None
    before = _before(old, base, wanted, len(ks))
    found = _cached(config, images, stream, base, wanted, ks, previous, before, scale, shareable)
    assignment = _joined(base, found.clusters, found.names)
    collapse = found.collapse
    labels = read_labels(config, images, base.ids)
    compared = _compare(assignment, old, labels)
    quality = qualities(assignment, labels, config)
    show_quality(quality, config)
    _say(assignment, compared, collapse)
    facts = {
        "quality": [q.to_dict() for q in quality],
        "agreement": compared,
        "sizes": {
            name: size_histogram(assignment.sizes(g)) for g, name in enumerate(assignment.names)
        },
        "collapse": collapse,
        "kmeans": found.facts,
    }
    folder.write("clusters.json", json.dumps(facts, indent=2).encode())
    return assignment, compared | collapse


@dataclass(frozen=True)
class _Found:
    """k-means clusters by position; facts and collapse figures are JSON types."""

    clusters: np.ndarray
    names: tuple[str, ...]
    facts: dict[str, Any]
    collapse: dict[str, float]


def _cached(
    config: Config,
    images: Images,
    stream: Stream,
    base: Assignment,
    wanted: np.ndarray,
    ks: tuple[int, ...],
    previous: RoundResult | None,
    before: np.ndarray | None,
    scale: Scale,
    shareable: bool,
) -> _Found:
    """Embed and cluster, unless the cache holds the clusters, or the features, of these weights."""
    spec = EncoderSpec(config.model, config.data.image_size, config.loss.dual)
    torch.manual_seed(config.seed)  # the weights that training starts from
    encoder = trained_encoder(spec, previous.checkpoint) if previous else spec.build()
    weights = spec.export(encoder)
    projector = None
    if config.clusters.features == "projector":
        projector = save_projector(encoder, config.loss.feature_head)
    cache, facts = cache_of(config, images)
    cache = cache if covers_images(images.train) else None
    made_of = {
        "data": facts,
        "ids": array_digest(base.ids[wanted]),
        "weights": weights_digest(weights, projector),
        "size": config.data.stored_size,
        "gpu": scale.gpu,
    }
    if config.data.crops_files and stream.mode != "raw":
        made_of["crops"] = "files"
    options = kmeans_facts(config.clusters) | {"k": ks, "seed": config.seed}
    start = {"before": array_digest(before), "positions": array_digest(base.ids)}
    name = f"kmeans/{digest(made_of | options | start)}.parquet"
    hit = None if cache is None else load_with_facts(cache, name)
    if cache is not None and hit is not None:
        table, more = hit[0].assignment, hit[1]
        say("clusters", f"{', '.join(table.names)} from the cache in {cache.uri}")
        for text in more["facts"]["warnings"]:
            warn(f"k-means: {text}")
        return _Found(table.clusters, table.names, more["facts"], more["collapse"])
    own = digest(made_of)
    features = load_features(cache, own) if shareable else None
    if features is None:
        features = _features(config, stream, weights, projector, base.ids, wanted, scale)
        if shareable:
            keep_features(cache, own, features)
    collapse = ray.get(_collapse.remote(features.to_arrow_refs(), config.seed))
    crowd: dict[str, Any] = {"actors": 1, "cpus": min(1.0, scale.cpus)} if scale.crowded else {}
    made = cluster_features(
        features,
        base.ids,
        ks,
        config.clusters,
        seed=config.seed,
        gpu=scale.gpu,
        before=before,
        **crowd,
    )
    if cache is not None:
        table = Assignment(base.ids, made.clusters, made.names)
        more = {"facts": made.facts, "collapse": collapse}
        keep(cache, name, Clustering(table, None, 0), more)
    return _Found(made.clusters, made.names, made.facts, collapse)


def _features(
    config: Config,
    stream: Stream,
    weights: bytes,
    projector: bytes | None,
    ids: np.ndarray,
    wanted: np.ndarray,
    scale: Scale,
) -> Dataset:
    """Features of the wanted training images, kept in the object store: ``__id``, ``feature``."""
    rows = stream.images()
    if not wanted.all():
        chosen = ray.put(ids[wanted])

        def pick(table: pa.Table) -> pa.Table:
            return table.filter(pa.array(np.isin(table[ID].to_numpy(), ray.get(chosen))))

        cpus = min(1.0, scale.cpus)
        rows = rows.map_batches(pick, batch_format="pyarrow", batch_size=None, num_cpus=cpus)
    part = resources(int(ray.cluster_resources().get("GPU", 0)) if scale.gpu else 0)
    if scale.crowded:
        part |= {"actors": 1, "cpus": min(1.0, scale.cpus)}
    embedded = embed(rows, weights, store_size=config.data.stored_size, projector=projector, **part)
    kept = embedded.materialize()
    note("embedded", kept)
    return kept


@ray.remote(num_cpus=1, scheduling_strategy="DEFAULT")
def _collapse(refs: list[Any], seed: int) -> dict[str, float]:
    """Does the embedding use its space? RankMe, uniformity, deviation of a sample of features."""
    total = sum(ray.get([_rows.remote(ref) for ref in refs]))
    parts = []
    for ref in refs:
        table = ray.get(ref)
        if table.num_rows:
            good = table.filter(table[FAULT].is_null())
            chosen = sample(good[ID].to_numpy(), COLLAPSE_ROWS, total, seed)
            parts.append(good.filter(pa.array(chosen)))
    rows = pa.concat_tables(parts).sort_by(ID) if parts else None
    if rows is None or rows.num_rows < 2:
        raise UserError("k-means: no readable image to cluster")
    x = torch.from_numpy(feature_matrix(rows["feature"]).copy())
    if not torch.isfinite(x).all():
        return {}  # k-means counts and names them
    return {"rank_me": rank_me(x), "uniformity": uniformity(x), "feature_std": feature_std(x)}


@ray.remote(num_cpus=0, scheduling_strategy="DEFAULT")
def _rows(table: pa.Table) -> int:
    return int(table.num_rows)


def _before(
    old: Assignment | None, base: Assignment, wanted: np.ndarray, count: int
) -> np.ndarray | None:
    """The k-means clusters of the round before by position, None when it had none."""
    if old is None or (old.clusters[wanted] < 0).all():
        return None
    if (base.clusters < 0).all():
        return old.clusters if old.clusters.shape[1] == count else None
    first = int(base.clusters[:, 0].max()) + 1  # beside those of the metadata
    return np.where(wanted, old.clusters[:, 0] - first, -1)[:, None].astype(np.int32)


def _joined(base: Assignment, clusters: np.ndarray, names: tuple[str, ...]) -> Assignment:
    """k-means clusters in place of singletons, numbered after those of the metadata."""
    if (base.clusters < 0).all():
        return replace(base, clusters=clusters, names=names)
    columns = []
    for own in base.clusters.T:
        extra = clusters[:, 0]
        columns.append(np.where((own < 0) & (extra >= 0), extra + own.max() + 1, own))
    return replace(base, clusters=np.stack(columns, 1).astype(np.int32))


def _say(assignment: Assignment, compared: dict[str, float], collapse: dict[str, float]) -> None:
    for name in assignment.names:
        words = []
        for other, title in (("previous", "the round before"), ("label", "the label")):
            if f"{name}_nmi_{other}" in compared:
                nmi, ari = (compared[f"{name}_{what}_{other}"] for what in ("nmi", "ari"))
                words.append(f"with {title} NMI {nmi:.3f} ARI {ari:.3f}")
        if words:
            say("agreement", f"{name} {', '.join(words)}")
    if collapse:
        say("features", "  ".join(f"{key} {value:.2f}" for key, value in collapse.items()))


def _compare(
    assignment: Assignment, old: Assignment | None, labels: np.ndarray | None
) -> dict[str, float]:
    """NMI and ARI with the round before, and with the label, of each granularity."""
    found: dict[str, float] = {}
    for g, name in enumerate(assignment.names):
        own = assignment.clusters[:, g]
        if old is not None and name in old.names:
            same = agreement(own, old.clusters[:, old.names.index(name)])
            found |= {f"{name}_nmi_previous": same.nmi, f"{name}_ari_previous": same.ari}
        if labels is not None:
            same = agreement(own, labels)
            found |= {f"{name}_nmi_label": same.nmi, f"{name}_ari_label": same.ari}
        sizes = assignment.sizes(g)
        found |= {f"{name}_clusters": float(len(sizes)), f"{name}_largest": float(sizes.max())}
    return found
