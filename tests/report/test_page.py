"""The page of a search: right numbers at the right places, for any trials, and in a browser."""

from __future__ import annotations

import html
import json
import math
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wcl_ray.report import axes, surface
from wcl_ray.report.page import page
from wcl_ray.report.view import number
from wcl_ray.search.outcome import Outcome, Trial

TAU, TOP_K = "loss.temperature", "clusters.top-k"


def trial(n: int, tau: Any = None, k: Any = None, **more: Any) -> Trial:
    """A plausible trial; every third was stopped early."""
    tau = 0.03 * 1.15 ** (n % 23 + n / 1000) if tau is None else tau
    k = ((2, 5, 13, 34, 89)[n % 5],) if k is None else k
    score = 0.7 - 0.05 * math.log(max(number(tau) or 1, 0.01) / 0.1) ** 2 - 0.001 * (n % 7)
    short = n % 3 == 2
    curve = tuple((e, score - 0.3 * math.exp(-e / 2)) for e in ((2, 4) if short else (2, 4, 6, 8)))
    known = {
        "id": f"id{n}",
        "status": "stopped" if short else "finished",
        "values": {TAU: tau, TOP_K: k},
        "epoch": curve[-1][0],
        "score": curve[-1][1],
        "figures": {"knn": curve[-1][1], "probe": score},
        "quality": {
            "clusters": 10 + n % 5,
            "i_zt": 1 + n % 5 * 0.5,
            "i_zt_adjusted": 0.9 + n % 5 * 0.4,
            "h_z_t": 1.0 + n % 5,
            "h_t": 4,
        },
        "curve": curve,
        "seconds": 61.0,
    }
    return Trial(n, **(known | more))


def search(trials: list[Trial], **more: Any) -> Outcome:
    known: dict[str, Any] = {"validation": 1500, "facts": {"data": "a.parquet"}}
    known |= {"correlations": {"rank_me": 0.61, "feature_std": -0.4}, "seconds": 3820.0}
    known |= {"metric": "knn", "mode": "max", "epochs": 8, "granularity": TOP_K}
    return Outcome("beetles", trials=tuple(trials), **(known | more))


def sample(count: int = 20) -> Outcome:
    return search([trial(n, default=n == 13) for n in range(count)])


