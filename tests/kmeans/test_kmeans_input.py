"""Bad and unusual input of k-means: each error counts and names what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from blobs import as_table, blobs, digest, small, write_parquet
from blobs import in_process as in_process

from wcl_ray.errors import UserError, find_user_error
from wcl_ray.kmeans import worker_group as workers
from wcl_ray.kmeans.kmeans import KMeans
from wcl_ray.kmeans.vectors import open_vectors

X = blobs(400, 8, 5)[0]


def refused(words: str, source: Any, k: Any = 5, where: Any = None, **options: Any) -> None:
    """The fit raises a UserError (or one in Ray's wrapper) with these words."""
    with pytest.raises(UserError, match=r".") as caught:
        small(k, **options).fit(source, **(where or {}))
    error = find_user_error(caught.value)
    assert error is not None
    assert words in str(error)
    assert "Traceback" not in str(error)


def test_options() -> None:
    bad: tuple[Any, ...] = (0, -3, (), (5, 0), 5.7, "5", np.ones((2, 2), int))
    for k in bad:
        with pytest.raises(UserError, match="k must be a positive integer, or several, not"):
            KMeans(k)
    assert KMeans(np.array([5, 20])).ks == (5, 20)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="kernel must be auto, gemm, faiss, torch, not 'cuda'"):
        KMeans(5, kernel="cuda")  # type: ignore[arg-type]


@pytest.mark.usefixtures("in_process")
def test_values_that_are_not_finite() -> None:
    x = X.copy()
    x[[3, 250, 399], 2] = np.nan
    x[17, 0] = -np.inf
    refused(
        "4 of 400 vectors have NaN or infinite values (2 in shard 0, 2 in shard 1)", x, actors=2
    )
    refused("the first with ids 3, 17, 250, 399; remove or correct them", x)
    named = as_table(x).set_column(0, "id", pa.array([f"row-{i}" for i in range(400)]))
    refused("the first with ids row-3, row-17, row-250, row-399;", ray.data.from_arrow(named))
    with np.errstate(over="ignore"):
        refused("1 of 400", np.where(np.arange(400)[:, None] == 9, 1e300, X.astype(np.float64)))


@pytest.mark.usefixtures("in_process")
def test_too_few_or_equal_rows() -> None:
    refused("k = 401 is more than the 400 vectors", X, k=401)
    refused("k = 9 is more than the 5 vectors", X[:5], k=(2, 9), actors=3)
    refused("the source has no vectors", X[:0])
    refused("all 400 vectors are equal", np.repeat(X[:1], 400, 0), spherical=False, actors=2)
    refused("there is nothing to cluster", np.zeros((400, 8)))


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("d", [2, 16, 300])
def test_rows_of_one_direction(d: int) -> None:
    direction = np.random.default_rng(d).normal(size=(1, d))
    x = (direction * np.linspace(0.5, 3, 300)[:, None]).astype(np.float32)
    refused("all 300 vectors have the same direction", x, actors=2)
    if d == 2:
        x[-1, 0] += 0.01
        assert small(2).fit(x).counts_.min() >= 1


@pytest.mark.usefixtures("in_process")
def test_magnitudes() -> None:
    for scale in (1e-30, 1e30):
        refused("scale the vectors", X * np.float32(scale), spherical=False)
    tiny = X * np.float32(2.0**-90)  # directions are the same
    assert digest(small(5).fit(tiny)) == digest(small(5).fit(X))


@pytest.mark.usefixtures("in_process")
def test_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "PARTS", 2)  # fewer than actors
    ids = np.arange(400) * 7 - 1000
    ids[[50, 350, 51]] = ids[0]
    table = as_table(X).set_column(0, "id", pa.array(ids))
    words = "1 ids occur more than once (-1000); ids must be unique"
    for actors in (1, 2, 3):
        refused(words, ray.data.from_arrow(table), actors=actors)
    keys = pa.array([f"image-{i}" for i in range(400)])
    named = as_table(X).append_column("file", keys)
    pq.write_table(named, tmp_path / "x.parquet")
    model = small(5, actors=2).fit(str(tmp_path), id_column="file")
    assert (np.diff(model.ids_) > 0).all()
    assert sorted(model.counts_) == sorted(small(5).fit(X, init=model.centroids_).counts_)
    holes = as_table(X).set_column(0, "id", pa.array([None, *range(399)]))
    refused("id column 'id' is empty in row 0", ray.data.from_arrow(holes))


@pytest.mark.usefixtures("in_process")
def test_null_vectors_are_left_out(tmp_path: Path) -> None:
    values = [None if i % 4 == 1 else row.tolist() for i, row in enumerate(X)]
    kept = np.arange(400)[np.arange(400) % 4 != 1]
    table = pa.table({"id": range(400), "v": pa.array(values, pa.list_(pa.float64()))})
    expected = digest(small(5).fit(ray.data.from_arrow(as_table(X).take(kept))))
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=90)
    for actors, source in ((1, ray.data.from_arrow(table)), (2, str(tmp_path))):
        model = small(5, actors=actors).fit(source)
        assert model.ids_.tolist() == kept.tolist()
        assert digest(model) == expected
    fixed = pa.array(values, pa.list_(pa.float32(), 8))
    model = small(5).fit(ray.data.from_arrow(pa.table({"id": range(400), "v": fixed})))
    assert digest(model) == expected


