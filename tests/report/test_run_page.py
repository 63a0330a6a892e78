"""The page of runs: what it says, for any finished run, and how it looks in a browser."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from browser import measured
from torchvision.io import encode_jpeg

from wcl_ray.clusters.assignment import Assignment
from wcl_ray.errors import UserError
from wcl_ray.evaluate.choice import ExampleChoice, sheets_of
from wcl_ray.evaluate.embed import THUMBNAIL
from wcl_ray.evaluate.examples import FILE as EXAMPLES
from wcl_ray.evaluate.examples import Examples
from wcl_ray.report.maps import flat
from wcl_ray.report.neighbours import page as neighbours_page
from wcl_ray.report.plots import thinned
from wcl_ray.report.read import read_run
from wcl_ray.report.run import page, report_runs
from wcl_ray.runs.neighbours import Neighbour, Neighbours
from wcl_ray.storage import Folder

STORED = Path(__file__).parents[1] / "runs/stored/run"
EVIL = "</script><script>alert('1')</script>&amp;\"é"


def embedded(ids: np.ndarray, labels: bool = True, seed: int = 0) -> pa.Table:
    """Embedded images of four classes, every seventh with the features of another class."""
    rng = np.random.default_rng(seed)
    classes = np.arange(len(ids)) % 4
    seen = np.where(np.arange(len(ids)) % 7 == 3, (classes + 1) % 4, classes)
    features = np.eye(4, 16)[seen] + rng.normal(0, 0.05, (len(ids), 16))
    blots = torch.tensor(rng.integers(0, 256, (len(ids), 3, 20, 20)), dtype=torch.uint8)
    large = torch.nn.functional.interpolate(blots.float(), (80, 80), mode="bicubic").clamp(0, 255)
    pictures = [encode_jpeg(p, quality=80).numpy().tobytes() for p in large.to(torch.uint8)]
    flat_features = pa.array(features.astype(np.float32).reshape(-1))
    columns = {
        "__id": pa.array(ids),
        "__key": pa.array([f"{i}.jpg" for i in ids]),
        "feature": pa.FixedSizeListArray.from_arrays(flat_features, 16),
        THUMBNAIL: pa.array(pictures, pa.binary()),
    }
    if labels:
        columns["species"] = pa.array([f"{EVIL}{c}" if c == 3 else f"s{c}" for c in classes])
    return pa.table(columns)


def choose(clusters: Assignment, labels: bool = True) -> Examples:
    train = embedded(clusters.ids, labels)
    test = embedded(np.arange(1000, 1040), labels, 1) if labels else None
    choice = ExampleChoice.among(clusters, (len(train), 40), 0)
    return choice.choose(train, test, "species" if labels else None)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A run that has finished: the stored clusters, with results and examples."""
    shutil.copytree(STORED, tmp_path / "one")
    folder = Folder(str(tmp_path / "one"))
    clusters = Assignment.from_parquet(folder.read("rounds/000/assignment.parquet"))
    words = {clusters.names[0]: dict.fromkeys(range(6), f"marks has {EVIL}")}
    folder.write("examples.parquet", choose(clusters).with_words(words).to_parquet())
    figures = {"knn": 0.9, "probe": 0.94, "classes": 4, "majority": 0.3, "rank_me": 9.0}
    figures |= {"test_images": 40, "train_images": 83, "clusters": 6, "train_seconds": 61.0}
    simclr = {**figures, "knn": 0.35, "probe": 0.6, "clusters": 0}
    variants = {"attributes": figures, "SimCLR": simclr}
    environment = {"versions": {"torch": "2"}, "platform": EVIL, "nodes": 1, "cpus": 2.0,
                   "gpus": 0.0, "accelerators": [], "memory": 10**9}  # fmt: skip
    results = {"variants": variants, "seconds": 99.0, "usage": {}, "environment": environment}
    folder.write("results.json", json.dumps(results).encode())
    rows: list[dict[str, Any]] = [
        {"epoch": (s - 1) // 9, "share": (s - 1) % 9 / 9 + 1 / 9, "step": s, "loss": 5 - s / 9,
         "positives": 4.2, "lr": 1e-3, "images_per_second": 100.0, "data_wait": 0.01}
        for s in range(1, 19)
    ]  # fmt: skip
    rows.append({"epoch": 0, "step": 9, "knn": 0.5})
    log = "".join(json.dumps(row) + "\n" for row in rows).encode()
    for place in (folder, folder / "baseline"):
        place.write("metrics.jsonl", log)
    (folder / "baseline").write("examples.parquet", choose(clusters.as_singletons()).to_parquet())
    return folder


