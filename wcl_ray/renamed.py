"""Options with other names than before version 0.3, whose old names still work, with a warning; and
options that are gone."""

from __future__ import annotations

import math
from typing import Any

OPTIONS = {
    "augment.grey": "augment.grayscale",
    "augment.solarise": "augment.solarize",
    "clusters.group": "clusters.samples_per_cluster",
    "data.group": "data.split_by",
    "loss.dual_weight": "loss.instance_weight",
}
STRENGTH = "use --augment.jitter-strength, which scales all four"
# options that are gone → what there is instead, and the value that still holds
REMOVED: dict[str, tuple[str, float | None]] = {
    "loss.dual": ("use --loss.instance-weight 1", None),
    "train.momentum": ("it is always 0.9", 0.9),
    "train.checkpoint-epochs": ("every epoch ends with a checkpoint", 1),
    "reduction": ("it is always 2: the better half of the trials goes on", 2),
    "retries": ("a failed trial is restarted twice", 2),
    "augment.brightness": (STRENGTH, None),
    "augment.contrast": (STRENGTH, None),
    "augment.saturation": (STRENGTH, None),
    "augment.hue": (STRENGTH, None),
}
JITTER = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}  # at strength 1
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
    """A stored configuration, nested by sections, under today's names; its values may be texts."""
    loss = tree.get("loss")
    if isinstance(loss, dict) and "dual" in loss:  # the weight counted only with loss.dual
        weight = loss.get("dual_weight", 1.0) if loss["dual"] in (True, "true") else 0.0
        loss = {key: value for key, value in loss.items() if key not in ("dual", "dual_weight")}
        tree = tree | {"loss": loss | {"instance_weight": weight}}
    augment = tree.get("augment")
    if isinstance(augment, dict) and JITTER.keys() <= augment.keys():
        shares = {round(_number(augment[name]) / full, 6) for name, full in JITTER.items()}
        if len(shares) == 1:
            augment = {name: value for name, value in augment.items() if name not in JITTER}
            tree = tree | {"augment": augment | {"jitter_strength": shares.pop()}}
    return {
        section: {
            name.removeprefix(f"{section}."): current
            for name, current in (renamed(f"{section}.{key}", value) for key, value in part.items())
            if not _still_holds(name, current)
        }
        if isinstance(part, dict)
        else part
        for section, part in tree.items()
        if not _still_holds(section, part)
    }


def _still_holds(option: str, value: Any) -> bool:
    """Whether an option is gone and has the value that is used without it."""
    return REMOVED.get(option.replace("_", "-"), ("", None))[1] == _number(value)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
