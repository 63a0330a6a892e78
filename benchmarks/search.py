"""A search against the full grid, and the setting it names against the defaults.

    python benchmarks/search.py --data DIR/train --test DIR/test --label race --group unit

Further options of jobs/pretrain.py are passed to all jobs (``--train.precision bf16``).
Three parts, each by the jobs that people run: the grid (no early stopping) and the search (TPE with
successive halving) with trials of the same length; then the named setting and the defaults, trained
in full with several seeds, each measured once on the test images. If the search names the defaults,
only these are trained.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def job(name: str, *words: str) -> None:
    print(f"$ python jobs/{name}.py {' '.join(words)}", flush=True)
    subprocess.run([sys.executable, str(ROOT / f"jobs/{name}.py"), *words], check=True)


def trials(folder: Path) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = json.loads((folder / "trials.json").read_text())["trials"]
    return rows


def whole(folder: Path, metric: str, epochs: int) -> list[tuple[float, float, dict[str, Any]]]:
    """(seconds, score, values) of the trials that were trained to their last epoch, in time."""
    rows = [
        (row["at"][str(epochs)], row["evaluations"][str(epochs)][metric], row["values"])
        for row in trials(folder).values()
        if str(epochs) in row["evaluations"]
    ]
    return sorted(rows, key=lambda row: row[0])


def time_to(rows: list[tuple[float, float, dict[str, Any]]], score: float) -> float | None:
    return next((seconds for seconds, reached, _ in rows if reached >= score - 1e-9), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--data", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--label", required=True)
    parser.add_argument("--group")
    parser.add_argument("--storage", default="runs/benchmark-search")
    parser.add_argument("--trial-epochs", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--grid", type=int, default=24, help="cells")
    parser.add_argument("--grid-top-k", default="5,10,20,40,80")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=["grid", "search", "full"], action="append")
    given, further = parser.parse_known_args()
    storage, only = Path(given.storage), given.only or ["grid", "search", "full"]
    data = ["--data.path", given.data, "--data.eval-path", given.test, "--data.label", given.label]
    data += ["--data.split-by", given.group] if given.group else []
    common = [*data, "--train.epochs", str(given.epochs), "--storage", str(storage), *further]
    short = [*common, "--trial-epochs", str(given.trial_epochs)]
    if "grid" in only:
        whole_trials = ["--scheduler", "none", "--confirm", "0"]
        cells = ["--trials", str(given.grid), "--search.clusters.top-k", given.grid_top_k]
        job("tune", *short, *cells, "--name", "grid", "--sampler", "grid", *whole_trials)
    if "search" in only:
        job("tune", *short, "--trials", str(given.trials), "--name", "search")
    if (storage / "grid").exists() and (storage / "search").exists():
        compare(storage, given.trial_epochs)
    if "full" in only:
        full(storage, common, further, given.seeds)


def compare(storage: Path, epochs: int) -> None:
    """Time to the accuracy of the best cell."""
    metric = "knn"
    grid, search = (whole(storage / name, metric, epochs) for name in ("grid", "search"))
    total = grid[-1][0]
    best = max(score for _, score, _ in grid)
    highest = max(score for _, score, _ in search)
    print(f"\ngrid    {len(grid)} cells, {total:.0f} s, best {best:.1%}")
    print(f"search  {len(search)} whole trials of {len(trials(storage / 'search'))}, ", end="")
    print(
        f"{max(max(r['at'].values()) for r in trials(storage / 'search').values()):.0f} s, ", end=""
    )
    print(f"best {highest:.1%}")
    for share in (1.0, 0.99, 0.97):
        ours, theirs = time_to(search, share * best), time_to(grid, share * best)
        text = "never" if ours is None else f"{ours:.0f} s, {ours / total:.2f} of the whole grid"
        print(f"to {share:.0%} of the best cell: search {text}; grid in its order {theirs:.0f} s")


def full(storage: Path, common: list[str], further: list[str], seeds: int) -> None:
    """The named setting and the defaults in full, on the test images."""
    verdict = json.loads((storage / "search/trials.json").read_text())["facts"]["verdict"]
    print(f"\nsearch: {verdict}")
    settings = {"defaults": common}
    if not verdict.startswith("the defaults"):
        settings["named"] = ["--config", str(storage / "search/best.yaml"), *further]
    figures: dict[str, list[dict[str, float]]] = {}
    for seed in range(seeds):
        for title, words in settings.items():
            name = f"{title}-{seed}"
            options = [*words, "--storage", str(storage), "--seed", str(seed), "--name", name]
            if (storage / name).exists():
                options.append("--resume")
            job("pretrain", *options)
            results = json.loads((storage / name / "results.json").read_text())["variants"]
            figures.setdefault(title, []).append(next(iter(results.values())))
    print()
    for title, rows in figures.items():
        for key in ("knn", "probe"):
            values = [100 * row[key] for row in rows]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            print(f"{title:<9}{key:<6}{statistics.mean(values):.1f} ± {spread:.1f}  {values}")


if __name__ == "__main__":
    main()
