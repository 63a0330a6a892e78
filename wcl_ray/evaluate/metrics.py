"""All figures of an encoder from the features of its training and test images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch

from wcl_ray.config import EvaluateConfig
from wcl_ray.errors import UserError
from wcl_ray.evaluate.embed import feature_matrix
from wcl_ray.evaluate.knn import knn_accuracy
from wcl_ray.evaluate.probe import linear_probe
from wcl_ray.evaluate.spread import alignment, rank_me, spread, uniformity


def evaluate_features(
    train: pa.Table,
    test: pa.Table | None,
    label: str | None,
    config: EvaluateConfig,
    seed: int,
    probe: bool = True,
) -> dict[str, Any]:
    """Figures of an encoder.

    Args:
        train: ``feature``, ``view`` and the label of readable images.
        test: the same of images that were not trained on; None: only label-free figures.
        label: name of the label column; rows without a label are left out of kNN and probe.
        probe: also the linear probe, which takes longer than all else.

    Returns:
        rank_me, uniformity, alignment and spread on the training images; with labels also knn,
        probe, probe_mean_class, probe_strength, probe_validation, classes, and unseen (share of
        the test images whose class was never trained on; they count as wrong).

    Raises:
        UserError: features that are not finite, or no test image with a label.
    """
    x = torch.from_numpy(feature_matrix(train["feature"]).copy())
    if not torch.isfinite(x).all():
        raise UserError(
            "evaluation: the encoder gives features that are not finite; its training diverged"
            " (try a smaller train.lr or train.clip)"
        )
    figures: dict[str, Any] = {
        "rank_me": rank_me(x),
        "uniformity": uniformity(x),
        "spread": spread(x),
        "features": x.shape[1],
    }
    if "view" in train.column_names:
        view = torch.from_numpy(feature_matrix(train["view"]).copy())
        figures["alignment"] = alignment(x, view)
    if test is None or label is None:
        return figures
    names = sorted({v for v in train[label].to_pylist() if v is not None}, key=str)
    train_x, train_y = _labelled(train, label, names)
    test_x, test_y = _labelled(test, label, names)
    if len(test_y) == 0:
        raise UserError(f"data.label {label!r} has no value among the test images")
    figures |= {
        "knn": knn_accuracy(train_x, train_y, test_x, test_y, config.neighbours),
        "classes": len(names),
        "unseen": float((test_y < 0).float().mean()),
    }
    if not probe:
        return figures
    found = linear_probe(
        train_x, train_y, test_x, test_y, config.probe_epochs, seed, classes=len(names)
    )
    return figures | {
        "probe": found.accuracy,
        "probe_mean_class": found.mean_class_accuracy,
        "probe_strength": found.strength,
        "probe_validation": found.validation,
    }


def _labelled(table: pa.Table, label: str, names: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    table = table.filter(table[label].is_valid())
    number = {name: i for i, name in enumerate(names)}
    y = np.array([number.get(v, -1) for v in table[label].to_pylist()], dtype=np.int64)
    return torch.from_numpy(feature_matrix(table["feature"]).copy()), torch.from_numpy(y)