@pytest.mark.usefixtures("in_process")
def test_types_of_vectors(tmp_path: Path) -> None:
    expected = digest(small(5).fit(X))
    frame = pd.DataFrame({"id": range(400), "embedding": list(X), "x": 1.0})
    tensors = ray.data.from_numpy(X)
    for source in (ray.data.from_pandas(frame), tensors, X.astype(np.float64).tolist()):
        assert digest(small(5).fit(source)) == expected
    half = pa.array([row.astype(np.float16) for row in X], pa.list_(pa.float16()))
    pq.write_table(pa.table({"id": range(400), "v": half}), tmp_path / "x.parquet")
    rounded = digest(small(5).fit(X.astype(np.float16)))
    assert digest(small(5).fit(str(tmp_path / "x.parquet"))) == rounded


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_lengths_of_vectors(tmp_path: Path) -> None:
    ragged = [row[: 8 - (i == 7)].tolist() for i, row in enumerate(X)]
    table = pa.table({"v": pa.array(ragged, pa.list_(pa.float32()))})
    refused("the vectors of column 'v' have different lengths, 7 to 8", ray.data.from_arrow(table))
    write_parquet(tmp_path, X, files=2)
    pq.write_table(as_table(X[:100, :6], 1000), tmp_path / "part-9.parquet")
    refused("different lengths: [6, 8]", str(tmp_path), actors=1)
    refused("different lengths: [6, 8]", str(tmp_path), actors=3)
    holes = pa.table({"v": pa.array([[1.0, None], [2.0, 3.0]])})
    refused("has vectors with missing values", ray.data.from_arrow(holes), k=1)


@pytest.mark.usefixtures("ray_local")
def test_columns_and_folders(tmp_path: Path) -> None:
    def opened(words: str, source: Any, *columns: str | None) -> None:
        with pytest.raises(UserError, match=r".") as caught:
            open_vectors(source, *columns)
        assert words in str(caught.value)

    table = as_table(X).append_column("name", pa.array(["a"] * 400))
    opened(
        "no column 'vector'; the columns are: id, feature, name",
        ray.data.from_arrow(table),
        "vector",
    )
    opened("no column 'key'", ray.data.from_arrow(table), None, "key")
    opened("column 'name' is of type string, not a list", ray.data.from_arrow(table), "name")
    plain = ray.data.from_arrow(table.drop_columns(["feature"]))
    opened(
        "has no column of vectors (equally long lists of floating-point numbers); the columns are: "
        "id, name",
        plain,
    )
    integers = pa.table({"a": pa.array([[1, 2], [3, 4]])})  # may be tags, so must be named
    opened("has no column of vectors", ray.data.from_arrow(integers))
    piece = open_vectors(ray.data.from_arrow(integers), "a").pieces[0]
    assert piece.load()[1].tolist() == [[1, 2], [3, 4]]
    two = pa.table({"a": table["feature"], "b": table["feature"]})
    opened(
        "several columns of vectors: a, b; name one with --vector-column", ray.data.from_arrow(two)
    )
    assert open_vectors(ray.data.from_arrow(two), "b").pieces[0].column == "b"
    opened("of shape (8,)", X[0])
    opened("of shape (2, 400, 4)", X.reshape(2, 400, 4))
    opened("a matrix of numbers (rows, dimensions), not <U1", np.full((4, 2), "x"))
    opened("no such file or folder", str(tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    opened("is empty", str(tmp_path / "empty"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other/readme.md").write_text("x")
    opened("has no Parquet files", str(tmp_path / "other"))
    (tmp_path / "other/text.parquet").write_text("no Parquet at all")
    opened("text.parquet cannot be read as Parquet", str(tmp_path / "other"))


@pytest.mark.usefixtures("in_process")
def test_initial_centroids_of_the_wrong_shape() -> None:
    words = "init has shapes [(4, 8)]; k and the vectors require [(5, 8)]"
    refused(words, X, where={"init": X[:4]})
    refused("init has shapes", X, k=(5, 3), where={"init": [X[:5]]})
    refused("init has NaN", X, where={"init": np.full((5, 8), np.nan)})
    ids, labels = np.arange(400), np.arange(400, dtype=np.int32) % 5
    refused("labels go up to 5, but k is 5", X, where={"labels": (ids, labels + 1)})
    words = "labels must be increasing ids, and one label per id and per k"
    refused(words, X, where={"labels": (ids, labels[:-1])})
    refused(words, X, k=(5, 3), where={"labels": (ids, labels)})
    refused("no id of labels is an id of the vectors", X, where={"labels": (ids + 10**6, labels)})


def test_shards_are_cut_evenly(ray_local: str, tmp_path: Path) -> None:
    """Every row once and in order, whatever the files and row groups."""
    vectors = open_vectors(write_parquet(tmp_path, X, files=3, group=37))
    assert vectors.rows == 400
    for count in (1, 2, 7, 399, 401):
        shards = vectors.shards(count)
        sizes = [sum(piece.stop - piece.start for piece in shard) for shard in shards]
        assert len(sizes) == count
        assert max(sizes) - min(sizes) <= 1
        if count < 10:
            parts = [piece.load() for shard in shards for piece in shard]
            assert np.concatenate([ids for ids, _ in parts]).tolist() == list(range(400))
            assert np.concatenate([x for _, x in parts]).tobytes() == X.tobytes()
