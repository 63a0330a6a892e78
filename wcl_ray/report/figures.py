"""The figures of a search as plotly figures, and how its parts are worded.

Optuna rates the options. Its contour and slice plots leave out trials that were stopped, so these
are drawn here, with the marks that all figures share.
"""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import optuna
import plotly.graph_objects as go

from wcl_ray.search.outcome import TEMPERATURE, Outcome, Trial
from wcl_ray.search.results import PERCENT, ranked, score_text
from wcl_ray.search.space import show

NAMES = {"knn": "kNN", "probe": "linear probe", "metadata": "metadata agreement"}
NAMES |= {"rank_me": "RankMe"}
STATUS = {"finished": "finished", "stopped": "stopped early", "failed": "failed"}
STATUS |= {"unfinished": "unfinished"}
SYMBOLS = {"finished": "circle", "stopped": "circle-open", "failed": "x"}
SYMBOLS |= {"unfinished": "circle-open-dot"}
WIDE_SPAN = 20.0  # largest by smallest value from which an axis is logarithmic
GRID = np.linspace(0, 1, 30)  # of the response surface
RATED = 10  # trials with all epochs from which options are rated
INK, MUTED, LINE, PAPER = "var(--ink)", "var(--muted)", "var(--line)", "var(--paper)"


def plain(text: object) -> str:
    """Text that can be written as UTF-8, without control characters."""
    known = str(text).encode("utf-8", "backslashreplace").decode()
    return "".join(c if c >= " " or c in "\n\t" else "\ufffd" for c in known)


def label(text: object) -> str:
    """Text for a figure: plotly reads tags in it, and knows few entities."""
    return html.escape(plain(text), quote=False)


def number(value: Any) -> float | None:
    """A value as a place on an axis: several granularities lie at their geometric mean, None
    where it has no place."""
    if isinstance(value, (tuple, list)):
        known = [p for p in map(number, value) if p is not None]
        if not known or len(known) < len(value):
            return None
        if len(known) == 1 or min(known) <= 0:
            return sum(known) / len(known)
        return math.exp(sum(math.log(p) for p in known) / len(known))
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        return None
    return float(value) if math.isfinite(value) else None


def count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


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
    """An outcome, and how its parts are worded."""

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
        fine = self.outcome.granularity
        if fine is None or not {TEMPERATURE, fine} <= set(self.keys):
            return None
        return TEMPERATURE, fine

    @cached_property
    def metric(self) -> str:
        return NAMES.get(self.outcome.metric, self.outcome.metric)

    def name(self, key: str) -> str:
        """An option without its section, where that is clear."""
        tail = key.rpartition(".")[2]
        return tail if sum(k.rpartition(".")[2] == tail for k in self.keys) == 1 else key

    def pairs(self, trial: Trial) -> list[str]:
        return [f"{self.name(k)} {show(v)}" for k, v in trial.values.items()]

    def text(self, score: float | None) -> str:
        return score_text(self.outcome.metric, score)

    def status(self, trial: Trial) -> str:
        """What was stopped at the last epoch of all compares like the finished."""
        return "finished" if trial in self.full else trial.status

    def tip(self, trial: Trial) -> str:
        lines = [f"trial {trial.number}", *self.pairs(trial)]
        if trial.score is not None:
            lines.append(f"{self.metric} {self.text(trial.score)} after {trial.epoch} epochs")
        words = ["best"] * (trial is self.best) + ["default"] * trial.default
        return "<br>".join(label(x[:80]) for x in [*lines, ", ".join([self.status(trial), *words])])

    def axis(self, key: str, log: bool | None = None) -> dict[str, Any]:
        """Layout of the axis of an option. ``log``: None: where its values span a lot."""
        values = [t.values[key] for t in self.trials if key in t.values]
        known = [p for p in map(number, values) if p is not None]
        title = {"title": {"text": label(self.name(key))}}
        if len(known) < len(values):
            return {"type": "category", **title}
        span = bool(known) and min(known) > 0 and max(known) / min(known) > WIDE_SPAN
        if (span if log is None else log) and known and min(known) > 0:
            few = sorted(set(known)) if len(set(known)) <= 6 else None
            ticks = {"tickvals": few, "ticktext": [f"{v:.3g}" for v in few]} if few else {}
            return {"type": "log", "minor": {"showgrid": False}, **title, **ticks}
        return {"type": "linear", **title}

    def place(self, axis: dict[str, Any], value: Any) -> Any:
        return label(plain(show(value))[:24]) if axis["type"] == "category" else number(value)

    @property
    def score_axis(self) -> dict[str, Any]:
        form = {"tickformat": ".0%"} if self.outcome.metric in PERCENT else {}
        return {"title": {"text": label(self.metric)}, **form}


