"""What the trials of a search share, so that none makes again what is there."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from pictures import columns, write_parquet

from wcl_ray.clusters.metadata import Clustering
from wcl_ray.config import ClustersConfig, DataConfig, LossConfig, ModelConfig, TrainConfig
from wcl_ray.data.images import open_images
from wcl_ray.data.stream import plan_stream
from wcl_ray.errors import UserError
from wcl_ray.runs import clusters as run_clusters
from wcl_ray.runs import round_clusters
from wcl_ray.runs.clusters import build_clusters, build_similarity
from wcl_ray.runs.fit import Scale
from wcl_ray.runs.initial import FILE as INITIAL
from wcl_ray.runs.initial import Start, spec_of, start_of
from wcl_ray.runs.shared import Shared
from wcl_ray.search import trial
from wcl_ray.search.granularity import find_granularities
from wcl_ray.search.options import SearchConfig
from wcl_ray.search.run import _prepare
from wcl_ray.search.space import default_dimensions, given_dimensions
from wcl_ray.storage import Folder

N = 96
CLUSTERS = ClustersConfig(columns=("colour", "size", "marks"), top_k=(3,))


@pytest.fixture
def config(tmp_path: Path) -> SearchConfig:
    rows = columns(N)  # some have no colour, some of these nothing at all
    changes = {
        "id": [f"bug {n}" for n in range(N)],
        "colour": [None if n % 4 == 0 else c for n, c in enumerate(rows["colour"])],
        "marks": [None if n % 16 == 0 else m for n, m in enumerate(rows["marks"])],
        "size": [None if n % 8 == 0 else s for n, s in enumerate(rows["size"])],
        "same": ["x"] * N,
        "serial": [f"s{n}" for n in range(N)],
    }
    return SearchConfig(
        data=DataConfig(
            path=write_parquet(tmp_path / "data", N, **changes), label="species", image_size=16
        ),
        clusters=CLUSTERS,
        model=ModelConfig(projector=(16, 8)),
        train=TrainConfig(batch_size=24, epochs=3),
        storage=str(tmp_path / "runs"),
        prune=False,
    )


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> Iterator[list[str]]:
    """A function of a module, and a list that grows with every call."""
    calls: list[str] = []
    real = getattr(module, name)

    @functools.wraps(real)
    def spy(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, spy)
        yield calls


def same_measures(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return bool(a == {key: pytest.approx(value) for key, value in b.items()})


def setup_of(
    config: SearchConfig, tmp_path: Path, *spaces: str, start: Start | None = None
) -> trial.Setup:
    images = open_images(config.data, config.storage, config.seed, config.validation)
    given, folder = given_dimensions(spaces), Folder(str(tmp_path / "search"))
    found = find_granularities(config, images, given, folder)
    start = start or Start(spec_of(config))
    return _prepare(config, images, found, folder, start, tuple(default_dimensions(given)))


@pytest.mark.usefixtures("ray_local")
def test_metadata_that_weigh_positives_are_read_once(
    config: SearchConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, loss=LossConfig(positives="graded"))
    setup = setup_of(config, tmp_path, "clusters.top-k=2,3")
    ids = ray.get(setup.ids)
    with counted(monkeypatch, trial, "build_similarity") as built:
        for top_k in ((2,), (3,)):
            values = {"clusters.top-k": top_k}
            one = config.of_trial(values)
            base, _ = trial._clusters(one, values, setup)
            metadata = trial._similarity(one, setup, base)
            assert metadata is not None
            assert len(metadata.bits) == len(ids) < N
    assert len(built) == 1
    known = build_similarity(one, setup.images.without_validation(), ray.get(setup.base))
    assert known is not None
    rows = np.searchsorted(ray.get(setup.base).ids, ids)
    np.testing.assert_array_equal(metadata.bits, known.bits[rows])


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (LossConfig(negatives="siblings"), "siblings needs several levels, not hierarchy-1 alone"),
        (LossConfig(level_weights=(1.0, 2.0)), r"2 number\(s\) for the level\(s\) hierarchy-1"),
    ],
)
def test_levels_that_a_search_takes_apart(
    config: SearchConfig, tmp_path: Path, loss: LossConfig, words: str
) -> None:
    clusters = ClustersConfig(kind="hierarchy", columns=("colour", "size"), level=(1, 2))
    config = replace(config, clusters=clusters, loss=loss)
    with pytest.raises(UserError, match=words):
        setup_of(config, tmp_path, "clusters.level=1,2")


@pytest.mark.usefixtures("ray_local")
def test_trials_make_no_clusters_that_are_there(
    config: SearchConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = setup_of(
        config,
        tmp_path,
        "clusters.top-k=2,3,5",
        "clusters.quantiles=3,4",
        "clusters.samples-per-cluster=2,4",
    )

    def clusters(**options: Any) -> tuple[Any, dict[str, Any]]:
        values = {f"clusters.{k.replace('_', '-')}": v for k, v in options.items()}
        one = config.of_trial(values)
        table, measures = trial._clusters(one, values, setup)
        whole = build_clusters(one, setup.images.without_validation(), show=False)
        ids = ray.get(setup.ids)
        assert np.array_equal(table.clusters, whole[0].assignment.restrict(ids).clusters)
        assert same_measures(measures, whole[1][0].to_dict())
        return table, measures

    with counted(monkeypatch, trial, "build_clusters") as made:
        clusters(top_k=(2,), quantiles=4, samples_per_cluster=2)
        clusters(
            top_k=(5,), quantiles=4, samples_per_cluster=4
        )  # how batches are composed changes none
        assert not made
        clusters(top_k=(5,), quantiles=3, samples_per_cluster=2)
        assert len(made) == 1
        clusters(top_k=(5,), quantiles=3, samples_per_cluster=4)
        assert len(made) == 1
    ids = ray.get(setup.ids)
    labels = trial._labels(setup, ids)
    fresh = run_clusters.read_labels(config, setup.images, ids)
    assert labels is not None
    assert fresh is not None
    assert len(set(zip(labels, fresh, strict=True))) == len(set(fresh)) == 4


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_a_search_that_goes_on_makes_no_clusters(
    config: SearchConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = open_images(config.data, config.storage, config.seed, config.validation)
    folder = Folder(str(tmp_path / "search"))
    for clusters, spaces in (
        (CLUSTERS, ("clusters.top-k=2,3",)),
        (ClustersConfig(kind="hierarchy", columns=("colour", "size")), ()),
        (ClustersConfig(kind="kmeans", features="metadata", columns=("colour",), k=(3,)), ()),
        (ClustersConfig(kind="kmeans"), ()),
        (ClustersConfig(kind="label"), ()),
    ):
        one, given = replace(config, clusters=clusters), given_dimensions(spaces)
        first = find_granularities(one, images, given, folder)
        folder.write("assignment.parquet", first.base.to_parquet())
        with counted(monkeypatch, run_clusters, "cluster_metadata") as made:
            again = find_granularities(one, images, given, folder)
        assert len(made) == 1  # the labels
        assert np.array_equal(first.base.clusters, again.base.clusters)
        assert (first.dimension, first.columns) == (again.dimension, again.columns)
        assert first.quality.keys() == again.quality.keys()
        for value, quality in first.quality.items():
            assert same_measures(quality.to_dict(), again.quality[value].to_dict())
        folder.delete("assignment.parquet")


@pytest.mark.usefixtures("ray_local")
def test_trials_take_the_weights_of_the_search(config: SearchConfig, tmp_path: Path) -> None:
    source = tmp_path / "x.safetensors"
    export = spec_of(config).export(spec_of(config).build())
    source.write_bytes(export)
    config = replace(config, model=replace(config.model, weights=str(source)))
    common = start_of(config, None)
    setup = setup_of(config, tmp_path, start=common)
    source.unlink()
    folder = Folder(str(tmp_path / "trial"))
    start = trial._start(config.of_trial({"model.freeze-stages": 1}), setup, folder)
    assert start.weights == common.weights
    assert start.encoder.model.freeze_stages == 1
    assert not folder.exists(INITIAL)
    other = config.of_trial({"data.image-size": 32})
    with pytest.raises(UserError, match="there is no such file"):
        trial._start(other, setup, folder)
    source.write_bytes(export)
    trial._start(other, setup, folder)
    source.unlink()
    assert trial._start(other, setup, folder).weights == folder.read(INITIAL)


def timeless(tree: Any) -> Any:
    """Without what depends on the clock."""
    if isinstance(tree, dict):
        clock = ("seconds", "straggler", "rate")
        return {k: timeless(v) for k, v in tree.items() if k not in clock}
    return [timeless(v) for v in tree] if isinstance(tree, list) else tree


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_trials_share_features_of_random_weights(
    config: SearchConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kmeans = ClustersConfig(kind="kmeans", k=(3, 6))
    train = replace(config.train, rounds=3, warmup_rounds=0)
    plain = replace(config.plain(), clusters=kmeans, train=train)
    opened = open_images(config.data, config.storage, config.seed)
    base = run_clusters.singletons(plain, opened)
    stream = plan_stream(opened.train, base.assignment.ids, plain.data)
    scale = Scale(1, 1, 1.0, False)
    start = Start(spec_of(plain))

    def make(shared: Shared | None, **options: Any) -> tuple[Any, ...]:
        one = replace(plain, clusters=replace(kmeans, **options))
        folder = Folder(str(tmp_path / "round"))
        found = round_clusters.round_clusters(
            one, stream, base.assignment, base.labels, folder, None, start, scale, shared
        )
        return *found, json.loads(folder.read("clusters.json"))

    def same(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
        assert np.array_equal(a[0].clusters, b[0].clusters)
        assert a[0].names == b[0].names
        assert timeless(a[2]) == timeless(b[2])
        return bool(a[1] == b[1])

    shared = Shared()
    with (
        counted(monkeypatch, round_clusters, "embed") as embedded,
        counted(monkeypatch, round_clusters, "cluster_features") as clustered,
    ):
        fresh = make(None)
        assert same(make(shared), fresh)
        assert same(make(shared, samples_per_cluster=4), make(None, samples_per_cluster=4))
        assert (len(embedded), len(clustered)) == (3, 3)
        other = make(shared, k=(5,))
        assert other[0].names == ("kmeans-5",)
        assert (len(embedded), len(clustered)) == (3, 4)  # of features that are there
        make(shared, features="backbone")
        assert (len(embedded), len(clustered)) == (4, 5)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_what_is_shared_outlives_the_trial_that_made_it() -> None:
    shared = Shared()

    @ray.remote(num_cpus=0)
    class Trial:
        def make(self) -> int:
            return int(shared.value("x", lambda: np.arange(500_000)).sum())

    first = Trial.remote()
    total = ray.get(first.make.remote())
    ray.kill(first)

    def missing() -> Any:
        raise AssertionError("it was there")

    again = shared.value("x", missing)
    assert int(again.sum()) == total
    assert shared.value("y", lambda: None) is None


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_every_granularity_is_as_it_would_be_made_alone(config: SearchConfig) -> None:
    images = open_images(config.data, config.storage, config.seed)

    def at(*top_k: int) -> Clustering:
        one = replace(config.plain(), clusters=replace(CLUSTERS, top_k=top_k))
        return build_clusters(one, images, show=False)[0]

    most = 40  # more than there are attributes: a note says so
    several = at(7, 1, 3, most)
    for place, one in ((1, 1), (2, 3), (3, most)):
        alone = at(one)
        column = several.assignment.clusters[:, place]
        assert np.array_equal(alone.assignment.clusters[:, 0], column)
        assert alone.assignment.names == (several.assignment.names[place],)
        assert alone.chosen == several.chosen[:one]
    assert "only" in several.notes[-1]
    # who has no value in the columns of the first attributes is alone, whatever else was asked for
    assert len({int((c < 0).sum()) for c in several.assignment.clusters.T}) > 1


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"columns": ("same",)}, "no column gives"),
        (
            {"kind": "hierarchy", "columns": ("same", "colour"), "level": (1,)},
            "hierarchy-1: all images are in one cluster",
        ),
        (
            {"kind": "hierarchy", "columns": ("same", "colour"), "level": (1, 2, 3)},
            "level 3: the hierarchy is 2 levels deep",
        ),
        ({"kind": "hierarchy", "columns": ("serial",)}, "every image is a singleton"),
    ],
)
def test_clusters_of_no_use(config: SearchConfig, options: dict[str, Any], words: str) -> None:
    data = replace(config.data, label=None)
    one = replace(config.plain(), data=data, clusters=replace(CLUSTERS, **options))
    images = open_images(data, config.storage, config.seed)
    with pytest.raises(UserError, match=words):
        build_clusters(one, images)
