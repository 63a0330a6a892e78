"""Finds the row of a metadata table that belongs to each image, by the image's name."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from wcl_ray.data.ids import array_digest
from wcl_ray.data.sources.listing import IMAGE_SUFFIXES
from wcl_ray.data.values import decoded, value_names
from wcl_ray.errors import UserError

# columns that hold the names of images, most usual first; others are tried if none of them fits
KEYS = (
    "id", "file_name", "filename", "file", "path", "filepath", "file_path", "image", "image_id",
    "image_name", "image_path", "img", "key", "name",
)  # fmt: skip
SHOWN = 3  # names of each side in an error
DEEPEST = 12  # folders above an image's name that are compared
SUFFIX = rf"(?i)\.({'|'.join(IMAGE_SUFFIXES)})$"


@dataclass(frozen=True)
class Match:
    """How a metadata table and the images of a source fit together.

    Attributes:
        table: path of the table.
        column: of the table, with the names of the images.
        images, rows: numbers of both; ``matched`` of them belong together.
        ids: hash of the sorted ids of the images that have a row.
    """

    table: str
    column: str
    images: int
    rows: int
    matched: int
    ids: str

    def describe(self) -> str:
        """One line with the numbers, for the user."""
        return (
            f"{self.matched:,} of {self.images:,} images have a row, {self.rows - self.matched:,} "
            f"rows have no image ({self.table}, column {self.column!r})"
        )


def match_table(
    ids: np.ndarray,
    keys: pa.Array,
    rows: pa.Table,
    column: str | None,
    table: str,
    source: str,
) -> tuple[Match, np.ndarray, np.ndarray]:
    """Find the rows of a source's images.

    Args:
        ids: int64 (N,), of the images. keys: string (N,), their names; null: the name is the id.
        rows: the metadata table.
        column: of the table, with the names of the images; None: found.
        table, source: paths, for messages.

    Returns:
        The match; int64 (N,), the sorted ids of the images; and int64 (N,), the row of each, -1 =
        none.

    Raises:
        UserError: no such column, no row belongs to an image, the names are ambiguous, or several
            columns hold names.
    """
    if not rows.num_rows:
        raise UserError(f"{table} holds no rows")
    ids, first = np.unique(ids, return_index=True)
    names, keys = pa.array(ids), keys.take(pa.array(first))
    if keys.null_count < len(keys):  # of unsigned ids only the large ones have a key
        names = pc.coalesce(keys, names.cast(pa.string()))
    problems: list[str] = []
    for columns in _candidates(rows, column, table):
        fits: dict[str, np.ndarray] = {}
        for name in columns:
            found, problem = find_rows(names, _keys(rows[name], f"{table}: column {name!r}"))
            problems += [f"column {name!r}: {problem}"] if problem else []
            if (found >= 0).any():
                fits[name] = found
        if len(fits) > 1 and not set(columns) & set(_usual(rows)):
            listed = ", ".join(map(repr, fits))
            raise UserError(f"{table}: {listed} may all be names of images; choose with --data.key")
        if fits:
            best = max(fits, key=lambda name: int((fits[name] >= 0).sum()))
            found = fits[best]
            counts = (len(ids), rows.num_rows, int((found >= 0).sum()))
            return Match(table, best, *counts, array_digest(ids[found >= 0])), ids, found
    if problems:
        raise UserError(f"{table}: {problems[0]}")
    tried = column or next(iter([*_usual(rows), *rows.column_names]))
    raise UserError(
        f"{table}: no row belongs to an image of {source}: column {tried!r} holds "
        f"{_examples(rows[tried])}, the images are {_examples(names)}; name the column with the "
        "images' ids or file names with --data.key"
    )


def _candidates(rows: pa.Table, column: str | None, table: str) -> list[list[str]]:
    """Columns that may hold the names: those to prefer, then all others."""
    if column is None:
        usual = _usual(rows)
        kinds = {field.name: decoded(rows[field.name].slice(0, 0)).type for field in rows.schema}
        others = [n for n, k in kinds.items() if pat.is_string(k) or pat.is_integer(k)]
        return [usual, [name for name in others if name not in usual]]
    if column not in rows.column_names:
        near = difflib.get_close_matches(column, rows.column_names, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise UserError(
            f"data.key {column!r} is not a column of {table}{hint}; the columns are: "
            f"{', '.join(rows.column_names) or '(none)'}"
        )
    return [[column]]


def _usual(rows: pa.Table) -> list[str]:
    named = {name.lower().replace(" ", "_"): name for name in reversed(rows.column_names)}
    return [named[name] for name in KEYS if name in named]


def _keys(column: pa.ChunkedArray, what: str) -> pa.Array:
    values = decoded(column)
    return values.cast(pa.int64()) if _small(values.type) else value_names(column, what)


def _small(kind: pa.DataType) -> bool:
    """Whether int64 holds all integers of a type."""
    return bool(pat.is_integer(kind) and not pat.is_uint64(kind))


def _examples(column: pa.Array | pa.ChunkedArray) -> str:
    shown = column.drop_null().slice(0, SHOWN).to_pylist()
    return ", ".join(map(repr, shown)) or "nothing"


def find_rows(names: pa.Array, keys: pa.Array) -> tuple[np.ndarray, str | None]:
    """The row whose key is the name of an image.

    Names and keys are compared with all their folders, then with ever fewer, each time with and
    without the suffix of an image. The first comparison is taken that gives half as many images a
    row as the best one: a file of the same name in another folder is hardly the same image.

    Args:
        names: (N,) int64 or string, distinct. keys: (M,) int64 or string; null is no key.

    Returns:
        int64 (N,) rows, -1 = none. If no comparison gives rows to images one to one: what is in the
        way, in words.

    >>> find_rows(pa.array(["a/1.png", "b/2.png"]), pa.array(["2", "photos/b/3.png"]))[0].tolist()
    [-1, 0]
    """
    possible = min(len(names), len(keys) - keys.null_count)
    none, problem = np.full(len(names), -1), None
    found = [(0, none)]  # matched images and their rows, for each number of folders
    for forms in _comparable(names, keys):
        most, best = 0, none
        for compared in forms:
            codes = pa.concat_arrays(compared).dictionary_encode().indices.fill_null(-1).to_numpy()
            of_names, of_keys = codes[: len(names)], codes[len(names) :]
            size = int(codes.max(initial=-1)) + 1
            counts = [np.bincount(c[c >= 0], minlength=size) for c in (of_names, of_keys)]
            shared = (counts[0] > 0) & (counts[1] > 0)
            repeated = np.flatnonzero(shared & ((counts[0] > 1) | (counts[1] > 1)))
            if len(repeated):
                problem = problem or _ambiguity(names, keys, of_names, of_keys, int(repeated[0]))
            elif shared.sum() > most:
                with_key = np.flatnonzero(of_keys >= 0)
                row_of = np.full(size, -1)
                row_of[of_keys[with_key]] = with_key
                most, best = int(shared.sum()), row_of[of_names]
        found.append((most, best))
        if most and 2 * most >= possible:
            break
    half = max(count for count, _ in found) / 2
    count, rows = next((count, rows) for count, rows in found[1:] if count >= half)
    return rows, None if count else problem


def _ambiguity(
    names: pa.Array, keys: pa.Array, of_names: np.ndarray, of_keys: np.ndarray, code: int
) -> str:
    """What a code that occurs more than once on a side stands for."""
    images, rows = np.flatnonzero(of_names == code), np.flatnonzero(of_keys == code)
    key = keys[int(rows[0])].as_py()
    if len(images) > 1:
        listed = " and ".join(str(names[int(i)].as_py()) for i in images[:2])
        return f"{key!r} may be {listed}; write the folders of the images into the column"
    other = keys[int(rows[1])].as_py()
    also = "" if other == key else f" (also as {other!r})"
    return f"{key!r} occurs more than once{also}; every image may have one row only"


def _comparable(names: pa.Array, keys: pa.Array) -> Iterator[list[list[pa.Array]]]:
    """Names and keys in one type: for each number of folders, the forms that are compared."""
    if _small(names.type) and _small(keys.type):
        yield [[names.cast(pa.int64()), keys.cast(pa.int64())]]
        return
    sides = [_normal(names), _normal(keys)]
    folders = max((pc.max(pc.count_substring(side, "/")).as_py() or 0) for side in sides)
    for parts in range(min(folders, DEEPEST) + 1, 0, -1):
        tail = rf"^.*/((?:[^/]*/){{{parts - 1}}}[^/]*)$"
        tails = [pc.replace_substring_regex(side, tail, r"\1") for side in sides]
        yield [tails, [pc.replace_substring_regex(side, SUFFIX, "") for side in tails]]


def _normal(values: pa.Array) -> pa.Array:
    """Names in one spelling: composed accents, slashes between folders, nothing in front."""
    texts = pc.utf8_normalize(values.cast(pa.string()).cast(pa.large_string()), form="NFC")
    texts = pc.replace_substring(pc.utf8_trim_whitespace(texts), "\\", "/")
    return pc.replace_substring_regex(texts, r"^(\.?/)+", "")