Point = tuple[Trial, Any, Any]  # with its place


def figure(traces: Sequence[Any], x: dict[str, Any], y: dict[str, Any], **layout: Any) -> go.Figure:
    """A figure in the colours of the page."""
    grid = {"gridcolor": LINE, "zeroline": False, "automargin": True}
    known: dict[str, Any] = {
        "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "dragmode": False,
        "font": {"color": INK, "size": 13}, "margin": {"l": 12, "r": 12, "t": 12, "b": 12},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "hoverlabel": {"bgcolor": PAPER, "bordercolor": MUTED, "font": {"color": INK}},
        "xaxis": grid | x, "yaxis": grid | y,
    }  # fmt: skip
    return go.Figure(list(traces), known | layout, skip_invalid=False)


def colours(view: View) -> dict[str, Any]:
    """The colour axis of the scores; bright is good."""
    scores = [t.score for t in view.full] or [t.score for t in view.trials if t.score is not None]
    if not scores:
        return {}
    form = {"tickformat": ".0%"} if view.outcome.metric in PERCENT else {}
    bar = {"thickness": 12, "outlinewidth": 0, **form}
    bar |= {"title": {"text": label(view.metric), "side": "right"}}
    scale = {"colorscale": "Viridis", "reversescale": view.outcome.mode == "min", "colorbar": bar}
    low, high = min(scores), max(scores)  # type: ignore[type-var]
    return {"coloraxis": scale | ({"cmin": low, "cmax": high} if low != high else {})}


def marks(view: View, points: Sequence[Point], size: float = 11) -> list[Any]:
    """Trials by status, open where they were stopped, with the best and the default marked."""
    size = size if len(points) <= 120 else 0.6 * size
    traces: list[Any] = []
    for status, text in STATUS.items():
        chosen = [p for p in reversed(points) if view.status(p[0]) == status]  # the best on top
        scored = [p for p in chosen if p[0].score is not None and status != "failed"]
        for part in (scored, [p for p in chosen if p not in scored]):
            if not part:
                continue
            paint: dict[str, Any] = {"color": "var(--bad)" if status == "failed" else MUTED}
            if part is scored:
                paint = {"color": [t.score for t, *_ in part], "coloraxis": "coloraxis"}
            line = {"width": 1, "color": INK} if status == "finished" else {"width": 2.5}
            name = text + (" (no score)" if part is not scored and status != "failed" else "")
            traces.append(_scatter(view, part, name, SYMBOLS[status], size, paint, line))
    for name, symbol, extra in (("best", "circle-open", 9), ("default", "diamond-open", 13)):
        part = [p for p in points if (p[0] is view.best if name == "best" else p[0].default)]
        if part:
            ring = {"width": 2.5, "color": INK}
            traces.append(_scatter(view, part, name, symbol, size + extra, {"color": INK}, ring))
    return traces


def _scatter(view: View, part: Sequence[Point], name: str, symbol: str, size: float,
             paint: dict[str, Any], line: dict[str, Any]) -> Any:  # fmt: skip
    trials, x, y = zip(*part, strict=True)
    return go.Scatter(
        x=x, y=y, mode="markers", name=name, customdata=[t.number for t in trials],
        text=[view.tip(t) for t in trials], hoverinfo="text", cliponaxis=False,
        marker={"symbol": symbol, "size": size, "line": line, **paint},
    )  # fmt: skip


