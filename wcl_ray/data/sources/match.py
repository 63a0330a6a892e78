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
from wcl_ray.data.sources.leftover import UNSUPPORTED
from wcl_ray.data.sources.listing import IMAGE_SUFFIXES
from wcl_ray.data.values import decoded, value_names
from wcl_ray.errors import UserError

# columns that hold the names of images, most usual first; other columns of text are tried if none
# of them fits. Numbers elsewhere are not taken for names: counts and ranks also match 0.png, 1.png
KEYS = (
    "id", "file_name", "filename", "file", "path", "filepath", "file_path", "image", "image_id",
    "image_name", "image_path", "img", "key", "name",
)  # fmt: skip
SHOWN = 3  # names of each side in an error
DEEPEST = 12  # folders above an image's name that are compared
# a table may name the files that the images were converted from
SUFFIX = rf"(?i)\.({'|'.join((*IMAGE_SUFFIXES, *UNSUPPORTED))})$"


@dataclass(frozen=True)
class Match:
    """How a metadata table and the images of a source fit together.

    Attributes:
        table: path of the table.
        column: of the table, with the names of the images.
        images, rows: numbers of both; ``matched`` of them belong together.
        ids: hash of the sorted ids of the images that have a row.
        columns: that the table adds to the images.
    """

    table: str
    column: str
    images: int
    rows: int
    matched: int
    ids: str
    columns: tuple[str, ...] = ()

    @property
    def sparse(self) -> bool:
        """Whether fewer than half of the images have a row."""
        return 2 * self.matched < self.images

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
    usual: tuple[str, ...],
    table: str,
    source: str,
) -> tuple[Match, np.ndarray, np.ndarray]:
    """Find the rows of a source's images.

    Args:
        ids: int64 (N,), of the images. keys: string (N,), their names; null: the name is the id.
        rows: the metadata table.
        column: of the table, with the names of the images. None: the one that agrees with them in
            most characters, of the columns with ``usual`` names if more than half of the images or
            rows fit, else also of the columns of text that name at least half of the images.
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
    fits: dict[str, tuple[int, np.ndarray]] = {}
    accidental: dict[str, int] = {}  # columns of few names → their number
    preferred, others = _candidates(rows, column, usual, table)
    for columns in (preferred, others):
        for name in columns:
            what = f"column {name!r}"
            row_of, agreed, problem = find_rows(names, _keys(rows[name], f"{table}: {what}"))
            problems += [f"{what}: {problem}"] if problem else []
            count = int((row_of >= 0).sum())
            if name in others and 2 * count < len(ids):
                accidental |= {name: count} if count else {}
            elif agreed:
                fits[name] = agreed, row_of
        matched = max((int((row_of >= 0).sum()) for _, row_of in fits.values()), default=0)
        if 2 * matched > min(len(ids), rows.num_rows):
            break  # else the usual name may be an accident
    if fits:
        best, *rest = sorted(fits, key=lambda name: -fits[name][0])
        if best in others and rest and 2 * fits[rest[0]][0] > fits[best][0]:
            listed = f"{best!r}, {rest[0]!r}"
            raise UserError(
                f"{table}: {listed} may both be names of images; choose with --data.key"
            )
        row_of = fits[best][1]
        counts = (len(ids), rows.num_rows, int((row_of >= 0).sum()))
        return Match(table, best, *counts, array_digest(ids[row_of >= 0])), ids, row_of
    if problems:
        raise UserError(f"{table}: {problems[0]}")
    if accidental:
        name = max(accidental, key=lambda name: accidental[name])
        numbers = f"{accidental[name]:,} of {len(ids):,} images"
        raise UserError(
            f"{table}: column {name!r} names {numbers} only; if it holds the images' names, give "
            f"--data.key {name}"
        )
    tried = [*preferred, *others, *rows.column_names][0]
    remedy = "name the column with the images' ids or file names with --data.key"
    if column is not None:
        remedy = (
            "the values of --data.key have to be the images' ids or file names, with or without "
            "folders and suffix"
        )
    raise UserError(
        f"{table}: no row belongs to an image of {source}: column {tried!r} holds "
        f"{_examples(rows[tried])}, the images are {_examples(names.sort())}; {remedy}"
    )


def _candidates(
    rows: pa.Table, column: str | None, usual: tuple[str, ...], table: str
) -> tuple[list[str], list[str]]:
    """Columns that may hold the names: those to prefer, and the others of text."""
    if column is None:
        named = {name.lower().replace(" ", "_"): name for name in reversed(rows.column_names)}
        named |= {name: name for name in rows.column_names}
        kinds = {field.name: decoded(rows[field.name].slice(0, 0)).type for field in rows.schema}
        texts = [n for n, k in kinds.items() if pat.is_string(k) or pat.is_integer(k)]
        # pandas writes integers as floats where some are missing
        single = {n for n, k in kinds.items() if n in texts or pat.is_floating(k)}
        preferred = [named[name] for name in usual if named.get(name) in single]
        preferred = list(dict.fromkeys(preferred))
        others = [n for n in texts if n not in preferred and not _numeric(decoded(rows[n]))]
        return preferred, others
    if column not in rows.column_names:
        near = difflib.get_close_matches(column, rows.column_names, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise UserError(
            f"data.key {column!r} is not a column of {table}{hint}; the columns are: "
            f"{', '.join(rows.column_names) or '(none)'}"
        )
    return [column], []


def _keys(column: pa.ChunkedArray, what: str) -> pa.Array:
    values = decoded(column)
    return values.cast(pa.int64()) if _small(values.type) else value_names(column, what)


def _numeric(column: pa.ChunkedArray) -> bool:
    """Whether a column holds integers, perhaps as texts; 007 is a name."""
    if pat.is_integer(column.type):
        return True
    return bool(pc.all(pc.match_substring_regex(column, r"^\s*-?(0|[1-9]\d*)\s*$")).as_py())


def _small(kind: pa.DataType) -> bool:
    """Whether int64 holds all integers of a type."""
    return bool(pat.is_integer(kind) and not pat.is_uint64(kind))


def _examples(column: pa.Array | pa.ChunkedArray) -> str:
    shown = column.drop_null().slice(0, SHOWN).to_pylist()
    return ", ".join(map(repr, shown)) or "nothing"


def find_rows(names: pa.Array, keys: pa.Array) -> tuple[np.ndarray, int, str | None]:
    """The row whose key is the name of an image.

    Names and keys are compared with all their folders, then with ever fewer, each time with and
    without the suffix of an image. The first is taken that gives more than half as many rows to
    images as the best one: the same file name in another folder is probably another image.

    Args:
        names: (N,) int64 or string, distinct. keys: (M,) int64 or string; null is no key.

    Returns:
        int64 (N,) rows, -1 = none; the number of characters in the names that were found; and, if
        no comparison gives rows to images one to one, what is in the way, in words.

    >>> find_rows(pa.array(["a/1.png", "b/2.png"]), pa.array(["2", "photos/b/3.png"]))[0].tolist()
    [-1, 0]
    """
    possible = min(len(names), len(keys) - keys.null_count)
    none, problem = np.full(len(names), -1), None
    comparisons = [(0, 0, none)]  # matched images, characters and rows, for each number of folders
    for forms in _comparable(names, keys):
        most, characters, best = 0, 0, none
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
                texts = compared[0].filter(pa.array(best >= 0)).cast(pa.large_string())
                characters = pc.sum(pc.utf8_length(texts)).as_py()
        comparisons.append((most, characters, best))
        if 2 * most > possible:
            break
    half = max(comparisons, key=lambda form: form[0])[0] / 2
    _, characters, rows = next((form for form in comparisons if form[0] > half), comparisons[0])
    return rows, characters, None if characters else problem


def _ambiguity(
    names: pa.Array, keys: pa.Array, of_names: np.ndarray, of_keys: np.ndarray, code: int
) -> str:
    """What a code that occurs more than once on a side stands for."""
    rows = np.flatnonzero(of_keys == code)
    images = names.filter(pa.array(of_names == code)).cast(pa.string()).sort()
    key = keys[int(rows[0])].as_py()
    if len(images) > 1:
        listed = " and ".join(images[:2].to_pylist())
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
