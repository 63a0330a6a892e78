"""K-means of the features, found anew each round (see train.rounds), or of metadata columns."""

from __future__ import annotations

import pyarrow as pa
from ray.data import Dataset

from wcl_ray.clusters.assignment import Assignment
from wcl_ray.clusters.features import cluster_features, wanted_k
from wcl_ray.clusters.kinds import Kind, Needs, no_keys
from wcl_ray.clusters.metadata import Clustering, assign
from wcl_ray.clusters.tfidf import vectors
from wcl_ray.config import ClustersConfig
from wcl_ray.registry import KINDS
from wcl_ray.terminal import say


@KINDS.add("kmeans")
class KMeansClusters(Kind):
    """k-means. Of features it starts with every image a singleton, until there are features."""

    needs: Needs = "features"
    granularity = "k"

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
        bare, labels, classes = assign(rows, self.keys, ("instance",), self.label)
        if not self.columns:
            return Clustering(bare, labels, classes)
        made, text = vectors(rows, self.columns, self.config.columns)
        say("vectors", text)
        ks = wanted_k(self.config, len(bare.ids))
        found = cluster_features(made, bare.ids, ks, self.config, seed=seed)
        assignment = Assignment(bare.ids, found.clusters, found.names, bare.keys)
        return Clustering(assignment, labels, classes, notes=tuple(self.notes))