def response(view: View) -> tuple[str, go.Figure, str] | None:
    """Temperature by granularity, over the mean score of cells."""
    if view.two is None:
        return None
    tau, fine = view.two
    x, y = view.axis(tau, log=True), view.axis(fine, log=not fine.endswith(".level"))
    known = [t for t in view.trials if tau in t.values and fine in t.values]
    points = [(t, view.place(x, t.values[tau]), view.place(y, t.values[fine])) for t in known]
    traces = marks(view, points)
    caption = "Each dot is a trial; click one for its row."
    measured = [p for p in points if p[0] in view.full]
    if len({p[1:] for p in measured}) >= 4 and "category" not in (x["type"], y["type"]):
        (across, along), (up, above) = (
            _grid([place[n] for _, *place in measured], axis) for n, axis in enumerate((x, y))
        )
        if np.ptp(along) and np.ptp(above):
            scores = np.array([t.score for t, *_ in measured])
            far = (GRID[None, :, None] - along) ** 2 + (GRID[:, None, None] - above) ** 2
            weights = 1 / (far + 1e-3)  # of the trials at each point: by distance
            z = (weights * scores).sum(2) / weights.sum(2)
            # not on the colour axis of the dots: contours that share it hang plotly.js
            scale = colours(view)["coloraxis"]
            surface = go.Contour(x=across, y=up, z=z.tolist(), opacity=0.55, showscale=False,
                                 colorscale="Viridis", reversescale=scale["reversescale"],
                                 zmin=scale.get("cmin"), zmax=scale.get("cmax"), ncontours=16,
                                 line={"width": 0}, hoverinfo="skip")  # fmt: skip
            traces.insert(0, surface)
            caption += " The surface is the mean score of trials with all epochs, by distance."
    return "Response surface", figure(traces, x, y, **colours(view)), caption


def _grid(values: Sequence[float], axis: dict[str, Any]) -> tuple[list[float], np.ndarray]:
    """Places of GRID along an axis, and where the values are between the least and the largest."""
    log = axis["type"] == "log"
    places = np.log(values) if log else np.asarray(values, float)
    low, width = places.min(), np.ptp(places)
    drawn = low + width * GRID
    return (np.exp(drawn) if log else drawn).tolist(), (places - low) / (width or 1)


def plane(view: View) -> tuple[str, go.Figure | None, str]:
    """I(Z;T) above chance against H(Z|T): single images would reach H(T) without it."""
    title, points = "Information plane", []
    for t in view.trials:
        noise, told = number(t.quality.get("h_z_t")), number(t.quality.get("i_zt_adjusted"))
        if noise is not None and told is not None:
            points.append((t, noise, told))
    if not points:
        why = "no label is known to measure the clusters against (data.label)"
        if not any(t.quality for t in view.trials):
            why = "no measures of clusters were taken: they did not exist before training"
        return title, None, f"Not drawn: {why}."
    tops = {h for t, _, _ in points if (h := number(t.quality.get("h_t"))) is not None}
    fig = figure(
        marks(view, _apart(points), 9),
        {"title": {"text": "H(Z|T), bits: what else the clusters know"}, "rangemode": "tozero"},
        {"title": {"text": "I(Z;T) above chance, bits"}, "rangemode": "tozero"},
        **colours(view),
    )
    for top in sorted(tops):
        fig.add_hline(y=top, line={"dash": "dash", "color": MUTED, "width": 1.5})
    if tops:
        fig.add_annotation(x=0, xref="paper", y=max(tops), text="H(T)", showarrow=False,
                           xanchor="left", yanchor="bottom")  # fmt: skip
    key = view.outcome.granularity
    places = {show(t.values[key]): (a, b) for t, a, b in points if key and key in t.values}
    if 1 < len(places) <= 12:
        for text, (a, b) in places.items():
            fig.add_annotation(x=a, y=b, text=f"<b>{label(text)[:30]}</b>", showarrow=False,
                               yshift=-18)  # fmt: skip
    caption = (
        "Z is the cluster, T the label; above chance is I(Z;T) less what shuffled clusters of the "
        "same sizes would know. Good clusters lie up and to the left"
        + ("; none is above H(T), the entropy of the label." if tops else ".")
        + (f" Numbers are {view.name(key)}." if key and 1 < len(places) <= 12 else "")
        + " Trials of the same clusters are packed around one point."
    )
    return title, fig, caption


def _apart(points: Sequence[Point]) -> list[Point]:
    """Points at one place packed around it like seeds of a sunflower, the first in the middle."""
    wide, high = (max(abs(place[n]) for _, *place in points) or 1.0 for n in (0, 1))
    seen: Counter[tuple[float, float]] = Counter()
    packed = []
    for trial, x, y in points:
        i = seen[x, y]
        seen[x, y] += 1
        far = 0.022 * math.sqrt(i)
        packed.append((trial, x + far * wide * math.cos(2.39996 * i),
                       y + far * high * math.sin(2.39996 * i)))  # fmt: skip
    return packed


