"""Build clusters and report their quality, before any GPU hour is spent.

    python jobs/cluster.py --data.path DIR --data.label CLASS --clusters.kind attributes
    python jobs/cluster.py --data.path DIR --clusters.top-k 5 10 20 40     # several granularities
    python jobs/cluster.py … --out clusters.parquet                       # keep the table
    python jobs/cluster.py … --clusters.from clusters.csv                 # or bring your own

k-means of vectors in Parquet files (jobs/embed.py writes them), or of features of images, computed
by the encoder of a run:

    python jobs/cluster.py --clusters.kind kmeans --clusters.k 100,1000 --data.path features/
    python jobs/cluster.py --clusters.kind kmeans --clusters.k 100,1000 --run runs/NAME

Takes the options of pretrain.py; those of training are ignored.
"""

from __future__ import annotations

from dataclasses import dataclass

from wcl_ray.cli import parse, run_job
from wcl_ray.config import Config


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterJob(Config):
    """Build the clusters of a data set and report their quality, without training."""

    run: str | None = None
    """Run folder whose encoder computes features of the images for k-means. Without --data.path it
    takes the run's own images."""
    vector_column: str | None = None
    """Column of data.path with the vectors for k-means. Default: found by name and type."""
    out: str | None = None
    """Parquet file to write the table id → cluster to (a path or s3:// URI)."""
    centroids: str | None = None
    """File (.npz) to write the k-means centroids to, one array per granularity."""
    checkpoint: str | None = None
    """Folder for the state of k-means of vectors, written after every iteration; the same command
    continues from it."""


def main() -> None:
    config = parse(cls=ClusterJob, prog="cluster.py", implied=demo_flags)

    def body() -> None:
        from wcl_ray.runs.cluster import cluster

        cluster(
            config,
            run=config.run,
            column=config.vector_column,
            out=config.out,
            centroids=config.centroids,
            checkpoint=config.checkpoint,
        )

    run_job(body)


def demo_flags(given: set[str]) -> list[str]:
    """Options of the demo, implied if neither data nor clusters are given."""
    if given & {"data.path", "run", "clusters.kind", "clusters.from"}:
        return []
    return ["--data.label", "label", "--clusters.top-k", "4", "8", "12", "20"]


if __name__ == "__main__":
    main()
