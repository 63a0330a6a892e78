"""Images an evaluation cannot use: unlabelled, unreadable, or of a class without training image."""

from __future__ import annotations

from collections import Counter
from typing import Any

from wcl_ray.errors import UserError

MAX_NAMED = 5  # classes or images named in a message


def check_label(label: str, classes: set[str]) -> None:
    """Raise a UserError if a label column has fewer than two classes."""
    if len(classes) < 2:
        values = f"only one class, {classes.pop()!r}" if classes else "no values"
        raise UserError(f"data.label {label!r} has {values}; evaluation needs at least two classes")


def compare_labels(
    label: str, train: Counter[str | None], test: Counter[str | None]
) -> dict[str, Any]:
    """Count images without a label, and test images whose class has no training image.

    Args:
        label: name of the column.
        train, test: number of images by class; None: without a label.

    Returns:
        ``unlabelled``, number of images by side, ``unseen``, share of the labelled test images
        whose class has no training image, ``unseen_classes``, the largest of these classes with
        their numbers of images, and ``unseen_count``, how many there are.

    Raises:
        UserError: no test image has a label, or none is of a class with training images.
    """
    train_classes, test_classes = (
        Counter({name: count for name, count in side.items() if name is not None})
        for side in (train, test)
    )
    labelled = test_classes.total()
    if not labelled:
        raise UserError(
            f"data.label {label!r} has no value among the test images ({test.total():,}); give "
            "others with --data.eval-path, or leave --data.label out"
        )
    unseen = Counter({n: count for n, count in test_classes.items() if n not in train_classes})
    if unseen.total() == labelled:
        raise UserError(
            f"none of the {labelled:,} test images is of a class with training images: the test "
            f"images have {label} {_largest(test_classes, len(test_classes))}, the training images "
            f"{_largest(train_classes, len(train_classes))}"
        )
    return {
        "unlabelled": {"training": train[None], "test": test[None]},
        "unseen": unseen.total() / labelled,
        "unseen_classes": dict(unseen.most_common(MAX_NAMED)),
        "unseen_count": len(unseen),
    }


def _largest(classes: dict[str, int], total: int) -> str:
    """The largest classes and their numbers of images, and how many of ``total`` are not named."""
    named = Counter(classes).most_common(MAX_NAMED)
    names = ", ".join(f"{name!r} ({count:,})" for name, count in named)
    others = total - len(named)
    return f"{names} and {others:,} more" if others else names


def left_out(figures: dict[str, Any]) -> list[str]:
    """Sentences that tell the user which images an evaluation leaves out or counts as wrong.

    Args:
        figures: of :func:`wcl_ray.evaluate.run.evaluate_encoder`, or :func:`compare_labels` before
            it; those of older versions lack the counts and give no sentence.
    """
    lines = []
    for side, faults in figures.get("unreadable", {}).items():
        count, first = faults["count"], "; ".join(faults["first"])
        if count:
            total = count + figures[f"{'train' if side == 'training' else side}_images"]
            lines.append(
                f"{count:,} of {total:,} {side} images cannot be read and are left out of the "
                f"evaluation: {first}{' …' if count > len(faults['first']) else ''}"
            )
    for side, count in figures.get("unlabelled", {}).items():
        if count:
            lines.append(
                f"{count:,} {side} images have no label and are left out of kNN and linear probe"
            )
    if count := figures.get("unseen_count"):
        lines.append(
            f"{figures['unseen']:.1%} of the test images count as wrong, since their {count:,} "
            f"class(es) have no training image: {_largest(figures['unseen_classes'], count)}"
        )
    if figures.get("probe_capped"):
        lines.append(
            f"linear probe: {figures['probe_capped']} of its 6 fits had not converged when they "
            "were stopped; its accuracy may be a little low"
        )
    return lines
