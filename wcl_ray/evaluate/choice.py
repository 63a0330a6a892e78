"""Chooses the images that show what an encoder has learned (:mod:`wcl_ray.evaluate.examples`).

They are chosen while the features of an evaluation are in memory. Thumbnails are made of a hash
sample of the images; everything is chosen among these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from wcl_ray.clusters.assignment import Assignment
from wcl_ray.clusters.quality import entropy
from wcl_ray.data.ids import positions_of
from wcl_ray.data.sources.base import ID, KEY
from wcl_ray.data.split import sample, uniform
from wcl_ray.evaluate.embed import THUMBNAIL, feature_tensor
from wcl_ray.evaluate.examples import Examples, Query, Sheet
from wcl_ray.evaluate.knn import nearest

BANK, ASKED = 10_000, 1000  # thumbnails of training and of test images to choose from
ON_MAP = 300
QUERIES, NEIGHBOURS = 8, 6  # queries of each sort
MEMBERS = 12  # images of a contact sheet
PER_REASON = 2  # contact sheets
GRANULARITIES = 4  # with contact sheets
LABELLED = 6  # labels that a cluster needs to be called pure or mixed


@dataclass(frozen=True)
class ExampleChoice:
    """How to choose examples.

    Attributes:
        clusters: of the training images with a thumbnail.
        sizes: int64 (K,) for each granularity, of all clusters.
        counts: number of training and of test images.
    """

    clusters: Assignment
    sizes: tuple[np.ndarray, ...]
    counts: tuple[int, int]
    seed: int

    @staticmethod
    def among(clusters: Assignment, counts: tuple[int, int], seed: int) -> ExampleChoice:
        """A choice among the images of an assignment."""
        sizes = tuple(clusters.sizes(g) for g in range(len(clusters.names)))
        rows = _pictures(False, counts, seed)(clusters.ids)
        few = Assignment(clusters.ids[rows], clusters.clusters[rows], clusters.names)
        return ExampleChoice(few, sizes, counts, seed)

    def pictured(self, test: bool) -> Callable[[np.ndarray], np.ndarray]:
        """A function of ids that tells which images get a thumbnail."""
        return _pictures(test, self.counts, self.seed)

    def choose(
        self, train: pa.Table, test: pa.Table | None, label: str | None, device: str = "cpu"
    ) -> Examples:
        """Choose among embedded images.

        Args:
            train, test: ``__id``, ``__key``, ``__thumbnail``, ``feature`` and the label.
            device: where similarities are computed.
        """
        sides = [_pictured(side, label, self.seed) for side in (train, test) if side is not None]
        bank, asked = sides[0], sides[-1]
        chosen: dict[tuple[bool, int], int] = {}  # side and row there → row of the images

        def rows_of(side: pa.Table, rows: Sequence[int]) -> tuple[int, ...]:
            return tuple(chosen.setdefault((side is not bank, row), len(chosen)) for row in rows)

        on_map = len(rows_of(asked, range(min(ON_MAP, asked.num_rows))))
        picked, mistakes = _queries(bank, asked, device)
        queries = [
            replace(
                query,
                row=rows_of(asked, [query.row])[0],
                neighbours=rows_of(bank, query.neighbours),
            )
            for query in picked
        ]
        sheets = [
            replace(sheet, rows=rows_of(bank, sheet.rows))
            for sheet in _sheets(bank, self.clusters, self.sizes)
        ]
        images = pa.concat_tables([bank.slice(0, 0), *(sides[t].slice(r, 1) for t, r in chosen)])
        features = feature_tensor(images["feature"]).numpy()
        off_map = pa.array(np.arange(len(chosen)) >= on_map)
        column = pa.FixedSizeListArray.from_arrays(
            pa.array(features.reshape(-1)), images["feature"].type.list_size, mask=off_map
        )
        images = images.drop_columns(["feature"]).append_column("feature", column)
        test = np.array([t for t, _ in chosen], bool)
        cluster = _clusters_of(images["id"].to_numpy(), self.clusters, 0)
        images = images.append_column("test", pa.array(test))
        images = images.append_column("cluster", pa.array(cluster, mask=test | (cluster < 0)))
        return Examples(
            images, tuple(sheets), tuple(queries), bank.num_rows, asked.num_rows, mistakes
        )


def _pictures(test: bool, counts: tuple[int, int], seed: int) -> Callable[[np.ndarray], np.ndarray]:
    most = ASKED if test else BANK
    return sample(most, counts[test], seed) or (lambda ids: np.ones(len(ids), bool))


def _pictured(side: pa.Table, label: str | None, seed: int) -> pa.Table:
    """The images with a thumbnail, in the order of a hash: id, key, label, thumbnail, feature."""
    side = side.filter(side[THUMBNAIL].is_valid())
    labels = pa.nulls(side.num_rows, pa.string()) if label is None else side[label]
    table = pa.table(
        {
            "id": side[ID],
            "key": side[KEY].cast(pa.string()),
            "label": labels.cast(pa.string()),
            "thumbnail": side[THUMBNAIL],
            "feature": side["feature"],
        }
    )
    return table.take(pa.array(np.argsort(uniform(table["id"].to_numpy(), seed), kind="stable")))


def _queries(bank: pa.Table, asked: pa.Table, device: str) -> tuple[list[Query], int | None]:
    """Sample queries and the worst mistakes, with the rows of asked and bank; and the number of
    queries whose neighbours all have another label, None without labels."""
    itself = asked is bank
    asked = asked.slice(0, ASKED)
    count = min(NEIGHBOURS, bank.num_rows - itself)
    if count < 1:
        return [], None
    x, y = (feature_tensor(side["feature"]) for side in (bank, asked))
    similarity, index = nearest(x, y, count + itself, device)
    found: list[Query] = []
    for row, (near, alike) in enumerate(zip(index.tolist(), similarity.tolist(), strict=True)):
        pairs = [(n, s) for n, s in zip(near, alike, strict=True) if not (itself and n == row)]
        neighbours, similarities = zip(*pairs[:count], strict=True)
        found.append(Query(row, neighbours, similarities, False))
    labels, answers = asked["label"].to_pylist(), bank["label"].to_pylist()
    sampled = _one_per_label(found, labels)
    if not any(labels):
        return sampled, None
    wrong = [
        q
        for q in found
        if labels[q.row] is not None
        and all(answers[n] not in (None, labels[q.row]) for n in q.neighbours)
    ]
    wrong.sort(key=lambda q: -sum(q.similarities))
    return sampled + [replace(q, mistake=True) for q in wrong[:QUERIES]], len(wrong)


def _one_per_label(queries: Sequence[Query], labels: Sequence[str | None]) -> list[Query]:
    """The first queries, of as many labels as possible."""
    turn: Counter[str | None] = Counter()
    turns = []
    for query in queries:
        turns.append(turn[labels[query.row]])
        turn[labels[query.row]] += 1
    order = sorted(range(len(queries)), key=lambda i: (turns[i], i))
    return [queries[i] for i in order[:QUERIES]]


def _sheets(bank: pa.Table, clusters: Assignment, sizes: Sequence[np.ndarray]) -> list[Sheet]:
    """Contact sheets of each granularity, with the rows of the bank."""
    ids, labels = bank["id"].to_numpy(), bank["label"].to_pylist()
    last = len(clusters.names) - 1
    even = np.linspace(0, last, min(GRANULARITIES, last + 1)).round().astype(int)
    sheets = []
    for g in even.tolist():
        of_bank = _clusters_of(ids, clusters, g)
        sheets += sheets_of(clusters.names[g], sizes[g], of_bank, labels)
    return sheets


def _clusters_of(ids: np.ndarray, clusters: Assignment, granularity: int) -> np.ndarray:
    """int32 (n,): clusters of images, -1 for those that are not in the assignment."""
    positions = positions_of(clusters.ids, ids)
    return np.where(positions >= 0, clusters.clusters[positions, granularity], np.int32(-1))


def sheets_of(
    name: str, sizes: np.ndarray, of_bank: np.ndarray, labels: Sequence[str | None]
) -> list[Sheet]:
    """The largest, smallest, purest and most mixed clusters of a granularity.

    Args:
        sizes: int (K,), of all clusters; those with at least two pictured images are shown.
        of_bank: int (n,), cluster of each pictured image, -1 = none.
        labels: of these.
    """
    order = np.argsort(of_bank, kind="stable")  # keeps the order inside a cluster
    first = np.searchsorted(of_bank[order], np.arange(len(sizes) + 1))
    shown = [k for k in range(len(sizes)) if first[k + 1] - first[k] >= 2]
    counts = {
        k: Counter(
            label
            for row in order[first[k] : first[k + 1]].tolist()
            if (label := labels[row]) is not None
        )
        for k in shown
    }
    share = {k: max(c.values()) / c.total() for k, c in counts.items() if c}
    judged = [k for k in share if counts[k].total() >= LABELLED]
    mixed = {k: entropy(np.array(list(counts[k].values()))) for k in judged}
    by_reason = {
        "largest": sorted(shown, key=lambda k: (-sizes[k], k))[:PER_REASON],
        "smallest": sorted(shown, key=lambda k: (sizes[k], k))[:PER_REASON],
        "purest": sorted(judged, key=lambda k: (-share[k], k))[:PER_REASON],
        "most mixed": sorted(judged, key=lambda k: (-mixed[k], k))[:PER_REASON],
    }
    reasons: dict[int, list[str]] = {}
    for reason, ks in by_reason.items():
        for k in ks:
            reasons.setdefault(k, []).append(reason)
    return [
        Sheet(
            granularity=name,
            cluster=k,
            reasons=tuple(why),
            size=int(sizes[k]),
            rows=tuple(order[first[k] : first[k + 1]][:MEMBERS].tolist()),
            label=counts[k].most_common(1)[0][0] if counts[k] else None,
            share=share.get(k),
        )
        for k, why in reasons.items()
    ]
