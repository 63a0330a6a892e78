"""How the parts of an outcome are shown: texts, colours, axes and marks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from wcl_ray.report import plots
from wcl_ray.report.axes import BAR, BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, escape
from wcl_ray.report.plots import Mark
from wcl_ray.search.outcome import TEMPERATURE, Outcome, Trial
from wcl_ray.search.results import PERCENT, ranked, score_text
from wcl_ray.search.space import show

ACROSS, UP = (LEFT, WIDTH - RIGHT), (HEIGHT - BOTTOM, TOP)
BESIDE_BAR = (LEFT, WIDTH - BAR)
BELOW_NAME = (HEIGHT - BOTTOM, TOP + 16)
WIDE_SPAN = 20.0  # largest by smallest value from which an axis is logarithmic
NUMBERED = 40  # trials up to which hollow dots tell their epochs
NAMES = {"knn": "kNN", "probe": "linear probe", "metadata": "metadata agreement"}
NAMES |= {"rank_me": "RankMe"}
STATUS = {"finished": "finished", "stopped": "stopped early", "failed": "failed"}
STATUS |= {"unfinished": "unfinished"}


def number(value: Any) -> float | None:
    """A value as a place on an axis: several granularities lie at their geometric mean, None
    where it has no place."""
    if isinstance(value, (tuple, list)):
        parts = [number(v) for v in value]
        known = [p for p in parts if p is not None]
        if not known or len(known) < len(parts):
            return None
        if len(known) == 1 or min(known) <= 0:
            return sum(known) / len(known)
        return math.exp(sum(math.log(p) for p in known) / len(known))
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        return None
    return float(value) if math.isfinite(value) else None


def finite(outcome: Outcome) -> Outcome:
    """Scores that are not finite count as none: they can be neither ranked nor plotted."""
    trials = tuple(
        replace(
            t,
            score=number(t.score),
            curve=tuple((e, s) for e, s in t.curve if number(s) is not None),
        )
        for t in outcome.trials
    )
    return replace(outcome, trials=trials)


@dataclass(frozen=True)
class View:
    """An outcome, and how its parts are shown."""

    outcome: Outcome

    @cached_property
    def trials(self) -> list[Trial]:
        return ranked(self.outcome)

    @cached_property
    def best(self) -> Trial | None:
        return self.outcome.best()

    @cached_property
    def full(self) -> list[Trial]:
        """Trials whose scores compare: as many epochs as the best."""
        most = self.best.epoch if self.best else 0
        scored = [t for t in self.trials if t.score is not None and t.status != "failed"]
        return [t for t in scored if t.epoch == most]

    @cached_property
    def keys(self) -> list[str]:
        return list(dict.fromkeys(key for t in self.outcome.trials for key in t.values))

    @cached_property
    def two(self) -> tuple[str, str] | None:
        """Temperature and granularity, where both were searched."""
        other = self.outcome.granularity
        both = other is not None and {TEMPERATURE, other} <= set(self.keys)
        return (TEMPERATURE, other) if both and other is not None else None

    @cached_property
    def others(self) -> list[str]:
        return [key for key in self.keys if key not in (self.two or ())]

    @cached_property
    def metric(self) -> str:
        return NAMES.get(self.outcome.metric, self.outcome.metric)

    @cached_property
    def scale(self) -> Axis:
        """Of the colours: scores that compare, and those expected of trials that were stopped."""
        known = [s for s in (self.expected(t) for t in self.trials) if s is not None]
        known = known or [t.score for t in self.trials if t.score is not None]
        percent = self.outcome.metric in PERCENT
        return Axis.over(self.metric, known, BELOW_NAME, percent=percent, pad=0.0)

    @cached_property
    def _gains(self) -> dict[int, float | None]:
        found: dict[int, float | None] = {}
        for epoch in {t.epoch for t in self.trials}:
            gains = []
            for t in self.full:
                if t.curve and t.curve[0][0] <= epoch and t.score is not None:
                    seen, scores = zip(*t.curve, strict=True)
                    gains.append(t.score - float(np.interp(epoch, seen, scores)))
            found[epoch] = sum(gains) / len(gains) if gains else None
        return found

    def expected(self, trial: Trial) -> float | None:
        """Score with all epochs: measured, or raised by what the others gained from there on."""
        if trial.score is None or trial.status == "failed":
            return None
        gain = 0.0 if trial in self.full else self._gains[trial.epoch]
        return None if gain is None else trial.score + gain

    def share(self, score: float) -> float:
        """Place in the colour map; bright is good."""
        share = min(1.0, max(0.0, self.scale.share(score)))
        return 1 - share if self.outcome.mode == "min" else share

    @cached_property
    def radius(self) -> float:
        n = len(self.trials)
        return 8.0 if n <= NUMBERED else 6.0 if n <= 120 else 4.0

    def name(self, key: str) -> str:
        """An option without its section, where that is clear."""
        tail = key.rpartition(".")[2]
        return tail if sum(k.rpartition(".")[2] == tail for k in self.keys) == 1 else key

    def setting(self, trial: Trial) -> str:
        return ", ".join(f"{self.name(k)} {show(v)}" for k, v in trial.values.items())

    def setting_html(self, trial: Trial) -> str:
        """The same; a short name and its value stay on one line."""
        pairs = [f"{self.name(k)} {show(v)}" for k, v in trial.values.items()]
        return ", ".join(
            f'<span class="{"whole" if len(p) < 30 else "long"}">{escape(p)}</span>' for p in pairs
        )

    def text(self, score: float | None) -> str:
        return score_text(self.outcome.metric, score)

    def tip(self, trial: Trial) -> str:
        """A trial in a few words."""
        parts = [f"trial {trial.number}: {self.setting(trial)}"]
        if trial.score is not None:
            parts.append(f"{self.metric} {self.text(trial.score)} after {trial.epoch} epochs")
        words = ["the best"] * (trial == self.best) + ["the default"] * trial.default
        return "\n".join([*parts, ", ".join([STATUS[trial.status], *words])])

    def mark(
        self, trial: Trial, x: float, y: float, span: tuple[float, float] | None = None
    ) -> Mark:
        partial = trial.score is not None and trial not in self.full
        inside = str(trial.epoch) if partial and len(self.trials) <= NUMBERED else ""
        return Mark(
            x=x,
            y=y,
            share=None if trial.score is None else self.share(trial.score),
            # what was stopped at the last epoch of all compares like the finished
            status="finished" if trial in self.full else trial.status,
            tip=self.tip(trial),
            link=f"trial-{trial.number}",
            inside=inside if len(inside) < 3 else "",
            best=trial is self.best,
            default=trial.default,
            span=span,
        )

    def axis(self, key: str, ends: tuple[float, float], log: bool | None = None) -> Axis:
        """Of an option. ``log``: None: where its values span a lot."""
        values = [t.values[key] for t in self.trials if key in t.values]
        if any(number(v) is None for v in values):
            names = sorted({show(v) for v in values})
            return Axis.of_names(self.name(key), names, ends)
        whole = all(number(p) == round(number(p) or 0) for v in values for p in parts(v))
        places = [p for v in values for p in (number(q) for q in parts(v)) if p is not None]
        if log is None:
            log = bool(places) and min(places) > 0 and max(places) / min(places) > WIDE_SPAN
        return Axis.over(self.name(key), places, ends, log=log, whole=whole)

    def place(self, axis: Axis, value: Any) -> float:
        """Pixel of a value."""
        at = None if axis.names else number(value)
        return axis.at(show(value) if at is None else at)

    def score_axis(self, scores: Sequence[float]) -> Axis:
        return Axis.over(self.metric, scores, UP, percent=self.outcome.metric in PERCENT)

    def key_of(self, marks: Sequence[Mark]) -> str:
        """What the marks mean, of those that occur."""
        kinds = {m.status for m in marks}
        entries = [(kind, STATUS[kind]) for kind in STATUS if kind in kinds]
        told = any(m.inside for m in marks)
        hollow = "number = its epochs" if told else "fewer epochs"
        entries = [(k, f"{text} ({hollow})" if k == "stopped" else text) for k, text in entries]
        drawn = []
        for kind, text in entries:
            mark = Mark(15, 15, 0.6, kind, text, "")
            icon = plots.dot(mark, 7.5)
            drawn.append(
                f'<span><svg viewBox="0 0 30 30" aria-hidden="true">{icon}</svg>{text}</span>'
            )
        return f'<div class="key muted">{"".join(drawn)}</div>'


def parts(value: Any) -> tuple[Any, ...]:
    """The several numbers of one value."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def count(n: int, what: str) -> str:
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"
