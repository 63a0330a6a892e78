"""The page of a search: right numbers at the right places, for any trials, and in a browser."""

from __future__ import annotations

import html
import json
import math
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browser import measured
from plotly.offline import get_plotlyjs

from wcl_ray.report.search import SCRIPT, page
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
    known: dict[str, Any] = {"validation": 1500, "details": {"data": "a.parquet"}}
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


def figure(text: str, title: str) -> dict[str, Any]:
    """One figure of a page: its traces and its layout."""
    whole = next(
        f for f in re.findall("<figure>.*?</figure>", text, re.S) if f"<h2>{title}</h2>" in f
    )
    return json.loads(re.search(r'json">(.*?)</script>', whole, re.S)[1])  # type: ignore[index]


def named(plot: dict[str, Any], name: str) -> dict[str, Any]:
    return next(t for t in plot["data"] if t.get("name") == name)


def dots(plot: dict[str, Any]) -> dict[int, tuple[Any, Any]]:
    """Trial -> its place."""
    marks = [t for t in plot["data"] if "customdata" in t]
    return {n: (x, y) for t in marks for n, x, y in zip(t["customdata"], t["x"], t["y"])}  # noqa: B905


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
    "confirmed": search([trial(n) for n in range(6)], confirmed=search([
        trial(n, score=s, epoch=20, status="finished", default=n % 2 == 0, id=f"full{n}",
              values={TAU: 0.1 + n % 2 / 7, TOP_K: (5, 20), "train.lr": 0.00123, "seed": n // 2})
        for n, s in enumerate([0.6, 0.7, 0.61, math.nan])])),
    "others": search([trial(n, values={TAU: 0.05 + n / 50, TOP_K: (n + 2,), "train.lr": 10.0**-n,
                                       "loss.lr": n, "model.backbone": f"net<{n % 3}>",
                                       "train.amp": n % 2 == 0}) for n in range(9)]),
}  # fmt: skip


@pytest.mark.slow
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
    assert [a["src"] for tag, a in read.elements if "src" in a] == [SCRIPT]
    assert not {"link", "iframe"} & {tag for tag, _ in read.elements}
    bare = re.sub(r'<script type="application/json">.*?</script>', "", text, flags=re.S)
    assert "http" not in bare
    if any(set(t.values) >= {TAU, TOP_K} for t in outcome.trials) and outcome.granularity:
        both = {t.number for t in outcome.trials if set(t.values) >= {TAU, TOP_K}}
        assert set(dots(figure(text, "Response surface"))) == both


def test_text_is_escaped() -> None:
    bad = "</title><script>alert('1')</script>&amp;\"é\u2028\x00"
    odd = trial(0, values={TAU: 0.1, TOP_K: 5, bad: bad}, error=bad)
    outcome = search([odd, trial(1, status="failed", error=bad)], details={bad: bad})
    text = page(replace(outcome, name=bad, metric=bad, correlations={bad: 0.3}))
    read = Reader(text)
    assert "<script>alert" not in text
    tips = [tip for t in figure(text, "Response surface")["data"] for tip in t.get("text", ())]
    assert tips
    assert all("<script>" not in tip for tip in tips)
    assert "\0" not in text
    assert bad.replace("\0", "\ufffd") in "".join(read.words)


def test_the_answer_is_right() -> None:
    scores = [0.70, 0.695, 0.693, 0.60]  # the standard error is 0.0118
    trials = [trial(n, score=s, epoch=8, status="finished") for n, s in enumerate(scores)]
    trials += [trial(9, score=0.9, epoch=4, status="stopped")]
    trials[3] = replace(trials[3], default=True)
    text = html.unescape(re.sub("<[^>]*>", "", page(search(trials))))
    assert "Best trial: temperature 0.03, top-k 2 with kNN 70.0% ± 1.2%" in text
    assert "on 1,500 validation images after 8 epochs." in text
    assert "Temperature 0.03, top-k 2 is better than the defaults: knn 70.0% against 60.0%" in text
    assert "best of 4 measured scores is optimistic; 2 other trials lie within one" in text
    near = [*trials[:3], replace(trials[3], score=0.69)]
    words = "defaults are within noise of the best (temperature 0.03, top-k 2): knn 70.0% against"
    assert f"{words} 69.0%, noise 2.4" in page(search(near))
    early = [*trials[:3], replace(trials[3], epoch=2, status="stopped")]
    assert "the defaults have no score after as many epochs" in page(search(early))
    assert "The defaults are the best: knn" in page(search([replace(trials[0], default=True)]))


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


def test_places_and_marks_are_those_of_the_trials() -> None:
    outcome = sample()
    plot = figure(page(outcome), "Response surface")
    assert plot["layout"]["xaxis"]["type"] == plot["layout"]["yaxis"]["type"] == "log"
    assert plot["data"][0]["type"] == "contour"
    for number_, (x, y) in dots(plot).items():
        values = outcome.trials[number_].values
        assert (x, y) == pytest.approx((values[TAU], values[TOP_K][0]))
    best = outcome.best()
    assert best is not None
    for title in ("Response surface", "Information plane"):
        plot = figure(page(outcome), title)
        assert named(plot, "best")["customdata"] == [best.number]
        assert named(plot, "default")["customdata"] == [13]
        stopped = named(plot, "stopped early")
        assert stopped["marker"]["symbol"] == "circle-open"
        assert sorted(stopped["customdata"]) == [2, 5, 8, 11, 14, 17]


def test_settings_at_full_length_are_drawn_with_their_means() -> None:
    plot = figure(page(CASES["confirmed"]), "At full length")
    default, other = (
        "<br>".join(["temperature 0.1", "top-k 5+20", "train.lr 0.00123", "default"]),
        "0.24",
    )
    assert [other in name for name in named(plot, "one seed")["x"]] == [True, False, False]
    assert named(plot, "one seed")["y"] == [0.7, 0.6, 0.61]
    mean = named(plot, "mean ± spread")
    assert mean["x"][1] == default
    assert mean["y"] == pytest.approx([0.7, 0.605])
    assert mean["error_y"]["array"] == pytest.approx([0, 0.00707], abs=1e-5)


def test_options_are_rated() -> None:
    bars = figure(page(sample(60)), "What decides")["data"][0]
    assert set(bars["y"]) == {"temperature", "top-k"}
    assert "What decides" not in page(sample(5))


def test_low_is_bright_where_low_is_good() -> None:
    low = search([trial(n, score=-float(n)) for n in range(5)], mode="min", metric="uniformity")
    for outcome, flipped in ((low, True), (sample(), False)):
        layout = figure(page(outcome), "Response surface")["layout"]
        assert layout["coloraxis"]["reversescale"] is flipped


def test_the_information_plane_shows_every_trial_and_the_bound() -> None:
    plot = figure(page(sample()), "Information plane")
    assert len(set(dots(plot).values())) == 20
    told = {a["text"] for a in plot["layout"]["annotations"]}
    assert told == {"H(T)", *(f"<b>{k}</b>" for k in (2, 5, 13, 34, 89))}
    assert plot["layout"]["shapes"][0]["y0"] == 4
    unlabelled = {"clusters": 5, "i_zt": None, "i_zt_adjusted": None, "h_z_t": None, "h_t": None}
    assert "there is no label to measure" in page(
        search([trial(n, quality=unlabelled) for n in range(3)])
    )
    assert "did not exist before" in page(search([trial(n, quality={}) for n in range(3)]))


MEASURE = """<script>
const errors = [];
addEventListener("error", e => errors.push(e.message || "a file is missing"), true);
addEventListener("unhandledrejection", e => errors.push(String(e.reason)));
addEventListener("load", () => setTimeout(() => {
  const cut = [];
  for (const svg of document.querySelectorAll("svg.main-svg")) {
    const frame = svg.getBoundingClientRect();
    for (const t of svg.querySelectorAll("text")) {
      const b = t.getBoundingClientRect();
      if (b.width && (b.left < frame.left - 1 || b.right > frame.right + 1 ||
          b.top < frame.top - 1 || b.bottom > frame.bottom + 1)) cut.push(t.textContent);
    } }
  parent.document.title = JSON.stringify({ errors, cut, view: innerWidth,
    width: document.documentElement.scrollWidth,
    plots: document.querySelectorAll(".plot").length,
    drawn: [...document.querySelectorAll(".plot")].filter(p => p.querySelector(".xy")).length,
    points: document.querySelector(".plot")?.querySelectorAll("path.point").length ?? 0,
    rows: document.querySelectorAll("tbody tr[id]").length });
}, 1500))</script>"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "width", "scheme"),
    [("sample", 400, 1), ("sample", 1200, 0), ("none", 400, 1), ("one", 400, 1),
     ("failed", 1200, 1), ("others", 400, 0), ("mixed", 400, 1), ("confirmed", 400, 0)],
)  # fmt: skip
def test_in_a_browser(tmp_path: Path, name: str, width: int, scheme: int) -> None:
    outcome = CASES.get(name) or sample()
    (tmp_path / SCRIPT).write_text(get_plotlyjs(), encoding="utf-8")
    found = measured(tmp_path, page(outcome), MEASURE, width, scheme)
    assert found["errors"] == []
    assert found["cut"] == []
    assert found["view"] == width
    assert found["width"] <= width
    assert found["drawn"] == found["plots"]
    assert found["rows"] == len(outcome.trials)
    if name == "sample":
        assert found["plots"] == 4
        assert found["points"] == 22  # the trials, the best and the default
