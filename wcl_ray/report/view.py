"""An outcome as the report shows it: texts of trials and scores, and axes of options."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from wcl_ray.report.template import label, number, plain
from wcl_ray.search.outcome import TEMPERATURE, Outcome, Trial
from wcl_ray.search.results import PERCENT, ranked, score_text
from wcl_ray.search.space import show

NAMES = {"knn": "kNN", "probe": "linear probe", "metadata": "metadata agreement"}
NAMES |= {"rank_me": "RankMe"}
STATUS = {"finished": "finished", "stopped": "stopped early", "failed": "failed"}
STATUS |= {"unfinished": "unfinished"}
WIDE_SPAN = 20.0  # ratio of the largest to the smallest value above which an axis is logarithmic


def finite(outcome: Outcome) -> Outcome:
    """The outcome without scores that are not finite, which can be neither ranked nor plotted."""
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
    """An outcome, with the texts and axes for its parts."""

    outcome: Outcome

    @cached_property
    def trials(self) -> list[Trial]:
        """The trials, the best first."""
        return ranked(self.outcome)

    @cached_property
    def best(self) -> Trial | None:
        """The best trial, None if none has a score."""
        return self.outcome.best()

    @cached_property
    def comparable(self) -> list[Trial]:
        """Trials with as many epochs as the best: their scores can be compared."""
        epochs = self.best.epoch if self.best else 0
        scored = [t for t in self.trials if t.score is not None and t.status != "failed"]
        return [t for t in scored if t.epoch == epochs]

    @cached_property
    def keys(self) -> list[str]:
        """The searched options."""
        return list(dict.fromkeys(key for t in self.outcome.trials for key in t.values))

    @cached_property
    def surface(self) -> tuple[str, str] | None:
        """Temperature and granularity, the axes of the response surface, if both were searched."""
        granularity = self.outcome.granularity
        if granularity is None or not {TEMPERATURE, granularity} <= set(self.keys):
            return None
        return TEMPERATURE, granularity

    @cached_property
    def metric(self) -> str:
        """Name of the objective."""
        return NAMES.get(self.outcome.metric, self.outcome.metric)

    def name(self, key: str) -> str:
        """Name of an option, without its section if that is unambiguous."""
        tail = key.rpartition(".")[2]
        return tail if sum(k.rpartition(".")[2] == tail for k in self.keys) == 1 else key

    def settings(self, trial: Trial) -> list[str]:
        """The searched options of a trial with their values."""
        return [f"{self.name(k)} {show(v)}" for k, v in trial.values.items()]

    def text(self, score: float | None) -> str:
        """A score as text."""
        return score_text(self.outcome.metric, score)

    def status(self, trial: Trial) -> str:
        """Status of a trial; finished also if it was stopped at its last epoch."""
        return "finished" if trial in self.comparable else trial.status

    def tooltip(self, trial: Trial) -> str:
        """Text of the mark of a trial."""
        lines = [f"trial {trial.number}", *self.settings(trial)]
        if trial.score is not None:
            lines.append(f"{self.metric} {self.text(trial.score)} after {trial.epoch} epochs")
        words = ["best"] * (trial is self.best) + ["default"] * trial.default
        return "<br>".join(label(x[:80]) for x in [*lines, ", ".join([self.status(trial), *words])])

    def axis(self, key: str, log: bool | None = None) -> dict[str, Any]:
        """Layout of the axis of an option; ``log`` None: logarithmic if its values span a lot."""
        values = [t.values[key] for t in self.trials if key in t.values]
        numbers = [n for n in map(number, values) if n is not None]
        title = {"title": {"text": label(self.name(key))}}
        if len(numbers) < len(values):
            return {"type": "category", **title}
        positive = bool(numbers) and min(numbers) > 0
        wide = positive and max(numbers) / min(numbers) > WIDE_SPAN
        if positive and (wide if log is None else log):
            few = sorted(set(numbers)) if len(set(numbers)) <= 6 else None
            ticks = {"tickvals": few, "ticktext": [f"{v:.3g}" for v in few]} if few else {}
            return {"type": "log", "minor": {"showgrid": False}, **title, **ticks}
        return {"type": "linear", **title}

    def coordinate(self, axis: dict[str, Any], value: Any) -> Any:
        """Coordinate of a value on its axis."""
        return label(plain(show(value))[:24]) if axis["type"] == "category" else number(value)

    @property
    def score_axis(self) -> dict[str, Any]:
        """Layout of the axis of the scores."""
        form = {"tickformat": ".0%"} if self.outcome.metric in PERCENT else {}
        return {"title": {"text": label(self.metric)}, **form}
