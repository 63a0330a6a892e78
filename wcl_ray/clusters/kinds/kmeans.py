"""K-means of the features, repeated in each round (see train.rounds), or of metadata columns."""

from __future__ import annotations

import pyarrow as pa
from ray.data import Dataset

from wcl_ray.clusters.assignment import Assignment
from wcl_ray.clusters.features import choose_k, cluster_features
from wcl_ray.clusters.kinds import Kind, Needs, no_keys
from wcl_ray.clusters.metadata import Clustering, assign
from wcl_ray.clusters.tfidf import vectors
from wcl_ray.config import ClustersConfig
from wcl_ray.registry import KINDS
from wcl_ray.terminal import say


@KINDS.add("kmeans")
class KMeansClusters(Kind):
    """k-means. For features, all images are singletons until an encoder is trained."""

    needs: Needs = "features"
    granularity = "k"
    uses_types = True  # with clusters.features metadata

    def __init__(
        self, config: ClustersConfig, label: str | None, available: tuple[str, ...]
    ) -> None:
        if config.features == "metadata":
            self.needs = "columns"
        super().__init__(config, label, available)

    def keys(self, table: pa.Table) -> list[pa.Array]:
        return no_keys(table)

    def cluster(self, rows: Dataset, seed: int) -> Clustering:
        self.prepare(rows)
        singletons, labels, classes = assign(rows, self.keys, ("instance",), self.label)
        if not self.columns:
            return Clustering(singletons, labels, classes)
        config = self.config
        features, text, summaries = vectors(
            rows, self.columns, config.columns, config.quantiles, config.column_types
        )
        say("vectors", text)
        ids = singletons.ids
        ks = choose_k(config, len(ids))
        clusters = cluster_features(features, ids, ks, config, seed=seed)
        assignment = Assignment(ids, clusters.clusters, clusters.names, singletons.keys)
        notes = tuple(self.notes)
        return Clustering(assignment, labels, classes, notes=notes, columns=tuple(summaries))
