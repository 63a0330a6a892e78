"""What the pages have in common: style, script, escaping, and how a figure looks.

A page is one HTML5 document without links to the network. Colours of figures are variables of the
style (``var(--ink)``), which the script resolves, so that figures follow the light or dark scheme.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

INK, MUTED, LINE, PAPER = "var(--ink)", "var(--muted)", "var(--line)", "var(--paper)"
STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1b1f24;--muted:#57606a;--line:#d5dae0;
--panel:#f5f7f9;--accent:#0b5cad;--bad:#b42318;
--ca:#0b5cad;--cb:#c2570c;--cc:#1a7f4b;--cd:#8250bf;--ce:#b4235a;--cf:#6b6f1d;--cg:#0e7c86;
--ch:#7a4a2b}
@media (prefers-color-scheme:dark){:root{--paper:#14181d;--ink:#e8ecf1;--muted:#a7b0bb;
--line:#333b45;--panel:#1c2229;--accent:#74b6f5;--bad:#ff9384;
--ca:#74b6f5;--cb:#f5a15f;--cc:#6bd39a;--cd:#c7a3f7;--ce:#ff8fb5;--cf:#d3d46a;--cg:#5fd0d9;
--ch:#d3a583}}
@media print{:root{color-scheme:light;--paper:#fff;--ink:#000;--muted:#444;--line:#bbb;
--panel:#fff;--accent:#0b5cad;--bad:#b42318}*{print-color-adjust:exact}
main{max-width:none!important;padding:0!important}.scroll{overflow:visible!important}
table{font-size:7.5pt!important}summary{white-space:normal}figure,tr{break-inside:avoid}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","Liberation Sans",sans-serif}
main{max-width:1120px;margin:auto;padding:28px 16px 48px;overflow-wrap:anywhere}
h1{font-size:1.6rem;line-height:1.2;margin:0 0 4px}h2{font-size:1.1rem;margin:0 0 8px}
p{margin:0 0 8px;max-width:75ch}h1+p{max-width:none}
.muted,figcaption{color:var(--muted);font-size:.875rem}
a{color:inherit}.answer{background:var(--panel);border-left:4px solid var(--accent);
border-radius:4px;padding:14px 18px;margin:18px 0 28px}.answer p:first-child{font-size:1.15rem}
.answer p:last-child{margin:0}.answer .whole{white-space:nowrap}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));
gap:36px 32px;margin-bottom:36px}figure{margin:0;min-width:0}
section{margin-bottom:36px}.plot{height:400px}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.875rem;line-height:1.35}
th,td{padding:5px 8px;text-align:left;vertical-align:top;border-bottom:1px solid var(--line);
overflow-wrap:normal;white-space:nowrap;
max-width:30rem;overflow:hidden;text-overflow:ellipsis}
thead th{border-bottom:2px solid var(--muted);vertical-align:bottom}
.number{text-align:right;font-variant-numeric:tabular-nums}
tr:target,tr.top{background:var(--panel)}tr.top td{font-weight:600}
tr:target td{border-bottom-color:var(--accent);border-top:2px solid var(--accent)}
summary{cursor:pointer}pre{white-space:pre-wrap;overflow-wrap:anywhere;width:26rem;
max-width:75vw;margin:4px 0;font-size:.8rem}summary{color:var(--bad)}
dl{display:grid;grid-template-columns:minmax(7rem,max-content) 1fr;gap:4px 18px;margin:0;
font-size:.9rem}dt{color:var(--muted);max-width:14rem}dd{margin:0;min-width:0}
.rho svg{width:160px;height:14px}
"""
DRAW = """
const draw = () => { for (const div of document.querySelectorAll(".plot")) {
  if (!window.Plotly) { div.style.height = "auto";
    div.textContent = "The figures need plotly.min.js in the folder of this page."; continue }
  const style = getComputedStyle(document.documentElement);
  const known = JSON.parse(div.nextElementSibling.textContent
    .replace(/var[(](--[a-z]+)[)]/g, (_, name) => style.getPropertyValue(name).trim()));
  const shown = { responsive: true, displayModeBar: false };
  Plotly.react(div, known.data, known.layout, shown).then(() => {
    div.removeAllListeners("plotly_click");
    div.on("plotly_click", event => {
      const row = document.getElementById("trial-" + event.points[0].customdata);
      if (row) location.hash = row.id });
    window.afterDraw?.(div) }) } };
draw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
"""


def plain(text: object) -> str:
    """Text that can be written as UTF-8, without control characters."""
    valid = str(text).encode("utf-8", "backslashreplace").decode()
    return "".join(c if c >= " " or c in "\n\t" else "\ufffd" for c in valid)


def label(text: object) -> str:
    """Text escaped for a figure: plotly interprets tags, and knows few entities."""
    return html.escape(plain(text), quote=False)


def number(value: Any) -> float | None:
    """A value as a finite number, None if it is not one. Several granularities become their
    geometric mean."""
    if isinstance(value, (tuple, list)):
        numbers = [n for n in map(number, value) if n is not None]
        if not numbers or len(numbers) < len(value):
            return None
        if len(numbers) == 1 or min(numbers) <= 0:
            return sum(numbers) / len(numbers)
        return math.exp(sum(math.log(n) for n in numbers) / len(numbers))
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        return None
    return float(value) if math.isfinite(value) else None


def count(n: int, noun: str) -> str:
    """A number with its noun, in the singular or plural."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def escape(text: object) -> str:
    """Text escaped for HTML and attributes, which can be written as UTF-8."""
    return html.escape(plain(text), quote=True)


def figure(traces: Sequence[Any], x: dict[str, Any], y: dict[str, Any], **layout: Any) -> go.Figure:
    """A figure in the colours of the page."""
    axis = {"gridcolor": LINE, "zeroline": False, "automargin": True}
    style: dict[str, Any] = {
        "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "dragmode": False,
        "font": {"color": INK, "size": 13}, "margin": {"l": 12, "r": 12, "t": 12, "b": 12},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "hoverlabel": {"bgcolor": PAPER, "bordercolor": MUTED, "font": {"color": INK}},
        "xaxis": axis | x, "yaxis": axis | y,
    }  # fmt: skip
    return go.Figure(list(traces), style | layout, skip_invalid=False)


def panel(title: str, plot: go.Figure | None, caption: str, name: str = "") -> str:
    """A figure with its title and caption as HTML; None: the caption alone.

    Args:
        name: class of the element of the plot, for the page's own style and script.
    """
    body = ""
    if plot is not None:
        data = plot.to_json(engine="json").replace("<", "\\u003c")  # a name cannot end the element
        body = f'<div class="plot{" " * bool(name)}{name}" role="img" aria-label="{escape(title)}">'
        body += f'</div><script type="application/json">{data}</script>'
    body += f"<figcaption>{escape(caption)}</figcaption>"
    return f"<figure><h2>{escape(title)}</h2>{body}</figure>"


def document(title: str, body: str, scripts: Sequence[str], style: str = "") -> str:
    """The page.

    Args:
        title: escaped.
        body: inside ``<body>``.
        scripts: elements that come before the script that draws the figures.
        style: more of it.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}{style}</style></head>\n"
        f"<body>{body}\n{''.join(scripts)}<script>{DRAW}</script></body></html>\n"
    )