def text_of(folder: Folder) -> str:
    """The page without plotly's script."""
    return re.sub(r"<script>/\*\*.*?</script>", "", page([read_run(folder)]), flags=re.S)


def plot(text: str, title: str) -> dict[str, Any]:
    figures = re.findall("<figure><h2>.*?</figure>", text, re.S)
    whole = next(f for f in figures if f"<h2>{title}</h2>" in f)
    found = re.search(r'json">(.*?)</script>', whole, re.S)
    assert found is not None
    return dict(json.loads(found[1]))


def test_the_page_tells_the_result(folder: Folder) -> None:
    text = text_of(folder)
    assert "<strong>kNN 90.0% and linear probe 94.0%</strong> on 40 test images" in text
    assert "To compare: SimCLR 35.0% and 60.0%; chance 25.0%; commonest class 30.0%." in text
    bars = plot(text, "kNN and linear probe")["data"]
    assert {bar["name"]: bar["x"] for bar in bars} == {
        "kNN": [0.35, 0.9],
        "linear probe": [0.6, 0.94],
    }
    loss = plot(text, "Loss")["data"][0]
    assert (loss["x"][-1], loss["y"][-1]) == pytest.approx((2.0, 3.0))
    assert plot(text, "Accuracy during training")["data"][0]["y"] == [0.5]
    point = plot(text, "Information plane")["data"][0]
    assert (point["x"], point["y"]) == (
        pytest.approx([1.5816], abs=1e-4),
        pytest.approx([1.0016], abs=1e-4),
    )
    sizes = plot(text, "Sizes of the clusters")["data"][0]
    assert sum(sizes["y"]) == 83
    assert len(plot(text, "SimCLR, PCA")["data"]) == 4


def test_names_are_escaped(folder: Folder) -> None:
    text = text_of(folder)
    assert "<script>alert" not in text
    assert "marks has &lt;/script&gt;&lt;script&gt;alert" in text


def without(name: str) -> Callable[[Folder], None]:
    return lambda folder: folder.delete(name)


def unlabelled(folder: Folder) -> None:
    clusters = Assignment.from_parquet(folder.read("rounds/000/assignment.parquet"))
    folder.write("examples.parquet", choose(clusters, labels=False).to_parquet())
    figures = {"attributes": {"rank_me": 3.0, "train_images": 83, "test_images": 0}}
    folder.write("results.json", json.dumps({"variants": figures, "seconds": 9.0}).encode())
    summary = json.loads(folder.read("rounds/000/clusters.json"))
    none = dict.fromkeys(("h_t", "i_zt", "h_z_t"))
    summary["quality"] = [q | none for q in summary["quality"]]
    folder.write("rounds/000/clusters.json", json.dumps(summary).encode())


def singletons(folder: Folder) -> None:
    clusters = Assignment.from_parquet(folder.read("rounds/000/assignment.parquet"))
    alone = clusters.as_singletons()
    folder.write("rounds/000/assignment.parquet", alone.to_parquet())
    folder.write("rounds/000/clusters.json", b'{"quality": []}')
    folder.write("examples.parquet", choose(alone).to_parquet())


def not_evaluated(folder: Folder) -> None:
    folder.write("results.json", json.dumps({"variants": {}, "seconds": 1.0}).encode())
    folder.delete("examples.parquet")


