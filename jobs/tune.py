"""Find the temperature and the granularity of the clusters, with short pretraining runs.

    python jobs/tune.py --data.path DIR --data.label CLASS --trials 16
    python jobs/tune.py … --search.train.lr loguniform:1e-4:1e-2 --search.clusters.top-k 5,10,20
    python jobs/tune.py --config search.yaml --resume         # continue a search that was stopped
    ray job submit --working-dir . -- python jobs/tune.py …

It writes a page (report.html, with plotly.min.js beside it), results.parquet, and best.yaml for
jobs/pretrain.py --config. Options of jobs/pretrain.py are those of the full run; --help lists all.
"""

from __future__ import annotations

import os

from wcl_ray.cli import demo_flags, parse, run_job
from wcl_ray.search.options import SearchConfig


def main() -> None:
    config: SearchConfig = parse(cls=SearchConfig, prog="tune.py", implied=demo_flags)

    # a trial needs a dozen small processes, of which Ray keeps warning; it reads this on import
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "worker processes have been started")

    def body() -> None:
        from plotly.offline import get_plotlyjs  # imported here to keep --help fast

        from wcl_ray.report.search import SCRIPT, page
        from wcl_ray.search.run import search

        search(config, page, {SCRIPT: get_plotlyjs().encode()})

    run_job(body)


if __name__ == "__main__":
    main()
