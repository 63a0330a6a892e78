"""k-means rounds without metadata against SimCLR with the same number of image views.

    pip install -e . && python benchmarks/rounds.py --data.path TRAIN --data.eval-path TEST \\
        --data.label label --train.epochs 10 --clusters.k 100 1000 [--seeds 0 1]

Takes the options of jobs/pretrain.py. For every seed both are trained with the same epochs, batch
and optimiser, and measured by kNN and a linear probe on the test images; then what the rounds'
clusters had to do with the labels (which training never sees). The last line is a JSON object with
the means and the ratio of kNN to SimCLR's. Finished runs in --storage are not trained again.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from wcl_ray.cli import parse, run_job
from wcl_ray.config import Config
from wcl_ray.storage import Folder
from wcl_ray.terminal import table


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundsBenchmark(Config):
    """k-means rounds against SimCLR."""

    seeds: tuple[int, ...] = (0, 1)
    """Seeds, each a pair of trainings."""


def implied(given: set[str]) -> list[str]:
    return ["--clusters.kind", "kmeans", "--compare", "--name", "rounds"]


def main() -> None:
    config = parse(cls=RoundsBenchmark, prog="rounds.py", implied=implied)

    def body() -> None:
        from wcl_ray.runs.pretrain import pretrain

        runs: dict[str, list[dict[str, Any]]] = {}
        histories = []
        for seed in config.seeds:
            name = f"{config.name}-{seed}"
            started = (Folder(config.storage) / name).exists("config.json")
            options = {key: getattr(config, key) for key in Config.__dataclass_fields__}
            run = replace(Config(**options), seed=seed, name=name, resume=started)
            for title, figures in pretrain(run)["variants"].items():
                runs.setdefault(title, []).append(figures)
            histories.append(_rounds(Folder(run.storage) / name))
        _report(runs, histories)

    run_job(body)


def _rounds(run: Folder) -> list[dict[str, float]]:
    """The rows of the rounds in ``metrics.jsonl``."""
    rows = [json.loads(line) for line in run.read("metrics.jsonl").decode().splitlines()]
    return [row for row in rows if "round" in row]


def _report(runs: dict[str, list[dict[str, Any]]], histories: list[list[dict[str, float]]]) -> None:
    """Print both tables and the JSON line.

    Args:
        runs: title → the evaluation of each seed.
        histories: of each seed, the rows of its rounds.
    """
    head = ["clusters", "seeds", "kNN", "± ", "probe", "± ", "train s"]
    body = []
    for title, seeds in runs.items():
        knn, probe, seconds = ([r[k] for r in seeds] for k in ("knn", "probe", "train_seconds"))
        cells = []
        for values in (knn, probe):
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells += [f"{np.mean(values):.1%}", f"{spread:.1%}"]
        cells.append(f"{np.mean(seconds):.0f}")
        body.append([title, str(len(seeds)), *cells])
    print(table(head, body), "\n")
    keys = [k for k in histories[0][-1] if k.endswith(("_nmi_label", "_nmi_previous"))]
    keys += ["rank_me", "cluster_seconds"]
    lines = []
    for r in range(len(histories[0])):
        rows = [history[r] for history in histories]
        cells = [f"{np.mean([row[k] for row in rows]):.3f}" if k in rows[0] else "-" for k in keys]
        lines.append([str(int(rows[0]["round"]) + 1), *cells])
    print(table(["round", *keys], lines), "\n")
    ours, theirs = (np.mean([r["knn"] for r in runs[t]]) for t in ("kmeans", "SimCLR"))
    probe, other = (np.mean([r["probe"] for r in runs[t]]) for t in ("kmeans", "SimCLR"))
    figures = {"knn": ours, "simclr_knn": theirs, "probe": probe, "simclr_probe": other}
    figures["knn_ratio"] = ours / theirs
    print(json.dumps({name: round(float(value), 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
