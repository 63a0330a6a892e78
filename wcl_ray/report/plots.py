"""The plotly figures of runs, for one run or several side by side.

Each returns None if there is nothing to draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from wcl_ray.report.read import RunReport, Variant
from wcl_ray.report.template import INK, MUTED, PAPER, figure, label, number

COLOURS = [f"var(--c{letter})" for letter in "abcdefgh"]
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "triangle-down", "x")
DASHES = ("solid", "dash", "dot", "dashdot")
MOST_POINTS = 400  # of a curve
ACCURACIES = {"knn": "kNN", "probe": "linear probe"}


def variants_of(runs: Sequence[RunReport]) -> list[Variant]:
    """All trainings of the runs."""
    return [variant for run in runs for variant in run.variants]


def accuracy(runs: Sequence[RunReport]) -> go.Figure | None:
    """Bars of kNN and probe by training, with lines for guessing."""
    variants = [v for v in variants_of(runs) if "knn" in v.figures]
    if not variants:
        return None
    traces = []
    names = [label(v.title[:40]) for v in reversed(variants)]
    for i, (key, title) in enumerate(reversed(ACCURACIES.items())):
        values = [number(v.figures.get(key)) for v in reversed(variants)]
        texts = ["" if value is None else f"{value:.1%}" for value in values]
        traces.append(
            go.Bar(
                y=names, x=values, name=title, orientation="h", text=texts,
                textposition=["inside" if (v or 0) > 0.2 else "outside" for v in values],
                insidetextanchor="end", textangle=0, hoverinfo="skip",
                insidetextfont={"color": PAPER}, marker={"color": COLOURS[1 - i]},
            )
        )  # fmt: skip
    x = {"tickformat": ".0%", "range": [0, 1.0], "title": {"text": "accuracy on test images"}}
    height = 130 + 70 * len(variants)
    y = {"type": "category", "ticklabelstandoff": 6}
    legend = {"orientation": "h", "y": 1 + 0.35 / len(variants), "yanchor": "bottom", "x": 1}
    legend |= {"xanchor": "right", "traceorder": "reversed"}
    fig = figure(traces, x, y, height=height, barmode="group", legend=legend)
    lines = guesses(variants)
    if len(lines) == 2 and abs(lines[0][0] - lines[1][0]) < 0.2:  # the texts would overlap
        lines = lines[:1]
    for value, name in lines:
        fig.add_vline(x=value, line={"dash": "dot", "color": INK, "width": 1.5},
                      annotation={"text": name, "font": {"color": MUTED, "size": 12},
                                  "yanchor": "bottom", "y": 1, "yref": "paper",
                                  "xanchor": "left", "xshift": -4})  # fmt: skip
    return fig


def guesses(variants: Sequence[Variant]) -> list[tuple[float, str]]:
    """Accuracies without looking at the images, if they are the same for all trainings."""
    accuracies = []
    for key, name, value_of in (
        ("classes", "chance", lambda n: 1 / n),
        ("majority", "commonest class", lambda share: share),
    ):
        values = {round(value_of(v.figures[key]), 4) for v in variants if v.figures.get(key)}
        if len(values) == 1:
            accuracies.append((values.pop(), name))
    return accuracies


def curves(
    runs: Sequence[RunReport],
    keys: dict[str, str],
    title: str,
    form: str = "",
    least: float = 0.0,
) -> go.Figure | None:
    """Metrics by epoch, one colour per training and one dash per metric.

    Args:
        keys: metric → its name.
        form: of the ticks.
        least: smallest value that the axis reaches up to.
    """
    traces = []
    variants = variants_of(runs)
    for i, variant in enumerate(variants):
        for dash, (key, name) in zip(DASHES, keys.items(), strict=False):
            points = thinned(series(variant, key))
            if not points:
                continue
            x, y = zip(*points, strict=True)
            text = variant.title if len(keys) == 1 else f"{variant.title}: {name}"
            traces.append(
                go.Scatter(
                    x=x, y=y, name=label(text[:50]),
                    mode="lines" if len(points) > 2 else "lines+markers",
                    line={"color": COLOURS[i % len(COLOURS)], "width": 2, "dash": dash},
                    hovertemplate="epoch %{x:.2f}: %{y:.4g}",
                )
            )  # fmt: skip
    if not traces:
        return None
    y_axis: dict[str, Any] = {"title": {"text": title}}
    if "loss" not in keys:  # whose changes are small beside its size
        y_axis["rangemode"] = "tozero"
    if form:
        y_axis["tickformat"] = form
    if max(max(t.y) for t in traces) < least:
        y_axis["range"] = [0, least]
    return figure(traces, {"title": {"text": "epoch"}, "rangemode": "tozero"}, y_axis,
                  showlegend=True)  # fmt: skip


def series(variant: Variant, key: str) -> list[tuple[float, float]]:
    """The values of a metric by epoch, as a fraction."""
    points = []
    for row in variant.rows:
        value = number(row.get(key))
        if value is None or "round" in row:
            continue
        if "epoch" in row:  # rows of evaluations have no share: they follow whole epochs
            points.append((row["epoch"] + row.get("share", 1.0), value))
    return points


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MOST_POINTS of the points, evenly."""
    index = np.linspace(0, len(points) - 1, min(len(points), MOST_POINTS)).round().astype(int)
    return [points[i] for i in index.tolist()]


