"""kNN, linear and few-shot probes and retrieval of a finished run, on its own or on other data.

    python jobs/evaluate.py --run runs/NAME
    python jobs/evaluate.py --run runs/NAME --data.path DIR --data.label CLASS
    python jobs/evaluate.py --run runs/NAME --data.path TRAIN --data.eval-path TEST …

Options that are not given are taken from the run. Prints a table; --out writes the metrics as JSON.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from wcl_ray.cli import parse, run_job
from wcl_ray.config import EvaluateConfig, ScaleConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherData:
    """Other images than those of the run."""

    path: str | None = None
    """Images to fit kNN and the probe on. Default: the run's training images."""
    eval_path: str | None = None
    """Test images. Default: the run's, or a held-out share of path."""
    label: str | None = None
    """Column with the class. Default: the run's."""
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
    endpoint: str | None = None
    """URL of the S3 endpoint, for stores other than AWS."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateJob:
    """Measure the encoder of a finished run with kNN, probes and retrieval."""

    run: str
    """Run folder (a path or s3:// URI)."""
    data: OtherData = field(default_factory=OtherData)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    out: str | None = None
    """JSON file to write the metrics to."""


def main() -> None:
    job = parse(cls=EvaluateJob, prog="evaluate.py")

    def body() -> None:
        from wcl_ray.runs.evaluate import evaluate_run

        evaluate_run(job.run, asdict(job.data), job.evaluate, job.scale, job.data.endpoint, job.out)

    run_job(body)


if __name__ == "__main__":
    main()
