"""The report of a search: an HTML page, with plotly's script in a file beside it.

The page is written after every trial, the script of 4.8 MB only once. Neither needs the network.
"""

from __future__ import annotations

from collections.abc import Callable

from wcl_ray.report import figures
from wcl_ray.report.template import count, document, escape, number, panel
from wcl_ray.report.view import NAMES, STATUS, View, finite
from wcl_ray.search.outcome import SEED, Outcome, Trial
from wcl_ray.search.results import verdict_text
from wcl_ray.search.space import show
from wcl_ray.search.verdict import decide
from wcl_ray.terminal import clock

SCRIPT = "plotly.min.js"  # beside the page


def page(outcome: Outcome) -> str:
    """Render a search as an HTML5 document, which loads ``SCRIPT`` from its own folder."""
    view = View(finite(outcome))
    panels = [figures.response(view), figures.plane(view), figures.curves(view)]
    panels += [figures.importances(view), figures.full_length(view)]
    panels += [figures.against(view, key) for key in view.keys if key not in (view.surface or ())]
    drawings = "".join(panel(*parts) for parts in panels if parts is not None)
    title = f"Search {escape(outcome.name)}"
    body = [
        f"<h1>{title}</h1>",
        f'<p class="muted">{_summary(view)}</p>',
        f'<section class="answer" aria-label="Answer">{_answer(view)}</section>',
        f'<div class="grid">{drawings}</div>' if outcome.trials else "",
        _table(view),
        _correlations(view),
        _details(view),
    ]
    script = f'<script src="{SCRIPT}"></script>'
    return document(title, f"<main>\n{chr(10).join(filter(None, body))}\n</main>", [script])


def _summary(view: View) -> str:
    o = view.outcome
    counts = [(sum(t.status == status for t in o.trials), text) for status, text in STATUS.items()]
    statuses = ", ".join(f"{n:,} {text}" for n, text in counts if n)
    trials = count(len(o.trials), "trial") + (f" ({statuses})" if statuses else "")
    better = "higher" if o.mode == "max" else "lower"
    return escape(
        f"{trials} of {count(o.epochs, 'epoch')} in {clock(o.seconds)}; {better} {view.metric}"
        " is better"
    )


def _answer(view: View) -> str:
    o, best, error = view.outcome, view.best, view.outcome.standard_error()
    verdict = decide(o.compared)
    if best is None or best.score is None or verdict is None:
        reason = "No trial has a score, so there is no best." if o.trials else "No trial was run."
        return f"<p>{reason}</p>"
    text = escape(verdict_text(o.compared, verdict))
    length = "" if o.compared is o else f" after all {count(o.compared.epochs, 'epoch')}"
    answer = f"<p><strong>{text[0].upper()}{text[1:]}</strong>{length}.</p>"
    if SEED in view.keys:
        return answer
    score = view.text(best.score) + (f" ± {error:.1%}" if error is not None else "")
    images = f" on {count(o.validation, 'validation image')}" if o.validation else ""
    setting = _setting(view, best) or "the only setting"
    first = f"Best trial: <strong>{setting}</strong> with {escape(view.metric)} <strong>{score}"
    first += f"</strong>{' (standard error)' if error is not None else ''}{images} after "
    first += f"{count(best.epoch, 'epoch')}."
    notes = [f"The best of {count(len(view.comparable), 'measured score')} is optimistic"]
    if len(view.comparable) == 1:
        notes = ["Only one trial got this far, so there is nothing to compare it with"]
    elif error is not None:
        near = sum(
            abs((t.score or 0.0) - best.score) <= error for t in view.comparable if t is not best
        )
        verb = "trial lies" if near == 1 else "trials lie"
        notes.append(
            f"{near or 'no'} other {verb} within one standard error of it, which covers the choice"
            " of the validation images, not that of the seed"
        )
    return f"{answer}<p>{first}</p><p>{'; '.join(notes)}.</p>"


def _setting(view: View, trial: Trial) -> str:
    """The setting of a trial; a short option and its value stay on one line."""
    return ", ".join(
        f'<span class="{"whole" if len(text) < 30 else "long"}">{escape(text)}</span>'
        for text in view.settings(trial)
    )


