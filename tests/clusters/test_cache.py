"""The cache of clusterings and features: equal to what is made anew, and never in the way."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
from pictures import columns, png, write_parquet

from wcl_ray.clusters import cache
from wcl_ray.clusters.assignment import Assignment
from wcl_ray.clusters.cache import cache_folder, keep, load
from wcl_ray.clusters.metadata import Clustering
from wcl_ray.config import ClustersConfig, Config, DataConfig, ModelConfig, TrainConfig
from wcl_ray.data import fingerprint as fingerprints
from wcl_ray.data.fingerprint import covers_images, fingerprint
from wcl_ray.data.images import Images, open_images
from wcl_ray.data.sources import open_source
from wcl_ray.data.sources.base import FAULT, ID
from wcl_ray.data.stream import plan_stream
from wcl_ray.errors import UserError
from wcl_ray.evaluate import feature_cache
from wcl_ray.evaluate.feature_cache import keep_features, load_features, weights_digest
from wcl_ray.model.encoder import build_encoder, save_export, save_projector
from wcl_ray.runs import cluster as cluster_job
from wcl_ray.runs import clusters as run_clusters
from wcl_ray.runs import round_clusters, trained
from wcl_ray.runs.clusters import build_clusters
from wcl_ray.runs.fit import Scale
from wcl_ray.storage import Folder

N = 96
CLUSTERS = ClustersConfig(columns=("colour", "size", "marks"), top_k=(2, 5))


class Asked(Exception):
    """What the cache should have known was made."""


def asked(*_: Any, **__: Any) -> Any:
    raise Asked


@pytest.fixture
def config(tmp_path: Path) -> Config:
    unit = [None if n % 5 == 0 else f"u{n % 7}" for n in range(N)]
    rows = columns(N)  # some have no colour, some of these nothing at all
    changes = {
        "unit": unit,
        "id": [f"bug {n}" for n in range(N)],
        "colour": [None if n % 4 == 0 else c for n, c in enumerate(rows["colour"])],
        "marks": [None if n % 16 == 0 else m for n, m in enumerate(rows["marks"])],
        "size": [None if n % 8 == 0 else s for n, s in enumerate(rows["size"])],
    }
    data = write_parquet(tmp_path / "data", N, **changes)
    return Config(
        data=DataConfig(path=data, label="species", image_size=16),
        clusters=CLUSTERS,
        model=ModelConfig(projector=(16, 8)),
        train=TrainConfig(batch_size=24, epochs=3),
        storage=str(tmp_path / "runs"),
    )


def build(config: Config, strict: bool = False, validation: float = 0.0) -> Clustering:
    opened = open_images(config.data, config.storage, config.seed, validation)
    return build_clusters(config, opened, strict=strict, show=False)[0]


def entries(config: Config) -> list[Path]:
    folder = cache_folder(config)
    assert folder is not None
    return sorted(Path(folder.path).glob("clusters/*"))


def same(a: Clustering, b: Clustering) -> bool:
    """Equal to the last bit, types included."""
    for x, y in (
        (a.assignment.ids, b.assignment.ids),
        (a.assignment.clusters, b.assignment.clusters),
        (a.labels, b.labels),
    ):
        if x is None or y is None:
            assert x is y
            continue
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        assert np.array_equal(x, y)
    assert a.assignment.names == b.assignment.names
    assert a.assignment.keys == b.assignment.keys
    facts = [(c.classes, c.chosen, c.skipped, c.notes) for c in (a, b)]
    assert facts[0] == facts[1]
    assert list(a.skipped) == list(b.skipped)
    assert [type(x.value) for x in a.chosen] == [type(x.value) for x in b.chosen]
    return True


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize(
    ("clusters", "label"),
    [
        (CLUSTERS, "species"),
        (ClustersConfig(kind="tags", columns=("marks",), top_k=(2,)), None),
        (ClustersConfig(kind="hierarchy", columns=("colour", "size")), "species"),
        (ClustersConfig(kind="hierarchy", columns=("colour", "size"), level=(2, 1)), "species"),
        (ClustersConfig(kind="label"), "species"),
        (ClustersConfig(kind="instance"), "species"),
        (
            ClustersConfig(kind="kmeans", features="metadata", columns=("colour", "marks"), k=(3,)),
            "species",
        ),
    ],
)
def test_what_was_made_is_found_again(
    config: Config,
    clusters: ClustersConfig,
    label: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = replace(config, clusters=clusters, data=replace(config.data, label=label))
    fresh = build(replace(config, cache="none"))
    assert not Path(config.storage).exists()
    cold = build(config)
    capsys.readouterr()
    monkeypatch.setattr(Images, "metadata", asked)
    warm = build(config)
    assert same(fresh, cold)
    assert same(fresh, warm)
    said = "from the cache" in capsys.readouterr().out
    assert said == (clusters.kind != "instance")
    assert len(entries(config)) == max(1, len(clusters.level) or len(fresh.assignment.names))


@pytest.mark.usefixtures("ray_local")
def test_granularities_are_kept_one_by_one(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, ...]] = []
    real = run_clusters.cluster_metadata

    def spy(rows: Any, options: ClustersConfig, *args: Any, **kwargs: Any) -> Clustering:
        made.append(options.top_k)
        return real(rows, options, *args, **kwargs)

    monkeypatch.setattr(run_clusters, "cluster_metadata", spy)

    def at(*top_k: int, place: str | None = None) -> Clustering:
        options = replace(config.clusters, top_k=top_k)
        return build(replace(config, clusters=options, cache=place))

    most = 40  # more than there are attributes: a note says so
    at(7, 1, 2, 3, 4, 5, most - 1)
    assert made.pop() == (7, 1, 2, 3, 4, 5, most - 1)
    alone = {}
    for one in (1, 3, most - 1):
        alone[one] = at(one)
        assert not made
        assert same(alone[one], at(one, place="none"))
        made.clear()
    assert "only" in alone[most - 1].notes[-1]
    # who has no value in the columns of the first attributes is alone, whatever else was asked for
    assert len({int((c.assignment.clusters < 0).sum()) for c in alone.values()}) > 1
    both = at(most, 3, most - 1, 6)
    assert made == [(most, 6)]
    assert same(both, at(most, 3, most - 1, 6, place="none"))
    assert len(entries(config)) == 9


def test_what_an_entry_hangs_on(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []

    def note(folder: Folder, name: str) -> None:
        names.append(name)

    monkeypatch.setattr(cache, "load", note)
    monkeypatch.setattr(Images, "metadata", asked)

    def name(validation: float = 0.0, **changes: Any) -> str:
        one = replace(config, clusters=replace(config.clusters, top_k=(3,)))
        for key, value in changes.items():
            section, _, option = key.rpartition("__")
            own = getattr(one, section) if section else one
            own = replace(own, **{option: value})
            one = replace(one, **{section: own}) if section else own
        with pytest.raises(Asked):
            build(one, validation=validation)
        return names.pop()

    plain = name()
    for changes in (
        {"clusters__kernel": "faiss"}, {"clusters__group": 4}, {"clusters__k": (7,)},
        {"clusters__separator": ">"}, {"train__batch_size": 8}, {"data__image_size": 32},
        {"storage": str(tmp_path / "other")}, {"name": "x"}, {"data__endpoint": "http://x:1"},
    ):  # fmt: skip
        assert name(**changes) == plain, changes
    others: list[dict[str, Any]] = [
        {"clusters__top_k": (4,)}, {"clusters__quantiles": 3}, {"clusters__min_share": 0.2},
        {"clusters__columns": ("colour", "size")}, {"clusters__kind": "hierarchy"},
        {"data__label": None}, {"data__label": "unit"}, {"data__holdout": 0.3}, {"seed": 1},
        {"data__group": "unit"}, {"validation": 0.1}, {"data__id": "unit"},
        {"clusters__kind": "tags", "clusters__columns": ("marks",)},
    ]  # fmt: skip
    seen = [plain, *(name(**changes) for changes in others)]
    assert len(set(seen)) == len(seen)
    # without a split the seed says nothing
    assert name(data__label=None, seed=1) == name(data__label=None)
    file = tmp_path / "data/part-2.parquet"
    os.utime(file, (1, 1))
    changed = name()
    shutil.copy(file, tmp_path / "data/part-3.parquet")
    assert len({plain, changed, name()}) == 3


@pytest.mark.usefixtures("ray_local")
def test_a_hit_reads_no_metadata(config: Config, tmp_path: Path) -> None:
    """Not even a file that cannot be read any more."""
    cold = build(config)
    file = tmp_path / "data/part-2.parquet"
    stat = file.stat()
    file.write_bytes(b"x" * stat.st_size)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert same(build(config), cold)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    with pytest.raises(UserError, match="not a readable Parquet file"):
        build(config)


@pytest.mark.usefixtures("ray_local")
def test_damaged_entries_are_made_again(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    cold = build(config)
    first, second = entries(config)
    whole = first.read_bytes()
    broken = [b"", b"PAR1", whole[: len(whole) // 2], second.read_bytes()]
    for content in broken:
        first.write_bytes(content)
        capsys.readouterr()
        assert same(build(config), cold)
        printed = capsys.readouterr().out
        assert printed.count("warning: the cache entry") == 1
        assert first.name in printed
        assert same(build(config), cold)
        assert "warning" not in capsys.readouterr().out
    folder = cache_folder(config)
    assert folder is not None
    name = f"clusters/{first.name}"
    part = load(folder, name)  # of other rows, under its own name
    assert part is not None
    table = part.assignment
    keep(folder, name, replace(part, assignment=replace(table, ids=table.ids + 1)))
    assert same(build(config), cold)
    assert "contradict each other" in capsys.readouterr().out


def test_no_flipped_bit_goes_unseen(tmp_path: Path) -> None:
    folder, ids = Folder(str(tmp_path)), np.arange(5)
    table = Assignment(ids, np.zeros((5, 1), np.int32), ("a",), pa.array(list("vwxyz")))
    keep(folder, "clusters/a", Clustering(table, ids.astype(np.int32), 5, notes=("a note",)))
    whole = folder.read("clusters/a")
    assert load(folder, "clusters/a") is not None
    for place in range(0, len(whole), 3):
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        folder.write("clusters/a", bytes(content))
        assert load(folder, "clusters/a") is None, place


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize(
    ("first", "then", "words"),
    [
        ({"top_k": (1, 8)}, {"top_k": (1, 8), "columns": ("always",)}, "no column gives"),
        (
            {"kind": "hierarchy", "columns": ("always", "colour"), "level": (1, 2)},
            {"kind": "hierarchy", "columns": ("always", "colour"), "level": (1,)},
            "hierarchy-1: every image falls into one cluster",
        ),
        (
            {"kind": "hierarchy", "columns": ("always", "colour"), "level": (1, 2)},
            {"kind": "hierarchy", "columns": ("always", "colour"), "level": (1, 2, 3)},
            "level 3: the hierarchy is 2 levels deep",
        ),
        (
            {"kind": "hierarchy", "columns": ("serial",)},
            {"kind": "hierarchy", "columns": ("serial",)},
            "every image is alone",
        ),
        (
            {"kind": "tags", "columns": (), "top_k": (2,)},
            {"kind": "tags", "columns": ("colour", "marks"), "top_k": (2,)},
            "column 'colour' is no list of tags",
        ),
    ],
)
def test_errors_are_the_same(
    config: Config, tmp_path: Path, first: dict[str, Any], then: dict[str, Any], words: str
) -> None:
    rows = {"always": ["x"] * N, "serial": [f"s{n}" for n in range(N)]}
    data = write_parquet(tmp_path / "more", N, **rows)
    config = replace(config, data=replace(config.data, path=data, label=None))
    if first.get("columns") == ():  # the same columns, found and given
        table = {"colour": columns(N)["colour"], "marks": columns(N)["marks"]}
        keys = {"id": pa.array(range(N)), "image": columns(N)["image"]}
        (tmp_path / "few").mkdir()
        pa.parquet.write_table(pa.table(keys | table), tmp_path / "few/0.parquet")
        config = replace(config, data=replace(config.data, path=str(tmp_path / "few")))
    warm = replace(config, clusters=replace(config.clusters, **first))
    build(warm, strict=False)
    wrong = replace(config, clusters=replace(config.clusters, **then))
    texts = []
    for one in (replace(wrong, cache="none"), wrong, wrong):
        with pytest.raises(UserError, match=words) as caught:
            build(one, strict=True)
        texts.append(str(caught.value))
    assert len(set(texts)) == 1


@pytest.mark.usefixtures("ray_local")
def test_a_cache_that_cannot_be_written(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    config = replace(config, cache=str(tmp_path / "file/cache"))
    found = [build(config), build(config)]
    assert same(*found)
    assert capsys.readouterr().out.count("cannot be written") == 1
    assert cache_folder(replace(config, cache="none")) is None


@pytest.mark.usefixtures("ray_local")
def test_on_s3(config: Config, tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Folder("s3://bugs/cached", s3)
    for file in (tmp_path / "data").iterdir():
        store.write(file.name, file.read_bytes())
    data = replace(config.data, path="s3://bugs/cached", endpoint=s3)
    config = replace(config, data=data, cache="s3://bugs/shared")
    cold = build(config)
    source = open_source(data)
    marks = [fingerprint(source)]
    monkeypatch.setattr(fingerprints, "FEW", 0)  # one listing
    marks.append(fingerprint(open_source(data)))
    assert marks[0] == marks[1]
    monkeypatch.setattr(Images, "metadata", asked)
    assert same(build(config), cold)
    store.write("part-9.parquet", store.read("part-0.parquet"))
    assert fingerprint(source) == marks[0]  # of when it was opened
    with pytest.raises(Asked):
        build(config)


def test_images_that_a_table_names_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("data/a", "other"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "0.png").write_bytes(png(0))
    rows = f"file_name,c\na/0.png,x\n{tmp_path}/other/0.png,y\ngone.png,z\nftp://h/0.png,w\n"
    (tmp_path / "data/metadata.csv").write_text(rows)
    options = DataConfig(path=str(tmp_path / "data"))

    def mark() -> str:
        few, found = fingerprints.FEW, []
        for limit in (few, 0):
            monkeypatch.setattr(fingerprints, "FEW", limit)
            found.append(fingerprint(open_source(options)))
        monkeypatch.setattr(fingerprints, "FEW", few)
        assert found[0] == found[1]
        return found[0]

    seen = [mark()]
    for change in ("data/a/0.png", "other/0.png", "data/gone.png"):
        (tmp_path / change).write_bytes(png(len(seen)) + b" ")
        seen.append(mark())
    (tmp_path / "data/a/none.txt").write_text("not of the data")
    assert mark() == seen[-1]
    assert len(set(seen)) == 4
    assert covers_images(open_source(options))
    paths = write_parquet(tmp_path / "paths", 6, image=[f"{n}.png" for n in range(6)])
    assert not covers_images(open_source(DataConfig(path=paths)))


def features_of(count: int, parts: int) -> ray.data.Dataset:
    x = np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32)
    x[1] = np.nan
    mask = pa.array(np.arange(count) % 7 == 3)
    feature = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 3, mask=mask)
    faults = pa.array(["broken" if n % 7 == 3 else None for n in range(count)], pa.string())
    table = pa.table(
        {ID: np.arange(count)[::-1], "__key": faults, FAULT: faults, "feature": feature}
    )
    step = -(-count // parts)
    pieces = [table.slice(i, step) for i in range(0, count, step)] + [table.slice(0, 0)]
    return ray.data.from_arrow(pieces).materialize()


def rows_of(features: ray.data.Dataset) -> pa.Table:
    tables = [t for t in ray.get(features.to_arrow_refs()) if t.num_rows]
    return pa.concat_tables(tables).select([ID, FAULT, "feature"]).combine_chunks()


@pytest.mark.usefixtures("ray_local")
def test_features_come_back_as_they_were(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, own = Folder(str(tmp_path)), tmp_path / "features/x"
    assert load_features(None, "x") is None
    assert load_features(folder, "x") is None
    keep_features(folder, "x", features_of(40, 3))
    again = load_features(folder, "x")
    assert again is not None
    found, given = rows_of(again), rows_of(features_of(40, 1))
    assert found.schema == given.schema
    for name in (ID, FAULT):
        assert found[name].to_pylist() == given[name].to_pylist()
    bits = [t["feature"].combine_chunks().flatten().to_numpy().view("i4") for t in (found, given)]
    assert np.array_equal(*bits)
    assert found["feature"].is_null().to_pylist() == given["feature"].is_null().to_pylist()

    # another writer's parts do not mix with these
    done = (own / "done.json").read_bytes()
    keep_features(folder, "x", features_of(40, 5))
    assert len(json.loads((own / "done.json").read_bytes())["parts"]) == 5
    for marker in ((own / "done.json").read_bytes(), done):
        (own / "done.json").write_bytes(marker)
        table = rows_of(load_features(folder, "x") or features_of(1, 1))
        assert table[ID].to_pylist() == given[ID].to_pylist()

    part = own / json.loads(done)["parts"][1]["file"]
    whole = part.read_bytes()
    for content in (whole[:-20], b"", (own / json.loads(done)["parts"][2]["file"]).read_bytes()):
        part.write_bytes(content)
        capsys.readouterr()
        assert load_features(folder, "x") is None
        assert "they are made again" in capsys.readouterr().out
    (own / "done.json").write_text("{")
    assert load_features(folder, "x") is None
    keep_features(folder, "x", features_of(40, 2))
    assert load_features(folder, "x") is not None
    (own / "done.json").unlink()  # not written to the end
    assert load_features(folder, "x") is None
    monkeypatch.setattr(feature_cache, "LARGEST", 100)
    keep_features(folder, "y", features_of(40, 2))
    assert not (tmp_path / "features/y").exists()


def test_the_order_of_facts_in_an_export_does_not_matter() -> None:
    model = ModelConfig(projector=(16, 8))
    torch.manual_seed(0)
    encoder = build_encoder(model, 16)

    def mark() -> str:
        return weights_digest(save_export(encoder, model, 16), save_projector(encoder))

    first = mark()
    assert {mark() for _ in range(8)} == {first}
    assert weights_digest(save_export(encoder, model, 16), None) != first
    with torch.no_grad():
        next(encoder.projectors[0].parameters())[0, 0] += 1e-6
    assert mark() != first


def timeless(tree: Any) -> Any:
    """Without what hangs on the clock."""
    if isinstance(tree, dict):
        clock = ("seconds", "straggler", "rate")
        return {k: timeless(v) for k, v in tree.items() if k not in clock}
    return [timeless(v) for v in tree] if isinstance(tree, list) else tree


@pytest.mark.usefixtures("ray_local")
def test_clusters_of_features(
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clusters = ClustersConfig(kind="kmeans", k=(3, 6))
    config = replace(config, clusters=clusters, train=replace(config.train, rounds=3))
    opened = open_images(config.data, config.storage, config.seed)
    base = run_clusters.singletons(config, opened).assignment
    stream = plan_stream(opened.train.images(), base.ids, config.data)
    scale = Scale(1, 1, 1.0, False)

    def make(options: Config, shareable: bool = True) -> tuple[Any, ...]:
        run = tmp_path / "round"
        assignment, figures = round_clusters.round_clusters(
            options, opened, stream, base, Folder(str(run)), None, scale, shareable
        )
        return assignment, figures, json.loads((run / "clusters.json").read_text())

    def check(made: tuple[Any, ...], exact: bool = False) -> None:
        assert np.array_equal(made[0].ids, fresh[0].ids)
        assert np.array_equal(made[0].clusters, fresh[0].clusters)
        assert made[0].clusters.dtype == fresh[0].clusters.dtype
        assert made[0].names == fresh[0].names
        assert made[1] == fresh[1]
        assert timeless(made[2]) == timeless(fresh[2])

    shutil.rmtree(config.storage, ignore_errors=True)
    fresh = make(replace(config, cache="none"))
    assert not Path(config.storage).exists()
    check(make(config, shareable=False))
    place = Path(config.storage) / "cache"
    assert not (place / "features").exists()
    (entry,) = place.glob("kmeans/*")
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(round_clusters, "embed", asked)
        patch.setattr(round_clusters, "cluster_features", asked)
        patch.setattr(Images, "metadata", asked)  # the labels, too
        check(make(config))
        assert "kmeans-3, kmeans-6 from the cache" in capsys.readouterr().out
        for other in (
            replace(config, seed=1),
            replace(config, clusters=replace(clusters, k=(3,))),
            replace(config, clusters=replace(clusters, features="backbone")),
            replace(config, data=replace(config.data, store_size=32)),
        ):
            with pytest.raises(Asked):
                make(other)
    entry.unlink()
    check(make(config))  # features are kept
    entry.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(round_clusters, "embed", asked)
        check(make(config))
        made = make(replace(config, clusters=replace(clusters, k=(5,))))
        assert made[0].names == ("kmeans-5",)
    assert capsys.readouterr().out.count("features  from the cache") == 2


@pytest.mark.usefixtures("ray_local")
def test_clusters_of_a_run(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(config.model, 16)
    run = Folder(str(tmp_path / "runs/one"))
    run.write("config.json", json.dumps({"config": config.to_dict()}).encode())
    run.write("encoder.safetensors", save_export(encoder, config.model, 16))
    run.write("projector.safetensors", save_projector(encoder))
    clusters = ClustersConfig(kind="kmeans", k=(4,))
    config = replace(config, clusters=clusters, data=DataConfig(label="species"))
    out = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    cold = cluster_job.cluster(config, run=run.uri, out=str(out[0]))
    monkeypatch.setattr(trained, "embed", asked)
    assert cluster_job.cluster(config, run=run.uri, out=str(out[1])) == cold
    assert out[0].read_bytes() == out[1].read_bytes()
    with pytest.raises(Asked):
        cluster_job.cluster(
            replace(config, clusters=replace(clusters, features="backbone")), run=run.uri
        )
