"""Metadata as vectors for k-means: TF-IDF of words and tags, and standardised numbers.

Two passes of Ray Data: the first counts words, from which the driver chooses the vocabulary, the
second computes one dense row per image. The types of the columns (:mod:`wcl_ray.clusters.types`)
say what is a word and what a number.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from ray.data import Dataset

from wcl_ray.clusters.bags import Bag, occurrences, plain_bags, typed_bags
from wcl_ray.clusters.columns import ColumnSummary, summarise
from wcl_ray.clusters.counts import ColumnCounts, Columns, count_table
from wcl_ray.clusters.identifier import identifier
from wcl_ray.clusters.metadata import recount
from wcl_ray.clusters.tally import heaviest, tally
from wcl_ray.clusters.types import NO_TYPES, ColumnType, detect, views_to_count, why_no_date
from wcl_ray.clusters.views import View, read
from wcl_ray.data.sources.base import ID
from wcl_ray.data.values import kind_of, numbers, plain
from wcl_ray.errors import UserError

NOTHING = "no word that two images share, and no numbers that differ"
VOCABULARY = 1024  # words kept, the most frequent ones
MOST_WORDS = 500_000  # distinct words counted
CHUNK = 2048  # rows processed at a time


@dataclass
class Counts:
    """Counts of part of the rows; the sum of two covers both parts.

    Attributes:
        documents: word → number of rows with it; a word is ``column=text``.
        total: sum of these over all words.
        undercount: by how much each count may be too low; 0 unless there were more than MOST_WORDS.
            A word without a count has at most this many rows.
        numbers: number column → (count, sum, sum of squares).
        columns: counts of the columns and of their views, for the types.
    """

    rows: int = 0
    documents: Counter[str] = field(default_factory=Counter)
    total: int = 0
    undercount: int = 0
    numbers: dict[str, np.ndarray] = field(default_factory=dict)
    columns: Columns = field(default_factory=Columns)

    def __add__(self, other: Counts) -> Counts:
        documents, subtracted = self.documents + other.documents, 0
        if len(documents) > MOST_WORDS:
            documents, subtracted = heaviest(documents, MOST_WORDS // 2)
        names = sorted(self.numbers.keys() | other.numbers.keys())
        zeros = np.zeros(3)
        return Counts(
            self.rows + other.rows,
            documents,
            self.total + other.total,
            self.undercount + other.undercount + subtracted,
            {n: self.numbers.get(n, zeros) + other.numbers.get(n, zeros) for n in names},
            self.columns + other.columns,
        )


def vectors(
    rows: Dataset,
    columns: list[str],
    named: Collection[str] | None = None,
    quantiles: int = 4,
    given: Mapping[str, str] = NO_TYPES,
) -> tuple[Dataset, str, list[ColumnSummary]]:
    """Dense vectors of the metadata of each row.

    A string is a bag of its words, a list a bag of its members, a boolean one word, and so are an
    integer without order, the season of a date and its quarter of the day; a place is the bag of
    its cells, and time a number. A word t has
    the weight ln((1 + N) / (1 + df_t)) + 1 (Salton and Buckley, 1988, smoothed); the bag of a row
    is scaled to length 1. Numbers are standardised, clipped to ±3, and scaled to weigh at most as
    much as a bag together. Missing values are zeros.

    Args:
        rows: ``__id`` and the columns.
        named: columns to use even if they look like row numbers or identifiers (see
            :func:`identifier`); others that do are left out. None: use all.
        quantiles, given: see :func:`wcl_ray.clusters.types.detect`.

    Returns:
        Rows ``__id`` and ``feature`` (float32 list; null for a row without any value), a line that
        describes them to the user, and what became of each column.

    Raises:
        UserError: no column can be turned into numbers, or a given type does not fit the values.
    """
    counts = tally(rows, lambda table: _count(table, columns, given))
    types = detect(counts.columns, quantiles, given)
    counts.columns = recount(rows, counts.columns, types, 0.0)
    bags = typed_bags(counts.columns, types)
    vocabulary = _vocabulary(rows, bags, counts)
    scales: dict[View, tuple[float, float]] = {}
    skipped = {}
    for name, kind in types.items():
        column = counts.columns[name]
        view = _number(column, kind)
        if view is None:
            continue
        n, total, squares = _moments(view, counts)
        deviation = math.sqrt(max(0.0, squares / max(n, 1) - (total / max(n, 1)) ** 2))
        requested = kind.given or named is None or name in named
        of_numbers = column.kind == "number" and not requested
        reason = identifier(name, column.spread, int(n)) if of_numbers else None
        if reason:
            skipped[name] = reason
        elif n > 1 and deviation > 0:
            # rounded, since the last digits of float sums depend on the order of the blocks
            scales[view] = (float(f"{total / n:.10g}"), float(f"{deviation:.10g}"))
    left_out = "".join(f"; left out: column {name!r}, {why}" for name, why in skipped.items())
    if not vocabulary and not scales:
        raise UserError(
            f"k-means of metadata: none of the columns {', '.join(columns)} has a word that two "
            f"images share, or numbers that differ{left_out}"
        )
    words = {
        word: (i, math.log((1 + counts.rows) / (1 + df)) + 1)
        for i, (word, df) in enumerate(vocabulary)
    }

    def vectorise(table: pa.Table) -> Iterator[pa.Table]:
        for start in range(0, len(table), CHUNK):
            yield _vectorise(table.slice(start, CHUNK), words, scales, bags)

    features = rows.map_batches(vectorise, batch_format="pyarrow", batch_size=None)
    used = ", ".join(name for name in columns if name not in skipped)
    line = f"{len(words)} words and {len(scales)} numbers of {used}{left_out}"
    became = _outcomes(columns, vocabulary, scales)
    unused = {
        name: why_no_date(name, counts.columns) or NOTHING for name in columns if name not in became
    }
    return features, line, summarise(types, counts.columns, became, unused | skipped)


def _number(column: ColumnCounts, kind: ColumnType) -> View | None:
    """What is standardised of a column: a number, or the minute of a date; None for others."""
    is_number = kind.name in ("number", "date") or kind.reason is not None
    is_number |= kind.name == "boolean" and column.kind == "number"
    return kind.views[0] if is_number else None


def _moments(view: View, counts: Counts) -> np.ndarray:
    """Count, sum and sum of squares of the values of a view."""
    if not view.form:
        return counts.numbers[view.columns[0]]
    values = counts.columns[view].values
    x, n = np.array(list(values), np.float64), np.array(list(values.values()), np.float64)
    return np.array([n.sum(), (n * x).sum(), (n * x * x).sum()])


def _outcomes(
    columns: list[str], vocabulary: list[tuple[str, int]], scales: Collection[View]
) -> dict[str, str]:
    """What became of each column, by its name."""
    numeric = {view.columns[0] for view in scales}
    became = {}
    for name in columns:
        count = sum(word.startswith(f"{name}=") for word, _ in vocabulary)
        words = f"{count} word{'s' * (count != 1)}" if count else ""
        text = ", ".join(filter(None, ["a number" if name in numeric else "", words]))
        if text:
            became[name] = text
    return became


def _vocabulary(rows: Dataset, bags: list[Bag], counts: Counts) -> list[tuple[str, int]]:
    """The most frequent words in at least two but not all rows, with the number of rows of each.

    If there were more than MOST_WORDS, the frequent ones are counted again, exactly.
    """
    of_rows = [bag for bag in bags if bag.counted_with_rows]
    names = {name for name in counts.columns if isinstance(name, str)}
    retyped = tuple(f"{name}=" for name in names - {bag.name for bag in of_rows})
    documents, least = counts.documents, 2.0
    if counts.undercount:
        least = max(least, counts.total / (MOST_WORDS // 2))
        frequent = {word for word, n in documents.items() if n >= least - counts.undercount}
        documents = tally(rows, lambda table: _documents(table, of_rows, frequent))
    if retyped:
        documents = Counter({w: n for w, n in documents.items() if not w.startswith(retyped)})
    for bag in bags:
        if not bag.counted_with_rows:
            documents += bag.documents(counts.columns)
    ranked = sorted(documents.items(), key=lambda item: (-item[1], item[0]))
    return [(word, df) for word, df in ranked[:VOCABULARY] if least <= df < counts.rows]


def _documents(
    table: pa.Table, bags: Collection[Bag], selected: Collection[str] | None = None
) -> Counter[str]:
    """The number of rows with each word, of all or of selected words."""
    documents: Counter[str] = Counter()
    for rows, words in occurrences(table, bags):
        unique = set(zip(rows.tolist(), words, strict=True))
        documents.update(word for _, word in unique if selected is None or word in selected)
    return documents


def _count(table: pa.Table, columns: list[str], given: Mapping[str, str]) -> Counts:
    counts = Counts(rows=table.num_rows)
    bags = plain_bags(table.schema, columns)
    for start in range(0, len(table), CHUNK):
        documents = _documents(table.slice(start, CHUNK), bags)
        counts.total += documents.total()
        counts.documents.update(documents)
        if len(counts.documents) > MOST_WORDS:
            counts.documents, subtracted = heaviest(counts.documents, MOST_WORDS // 2)
            counts.undercount += subtracted
    for name in columns:
        column = plain(table[name])
        if kind_of(column.type) == "number":
            values, known = numbers(column)
            x = values[known].astype(np.float64)
            counts.numbers[name] = np.array([len(x), x.sum(), np.square(x).sum()])
    views = views_to_count(table.schema, columns, given)
    counts.columns = count_table(table, columns, None, views)
    return counts


def _vectorise(
    table: pa.Table,
    words: dict[str, tuple[int, float]],
    scales: dict[View, tuple[float, float]],
    bags: list[Bag],
) -> pa.Table:
    bag = np.zeros((table.num_rows, len(words)))
    for rows, words_of_column in occurrences(table, bags):
        for row, word in zip(rows.tolist(), words_of_column, strict=True):
            if word in words:
                index, weight = words[word]
                bag[row, index] += weight
    norm = np.sqrt(np.square(bag).sum(1, keepdims=True))
    bag /= np.where(norm > 0, norm, 1)
    has_value = norm[:, 0] > 0
    scaled = np.zeros((table.num_rows, len(scales)))
    arrays = read(table, scales)
    for index, (view, (mean, deviation)) in enumerate(scales.items()):
        x, known = numbers(arrays[view])
        scaled[known, index] = np.clip((x[known] - mean) / deviation, -3, 3) / 3
        has_value |= known
    scaled /= math.sqrt(max(1, len(scales)))
    matrix = np.concatenate([bag, scaled], axis=1).astype(np.float32)
    flat = pa.array(matrix.reshape(-1))
    mask = pa.array(~has_value) if not has_value.all() else None
    feature = pa.FixedSizeListArray.from_arrays(flat, matrix.shape[1], mask=mask)
    return pa.table({ID: table[ID], "feature": feature})