def _table(view: View) -> str:
    o = view.outcome
    if not view.trials:
        return ""

    def figure(key: str, form: str) -> Callable[[Trial], str]:
        def text(t: Trial) -> str:
            value = number(t.quality.get(key, t.figures.get(key)))
            return "–" if value is None else format(value, form)

        return text

    ranks = {t.number: str(i + 1) for i, t in enumerate(view.comparable)}
    columns: list[tuple[str, str, Callable[[Trial], str], bool]] = [
        ("rank", "among trials with all epochs", lambda t: ranks.get(t.number, "–"), True),
        ("trial", "in the order of their starts", lambda t: str(t.number), True),
        ("status", "", lambda t: _status(view, t), False),
    ]
    for key in view.keys:
        numeric = all(number(t.values[key]) is not None for t in view.trials if key in t.values)

        def value(t: Trial, key: str = key) -> str:
            return show(t.values[key]) if key in t.values else "–"

        columns.append((view.name(key), key, value, numeric))
    columns += [
        ("epochs", "trained at the last evaluation", lambda t: f"{t.epoch}/{o.epochs}", True),
        (view.metric, "", lambda t: "–" if t.score is None else view.text(t.score), True),
    ]  # fmt: skip
    optional = [("knn", "kNN", ".1%", "nearest neighbours"), ("probe", "probe", ".1%", "linear")]
    optional += [("clusters", "K", ",.0f", "clusters")]
    optional += [("i_zt", "I(Z;T)", ".2f", "bits"), ("h_z_t", "H(Z|T)", ".2f", "bits")]
    chance = "I(Z;T) minus that of shuffled clusters of the same sizes, bits"
    optional.insert(-1, ("i_zt_adjusted", "above chance", ".2f", chance))
    for key, head, form, title in optional:
        text = figure(key, form)
        if key != o.metric and any(text(t) != "–" for t in view.trials):
            columns.append((head, title, text, True))
    columns.append(("time", "h:mm:ss, restarts included", lambda t: clock(t.seconds), True))
    heads = "".join(
        f'<th scope="col"{" class=number" if right else ""} title="{escape(title)}">'
        f"{escape(head)}</th>"
        for head, title, _, right in columns
    )
    failed = any(t.error for t in view.trials)
    heads += '<th scope="col">error</th>' if failed else ""
    rows = []
    for t in view.trials:
        cells = "".join(
            f"<td{' class=number' if right else ''}>{escape(text(t))}</td>"
            for _, _, text, right in columns
        )
        cells += f"<td>{_error(t)}</td>" if failed else ""
        top = ' class="top"' if t is view.best else ""
        rows.append(f'<tr id="trial-{t.number}"{top}>{cells}</tr>')
    return (
        '<section><h2 id="trials">Trials</h2><div class="scroll" tabindex="0" role="region"'
        f' aria-labelledby="trials"><table><thead><tr>{heads}</tr></thead><tbody>\n'
        f"{chr(10).join(rows)}\n</tbody></table></div></section>"
    )


def _status(view: View, t: Trial) -> str:
    words = [STATUS[t.status]] + ["best"] * (t is view.best) + ["default"] * t.default
    return ", ".join(words + ([count(t.restarts, "restart")] if t.restarts else []))


def _error(t: Trial) -> str:
    lines = [line.strip() for line in t.error.splitlines() if line.strip()]
    if not lines:
        return ""
    gist = lines[-1]  # of a traceback, the exception
    gist = gist if len(gist) <= 60 else gist[:59] + "…"
    return f"<details><summary>{escape(gist)}</summary><pre>{escape(t.error)}</pre></details>"


def _correlations(view: View) -> str:
    ranks = {k: r for k, v in view.outcome.correlations.items() if (r := number(v)) is not None}
    if not ranks:
        return ""
    rows = []
    for key, rho in sorted(ranks.items(), key=lambda item: (-item[1], item[0])):
        verdict = "about the same order" if rho >= 0.8 else "a similar order" if rho >= 0.5 else ""
        verdict = verdict or ("a weak hint" if rho >= 0.25 else "no better than chance")
        verdict = "a misleading order" if rho <= -0.25 else verdict
        end = 80 + 78 * min(1.0, max(-1.0, rho))
        bar = '<path d="M80 0V14" stroke="var(--muted)"/>'
        bar += f'<rect x="{min(80, end):.1f}" y="3" height="8"'
        bar += f' width="{abs(end - 80):.1f}" fill="var(--accent)"/>'
        rows.append(
            f'<tr><th scope="row">{escape(NAMES.get(key, key))}</th><td class="number">{rho:+.2f}'
            f'</td><td><svg viewBox="0 0 160 14" aria-hidden="true">{bar}</svg></td>'
            f"<td>{verdict}</td></tr>"
        )
    basis = view.outcome.details.get("rank correlations", "the trials")
    return (
        "<section><h2>Without a label</h2>"
        f"<p>How well each label-free metric would have ranked these trials: Spearman's rank "
        f"correlation with {escape(view.metric)} over {escape(basis)}. 1 is the same order, 0 "
        "chance, −1 the reverse; larger counts as better (the signs of uniformity and alignment "
        'are turned).</p><div class="scroll"><table class="rho"><thead><tr>'
        '<th scope="col">metric</th><th scope="col" class="number">correlation</th>'
        '<th scope="col">−1 to 1</th><th scope="col">it would have given</th></tr></thead><tbody>'
        f"{''.join(rows)}</tbody></table></div></section>"
    )


def _details(view: View) -> str:
    details = {k: v for k, v in view.outcome.details.items() if k != "rank correlations"}
    if not details:
        return ""
    settings = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in details.items())
    return f"<section><h2>The search</h2><dl>{settings}</dl></section>"