def rounds(folder: Folder) -> None:
    clusters = Assignment.from_parquet(folder.read("rounds/000/assignment.parquet"))
    fine = np.arange(83, dtype=np.int32)[:, None] % 20
    both = replace(clusters, clusters=np.hstack([clusters.clusters, fine]), names=("k-6", "k-20"))
    summary = json.loads(folder.read("rounds/000/clusters.json"))
    later = [q | {"name": name} for q in summary["quality"] for name in both.names]
    folder.write("rounds/001/assignment.parquet", both.to_parquet())
    folder.write("rounds/001/clusters.json", json.dumps({"quality": later}).encode())
    folder.write("examples.parquet", choose(both).to_parquet())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("examples.parquet"), "has no examples.parquet"),
        (without("metrics.jsonl"), "SimCLR"),
        (without("rounds/000/clusters.json"), "Sizes of the clusters"),
        (unlabelled, "There is no label"),
        (singletons, "Every image is a cluster of its own, so there is nothing to show"),
        (not_evaluated, "was not evaluated"),
        (rounds, "<h3>k-20</h3>"),
    ],
)
def test_any_finished_run_has_a_page(
    folder: Folder, change: Callable[[Folder], None], words: str
) -> None:
    change(folder)
    text = text_of(folder)
    assert words in text
    if change is unlabelled:  # colours are clusters
        names = [trace["name"] for trace in plot(text, "attributes, PCA")["data"]]
        assert names == [f"cluster {k}" for k in range(6)]


def test_folders_without_a_finished_run(folder: Folder, tmp_path: Path) -> None:
    folder.delete("results.json")
    out = str(tmp_path / "page.html")
    with pytest.raises(UserError, match=r"one is not finished: it has no results.json"):
        report_runs([folder.uri], out)
    with pytest.raises(UserError, match="is not a run folder"):
        report_runs([str(tmp_path)], out)
    folder.write("results.json", b"{}")
    with pytest.raises(UserError, match=r"one/results.json is damaged"):
        report_runs([folder.uri], out)
    folder.write("results.json", b'{"variants": {"attributes": {}}}')
    folder.write("examples.parquet", b"PAR1")
    with pytest.raises(UserError, match=r"one/examples.parquet is damaged"):
        report_runs([folder.uri], out)
    with pytest.raises(UserError, match=r"--out .* is a folder"):
        report_runs([folder.uri], str(tmp_path))
    assert not Path(out).exists()


def test_a_run_in_an_object_store(folder: Folder, s3: str) -> None:
    remote = Folder("s3://bugs/runs/paged", s3)
    for name in ("config.json", "results.json", "examples.parquet", "metrics.jsonl"):
        remote.write(name, folder.read(name))
    assert report_runs([remote.uri], None, s3) == "s3://bugs/runs/paged/report.html"
    assert b"kNN 90.0%" in remote.read("report.html")


def test_examples_are_those_that_they_are_called() -> None:
    clusters = Assignment(np.arange(80), np.arange(80, dtype=np.int32)[:, None] % 4, ("label",))
    examples = Examples.from_parquet(choose(clusters).to_parquet())
    rows = examples.images.to_pylist()
    assert examples == replace(examples, images=examples.images)
    assert {s.share for s in examples.sheets} == {1.0}  # the clusters are the classes
    assert all({rows[r]["label"] for r in s.rows} == {s.label} for s in examples.sheets)
    on_map = [row for row in rows if row["feature"] is not None]
    assert len(on_map) == 40
    assert all(row["test"] for row in on_map)
    wrong = [q for q in examples.queries if q.mistake]
    # the images whose features are those of another class, 3, 10, 17 …
    assert {rows[q.row]["id"] % 1000 % 7 for q in wrong} == {3}
    assert examples.mistakes >= len(wrong) > 0
    for query in examples.queries:
        assert not any(rows[n]["test"] for n in query.neighbours)
        assert list(query.similarities) == sorted(query.similarities, reverse=True)
    assert len({rows[q.row]["label"] for q in examples.queries if not q.mistake}) == 4


def test_images_are_not_their_own_neighbours() -> None:
    clusters = Assignment(np.arange(30), np.zeros((30, 1), np.int32), ("k",))
    examples = choose(clusters, labels=False)
    assert examples.mistakes is None
    assert all(q.row not in q.neighbours for q in examples.queries)


