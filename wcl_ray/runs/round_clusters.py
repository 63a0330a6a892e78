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
from wcl_ray.clusters.features import FeatureClusters, cluster_features, images_to_cluster
from wcl_ray.config import Config
from wcl_ray.data.data_stats import note
from wcl_ray.data.ids import array_digest
from wcl_ray.data.sources.base import FAULT, ID
from wcl_ray.data.split import sample
from wcl_ray.data.stream import Stream
from wcl_ray.errors import UserError
from wcl_ray.evaluate.embed import embed, feature_tensor, resources
from wcl_ray.evaluate.geometry import feature_std, rank_me, uniformity
from wcl_ray.model.encoder import EncoderSpec, save_projector
from wcl_ray.runs.capacity import Scale
from wcl_ray.runs.clusters import qualities, show_quality
from wcl_ray.runs.shared import Shared
from wcl_ray.storage import Folder
from wcl_ray.terminal import say
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
    stream: Stream,
    base: Assignment,
    labels: np.ndarray | None,
    folder: Folder,
    previous: RoundResult | None,
    scale: Scale,
    shared: Shared | None = None,
) -> tuple[Assignment, dict[str, Any]]:
    """Clusters from the features of the weights that the round before left.

    Args:
        base: the metadata's clusters, or all images singletons; singletons of it are
            clustered.
        labels: int32 (N,) of the images in ``base``, -1 = missing, to compare with.
        folder: of the round; gets ``clusters.json``.
        previous: None: random weights.
        scale: of the training; where other runs share the cluster, this takes what one worker does.
        shared: with other trials, whose random weights are the same.

    Returns:
        The assignment, and figures for ``metrics.jsonl``.
    """
    wanted, ks = images_to_cluster(config.clusters, base)
    if not ks:
        return base, {}
    old = previous.assignment if previous else None
    before = _before(old, base, wanted, len(ks))
    if previous is not None:
        shared = None  # what a trial has learned is its own

    def make() -> tuple[FeatureClusters, dict[str, float]]:
        features = _features(config, stream, previous, base.ids, wanted, scale, shared)
        collapse = ray.get(_collapse.remote(features.to_arrow_refs(), config.seed))
        crowd: dict[str, Any] = {"actors": 1, "cpus": min(1.0, scale.cpus)} if scale.crowded else {}
        found = cluster_features(
            features,
            base.ids,
            ks,
            config.clusters,
            seed=config.seed,
            gpu=scale.gpu,
            before=before,
            **crowd,
        )
        return found, collapse

    if shared is not None:
        made_of = (
            _made_of(config, base.ids[wanted]),
            replace(config.clusters, samples_per_cluster=1, k=ks),
        )
        found, collapse = shared.value(f"clusters of {made_of}", make)
    else:
        found, collapse = make()
    assignment = _joined(base, found.clusters, found.names)
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
        "kmeans": found.report,
    }
    folder.write("clusters.json", json.dumps(facts, indent=2).encode())
    return assignment, compared | collapse


def _made_of(config: Config, ids: np.ndarray) -> str:
    """What the features of random weights depend on, as far as trials of a search differ in it."""
    head = config.loss.feature_head if config.clusters.features == "projector" else None
    given = (config.seed, config.model, config.loss.dual, config.clusters.features, head)
    return f"{given} {array_digest(ids)}"


def _features(
    config: Config,
    stream: Stream,
    previous: RoundResult | None,
    ids: np.ndarray,
    wanted: np.ndarray,
    scale: Scale,
    shared: Shared | None,
) -> Dataset:
    """Features of the wanted training images, kept in the object store: ``__id``, ``feature``."""
    if shared is not None:

        def make() -> list[Any]:
            refs = _features(config, stream, previous, ids, wanted, scale, None).to_arrow_refs()
            rows = ray.get([_rows.remote(ref) for ref in refs])
            return [ref for ref, count in zip(refs, rows, strict=True) if count]

        key = f"features of {_made_of(config, ids[wanted])}"
        return ray.data.from_arrow_refs(shared.refs(key, make))
    spec = EncoderSpec(config.model, config.data.image_size, config.loss.dual)
    torch.manual_seed(config.seed)  # the weights that training starts from
    encoder = trained_encoder(spec, previous.checkpoint) if previous else spec.build()
    weights = spec.export(encoder)
    projector = None
    if config.clusters.features == "projector":
        projector = save_projector(encoder, config.loss.feature_head)
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
    x = feature_tensor(rows["feature"])
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
