"""Retrieval: do the training images nearest to a test image have its class?"""

from __future__ import annotations

import torch
import torch.nn.functional as F

RECALLS = (1, 5, 10)
MOST_QUERIES = 2000  # test images whose rankings of all training images are computed
CHUNK = 1 << 24  # similarities sorted at a time


def recall_at(k: int, index: torch.Tensor, train_y: torch.Tensor, test_y: torch.Tensor) -> float:
    """Share of test images with at least one image of their class among the k nearest.

    Args:
        index: int64 (M, ≥ k), rows of the training images, nearest first.
        train_y: int64 (N,). test_y: int64 (M,); -1 (a class not trained on) counts as wrong.
    """
    hits = (train_y[index[:, :k]] == test_y[:, None]).any(1)
    return float(hits.double().mean())


def chance_recall(k: int, train_y: torch.Tensor, test_y: torch.Tensor) -> float:
    """:func:`recall_at` expected of training images in random order.

    Args:
        train_y: int64 (N,). test_y: int64 (M,); -1 counts as wrong.

    >>> chance_recall(1, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1]))
    0.5
    """
    sizes = torch.where(test_y >= 0, train_y.bincount()[test_y.clamp(min=0)], 0)  # (M,)
    missed = torch.ones(len(test_y), dtype=torch.float64)
    for drawn in range(min(k, len(train_y))):  # without replacement
        missed *= ((len(train_y) - drawn - sizes).clamp(min=0)) / (len(train_y) - drawn)
    return float(1 - missed.mean())


def mean_average_precision(
    train_x: torch.Tensor,
    train_y: torch.Tensor,
    test_x: torch.Tensor,
    test_y: torch.Tensor,
    seed: int,
    device: str = "cpu",
) -> float:
    """Mean over test images of the average precision of the ranking of all training images by
    cosine similarity; of at most 2,000 test images, drawn at random.

    Args:
        train_x: float (N, F). train_y: int64 (N,).
        test_x: float (M, F). test_y: int64 (M,); -1 (a class not trained on) has precision 0.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(test_x), generator=generator)[:MOST_QUERIES]
    bank = F.normalize(train_x.to(device).float(), dim=1)
    ranks = torch.arange(1, len(bank) + 1, device=device)
    classes, total = train_y.to(device), 0.0
    for chunk in rows.split(max(1, CHUNK // len(bank))):
        queries = F.normalize(test_x[chunk].to(device).float(), dim=1)
        order = (queries @ bank.T).argsort(dim=1, descending=True, stable=True)
        relevant = classes[order] == test_y[chunk].to(device)[:, None]  # (q, N)
        precision = relevant.cumsum(1) / ranks
        hits = relevant.sum(1).clamp(min=1)
        total += float(((precision * relevant).sum(1) / hits).sum(dtype=torch.float64))
    return total / len(rows)
