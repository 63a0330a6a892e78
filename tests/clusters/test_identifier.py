"""Row numbers and identifiers are no attributes; true numbers are, and captions cost no memory."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray

from wcl_ray.clusters import counts as counts_module
from wcl_ray.clusters import tfidf
from wcl_ray.clusters.bags import Bag
from wcl_ray.clusters.binarise import attributes
from wcl_ray.clusters.counts import ColumnCounts, count_column
from wcl_ray.clusters.metadata import attribute_bits, cluster_metadata
from wcl_ray.clusters.tfidf import vectors
from wcl_ray.clusters.views import View
from wcl_ray.config import ClustersConfig
from wcl_ray.data.ids import ids_of
from wcl_ray.data.sources.base import ID, KEY

N = 1200
RNG = np.random.default_rng(0)
KEPT = RNG.random(N) < 0.64  # what two splits leave


def counted(values: Any, parts: int = 5, seed: int = 0) -> ColumnCounts:
    """Counts of parts of a column, added up in any order."""
    column = pa.array(values)
    step = -(-len(column) // parts)
    found = [
        count_column(pa.chunked_array([column[i : i + step]]), None)
        for i in range(0, len(column), step)
    ]
    random.Random(seed).shuffle(found)
    while len(found) > 1:
        found = [*found[2:], found[0] + found[1]]
    return found[0]


IDENTIFIERS = {
    "": np.arange(N),
    "Unnamed: 0": np.sort(RNG.integers(0, 10**6, N)),
    "picture": np.arange(N),
    "picture2": np.arange(5000, 5000 + N)[KEPT],
    "picture3": RNG.permutation(N) + 1.0,
    "picture4": [None if n % 9 == 0 else float(n) for n in range(N)],
    "frame": 10 * np.arange(N)[KEPT],  # every tenth was taken
    "pair": RNG.permutation(np.repeat(np.arange(N // 2), 2)),
    "taxonid": RNG.integers(10**6, 10**7, N),
    "index": np.arange(N) % 300,  # of four tables
    "sender_id": RNG.integers(1, 501, N),
    "senderId": RNG.integers(1, 501, N),
    "ID Foto": RNG.integers(10**6, 10**7, N),
    "large_id": RNG.integers(2**62, 2**63 - 1, N),
    "zip_code": RNG.integers(10_000, 99_999, N),
}
NUMBERS = {
    "dense": RNG.integers(0, N // 2, N),
    "cost": np.repeat(np.arange(10, 110), 12),
    "hp": RNG.integers(1, 500, N),
    "year": np.arange(800, 800 + N),
    "age": RNG.integers(0, 90, N),
    "price": RNG.integers(100, 10**6, N),
    "visits": RNG.poisson(40, N),
    "width": RNG.choice([320, 640, 800, 1024, 1280, 1920, 2048, 4096], N),
    "rating": RNG.integers(0, 11, N) / 2,
    "timestamp": 1_700_000_000 + np.arange(N),
    "taken": 1_700_000_000 + np.sort(RNG.integers(0, 10**6, N)),
    "distance": RNG.random(N) * N,
    "rank": RNG.integers(0, 2 * N, N),
    "humid": RNG.integers(0, 100, N),
}


@pytest.mark.parametrize("name", IDENTIFIERS)
def test_row_numbers_and_identifiers_are_left_out(name: str) -> None:
    counts = {name: counted(IDENTIFIERS[name])}
    found, skipped = attributes(counts, 4, 0.01)
    assert not found
    assert "--clusters.columns" in skipped[name]
    named, skipped = attributes(counts, 4, 0.01, named=(name,))
    assert named
    assert not skipped
    assert attributes({name: counted(IDENTIFIERS[name], 7, seed=1)}, 4, 0.01, (name,))[0] == named


@pytest.mark.parametrize("name", NUMBERS)
def test_true_numbers_stay(name: str) -> None:
    found, skipped = attributes({name: counted(NUMBERS[name])}, 4, 0.01)
    assert 3 <= len(found) <= 4
    assert all(a.test == "above" for a in found)
    assert not skipped


def test_identifiers_that_are_named_are_categories() -> None:
    few = {"sender_id": counted(np.arange(N) % 8)}
    found, _ = attributes(few, 4, 0.01, named=("sender_id",))
    assert {(a.test, a.value) for a in found} == {("is", n) for n in range(8)}


@pytest.mark.usefixtures("ray_local")
def test_a_table_written_with_its_index() -> None:
    rows = pa.table(
        {
            ID: np.arange(N),
            KEY: pa.nulls(N, pa.string()),
            "": np.arange(N),
            "label": [f"t{n * 4 // N}" for n in range(N)],
            "size": (np.arange(N) * 7919 % N // 10).astype(float),
        }
    )
    columns = ("", "label", "size")
    data = ray.data.from_arrow([rows.slice(i, 500) for i in range(0, N, 500)])
    found = cluster_metadata(data, ClustersConfig(top_k=(4,)), "label", columns)
    assert {a.column for a in found.chosen} == {"size"}
    assert "name of an index" in found.skipped[""]
    used = ClustersConfig(top_k=(4,), columns=("",))
    assert {a.column for a in cluster_metadata(data, used, "label", columns).chosen} == {""}
    assert attribute_bits(data, ["", "size"], ClustersConfig(), 8)[1].any()
    _, line, _ = vectors(data, ["", "size"], ())
    assert line.startswith("0 words and 1 numbers of size; left out: column ''")


def captions(seed: int) -> tuple[list[str], Counter[str]]:
    """Two common captions, one just common enough, and many rare ones."""
    values = ["a cat"] * 900 + ["a dog"] * 300 + ["a cow"] * 101
    values += [f"{n} of a kind" for n in range(6_000)] + ["twice"] * 2
    values += ["a hen"] * (10_000 - len(values) - 2_000) + [f"rare {n % 1500}" for n in range(2000)]
    random.Random(seed).shuffle(values)
    return values, Counter(values)


def test_common_values_survive_among_many_rare_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts_module, "MOST_VALUES", 800)
    monkeypatch.setattr(counts_module, "COMMON", 400)
    for seed, parts in ((0, 1), (1, 13), (2, 60)):
        values, exact = captions(seed)
        counts = counted(values, parts, seed)
        assert len(counts.values) <= 800
        assert 0 < counts.undercount <= len(values) / 401
        for value, count in exact.items():
            low = counts.values.get(value, 0)
            assert low <= count <= low + counts.undercount
        assert counts.pairs is None or len(counts.pairs) <= 800


def test_many_numbers_are_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    values = RNG.permutation(np.concatenate([RNG.normal(0, 50, 1000), np.arange(9000) * 3.5]))
    exact, _ = attributes({"size": counted(values)}, 4, 0.01)
    monkeypatch.setattr(counts_module, "MOST_VALUES", 9_000)
    monkeypatch.setattr(counts_module, "COMMON", 400)
    found = [attributes({"size": counted(values, p, p)}, 4, 0.01)[0] for p in (1, 4, 9)]
    assert found[0] == found[1] == found[2]
    shares = sorted(a.share for a in found[0])
    assert shares == pytest.approx(sorted(a.share for a in exact), abs=2e-3)
    assert shares == sorted(a.mask(pa.array(values)).mean() for a in found[0])
    rows = counted(np.arange(20_000), 7)  # its sample is of few of them
    assert rows.rounded
    assert "hardly repeat" in attributes({"size": rows}, 4, 0.01)[1]["size"]
    repeated = counted(RNG.integers(0, 20_000, 20_000), 7)
    assert attributes({"size": repeated}, 4, 0.01)[0]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_attributes_of_captions_have_exact_shares() -> None:
    rare = 130_000
    text = np.array([f"caption {n}" for n in range(rare)] + ["a cat"] * 9_000 + ["a dog"] * 1_500)
    text = text[np.random.default_rng(0).permutation(len(text))]
    ids = np.arange(len(text))
    rows = pa.table({ID: ids, KEY: pa.nulls(len(text), pa.string()), "text": text})
    captions = [("is a cat", 9_000), ("is a dog", 1_500)]
    words = [("says a", 10_500), ("says caption", rare), ("says cat", 9_000), ("says dog", 1_500)]
    for step, kind, names in ((9_999, "category", captions), (47_001, "text", words)):
        data = ray.data.from_arrow([rows.slice(i, step) for i in range(0, len(rows), step)])
        found = cluster_metadata(data, ClustersConfig(types=(f"text={kind}",)), None, ("text",))
        assert [(a.name, a.share) for a in found.chosen] == [
            (f"text {name}", count / len(text)) for name, count in names
        ]
        assert found.columns[0].values is None


def test_words_of_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The vocabulary of more words than are counted, without Ray."""
    monkeypatch.setattr(tfidf, "MOST_WORDS", 1_000)
    monkeypatch.setattr(tfidf, "CHUNK", 512)
    text = [f"w{n} {'wing' if n % 3 else 'leg'} c{n % 40}" for n in range(6_000)]
    table = pa.table({"note": text})
    parts = [tfidf._count(table.slice(i, 1_700), ["note"], {}) for i in range(0, 6_000, 1_700)]
    whole = parts[0] + parts[1] + (parts[2] + parts[3])
    assert len(whole.documents) <= 1_000
    assert 0 < whole.undercount <= whole.total / 500
    monkeypatch.setattr(tfidf, "tally", lambda rows, count: count(rows))
    chosen = tfidf._vocabulary(table, [Bag(View(("note",)))], whole)  # type: ignore[arg-type]
    assert chosen[:2] == [("note=wing", 4_000), ("note=leg", 2_000)]
    assert dict(chosen[2:]) == {f"note=c{n}": 150 for n in range(40)}


def test_unsigned_ids_from_2_63_on() -> None:
    given = [0, 5, 2**63 - 1, 2**63, 2**64 - 1]
    for form in (pa.array(given, pa.uint64()), pa.array(given, pa.uint64()).dictionary_encode()):
        ids, keys = ids_of(form, "id", "x")
        assert ids.type == pa.int64()
        assert len(set(ids.to_pylist())) == 5
        assert ids.to_pylist()[:3] == given[:3]
        assert keys.to_pylist() == [None, None, None, str(2**63), str(2**64 - 1)]