def plane(runs: Sequence[RunReport]) -> go.Figure | None:
    """I(Z;T) above chance over H(Z|T) of every granularity, with the bound H(T)."""
    traces, bounds = [], set()
    for i, run in enumerate(runs):
        points = []
        for round_, q in run.quality:
            x, y = number(q.get("h_z_t")), number(q.get("i_zt_adjusted", q.get("i_zt")))
            if x is None or y is None or q.get("clusters") == q.get("images"):
                continue
            name = str(q.get("name", ""))
            if len({r for r, _ in run.quality}) > 1:
                name += f", round {round_ + 1}"
            points.append((x, y, name, q))
            if (bound := number(q.get("h_t"))) is not None:
                bounds.add(round(bound, 6))
        if not points:
            continue
        colour = COLOURS[i % len(COLOURS)]
        raw = [number(q.get("i_zt")) for *_, q in points]
        traces.append(
            go.Scatter(
                x=[p[0] for p in points], y=[p[1] for p in points],
                mode="markers+text" if len(points) <= 8 else "markers",
                name=label(run.name[:40]), cliponaxis=False, textposition="bottom center",
                text=[label(p[2][:30]) for p in points],
                hovertext=[
                    f"{label(n)}<br>K = {q.get('clusters'):,}<br>I(Z;T) {y:.2f} bits above chance"
                    + ("" if plain is None else f", {plain:.2f} in all")
                    + f"<br>H(Z|T) {x:.2f} bits"
                    for (x, y, n, q), plain in zip(points, raw, strict=True)
                ],
                hoverinfo="text",
                marker={"size": 12, "color": colour, "symbol": SYMBOLS[i % len(SYMBOLS)]},
            )
        )  # fmt: skip
    if not traces:
        return None
    right = 1.25 * max(max(t.x) for t in traces) or 1.0
    top = 1.15 * max(*(max(t.y) for t in traces), *bounds, 0.1)
    fig = figure(
        traces,
        {"title": {"text": "H(Z|T), bits: what else the clusters know"},
         "range": [-0.12 * right, right]},
        {"title": {"text": "I(Z;T) above chance, bits"},
         "range": [-0.1 * top, top]},
        showlegend=len(traces) > 1,
    )  # fmt: skip
    for bound in sorted(bounds):
        fig.add_hline(y=bound, line={"dash": "dash", "color": MUTED, "width": 1.5})
    if bounds:
        fig.add_annotation(x=1, xref="paper", y=max(bounds), text="H(T), entropy of the label",
                           showarrow=False, xanchor="right", yanchor="bottom")  # fmt: skip
    return fig


def cluster_sizes(runs: Sequence[RunReport]) -> go.Figure | None:
    """Sizes of the clusters by rank, on logarithmic axes."""
    traces: list[Any] = []
    for run in runs:
        for name, sizes in run.sizes.items():
            if not len(sizes):
                continue
            ranked = np.sort(sizes)[::-1]
            index = np.unique(np.geomspace(1, len(ranked), MOST_POINTS).astype(int)) - 1
            text = name if len(runs) == 1 else f"{run.name}: {name}"
            traces.append(
                go.Scatter(
                    x=(index + 1).tolist(), y=ranked[index].tolist(), name=label(text[:50]),
                    mode="lines+markers", marker={"size": 4},
                    line={"color": COLOURS[len(traces) % len(COLOURS)], "width": 2, "shape": "hv"},
                    hovertemplate="cluster %{x:,}: %{y:,} images",
                )
            )  # fmt: skip
    if not traces:
        return None
    log = {"type": "log", "minor": {"showgrid": False}, "dtick": 1}
    return figure(traces, {"title": {"text": "cluster, by size"}, **log},
                  {"title": {"text": "images"}, **log}, showlegend=True)  # fmt: skip
