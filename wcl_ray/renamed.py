"""Options that had other names before version 0.3, which still work, with a warning; and those that
are gone."""

from __future__ import annotations

from typing import Any

OPTIONS = {
    "augment.grey": "augment.grayscale",
    "augment.solarise": "augment.solarize",
    "clusters.group": "clusters.samples_per_cluster",
    "data.group": "data.split_by",
    "loss.dual_weight": "loss.instance_weight",
}
REMOVED = {  # option → what there is instead
    "loss.dual": "use --loss.instance-weight 1",
    "train.momentum": "it is always 0.9",
    "train.checkpoint-epochs": "every epoch ends with a checkpoint",
    "reduction": "it is always 2",
    "retries": "use --scale.max-failures",
    **{
        f"augment.{name}": "use --augment.jitter-strength"
        for name in ("brightness", "contrast", "saturation", "hue")
    },
}
FIXED: dict[str, dict[str, Any]] = {  # options that are gone → the value that still holds
    "train": {"momentum": 0.9, "checkpoint_epochs": 1},
    "augment": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    "": {"reduction": 2, "retries": 2},
}
VALUES = {
    ("clusters.missing", "alone"): "singleton",
    ("data.keep", "anew"): "streaming",
}


METRICS = {
    "left_seconds": "eta_seconds",
    "lonely": "anchors_without_positive",
    "spread": "feature_std",
    "wait": "data_wait",
}


def renamed(option: str, value: Any) -> tuple[str, Any]:
    """Today's name of an option, dotted and with underscores, and of its value.

    >>> renamed("data.group", "unit"), renamed("data.keep", "anew")
    (('data.split_by', 'unit'), ('data.keep', 'streaming'))
    """
    name = OPTIONS.get(option, option)
    return name, VALUES.get((name, value), value) if isinstance(value, str) else value


def renamed_tree(tree: dict[str, Any]) -> dict[str, Any]:
    """A stored configuration, nested by sections, under today's names."""
    loss = tree.get("loss")
    if isinstance(loss, dict) and "dual" in loss:  # the weight counted only with loss.dual
        weight = loss.get("dual_weight", 1.0) if loss["dual"] else 0.0
        loss = {key: value for key, value in loss.items() if key not in ("dual", "dual_weight")}
        tree = tree | {"loss": loss | {"instance_weight": weight}}
    for section, fixed in FIXED.items():
        part = tree.get(section) if section else tree
        if isinstance(part, dict):
            part = {key: value for key, value in part.items() if fixed.get(key) != value}
            tree = tree | {section: part} if section else part
    return {
        section: {
            name.removeprefix(f"{section}."): current
            for name, current in (renamed(f"{section}.{key}", value) for key, value in part.items())
        }
        if isinstance(part, dict)
        else part
        for section, part in tree.items()
    }
