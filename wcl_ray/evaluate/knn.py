"""Weighted nearest-neighbour classification on cosine similarity."""

from __future__ import annotations

import torch
import torch.nn.functional as F

TEMPERATURE = 0.07


def knn_accuracy(
    train_x: torch.Tensor,
    train_y: torch.Tensor,
    test_x: torch.Tensor,
    test_y: torch.Tensor,
    neighbours: int,
    chunk: int = 1024,
) -> float:
    """Share of test images whose class wins the vote of their nearest training images.

    A neighbour votes with exp(similarity / 0.07) (Wu et al., "Unsupervised Feature Learning via
    Non-Parametric Instance Discrimination", 2018); the lower class number wins a tie.

    Args:
        train_x: float (N, F). train_y: int64 (N,).
        test_x: float (M, F). test_y: int64 (M,); -1 (a class never trained on) is always wrong.
        neighbours: at most N are used.
        chunk: test images compared at a time.

    Returns:
        Accuracy in [0, 1].
    """
    bank, queries = F.normalize(train_x.float(), dim=1), F.normalize(test_x.float(), dim=1)
    classes = int(train_y.max()) + 1
    k = min(neighbours, len(bank))
    right = 0
    for start in range(0, len(queries), chunk):
        similarity, index = (queries[start : start + chunk] @ bank.T).topk(k, dim=1)
        votes = torch.zeros(len(index), classes)
        votes.scatter_add_(1, train_y[index], torch.exp((similarity - 1) / TEMPERATURE))
        right += int((votes.argmax(1) == test_y[start : start + chunk]).sum())
    return right / len(queries)
