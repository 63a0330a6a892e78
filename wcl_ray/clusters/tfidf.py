"""Metadata as vectors for k-means: TF-IDF of words and tags, and standardised numbers.

Two passes of Ray Data: the first counts words, from which the driver chooses the vocabulary, the
second computes one dense row per image.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from ray.data import Dataset

from wcl_ray.clusters.identifier import Spread, identifier
from wcl_ray.clusters.tally import heaviest, tally
from wcl_ray.data.sources.base import ID
from wcl_ray.data.values import kind_of, list_members, numbers, plain, value_names
from wcl_ray.errors import UserError

VOCABULARY = 1024  # words kept, the most frequent ones
MOST_WORDS = 500_000  # distinct words counted
CHUNK = 2048  # rows processed at a time
WORD = re.compile(r"\w+")


@dataclass
class Counts:
    """Counts of part of the rows; the sum of two covers both parts.

    Attributes:
        documents: word → number of rows with it; a word is ``column=text``.
        total: sum of these over all words.
        undercount: by how much each count may be too low; 0 unless there were more than MOST_WORDS.
            A word without a count has at most this many rows.
        numbers: number column → (count, sum, sum of squares).
        spreads: number column → range, step and repetition of its values.
    """

    rows: int = 0
    documents: Counter[str] = field(default_factory=Counter)
    total: int = 0
    undercount: int = 0
    numbers: dict[str, np.ndarray] = field(default_factory=dict)
    spreads: dict[str, Spread] = field(default_factory=dict)

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
            {n: self.spreads.get(n, Spread()) + other.spreads.get(n, Spread()) for n in names},
        )


def vectors(
    rows: Dataset, columns: list[str], named: Collection[str] | None = None
) -> tuple[Dataset, str]:
    """Dense vectors of the metadata of each row.

    A string is a bag of its words, a list a bag of its members, a boolean one word. A word t has
    the weight ln((1 + N) / (1 + df_t)) + 1 (Salton and Buckley, 1988, smoothed); the bag of a row
    is scaled to length 1. Numbers are standardised, clipped to ±3, and scaled to weigh at most as
    much as a bag together. Missing values are zeros.

    Args:
        rows: ``__id`` and the columns.
        named: columns to use even if they look like row numbers or identifiers (see
            :func:`identifier`); others that do are left out. None: use all.

    Returns:
        Rows ``__id`` and ``feature`` (float32 list; null for a row without any value), and a line
        that describes them to the user.

    Raises:
        UserError: no column can be turned into numbers.
    """
    counts = tally(rows, lambda table: _count(table, columns))
    vocabulary = _vocabulary(rows, columns, counts)
    scales, skipped = {}, {}
    for name, (n, total, squares) in counts.numbers.items():
        deviation = math.sqrt(max(0.0, squares / max(n, 1) - (total / max(n, 1)) ** 2))
        requested = named is None or name in named
        reason = None if requested else identifier(name, counts.spreads[name], int(n))
        if reason:
            skipped[name] = reason
        elif n > 1 and deviation > 0:
            # rounded, since the last digits of float sums depend on the order of the blocks
            scales[name] = (float(f"{total / n:.10g}"), float(f"{deviation:.10g}"))
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
            yield _vectorise(table.slice(start, CHUNK), words, scales, columns)

    features = rows.map_batches(vectorise, batch_format="pyarrow", batch_size=None)
    used = ", ".join(name for name in columns if name not in skipped)
    return features, f"{len(words)} words and {len(scales)} numbers of {used}{left_out}"


def _vocabulary(rows: Dataset, columns: list[str], counts: Counts) -> list[tuple[str, int]]:
    """The most frequent words in at least two but not all rows, with the number of rows of each.

    If there were more than MOST_WORDS, the frequent ones are counted again, exactly.
    """
    documents, least = counts.documents, 2.0
    if counts.undercount:
        least = max(least, counts.total / (MOST_WORDS // 2))
        frequent = {word for word, n in documents.items() if n >= least - counts.undercount}
        documents = tally(rows, lambda table: _documents(table, columns, frequent))
    ranked = sorted(documents.items(), key=lambda item: (-item[1], item[0]))
    return [(word, df) for word, df in ranked[:VOCABULARY] if least <= df < counts.rows]


def _bags(table: pa.Table, columns: list[str]) -> Iterator[tuple[np.ndarray, list[str]]]:
    """The row and the word of each occurrence, column by column."""
    for name in columns:
        column = plain(table[name])
        kind = kind_of(column.type)
        if kind == "list":
            members, values = list_members(column)
            yield (
                members.to_numpy(),
                [f"{name}={value.lower()}" for value in value_names(values, name).to_pylist()],
            )
        elif kind in ("string", "boolean"):
            rows, words = [], []
            for row, text in enumerate(value_names(column, name).to_pylist()):
                if text is not None:
                    words_of_row = [f"{name}={word}" for word in WORD.findall(text.lower())]
                    words += words_of_row
                    rows += [row] * len(words_of_row)
            yield np.array(rows, np.int64), words


def _documents(
    table: pa.Table, columns: list[str], selected: Collection[str] | None = None
) -> Counter[str]:
    """The number of rows with each word, of all or of selected words."""
    documents: Counter[str] = Counter()
    for rows, words in _bags(table, columns):
        unique = set(zip(rows.tolist(), words, strict=True))
        documents.update(word for _, word in unique if selected is None or word in selected)
    return documents


def _count(table: pa.Table, columns: list[str]) -> Counts:
    counts = Counts(rows=table.num_rows)
    for start in range(0, len(table), CHUNK):
        documents = _documents(table.slice(start, CHUNK), columns)
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
            counts.spreads[name] = Spread.of(*np.unique(values[known], return_counts=True))
    return counts


def _vectorise(
    table: pa.Table,
    words: dict[str, tuple[int, float]],
    scales: dict[str, tuple[float, float]],
    columns: list[str],
) -> pa.Table:
    bag = np.zeros((table.num_rows, len(words)))
    for rows, words_of_column in _bags(table, columns):
        for row, word in zip(rows.tolist(), words_of_column, strict=True):
            if word in words:
                index, weight = words[word]
                bag[row, index] += weight
    norm = np.sqrt(np.square(bag).sum(1, keepdims=True))
    bag /= np.where(norm > 0, norm, 1)
    has_value = norm[:, 0] > 0
    scaled = np.zeros((table.num_rows, len(scales)))
    for index, (name, (mean, deviation)) in enumerate(scales.items()):
        x, known = numbers(plain(table[name]))
        scaled[known, index] = np.clip((x[known] - mean) / deviation, -3, 3) / 3
        has_value |= known
    scaled /= math.sqrt(max(1, len(scales)))
    matrix = np.concatenate([bag, scaled], axis=1).astype(np.float32)
    flat = pa.array(matrix.reshape(-1))
    mask = pa.array(~has_value) if not has_value.all() else None
    feature = pa.FixedSizeListArray.from_arrays(flat, matrix.shape[1], mask=mask)
    return pa.table({ID: table[ID], "feature": feature})
