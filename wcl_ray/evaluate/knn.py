"""Weighted nearest-neighbour classification by cosine similarity."""

from __future__ import annotations

import torch
import torch.nn.functional as F

TEMPERATURE = 0.07
QUERIES, BANK = 2048, 16_384  # rows compared at a time: 134 MB of similarities


def knn_accuracy(
    train_x: torch.Tensor,
    train_y: torch.Tensor,
    test_x: torch.Tensor,
    test_y: torch.Tensor,
    neighbours: int,
    device: str = "cpu",
) -> float:
    """Share of test images whose class wins the vote of their nearest training images.

    A neighbour votes with exp(similarity / 0.07) (Wu et al., "Unsupervised Feature Learning via
    Non-Parametric Instance Discrimination", 2018); the lower class number wins a tie.

    Args:
        train_x: float (N, F). train_y: int64 (N,).
        test_x: float (M, F). test_y: int64 (M,); -1 (a class not trained on) counts as wrong.
        neighbours: k; at most N are used.
        device: where similarities are computed; must hold the test features.

    Returns:
        Accuracy in [0, 1].
    """
    return vote_accuracy(*nearest(train_x, test_x, neighbours, device), train_y, test_y)


def vote_accuracy(
    similarity: torch.Tensor, index: torch.Tensor, train_y: torch.Tensor, test_y: torch.Tensor
) -> float:
    """:func:`knn_accuracy` of neighbours that :func:`nearest` has found."""
    classes = int(train_y.max()) + 1
    right = 0
    for start in range(0, len(test_y), QUERIES):
        rows = slice(start, start + QUERIES)
        votes = torch.zeros(len(index[rows]), classes)
        weight = torch.exp((similarity[rows] - 1) / TEMPERATURE)
        votes.scatter_add_(1, train_y[index[rows]], weight)
        right += int((votes.argmax(1) == test_y[rows]).sum())
    return right / len(test_y)


def nearest(
    bank: torch.Tensor, queries: torch.Tensor, neighbours: int, device: str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of a bank (N, F) most similar to each query (M, F), in chunks of both.

    Returns:
        Cosine similarities float32 (M, k), decreasing, and row numbers int64 (M, k), on the CPU; k
        is the smaller of ``neighbours`` and N.
    """
    units = F.normalize(queries.to(device).float(), dim=1)
    best = torch.empty(len(queries), 0, device=device)
    index = torch.empty(len(queries), 0, dtype=torch.int64, device=device)
    k = min(neighbours, len(bank))
    for first in range(0, len(bank), BANK):  # each chunk of the bank goes to the device once
        chunk = F.normalize(bank[first : first + BANK].to(device).float(), dim=1)
        merged = []
        for start in range(0, len(queries), QUERIES):
            rows = slice(start, start + QUERIES)
            score, column = (units[rows] @ chunk.T).topk(min(k, len(chunk)), dim=1)
            score = torch.cat([best[rows], score], dim=1)
            candidates = torch.cat([index[rows], column + first], dim=1)
            score, chosen = score.topk(min(k, score.shape[1]), dim=1)
            merged.append((score, candidates.gather(1, chosen)))
        best, index = (torch.cat(parts) for parts in zip(*merged, strict=True))
    return best.cpu(), index.cpu()
