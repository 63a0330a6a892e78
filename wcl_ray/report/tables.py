"""The words and tables on the page of a run: what was trained, how good it is, with what."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from wcl_ray.config import Config, option_name
from wcl_ray.evaluate.left_out import left_out
from wcl_ray.report.plots import ACCURACIES, guesses, variants_of
from wcl_ray.report.read import RunReport, Variant
from wcl_ray.report.template import count, escape, number
from wcl_ray.terminal import bytes_text, clock
from wcl_ray.texts import flat

COLUMNS = {  # figure → heading, format, and what is meant
    "knn": ("kNN", ".1%", "nearest neighbours, accuracy on test images"),
    "probe": ("linear probe", ".1%", "accuracy on test images"),
    "rank_me": ("RankMe", ".1f", "effective rank of the features, higher is better"),
    "alignment": ("alignment", ".2f", "distance of two views of an image, lower is better"),
    "uniformity": ("uniformity", ".2f", "how evenly the images are spread, lower is better"),
    "clusters": ("K", ",.0f", "clusters"),
    "positives": ("positives", ".1f", "other images of an anchor's cluster in its batch"),
    "anchors_without_positive": ("without any", ".0%", "anchors without a positive"),
    "test_images": ("test images", ",.0f", "used by the evaluation"),
    "train_seconds": ("training", "clock", "h:mm:ss"),
}


def subject(runs: Sequence[RunReport]) -> str:
    """What was trained on what, a sentence for each run."""
    return "".join(f'<p class="muted">{_subject(run, len(runs) > 1)}</p>' for run in runs)


def _subject(run: RunReport, named: bool) -> str:
    data, clusters = run.options["data"], run.options["clusters"]
    train, model = run.options["train"], run.options["model"]
    source = data["path"] or "the demo data (beetles)"
    size = f" at {data['image_size']} pixels" if data["image_size"] else ""
    images = count(run.images, "image") if run.images else "images"
    names = ", ".join(f"{name} ({len(s):,} clusters)" for name, s in run.sizes.items() if len(s))
    kind = names or clusters["kind"]
    method, epochs = run.options.get("method", "cl-infonce"), count(train["epochs"], "epoch")
    text = (
        f"Encoder {model['backbone']}, trained by {method} for {epochs} on "
        f"{images} of {source}{size}, in batches of {train['batch_size']:,}; clusters: {kind}"
    )
    when = time.strftime("%Y-%m-%d", time.gmtime(run.stored.created)) if run.stored.created else ""
    text += f"; {when}" if when else ""
    return f"<strong>{escape(run.name)}</strong>: {escape(text)}." if named else f"{escape(text)}."


def answer(runs: Sequence[RunReport]) -> str:
    """The result in one sentence, and what the evaluation left out."""
    variants = [v for v in variants_of(runs) if "knn" in v.figures]
    if not variants:
        return "<p>No accuracy: the run has no label, or was not evaluated.</p>"
    ranked = len(runs) > 1 and _comparable(runs, variants)
    best = max(variants, key=lambda v: float(v.figures["knn"])) if ranked else variants[0]
    parts = [
        f"{name} {best.figures[key]:.1%}" for key, name in ACCURACIES.items() if key in best.figures
    ]
    text = f"<strong>{' and '.join(parts)}</strong> on {best.figures['test_images']:,} test images"
    title = f"The best kNN is that of {best.title}" if ranked else best.title
    text = f"{escape(title)}: {text}"
    others = [v for v in variants if v is not best]
    compared = [
        f"{escape(v.title)} {v.figures['knn']:.1%}"
        + (f" and {v.figures['probe']:.1%}" if "probe" in v.figures else "")
        for v in others[:4]
    ]
    compared += [f"{name} {value:.1%}" for value, name in guesses(variants)]
    lines = [f"<p>{text}.</p>"]
    if len(runs) > 1 and not ranked:
        lines.append("<p>The runs have other data or labels: their accuracies do not compare.</p>")
    if compared:
        lines.append(f"<p>To compare: {'; '.join(compared)}.</p>")
    lines += [
        f'<p class="muted">{escape(line)}.</p>'
        for line in dict.fromkeys(line for v in variants for line in left_out(v.figures))
    ]
    return "".join(lines)


def _comparable(runs: Sequence[RunReport], variants: Sequence[Variant]) -> bool:
    """Whether all were tested on the same images and labels, as far as the options tell."""
    data = [run.options["data"] for run in runs]
    sources = {(d.get("path"), d.get("eval_path"), d.get("label")) for d in data}
    return len(sources) == 1 and len({v.figures.get("test_images") for v in variants}) == 1


def figures_table(runs: Sequence[RunReport]) -> str:
    """All figures, a row for each training."""
    variants = [v for v in variants_of(runs) if v.figures]
    shown = [key for key in COLUMNS if any(_cell(v.figures, key) for v in variants)]
    if not shown:
        return "<p>The run was not evaluated.</p>"
    heads = "".join(
        f'<th scope="col" class="number" title="{escape(COLUMNS[key][2])}">{COLUMNS[key][0]}</th>'
        for key in shown
    )
    rows = "".join(
        f'<tr><th scope="row">{escape(v.title)}</th>'
        + "".join(f'<td class="number">{_cell(v.figures, key) or "–"}</td>' for key in shown)
        + "</tr>"
        for v in variants
    )
    notes = "; ".join(f"{COLUMNS[k][0]}: {COLUMNS[k][2]}" for k in shown if k in (
        "rank_me", "alignment", "uniformity", "positives"))  # fmt: skip
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="All figures"><table><thead>'
        f'<tr><th scope="col">training</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
        f'<p class="muted">{escape(notes)}.</p>'
    )


def _cell(figures: dict[str, Any], key: str) -> str:
    value, form = number(figures.get(key)), COLUMNS[key][1]
    if value is None or (key == "clusters" and not value):
        return ""
    return clock(value) if form == "clock" else format(value, form)


def configuration(runs: Sequence[RunReport]) -> str:
    """Options, versions, hardware and time of the runs."""
    heads = "".join(f'<th scope="col">{escape(run.name)}</th>' for run in runs)
    several = len(runs) > 1
    parts = []
    options = [flat(run.options) for run in runs]
    default = flat(Config().to_dict())
    differing = [
        key
        for key in dict.fromkeys(key for o in options for key in o)
        if (len({json.dumps(o.get(key)) for o in options}) > 1)
        or (not several and options[0].get(key) != default.get(key))
    ]
    title = "Options that differ" if several else "Options that are not the default"
    differing = [key for key in differing if key not in ("name", "storage", "resume")]
    parts.append(_table(title, heads if several else "", [
        (option_name(key), [_value(o.get(key)) for o in options]) for key in differing
    ]))  # fmt: skip
    parts.append(_table("Versions and hardware", heads if several else "", _machines(runs)))
    for run in runs:
        of = f" of {escape(run.name)}" if several else ""
        full = escape(json.dumps(run.options, indent=2))
        parts.append(f"<details><summary>All options{of}</summary><pre>{full}</pre></details>")
    return "".join(parts)


def _machines(runs: Sequence[RunReport]) -> list[tuple[str, list[str]]]:
    columns: list[dict[str, str]] = []
    for run in runs:
        environment, usage = run.results.get("environment", {}), run.results.get("usage", {})
        texts = {"folder": run.uri}
        texts |= {n: str(v) for n, v in environment.get("versions", {}).items()}
        texts.setdefault("wcl_ray", run.stored.version)
        if environment:
            gpus = ", ".join(environment["accelerators"])
            texts |= {
                "system": str(environment["platform"]),
                "nodes": f"{environment['nodes']}",
                "CPUs": f"{environment['cpus']:g}",
                "GPUs": f"{environment['gpus']:g}" + (f" ({gpus})" if gpus else ""),
                "memory": bytes_text(environment["memory"]),
            }
        if number(run.results.get("seconds")) is not None:
            texts["whole run"] = clock(run.results["seconds"])
        if usage.get("seconds"):
            texts["stages"] = ", ".join(f"{n} {clock(s)}" for n, s in usage["seconds"].items())
        if "data_wait" in usage:
            texts["images/s"] = f"{usage['images_per_second']:,.0f}"
            texts["waiting for data"] = f"{usage['data_wait']:.1%} of the training time"
            texts["restarts"] = f"{usage['restarts']}"
        if usage.get("object_store"):
            texts["object store"] = (
                f"peak {bytes_text(usage['object_store_peak'])} of "
                f"{bytes_text(usage['object_store'])}"
            )
        columns.append(texts)
    names = dict.fromkeys(name for texts in columns for name in texts)
    return [(name, [texts.get(name, "–") for texts in columns]) for name in names]


def _table(title: str, heads: str, rows: Sequence[tuple[str, list[str]]]) -> str:
    if not rows:
        return f"<h3>{title}</h3><p>None.</p>"
    head = f'<thead><tr><th scope="col"></th>{heads}</tr></thead>' if heads else ""
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{escape(text)}</td>" for text in texts)
        + "</tr>"
        for name, texts in rows
    )
    return (
        f'<h3>{title}</h3><div class="scroll" tabindex="0" role="region" aria-label="{title}">'
        f'<table class="versus">{head}<tbody>{body}</tbody></table></div>'
    )


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "–"
    return "–" if value is None else str(value)
