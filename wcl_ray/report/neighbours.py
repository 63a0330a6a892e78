"""The result of a search by image: a table, and an HTML page that holds its images."""

from __future__ import annotations

import base64
from typing import Any

from wcl_ray.report.template import document, escape, plain
from wcl_ray.runs.neighbours import Neighbour, Neighbours, find_neighbours
from wcl_ray.storage import check_target, write_file
from wcl_ray.terminal import put, say, table

STYLE = """
ol,dl{padding:0;margin:0}dl{color:var(--muted);display:grid;grid-template-columns:auto 1fr}
dl{gap:0 8px}
ol{list-style:none;display:grid;gap:16px;grid-template-columns:repeat(auto-fill,minmax(130px,1fr))}
li figure,main>figure{margin:0;overflow-wrap:anywhere;font-size:.85rem}dd{margin:0}
img,.none{display:block;width:112px;height:112px;border:1px solid var(--line)}
"""


def show_neighbours(
    index: str,
    *,
    image: str | None = None,
    id: str | None = None,
    k: int = 10,
    run: str | None = None,
    out: str = "neighbours.html",
    endpoint: str | None = None,
) -> Neighbours:
    """Print the images nearest to an image and write a page that shows them.

    Args:
        out: HTML file. For the others see :func:`wcl_ray.runs.neighbours.find_neighbours`.
    """
    check_target(out, "--out", endpoint, ".html")
    result = find_neighbours(index, image=image, id=id, k=k, run=run, endpoint=endpoint)
    columns = list(result.query.columns or (result.nearest[0].columns if result.nearest else ()))
    body = [
        [str(rank), f"{n.similarity:.3f}", plain(n.name), *(_text(n.columns[c]) for c in columns)]
        for rank, n in enumerate(result.nearest, 1)
    ]
    put(f"\n{table(['rank', 'cosine', 'image', *columns], body, left=(2,))}\n")
    write_file(out, page(result, index).encode(), endpoint)
    say("page", out)
    return result


def page(result: Neighbours, index: str) -> str:
    """The page as HTML, which needs no other file."""
    items = "".join(
        f"<li>{_figure(neighbour, f'{rank}. {neighbour.similarity:.3f}')}</li>"
        for rank, neighbour in enumerate(result.nearest, 1)
    )
    name = escape(result.query.name)
    body = (
        f"<main><h1>Images nearest to {name}</h1>{_figure(result.query, 'the query')}"
        f"<h2>The nearest {len(result.nearest)} of {result.images:,} images</h2>"
        f"<p>By cosine similarity of the features in {escape(index)}.</p><ol>{items}</ol></main>"
    )
    return document(f"Images nearest to {name}", body, (), STYLE)


def _figure(image: Neighbour, caption: str) -> str:
    name = escape(image.name)
    picture = '<div class="none"></div>'
    if image.thumbnail is not None:
        content = base64.b64encode(image.thumbnail).decode()
        picture = f'<img alt="{name}" src="data:image/jpeg;base64,{content}">'
    rows = "".join(
        f"<dt>{escape(key)}</dt><dd>{escape(_text(value))}</dd>"
        for key, value in image.columns.items()
    )
    return f"<figure>{picture}<figcaption>{caption}<br>{name}<dl>{rows}</dl></figcaption></figure>"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return "" if value is None else plain(value)
