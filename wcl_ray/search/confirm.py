"""Trains the best settings, and the default one, at full length before the search names a winner.

The best of short trials need not be the best of long ones, and the best of many scores is partly
luck. So a few settings are trained as long as the run will be, on the same training images, and
measured on the same validation images: a small search of its own in ``confirm/``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from wcl_ray.search.options import SearchConfig
from wcl_ray.search.outcome import Outcome
from wcl_ray.search.record import FILE, Record
from wcl_ray.search.results import ranked, score_text
from wcl_ray.search.space import Dimension, encode, show
from wcl_ray.search.trial import Setup
from wcl_ray.search.tuner import run_trials
from wcl_ray.storage import Folder
from wcl_ray.terminal import say

CONFIRM, CHOSEN = "confirm", "chosen.json"


def to_confirm(
    config: SearchConfig, dimensions: tuple[Dimension, ...], outcome: Outcome
) -> list[dict[str, Any]]:
    """Distinct points of the ``confirm`` best settings, and that of the default setting if it lies
    in the space; empty if trials are as long as the run."""
    if not config.confirm or config.epochs >= config.train.epochs:
        return []
    scored = [t for t in ranked(outcome) if t.score is not None and t.status != "failed"]
    default = encode(dimensions, config.plain())
    points: list[dict[str, Any]] = []
    for trial in scored:
        point = encode(dimensions, config.best(trial.values))
        if point is not None and point != default and point not in points:
            points.append(point)
    chosen = points[: config.confirm]
    return [*chosen, default] if chosen and default is not None else chosen


def run_confirm(
    setup: Setup, first: Record, publish: Callable[[Folder, Outcome], None]
) -> tuple[Outcome | None, bool]:
    """Train the settings to confirm, or those that are left after a stop.

    Returns:
        The outcome, None if there is nothing to confirm; and whether it was interrupted.
    """
    folder = setup.folder / CONFIRM
    if folder.exists(CHOSEN):  # started before
        points = json.loads(folder.read(CHOSEN))
    else:
        points = to_confirm(setup.config, setup.dimensions, first.outcome())
        if not points:
            return None, False
        folder.write(CHOSEN, json.dumps(points).encode())
    config = replace(_full(setup.config), trials=len(points))
    resources = setup.resources
    resources = replace(resources, concurrent=min(resources.concurrent, len(points)))
    record = Record(folder, config, first.granularity)
    record.validation, record.details = first.validation, first.details
    say("confirm", f"{len(points)} settings at full length, {config.epochs} epochs")
    setup = replace(setup, folder=folder, config=config, resources=resources)
    interrupted = run_trials(setup, record, lambda: publish(folder, record.outcome()), points)
    return record.outcome(), interrupted


def look_up(folder: Folder, config: SearchConfig, granularity: str | None) -> Outcome | None:
    """The outcome of the settings at full length, None if there are none."""
    confirm = folder / CONFIRM
    return Record(confirm, _full(config), granularity).outcome() if confirm.exists(FILE) else None


def _full(config: SearchConfig) -> SearchConfig:
    return replace(config, trial_epochs=config.train.epochs, scheduler="none", grace=0)


def describe(outcome: Outcome) -> str:
    """The settings and their scores on one line, the best first."""
    texts = []
    for trial in ranked(outcome):
        text = ", ".join(f"{key.rpartition('.')[2]} {show(v)}" for key, v in trial.values.items())
        text += " (the default)" * trial.default
        texts.append(f"{text}: {score_text(outcome.metric, trial.score)}")
    return "; ".join(texts)
