"""What a search found, as plain data: the table, the Parquet file and the page are made of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["finished", "stopped", "failed", "unfinished"]
TEMPERATURE = "loss.temperature"


@dataclass(frozen=True)
class Trial:
    """One short pretraining run.

    Attributes:
        number: from 0, in the order of the starts.
        id: name of its folder below ``trials/``.
        status: finished (all its epochs), stopped (early, by the scheduler), failed, or unfinished
            (the search itself was stopped).
        values: searched key (dotted, with dashes) → value; a tuple where the option takes several.
        epoch: epochs trained at the last evaluation; 0: none yet.
        score: the metric at the last evaluation, None before the first.
        figures: every figure of the last evaluation (knn, probe, rank_me, uniformity, …).
        quality: measures of its clusters (see :class:`wcl_ray.clusters.quality.Quality`): clusters,
            h_z, i_zt, h_z_t (bits; None without a label), … ; empty where clusters do not exist
            before training.
        curve: (epoch, score) of every evaluation.
        seconds: from its start to its last evaluation, restarts included.
        restarts: how often it was started again.
        error: why it failed.
        default: whether it is the configuration without any search.
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
        metric: what is maximised or minimised, such as ``knn``.
        mode: max or min.
        epochs: length of a whole trial.
        granularity: searched key that sets how fine the clusters are (``clusters.top-k``,
            ``clusters.level``, ``clusters.k``), None where it is fixed.
        validation: images on which ``metric`` was measured, 0 where it needs none.
        seconds: of the search, over all its starts.
        facts: what else to show, title → text (data, label, sampler, scheduler, machine, …).
        correlations: label-free figure → Spearman's rank correlation with ``metric`` over the
            trials, every figure turned so that larger is better; empty without labels or with too
            few trials.
    """

    name: str
    metric: str
    mode: Literal["max", "min"]
    epochs: int
    granularity: str | None
    trials: tuple[Trial, ...]
    validation: int = 0
    seconds: float = 0.0
    facts: dict[str, str] = field(default_factory=dict)
    correlations: dict[str, float] = field(default_factory=dict)

    def best(self) -> Trial | None:
        """The trial of the best score among those with the most epochs: scores after different
        numbers of epochs do not compare."""
        scored = [
            t
            for t in self.trials
            if t.score is not None and math.isfinite(t.score) and t.status != "failed"
        ]
        most = max((t.epoch for t in scored), default=0)
        sign = 1 if self.mode == "max" else -1
        longest = [t for t in scored if t.epoch == most]
        return max(longest, key=lambda t: sign * (t.score or 0.0), default=None)

    def standard_error(self) -> float | None:
        """Standard error of the best score as a share of ``validation`` images, None where the
        metric is not an accuracy.

        A success and a failure are added (so that 0 and 1 are not taken for certain), and images
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
