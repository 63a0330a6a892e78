"""Seconds from the command to the first line of metrics, against a bare Ray Train job.

    python benchmarks/start.py [--repeats 3]

One side is the demo, whose images have been rendered by a first run. The other starts Ray and
trains one linear layer for a step with ``TorchTrainer``: what any job on Ray Train waits for. The
sides alternate, and the medians of the repeats count. Prints a table and, as the last line, one
JSON object.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
BARE = """
import ray, ray.train, torch
from ray.train.torch import TorchTrainer, prepare_model

def step(config):
    model = prepare_model(torch.nn.Linear(8, 8))
    model(torch.zeros(2, 8)).sum().backward()
    print("metrics", flush=True)

ray.init(logging_level="ERROR")
print("ray", flush=True)
resources = {"CPU": 1}
scaling = ray.train.ScalingConfig(num_workers=1, resources_per_worker=resources)
run = ray.train.RunConfig(name="bare", storage_path=STORAGE)
TorchTrainer(step, scaling_config=scaling, run_config=run).fit()
"""
# what happens at each time: a pattern of the line that is printed then
DEMO = {
    "ray": r"^ray ", "train": r"^train ", "metrics": r"epoch .* loss ", "evaluate": r"^evaluate ",
    "results": r"^clusters +K +kNN",
}  # fmt: skip


def timed(command: list[str], patterns: dict[str, str]) -> dict[str, float]:
    """Seconds from the start of a command to the first line of each pattern."""
    started, seconds = time.monotonic(), dict[str, float]()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            for name, pattern in patterns.items():
                if name not in seconds and re.search(pattern, line):
                    seconds[name] = time.monotonic() - started
    if process.returncode or len(seconds) < len(patterns):
        raise SystemExit(f"{' '.join(command)[:60]} failed: saw {', '.join(seconds) or 'nothing'}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    if repeats < 1:
        parser.error("--repeats starts at 1")
    with tempfile.TemporaryDirectory() as storage:
        demo = [sys.executable, "jobs/pretrain.py", "--storage", storage]
        demo += ["--train.epochs", "2", "--no-compare"]
        bare = [sys.executable, "-c", BARE.replace("STORAGE", repr(storage))]
        timed(demo, DEMO)  # renders the images
        sides = []
        for _ in range(repeats):
            end = {"ray": "^ray$", "metrics": r"\bmetrics$"}
            sides.append((timed(demo, DEMO), timed(bare, end)))
    own, peer = (
        {name: statistics.median(side[name] for side in run) for name in run[0]}
        for run in zip(*sides, strict=True)
    )
    print(f"{'seconds to':<24}{'demo':>8}{'bare Ray Train':>16}")
    for name in ("ray", "train", "metrics"):
        print(f"{name:<24}{own[name]:>8.1f}{peer.get(name, float('nan')):>16.1f}")
    evaluation = own["results"] - own["evaluate"]
    print(f"{'evaluation, 3,750 images':<24}{evaluation:>8.1f}")
    ratio = own["metrics"] / peer["metrics"]
    result = {"demo": own, "bare": peer, "evaluation": evaluation, "vs_bare": round(ratio, 2)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
