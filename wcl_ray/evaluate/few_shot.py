"""Few-shot probes: linear classifiers fitted to a few images of each class."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wcl_ray.evaluate.probe import (
    TOLERANCE,
    feature_scale,
    fit,
    loss_and_gradient,
    predict,
    standardised,
)

SHOTS = (1, 5, 10)  # images of each class
DRAWS = 5
STRENGTH = 0.1  # L2 penalty; too few images to choose it by validation


@dataclass(frozen=True)
class FewShot:
    """Accuracy on the test images, in [0, 1], over several draws of the images to fit on.

    Attributes:
        mean, std: of the draws; the standard deviation is that of a single draw.
        draws: their number.
    """

    mean: float
    std: float
    draws: int


def few_shot_probe(
    shots: int,
    train_x: torch.Tensor,
    train_y: torch.Tensor,
    test_x: torch.Tensor,
    test_y: torch.Tensor,
    seed: int,
    device: str = "cpu",
) -> FewShot:
    """Multinomial logistic regression on ``shots`` random images of each class, five times.

    Features are standardised by all training images, whose labels that does not take. A class with
    fewer images gives all it has.

    Args:
        train_x: float32 (N, F). train_y: int64 (N,).
        test_x: float32 (M, F). test_y: int64 (M,); -1 (a class not trained on) counts as wrong.
    """
    scale = feature_scale(train_x)
    test = standardised(test_x, torch.arange(len(test_x)), scale, device)
    accuracies = []
    for draw in range(DRAWS):
        rows = draw_shots(train_y, shots, seed + draw)
        x, y = standardised(train_x, rows, scale, device), train_y[rows].to(device)
        zero = torch.zeros(x.shape[1] + 1, int(train_y.max()) + 1, device=device)
        _, gradient = loss_and_gradient(x, y, zero, 0.0)
        weight, _ = fit(x, y, zero, STRENGTH, TOLERANCE * float(gradient.abs().max()))
        accuracies.append((predict(test, weight).cpu() == test_y).double().mean())
    values = torch.stack(accuracies)
    return FewShot(float(values.mean()), float(values.std()), DRAWS)


def draw_shots(y: torch.Tensor, shots: int, seed: int) -> torch.Tensor:
    """Row numbers of at most ``shots`` random images of each class.

    >>> y = torch.tensor([0, 0, 0, 1])
    >>> y[draw_shots(y, 2, seed=0)].tolist()
    [0, 0, 1]
    """
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    order = order[torch.argsort(y[order], stable=True)]  # class by class, shuffled within
    counts = torch.bincount(y)
    first = (counts.cumsum(0) - counts)[y[order]]
    return order[torch.arange(len(y)) - first < shots]