def test_the_examples_are_few() -> None:
    ids = np.arange(5000)
    levels = np.stack([ids % k for k in (2, 5, 9, 30, 80, 99)], 1).astype(np.int32)
    clusters = Assignment(ids, levels, tuple("abcdef"))
    choice = ExampleChoice.among(clusters, (len(ids), 0), 0)
    examples = choice.choose(embedded(ids), None, "species")
    assert list(dict.fromkeys(s.granularity for s in examples.sheets)) == ["a", "c", "d", "f"]
    assert examples.images.num_rows < 850
    assert choice.pictured(True)(ids).all()
    many = replace(choice, counts=(40_000, 0)).pictured(False)(np.arange(40_000))
    assert 9000 < many.sum() < 11_000


def test_a_choice_holds_only_the_clusters_of_pictured_images() -> None:
    """And chooses what it would with those of all images."""
    ids, total = np.arange(1000), 40_000
    clusters = Assignment(ids, (ids[:, None] % 7).astype(np.int32), ("a",))
    few = ExampleChoice.among(clusters, (total, 0), 0)
    assert 0 < len(few.clusters.ids) < len(ids)
    train = embedded(ids)
    shown = pa.array(few.pictured(False)(ids))
    pictures = pc.if_else(shown, train[THUMBNAIL], pa.scalar(None, pa.binary()))
    train = train.set_column(train.column_names.index(THUMBNAIL), THUMBNAIL, pictures)
    whole = replace(few, clusters=clusters).choose(train, None, "species")
    chosen = few.choose(train, None, "species")
    assert chosen.sheets == whole.sheets
    assert chosen.sheets[0].size == clusters.sizes()[chosen.sheets[0].cluster]
    assert chosen.images["cluster"].equals(whole.images["cluster"])


def test_sheets_of_clusters() -> None:
    of_bank = np.repeat([0, 1, 2, 3, -1], [20, 12, 8, 2, 5])
    labels = [*["a", "b"] * 10, *["a"] * 12, *["a"] * 6, None, None, *["c"] * 2, *["a"] * 5]
    sheets = {s.cluster: s for s in sheets_of("k", np.array([20, 12, 8, 2]), of_bank, labels)}
    assert sheets[0].reasons == ("largest", "most mixed")
    assert sheets[1].reasons == ("largest", "purest", "most mixed")
    assert sheets[3].reasons == ("smallest",)
    assert (sheets[0].share, sheets[2].label, sheets[2].share) == (0.5, "a", 1.0)
    assert sheets_of("k", np.array([], int), of_bank[:0], []) == []


def test_the_map_keeps_what_is_flat() -> None:
    angle = np.linspace(0, 1, 9)
    x = np.stack([np.cos(angle), np.sin(angle), 0 * angle], 1)
    xy = flat(x)
    distances = np.linalg.norm(xy[:, None] - xy, axis=2)
    assert distances == pytest.approx(np.linalg.norm(x[:, None] - x, axis=2))
    assert flat(np.ones((3, 4))) == pytest.approx(np.zeros((3, 2)))
    points = [(float(i), 0.0) for i in range(1000)]
    assert (thinned(points)[0], thinned(points)[-1]) == (points[0], points[-1])
    assert thinned([]) == []


