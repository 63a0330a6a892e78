"""The plotly figures of a search.

Optuna rates the options. Its contour and slice plots leave out trials that were stopped early, so
these are drawn here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
import plotly.graph_objects as go

from wcl_ray.report.template import INK, MUTED, figure, label, number
from wcl_ray.report.view import STATUS, View
from wcl_ray.search.outcome import TEMPERATURE, Trial
from wcl_ray.search.results import PERCENT
from wcl_ray.search.space import show
from wcl_ray.search.verdict import settings_of

SYMBOLS = {"finished": "circle", "stopped": "circle-open", "failed": "x"}
SYMBOLS |= {"unfinished": "circle-open-dot"}
GRID = np.linspace(0, 1, 30)  # of the response surface
MIN_RATED = 10  # trials with all epochs that are needed to rate the options


Point = tuple[Trial, Any, Any]  # a trial and its coordinates


def colours(view: View) -> dict[str, Any]:
    """Layout of the colour axis of the scores; bright is good."""
    scores = [t.score for t in view.comparable or view.trials if t.score is not None]
    if not scores:
        return {}
    form = {"tickformat": ".0%"} if view.outcome.metric in PERCENT else {}
    bar = {"thickness": 12, "outlinewidth": 0, **form}
    bar |= {"title": {"text": label(view.metric), "side": "right"}}
    scale = {"colorscale": "Viridis", "reversescale": view.outcome.mode == "min", "colorbar": bar}
    low, high = min(scores), max(scores)  # type: ignore[type-var]
    return {"coloraxis": scale | ({"cmin": low, "cmax": high} if low != high else {})}


def marks(view: View, points: Sequence[Point], size: float = 11) -> list[Any]:
    """Traces of the trials by status, open if stopped, with the best and the default marked."""
    size = size if len(points) <= 120 else 0.6 * size
    traces: list[Any] = []
    for status, text in STATUS.items():
        selected = [p for p in reversed(points) if view.status(p[0]) == status]  # the best on top
        scored = [p for p in selected if p[0].score is not None and status != "failed"]
        for group in (scored, [p for p in selected if p not in scored]):
            if not group:
                continue
            paint: dict[str, Any] = {"color": "var(--bad)" if status == "failed" else MUTED}
            if group is scored:
                paint = {"color": [t.score for t, *_ in group], "coloraxis": "coloraxis"}
            line = {"width": 1, "color": INK} if status == "finished" else {"width": 2.5}
            name = text + (" (no score)" if group is not scored and status != "failed" else "")
            traces.append(_scatter(view, group, name, SYMBOLS[status], size, paint, line))
    for name, symbol, extra in (("best", "circle-open", 9), ("default", "diamond-open", 13)):
        group = [p for p in points if (p[0] is view.best if name == "best" else p[0].default)]
        if group:
            ring = {"width": 2.5, "color": INK}
            traces.append(_scatter(view, group, name, symbol, size + extra, {"color": INK}, ring))
    return traces


def _scatter(view: View, points: Sequence[Point], name: str, symbol: str, size: float,
             paint: dict[str, Any], line: dict[str, Any]) -> Any:  # fmt: skip
    trials, x, y = zip(*points, strict=True)
    return go.Scatter(
        x=x, y=y, mode="markers", name=name, customdata=[t.number for t in trials],
        text=[view.tooltip(t) for t in trials], hoverinfo="text", cliponaxis=False,
        marker={"symbol": symbol, "size": size, "line": line, **paint},
    )  # fmt: skip


def response(view: View) -> tuple[str, go.Figure, str] | None:
    """The trials by temperature and granularity, over a surface of their mean score."""
    if view.surface is None:
        return None
    tau, granularity = view.surface
    x, y = view.axis(tau, log=True), view.axis(granularity, log=not granularity.endswith(".level"))
    points = [
        (t, view.coordinate(x, t.values[tau]), view.coordinate(y, t.values[granularity]))
        for t in view.trials
        if tau in t.values and granularity in t.values
    ]
    traces = marks(view, points)
    caption = "Each dot is a trial; click one for its row."
    measured = [p for p in points if p[0] in view.comparable]
    if len({p[1:] for p in measured}) >= 4 and "category" not in (x["type"], y["type"]):
        (grid_x, unit_x), (grid_y, unit_y) = (
            _grid([xy[n] for _, *xy in measured], axis) for n, axis in enumerate((x, y))
        )
        if np.ptp(unit_x) and np.ptp(unit_y):
            scores = np.array([t.score for t, *_ in measured])
            distance = (GRID[None, :, None] - unit_x) ** 2 + (GRID[:, None, None] - unit_y) ** 2
            weights = 1 / (distance + 1e-3)  # of the trials at each point of the grid
            z = (weights * scores).sum(2) / weights.sum(2)
            # not on the colour axis of the dots: contours that share it make plotly.js hang
            scale = colours(view)["coloraxis"]
            surface = go.Contour(x=grid_x, y=grid_y, z=z.tolist(), opacity=0.55, showscale=False,
                                 colorscale="Viridis", reversescale=scale["reversescale"],
                                 zmin=scale.get("cmin"), zmax=scale.get("cmax"), ncontours=16,
                                 line={"width": 0}, hoverinfo="skip")  # fmt: skip
            traces.insert(0, surface)
            caption += " The surface is the mean score of trials with all epochs, by distance."
    return "Response surface", figure(traces, x, y, **colours(view)), caption


def _grid(values: Sequence[float], axis: dict[str, Any]) -> tuple[list[float], np.ndarray]:
    """Coordinates of GRID on an axis, and the values scaled to [0, 1] along it."""
    log = axis["type"] == "log"
    scaled = np.log(values) if log else np.asarray(values, float)
    low, width = scaled.min(), np.ptp(scaled)
    grid = low + width * GRID
    return (np.exp(grid) if log else grid).tolist(), (scaled - low) / (width or 1)


def plane(view: View) -> tuple[str, go.Figure | None, str]:
    """I(Z;T) against H(Z|T); above chance, as plain I(Z;T) of singletons would reach H(T)."""
    title, points = "Information plane", []
    for t in view.trials:
        noise, signal = number(t.quality.get("h_z_t")), number(t.quality.get("i_zt_adjusted"))
        if noise is not None and signal is not None:
            points.append((t, noise, signal))
    if not points:
        reason = "there is no label to measure the clusters against (data.label)"
        if not any(t.quality for t in view.trials):
            reason = "the clusters were not measured: they did not exist before training"
        return title, None, f"Not drawn: {reason}."
    bounds = {h for t, _, _ in points if (h := number(t.quality.get("h_t"))) is not None}
    fig = figure(
        marks(view, _spread(points), 9),
        {"title": {"text": "H(Z|T), bits: what else the clusters know"}, "rangemode": "tozero"},
        {"title": {"text": "I(Z;T) above chance, bits"}, "rangemode": "tozero"},
        **colours(view),
    )
    for bound in sorted(bounds):
        fig.add_hline(y=bound, line={"dash": "dash", "color": MUTED, "width": 1.5})
    if bounds:
        fig.add_annotation(x=0, xref="paper", y=max(bounds), text="H(T)", showarrow=False,
                           xanchor="left", yanchor="bottom")  # fmt: skip
    key = view.outcome.granularity
    labelled = {show(t.values[key]): (a, b) for t, a, b in points if key and key in t.values}
    if 1 < len(labelled) <= 12:
        for text, (a, b) in labelled.items():
            fig.add_annotation(x=a, y=b, text=f"<b>{label(text)[:30]}</b>", showarrow=False,
                               yshift=-18)  # fmt: skip
    caption = (
        "Z is the cluster, T the label; above chance is I(Z;T) minus that of shuffled clusters of "
        "the same sizes. Good clusters lie up and to the left"
        + ("; none is above H(T), the entropy of the label." if bounds else ".")
        + (f" Numbers are {view.name(key)}." if key and 1 < len(labelled) <= 12 else "")
        + " Trials with the same clusters are drawn around one point."
    )
    return title, fig, caption


def _spread(points: Sequence[Point]) -> list[Point]:
    """Coinciding points spread like the seeds of a sunflower, the first in the middle."""
    width, height = (max(abs(xy[n]) for _, *xy in points) or 1.0 for n in (0, 1))
    seen: Counter[tuple[float, float]] = Counter()
    spread = []
    for trial, x, y in points:
        i = seen[x, y]
        seen[x, y] += 1
        radius, angle = 0.022 * math.sqrt(i), 2.39996 * i
        spread.append((trial, x + radius * width * math.cos(angle),
                       y + radius * height * math.sin(angle)))  # fmt: skip
    return spread


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
            if kind == ("best" if t is view.best else "default" if t.default else "trials"):
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
    scored = [t for t in view.trials if key in t.values and t.score is not None]
    if not scored:
        return None
    fig = figure(marks(view, [(t, view.coordinate(x, t.values[key]), t.score) for t in scored]), x,
                 view.score_axis, **colours(view))  # fmt: skip
    fig.update_coloraxes(showscale=False)
    shorter = len(view.comparable) < len(scored)
    caption = "Trials with fewer epochs cannot be compared." if shorter else ""
    return f"{view.metric} by {view.name(key)}", fig, caption


def full_length(view: View) -> tuple[str, go.Figure, str] | None:
    """Scores of the settings that were trained at full length, with their means."""
    if view.outcome.confirmed is None:
        return None
    settings = settings_of(view.outcome.confirmed)
    if not settings:
        return None
    texts = [
        [*(f"{view.name(key)} {show(v)}" for key, v in s.values.items()), *["default"] * s.default]
        for s in settings
    ]
    names = ["<br>".join(label(line[:24]) for line in lines) for lines in texts]
    runs = [(x, score) for x, s in zip(names, settings, strict=True) for score in s.scores]
    bars = {"array": [s.spread or 0.0 for s in settings], "color": "var(--accent)"}
    dots = {"color": MUTED, "size": 8, "symbol": "circle-open"}
    traces = [
        go.Scatter(x=[x for x, _ in runs], y=[y for _, y in runs], mode="markers",
                   name="one seed", marker=dots),
        go.Scatter(x=names, y=[s.mean for s in settings], mode="markers", name="mean ± spread",
                   error_y=bars, marker={"color": "var(--accent)", "size": 11}),
    ]  # fmt: skip
    fig = figure(traces, {"type": "category"}, view.score_axis)
    return "At full length", fig, "The spread is the standard deviation over the seeds."


def importances(view: View) -> tuple[str, go.Figure, str] | None:
    """Importance of each option for being among the best trials, as Optuna rates it."""
    trials = view.comparable
    keys = [k for k in view.keys if all(k in t.values for t in trials)]
    if len(trials) < MIN_RATED or len(keys) < 2 or len({t.score for t in trials}) < 2:
        return None
    spaces: dict[str, Any] = {}
    for key in keys:
        values = [number(t.values[key]) for t in trials]
        numbers = [v for v in values if v is not None]
        if len(numbers) < len(values):
            choices = sorted({show(t.values[key]) for t in trials})
            spaces[key] = optuna.distributions.CategoricalDistribution(choices)
        else:
            log = view.axis(key, log=True if key == TEMPERATURE else None)["type"] == "log"
            low, high = min(numbers), max(numbers)
            spaces[key] = optuna.distributions.FloatDistribution(low, high, log=log)
    names = {key: label(view.name(key)) for key in keys}
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        direction = getattr(optuna.study.StudyDirection, f"{view.outcome.mode.upper()}IMIZE")
        study = optuna.create_study(direction=direction)
        for t in trials:
            params = {}
            for key, space in spaces.items():
                is_text = isinstance(space, optuna.distributions.CategoricalDistribution)
                params[names[key]] = show(t.values[key]) if is_text else number(t.values[key])
            study.add_trial(optuna.trial.create_trial(
                value=t.score, params=params,
                distributions={names[key]: space for key, space in spaces.items()},
            ))  # fmt: skip
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.25)
        plot = optuna.visualization.plot_param_importances(study, evaluator=evaluator)
    finally:
        optuna.logging.set_verbosity(verbosity)
    plot.update_traces(marker_color="var(--accent)", selector={"type": "bar"})
    width = 1.25 * max(max(bar.x) for bar in plot.data)  # with room for the numbers after the bars
    x = {"title": {"text": "importance"}, "range": [0, width]}
    fig = figure(plot.data, x, {}, showlegend=False)
    caption = "How much each option distinguishes the best quarter of the trials with all epochs"
    caption += " from the rest, as a share (PED-ANOVA)."
    return "What decides", fig, caption
