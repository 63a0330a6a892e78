"""The page of a run, or of several side by side: one HTML file with plotly and all pictures in it.

It is made of the run folder alone (see :mod:`wcl_ray.report.read`), so it can be made again
anywhere, without the images, the encoder or Ray.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence

from plotly.offline import get_plotlyjs

from wcl_ray.report import plots
from wcl_ray.report.maps import embedding_map, has_umap
from wcl_ray.report.pictures import NO_EXAMPLES, contact_sheets, neighbours
from wcl_ray.report.pictures import STYLE as PICTURE_STYLE
from wcl_ray.report.read import RunReport, read_run, read_runs
from wcl_ray.report.tables import answer, configuration, figures_table, subject
from wcl_ray.report.template import document, escape, panel
from wcl_ray.runs.folder import PAGE
from wcl_ray.storage import Folder, check_target, write_file
from wcl_ray.terminal import say

# on one page, which stays below 10 MB
MOST_PICTURED = 4  # runs with sheets and neighbours
MOST_MAPS = 8
ON_MAPS = 600  # images of all maps

STYLE = (
    PICTURE_STYLE
    + """
.skip{position:absolute;left:-999px}.skip:focus{left:8px;top:8px;background:var(--paper);
padding:8px 14px;z-index:3;border:2px solid var(--accent)}
nav{position:sticky;top:0;background:var(--paper);border-bottom:1px solid var(--line);z-index:2}
nav ul{max-width:1120px;margin:auto;padding:6px 16px;list-style:none;display:flex;gap:2px 18px;
overflow-x:auto;white-space:nowrap;font-size:.9rem}
nav a{text-decoration:none;display:inline-block;padding:4px 0}nav a:hover{text-decoration:underline}
:focus-visible{outline:3px solid var(--accent);outline-offset:2px}
main>section{scroll-margin-top:56px;margin-bottom:44px}
main>section>h2{font-size:1.3rem;margin:0 0 10px;scroll-margin-top:56px}
figure h2,h3{font-size:1.05rem;margin:0 0 6px}h3{margin-top:18px}
.grid.small{grid-template-columns:repeat(auto-fit,minmax(min(100%,320px),1fr));gap:30px 26px}
.small .plot{height:300px}.grid:last-child{margin-bottom:0}figure+.scroll{margin-top:16px}
.scroll+p{margin-top:8px}.plot.map{height:460px;touch-action:pan-y}.plot.bars{height:auto}
details{margin:10px 0}details summary{color:var(--ink)}
.versus td{white-space:normal;overflow-wrap:anywhere;min-width:9rem}
@media print{nav,.skip{display:none}}
@media(max-width:600px){main{padding-top:18px}h1{font-size:1.35rem}.plot{height:340px}}
"""
)
# thumbnails of a map: shown by the mouse, by a tap, or by the arrow keys
HOVER = """
const pictures = JSON.parse(document.getElementById("pictures").textContent);
const tip = document.createElement("div"); tip.className = "tip"; tip.hidden = true;
tip.setAttribute("role", "status"); document.body.append(tip);
window.afterDraw = div => { if (!div.classList.contains("map")) return;
  const show = point => {
    const image = new Image(112, 112), text = document.createElement("p");
    image.src = "data:image/jpeg;base64," + pictures[point.customdata];
    text.innerHTML = point.text; image.alt = text.textContent; tip.replaceChildren(image, text);
    const box = div.getBoundingClientRect(), axes = [point.xaxis, point.yaxis];
    const [x, y] = [point.x, point.y].map((v, i) => axes[i]._offset + axes[i].d2p(v));
    tip.hidden = false;
    const left = Math.min(box.left + x + 14, innerWidth - tip.offsetWidth - 6);
    tip.style.left = scrollX + Math.max(6, left) + "px";
    tip.style.top = scrollY + box.top + y + 14 + "px" };
  for (const kind of ["plotly_hover", "plotly_unhover", "plotly_click"])
    div.removeAllListeners(kind);
  div.on("plotly_hover", event => show(event.points[0]));
  div.on("plotly_click", event => show(event.points[0]));
  div.on("plotly_unhover", () => tip.hidden = true);
  if (div.tabIndex === 0) return;
  div.tabIndex = 0; let at = -1;
  div.addEventListener("blur", () => tip.hidden = true);
  div.addEventListener("keydown", event => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") tip.hidden = true;
    if (!step) return;
    event.preventDefault();
    const points = div.data.flatMap((trace, n) => trace.visible === "legendonly" ? [] :
      trace.x.map((x, i) => ({ x, y: trace.y[i], text: trace.text[i],
        customdata: trace.customdata[i], xaxis: div._fullLayout.xaxis,
        yaxis: div._fullLayout.yaxis })));
    at = (at + step + points.length) % points.length; show(points[at]) }) };
