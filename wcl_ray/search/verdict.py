"""Whether a search names a setting, or the defaults because they are within noise of the best.

A difference between two settings is noise unless it is larger than

- two standard errors of the difference of their means over seeds, and
- if the metric is an accuracy, one standard error of the best score on the validation images: other
  images would have given other scores, with any number of seeds.

Without a second seed the spread over seeds is unknown. Then two standard errors on the validation
images count, and if the metric is not an accuracy, nothing is known of the noise.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

from wcl_ray.search.outcome import SEED, Outcome, Trial


@dataclass(frozen=True)
class Setting:
    """Runs of equal length with the same values and different seeds.

    Attributes:
        values: searched key → value, without the seed.
        scores: of the runs that have one, by seed.
        runs: number of runs, with those that failed.
        default: whether the values are those of the configuration itself.
    """

    values: dict[str, Any]
    scores: tuple[float, ...]
    runs: int
    default: bool

    @property
    def mean(self) -> float:
        """Mean score over the seeds."""
        return statistics.fmean(self.scores)

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds, None with fewer than two."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None


@dataclass(frozen=True)
class Verdict:
    """What a search names.

    Attributes:
        named: the best of the settings that beat the defaults by more than the noise; the defaults
            if there is none; the best if there are no defaults to compare with.
        best: the setting with the best mean.
        default: the defaults, None if they have no score after as many epochs.
        noise: of the difference between the defaults and the best (if these are named) or the named
            setting; None if unknown.
    """

    named: Setting
    best: Setting
    default: Setting | None
    noise: float | None


def settings_of(outcome: Outcome) -> list[Setting]:
    """The settings with a score after the most epochs, the best mean first."""
    groups: dict[str, list[Trial]] = {}
    for trial in outcome.trials:
        values = {key: value for key, value in trial.values.items() if key != SEED}
        key = repr(values) if SEED in trial.values else str(trial.number)
        groups.setdefault(key, []).append(trial)
    longest, settings = outcome.longest(), []
    for trials in groups.values():
        values = {key: value for key, value in trials[0].values.items() if key != SEED}
        measured = sorted(
            (trial for trial in trials if trial in longest), key=lambda t: t.values.get(SEED, 0)
        )
        scores = tuple(float(trial.score or 0.0) for trial in measured)
        if scores:
            settings.append(Setting(values, scores, len(trials), trials[0].default))
    return sorted(settings, key=lambda s: (-outcome.sign * s.mean, not s.default))


def decide(outcome: Outcome) -> Verdict | None:
    """The verdict on the runs of an outcome; None if none has a score."""
    settings = settings_of(outcome)
    if not settings:
        return None
    best = settings[0]
    default = next((setting for setting in settings if setting.default), None)
    if default is None:
        return Verdict(best, best, None, None)
    for setting in settings:  # one with a lower mean may have a smaller noise
        noise = _noise(outcome, setting, default)
        if outcome.sign * (setting.mean - default.mean) > (noise or 0.0):
            return Verdict(setting, best, default, noise)
    return Verdict(default, best, default, _noise(outcome, best, default))


def _noise(outcome: Outcome, setting: Setting, default: Setting) -> float | None:
    spreads = [s.spread for s in (setting, default) if s.spread is not None]
    error = outcome.standard_error()
    if not spreads:
        return None if error is None else 2 * error
    pairs = ((max(spreads) if s.spread is None else s.spread, s.scores) for s in (setting, default))
    variance = sum(spread**2 / len(scores) for spread, scores in pairs)
    return max(2 * math.sqrt(variance), error or 0.0)
