"""Memory, time and gradients of the loss in large batches, in parts and at once.

    pip install -e . && python benchmarks/loss.py [--batch 65536] [--dimensions 128]
        [--compare 4096] [--repeats 5] [--clusters 50]

In batches of more than ``wcl_ray.model.loss.MOST_PAIRS`` pairs the loss treats its anchors in parts
and keeps no logits for the backward pass. Measured on the CPU, one worker, forward and backward:
the peak memory over that of the embeddings in a batch of ``--batch`` images, and, in one of
``--compare`` images, time and gradients in parts relative to those at once and to SimCLR's loss
as it is usually written (cross-entropy over the matrix of all pairs). Sides take turns; medians.
The last line is a JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from memory import measure

from wcl_ray.model import loss as loss_module
from wcl_ray.terminal import table

TAU = 0.2
Gradients = tuple[torch.Tensor, torch.Tensor]


def embeddings(images: int, dimensions: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(images, dimensions, requires_grad=True) for _ in range(2)]


def cl_infonce(views: list[torch.Tensor], clusters: torch.Tensor, estimator: str) -> Gradients:
    """Gradients of the loss of a batch with respect to both views."""
    z1, z2 = views
    loss = loss_module.cl_infonce(z1, z2, z1, z2, clusters, clusters, 0, TAU, estimator).loss
    first, second = torch.autograd.grad(loss, views)
    return first, second


def simclr(views: list[torch.Tensor]) -> Gradients:
    z = F.normalize(torch.cat(views), dim=1)
    logits = (z @ z.T / TAU).fill_diagonal_(-torch.inf)
    target = torch.arange(len(z)).roll(len(z) // 2)
    first, second = torch.autograd.grad(F.cross_entropy(logits, target), views)
    return first, second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=65536, help="images of the large batch")
    parser.add_argument("--dimensions", type=int, default=128)
    parser.add_argument("--compare", type=int, default=4096, help="images of the smaller batch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clusters", type=int, default=50, help="images of a cluster")
    options = parser.parse_args()
    most = loss_module.MOST_PAIRS
    rows, summary = [], {}
    for estimator in ("supcon", "paper"):
        views = embeddings(options.compare, options.dimensions)
        # two granularities
        fine = torch.randint(0, max(1, options.compare // options.clusters), (options.compare,))
        clusters = torch.stack([fine // 4, fine], dim=1)

        def gradients_with(most_pairs: int) -> Gradients:
            loss_module.MOST_PAIRS = most_pairs
            return cl_infonce(views, clusters, estimator)  # noqa: B023

        sides: dict[str, Callable[[], Gradients]] = {
            "in parts": lambda: gradients_with(options.compare**2 - 1),
            "at once": lambda: gradients_with(options.compare**2),
            "simclr": lambda: simclr(views),  # noqa: B023
        }
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        gradients = {}
        for repeat in range(options.repeats + 1):
            for name, side in sides.items():
                started = time.perf_counter()
                gradients[name] = side()
                if repeat:  # the first one warms up
                    seconds[name].append(time.perf_counter() - started)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        error = max(
            float((a - b).norm() / b.norm())
            for a, b in zip(gradients["in parts"], gradients["at once"], strict=True)
        )
        del gradients
        loss_module.MOST_PAIRS = most
        views = embeddings(options.batch, options.dimensions)
        clusters = torch.randint(0, options.batch // options.clusters, (options.batch, 1))
        cost, _ = measure(lambda: cl_infonce(views, clusters, estimator))  # noqa: B023
        ratios = [medians["in parts"] / medians[name] for name in ("at once", "simclr")]
        row = [estimator, *(f"{x:.2f} ×" for x in ratios), f"{error:.1e}"]
        rows.append([*row, f"{cost['peak'] / 1e6:,.0f} MB", f"{cost['wall']:.0f} s"])
        summary[estimator] = {
            "parts_to_once": round(ratios[0], 3), "parts_to_simclr": round(ratios[1], 3),
            "gradient_error": error, "peak_bytes": cost["peak"], "seconds": round(cost["wall"], 1),
        }  # fmt: skip
    head = ["estimator", f"in parts / at once ({options.compare:,})", "in parts / SimCLR's"]
    print(table([*head, "gradients differ by", f"peak ({options.batch:,})", "time"], rows), "\n")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
