"""Export the encoder of a finished run to other libraries.

    python jobs/export.py --run runs/NAME --to onnx
    python jobs/export.py --run runs/NAME --to huggingface --out exported/

Files are read back by their library and compared with the run's encoder before they are written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from wcl_ray.cli import parse, run_job
from wcl_ray.registry import EXPORTS


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportJob:
    """Export the encoder of a finished run to other libraries."""

    run: str
    """Run folder (a path or s3:// URI)."""
    to: Annotated[str, EXPORTS.option_help("Format of the export.")]
    out: str | None = None
    """File to write, or folder for timm and huggingface (a path or s3:// URI). Default: in the
    exports of the run folder."""
    endpoint: str | None = None
    """URL of the S3 endpoint, for stores other than AWS."""
    plugins: tuple[str, ...] = ()
    """Modules or .py files that add formats (see docs/extending.md)."""


def main() -> None:
    job = parse(cls=ExportJob, prog="export.py")

    def body() -> None:
        from wcl_ray.runs.export import export_run

        export_run(job.run, job.to, job.out, job.endpoint)

    run_job(body)


if __name__ == "__main__":
    main()
