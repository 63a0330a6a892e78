"""The result of a search by image: a table, and an HTML page that holds its images."""

from __future__ import annotations

import base64
import html

from wcl_ray.runs.neighbours import Neighbour, Neighbours, find_neighbours
from wcl_ray.storage import check_target, write_file
from wcl_ray.terminal import put, say, table

STYLE = """
:root{color-scheme:light dark;--muted:#57606a;--line:#d5dae0}
@media (prefers-color-scheme:dark){:root{--muted:#a7b0bb;--line:#333b45}}
body{margin:0;font:16px/1.5 system-ui,sans-serif}
main{max-width:1120px;margin:auto;padding:24px 16px}
h1{font-size:1.4rem}h2{font-size:1.1rem}p,dl{color:var(--muted)}ol,dl{padding:0;margin:0}
ol{list-style:none;display:grid;gap:16px;grid-template-columns:repeat(auto-fill,minmax(150px,1fr))}
figure{margin:0;overflow-wrap:anywhere;font-size:.85rem}
img,.none{display:block;width:144px;height:144px;border:1px solid var(--line)}
dl{display:grid;grid-template-columns:auto 1fr;gap:0 8px}dd{margin:0}
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
    check_target(out, "--out", endpoint)
    result = find_neighbours(index, image=image, id=id, k=k, run=run, endpoint=endpoint)
    columns = list(result.query.columns or (result.nearest[0].columns if result.nearest else ()))
    body = [
        [str(rank), f"{n.similarity:.3f}", n.name, *(str(n.columns[c]) for c in columns)]
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
    name = html.escape(result.query.name)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Images nearest to {name}</title><style>{STYLE}</style></head><body><main>
<h1>Images nearest to {name}</h1>{_figure(result.query, "the query")}
<h2>The nearest {len(result.nearest)} of {result.images:,} images</h2>
<p>By cosine similarity of the features in {html.escape(index)}.</p><ol>{items}</ol>
</main></body></html>
"""


def _figure(image: Neighbour, caption: str) -> str:
    name = html.escape(image.name)
    picture = '<div class="none"></div>'
    if image.thumbnail is not None:
        content = base64.b64encode(image.thumbnail).decode()
        picture = f'<img alt="{name}" src="data:image/jpeg;base64,{content}">'
    rows = "".join(
        f"<dt>{html.escape(key)}</dt><dd>{html.escape(str(value))}</dd>"
        for key, value in image.columns.items()
    )
    return f"<figure>{picture}<figcaption>{caption}<br>{name}<dl>{rows}</dl></figcaption></figure>"
