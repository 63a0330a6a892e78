"""Linear probe: a linear classifier on frozen features, tuned without the test set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
VALIDATION = 0.2
TOLERANCE = 1e-3  # a fit has converged when the gradient is this small beside that at zero weights
CAP = 500  # iterations of a fit at most
CHUNK = 1 << 25  # numbers of features and logits that are worked on at a time
ROOM = 0.5  # of a GPU's free memory that the features may take, else they are sent part by part


@dataclass(frozen=True)
class ProbeResult:
    """accuracy and mean_class_accuracy on the test images in [0, 1]; the chosen L2 strength, and
    the accuracy on the validation split that chose it; capped: fits that were stopped before they
    had converged."""

    accuracy: float
    mean_class_accuracy: float
    strength: float
    validation: float
    capped: int


def linear_probe(
    train_x: torch.Tensor,
    train_y: torch.Tensor,
    test_x: torch.Tensor,
    test_y: torch.Tensor,
    seed: int,
    classes: int | None = None,
    device: str = "cpu",
    cap: int = CAP,
) -> ProbeResult:
    """Multinomial logistic regression with an L2 penalty, by L-BFGS on all rows.

    Features are standardised by the training images (constant ones are only centred). Each
    strength is fitted on four fifths of every class and judged on the rest, from the strongest to
    the weakest, each from the weights of the one before; the best (the strongest among equals) is
    fitted again on all. A fit ends when its gradient has converged; nothing depends on the number
    of rows, and nothing is drawn at random but the split.

    Args:
        train_x: float32 (N, F); one standardised copy is made, on the device where it fits there.
        train_y: int64 (N,).
        test_x: float32 (M, F). test_y: int64 (M,), -1 for classes that are not in train_y.
        classes: number of classes; by default from train_y.
        device: where the products are made.
        cap: iterations of one fit at most.
    """
    count = classes or int(train_y.max()) + 1
    used, held = split(train_y, seed)
    scale = _scale(train_x)
    order = torch.cat([held, used])
    x = _standardised(train_x, order, scale, _home(train_x, device))
    y = train_y[order].to(device)
    fitted, judged = slice(len(held), None), slice(0, len(held))
    zero = torch.zeros(x.shape[1] + 1, count, device=device)
    _, gradient = loss_and_gradient(x, y, zero, 0.0)
    tolerance = TOLERANCE * float(gradient.abs().max())
    best, best_accuracy, capped = STRENGTHS[-1], -1.0, 0
    weight = start = zero
    for strength in reversed(STRENGTHS):
        weight, steps = fit(x[fitted], y[fitted], weight, strength, tolerance, cap)
        capped += steps >= cap
        accuracy = float((predict(x[judged], weight) == y[judged]).double().mean())
        if accuracy > best_accuracy:
            best, best_accuracy, start = strength, accuracy, weight
    weight, steps = fit(x, y, start, best, tolerance, cap)
    capped += steps >= cap
    found = [
        predict(_standardised(test_x, rows, scale, device), weight).cpu()
        for rows in torch.arange(len(test_x)).split(max(1, CHUNK // x.shape[1]))
    ]
    right = (torch.cat(found) == test_y).double()
    _, own = torch.unique(test_y, return_inverse=True)
    per_class = torch.bincount(own, right) / torch.bincount(own)
    return ProbeResult(float(right.mean()), float(per_class.mean()), best, best_accuracy, capped)


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


def _scale(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation (F,) of features (N, F), summed up in float64."""
    mean = torch.zeros(x.shape[1], dtype=torch.float64)
    square = torch.zeros_like(mean)
    parts = x.split(max(1, CHUNK // x.shape[1]))
    for part in parts:
        mean += part.sum(0, dtype=torch.float64) / len(x)
    for part in parts:
        square += (part - mean.float()).square().sum(0, dtype=torch.float64) / len(x)
    std = square.sqrt()
    # a unit that is constant here may move on other images, and must not be blown up there
    std = torch.where(std > 1e-5 * mean.abs().clamp(min=1e-5), std, torch.ones_like(std))
    return mean.float(), std.float()


def _standardised(
    x: torch.Tensor, rows: torch.Tensor, scale: tuple[torch.Tensor, torch.Tensor], device: str
) -> torch.Tensor:
    """float32 (rows, F) on the device: the wanted rows less the mean, over the deviation."""
    mean, std = (part.to(device) for part in scale)
    out = torch.empty(len(rows), x.shape[1], device=device)
    size = max(1, CHUNK // x.shape[1])
    for target, chosen in zip(out.split(size), rows.split(size), strict=True):
        torch.sub(x[chosen].to(device), mean, out=target).div_(std)
    return out


def _home(x: torch.Tensor, device: str) -> str:
    """Where the features lie: on the device, or on the CPU where they are too large for a GPU."""
    if device == "cpu" or x.nbytes <= ROOM * torch.cuda.mem_get_info()[0]:
        return device
    return "cpu"


def _parts(x: torch.Tensor, weight: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Rows of x on the device of the weight, a chunk at a time."""
    size = max(1, CHUNK // sum(weight.shape))
    for start in range(0, len(x), size):
        rows = slice(start, start + size)
        yield rows, x[rows].to(weight.device)


def predict(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """int64 (M,): classes of features (M, F) under a weight (F + 1, classes)."""
    found = [torch.addmm(weight[-1], part, weight[:-1]).argmax(1) for _, part in _parts(x, weight)]
    return torch.cat(found) if found else torch.empty(0, dtype=torch.int64, device=weight.device)


def loss_and_gradient(
    x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, strength: float
) -> tuple[float, torch.Tensor]:
    """Mean cross-entropy + strength·‖W‖²/2 of a weight (F + 1, classes), the last row the bias
    without a penalty; and its gradient. No more than a chunk of logits is held."""
    gradient = torch.zeros_like(weight)
    gradient[:-1] = strength * weight[:-1]
    total = torch.zeros((), dtype=torch.float64, device=weight.device)
    for rows, part in _parts(x, weight):
        logits = torch.addmm(weight[-1], part, weight[:-1])
        target = y[rows, None]
        total -= logits.gather(1, target).sum(dtype=torch.float64)
        norm = logits.logsumexp(1, keepdim=True)
        total += norm.sum(dtype=torch.float64)
        error = logits.sub_(norm).exp_()  # probabilities, less one at the true class
        error.scatter_add_(1, target, torch.full_like(norm, -1.0))
        gradient[:-1].addmm_(part.T, error, alpha=1 / len(x))
        gradient[-1] += error.sum(0) / len(x)
    penalty = 0.5 * strength * float(weight[:-1].square().sum(dtype=torch.float64))
    return float(total) / len(x) + penalty, gradient


def fit(
    x: torch.Tensor,
    y: torch.Tensor,
    start: torch.Tensor,
    strength: float,
    tolerance: float,
    cap: int = CAP,
) -> tuple[torch.Tensor, int]:
    """Minimise :func:`loss_and_gradient` from a starting weight.

    Args:
        tolerance: largest entry of the gradient at which the fit has converged.

    Returns:
        The weight (F + 1, classes), and the number of iterations.
    """
    weight = start.clone().requires_grad_()
    solver = torch.optim.LBFGS(
        [weight],
        max_iter=cap,
        max_eval=10 * cap,
        history_size=10,
        tolerance_grad=tolerance,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        value, weight.grad = loss_and_gradient(x, y, weight.detach(), strength)
        return value

    solver.step(closure)  # type: ignore[arg-type]
    return weight.detach(), int(solver.state[weight].get("n_iter", 0))
