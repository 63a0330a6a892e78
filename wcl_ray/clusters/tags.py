"""Tags in metadata columns: lists, or texts that hold them.

A text is a list of texts as JSON or Python (and so pandas) write it, such as ``["wild", "night"]``
or ``['wild', 'night']``, or has parts between separators: the first of SEPARATORS that occurs
anywhere in the column. White space around a tag and empty tags are dropped; words such as NA are
missing.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Collection
from typing import Any

import pyarrow as pa
import pyarrow.types as pat

from wcl_ray.clusters.unfit import first_unfit, parse
from wcl_ray.data.values import decoded, kind_of, plain

SEPARATORS = ";|,"
SPLIT_FORMS = {separator: f"tags{separator}" for separator in SEPARATORS}
# lists; which of SEPARATORS a text has; its parts between one of them
TAG_FORMS = ("tags", "separators", *SPLIT_FORMS.values())


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this Arrow type holds texts, or nothing in this block."""
    return kind_of(kind) == "string" and not pat.is_temporal(kind)


def read_tags(column: pa.ChunkedArray, form: str) -> pa.Array:
    """The list of each value, in one of TAG_FORMS.

    Raises:
        Unfit: a value that is no list.
    """
    values = plain(column)
    if form == "tags" and kind_of(values.type) == "list":
        return values
    if not is_text(decoded(column).type):
        raise first_unfit(values)
    separator = form.removeprefix("tags")

    def convert(text: str) -> list[str] | None:
        if form == "separators":
            return [] if _is_list(text) else [s for s in SEPARATORS if s in text]
        if form == "tags" or _is_list(text):
            return _members(text)
        return _trimmed(text.split(separator))

    return parse(values, convert, pa.list_(pa.string()))


def split_form(occurring: Collection[Any]) -> str:
    """The form that splits a column in which these of SEPARATORS occur."""
    return SPLIT_FORMS[next((s for s in SEPARATORS if s in occurring), SEPARATORS[0])]


def _is_list(text: str) -> bool:
    return text.lstrip().startswith("[")


def _members(text: str) -> list[str] | None:
    """The members of a list of texts; None: it is none.

    >>> _members('["wild", " night ", ""]'), _members("['a']"), _members("[1]"), _members("wild")
    (['wild', 'night'], ['a'], None, None)
    """
    if not _is_list(text):
        return None
    try:
        members = json.loads(text)
    except (ValueError, RecursionError):
        try:
            members = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return None
    texts = isinstance(members, list) and all(isinstance(member, str) for member in members)
    return _trimmed(members) if texts else None


def _trimmed(parts: list[str]) -> list[str]:
    return [part.strip() for part in parts if part.strip()]
