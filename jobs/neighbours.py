"""Search by image: print and show the images whose features are nearest to those of an image.

python jobs/embed.py --run runs/NAME --out features/ --index
python jobs/neighbours.py --index features/ --image photo.jpg
python jobs/neighbours.py --index features/ --id 1234 --k 20
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from wcl_ray.cli import parse, run_job


@dataclass(frozen=True, slots=True, kw_only=True)
class NeighboursJob:
    """Find the images that are nearest to an image, by the features of a finished run."""

    index: str
    """Folder that embed.py --index has written (a path or s3:// URI)."""
    image: str | None = None
    """Image file to look for."""
    id: str | None = None
    """Id or name of an image in the index to look for."""
    k: int = 10
    """Number of neighbours."""
    run: str | None = None
    """Run folder with the encoder, if it has moved since the index was written."""
    out: str = "neighbours.html"
    """HTML page to write (a path or s3:// URI)."""
    endpoint: str | None = None
    """URL of the S3 endpoint, for stores other than AWS."""


def main() -> None:
    job = parse(cls=NeighboursJob, prog="neighbours.py")

    def body() -> None:
        from wcl_ray.report.neighbours import show_neighbours

        show_neighbours(**asdict(job))

    run_job(body)


if __name__ == "__main__":
    main()
