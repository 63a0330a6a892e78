"""Linear probe: a linear classifier on frozen features, tuned without the test set."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
FULL_BATCH = 20_000  # rows up to which all are used in every step
VALIDATION = 0.2


@dataclass(frozen=True)
class ProbeResult:
    """accuracy and mean_class_accuracy on the test images in [0, 1]; the chosen L2 strength, and
    the accuracy on the validation split that chose it."""

    accuracy: float
    mean_class_accuracy: float
    strength: float
    validation: float


def linear_probe(
    train_x: torch.Tensor,
    train_y: torch.Tensor,
    test_x: torch.Tensor,
    test_y: torch.Tensor,
    epochs: int,
    seed: int,
    classes: int | None = None,
) -> ProbeResult:
    """Multinomial logistic regression with an L2 penalty.

    Features are standardised by the training images (constant ones are only centred). Each
    strength is fitted on four fifths of every class and judged on the rest; the best (the strongest
    among equals) is fitted again on all.

    Args:
        train_x: float (N, F). train_y: int64 (N,).
        test_x: float (M, F). test_y: int64 (M,), -1 for classes that are not in train_y.
        epochs: passes over the data; LBFGS steps where all rows fit into one batch.
        classes: number of classes; by default from train_y.
    """
    mean, std = train_x.mean(0), train_x.std(0, correction=0)
    # a unit that is constant here may move on other images, and must not be blown up there
    std = torch.where(std > 1e-5 * mean.abs().clamp(min=1e-5), std, torch.ones_like(std))
    train_x, test_x = (train_x - mean) / std, (test_x - mean) / std
    count = classes or int(train_y.max()) + 1
    used, held = split(train_y, seed)
    best, best_accuracy = STRENGTHS[-1], -1.0
    for strength in reversed(STRENGTHS):
        weight = fit(train_x[used], train_y[used], count, strength, epochs, seed)
        accuracy = float((predict(train_x[held], weight) == train_y[held]).float().mean())
        if accuracy > best_accuracy:
            best, best_accuracy = strength, accuracy
    weight = fit(train_x, train_y, count, best, epochs, seed)
    right = (predict(test_x, weight) == test_y).float()
    per_class = [float(right[test_y == c].mean()) for c in torch.unique(test_y)]
    return ProbeResult(float(right.mean()), sum(per_class) / len(per_class), best, best_accuracy)


def split(y: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Row numbers to fit on and to validate on, a fifth of every class.

    Classes with one image are fitted on alone, unless there are no others.

    Args:
        y: int64 (N,), at least two rows.

    Raises:
        ValueError: fewer than two rows.
    """
    if len(y) < 2:
        raise ValueError(f"the linear probe needs at least 2 labelled images, not {len(y)}")
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    order = order[torch.argsort(y[order], stable=True)]  # class by class, shuffled within
    held = torch.arange(len(y)) % round(1 / VALIDATION) == 0
    several = torch.bincount(y)[y[order]] > 1
    if several.any():
        held &= several
        if not held.any():  # every fifth row happened to be an only one
            held[several.to(torch.uint8).argmax()] = True
    return order[~held], order[held]


def predict(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """int64 (M,): classes of features (M, F) under a weight (F + 1, classes)."""
    return (x @ weight[:-1] + weight[-1]).argmax(1)


def fit(
    x: torch.Tensor, y: torch.Tensor, classes: int, strength: float, epochs: int, seed: int
) -> torch.Tensor:
    """Weight (F + 1, classes), the last row the bias, of mean cross-entropy + strength·‖W‖²/2."""
    weight = torch.zeros(x.shape[1] + 1, classes, requires_grad=True)

    def loss(rows: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        penalty = 0.5 * strength * weight[:-1].square().sum()
        return F.cross_entropy(rows @ weight[:-1] + weight[-1], target) + penalty

    if len(x) <= FULL_BATCH:
        solver = torch.optim.LBFGS(
            [weight], max_iter=epochs, history_size=10, line_search_fn="strong_wolfe"
        )

        def closure() -> float:
            solver.zero_grad()
            value = loss(x, y)
            value.backward()
            return float(value.detach())

        solver.step(closure)
        return weight.detach()
    adam = torch.optim.Adam([weight], lr=0.01)
    batch, generator = 1024, torch.Generator().manual_seed(seed)
    rounds = max(1, epochs // 5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, rounds)
    for _ in range(rounds):
        for rows in torch.randperm(len(x), generator=generator).split(batch):
            adam.zero_grad()
            loss(x[rows], y[rows]).backward()
            adam.step()
        schedule.step()
    return weight.detach()
