"""Label-free figures: whether the features use their space or have collapsed."""

from __future__ import annotations

import torch
import torch.nn.functional as F

MOST = 10_000  # rows used; the figures change little beyond
MOST_PAIRED = 2000  # rows whose pairs are used


def _sample(x: torch.Tensor, most: int = MOST) -> torch.Tensor:
    """At most ``most`` rows of x, drawn at random with a fixed seed, since data may be sorted by
    class."""
    if len(x) <= most:
        return x
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:most]]


def rank_me(x: torch.Tensor) -> float:
    """Effective rank exp(H(p)) of features (N, F), p = singular values / their sum.

    Garrido et al., "RankMe", ICML 2023, equation 1. Between 1 (collapsed) and min(N, F).
    """
    singular = torch.linalg.svdvals(_sample(x).double())
    p = singular / singular.sum().clamp(min=1e-30) + 1e-7
    return float(torch.exp(-(p * torch.log(p)).sum()))


def uniformity(x: torch.Tensor) -> float:
    """log mean exp(-2 ‖a - b‖²) over pairs of normalised features; 0 is collapsed, lower is better.

    Wang and Isola, "Understanding Contrastive Representation Learning", ICML 2020, equation 8.
    """
    unit = F.normalize(_sample(x, MOST_PAIRED).float(), dim=1)
    distance = torch.pdist(unit).square()
    return float(torch.log(torch.exp(-2 * distance).mean()))


def distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Squared distances (N,) of the normalised features of two views. Their mean is the alignment;
    lower is better.

    Wang and Isola, ICML 2020, equation 7 with α = 2.

    Args:
        a, b: float (N, F), whose rows are of the same images.
    """
    a, b = F.normalize(a.float(), dim=1), F.normalize(b.float(), dim=1)
    return (a - b).square().sum(1)


def feature_std(x: torch.Tensor) -> float:
    """Mean standard deviation of the coordinates of normalised features, times √F: about 1 if they
    fill the sphere, 0 if they have collapsed to a point.

    >>> feature_std(torch.ones(8, 4))
    0.0
    """
    unit = F.normalize(_sample(x).float(), dim=1)
    return float(unit.std(0).mean() * unit.shape[1] ** 0.5)
