"""Write features of images, computed by the encoder of a finished run, to Parquet files.

    python jobs/embed.py --run runs/NAME --data.path DIR --out s3://bucket/features --columns label
    python jobs/embed.py --run runs/NAME --out features/ --index      # then neighbours.py searches

Each row holds id, key (the name of the image), feature (float32) and the columns requested. The
same command continues a stopped job and adds new images. cluster.py takes k-means of the output.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Literal

from wcl_ray.cli import parse, run_job
from wcl_ray.config import ScaleConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """Other images than those of the run."""

    path: str | None = None
    """Images to embed: a folder, a file or a glob, local or s3://. Default: the run's."""
    format: str | None = None
    """How the images are stored (parquet, folder, …). Default: told by the file names."""
    id: str | None = None
    """Column with a unique id."""
    image: str | None = None
    """Column with the images."""
    table: str | None = None
    """Table with metadata of the images."""
    key: str | None = None
    """Column of the table with the images' ids or file names. Default: found."""
    encoding: str | None = None
    """Encoding of metadata tables and text in shards. Default: by byte order mark, else UTF-8."""
    max_bad: float | None = None
    """Share of unreadable images above which the job stops. Default: that of the run."""
    endpoint: str | None = None
    """URL of the S3 endpoint, for stores other than AWS."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedJob:
    """Embed images with the encoder of a finished run."""

    run: str
    """Run folder (a path or s3:// URI)."""
    out: str
    """Folder for the Parquet files (a path or s3:// URI)."""
    data: Images = field(default_factory=Images)
    features: Literal["backbone", "projector"] = "backbone"
    """The backbone's features, or the projector's output, of unit length."""
    columns: tuple[str, ...] = ()
    """Metadata columns to copy to the output."""
    index: bool = False
    """Also write a FAISS index and thumbnails, for neighbours.py."""
    scale: ScaleConfig = field(default_factory=ScaleConfig)


def main() -> None:
    job = parse(cls=EmbedJob, prog="embed.py")
    options = {name: getattr(job, name) for name in ("features", "columns", "scale", "index")}

    def body() -> None:
        from wcl_ray.runs.embed import embed_run

        embed_run(job.run, job.out, asdict(job.data), **options)

    run_job(body)


if __name__ == "__main__":
    main()
