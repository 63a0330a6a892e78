"""The table id → cluster, one column per granularity, and its file."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wcl_ray.errors import UserError
from wcl_ray.storage import Folder

FILE = "assignment.parquet"  # of a round in a run folder
RANGE = 2**20  # rows of a row group; a file is sorted by id, so that each is a range of ids


@dataclass(frozen=True)
class Assignment:
    """Clusters of the training images. A *position* is a row of this table.

    Attributes:
        ids: int64 (N,), strictly increasing.
        clusters: int32 (N, G), 0 … K-1 by decreasing size; -1 = singleton.
        names: names of the G granularities, such as ``attributes-20``.
        keys: large_string (N,), the user's own names of the images, or None.
    """

    ids: np.ndarray
    clusters: np.ndarray
    names: tuple[str, ...]
    keys: pa.Array | None = None

    @staticmethod
    def from_rows(
        ids: np.ndarray,
        clusters: np.ndarray,
        names: tuple[str, ...],
        keys: pa.Array | None = None,
    ) -> Assignment:
        """Sort rows by id.

        Raises:
            UserError: a duplicate id; the message names it.
        """
        order = np.argsort(ids)
        ids = ids[order]
        duplicates = np.flatnonzero(ids[1:] == ids[:-1])
        if keys is not None:
            keys = keys.take(pa.array(order))
        if len(duplicates):
            row = int(duplicates[0])
            name = keys[row].as_py() if keys is not None else None
            raise UserError(
                f"id {int(ids[row]) if name is None else name!r} occurs more than once "
                f"({len(duplicates)} duplicates in all); ids must be unique, see --data.id"
            )
        return Assignment(ids, clusters[order].astype(np.int32, copy=False), names, keys)

    def sizes(self, granularity: int = 0) -> np.ndarray:
        """int64 (K,): number of images in each cluster."""
        column = self.clusters[:, granularity]
        return np.bincount(column[column >= 0])

    def restrict(self, ids: np.ndarray) -> Assignment:
        """The rows with given ids, their clusters renumbered by decreasing size.

        Args:
            ids: int64 (M,); unknown ones are ignored.
        """
        kept = np.isin(self.ids, ids)
        columns = [number_codes(c.astype(np.int64), c < 0) for c in self.clusters[kept].T]
        keys = None if self.keys is None else self.keys.filter(pa.array(kept))
        return Assignment(self.ids[kept], np.stack(columns, 1), self.names, keys)

    def is_nested(self, granularity: int) -> bool:
        """Whether each cluster of a granularity lies inside a single one of the granularity before
        it (or outside of all)."""
        coarse, fine = self.clusters[:, granularity - 1 : granularity + 1].T
        pairs = np.unique(np.stack([fine, coarse], 1)[fine >= 0], axis=0)
        return len(pairs) == len(np.unique(pairs[:, 0]))

    def as_singletons(self) -> Assignment:
        """The same images, each in a cluster of its own."""
        clusters = np.full((len(self.ids), 1), -1, dtype=np.int32)
        return Assignment(self.ids, clusters, ("instance",), self.keys)

    def table(self) -> pa.Table:
        """Columns ``id``, ``key`` if there are keys, and one int32 column per granularity."""
        columns = {"id": pa.array(self.ids)}
        if self.keys is not None:
            columns["key"] = self.keys
        for name, column in zip(self.names, self.clusters.T, strict=True):
            columns[name] = pa.array(np.ascontiguousarray(column))
        return pa.table(columns)

    def to_parquet(self) -> bytes:
        """Content of a Parquet file of :meth:`table`, with a row group for each RANGE rows."""
        sink = io.BytesIO()
        pq.write_table(self.table(), sink, compression="zstd", row_group_size=RANGE)
        return sink.getvalue()

    @staticmethod
    def from_parquet(content: bytes) -> Assignment:
        """Read what :meth:`to_parquet` wrote."""
        return _whole(pq.ParquetFile(pa.BufferReader(content)))

    @staticmethod
    def read(folder: Folder, name: str = FILE) -> Assignment:
        """Read a file of :meth:`to_parquet` range by range, into the arrays that it fills."""
        with folder.open(name) as file:
            return _whole(pq.ParquetFile(file))


def stored_names(folder: Folder, name: str = FILE) -> tuple[str, ...]:
    """Names of the granularities in a stored assignment; no row is read."""
    with folder.open(name) as file:
        return _names(pq.ParquetFile(file))


def stored_ranges(folder: Folder, name: str = FILE) -> Iterator[Assignment]:
    """A stored assignment by ranges of ids, so that one range at a time is in memory."""
    with folder.open(name) as file:
        yield from _ranges(pq.ParquetFile(file))


def _names(file: pq.ParquetFile) -> tuple[str, ...]:
    return tuple(name for name in file.schema_arrow.names if name not in ("id", "key"))


def _ranges(file: pq.ParquetFile) -> Iterator[Assignment]:
    names = _names(file)
    for number in range(file.num_row_groups):
        table = file.read_row_group(number)
        columns = [table[name].to_numpy() for name in names]
        keys = None
        if "key" in table.column_names:  # a string in older files
            keys = table["key"].cast(pa.large_string()).combine_chunks()
        yield Assignment(table["id"].to_numpy(), np.stack(columns, 1), names, keys)


def _whole(file: pq.ParquetFile) -> Assignment:
    """All ranges, each read into its part of the arrays."""
    names, n, start = _names(file), file.metadata.num_rows, 0
    ids, clusters = np.empty(n, np.int64), np.empty((n, len(names)), np.int32)
    keys: list[pa.Array] = []
    for part in _ranges(file):
        stop = start + len(part.ids)
        ids[start:stop], clusters[start:stop] = part.ids, part.clusters
        keys += [] if part.keys is None else [part.keys]
        start = stop
    return Assignment(ids, clusters, names, pa.concat_arrays(keys) if keys else None)


def number_codes(codes: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Number the codes by decreasing frequency, ties by code.

    Args:
        codes: int64 (N,).
        missing: bool (N,), rows without a cluster.

    Returns:
        int32 (N,) cluster numbers, independent of the order of rows; -1 where missing.
    """
    encoded = pa.array(codes[~missing]).dictionary_encode()  # hashing: a fifth of sorting's time
    code_of, values = encoded.indices.to_numpy(), encoded.dictionary.to_numpy()
    counts = np.bincount(code_of, minlength=len(values))
    rank = np.empty(len(values), dtype=np.int32)
    rank[np.lexsort((values, -counts))] = np.arange(len(values), dtype=np.int32)
    numbers = np.full(len(codes), -1, dtype=np.int32)
    numbers[~missing] = rank[code_of]
    return numbers
