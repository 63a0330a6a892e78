"""Linear probe: a linear classifier on frozen features, tuned without the test set."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass

import torch

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
VALIDATION = 0.2
TOLERANCE = 1e-3  # of the gradient at zero weights, at which a fit has converged
CAP = 500  # iterations of a fit at most
CHUNK = 1 << 25  # numbers of features and logits processed at a time
GPU_SHARE = 0.5  # of a GPU's free memory for the features; larger ones stay on the CPU


@dataclass(frozen=True)
class ProbeResult:
    """Result of a linear probe.

    Attributes:
        accuracy, mean_class_accuracy: on the test images, in [0, 1].
        strength: the chosen L2 penalty; validation: its accuracy on the validation split.
        capped: number of fits stopped before they converged.
    """

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

    Features are standardised by the training images (constant ones are only centred). Strengths are
    fitted on four fifths of each class and validated on the rest, from strong to weak, each fit
    starting from the previous weights; the best (the strongest of equals) is refitted on all rows.
    Convergence does not depend on the number of rows, and only the split is random.

    Args:
        train_x: float32 (N, F); one standardised copy is made, on the device if it fits.
        train_y: int64 (N,).
        test_x: float32 (M, F). test_y: int64 (M,), -1 for classes that are not in train_y.
        classes: number of classes; by default from train_y.
        device: where the products are computed.
        cap: iterations of a fit at most.
    """
    fit_rows, validation_rows = split(train_y, seed)
    scale = feature_scale(train_x)
    order = torch.cat([validation_rows, fit_rows])
    x = standardised(train_x, order, scale, _feature_device(train_x, device))
    y = train_y[order].to(device)
    fitted, held = slice(len(validation_rows), None), slice(0, len(validation_rows))
    zero = torch.zeros(x.shape[1] + 1, classes or int(train_y.max()) + 1, device=device)
    _, gradient = loss_and_gradient(x, y, zero, 0.0)
    tolerance = TOLERANCE * float(gradient.abs().max())
    best, best_accuracy, capped = STRENGTHS[-1], -1.0, 0
    weight = start = zero
    for strength in reversed(STRENGTHS):
        weight, steps = fit(x[fitted], y[fitted], weight, strength, tolerance, cap)
        capped += steps >= cap
        accuracy = float((predict(x[held], weight) == y[held]).double().mean())
        if accuracy > best_accuracy:
            best, best_accuracy, start = strength, accuracy, weight
    weight, steps = fit(x, y, start, best, tolerance, cap)
    capped += steps >= cap
    predicted = [
        predict(standardised(test_x, rows, scale, device), weight).cpu()
        for rows in torch.arange(len(test_x)).split(max(1, CHUNK // x.shape[1]))
    ]
    right = (torch.cat(predicted) == test_y).double()
    _, class_index = torch.unique(test_y, return_inverse=True)
    per_class = torch.bincount(class_index, right) / torch.bincount(class_index)
    return ProbeResult(float(right.mean()), float(per_class.mean()), best, best_accuracy, capped)


def split(y: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Row numbers to fit on, and to validate on, the latter a fifth of each class.

    Classes with one image are only fitted on, unless there are no others.

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
        if not held.any():  # every fifth row happened to be its class's only one
            held[several.to(torch.uint8).argmax()] = True
    return order[~held], order[held]


def feature_scale(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation (F,) of features (N, F), summed in float64."""
    mean = torch.zeros(x.shape[1], dtype=torch.float64)
    variance = torch.zeros_like(mean)
    chunks = x.split(max(1, CHUNK // x.shape[1]))
    for chunk in chunks:
        mean += chunk.sum(0, dtype=torch.float64) / len(x)
    for chunk in chunks:
        variance += (chunk - mean.float()).square().sum(0, dtype=torch.float64) / len(x)
    std = variance.sqrt()
    # a feature that is constant here may vary on test images, and must not be amplified there
    std = torch.where(std > 1e-5 * mean.abs().clamp(min=1e-5), std, torch.ones_like(std))
    return mean.float(), std.float()


def standardised(
    x: torch.Tensor, rows: torch.Tensor, scale: tuple[torch.Tensor, torch.Tensor], device: str
) -> torch.Tensor:
    """float32 (R, F) on the device: the given rows of x minus the mean, over the deviation."""
    mean, std = (vector.to(device) for vector in scale)
    out = torch.empty(len(rows), x.shape[1], device=device)
    size = max(1, CHUNK // x.shape[1])
    for target, chosen in zip(out.split(size), rows.split(size), strict=True):
        torch.sub(x[chosen].to(device), mean, out=target).div_(std)
    return out


def _feature_device(x: torch.Tensor, device: str) -> str:
    """The device to keep the features on: the CPU if they are too large for the GPU."""
    if device == "cpu" or x.nbytes <= GPU_SHARE * torch.cuda.mem_get_info()[0]:
        return device
    return "cpu"


def _chunks(x: torch.Tensor, weight: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Chunks of the rows of x, moved to the device of the weight."""
    size = max(1, CHUNK // sum(weight.shape))
    for start in range(0, len(x), size):
        rows = slice(start, start + size)
        yield rows, x[rows].to(weight.device)


def predict(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """int64 (M,): predicted classes of features (M, F) for a weight (F + 1, classes)."""
    bias, matrix = weight[-1], weight[:-1]
    classes = [torch.addmm(bias, chunk, matrix).argmax(1) for _, chunk in _chunks(x, weight)]
    return torch.cat([*classes, torch.empty(0, dtype=torch.int64, device=weight.device)])


def loss_and_gradient(
    x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, strength: float
) -> tuple[float, torch.Tensor]:
    """Mean cross-entropy + strength·‖W‖²/2, and its gradient, for a weight (F + 1, classes) whose
    last row is the bias, without penalty. Logits are computed chunk by chunk."""
    gradient = torch.zeros_like(weight)
    gradient[:-1] = strength * weight[:-1]
    total = torch.zeros((), dtype=torch.float64, device=weight.device)
    for rows, chunk in _chunks(x, weight):
        logits = torch.addmm(weight[-1], chunk, weight[:-1])
        target = y[rows, None]
        total -= logits.gather(1, target).sum(dtype=torch.float64)
        norm = logits.logsumexp(1, keepdim=True)
        total += norm.sum(dtype=torch.float64)
        error = logits.sub_(norm).exp_()  # probabilities, minus one at the true class
        error.scatter_add_(1, target, torch.full_like(norm, -1.0))
        gradient[:-1].addmm_(chunk.T, error, alpha=1 / len(x))
        gradient[-1] += error.sum(0) / len(x)
    penalty = 0.5 * strength * float(weight[:-1].square().sum(dtype=torch.float64))
    return float(total) / len(x) + penalty, gradient


class _LBFGS(torch.optim.LBFGS):
    # undecorated: the decorator imports torch._dynamo, which takes each process 1.5 s
    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)


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
        tolerance: the fit has converged when no entry of the gradient is larger.

    Returns:
        The weight (F + 1, classes), and the number of iterations.
    """
    weight = start.clone().requires_grad_()
    solver = _LBFGS(
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
