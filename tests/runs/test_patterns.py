"""The words of clusters on the page of a run."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pictures import columns, write_parquet

from wcl_ray.clusters.binarise import Attribute
from wcl_ray.clusters.kinds.attributes import Attributes, pattern_words
from wcl_ray.clusters.kinds.hierarchy import Hierarchy
from wcl_ray.clusters.views import View
from wcl_ray.config import ClustersConfig, Config, DataConfig
from wcl_ray.data.images import open_images
from wcl_ray.evaluate.examples import Examples, Sheet
from wcl_ray.runs.clusters import _summary, build_clusters
from wcl_ray.runs.patterns import name_clusters, stored_attribute
from wcl_ray.storage import Folder

N = 48


def test_words_of_a_pattern() -> None:
    attributes = [
        Attribute("marks", "has", "ring", 0.5, 1.0),
        Attribute("colour", "is", "red", 0.3, 0.9),
        Attribute("day", "in", "winter", 0.3, 0.9, View(("day",), "season")),
    ]
    stored = json.loads(json.dumps([asdict(a) for a in attributes]))
    assert [stored_attribute(s) for s in stored] == attributes
    kind = Attributes(ClustersConfig(top_k=(1, 2)), None, ("marks", "colour"))
    kind.chosen = attributes[:2]
    table = pa.table(
        {"marks": [["ring", "spot"], ["spot"], [], None], "colour": ["red", "red", "blue", None]}
    )
    assert [texts.to_pylist() for texts in kind.words(table)] == [
        ["marks has ring", "none of the attributes", None, None],
        [
            "marks has ring, colour is red",
            "colour is red; not: marks has ring",
            "none of the attributes",
            None,
        ],
    ]


def test_words_of_thresholds() -> None:
    """Those next to the value say all."""
    above = [Attribute("size", "above", value, 0.5, 1.0) for value in (2, 5, 9)]
    words = [pattern_words([(a, size > a.value) for a in above]) for size in (1, 4, 7, 10)]
    assert words == [
        "none of the attributes",
        "size above 2; not: size above 5",
        "size above 5; not: size above 9",
        "size above 9",
    ]


def test_words_of_an_ancestor() -> None:
    config = ClustersConfig(kind="hierarchy", columns=("a", "b"), level=(1, 2))
    kind = Hierarchy(config, None, ("a", "b"))
    texts = kind.words(pa.table({"a": ["x", "x", None], "b": ["y", None, "z"]}))
    assert [t.to_pylist() for t in texts] == [["x", "x", None], ["x › y", "x", None]]


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize(
    ("clusters", "words"),
    [
        (ClustersConfig(columns=("colour", "marks"), top_k=(2, 5)), "is"),
        (ClustersConfig(kind="hierarchy", columns=("colour", "size")), "›"),
        (ClustersConfig(kind="label"), "s"),
        (ClustersConfig(kind="instance"), None),
    ],
)
def test_clusters_are_named_by_what_their_images_share(
    clusters: ClustersConfig, words: str | None, tmp_path: Path
) -> None:
    path = write_parquet(tmp_path / "data", N)
    config = Config(data=DataConfig(path=path, label="species"), clusters=clusters)
    images = open_images(config.data, str(tmp_path), 0)
    clustering, quality = build_clusters(config, images, show=False, strict=False)
    table, run = clustering.assignment, Folder(str(tmp_path / "run"))
    run.write("rounds/000/clusters.json", _summary(clustering, quality))
    sheets = tuple(
        Sheet(name, k, ("largest",), 1, (int(np.flatnonzero(table.clusters[:, g] == k)[0]),))
        for g, name in enumerate(table.names)
        for k in range(min(3, table.clusters[:, g].max(initial=-1) + 1))
    )
    examples = Examples(pa.table({"id": table.ids}), sheets)
    named = name_clusters(examples, clusters, table.names, images, run)
    assert (len(named.sheets) > 0) == (words is not None)
    facts = dict(enumerate(pa.table(columns(N)).to_pylist()))
    for sheet in named.sheets:
        assert sheet.words is not None
        row = facts[int(table.ids[sheet.rows[0]])]
        if clusters.kind == "label":
            assert sheet.words == row["species"]
        elif clusters.kind == "hierarchy":
            assert sheet.words == f"{row['colour']} › {row['size']:g}"
        else:
            true, _, others = sheet.words.partition("; not: ")
            for text in filter(None, (true, others)):
                for mark in ("ring", "spot"):
                    if f"has {mark}" in text:
                        assert (mark in row["marks"]) == (text is true)
                for colour in ("red", "green", "blue"):
                    if f"colour is {colour}" in text:
                        assert (colour == row["colour"]) == (text is true)
    assert replace(named, sheets=()) == replace(examples, sheets=())
