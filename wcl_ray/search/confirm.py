"""Trains the best settings, and the default one, at full length before the search names a winner.

The best of short trials need not be the best of long ones, and the best of many scores is partly
luck. So a few settings are trained as long as the run will be, with several seeds, on the same
training images, and measured on the same validation images: a small search of its own in
``confirm/``. :mod:`wcl_ray.search.verdict` compares them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from wcl_ray.search.options import SearchConfig
from wcl_ray.search.outcome import SEED, Outcome
from wcl_ray.search.record import FILE, Record
from wcl_ray.search.results import ranked
from wcl_ray.search.space import Dimension, get
from wcl_ray.search.trial import Setup
from wcl_ray.search.tuner import run_trials
from wcl_ray.storage import Folder
from wcl_ray.terminal import say

CONFIRM, CHOSEN = "confirm", "chosen.json"
MAX_SEED = 2**31


def to_confirm(
    config: SearchConfig, dimensions: tuple[Dimension, ...], outcome: Outcome
) -> list[dict[str, Any]]:
    """Distinct values of the ``confirm`` best settings, and those of the default setting, even if
    it lies outside the space; empty if trials are as long as the run or all had the default."""
    if not config.confirm or config.epochs >= config.train.epochs:
        return []
    default = {d.key: get(config, d.key) for d in dimensions}
    settings: list[dict[str, Any]] = []
    for trial in ranked(outcome):
        scored = trial.score is not None and trial.status != "failed"
        if scored and trial.values not in (default, *settings):
            settings.append(trial.values)
    return [*settings[: config.confirm], default] if settings else []


def points_to_run(
    dimensions: tuple[Dimension, ...], chosen: Any, seed: int
) -> tuple[tuple[Dimension, ...], list[dict[str, Any]]]:
    """The space of the settings to confirm and their seeds, and all of its points to train.

    Args:
        chosen: content of ``chosen.json``; of version 0.3.0 and older, points of ``dimensions``,
            which are trained with one seed.
        seed: of the search, the first one.
    """
    if isinstance(chosen, list):
        return dimensions, chosen
    settings = [
        {key: tuple(v) if isinstance(v, list) else v for key, v in setting.items()}
        for setting in chosen["settings"]
    ]
    seeds = tuple((seed + n) % MAX_SEED for n in range(chosen["seeds"]))
    columns = {d.key: tuple(dict.fromkeys(s[d.key] for s in settings)) for d in dimensions}
    columns[SEED] = seeds
    points = [
        {key: values.index((setting | {SEED: number})[key]) for key, values in columns.items()}
        for number in seeds
        for setting in settings
    ]
    return tuple(Dimension(key, "values", values=v) for key, v in columns.items()), points


def run_confirm(
    setup: Setup, first: Record, publish: Callable[[Folder, Outcome], None]
) -> tuple[Outcome | None, bool]:
    """Train the settings to confirm, or those that are left after a stop.

    Returns:
        The outcome, None if there is nothing to confirm; and whether it was interrupted.
    """
    folder = setup.folder / CONFIRM
    if not folder.exists(CHOSEN):
        settings = to_confirm(setup.config, setup.dimensions, first.outcome())
        if not settings:
            return None, False
        content = {"seeds": setup.config.confirm_seeds, "settings": settings}
        folder.write(CHOSEN, json.dumps(content).encode())
    chosen = json.loads(folder.read(CHOSEN))
    dimensions, points = points_to_run(setup.dimensions, chosen, setup.config.seed)
    config = replace(_full(setup.config), trials=len(points))
    resources = setup.resources
    resources = replace(resources, concurrent=min(resources.concurrent, len(points)))
    record = Record(folder, config, first.granularity)
    record.validation, record.details = first.validation, first.details
    count = 1 if isinstance(chosen, list) else chosen["seeds"]
    say(
        "confirm",
        f"{len(points) // count} settings with {count} seed(s) at full length, {config.epochs} "
        "epochs",
    )
    setup = replace(setup, folder=folder, config=config, resources=resources, dimensions=dimensions)
    interrupted = run_trials(setup, record, lambda: publish(folder, record.outcome()), points)
    return record.outcome(), interrupted


def look_up(folder: Folder, config: SearchConfig, granularity: str | None) -> Outcome | None:
    """The outcome of the settings at full length, None if there are none."""
    confirm = folder / CONFIRM
    return Record(confirm, _full(config), granularity).outcome() if confirm.exists(FILE) else None


def _full(config: SearchConfig) -> SearchConfig:
    return replace(config, trial_epochs=config.train.epochs, scheduler="none", grace=0)
