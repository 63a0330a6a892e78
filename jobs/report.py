"""Write the page of a finished run again, or one page of several runs side by side.

    python jobs/report.py --run runs/NAME                        # runs/NAME/report.html
    python jobs/report.py --run runs/A runs/B s3://bucket/runs/C --out compared.html

The page is one file that needs no network. It is made of what the run folders hold: neither images
nor encoders are read, and nothing is trained.
"""

from __future__ import annotations

from dataclasses import dataclass

from wcl_ray.cli import fail, parse, run_job


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportJob:
    """Write the page of finished runs."""

    run: tuple[str, ...]
    """Run folders (paths or s3:// URIs)."""
    out: str | None = None
    """HTML file (a path or s3:// URI). Default: report.html in the folder of the run; several runs
    need it."""
    endpoint: str | None = None
    """URL of the S3 endpoint, for stores other than AWS."""


def main() -> None:
    job = parse(cls=ReportJob, prog="report.py")
    if not job.run:
        fail("--run needs the folder of a run")
    if len(job.run) > 1 and job.out is None:
        fail("several runs need --out, the name of the page")

    def body() -> None:
        from wcl_ray.report.run import report_runs

        report_runs(job.run, job.out, job.endpoint)

    run_job(body)


if __name__ == "__main__":
    main()
