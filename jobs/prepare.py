"""Write images as shards for training, those of one cluster together.

    python jobs/prepare.py --data.path DIR --clusters.kind attributes --out shards
    python jobs/pretrain.py --data.path shards --clusters.kind attributes

For images that do not fit into the object store: streaming composes batches from a few shards at a
time. Large images are shrunk. The metadata columns, those of --data.table included, go into the
shards. The same command continues a stopped job. Takes the options of pretrain.py; those of
training are ignored.
"""

from __future__ import annotations

from dataclasses import dataclass

from wcl_ray.cli import parse, run_job
from wcl_ray.config import Config, require


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareJob(Config):
    """Write images as shards for training, those of one cluster together."""

    out: str
    """Folder for the shards (a path or s3:// URI)."""
    short_side: int = 256
    """Images with a longer shorter side are shrunk to it, in pixels; others are left as they are.
    0: all are."""
    quality: int = 90
    """JPEG quality of the images that are shrunk."""
    shard_mb: float = 128
    """Size of a shard in MB, about."""
    part: int = 64
    """Clusters of twice as many images or more are cut into parts of this many or more. Larger
    parts keep more partners together when clusters change from round to round, but mix less."""

    def __post_init__(self) -> None:
        Config.__post_init__(self)
        require(
            self.short_side == 0 or self.short_side >= 8,
            f"short-side is {self.short_side}; give 8 pixels or more, or 0 to shrink none",
        )
        require(1 <= self.quality <= 100, f"quality is {self.quality}; it is from 1 to 100")
        require(self.shard_mb > 0, f"shard-mb is {self.shard_mb}; it must be positive")
        require(self.part >= 2, f"part is {self.part}; it starts at 2")


def main() -> None:
    job = parse(cls=PrepareJob, prog="prepare.py")

    def body() -> None:
        from wcl_ray.runs.prepare import Shape, prepare

        prepare(job, job.out, Shape(job.short_side, job.quality, job.shard_mb, job.part))

    run_job(body)


if __name__ == "__main__":
    main()
