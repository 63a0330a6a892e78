"""Stage 1 alone: build the clusters and say how good they are, before any GPU hour is spent.

    python jobs/cluster.py --data.path DIR --data.label CLASS --clusters.kind attributes
    python jobs/cluster.py --data.path DIR --clusters.top-k 5 10 20 40     # several granularities
    python jobs/cluster.py … --out clusters.parquet                       # keep the table

Takes the options of pretrain.py; those of training are ignored.
"""

from __future__ import annotations

from dataclasses import dataclass

from wcl_ray.cli import parse, run_job
from wcl_ray.config import Config


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterJob(Config):
    """Build the clusters of a data set and report their quality, without training."""

    out: str | None = None
    """Parquet file to write the table id → cluster to (a path or s3:// URI)."""


def main() -> None:
    config = parse(cls=ClusterJob, prog="cluster.py", implied=demo_flags)

    def body() -> None:
        from wcl_ray.train.rounds import cluster

        cluster(config, config.out)

    run_job(body)


def demo_flags(words: list[str]) -> list[str]:
    given = any(word.split("=")[0] == "--data.path" for word in words)
    return [] if given else ["--data.label", "label", "--clusters.top-k", "4", "8", "12", "20"]


if __name__ == "__main__":
    main()
