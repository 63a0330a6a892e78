"""Pretrain an image encoder from images and their metadata.

    python jobs/pretrain.py                                   # the demo data, no arguments
    python jobs/pretrain.py --data.path DIR --data.label CLASS --clusters.kind attributes
    python jobs/pretrain.py --config run.yaml --train.epochs 50
    python jobs/pretrain.py … --resume                        # continue a run that was stopped
    ray job submit --working-dir . -- python jobs/pretrain.py …

--help lists every option.
"""

from __future__ import annotations

from wcl_ray.cli import demo_flags, parse, run_job
from wcl_ray.config import Config


def main() -> None:
    config: Config = parse(prog="pretrain.py", implied=lambda given: demo_flags(given, "--compare"))

    def body() -> None:
        from wcl_ray.report.run import write_page  # imported here to keep --help fast
        from wcl_ray.runs.pretrain import pretrain

        pretrain(config, write_page)

    run_job(body)


if __name__ == "__main__":
    main()
