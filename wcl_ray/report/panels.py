"""The figures of the page: response surface, information plane, curves, other options."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from wcl_ray.report import plots, surface
from wcl_ray.report.axes import Axis, escape
from wcl_ray.report.view import ACROSS, BELOW_NAME, BESIDE_BAR, NUMBERED, View, count, number, parts
from wcl_ray.search.outcome import TEMPERATURE
from wcl_ray.search.space import show

STOPPED_WEIGHT = 0.3  # of a trial without all epochs in the surface


def _figure(title: str, plot: str, caption: str) -> str:
    return f"<figure><h2>{escape(title)}</h2>{plot}<figcaption>{caption}</figcaption></figure>"


def response(view: View) -> str:
    """Temperature by granularity."""
    if view.two is None:
        return ""
    tau, fine = view.two
    known = [t for t in view.trials if tau in t.values and fine in t.values]
    x = view.axis(tau, BESIDE_BAR, log=True)
    y = view.axis(fine, BELOW_NAME, log=not fine.endswith(".level"))
    marks, points = [], []
    for trial in known:
        px, py = view.place(x, trial.values[tau]), view.place(y, trial.values[fine])
        several = parts(trial.values[fine])
        span = None
        if len(several) > 1 and not y.names:
            ends = [view.place(y, v) for v in several]
            span = (min(ends), max(ends))
        marks.append(view.mark(trial, px, py, span))
        score = view.expected(trial)
        if score is not None:
            weight = 1.0 if trial in view.full else STOPPED_WEIGHT
            at = ((px - x.start) / (x.end - x.start), (py - y.start) / (y.end - y.start))
            points.append((*at, view.share(score), weight))
    table = np.array(points).reshape(-1, 4)
    image = None
    if not x.names and not y.names:
        image = surface.surface(table[:, :2], table[:, 2], table[:, 3])
    marks = plots.apart(marks, view.radius)
    body = plots.draw(marks, view.radius)
    if any(m.share is not None for m in marks):
        body += surface.colour_bar(
            "surface-bar", view.metric, view.scale, view.outcome.mode == "min"
        )
    label = f"{view.metric} of {len(marks)} trials by {x.title} and {y.title}"
    plot = plots.frame(x, y, body, label, surface.png(image, x, y) if image is not None else "")
    caption = (
        "Each dot is a trial. The surface is a Gaussian-kernel regression through the scores; it "
        "fades where no trial is near."
        if image is not None
        else "Each dot is a trial. A surface needs numbers on both axes and scores at four places."
    )
    if image is not None and any(t not in view.full and view.expected(t) for t in known):
        caption += (
            f" Trials with fewer epochs count {STOPPED_WEIGHT:g} of a whole one there, their score "
            "moved by what whole trials gained after the same epoch; their own colour is the score "
            "as measured."
        )
    if any(m.span for m in marks):
        caption += " A vertical line joins several granularities of one trial."
    caption += _missing(len(view.trials) - len(known), "a value of both")
    return _figure("Response surface", plot, view.key_of(marks) + caption)


def _missing(n: int, what: str) -> str:
    return (
        f" {count(n, 'trial')} without {what} {'is' if n == 1 else 'are'} not shown." if n else ""
    )


def plane(view: View) -> str:
    """I(Z;T) above chance against H(Z|T): single images would reach H(T) without it."""
    title = "Information plane"
    places = []
    for trial in view.trials:
        noise = number(trial.quality.get("h_z_t"))
        told = number(trial.quality.get("i_zt_adjusted"))
        if noise is not None and told is not None:
            places.append((trial, noise, told))
    if not places:
        why = "no label is known to measure the clusters against (data.label)"
        if not any(t.quality for t in view.trials):
            why = "no measures of clusters were taken: they did not exist before training"
        return _figure(title, "", f"Not drawn: {why}.")
    tops = {h for t, _, _ in places if (h := number(t.quality.get("h_t"))) is not None}
    x = Axis.over(
        "H(Z|T), bits: what else the clusters know", [0, *(p[1] for p in places)], BESIDE_BAR
    )
    highest = [0, *(p[2] for p in places), *tops]
    y = Axis.over("I(Z;T) above chance, bits: what they know of the label", highest, BELOW_NAME)
    # measures of neighbouring granularities lie close together
    radius = 0.7 * view.radius
    marks = [replace(view.mark(t, x.at(a), y.at(b)), inside="") for t, a, b in places]
    marks = plots.apart(marks, radius)
    behind = ""
    for top in sorted(tops):
        at = y.at(top)
        behind += f'<path class="bound" d="M{x.start:.1f} {at:.1f}H{x.end:.1f}"/>'
    if tops:
        behind += f'<text x="{x.start + 5:.1f}" y="{y.at(max(tops)) - 6:.1f}">H(T)</text>'
    key = view.outcome.granularity
    texts = {
        show(t.values[key]): (x.at(a), y.at(b)) for t, a, b in places if key and key in t.values
    }
    named = [(*at, text) for text, at in sorted(texts.items())]
    body = behind + plots.draw(marks, radius, named=False) + plots.labels(named, marks, x, y)
    if any(m.share is not None for m in marks):
        body += surface.colour_bar("plane-bar", view.metric, view.scale, view.outcome.mode == "min")
    plot = plots.frame(
        x, y, body, f"I(Z;T) above chance against H(Z|T) of the clusters of {len(marks)} trials"
    )
    caption = (
        "Z is the cluster, T the label; above chance is I(Z;T) less what shuffled clusters of the "
        "same sizes would know. Good clusters lie up and to the left"
    )
    caption += "; none is above H(T), the entropy of the label. " if tops else ". "
    caption += f"Numbers are {escape(view.name(key))}; t" if texts and key else "T"
    caption += "rials of the same clusters are packed around one point, the best in the middle."
    if key and any(len(parts(t.values.get(key))) > 1 for t, _, _ in places):
        caption += " Several granularities are shown by their first."
    caption += _missing(len(view.trials) - len(places), "measured clusters")
    return _figure(title, plot, view.key_of(marks) + caption)


def curves(view: View) -> str:
    """Score by epoch."""
    runs = []
    for t in view.trials:
        curve = t.curve or (((t.epoch, t.score),) if t.score is not None else ())
        if curve:
            runs.append((t, curve))
    if not runs:
        return ""
    last = max(view.outcome.epochs, *(e for _, c in runs for e, _ in c))
    x = Axis.over("epoch", [0, last], ACROSS, whole=True, pad=0.03)
    y = view.score_axis([s for _, c in runs for _, s in c])
    lines, marks = [], []
    for trial, curve in reversed(runs):
        kind = "top" if trial is view.best else "base" if trial.default else ""
        kind = kind or ("whole" if trial in view.full else "part")
        path = "L".join(f"{x.at(e):.1f} {y.at(s):.1f}" for e, s in curve)
        tip = escape(view.tip(trial))
        line = f'<path class="curve {kind}" d="M{path}"><title>{tip}</title></path>'
        lines.append((kind in ("top", "base"), line))
        end = view.mark(trial, x.at(curve[-1][0]), y.at(curve[-1][1]))
        marks.append(replace(end, inside="", best=False, default=False))
    lines.sort(key=lambda entry: entry[0])
    crowd = "many" if len(runs) > 3 * NUMBERED else "few"
    body = f'<g class="{crowd}">{"".join(line for _, line in lines)}</g>' + plots.draw(
        marks[::-1], view.radius * 0.6
    )
    plot = plots.frame(x, y, body, f"{view.metric} by epoch of {len(runs)} trials")
    caption = "Thick: the best trial. "
    if any(t.default and t is not view.best for t, _ in runs):
        caption += "Dashed: the default configuration. "
    caption += "A line ends where its trial did."
    caption += _missing(len(view.trials) - len(runs), "any score")
    return _figure("Learning curves", plot, caption)


def against(view: View, key: str) -> str:
    """Score by one option."""
    known = [(t, t.score) for t in view.trials if key in t.values and t.score is not None]
    if not known:
        return ""
    x = view.axis(key, ACROSS, log=True if key == TEMPERATURE else None)
    y = view.score_axis([s for _, s in known])
    marks = [view.mark(t, view.place(x, t.values[key]), y.at(s)) for t, s in known]
    if x.names:
        marks = plots.beside(marks, view.radius, 0.45 * (x.end - x.start) / len(x.names))
    else:
        marks = plots.apart(marks, view.radius)
    label = f"{view.metric} of {len(known)} trials by {x.title}"
    plot = plots.frame(x, y, plots.draw(marks, view.radius), label)
    caption = (
        "Hollow dots have fewer epochs and do not compare." if len(view.full) < len(known) else ""
    )
    caption += _missing(len(view.trials) - len(known), "a score and a value of it")
    return _figure(f"{view.metric} by {view.name(key)}", plot, view.key_of(marks) + caption)
