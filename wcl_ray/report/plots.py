"""Plots as inline SVG: frames, marks of trials, and labels that do not collide."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from wcl_ray.report.axes import HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, escape
from wcl_ray.report.surface import colour


@dataclass(frozen=True)
class Mark:
    """A trial in a plot.

    Attributes:
        share: of the colour map; None: no score.
        status: finished (filled), stopped (hollow), unfinished (dashed) or failed (a cross).
        tip: what is told when the pointer rests on it. link: id of its row.
        inside: short text in a hollow mark.
        span: lowest and highest pixel of a line through it.
    """

    x: float
    y: float
    share: float | None
    status: str
    tip: str
    link: str
    inside: str = ""
    best: bool = False
    default: bool = False
    span: tuple[float, float] | None = None


def apart(marks: Sequence[Mark], radius: float) -> list[Mark]:
    """Marks at one place packed around it like seeds of a sunflower, the first in the middle."""
    places: dict[tuple[int, int], list[Mark]] = defaultdict(list)
    for mark in marks:
        places[round(mark.x), round(mark.y)].append(mark)
    moved = []
    for group in places.values():
        pitch = min(1.8 * radius, 36 / math.sqrt(len(group)))
        for i, mark in enumerate(group):
            far, angle = pitch * math.sqrt(i), i * 2.39996
            x, y = mark.x + far * math.cos(angle), mark.y + far * math.sin(angle)
            moved.append(replace(mark, x=x, y=y))
    return moved


def beside(marks: Sequence[Mark], radius: float, room: float) -> list[Mark]:
    """Marks moved sideways, at most by ``room``, where they would hide each other."""
    placed: list[Mark] = []
    for mark in marks:
        steps = range(int(room / radius) + 1)
        for far in (sign * i * radius for i in steps for sign in (1, -1)):
            moved = replace(mark, x=mark.x + far)
            if all(math.hypot(p.x - moved.x, p.y - moved.y) >= 1.8 * radius for p in placed):
                break
        else:
            moved = mark
        placed.append(moved)
    return placed


def draw(marks: Sequence[Mark], radius: float, named: bool = True) -> str:
    """Marks as SVG, the best and the default ringed and, where ``named``, called so."""
    lines = [
        f'<line class="span" x1="{m.x:.1f}" x2="{m.x:.1f}" y1="{m.span[0]:.1f}"'
        f' y2="{m.span[1]:.1f}"/>'
        for m in marks
        if m.span
    ]
    # the first are the best, and lie on top
    dots = [dot(m, radius) for m in reversed(marks)]
    rings = []
    for m in marks:
        if not (m.best or m.default):
            continue
        if m.best:
            at = f'cx="{m.x:.1f}" cy="{m.y:.1f}" r="{radius + 4}"'
            rings += [f'<circle class="{c}" {at}/>' for c in ("halo", "best ring")]
        if m.default:
            d = radius + 7
            path = f"M{m.x:.1f} {m.y - d:.1f}l{d} {d}l-{d} {d}l-{d} -{d}z"
            rings += [f'<path class="{c}" d="{path}"/>' for c in ("halo", "default ring")]
        if named:
            words = " = ".join(["best"] * m.best + ["default"] * m.default)
            rings.append(_name(m, words, radius))
    return "".join(lines + dots + rings)


def _name(m: Mark, words: str, r: float) -> str:
    wide = 7.5 * len(words)
    if m.y > TOP + 36:  # above; beside where that would leave the plot
        x, y, anchor = min(max(m.x, LEFT + wide / 2), WIDTH - RIGHT - wide / 2), m.y - r - 11, ""
    elif m.x + r + 12 + wide < WIDTH - RIGHT:
        x, y, anchor = m.x + r + 12, m.y + 4, ' style="text-anchor:start"'
    else:
        x, y, anchor = m.x - r - 12, m.y + 4, ' style="text-anchor:end"'
    return f'<text class="name"{anchor} x="{x:.1f}" y="{y:.1f}">{words}</text>'


def dot(m: Mark, r: float) -> str:
    """One mark as SVG."""
    x, y = f"{m.x:.1f}", f"{m.y:.1f}"
    paint = "var(--muted)" if m.share is None else colour(m.share)
    if m.status == "failed":
        d = 0.7 * r
        path = f"M{m.x - d:.1f} {m.y - d:.1f}l{2 * d:.1f} {2 * d:.1f}m0 {-2 * d:.1f}"
        path += f"l{-2 * d:.1f} {2 * d:.1f}"
        shape = f'<path class="under" d="{path}"/><path class="cross" d="{path}"/>'
    elif m.status == "finished":
        # both edges, since the surface may have the colour of either
        shape = f'<circle class="edge" cx="{x}" cy="{y}" r="{r + 1.5}"/>'
        shape += f'<circle class="full" cx="{x}" cy="{y}" r="{r}" fill="{paint}"/>'
    else:
        dash = ' stroke-dasharray="3 2"' if m.status == "unfinished" else ""
        width = max(1.5, r * 0.35)
        shape = f'<circle class="hollow" cx="{x}" cy="{y}" r="{r}"/>'
        shape += f'<circle cx="{x}" cy="{y}" r="{r - width / 2:.1f}" fill="none" stroke="{paint}"'
        shape += f' stroke-width="{width:.1f}"{dash}/>'
        if m.inside:
            shape += f'<text class="inside" x="{x}" y="{m.y + 3.2:.1f}">{escape(m.inside)}</text>'
    shape = f"<title>{escape(m.tip)}</title>{shape}"
    if not m.link:
        return f"<g>{shape}</g>"
    return f'<a class="dot" href="#{escape(m.link)}" tabindex="-1">{shape}</a>'


def frame(x: Axis, y: Axis, body: str, label: str, behind: str = "") -> str:
    """A whole plot: the axes with their ticks, what lies behind the grid, and what before it."""
    grid, texts = [], []
    for at, text in x.ticks():
        grid.append(f"M{at:.1f} {y.start:.1f}V{y.end:.1f}")
        texts.append(f'<text class="x" x="{at:.1f}" y="{y.start + 19:.1f}">{escape(text)}</text>')
    for at, text in y.ticks():
        grid.append(f"M{x.start:.1f} {at:.1f}H{x.end:.1f}")
        texts.append(
            f'<text class="y" x="{x.start - 8:.1f}" y="{at + 4:.1f}">{escape(text)}</text>'
        )
    across, up = (x.start + x.end) / 2, (y.start + y.end) / 2
    texts.append(
        f'<text class="axis" x="{across:.1f}" y="{y.start + 44:.1f}">{escape(x.title)}</text>'
        f'<text class="axis" transform="translate(14 {up:.1f}) rotate(-90)">'
        f"{escape(y.title)}</text>"
    )
    return (
        f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}">'
        f'{behind}<path class="rules" d="{"".join(grid)}"/>{"".join(texts)}{body}</svg>'
    )


def labels(
    texts: Sequence[tuple[float, float, str]], dots: Sequence[Mark], x: Axis, y: Axis
) -> str:
    """Texts beside points, each where it hides the fewest dots; left out rather than one over
    another."""
    boxes: list[tuple[float, float, float, float]] = []
    drawn = []
    for px, py, text in texts:
        wide, options = 8.0 * len(text) + 2, []
        for far in (12, 22, 34):
            for dx, dy in ((far, 0), (-far - wide, 0), (-wide / 2, -far - 3), (-wide / 2, far + 3)):
                box = (px + dx, py + dy - 8, px + dx + wide, py + dy + 8)
                inside = box[0] >= x.start and box[2] <= x.end
                inside = inside and box[1] >= y.end and box[3] <= y.start
                if inside and not any(
                    box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3]
                    for b in boxes
                ):
                    hidden = sum(
                        box[0] - 5 < d.x < box[2] + 5 and box[1] - 5 < d.y < box[3] + 5
                        for d in dots
                    )
                    options.append((hidden, far, box))
        if options:
            _, _, box = min(options, key=lambda o: o[:2])
            boxes.append(box)
            at = f'x="{(box[0] + box[2]) / 2:.1f}" y="{box[3] - 4:.1f}"'
            drawn.append(f'<text class="name" {at}>{escape(text)}</text>')
    return "".join(drawn)