class Reader(HTMLParser):
    """Every element with its attributes; fails where tags do not balance."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {k: v or "" for k, v in attrs}))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def having(self, name: str, value: str) -> list[dict[str, str]]:
        return [a for _, a in self.elements if value in a.get(name, "").split()]


def figure(text: str, title: str) -> str:
    """One figure of a page."""
    found = re.findall(r"<figure>.*?</figure>", text, re.S)
    return next(f for f in found if f"<h2>{title}</h2>" in f)


def dots(plot: str) -> dict[int, tuple[float, float]]:
    """Trial → where its circle is."""
    pattern = r'<a class="dot" href="#trial-(\d+)".*?<circle[^>]*? cx="([\d.]+)" cy="([\d.]+)"'
    return {int(n): (float(x), float(y)) for n, x, y in re.findall(pattern, plot, re.S)}


def failed(n: int, **more: Any) -> Trial:
    error = 'Traceback:\n  line <3>\nValueError: "é" & \x1b[31m \ud800 ' + "long " * 900
    none: dict[str, Any] = {"score": None, "epoch": 0, "curve": (), "figures": {}, "quality": {}}
    return trial(n, status="failed", error=error, **(none | more))


CASES: dict[str, Outcome] = {
    "none": search([]),
    "one": search([trial(0)]),
    "failed": search([failed(n) for n in range(4)]),
    "some failed": search([trial(0), trial(1), failed(2), failed(3, score=0.5, epoch=4)]),
    "one granularity": search([trial(n, k=(5,)) for n in range(9)]),
    "equal": search([trial(0, tau=0.1, k=(5,), number=0) if n is None else
                     replace(trial(1, tau=0.1, k=(5,)), number=n) for n in range(9)]),
    "no temperature": search([trial(n, values={TOP_K: (n + 1,)}) for n in range(6)]),
    "no granularity": search([trial(n, values={TAU: 0.1 + n}) for n in range(6)], granularity=None),
    "nothing searched": search([trial(n, values={}) for n in range(3)], granularity=None),
    "no scores": search([trial(n, score=s, curve=()) for n, s in enumerate([None, math.nan])]),
    "nan": search([trial(n, score=math.nan if n % 2 else 0.5, curve=((2, math.inf), (8, 0.5)))
                   for n in range(8)]),
    "same scores": search([trial(n, score=0.5, epoch=8) for n in range(8)]),
    "perfect": search([trial(n, score=1.0, epoch=8) for n in range(8)], validation=1),
    "minimum": search([trial(n, score=-1.0 - n % 4) for n in range(9)], mode="min",
                      metric="uniformity", validation=0, correlations={}),
    "tuples": search([trial(n, k=(5, 20 + n)) for n in range(6)] + [trial(6, k=()), trial(7)]),
    "many": sample(500),
    "not positive": search([trial(n, tau=n - 2.0, k=(n,)) for n in range(6)]),
    "huge": search([trial(n, tau=10.0 ** (40 * n), k=10**n, score=1e300 * n) for n in range(8)]),
    "mixed": search([trial(n, tau=t, k=k) for n, (t, k) in enumerate(
        [("auto", 3), (0.1, None), (True, "x" * 200), (0.2, (1, 2))])]),
    "holes": search([trial(0, values={TAU: 0.1}), trial(1), trial(2, values={"train.lr": 0.1})]),
    "levels": search([trial(n, values={TAU: 0.1 + 0.01 * n, "clusters.level": (n % 4 + 1,)})
                      for n in range(9)], granularity="clusters.level"),
    "others": search([trial(n, values={TAU: 0.05 + n / 50, TOP_K: (n + 2,), "train.lr": 10.0**-n,
                                       "loss.lr": n, "model.backbone": f"net<{n % 3}>",
                                       "train.amp": n % 2 == 0}) for n in range(9)]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_any_search_gives_a_sound_page(name: str) -> None:
    outcome = CASES[name]
    text = page(outcome)
    assert text.encode() == page(outcome).encode()
    read = Reader(text)
    ids = Counter(a["id"] for _, a in read.elements if "id" in a)
    assert [i for i, times in ids.items() if times > 1] == []
    rows = {a["id"] for tag, a in read.elements if tag == "tr" and "id" in a}
    assert rows == {f"trial-{t.number}" for t in outcome.trials}
    assert {a["href"][1:] for tag, a in read.elements if tag == "a"} <= rows
    assert not {"script", "link", "iframe"} & {tag for tag, _ in read.elements}
    assert "http" not in text.replace("http-equiv", "")
    for tag, a in read.elements:
        if tag in ("circle", "text", "rect", "image", "line", "path") and "transform" not in a:
            places = [a[k] for k in ("x", "cx", "x1", "x2", "y", "cy", "y1", "y2") if k in a]
            assert all(-0.1 <= float(p) <= axes.WIDTH for p in places), (tag, a)
            assert not re.search("nan|inf", a.get("d", "") + a.get("r", ""))
        if tag == "svg":
            assert a.get("aria-hidden") == "true" or (a["role"] == "img" and a["aria-label"])
    if any(set(t.values) >= {TAU, TOP_K} for t in outcome.trials) and outcome.granularity:
        plot = figure(text, "Response surface")
        both = {t.number for t in outcome.trials if set(t.values) >= {TAU, TOP_K}}
        assert {int(n) for n in re.findall(r'href="#trial-(\d+)"', plot)} == both


def test_text_is_escaped() -> None:
    bad = "</title><script>alert('1')</script>&amp;\"é\u2028\x00"
    odd = trial(0, values={TAU: 0.1, TOP_K: 5, bad: bad}, error=bad)
    outcome = search([odd, trial(1, status="failed", error=bad)], facts={bad: bad})
    text = page(replace(outcome, name=bad, metric=bad, correlations={bad: 0.3}))
    read = Reader(text)
    assert "script" not in {tag for tag, _ in read.elements}
    assert "\0" not in text
    assert bad.replace("\0", "\ufffd") in "".join(read.words)


def test_places_are_those_of_the_values() -> None:
    outcome = sample()
    plot = figure(page(outcome), "Response surface")
    at = dots(plot)
    assert len(at) == 20
    x = [(math.log(t.values[TAU]), at[t.number][0]) for t in outcome.trials]
    y = [(math.log(t.values[TOP_K][0]), at[t.number][1]) for t in outcome.trials]
    for pairs, sign in ((x, 1), (y, -1)):
        slope, start = np.polyfit(*np.array(pairs).T, 1)
        assert slope * sign > 0
        assert all(abs(slope * v + start - pixel) < 0.15 for v, pixel in pairs)
        kind = "x" if sign == 1 else "y"
        ticks = re.findall(rf'class="{kind}" x="([\d.]+)" y="([\d.]+)">([\d.]+)<', plot)
        assert len(ticks) >= 3
        for px, py, value in ticks:
            pixel = float(px) if sign == 1 else float(py) - 4
            assert abs(slope * math.log(float(value)) + start - pixel) < 0.2
    best = max((t for t in outcome.trials if t.epoch == 8), key=lambda t: t.score or 0)
    assert outcome.best() is best
    for title in ("Response surface", "Information plane"):
        plot = figure(page(outcome), title)
        (ring,) = Reader(plot).having("class", "best")
        assert (float(ring["cx"]), float(ring["cy"])) == dots(plot)[best.number]
    (diamond,) = Reader(figure(page(outcome), "Response surface")).having("class", "default")
    assert diamond["d"].startswith(f"M{at[13][0]:.1f} ")


def test_the_answer_is_right() -> None:
    scores = [0.70, 0.695, 0.693, 0.60]  # the standard error is 0.0118
    trials = [trial(n, score=s, epoch=8, status="finished") for n, s in enumerate(scores)]
    trials += [trial(9, score=0.9, epoch=4, status="stopped")]
    trials[3] = replace(trials[3], default=True)
    text = html.unescape(re.sub("<[^>]*>", "", page(search(trials))))
    assert "Best: temperature 0.03, top-k 2 with kNN 70.0% ± 1.2%" in text
    assert "on 1,500 validation images after 8 epochs; the default configuration" in text
    assert "has 60.0%." in text
    assert "best of 4 measured scores is optimistic; 2 other trials lie within one" in text
    near = [*trials[:3], replace(trials[3], score=0.69)]
    assert "has 69.0%, and a gap of less than two standard errors" in page(search(near))
    early = [*trials[:3], replace(trials[3], epoch=2, status="stopped")]
    assert "after 2 epochs only, which does not compare" in page(search(early))
    assert "that is the default configuration" in page(search([replace(trials[0], default=True)]))


def test_the_table_ranks_whole_trials_first() -> None:
    early = trial(7, score=0.99, epoch=4, status="stopped")
    text = page(search([trial(0, score=0.5), failed(5), early, trial(1, score=0.6)]))
    rows = re.findall(r'<tr id="trial-(\d+)"[^>]*>(.*?)</tr>', text, re.S)
    assert [int(n) for n, _ in rows] == [1, 0, 7, 5]
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.S) for _, row in rows]
    assert [c[0] for c in cells] == ["1", "2", "–", "–"]
    assert cells[0][2:7] == ["finished, best", "0.0345", "5", "8/8", "60.0%"]
    assert "ValueError" in cells[3][-1]
    assert "<td class=number>0.0345</td>" in rows[0][1]


def test_low_is_bright_where_low_is_good() -> None:
    trials = [trial(n, score=-float(n), epoch=8, status="finished") for n in range(5)]
    plot = figure(page(search(trials, mode="min", metric="uniformity")), "Response surface")
    fills = dict(re.findall(r'href="#trial-(\d)".*?fill="(#\w+)"', plot, re.S))
    assert fills["4"] == surface.colour(1) == "#fde725"
    assert fills["0"] == surface.colour(0) == "#440154"


def test_why_there_is_no_information_plane() -> None:
    unlabelled = {"clusters": 5, "i_zt": None, "i_zt_adjusted": None, "h_z_t": None, "h_t": None}
    plot = figure(
        page(search([trial(n, quality=unlabelled) for n in range(3)])), "Information plane"
    )
    assert "no label is known" in plot
    assert "<svg" not in plot
    plot = figure(page(search([trial(n, quality={}) for n in range(3)])), "Information plane")
    assert "did not exist before training" in plot


def test_every_trial_of_the_same_clusters_is_seen() -> None:
    text = page(sample())
    at = list(dots(figure(text, "Information plane")).values())
    assert len(at) == 20
    assert min(math.dist(a, b) for i, a in enumerate(at) for b in at[:i]) > 5
    for k in ("2", "5", "13", "34", "89"):
        assert f">{k}</text>" in figure(text, "Information plane")


def test_the_surface_fades_and_follows_the_scores() -> None:
    points = np.array([[0.1, 0.1], [0.2, 0.1], [0.1, 0.2], [0.2, 0.2], [0.3, 0.3]])
    flat = surface.surface(points, np.full(5, 0.4), np.ones(5))
    assert flat is not None
    assert (flat[..., :3] == surface.rgb(np.array(0.4)).round()).all()
    assert flat[-12, 15, 3] > 250  # near the points, which lie at the bottom on the left
    assert flat[0, -1, 3] == 0
    rng = np.random.default_rng(0)
    points = rng.random((60, 2))
    image = surface.surface(points, points[:, 0], np.ones(60))
    assert image is not None
    for share in (0.2, 0.5, 0.8):
        seen = image[45, int(share * 119), :3].astype(float)
        assert np.abs(seen - surface.rgb(np.array(share))).max() < 40
    assert surface.surface(points[:3], points[:3, 0], np.ones(3)) is None
    assert surface.surface(np.zeros((0, 2)), np.zeros(0), np.zeros(0)) is None


@pytest.mark.parametrize(
    ("low", "high", "log"),
    [(0.03, 0.5, True), (2, 89, True), (1, 1e6, True), (0.11, 0.13, True), (0, 1, False),
     (-3e-5, 2e-5, False), (7, 7, False), (7, 7, True), (0, 0, True), (1e-300, 1e300, True)],
)  # fmt: skip
def test_ticks(low: float, high: float, log: bool) -> None:
    axis = axes.Axis.over("", [low, high], (100, 400), log=log)
    assert 100 < axis.at(low) <= axis.at(high) < 400
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 8
    assert all(100 <= at <= 400.001 for at, _ in ticks)
    assert len({text for _, text in ticks}) == len(ticks)
    assert min(np.diff([at for at, _ in ticks])) > 20


BROWSERS = ("chromium", "chromium-browser", "google-chrome")
MEASURE = """<script>addEventListener("load", () => {
  const at = e => { const b = e.getBoundingClientRect();
                    return [b.x + b.width / 2, b.y + b.height / 2] };
  const found = { width: document.documentElement.scrollWidth, view: innerWidth, dots: [],
    bar: (b => [b.x + b.width / 2, b.y, b.bottom])(
      document.querySelector('rect[fill="url(#surface-bar)"]').getBoundingClientRect()),
    rows: document.querySelectorAll("tbody tr[id]").length, texts: [] };
  for (const c of document.querySelector("figure").querySelectorAll("circle.full"))
    if (c.closest("a")) found.dots.push([...at(c), c.getAttribute("fill")]);
  for (const svg of document.querySelectorAll("svg[role=img]")) {
    const frame = svg.getBoundingClientRect();
    for (const t of svg.querySelectorAll("text.x, text.y, text.bar, text.axis")) {
      const b = t.getBoundingClientRect();
      found.texts.push([t.className.baseVal, b.x, b.y, b.right, b.bottom, frame.x, frame.right]);
    }
  }
  parent.document.title = JSON.stringify(found);
})</script>"""


def browse(folder: Path, file: Path, *flags: str) -> str:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser: {', '.join(BROWSERS)}")
    profile = folder / f"profile{len(list(folder.iterdir()))}"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"]
    command += ["--no-first-run", "--disable-background-networking", "--disable-component-update"]
    command += ["--disable-sync", "--hide-scrollbars", f"--user-data-dir={profile}", *flags]
    run = subprocess.run([*command, file.as_uri()], capture_output=True, timeout=120, check=True)
    return run.stdout.decode()


def close(pixel: Any, colour: str, within: int = 6) -> bool:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return max(abs(int(a) - b) for a, b in zip(pixel, wanted, strict=True)) <= within


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize(("scheme", "paper"), [(1, "#ffffff"), (0, "#14181d")])
def test_in_a_browser(tmp_path: Path, width: int, scheme: int, paper: str) -> None:
    outcome = sample()
    whole = page(outcome).replace("</body>", MEASURE + "</body>")
    # a window has a least width, a frame has none
    frame = f'<!DOCTYPE html><body style="margin:0"><iframe srcdoc="{html.escape(whole)}" '
    frame += f'style="border:0;width:{width}px;height:3000px"></iframe>'
    file = tmp_path / "page.html"
    file.write_text(frame, encoding="utf-8")
    flags = ["--window-size=1200,3000", f"--blink-settings=preferredColorScheme={scheme}"]
    dom = browse(tmp_path, file, *flags, "--dump-dom")
    found = json.loads(html.unescape(re.search("<title>(.*?)</title>", dom, re.S)[1]))  # type: ignore[index]
    assert found["view"] == width
    assert found["width"] <= width
    assert found["rows"] == 20
    for i, (kind, left, top, right, bottom, start, end) in enumerate(found["texts"]):
        assert start - 1 <= left, kind
        assert right <= end + 1, kind
        for _, other_left, other_top, other_right, other_bottom, *_ in found["texts"][:i]:
            over = min(right, other_right) - max(left, other_left)
            assert over < 1 or min(bottom, other_bottom) - max(top, other_top) < 6, kind
    picture = tmp_path / "page.png"
    browse(tmp_path, file, *flags, f"--screenshot={picture}")
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    assert close(pixels[4, 4], paper, 1)
    whole_trials = [t for t in outcome.trials if t.epoch == 8]
    assert len(found["dots"]) == len(whole_trials)
    for x, y, fill in found["dots"]:
        assert close(pixels[round(y), round(x)], fill), (x, y, fill)
    x, top, bottom = found["bar"]
    assert close(pixels[round(top) + 1, round(x)], surface.colour(1), 12)
    assert close(pixels[round(bottom) - 2, round(x)], surface.colour(0), 12)


@pytest.mark.slow
def test_a_browser_keeps_the_whole_document(tmp_path: Path) -> None:
    text = page(CASES["some failed"])
    file = tmp_path / "page.html"
    file.write_text(text, encoding="utf-8")
    dom = browse(tmp_path, file, "--dump-dom")
    # what a browser repairs would show as other elements
    ours = Counter(tag for tag, _ in Reader(text).elements)
    theirs = Counter(tag.lower() for tag in re.findall(r"<([a-zA-Z]\w*)", dom))
    assert theirs == ours
