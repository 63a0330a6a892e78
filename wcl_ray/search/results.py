"""The results of a search: a table on the terminal, ``results.parquet``, and ``best.yaml``."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wcl_ray.search.options import SearchConfig, to_yaml
from wcl_ray.search.outcome import Outcome, Trial
from wcl_ray.search.space import show
from wcl_ray.search.verdict import Setting, Verdict, decide, settings_of
from wcl_ray.terminal import clock, table

QUALITY = (
    "clusters", "h_z", "h_t", "i_zt", "i_zt_adjusted", "h_z_t", "h_t_z", "pair_precision",
    "singles", "composed_positives", "composed_lonely",
)  # fmt: skip
LABEL_FREE = ("metadata", "rank_me", "uniformity", "alignment", "feature_std")
PERCENT = ("knn", "probe", "metadata")
MIN_RANKED = 5  # trials needed for a rank correlation
MAX_ROWS = 30  # trials on the terminal


def ranked(outcome: Outcome) -> list[Trial]:
    """The trials by number of epochs and score, the longest and best first."""
    sign = -1 if outcome.mode == "max" else 1

    def rank(trial: Trial) -> tuple[float, ...]:
        scored = trial.score is not None and trial.status != "failed"
        return (not scored, -trial.epoch, sign * (trial.score or 0.0), trial.number)

    return sorted(outcome.trials, key=rank)


def score_text(metric: str, score: float | None) -> str:
    """A score as text."""
    if score is None:
        return "-"
    return f"{score:.1%}" if metric in PERCENT else f"{score:.3f}"


def spread_text(metric: str, spread: float) -> str:
    """A difference of scores as text, without a unit."""
    return f"{100 * spread:.1f}" if metric in PERCENT else f"{spread:.3f}"


def values_text(values: Mapping[str, Any]) -> str:
    """The values of a setting as text."""
    texts = (f"{key.rpartition('.')[2]} {show(v) or 'auto'}" for key, v in values.items())
    return ", ".join(texts) or "the only setting"


def mean_text(metric: str, setting: Setting) -> str:
    """Mean score of a setting as text, with its standard deviation over the seeds."""
    text = score_text(metric, setting.mean)
    if setting.spread is not None:
        text += f" ± {spread_text(metric, setting.spread)}"
    count = len(setting.scores)
    of = f" of {setting.runs}" * (count < setting.runs)
    return text + f" ({count}{of} seeds)" * (setting.runs > 1)


def describe(outcome: Outcome) -> str:
    """The settings and their scores on one line, the best first."""
    return "; ".join(
        f"{values_text(s.values)}{' (the default)' * s.default}: {mean_text(outcome.metric, s)}"
        for s in settings_of(outcome)
    )


def verdict_text(outcome: Outcome, verdict: Verdict) -> str:
    """The verdict in words, with the scores compared."""
    default, metric = verdict.default, outcome.metric
    shown = verdict.best if verdict.named is default else verdict.named
    text, score = values_text(shown.values), f"{metric} {mean_text(metric, shown)}"
    if default is None:
        tried = any(trial.default for trial in outcome.trials)
        reason = "have no score after as many epochs" if tried else "were not tried"
        return f"{text} is the best: {score}; the defaults {reason}"
    if shown is default:
        return f"the defaults are the best: {score}"
    noise = verdict.noise
    noise_text = "unknown with one seed" if noise is None else spread_text(metric, noise)
    scores = f"{score} against {mean_text(metric, default)}, noise {noise_text}"
    if verdict.named is default:
        return f"the defaults are within noise of the best ({text}): {scores}"
    return f"{text} is better than the defaults: {scores}"


def settings_table(outcome: Outcome) -> str:
    """The settings at full length as a text table, the best first."""
    settings, metric = settings_of(outcome), outcome.metric
    keys = list(dict.fromkeys(key for setting in settings for key in setting.values))
    head = [*(key.rpartition(".")[2] for key in keys), metric, "spread", "by seed", ""]
    body = [
        [
            *(show(s.values[key]) or "auto" if key in s.values else "-" for key in keys),
            score_text(metric, s.mean),
            "-" if s.spread is None else spread_text(metric, s.spread),
            " ".join(score_text(metric, score) for score in s.scores)
            + " failed" * (s.runs - len(s.scores)),
            "default" * s.default,
        ]
        for s in settings
    ]
    return table(head, body)


def results_table(outcome: Outcome) -> str:
    """The trials as a text table, the best first."""
    keys = list(dict.fromkeys(key for trial in outcome.trials for key in trial.values))
    others = [f for f in ("knn", "probe") if f != outcome.metric and _any(outcome, f)]
    head = ["trial", *(key.rpartition(".")[2] for key in keys), outcome.metric, *others]
    head += ["epochs", "K", "I(Z;T)", "above chance", "H(Z|T)", "time", ""]
    body = []
    for trial in ranked(outcome)[:MAX_ROWS]:
        status = "" if trial.status == "finished" else trial.status
        words = [status, "default" if trial.default else ""]
        body.append(
            [
                str(trial.number),
                *(show(trial.values[key]) if key in trial.values else "-" for key in keys),
                score_text(outcome.metric, trial.score),
                *(score_text(f, trial.figures.get(f)) for f in others),
                f"{trial.epoch}/{outcome.epochs}",
                _figure(trial, "clusters", ",.0f"),
                _figure(trial, "i_zt", ".2f"),
                _figure(trial, "i_zt_adjusted", ".2f"),
                _figure(trial, "h_z_t", ".2f"),
                clock(trial.seconds),
                " ".join(filter(None, words)),
            ]
        )
    rest = len(outcome.trials) - len(body)
    return table(head, body) + (f"\n… and {rest} more in results.parquet" if rest else "")


def _any(outcome: Outcome, figure: str) -> bool:
    return any(figure in trial.figures for trial in outcome.trials)


def _figure(trial: Trial, key: str, form: str) -> str:
    value = trial.quality.get(key)
    if value is None and key == "clusters":
        value = trial.figures.get(key)
    return "-" if value is None else format(value, form)


def to_parquet(outcome: Outcome) -> bytes:
    """Parquet with one row per trial: values, last metrics, quality of its clusters, and curve."""
    trials = outcome.trials
    columns: dict[str, Any] = {
        "trial": pa.array([t.number for t in trials], pa.int32()),
        "id": pa.array([t.id for t in trials], pa.string()),
        "status": pa.array([t.status for t in trials], pa.string()),
    }
    for key in dict.fromkeys(key for t in trials for key in t.values):
        columns[key] = _column([t.values.get(key) for t in trials])
    columns |= {
        "epoch": pa.array([t.epoch for t in trials], pa.int32()),
        "score": pa.array([t.score for t in trials], pa.float64()),
    }
    for key in sorted({key for t in trials for key in t.figures} - set(QUALITY)):
        columns[key] = pa.array([t.figures.get(key) for t in trials], pa.float64())
    for key in QUALITY:
        columns[key] = pa.array([_number(t, key) for t in trials], pa.float64())
    curve = pa.list_(pa.struct({"epoch": pa.int32(), "score": pa.float64()}))
    columns |= {
        "seconds": pa.array([t.seconds for t in trials], pa.float64()),
        "restarts": pa.array([t.restarts for t in trials], pa.int32()),
        "default": pa.array([t.default for t in trials], pa.bool_()),
        "error": pa.array([t.error or None for t in trials], pa.string()),
        "curve": pa.array([[{"epoch": e, "score": s} for e, s in t.curve] for t in trials], curve),
    }
    rows = pa.table(columns).replace_schema_metadata(
        {"metric": outcome.metric, "mode": outcome.mode, "epochs": str(outcome.epochs)}
    )
    sink = io.BytesIO()
    pq.write_table(rows, sink)
    return sink.getvalue()


def _number(trial: Trial, key: str) -> float | None:
    value = trial.quality.get(key, trial.figures.get(key))
    return None if value is None else float(value)


def _column(values: Sequence[Any]) -> pa.Array:
    """Values of an option; as text if some are several granularities."""
    single = [v[0] if isinstance(v, tuple) and len(v) == 1 else v for v in values]
    if any(isinstance(v, tuple) for v in single):
        return pa.array([None if v is None else show(v) for v in single], pa.string())
    return pa.array(single)


def best_yaml(config: SearchConfig, outcome: Outcome) -> str | None:
    """YAML of the setting that the search names, for ``jobs/pretrain.py --config``; None if no
    trial has a score."""
    source = f"{len(outcome.trials)} trials of search {outcome.name}"
    if outcome.confirmed is not None and outcome.confirmed.longest():
        source = f"{len(outcome.confirmed.trials)} full runs of settings chosen from {source}"
    outcome = outcome.compared
    verdict, best = decide(outcome), outcome.best()
    if verdict is None or best is None:
        return None
    images = f" on {outcome.validation:,} validation images" if outcome.validation else ""
    error = outcome.standard_error()
    images += f" (standard error {100 * error:.1f})" if error else ""
    text = verdict_text(outcome, verdict)
    comment = (
        f"{text[0].upper()}{text[1:]}.\n"
        f"From {source}{images} after {best.epoch} epochs.\n"
        "The best of several measured scores is optimistic; the test images have not been read.\n"
        "python jobs/pretrain.py --config best.yaml"
    )
    # options that pretrain.py implies for its demo data must not replace these
    implied = () if config.data.path else ("clusters.top-k", "train.epochs", "compare")
    values = verdict.named.values
    return to_yaml(config.best(values), comment, (*values, *implied))


def correlations(
    evaluations: Mapping[str, Mapping[int, Mapping[str, float]]], metric: str
) -> tuple[dict[str, float], str]:
    """How label-free metrics would have ranked the trials.

    Args:
        evaluations: trial → epoch → metrics.

    Returns:
        Label-free metric → Spearman's rank correlation with ``metric``, signs turned so that larger
        is better, and in words the trials compared: those evaluated at the latest epoch that half
        of all trials reached. Empty with fewer than five such trials.
    """
    epochs = sorted({epoch for by_epoch in evaluations.values() for epoch in by_epoch})
    enough = max(MIN_RANKED, (len(evaluations) + 1) // 2)
    for epoch in reversed(epochs):
        rows = [e[epoch] for e in evaluations.values() if epoch in e and metric in e[epoch]]
        if len(rows) >= enough:
            break
    else:
        return {}, ""
    ranks = {}
    for key in LABEL_FREE:
        if key == metric or not all(key in row for row in rows):
            continue
        sign = -1 if key in ("uniformity", "alignment") else 1
        rho = spearman([sign * row[key] for row in rows], [row[metric] for row in rows])
        if rho is not None:
            ranks[key] = rho
    return ranks, f"{len(rows)} trials after epoch {epoch}"


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's rank correlation, ties at their mean rank; None if one side is constant."""
    x, y = _ranks(np.asarray(a, float)), _ranks(np.asarray(b, float))
    if x.std() == 0 or y.std() == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse])
