"""Images that show what an encoder has learned: members of clusters, neighbours, a map.

They are kept in one small file, so that the page of a run needs neither the images nor the encoder.
:mod:`wcl_ray.evaluate.choice` chooses them.
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq

EXAMPLES = "examples"  # key of the figures of an evaluation
FILE = "examples.parquet"  # of a run folder


@dataclass(frozen=True)
class Sheet:
    """A cluster to look at.

    Attributes:
        reasons: of ``largest``, ``smallest``, ``purest``, ``most mixed``.
        size: number of its training images.
        rows: of some of its images.
        label, share: its commonest label, and that label's share; None without labels.
        words: what its images have in common; None if there is no pattern.
    """

    granularity: str
    cluster: int
    reasons: tuple[str, ...]
    size: int
    rows: tuple[int, ...]
    label: str | None = None
    share: float | None = None
    words: str | None = None


@dataclass(frozen=True)
class Query:
    """An image and the training images nearest to it.

    Attributes:
        row: of the image.
        neighbours: rows, the nearest first.
        similarities: cosine of each.
        mistake: whether it was chosen because all of its neighbours have another label.
    """

    row: int
    neighbours: tuple[int, ...]
    similarities: tuple[float, ...]
    mistake: bool


@dataclass(frozen=True)
class Examples:
    """The chosen images.

    Attributes:
        images: ``id``, ``key``, ``test`` (bool), ``label`` (null if unknown), ``thumbnail``
            (JPEG), ``cluster`` (of the first granularity; null for test images and singletons) and,
            of the images of the map, ``feature``. Other attributes refer to its rows.
        bank: number of training images that neighbours are searched among.
        asked: number of images that neighbours were searched for.
        mistakes: number of these whose neighbours all have another label; None without labels.
    """

    images: pa.Table
    sheets: tuple[Sheet, ...] = ()
    queries: tuple[Query, ...] = ()
    bank: int = 0
    asked: int = 0
    mistakes: int | None = None

    def to_parquet(self) -> bytes:
        """Content of a Parquet file: the images, the rest as JSON in its metadata."""
        rest = {"sheets": [asdict(s) for s in self.sheets], "bank": self.bank, "asked": self.asked}
        rest |= {"queries": [asdict(q) for q in self.queries], "mistakes": self.mistakes}
        sink = io.BytesIO()
        pq.write_table(
            self.images.replace_schema_metadata({EXAMPLES: json.dumps(rest)}),
            sink,
            compression="zstd",
        )
        return sink.getvalue()

    @staticmethod
    def from_parquet(content: bytes) -> Examples:
        """Read what :meth:`to_parquet` wrote."""
        images = pq.read_table(io.BytesIO(content))
        rest = json.loads(images.schema.metadata[EXAMPLES.encode()])
        sheets = (
            Sheet(**(s | {"reasons": tuple(s["reasons"]), "rows": tuple(s["rows"])}))
            for s in rest.pop("sheets")
        )
        queries = (
            Query(q["row"], tuple(q["neighbours"]), tuple(q["similarities"]), q["mistake"])
            for q in rest.pop("queries")
        )
        return Examples(images, tuple(sheets), tuple(queries), **rest)

    def with_words(self, words: dict[str, dict[int, str]]) -> Examples:
        """The same with the words of clusters, by granularity."""
        sheets = (
            replace(s, words=words.get(s.granularity, {}).get(s.cluster)) for s in self.sheets
        )
        return replace(self, sheets=tuple(sheets))