"""


def write_page(run: Folder) -> str:
    """Write the page of a finished run to its folder; returns the name of the file.

    Raises:
        UserError: see :func:`wcl_ray.report.read.read_run`. StorageError: it cannot be written.
    """
    run.write(PAGE, page([read_run(run)]).encode())
    return PAGE


def report_runs(runs: Sequence[str], out: str | None, endpoint: str | None = None) -> str:
    """Write the page of one or several finished runs.

    Args:
        runs: run folders, paths or URIs.
        out: HTML file; None: in the folder of the run.

    Returns:
        The path or URI of the page.

    Raises:
        UserError: no run, or an unfinished one. StorageError: the page cannot be written.
    """
    if out is not None:
        check_target(out, "--out", endpoint, ".html")
    reports = read_runs(runs, endpoint)
    target = out or f"{reports[0].uri.rstrip('/')}/{PAGE}"
    write_file(target, page(reports).encode(), endpoint)
    say("page", target)
    return target


class Pictures:
    """The thumbnails of the maps, each once."""

    def __init__(self) -> None:
        self.numbers: dict[bytes, int] = {}

    def __call__(self, jpeg: bytes) -> int:
        """The number of a thumbnail."""
        return self.numbers.setdefault(jpeg, len(self.numbers))

    def element(self) -> str:
        """All of them, for the script."""
        texts = [base64.b64encode(jpeg).decode() for jpeg in self.numbers]
        return f'<script type="application/json" id="pictures">{json.dumps(texts)}</script>'


Section = tuple[str, str, str]  # name, title and content


def page(runs: Sequence[RunReport]) -> str:
    """Render runs as an HTML5 document."""
    pictures = Pictures()
    sections: list[Section] = [
        ("accuracy", "Accuracy", _accuracy(runs)),
        ("training", "Training", _training(runs)),
        ("clusters", "Clusters", _clusters(runs)),
        ("sheets", "Contact sheets", _per_run(runs, contact_sheets)),
        ("map", "Map", _maps(runs, pictures)),
        ("neighbours", "Neighbours", _per_run(runs, neighbours)),
        ("configuration", "Configuration", configuration(runs)),
    ]
    title = escape(" and ".join(run.name for run in runs) if len(runs) < 4 else
                   f"{len(runs)} runs")  # fmt: skip
    links = "".join(f'<li><a href="#{name}">{text}</a></li>' for name, text, _ in sections)
    body = "\n".join(
        f'<section id="{name}" aria-labelledby="{name}-title" tabindex="-1">'
        f'<h2 id="{name}-title">{text}</h2>{content}</section>'
        for name, text, content in sections
    )
    html = (
        '<a class="skip" href="#main">Skip to the content</a>'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n<main id="main" tabindex="-1">'
        f"<h1>{title}</h1>{subject(runs)}"
        f'<section class="answer" aria-label="Result">{answer(runs)}</section>\n{body}\n</main>'
    )
    scripts = [
        pictures.element(),
        f"<script>{get_plotlyjs()}</script>",
        f"<script>{HOVER}</script>",
    ]
    return document(title, html, scripts, STYLE)


def _accuracy(runs: Sequence[RunReport]) -> str:
    bars = plots.accuracy(runs)
    if bars is None:
        text = "<p>There is no label (data.label), so no accuracy was measured.</p>"
    else:
        text = panel(
            "kNN and linear probe", bars, "Dotted: guessing, without a look at the images.", "bars"
        )
    return text + figures_table(runs)


def _training(runs: Sequence[RunReport]) -> str:
    evaluated = {"knn": "kNN", "probe": "linear probe"}
    drawn = [
        ("Loss", plots.curves(runs, {"loss": "loss"}, "loss"),
         "Losses of different clusters have different scales."),
        ("Accuracy during training", plots.curves(runs, evaluated, "accuracy", ".0%"),
         "Of checkpoints, with evaluate.every."),
        ("Positives per anchor", plots.curves(runs, {"positives": "positives"}, "images"),
         "Other images of an anchor's cluster in its batch, on average."),
        ("Waiting for data",
         plots.curves(runs, {"data_wait": "data wait"}, "share of the time", ".0%", 0.1),
         "Share of the training time that the workers waited for batches."),
        ("Learning rate", plots.curves(runs, {"lr": "learning rate"}, "learning rate", ".1~e"), ""),
        ("Speed", plots.curves(runs, {"images_per_second": "images"}, "images/s"),
         "Images per second of all workers."),
    ]  # fmt: skip
    panels = "".join(panel(*parts) for parts in drawn if parts[1] is not None)
    small = " small" * (len(plots.variants_of(runs)) <= 2)  # else the legends need the room
    return f'<div class="grid{small}">{panels}</div>' if panels else "<p>There are no metrics.</p>"


def _clusters(runs: Sequence[RunReport]) -> str:
    plane, sizes = plots.plane(runs), plots.cluster_sizes(runs)
    drawn = []
    if plane is not None:
        text = (
            "Z is the cluster of an image, T its label. Good clusters lie up and to the left: they "
            "tell the label, and little besides. I(Z;T) is above that of random clusters of the "
            "same sizes."
        )
        drawn.append(panel("Information plane", plane, text))
    if sizes is not None:
        text = "Images of each cluster, the largest first."
        drawn.append(panel("Sizes of the clusters", sizes, text))
    if not drawn:
        return "<p>Every image is a cluster of its own.</p>"
    note = "" if plane is not None else "<p>Without a label there is no information plane.</p>"
    return f'{note}<div class="grid">{"".join(drawn)}</div>'


def _per_run(runs: Sequence[RunReport], render: Callable[[RunReport, str, bool], str]) -> str:
    """A part for each of the first runs."""
    if len(runs) == 1:
        return render(runs[0], "h3", False)
    shown = runs[:MOST_PICTURED]
    parts = [f"<h3>{escape(run.name)}</h3>{render(run, 'h4', True)}" for run in shown]
    if len(runs) > MOST_PICTURED:
        parts.append(f"<p>The pages of the other {len(runs) - MOST_PICTURED} runs have theirs.</p>")
    return "".join(parts)


def _maps(runs: Sequence[RunReport], pictures: Pictures) -> str:
    drawn = []
    variants = plots.variants_of(runs)
    umap = has_umap()
    most = ON_MAPS // min(MOST_MAPS, len(variants))
    for variant in variants[:MOST_MAPS]:
        if variant.examples is None:
            continue
        for method in ("PCA", "UMAP") if umap else ("PCA",):
            fig = embedding_map(variant.examples, pictures, most, method == "UMAP")
            if fig is not None:
                drawn.append(panel(f"{variant.title}, {method}", fig, "", "map"))
    if not drawn:
        return NO_EXAMPLES
    examples = next(v.examples for v in variants if v.examples is not None)
    test = any(examples.images["test"].to_pylist())
    text = (
        f"Features of {'test' if test else 'training'} images in two dimensions. Point at one, tap "
        "it, or use the arrow keys to see the image."
    )
    hint = "" if umap else ' UMAP is drawn, too, after <code>pip install "wcl_ray[umap]"</code>.'
    return f'<p>{text}{hint}</p><div class="grid">{"".join(drawn)}</div>'