def curves(view: View) -> tuple[str, go.Figure, str] | None:
    """Score by epoch."""
    runs = [(t, t.curve or ((t.epoch, t.score),)) for t in view.trials if t.curve or t.score]
    if not runs:
        return None
    styles: dict[str, dict[str, Any]] = {"trials": {"width": 1, "color": MUTED}}
    styles["default"] = {"width": 2, "color": INK, "dash": "dash"}
    styles["best"] = {"width": 3.5, "color": "var(--accent)"}
    traces: list[Any] = []
    for kind, line in styles.items():
        xs: list[float | None] = []
        ys: list[float | None] = []
        for t, curve in runs:
            own = "best" if t is view.best else "default" if t.default else "trials"
            if own == kind:
                xs += [*(e for e, _ in curve), None]
                ys += [*(s for _, s in curve), None]
        if xs:
            traces.append(go.Scatter(x=xs, y=ys, mode="lines", name=kind, line=line,
                                     hoverinfo="skip",
                                     opacity=0.5 if kind == "trials" else 1))  # fmt: skip
    ends = [(t, *curve[-1]) for t, curve in runs]
    traces += [m for m in marks(view, ends, 7) if m.name not in ("best", "default")]
    fig = figure(traces, {"title": {"text": "epoch"}, "rangemode": "tozero"}, view.score_axis,
                 **colours(view))  # fmt: skip
    fig.update_coloraxes(showscale=False)
    return "Learning curves", fig, "A line ends where its trial did."


def against(view: View, key: str) -> tuple[str, go.Figure, str] | None:
    """Score by one option."""
    x = view.axis(key, log=True if key == TEMPERATURE else None)
    known = [t for t in view.trials if key in t.values and t.score is not None]
    if not known:
        return None
    fig = figure(marks(view, [(t, view.place(x, t.values[key]), t.score) for t in known]), x,
                 view.score_axis, **colours(view))  # fmt: skip
    fig.update_coloraxes(showscale=False)
    few = "Trials with fewer epochs do not compare." if len(view.full) < len(known) else ""
    return f"{view.metric} by {view.name(key)}", fig, few


def importances(view: View) -> tuple[str, go.Figure, str] | None:
    """How much each option decides whether a trial is among the best, as Optuna rates it."""
    keys = [k for k in view.keys if all(k in t.values for t in view.full)]
    if len(view.full) < RATED or len(keys) < 2 or len({t.score for t in view.full}) < 2:
        return None
    spaces: dict[str, Any] = {}
    for key in keys:
        values = [number(t.values[key]) for t in view.full]
        known = [v for v in values if v is not None]
        if len(known) < len(values):
            choices = sorted({show(t.values[key]) for t in view.full})
            spaces[key] = optuna.distributions.CategoricalDistribution(choices)
        else:
            log = view.axis(key, log=True if key == TEMPERATURE else None)["type"] == "log"
            low, high = min(known), max(known)
            spaces[key] = optuna.distributions.FloatDistribution(low, high, log=log)
    names = {key: label(view.name(key)) for key in keys}
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        better = getattr(optuna.study.StudyDirection, f"{view.outcome.mode.upper()}IMIZE")
        study = optuna.create_study(direction=better)
        for t in view.full:
            params = {}
            for key, space in spaces.items():
                named = isinstance(space, optuna.distributions.CategoricalDistribution)
                params[names[key]] = show(t.values[key]) if named else number(t.values[key])
            study.add_trial(optuna.trial.create_trial(
                value=t.score, params=params,
                distributions={names[key]: space for key, space in spaces.items()},
            ))  # fmt: skip
        rating = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.25)
        drawn = optuna.visualization.plot_param_importances(study, evaluator=rating)
    finally:
        optuna.logging.set_verbosity(before)
    drawn.update_traces(marker_color="var(--accent)", selector={"type": "bar"})
    room = 1.25 * max(max(bar.x) for bar in drawn.data)  # for the figures behind the bars
    across = {"title": {"text": "importance"}, "range": [0, room]}
    fig = figure(drawn.data, across, {}, showlegend=False)
    caption = "Share of what tells the best quarter of the whole trials from all (PED-ANOVA)."
    return "What decides", fig, caption
