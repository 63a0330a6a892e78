"""The best settings at full length, beside the configuration as it is, before one is named.

The best of short trials need not be the best of long ones, and the best of many scores is the
luckiest, too. So a few settings are trained as long as the run will be, on the same training
images, and measured on the same validation images: a small search of its own in ``confirm/``.
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
    """Points of the ``confirm`` best settings, each once, and of the configuration as it is where
    it lies in the space; none where trials are as long as the run."""
    if not config.confirm or config.epochs >= config.train.epochs:
        return []
    scored = [t for t in ranked(outcome) if t.score is not None and t.status != "failed"]
    own = encode(dimensions, config.plain())
    points: list[dict[str, Any]] = []
    for trial in scored:
        point = encode(dimensions, config.best(trial.values))
        if point is not None and point != own and point not in points:
            points.append(point)
    chosen = points[: config.confirm]
    return [*chosen, own] if chosen and own is not None else chosen


def run_confirm(
    setup: Setup, first: Record, publish: Callable[[Folder, Outcome], None]
) -> tuple[Outcome | None, bool]:
    """Train them, or what is left of them.

    Returns:
        What came out, None where nothing is to be confirmed; and whether it was interrupted.
    """
    folder = setup.folder / CONFIRM
    if folder.exists(CHOSEN):  # it was started before
        points = json.loads(folder.read(CHOSEN))
    else:
        points = to_confirm(setup.config, setup.dimensions, first.outcome())
        if not points:
            return None, False
        folder.write(CHOSEN, json.dumps(points).encode())
    config = replace(_full(setup.config), trials=len(points))
    share = replace(setup.share, concurrent=min(setup.share.concurrent, len(points)))
    record = Record(folder, config, first.granularity)
    record.validation, record.facts = first.validation, first.facts
    say("confirm", f"{len(points)} settings at full length, {config.epochs} epochs")
    own = replace(setup, folder=folder, config=config, share=share)
    interrupted = run_trials(own, record, lambda: publish(folder, record.outcome()), points)
    return record.outcome(), interrupted


def look_up(folder: Folder, config: SearchConfig, granularity: str | None) -> Outcome | None:
    """What is known of the settings at full length of a search, None without any."""
    there = folder / CONFIRM
    return Record(there, _full(config), granularity).outcome() if there.exists(FILE) else None


def _full(config: SearchConfig) -> SearchConfig:
    return replace(config, trial_epochs=config.train.epochs, scheduler="none", grace=0)


def in_words(outcome: Outcome) -> str:
    """The settings and their scores on one line, the best first."""
    parts = []
    for trial in ranked(outcome):
        text = ", ".join(f"{key.rpartition('.')[2]} {show(v)}" for key, v in trial.values.items())
        text += " (the default)" * trial.default
        parts.append(f"{text}: {score_text(outcome.metric, trial.score)}")
    return "; ".join(parts)
