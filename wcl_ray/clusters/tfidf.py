"""Metadata as vectors, to be clustered by k-means: TF-IDF of words and tags, standardised numbers.

Two passes of Ray Data: the first counts, the driver chooses the vocabulary, the second makes one
dense row per image.
"""

from __future__ import annotations

import functools
import math
import operator
import pickle
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from ray.data import Dataset

from wcl_ray.clusters.binarise import kind_of, list_members, plain
from wcl_ray.data.source import ID
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
        numbers: column → (count, sum, sum of squares).
    """

    rows: int = 0
    documents: Counter[str] = field(default_factory=Counter)
    numbers: dict[str, np.ndarray] = field(default_factory=dict)

    def __add__(self, other: Counts) -> Counts:
        documents = self.documents + other.documents
        if len(documents) > MOST_WORDS:  # words met once in a while cannot be chosen any more
            documents = Counter(dict(documents.most_common(MOST_WORDS // 2)))
        names = self.numbers.keys() | other.numbers.keys()
        nothing = np.zeros(3)
        numbers = {
            n: self.numbers.get(n, nothing) + other.numbers.get(n, nothing) for n in sorted(names)
        }
        return Counts(self.rows + other.rows, documents, numbers)


def vectors(rows: Dataset, columns: list[str]) -> tuple[Dataset, str]:
    """Dense vectors of the metadata of each row.

    A string is a bag of its words, a list a bag of its members, a boolean one word. A word t has
    the weight ln((1 + N) / (1 + df_t)) + 1 (Salton and Buckley, 1988, smoothed); the words of a
    row have length 1 together. A number is standardised and cut at ±3, and weighs as much as
    1/√(numbers) of a bag. Missing values are zeros.

    Args:
        rows: ``__id`` and the columns.

    Returns:
        Rows ``__id`` and ``feature`` (float32 list; null for a row without any value), and a line
        for people.

    Raises:
        UserError: no column that can be turned into numbers.
    """

    def count(table: pa.Table) -> pa.Table:
        found = _count(table, columns)
        return pa.table({"counts": pa.array([pickle.dumps(found)], pa.large_binary())})

    parts = rows.map_batches(count, batch_format="pyarrow", batch_size=None).take_all()
    whole = functools.reduce(operator.add, [pickle.loads(part["counts"]) for part in parts])
    ranked = sorted(whole.documents.items(), key=lambda item: (-item[1], item[0]))
    chosen = [(word, df) for word, df in ranked[:VOCABULARY] if 2 <= df < whole.rows]
    numbers = {}
    for name, (n, total, squares) in whole.numbers.items():
        deviation = math.sqrt(max(0.0, squares / max(n, 1) - (total / max(n, 1)) ** 2))
        if n > 1 and deviation > 0:
            numbers[name] = (total / n, deviation)
    if not chosen and not numbers:
        raise UserError(
            f"k-means of metadata: none of the columns {', '.join(columns)} has a word that two "
            "images share, or a number that differs"
        )
    words = {
        word: (i, math.log((1 + whole.rows) / (1 + df)) + 1) for i, (word, df) in enumerate(chosen)
    }

    def make(table: pa.Table) -> Iterator[pa.Table]:
        for start in range(0, len(table), AT_ONCE):
            yield _rows(table.slice(start, AT_ONCE), words, numbers, columns)

    made = rows.map_batches(make, batch_format="pyarrow", batch_size=None)
    return made, f"{len(words)} words and {len(numbers)} numbers of {', '.join(columns)}"


def _bags(table: pa.Table, columns: list[str]) -> dict[str, tuple[np.ndarray, list[str]]]:
    """Per column of words: row and word of each occurrence."""
    found = {}
    for name in columns:
        column = plain(table[name])
        kind = kind_of(column.type)
        if kind == "list":
            members, values = list_members(column)
            words = [f"{name}={str(v).lower()}" for v in values.to_pylist()]
            found[name] = (members.to_numpy(), words)
        elif kind in ("string", "boolean"):
            at, words = [], []
            for row, text in enumerate(column.to_pylist()):
                if text is not None:
                    own = [f"{name}={w}" for w in WORD.findall(str(text).lower())]
                    words += own
                    at += [row] * len(own)
            found[name] = (np.array(at, np.int64), words)
    return found


def _count(table: pa.Table, columns: list[str]) -> Counts:
    counts = Counts(rows=table.num_rows)
    for rows, words in _bags(table, columns).values():
        counts.documents.update(word for _, word in set(zip(rows.tolist(), words, strict=True)))
    for name in columns:
        column = plain(table[name])
        if kind_of(column.type) == "number":
            x = column.drop_null().to_numpy().astype(np.float64)
            counts.numbers[name] = np.array([len(x), x.sum(), np.square(x).sum()])
    return counts


def _rows(
    table: pa.Table,
    words: dict[str, tuple[int, float]],
    numbers: dict[str, tuple[float, float]],
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
    scaled = np.zeros((table.num_rows, len(numbers)))
    for place, (name, (mean, deviation)) in enumerate(numbers.items()):
        x = plain(table[name]).to_numpy(zero_copy_only=False)
        here = np.isfinite(x)
        scaled[here, place] = np.clip((x[here] - mean) / deviation, -3, 3) / 3
        known |= here
    scaled /= math.sqrt(max(1, len(numbers)))
    both = np.concatenate([bag, scaled], axis=1).astype(np.float32)
    flat = pa.array(both.reshape(-1))
    mask = pa.array(~known) if not known.all() else None
    feature = pa.FixedSizeListArray.from_arrays(flat, both.shape[1], mask=mask)
    return pa.table({ID: table[ID], "feature": feature})
