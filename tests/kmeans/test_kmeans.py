"""A fit is as good as plain Lloyd and FAISS, and every option does what it says."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
import pytest
from blobs import blobs, digest, lloyd, small
from blobs import in_process as in_process

from wcl_ray.clusters.agreement import agreement
from wcl_ray.errors import UserError
from wcl_ray.kmeans.kmeans import KMeans
from wcl_ray.kmeans.lloyd import unit_rows
from wcl_ray.kmeans.nearest import gemm_nearest

pytestmark = pytest.mark.usefixtures("in_process")

X, TRUTH = blobs(3000, 16, 20, noise=0.5)
EXACT: dict[str, Any] = {"tolerance": 0.0, "settled": 0.0}


def never_rises(model: KMeans) -> bool:
    """Whether the objective never rises within a phase, for one granularity; splits excepted."""
    pairs = zip(model.history_, model.history_[1:], strict=False)
    return all(
        b.objective[0] <= a.objective[0] * (1 + 1e-6)
        for a, b in pairs
        if a.phase == b.phase and not a.empty
    )


def test_the_same_as_plain_lloyd() -> None:
    model = small(20, spherical=False, iterations=8, **EXACT).fit(X, init=X[:20])
    labels, centroids, objective = lloyd(X, X[:20], 8)
    assert np.array_equal(model.labels_, labels)
    assert model.centroids_ == pytest.approx(centroids, abs=1e-5)
    assert model.inertia_ == pytest.approx(objective, rel=1e-6)
    assert model.inertia_ == pytest.approx(model.history_[-1].objective[0] * len(X), rel=1e-12)
    assert model.counts_.tolist() == np.bincount(labels, minlength=20).tolist()
    assert np.array_equal(model.ids_, np.arange(len(X)))
    assert len(model.history_) == 8
    assert never_rises(model)
    assert np.array_equal(model.predict(X), labels)


def test_as_good_as_faiss() -> None:
    reference = faiss.Kmeans(16, 20, niter=8, max_points_per_centroid=10**6)
    reference.train(X, init_centroids=X[:20])
    model = small(20, spherical=False, iterations=9, **EXACT).fit(X, init=X[:20])
    assert model.inertia_ == pytest.approx(lloyd(X, reference.centroids, 1)[2], rel=1e-6)
    objectives = [row.objective[0] * len(X) for row in model.history_[:8]]
    assert objectives == pytest.approx(list(reference.obj), rel=1e-5)  # FAISS adds up in float32
    assert model.centroids_ == pytest.approx(reference.centroids, abs=1e-4)


@pytest.mark.parametrize("spherical", [True, False])
def test_far_blobs_are_found(spherical: bool) -> None:
    x, truth = blobs(3000, 16, 20, noise=0.01)
    model = small(20, spherical=spherical).fit(x)
    assert agreement(model.labels_, truth).ari == 1.0
    passes = [row for row in model.history_ if row.phase == "all"]
    assert len(passes) < 5 < passes[0].limit  # it stops when it has converged
    if spherical:
        assert np.linalg.norm(model.centroids_, axis=1) == pytest.approx(np.ones(20))
        assert model.inertia_ == pytest.approx(
            np.square(unit_rows(x) - model.centroids_[model.labels_]).sum(), rel=1e-3
        )


def test_far_from_the_origin() -> None:
    x, truth = blobs(3000, 16, 20, noise=0.02)
    assert agreement(small(20, spherical=False).fit(x + 3000).labels_, truth).ari == 1.0


def test_sample_first_then_all() -> None:
    model = small(20, spherical=False, sample=30, split_merge=(), **EXACT).fit(X)
    assert [row.phase for row in model.history_[:4]] == ["sample"] * 3 + ["all"]
    best = lloyd(X, model.centroids_, 1)[2]
    assert model.inertia_ == pytest.approx(best, rel=1e-6)
    assert never_rises(model)
    plain = small(20, spherical=False, sample=0, **EXACT).fit(X)
    assert {row.phase for row in plain.history_} == {"all"}
    assert model.inertia_ < 1.1 * plain.inertia_
    for row in model.history_:
        assert f"{row.objective[0]:.5f}" in str(row)
        assert 1 <= row.imbalance < 3
        assert row.straggler == 1


def test_several_granularities_in_one_pass() -> None:
    starts = [X[:7], X[100:120]]
    both = small((7, 20), iterations=9).fit(X, init=starts)
    for g, start in enumerate(starts):
        alone = small(len(start), iterations=9).fit(X, init=start)
        assert alone.centroids_.tobytes() == both.centroids_[g].tobytes()
        assert np.array_equal(alone.labels_, both.labels_[:, g])
        assert alone.inertia_ == both.inertia_[g]
        assert np.array_equal(alone.counts_, both.counts_[g])
    assert np.array_equal(both.predict(X), both.labels_)


@pytest.mark.parametrize("spherical", [True, False])
def test_nested_levels(spherical: bool) -> None:
    model = small((4, 20, 9), nested=True, spherical=spherical).fit(X)
    labels = model.labels_
    assert labels.shape == (3000, 3)
    for g, k in enumerate((4, 20, 9)):
        assert len(np.unique(labels[:, g])) == k
        assert np.array_equal(model.counts_[g], np.bincount(labels[:, g]))
        rows = unit_rows(X) if spherical else X
        distance = np.square(rows - model.centroids_[g][labels[:, g]], dtype=np.float64).sum()
        assert model.inertia_[g] == pytest.approx(distance, rel=1e-4)
        for cluster in range(20):  # a fine cluster has one parent
            assert len(np.unique(labels[labels[:, 1] == cluster, g])) == 1
    assert np.array_equal(model.predict(X), labels)
    if spherical:
        single = small((20,), nested=True).fit(X)
        assert single.labels_.shape == single.predict(X).shape == (3000, 1)


def test_warm_start_from_labels() -> None:
    ids = np.arange(0, 3000, 2)  # half of the rows have labels, but one in ten of these is -1
    labels = np.where(ids % 10 == 0, -1, TRUTH[ids]).astype(np.int32)
    rows = np.arange(3000)
    labelled = (rows % 2 == 0) & (rows % 10 != 0)
    means = np.stack([X[labelled & (c == TRUTH)].astype(np.float64).mean(0) for c in range(20)])
    expected = gemm_nearest(means.astype(np.float32), False)(X)
    first = small(20, spherical=False, iterations=1).fit(X, labels=(ids, labels))
    assert np.array_equal(first.labels_, expected)
    assert {row.phase for row in first.history_} == {"all"}
    assert len(small(20).fit(X, labels=(ids, labels[:, None])).history_) <= 10


def test_initial_centroids_of_any_length_on_the_sphere() -> None:
    scale = np.linspace(0.1, 30, 20, dtype=np.float32)[:, None]
    assert digest(small(20).fit(X, init=X[:20] * scale)) == digest(
        small(20).fit(X, init=unit_rows(X[:20]))
    )


def test_empty_clusters_are_filled() -> None:
    start = np.concatenate([X[:10], np.full((10, 16), 500, np.float32)])
    models = [
        small(20, spherical=False, actors=a, iterations=30).fit(X, init=start) for a in (1, 2)
    ]
    assert models[0].history_[0].empty == 10
    assert models[0].history_[-1].empty == 0
    assert (models[0].counts_ > 0).all()
    assert len(models[0].centroids_) == 20
    assert digest(models[0]) == digest(models[1])
    assert models[0].inertia_ < 0.95 * lloyd(X, X[:10], 20)[2]
    assert never_rises(models[0])


@pytest.mark.parametrize("spherical", [True, False])
def test_fewer_different_rows_than_clusters(spherical: bool) -> None:
    """As in metadata: clusters that cannot be split are dissolved, and the fit ends soon."""
    x = np.repeat(X[:6], [100, 1, 200, 50, 3, 80], 0)
    model = small(10, spherical=spherical, sample=0).fit(x)
    assert sorted(model.counts_) == [1, 3, 50, 80, 100, 200]
    assert len(model.history_) < 8
    assert 0 <= model.inertia_ < 1e-6 * np.square(x).sum()
    assert any("k is too large" in text for text in model.warnings_)


def test_small_clusters_are_dissolved() -> None:
    x = np.concatenate([blobs(2000, 16, 5, noise=0.01)[0], np.full((3, 16), 9, np.float32)])
    truth = np.append(blobs(2000, 16, 5, noise=0.01)[1], [5, 5, 5])
    start = np.stack([x[truth == c][0] for c in range(6)])
    undissolved = small(6, spherical=False).fit(x, init=start)
    assert sorted(undissolved.counts_)[0] == 3
    model = small(6, spherical=False, min_size=4).fit(x, init=start)
    assert len(model.centroids_) == 5
    assert model.counts_.min() > 3
    assert model.counts_.sum() == 2003
    assert np.array_equal(model.labels_, gemm_nearest(model.centroids_, False)(x))
    several = small((6, 2), spherical=False, min_size=4).fit(x, init=[start, start[:2]])
    assert [len(c) for c in several.centroids_] == [5, 2]
    assert np.array_equal(several.labels_[:, 0], model.labels_)
    assert len(small(6, min_size=10**6).fit(x, init=start).centroids_) == 1


def test_few_rows_per_centroid_need_no_sample() -> None:
    assert {row.phase for row in small(len(X) // 29, sample=16).fit(X).history_} == {"all"}
    assert "sample" in {row.phase for row in small(len(X) // 31, sample=16).fit(X).history_}


def test_many_centroids_begin_as_random_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """k-means++ grows with the square of k."""
    monkeypatch.setattr("wcl_ray.kmeans.phases.MOST_SEEDED", 50)
    monkeypatch.setattr("wcl_ray.kmeans.phases.plus_plus", None)
    model = small(60).fit(X)
    assert len(model.centroids_) == 60
    assert digest(small(60, actors=3).fit(X)) == digest(model)
    assert model.inertia_ < 1.2 * small(60, sample=0).fit(X, init=unit_rows(X[:60])).inertia_


@pytest.mark.parametrize("spherical", [True, False])
def test_as_many_clusters_as_rows(spherical: bool) -> None:
    model = small(50, spherical=spherical).fit(X[:50])
    assert sorted(model.labels_) == list(range(50))
    assert model.inertia_ == pytest.approx(0, abs=1e-3)
    assert any("rows per cluster; 39 are recommended" in text for text in model.warnings_)
    assert small(1, spherical=spherical).fit(X[:50]).labels_.tolist() == [0] * 50


def test_other_rows_get_their_nearest_centroid() -> None:
    model = small(20).fit(X)
    other = blobs(500, 16, 20, noise=0.5, seed=9)[0]
    ids, labels = model.assign(other)
    assert ids.tolist() == list(range(500))
    assert np.array_equal(labels, gemm_nearest(model.centroids_, True)(unit_rows(other)))
    with pytest.raises(UserError, match="have 15 dimensions, the centroids 16"):
        model.predict(other[:, :15])
    other[7, 3] = np.nan
    with pytest.raises(UserError, match=r"1 of 500 vectors have NaN .* with ids 7;"):
        model.predict(other)
    with pytest.raises(UserError, match="call fit before predict"):
        small(3).predict(X)
