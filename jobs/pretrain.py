"""Pretrain an image encoder from images and their metadata.

    python jobs/pretrain.py                                   # the demo data, no arguments
    python jobs/pretrain.py --data.path DIR --data.label CLASS --clusters.kind attributes
    python jobs/pretrain.py --config run.yaml --train.epochs 50
    python jobs/pretrain.py … --resume                        # continue a run that was stopped
    ray job submit --working-dir . -- python jobs/pretrain.py …

--help lists every option.
"""

from __future__ import annotations

from wcl_ray.cli import parse, run_job
from wcl_ray.config import Config

DEMO = ["--compare", "--data.label", "label", "--train.epochs", "15"]


def main() -> None:
    config: Config = parse(prog="pretrain.py", implied=demo_flags)

    def body() -> None:
        from wcl_ray.report.run import write_page  # imported here to keep --help fast
        from wcl_ray.runs.pretrain import pretrain

        pretrain(config, write_page)

    run_job(body)


def demo_flags(given: set[str]) -> list[str]:
    """Options of the demo, implied without --data.path."""
    if "data.path" in given:
        return []
    return DEMO if "clusters.from" in given else [*DEMO, "--clusters.top-k", "8"]


if __name__ == "__main__":
    main()
