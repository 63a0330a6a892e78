"""What an evaluation cannot use: images without a label, of a class never trained on, or broken."""

from __future__ import annotations

from collections import Counter
from typing import Any

from wcl_ray.errors import UserError

SHOWN = 5  # classes or images that a message names


def check_label(label: str, classes: set[str]) -> None:
    """Raise a UserError when a label column says nothing."""
    if len(classes) < 2:
        seen = f"one class only, {classes.pop()!r}" if classes else "no value at all"
        raise UserError(f"data.label {label!r} has {seen}; evaluation needs at least two classes")


def compare_labels(
    label: str, train: Counter[str | None], test: Counter[str | None]
) -> dict[str, Any]:
    """What is left out for its label, or can only be wrong.

    Args:
        label: name of the column.
        train, test: number of images of each class; None: without a label.

    Returns:
        ``unlabelled``, number of images by side, ``unseen``, share of the labelled test images
        whose class was never trained on, and ``unseen_classes``, the names of the largest of them
        and their images.

    Raises:
        UserError: no test image has a label, or none is of a class that was trained on.
    """
    known = {name for name in train if name is not None}
    classes: Counter[str] = Counter({n: count for n, count in test.items() if n is not None})
    labelled = classes.total()
    if not labelled:
        raise UserError(
            f"data.label {label!r} has no value among the test images ({test.total():,}); give "
            "others with --data.eval-path, or leave --data.label out"
        )
    unseen = Counter({name: count for name, count in classes.items() if name not in known})
    if unseen.total() == labelled:
        raise UserError(
            f"none of the {labelled:,} test images is of a class that is trained on: the test "
            f"images have {label} {_some(classes)}, the training images "
            f"{_some(Counter({name: train[name] for name in known}))}"
        )
    return {
        "unlabelled": {"training": train[None], "test": test[None]},
        "unseen": unseen.total() / labelled,
        "unseen_classes": dict(unseen.most_common(SHOWN)),
        "unseen_count": len(unseen),
    }


def _some(classes: Counter[str]) -> str:
    names = ", ".join(f"{name!r} ({count:,})" for name, count in classes.most_common(SHOWN))
    more = len(classes) - SHOWN
    return f"{names} and {more:,} more" if more > 0 else names


def left_out(figures: dict[str, Any]) -> list[str]:
    """Sentences for people on what an evaluation, or a look at its images before it, left out.

    Args:
        figures: of :func:`wcl_ray.evaluate.run.evaluate_encoder`; those of older versions, which
            lack the counts, give none.
    """
    lines = []
    for side, faults in figures.get("unreadable", {}).items():
        count, first = faults["count"], "; ".join(faults["first"])
        if count:
            whole = count + figures[f"{'train' if side == 'training' else side}_images"]
            lines.append(
                f"{count:,} of {whole:,} {side} images cannot be read and are left out of the "
                f"evaluation: {first}{' …' if count > len(faults['first']) else ''}"
            )
    for side, count in figures.get("unlabelled", {}).items():
        if count:
            lines.append(
                f"{count:,} {side} images have no label and are left out of kNN and linear probe"
            )
    if figures.get("unseen_count"):
        names = ", ".join(f"{n!r} ({count:,})" for n, count in figures["unseen_classes"].items())
        more = figures["unseen_count"] - len(figures["unseen_classes"])
        lines.append(
            f"{figures['unseen']:.1%} of the test images count as wrong, since their "
            f"{figures['unseen_count']:,} class(es) have no training image: {names}"
            f"{f' and {more:,} more' if more else ''}"
        )
    if figures.get("probe_capped"):
        lines.append(
            f"linear probe: {figures['probe_capped']} of its 6 fits had not converged when they "
            "were stopped; its figure may be a little low"
        )
    return lines
