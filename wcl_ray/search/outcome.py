"""The outcome of a search as plain data, from which the table, Parquet file and page are made."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["finished", "stopped", "failed", "unfinished"]
TEMPERATURE, SEED = "loss.temperature", "seed"


@dataclass(frozen=True)
class Trial:
    """One short pretraining run.

    Attributes:
        number: from 0, in the order of their starts.
        id: name of its folder below ``trials/``.
        status: finished (all its epochs), stopped (early, by the scheduler), failed, or unfinished
            (the search was stopped).
        values: searched key (dotted, with dashes) → value; a tuple if the option takes several.
        epoch: epochs trained at the last evaluation, 0 before the first.
        score: the metric at the last evaluation, None before the first.
        figures: all metrics of the last evaluation (knn, probe, rank_me, uniformity, …).
        quality: of its clusters, see :class:`wcl_ray.clusters.quality.Quality`: clusters, h_z,
            i_zt, h_z_t (bits; None without a label), …; empty if unknown.
        curve: (epoch, score) of every evaluation.
        seconds: from its start to its last evaluation, restarts included.
        restarts: how often it was restarted.
        error: why it failed.
        default: whether its values are those of the configuration itself.
    """

    number: int
    id: str
    status: Status
    values: dict[str, Any]
    epoch: int = 0
    score: float | None = None
    figures: dict[str, float] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)
    curve: tuple[tuple[int, float], ...] = ()
    seconds: float = 0.0
    restarts: int = 0
    error: str = ""
    default: bool = False


@dataclass(frozen=True)
class Outcome:
    """All trials of a search.

    Attributes:
        name: of the search.
        metric: the objective, such as ``knn``.
        mode: max or min.
        epochs: length of a trial that is not stopped.
        granularity: searched key that sets how fine the clusters are (``clusters.top-k``,
            ``clusters.level``, ``clusters.k``), None if it is fixed.
        validation: number of images on which ``metric`` was measured, 0 if it needs none.
        seconds: of the search, over all its starts.
        details: further rows to show, title → text (data, label, sampler, scheduler, …).
        correlations: label-free metric → Spearman's rank correlation with ``metric`` over the
            trials, signs turned so that larger is better; empty without labels or with too few
            trials.
        confirmed: the runs at full length, which have a ``seed`` among their values; None if there
            are none.
    """

    name: str
    metric: str
    mode: Literal["max", "min"]
    epochs: int
    granularity: str | None
    trials: tuple[Trial, ...]
    validation: int = 0
    seconds: float = 0.0
    details: dict[str, str] = field(default_factory=dict)
    correlations: dict[str, float] = field(default_factory=dict)
    confirmed: Outcome | None = None

    @property
    def sign(self) -> int:
        """1 if the metric is maximised, -1 if it is minimised."""
        return 1 if self.mode == "max" else -1

    def longest(self) -> list[Trial]:
        """The trials with a score and the most epochs: scores after different numbers of epochs
        cannot be compared."""
        scored = [
            t
            for t in self.trials
            if t.score is not None and math.isfinite(t.score) and t.status != "failed"
        ]
        most = max((t.epoch for t in scored), default=0)
        return [t for t in scored if t.epoch == most]

    @property
    def compared(self) -> Outcome:
        """The runs that decide: those at full length, if any has a score."""
        return self.confirmed if self.confirmed and self.confirmed.longest() else self

    def best(self) -> Trial | None:
        """The trial with the best score among :meth:`longest`."""
        return max(self.longest(), key=lambda t: self.sign * (t.score or 0.0), default=None)

    def standard_error(self) -> float | None:
        """Binomial standard error of the best score on the validation images, None if the metric
        is not an accuracy.

        One success and one failure are added, so that scores of 0 and 1 have an error, too. Images
        count as independent: with ``data.split_by`` the true error is larger.
        """
        best = self.best()
        if best is None or best.score is None or not self.validation:
            return None
        if self.metric not in ("knn", "probe"):
            return None
        n = self.validation + 2
        p = (min(1.0, max(0.0, best.score)) * self.validation + 1) / n
        return float((p * (1 - p) / n) ** 0.5)
