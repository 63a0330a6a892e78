"""kNN and linear probe of synthetic features, against FAISS and scikit-learn on the same data.

    python benchmarks/evaluate.py --rows 100000 --queries 5000 --dimensions 2048 --classes 1000
    python benchmarks/evaluate.py --device cuda --parts knn probe      # where a GPU is

Features are rectified mixtures of a class centre and noise, standardised for both sides. ``knn``:
20 nearest of the rows to each query by cosine similarity; the peer is ``faiss.IndexFlatIP``.
``probe``: one fit of multinomial logistic regression to the same stopping rule; the peer is
``LogisticRegression(solver="lbfgs")`` in float32, with the same penalty, and stopped by the same
largest entry of the gradient. Prints seconds, the ratio, both accuracies, and what the time comes
to at 1,281,167 rows and 50,000 queries: products are linear in rows (and queries), and iterations
are taken as those measured. A whole probe is six fits, five of them on four fifths of the rows and
all but one from warm weights; ``whole`` measures it here.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import torch

from wcl_ray.evaluate import probe
from wcl_ray.evaluate.knn import knn_accuracy, nearest

ROWS, QUERIES = 1_281_167, 50_000  # ImageNet


def features(n: int, d: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 (n, d) and int64 (n,), always of the same classes."""
    width = min(d, 256)
    fixed = torch.Generator().manual_seed(0)
    mix = torch.randn(width, d, generator=fixed) * torch.logspace(0, -1.5, width)[:, None]
    centres = 0.5 * torch.randn(classes, width, generator=fixed)
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, classes, (n,), generator=generator)
    x = torch.empty(n, d)
    for rows in torch.arange(n).split(10_000):
        noise = torch.randn(len(rows), width, generator=generator)
        x[rows] = torch.relu((centres[y[rows]] + noise) @ mix)
    return x, y


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def knn(train: Any, test: Any, device: str) -> dict[str, Any]:
    (x, y), (queries, truth) = train, test
    seconds, accuracy = timed(lambda: knn_accuracy(x, y, queries, truth, 20, device))
    _, index = nearest(x, queries[:500], 20, device)

    def peer() -> np.ndarray:
        bank, asked = (torch.nn.functional.normalize(part).numpy() for part in (x, queries))
        flat = faiss.IndexFlatIP(bank.shape[1])
        flat.add(bank)
        return flat.search(asked, 20)[1]

    other, neighbours = timed(peer)
    same = float((index.sort(1)[0].numpy() == np.sort(neighbours[:500], 1)).mean())
    scale = ROWS / len(x) * QUERIES / len(queries)
    return {
        "seconds": seconds, "faiss": other, "ratio": seconds / other, "accuracy": accuracy,
        "same neighbours": same, "at ImageNet's size, minutes": seconds * scale / 60,
    }  # fmt: skip


def linear(train: Any, test: Any, device: str, strength: float, whole: bool) -> dict[str, Any]:
    from sklearn.linear_model import LogisticRegression

    (x, y), (queries, truth) = train, test
    classes = int(y.max()) + 1
    scale = probe.feature_scale(x)
    z, asked = (
        probe.standardised(part, torch.arange(len(part)), scale, device) for part in (x, queries)
    )
    target = y.to(device)
    zero = torch.zeros(x.shape[1] + 1, classes, device=device)
    tolerance = probe.TOLERANCE * float(
        probe.loss_and_gradient(z, target, zero, 0.0)[1].abs().max()
    )
    seconds, (weight, steps) = timed(lambda: probe.fit(z, target, zero, strength, tolerance))
    accuracy = float((probe.predict(asked, weight).cpu() == truth).double().mean())
    model = LogisticRegression(C=1 / (strength * len(x)), tol=tolerance, max_iter=probe.CAP)
    other, _ = timed(lambda: model.fit(z.cpu().numpy(), y.numpy()))
    theirs = float((model.predict(asked.cpu().numpy()) == truth.numpy()).mean())
    figures = {
        "seconds": seconds, "iterations": steps, "sklearn": other,
        "its iterations": int(model.n_iter_.max()), "ratio": seconds / other,
        "accuracy": accuracy, "its accuracy": theirs,
        "one fit at ImageNet's size, minutes": seconds * ROWS / len(x) / 60,
    }  # fmt: skip
    if whole:
        del z
        seconds, result = timed(
            lambda: probe.linear_probe(x, y, queries, truth, 0, classes, device)
        )
        figures |= {
            "whole": seconds, "whole's accuracy": result.accuracy, "strength": result.strength,
            "capped": result.capped,
            "whole at ImageNet's size, minutes": seconds * ROWS / len(x) / 60,
        }  # fmt: skip
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=5000)
    parser.add_argument("--dimensions", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--strength", type=float, default=1e-2)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--parts", nargs="+", default=["knn", "probe"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    shape = options.dimensions, options.classes
    train = features(options.rows, *shape, seed=1)
    test = features(options.queries, *shape, seed=2)
    result: dict[str, Any] = vars(options).copy()
    if "knn" in options.parts:
        result["knn"] = knn(train, test, options.device)
    if "probe" in options.parts:
        whole = "whole" in options.parts
        result["probe"] = linear(train, test, options.device, options.strength, whole)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
