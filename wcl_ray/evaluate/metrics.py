"""All figures of an encoder from the features of its training and test images."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import torch

from wcl_ray.config import EvaluateConfig
from wcl_ray.errors import UserError
from wcl_ray.evaluate.embed import DISTANCE, feature_tensor
from wcl_ray.evaluate.few_shot import SHOTS, few_shot_probe
from wcl_ray.evaluate.geometry import feature_std, rank_me, uniformity
from wcl_ray.evaluate.knn import nearest, vote_accuracy
from wcl_ray.evaluate.left_out import compare_labels
from wcl_ray.evaluate.probe import linear_probe
from wcl_ray.evaluate.retrieval import (
    RECALLS,
    chance_recall,
    mean_average_precision,
    recall_at,
)


def evaluate_features(
    train: pa.Table,
    test: pa.Table | None,
    label: str | None,
    config: EvaluateConfig,
    seed: int,
    probe: bool = True,
    device: str = "cpu",
    extended: bool = False,
) -> dict[str, Any]:
    """Figures of an encoder.

    Args:
        train: readable images: ``feature``, the label, and optionally ``__distance``.
        test: the same for images not trained on; None: only label-free figures.
        label: name of the label column; rows without a label are left out of kNN and probe.
        probe: also fit the linear probe, which takes longest.
        device: where kNN and probe are computed.
        extended: also recall@k and mAP of retrieval and few-shot probes.

    Returns:
        rank_me, uniformity, alignment and feature_std of the training images; with labels also knn,
        majority (accuracy of always guessing the commonest class), probe, probe_mean_class,
        probe_strength, probe_validation, probe_capped (fits stopped before they converged),
        classes, and the figures of :func:`wcl_ray.evaluate.left_out.compare_labels`; extended also
        recall@1, recall@5, recall@10, map, ``few_shot``: images of each class → mean, std and
        draws, and ``chance``: what random features reach (map: about).

    Raises:
        UserError: features that are not finite, or no test image of a class with training images.
    """
    x = feature_tensor(train["feature"])
    if not all(torch.isfinite(part).all() for part in x.split(4096)):
        raise UserError(
            "evaluation: the encoder's features are not finite, since its training diverged; try a "
            "smaller train.lr or train.clip"
        )
    figures: dict[str, Any] = {
        "rank_me": rank_me(x),
        "uniformity": uniformity(x),
        "feature_std": feature_std(x),
        "features": x.shape[1],
    }
    if DISTANCE in train.column_names:
        figures["alignment"] = float(train[DISTANCE].to_numpy().mean(dtype=float))
    if test is None or label is None:
        return figures
    labels = [table[label].to_pylist() for table in (train, test)]
    figures |= compare_labels(label, *map(Counter, labels))
    names = sorted({v for v in labels[0] if v is not None}, key=str)
    train_x, train_y = _labelled(x, labels[0], names)
    test_x, test_y = _labelled(feature_tensor(test["feature"]), labels[1], names)
    sides = train_x, train_y, test_x, test_y
    k = config.neighbours
    similarity, index = nearest(train_x, test_x, max(k, *RECALLS) if extended else k, device)
    figures |= {
        "knn": vote_accuracy(similarity[:, :k], index[:, :k], train_y, test_y),
        "majority": float((test_y == train_y.bincount().argmax()).float().mean()),
        "classes": len(names),
    }
    if extended:
        figures |= {f"recall@{n}": recall_at(n, index, train_y, test_y) for n in RECALLS}
        figures["map"] = mean_average_precision(*sides, seed, device)
        figures["chance"] = {f"recall@{n}": chance_recall(n, train_y, test_y) for n in RECALLS}
        figures["chance"] |= {"map": chance_recall(1, train_y, test_y), "few_shot": 1 / len(names)}
        probes = {str(n): few_shot_probe(n, *sides, seed, device) for n in SHOTS}
        figures["few_shot"] = {n: asdict(result) for n, result in probes.items()}
    if not probe:
        return figures
    result = linear_probe(*sides, seed, len(names), device)
    return figures | {
        "probe": result.accuracy,
        "probe_mean_class": result.mean_class_accuracy,
        "probe_strength": result.strength,
        "probe_validation": result.validation,
        "probe_capped": result.capped,
    }


def _labelled(
    x: torch.Tensor, labels: list[Any], names: list[Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows with a label and their class numbers, -1 for classes not among the names."""
    number = {name: i for i, name in enumerate(names)}
    y = torch.tensor([number.get(value, -1) for value in labels if value is not None])
    if len(y) == len(x):
        return x, y
    return x[torch.tensor([value is not None for value in labels])], y
