"""All methods on one data set, with the same images, views, encoder, epochs and evaluation.

    pip install -e . && python benchmarks/methods.py --data.path TRAIN --data.eval-path TEST \\
        --data.label label --train.epochs 20 --name sprites [--seeds 0 1 2] [--methods cmc simclr]

Takes the options of jobs/pretrain.py; --clusters and --loss are those of cl-infonce. The others
have its columns, k and temperature, but SwAV has the 0.1 of its paper (the papers of SupCon and CMC
have 0.1 and 0.07). "graded" is cl-infonce with graded positives. Every
method is trained for every seed, and measured by kNN and a linear probe on the test images. The
last line is a JSON object with the means and standard deviations. Finished runs in --storage are
not trained again, and a stopped one continues.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, fields, replace

import numpy as np

from wcl_ray.cli import parse, run_job
from wcl_ray.config import Config, LossConfig, require
from wcl_ray.registry import METHODS
from wcl_ray.terminal import table

GRADED = "graded"
SWAV_TEMPERATURE = 0.1  # of its paper


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodsBenchmark(Config):
    """All methods on one data set."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; each method is trained with each."""
    methods: tuple[str, ...] = (*METHODS.shipped, GRADED)
    """Methods to compare."""

    def __post_init__(self) -> None:
        super(MethodsBenchmark, self).__post_init__()
        require(self.data.label is not None, "methods are compared by kNN; give --data.label")
        require(self.method == "cl-infonce", "all methods are trained; leave out --method")
        for name in self.methods:
            if name != GRADED:
                METHODS.check(name)
            self.of(name, self.seeds[0])  # wrong options are refused before the first training

    def of(self, method: str, seed: int) -> Config:
        """The options of one training."""
        config = Config(**{item.name: getattr(self, item.name) for item in fields(Config)})
        config = replace(
            config,
            seed=seed,
            name=f"{config.name}-{method}-{seed}",
            start_or_resume=True,
            resume=False,
            compare=False,  # SimCLR is one of them
        )
        if method == GRADED:
            loss = replace(config.loss, positives="graded", negatives="all", level_weights=())
            return replace(config, loss=loss)
        if method == "cl-infonce":
            return config
        kind, temperature = METHODS.get(method).kind, config.loss.temperature
        clusters = replace(
            config.clusters,
            kind=kind or config.clusters.kind,
            from_=None if kind else config.clusters.from_,
            missing="singleton",
            features="projector",
        )
        rounds = config.train.rounds if clusters.from_features else 0
        return replace(
            config,
            method=method,
            clusters=clusters,
            loss=LossConfig(temperature=SWAV_TEMPERATURE if method == "swav" else temperature),
            train=replace(config.train, rounds=rounds),
        )


def implied(given: set[str]) -> list[str]:
    return ["--name", "methods"]


def main() -> None:
    config = parse(cls=MethodsBenchmark, prog="methods.py", implied=implied)

    def body() -> None:
        from wcl_ray.runs.pretrain import pretrain

        planned = {(seed, m): config.of(m, seed) for seed in config.seeds for m in config.methods}
        figures: dict[str, list[dict[str, float]]] = {method: [] for method in config.methods}
        for (_, method), run in planned.items():
            (measured,) = pretrain(run)["variants"].values()
            figures[method].append(measured)
        report(figures)

    run_job(body)


def report(figures: dict[str, list[dict[str, float]]]) -> None:
    """Print the table and the JSON line.

    Args:
        figures: method → the evaluation of each seed.
    """
    body, summary = [], {}
    for method, runs in figures.items():
        row = [method, str(len(runs))]
        summary[method] = {"seeds": float(len(runs))}
        for key in ("knn", "probe"):
            values = [run[key] for run in runs]
            mean = float(np.mean(values))
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            row.append(f"{mean:.1%} ± {spread:.1%}")
            summary[method] |= {key: round(mean, 4), f"{key}_std": round(spread, 4)}
        row.append(f"{np.mean([run['train_seconds'] for run in runs]):.0f}")
        body.append(row)
    print(table(["method", "seeds", "kNN", "probe", "train s"], body), "\n")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