MEASURE = """<script>
const errors = [];
addEventListener("error", e => errors.push(e.message || "a file is missing"), true);
addEventListener("unhandledrejection", e => errors.push(String(e.reason)));
const report = console.error; console.error = (...a) => { errors.push(a.join(" ")); report(...a) };
addEventListener("load", () => setTimeout(() => {
  const cut = [];
  for (const svg of document.querySelectorAll("svg.main-svg")) {
    const frame = svg.getBoundingClientRect();
    for (const t of svg.querySelectorAll("text")) {
      const b = t.getBoundingClientRect();
      if (b.width && (b.left < frame.left - 1 || b.right > frame.right + 1 ||
          b.top < frame.top - 1 || b.bottom > frame.bottom + 1)) cut.push(t.textContent);
    } }
  const images = [...document.images], plots = [...document.querySelectorAll(".plot")];
  const links = [...document.querySelectorAll("nav a, a.skip")];
  const reached = links.filter(a => { a.focus(); if (document.activeElement !== a) return false;
    a.click(); return document.activeElement.id === a.hash.slice(1) ||
      location.hash === a.hash });
  const map = document.querySelector(".plot.map"); let tip = null;
  if (map) { map.focus(); map.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
    tip = { shown: !document.querySelector(".tip").hidden, focus: document.activeElement === map,
      alt: document.querySelector(".tip img")?.alt };
    const { xaxis, yaxis } = map._fullLayout, trace = map.data[1];
    const box = map.getBoundingClientRect();
    tip.expected = trace.text[2].replace("&amp;", "&");
    map.querySelector(".nsewdrag").dispatchEvent(new MouseEvent("mousemove", { bubbles: true,
      clientX: box.left + xaxis._offset + xaxis.d2p(trace.x[2]),
      clientY: box.top + yaxis._offset + yaxis.d2p(trace.y[2]) })) }
  setTimeout(() => { parent.document.title = JSON.stringify({ errors, cut, tip,
    width: document.documentElement.scrollWidth, view: innerWidth,
    images: images.length, broken: images.filter(i => !i.naturalWidth).length,
    hovered: document.querySelector(".tip img")?.alt,
    silent: images.filter(i => !i.alt).length, links: links.length, reached: reached.length,
    tips: [...document.querySelectorAll(".tip img")].filter(i => i.naturalWidth).length,
    dark: getComputedStyle(document.body).backgroundColor,
    plots: plots.length, drawn: plots.filter(p => p.querySelector(".xy")).length }) }, 300);
}, 1500))</script>"""


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, 1), (390, 0)])
def test_in_a_browser(folder: Folder, tmp_path: Path, width: int, scheme: int) -> None:
    rounds(folder)
    text = page([read_run(folder)])
    assert len(text.encode()) < 10e6
    found = measured(tmp_path, text, MEASURE, width, scheme)
    assert found["errors"] == []
    assert found["cut"] == []
    assert (found["view"], found["width"]) == (width, width)
    assert found["images"] > 100
    assert (found["broken"], found["silent"]) == (0, 0)
    assert found["reached"] == found["links"] == 8
    assert found["drawn"] == found["plots"] >= 10
    assert found["tip"]["shown"]
    assert found["tip"]["focus"]
    assert ".jpg" in found["tip"]["alt"]
    assert found["hovered"] == found["tip"]["expected"] != found["tip"]["alt"]
    assert found["tips"] == 1
    assert found["dark"] == ("rgb(255, 255, 255)" if scheme else "rgb(20, 24, 29)")


@pytest.mark.slow
def test_runs_side_by_side(folder: Folder, tmp_path: Path) -> None:
    other = tmp_path / "two/one"
    shutil.copytree(folder.path, other)
    out = str(tmp_path / "both.html")
    report_runs([folder.uri, str(other), folder.uri], out)
    text = Path(out).read_text()
    for name in ("one", "one (2)", "one (3)"):
        assert f"<h3>{name}</h3>" in text
    bars = plot(text, "kNN and linear probe")["data"]
    assert bars[0]["y"][::-1] == ["one", "one, SimCLR", "one (2)", "one (2), SimCLR", "one (3)",
                                  "one (3), SimCLR"]  # fmt: skip
    assert len(text.encode()) < 10e6
    found = measured(tmp_path, text, MEASURE, 390, 1)
    assert found["errors"] == found["cut"] == []
    assert found["width"] == 390
    assert found["broken"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, 0), (390, 1)])
def test_neighbours_in_a_browser(folder: Folder, tmp_path: Path, width: int, scheme: int) -> None:
    examples = Examples.from_parquet(folder.read(EXAMPLES))
    jpegs = examples.images["thumbnail"].to_pylist()[:9]
    images = [
        Neighbour(f"<b>{n}" + "x" * 60, 1 - n / 10, {"tags": ["a", "b"], "size": None}, jpeg)
        for n, jpeg in enumerate(jpegs)
    ]
    text = neighbours_page(Neighbours(images[0], images[1:], 1000), "features")
    assert "<dd>a, b</dd>" in text
    assert "<b>" not in text
    found = measured(tmp_path, text, MEASURE, width, scheme)
    assert found["errors"] == []
    assert found["width"] == width
    assert (found["images"], found["broken"], found["silent"]) == (9, 0, 0)
    assert found["dark"] == ("rgb(255, 255, 255)" if scheme else "rgb(20, 24, 29)")
