"""Options that had other names before version 0.3; the old ones still work, with a warning."""

from __future__ import annotations

from typing import Any

OPTIONS = {
    "augment.grey": "augment.grayscale",
    "augment.solarise": "augment.solarize",
    "clusters.group": "clusters.samples_per_cluster",
    "data.group": "data.split_by",
    "loss.dual_weight": "loss.instance_weight",
}
REMOVED = {"loss.dual": "loss.instance-weight 1"}  # option → what to give instead
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
    return {
        section: {
            name.removeprefix(f"{section}."): current
            for name, current in (renamed(f"{section}.{key}", value) for key, value in part.items())
        }
        if isinstance(part, dict)
        else part
        for section, part in tree.items()
    }
