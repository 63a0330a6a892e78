"""Metadata as vectors, to be clustered by k-means: TF-IDF of words and tags, standardised numbers.

Two passes of Ray Data: the first counts, the driver chooses the vocabulary, the second makes one
dense row per image.
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

VOCABULARY = 1024  # most frequent words that are kept
MOST_WORDS = 500_000  # different words that are counted
AT_ONCE = 2048  # rows made at a time
WORD = re.compile(r"\w+")


@dataclass
class Counts:
    """Of a part of the rows; adding two gives those of both.

    Attributes:
        documents: word → rows that have it; a word is ``column=text``.
        total: sum of these over all words.
        lost: what the counts may lack, and the most that a word may have which is not among them;
            0 unless there were more than MOST_WORDS.
        numbers: column → (count, sum, sum of squares).
        spreads: column of numbers → how they are spread.
    """

    rows: int = 0
    documents: Counter[str] = field(default_factory=Counter)
    total: int = 0
    lost: int = 0
    numbers: dict[str, np.ndarray] = field(default_factory=dict)
    spreads: dict[str, Spread] = field(default_factory=dict)

    def __add__(self, other: Counts) -> Counts:
        documents, taken = self.documents + other.documents, 0
        if len(documents) > MOST_WORDS:
            documents, taken = heaviest(documents, MOST_WORDS // 2)
        names = sorted(self.numbers.keys() | other.numbers.keys())
        nothing = np.zeros(3)
        return Counts(
            self.rows + other.rows,
            documents,
            self.total + other.total,
            self.lost + other.lost + taken,
            {n: self.numbers.get(n, nothing) + other.numbers.get(n, nothing) for n in names},
            {n: self.spreads.get(n, Spread()) + other.spreads.get(n, Spread()) for n in names},
        )


def vectors(
    rows: Dataset, columns: list[str], named: Collection[str] | None = None
) -> tuple[Dataset, str]:
    """Dense vectors of the metadata of each row.

    A string is a bag of its words, a list a bag of its members, a boolean one word. A word t has
    the weight ln((1 + N) / (1 + df_t)) + 1 (Salton and Buckley, 1988, smoothed); the words of a
    row have length 1 together. A number is standardised and cut at ±3, and weighs as much as
    1/√(numbers) of a bag. Missing values are zeros.

    Args:
        rows: ``__id`` and the columns.
        named: columns that are used though they look like row numbers or identifiers (see
            :func:`identifier`); the others that do are left out. None: all are used.

    Returns:
        Rows ``__id`` and ``feature`` (float32 list; null for a row without any value), and a line
        for people.

    Raises:
        UserError: no column that can be turned into numbers.
    """

    whole = tally(rows, lambda table: _count(table, columns))
    chosen = _vocabulary(rows, columns, whole)
    scales, left = {}, {}
    for name, (n, total, squares) in whole.numbers.items():
        deviation = math.sqrt(max(0.0, squares / max(n, 1) - (total / max(n, 1)) ** 2))
        wanted = named is None or name in named
        reason = None if wanted else identifier(name, whole.spreads[name], int(n))
        if reason:
            left[name] = reason
        elif n > 1 and deviation > 0:
            # sums of floats depend on the order of the blocks, in digits that do not matter
            scales[name] = (float(f"{total / n:.10g}"), float(f"{deviation:.10g}"))
    without = "".join(f"; left out: column {name!r}, {why}" for name, why in left.items())
    if not chosen and not scales:
        raise UserError(
            f"k-means of metadata: none of the columns {', '.join(columns)} has a word that two "
            f"images share, or a number that differs{without}"
        )
    words = {
        word: (i, math.log((1 + whole.rows) / (1 + df)) + 1) for i, (word, df) in enumerate(chosen)
    }

    def make(table: pa.Table) -> Iterator[pa.Table]:
        for start in range(0, len(table), AT_ONCE):
            yield _rows(table.slice(start, AT_ONCE), words, scales, columns)

    made = rows.map_batches(make, batch_format="pyarrow", batch_size=None)
    used = ", ".join(name for name in columns if name not in left)
    return made, f"{len(words)} words and {len(scales)} numbers of {used}{without}"


def _vocabulary(rows: Dataset, columns: list[str], whole: Counts) -> list[tuple[str, int]]:
    """The most frequent words that two rows share and not all have, and the rows of each.

    Of more than MOST_WORDS words those with few rows are not known; the others are counted again.
    """
    documents, least = whole.documents, 2.0
    if whole.lost:
        least = max(least, whole.total / (MOST_WORDS // 2))
        wanted = {word for word, count in documents.items() if count >= least - whole.lost}
        documents = tally(rows, lambda table: _words(table, columns, wanted))
    ranked = sorted(documents.items(), key=lambda item: (-item[1], item[0]))
    return [(word, df) for word, df in ranked[:VOCABULARY] if least <= df < whole.rows]


def _bags(table: pa.Table, columns: list[str]) -> dict[str, tuple[np.ndarray, list[str]]]:
    """Per column of words: row and word of each occurrence."""
    found = {}
    for name in columns:
        column = plain(table[name])
        kind = kind_of(column.type)
        if kind == "list":
            members, values = list_members(column)
            words = [f"{name}={v.lower()}" for v in value_names(values, name).to_pylist()]
            found[name] = (members.to_numpy(), words)
        elif kind in ("string", "boolean"):
            at, words = [], []
            for row, text in enumerate(value_names(column, name).to_pylist()):
                if text is not None:
                    own = [f"{name}={w}" for w in WORD.findall(text.lower())]
                    words += own
                    at += [row] * len(own)
            found[name] = (np.array(at, np.int64), words)
    return found


def _words(table: pa.Table, columns: list[str], wanted: Collection[str] | None) -> Counter[str]:
    """Rows that have each word, of all or of some words."""
    documents: Counter[str] = Counter()
    for rows, words in _bags(table, columns).values():
        once = set(zip(rows.tolist(), words, strict=True))
        documents.update(word for _, word in once if wanted is None or word in wanted)
    return documents


def _count(table: pa.Table, columns: list[str]) -> Counts:
    counts = Counts(rows=table.num_rows)
    for start in range(0, len(table), AT_ONCE):
        documents = _words(table.slice(start, AT_ONCE), columns, None)
        counts.total += documents.total()
        counts.documents.update(documents)
        if len(counts.documents) > MOST_WORDS:
            counts.documents, taken = heaviest(counts.documents, MOST_WORDS // 2)
            counts.lost += taken
    for name in columns:
        column = plain(table[name])
        if kind_of(column.type) == "number":
            values, known = numbers(column)
            x = values[known].astype(np.float64)
            counts.numbers[name] = np.array([len(x), x.sum(), np.square(x).sum()])
            counts.spreads[name] = Spread.of(*np.unique(values[known], return_counts=True))
    return counts


def _rows(
    table: pa.Table,
    words: dict[str, tuple[int, float]],
    scales: dict[str, tuple[float, float]],
    columns: list[str],
) -> pa.Table:
    bag = np.zeros((table.num_rows, len(words)))
    known = np.zeros(table.num_rows, dtype=bool)
    for rows, found in _bags(table, columns).values():
        for row, word in zip(rows.tolist(), found, strict=True):
            if word in words:
                place, weight = words[word]
                bag[row, place] += weight
    norm = np.sqrt(np.square(bag).sum(1, keepdims=True))
    bag /= np.where(norm > 0, norm, 1)
    known |= norm[:, 0] > 0
    scaled = np.zeros((table.num_rows, len(scales)))
    for place, (name, (mean, deviation)) in enumerate(scales.items()):
        x, here = numbers(plain(table[name]))
        scaled[here, place] = np.clip((x[here] - mean) / deviation, -3, 3) / 3
        known |= here
    scaled /= math.sqrt(max(1, len(scales)))
    both = np.concatenate([bag, scaled], axis=1).astype(np.float32)
    flat = pa.array(both.reshape(-1))
    mask = pa.array(~known) if not known.all() else None
    feature = pa.FixedSizeListArray.from_arrays(flat, both.shape[1], mask=mask)
    return pa.table({ID: table[ID], "feature": feature})
