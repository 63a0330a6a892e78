"""Pictures on the page of a run: contact sheets of clusters, and neighbours of queries."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from wcl_ray.data.thumbnails import THUMBNAIL_SIZE
from wcl_ray.evaluate.examples import Query, Sheet
from wcl_ray.report.read import RunReport
from wcl_ray.report.template import count, escape

STYLE = """
.sheets{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,440px),1fr));gap:18px}
.sheet{background:var(--panel);border-radius:6px;padding:12px 14px;margin:0}
.sheet figcaption{color:var(--ink);margin-bottom:8px}
.sheet .images{display:grid;grid-template-columns:repeat(6,1fr);gap:5px}
.sheet figcaption span{color:var(--muted);display:block;font-size:.85rem}
.pic{display:block;width:100%;height:auto;aspect-ratio:1;border-radius:3px;background:var(--line)}
.odd{outline:2px dashed var(--bad);outline-offset:-1px}
.queries{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,500px),1fr));
gap:14px 28px}
.query{display:grid;grid-template-columns:1.25fr 10px repeat(6,1fr);gap:6px;align-items:end;
margin:0}
.query figcaption,.near figcaption{font-size:.75rem;line-height:1.25;overflow:hidden;
text-overflow:ellipsis;white-space:nowrap;color:var(--muted)}
.near{min-width:0}.query .asked figcaption{color:var(--ink)}
.arrow{align-self:center;color:var(--muted)}
.tip{position:absolute;background:var(--paper);border:1px solid var(--muted);border-radius:6px;
padding:6px;width:126px;pointer-events:none;z-index:4;box-shadow:0 4px 14px #0004}
.tip img{display:block;border-radius:3px}.tip p{margin:4px 0 0;font-size:.75rem;line-height:1.25;
overflow-wrap:anywhere;max-height:4em;overflow:hidden}
@media print{.tip{display:none}}
"""
ROW = 6  # images of a row of a contact sheet
NO_EXAMPLES = (
    "<p>The run folder has no examples.parquet, from which these pictures are made: the run was "
    "evaluated by an older version, or they could not be written.</p>"
)


def contact_sheets(run: RunReport, heading: str, few: bool = False) -> str:
    """The largest, smallest, purest and most mixed clusters of each granularity.

    Args:
        heading: element of the headings inside, such as ``h3``.
        few: only the first granularity, and one row of images of each cluster.
    """
    examples = run.own.examples
    if examples is None:
        return NO_EXAMPLES
    if not examples.sheets:
        return "<p>Every image is a cluster of its own, so there is nothing to show.</p>"
    rows = examples.images.drop_columns(["feature"]).to_pylist()
    parts = [
        f"<p>{_intro(examples.sheets)}</p>",
    ]
    names = dict.fromkeys(sheet.granularity for sheet in examples.sheets)
    most = ROW if few else None
    for name in list(names)[: 1 if few else None]:
        if len(names) > 1:
            parts.append(f"<{heading}>{escape(name)}</{heading}>")
        sheets = [_sheet(s, rows, most) for s in examples.sheets if s.granularity == name]
        parts.append(f'<div class="sheets">{"".join(sheets)}</div>')
    return "".join(parts)


def _intro(sheets: Sequence[Sheet]) -> str:
    labelled = any(sheet.label is not None for sheet in sheets)
    text = "Images of the largest and smallest clusters"
    text += ", and of the purest and most mixed ones" * labelled
    text += ", with what they have in common" * any(sheet.words for sheet in sheets)
    frame = " A dashed frame marks an image with another label than most of its cluster."
    drawn = " Clusters with fewer than two images among those of the page's sample are left out"
    drawn += ", and shares are of that sample." if labelled else "."
    return f"{text}.{drawn}{frame * labelled}"


def _sheet(sheet: Sheet, rows: Sequence[dict[str, Any]], most: int | None) -> str:
    title = ", ".join(sheet.reasons)
    words = escape(sheet.words or f"cluster {sheet.cluster} of {sheet.granularity}")
    of_label = ""
    if sheet.label is not None and sheet.share is not None:
        of_label = f", {sheet.share:.0%} {escape(sheet.label)}"
    images = "".join(
        picture(rows[row], sheet.label is not None and rows[row]["label"] != sheet.label)
        for row in sheet.rows[:most]
    )
    return (
        f'<figure class="sheet"><figcaption><strong>{title[0].upper()}{title[1:]}</strong>: '
        f"{words}<span>{count(sheet.size, 'image')}{of_label}</span></figcaption>"
        f'<div class="images">{images}</div></figure>'
    )


def neighbours(run: RunReport, heading: str, few: bool = False) -> str:
    """Sample queries and the worst mistakes, each with the nearest training images; ``few``: half
    as many."""
    examples = run.own.examples
    if examples is None:
        return NO_EXAMPLES
    if not examples.queries:
        return "<p>There are too few images.</p>"
    rows = examples.images.drop_columns(["feature"]).to_pylist()
    sampled, mistakes = ([q for q in examples.queries if q.mistake == m] for m in (False, True))
    if few:
        sampled, mistakes = sampled[: len(sampled) // 2], mistakes[: len(mistakes) // 2]
    kind = "test" if rows[examples.queries[0].row]["test"] else "training"
    parts = [
        f"<p>{kind.capitalize()} images and the training images with the most similar features, "
        f"among {examples.bank:,}. Below each neighbour is the cosine similarity.</p>",
        _queries(sampled, rows),
    ]
    if mistakes:
        shown = f"; the {len(mistakes)} with the most similar ones" if len(mistakes) < (
            examples.mistakes or 0) else ""  # fmt: skip
        parts += [
            f"<{heading}>The worst mistakes</{heading}>",
            f"<p>{examples.mistakes:,} of {examples.asked:,} images have no neighbour of their own "
            f"label among the nearest {len(mistakes[0].neighbours)}{shown}.</p>",
            _queries(mistakes, rows),
        ]
    elif examples.mistakes == 0:
        parts.append(f"<p>All {examples.asked:,} images have a neighbour of their own label.</p>")
    return "".join(parts)


def _queries(queries: Sequence[Query], rows: Sequence[dict[str, Any]]) -> str:
    return f'<div class="queries">{"".join(_query(q, rows) for q in queries)}</div>'


def _query(query: Query, rows: Sequence[dict[str, Any]]) -> str:
    asked = rows[query.row]
    cells = []
    for row, similarity in zip(query.neighbours, query.similarities, strict=True):
        near = rows[row]
        other = None not in (asked["label"], near["label"]) and asked["label"] != near["label"]
        other = other and not query.mistake  # there, all are
        name = f"<br>{escape(near['label'])}" if near["label"] is not None else ""
        cells.append(
            f'<figure class="near">{picture(near, other)}'
            f"<figcaption>{similarity:.2f}{name}</figcaption></figure>"
        )
    name = asked["label"] if asked["label"] is not None else _name(asked)
    return (
        f'<figure class="query"><figure class="near asked">{picture(asked)}'
        f"<figcaption><strong>{escape(name)}</strong></figcaption></figure>"
        f'<span class="arrow" aria-hidden="true">›</span>{"".join(cells)}</figure>'
    )


def picture(row: dict[str, Any], odd: bool = False) -> str:
    """The thumbnail of an image, with its name and label as alternative text.

    Args:
        odd: its label is not the expected one.
    """
    text = _name(row)
    if row["label"] is not None:
        text = f"{row['label']}: {text}" + (", another label" if odd else "")
    source = base64.b64encode(row["thumbnail"]).decode()
    return (
        f'<img class="pic{" odd" * odd}" alt="{escape(text)}" title="{escape(text)}" '
        f'width="{THUMBNAIL_SIZE}" height="{THUMBNAIL_SIZE}" '
        f'src="data:image/jpeg;base64,{source}">'
    )


def _name(row: dict[str, Any]) -> str:
    return str(row["key"] if row["key"] is not None else f"image {row['id']}")
