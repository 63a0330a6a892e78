"""Places images in shards so that those of one cluster can be read together: pure functions.

A shard is a file; its row groups are read in random order, several at a time. The images of a
cluster go into one row group, together with those of many other clusters. A large cluster is cut
into parts, which go into different row groups, so that no row group is of one kind. Of several
granularities the parts of a coarse cluster consist of whole finer ones: so clusters that change
from round to round, within the coarse ones, mostly stay together.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wcl_ray.data.ids import positions_of
from wcl_ray.data.sources.listing import Files

FILE = "_placement.parquet"  # readers of Parquet folders ignore _ files
GROUP_ROWS, GROUP_BYTES = 1024, 16e6  # of a row group, about: what is less
PARTS = 4  # for which a row group has room, at least


@dataclass(frozen=True)
class Placement:
    """Where each image lies.

    Attributes:
        ids: int64 (N,), sorted.
        groups: int32 (N,), row group, counted over all shards; none is empty.
        shards: int32 (N,), shard: its row groups are consecutive.
    """

    ids: np.ndarray
    groups: np.ndarray
    shards: np.ndarray

    @property
    def count(self) -> int:
        """Number of shards."""
        return int(self.shards.max(initial=-1)) + 1

    def to_parquet(self) -> bytes:
        """Content of a Parquet file."""
        sink = io.BytesIO()
        columns = {"id": self.ids, "group": self.groups, "shard": self.shards}
        pq.write_table(pa.table(columns), sink, compression="zstd")
        return sink.getvalue()

    @staticmethod
    def from_parquet(content: bytes) -> Placement:
        """Read what :meth:`to_parquet` wrote."""
        table = pq.read_table(io.BytesIO(content))
        return Placement(*(table[name].to_numpy() for name in ("id", "group", "shard")))

    def groups_of(self, ids: np.ndarray) -> np.ndarray:
        """int64 like ids: the row group of each image; of an unknown one a number of its own."""
        positions = positions_of(self.ids, ids)
        known = positions >= 0
        return np.where(known, self.groups[positions], -1 - np.arange(len(ids)))


def read_placement(files: Files) -> Placement | None:
    """The placement beside the files of a source; None if they were not prepared."""
    try:
        with files.fs.open_input_stream(f"{files.root}/{FILE}") as stream:
            return Placement.from_parquet(stream.read())
    except FileNotFoundError:
        return None


def place(
    ids: np.ndarray,
    clusters: np.ndarray,
    image_bytes: float,
    shard_bytes: float,
    part: int,
    seed: int,
) -> Placement:
    """Place images in row groups and shards of about equal size.

    Args:
        ids: int64 (N,), sorted.
        clusters: int32 (N, G), see :func:`units_of`.
        image_bytes: mean size of an image.
        shard_bytes: aimed at. part: see :func:`units_of`.
    """
    n, rng = len(ids), np.random.default_rng(seed)
    rows = min(GROUP_ROWS, int(min(GROUP_BYTES, shard_bytes) / image_bytes))
    rows = max(rows, part * max(PARTS, 2 * clusters.shape[1]))  # a unit has less
    groups = max(1, n // rows)
    shards = min(groups, max(1, round(n * image_bytes / shard_bytes)))
    units = units_of(clusters, part, rng)
    sizes = np.bincount(units, minlength=1)
    shuffled = rng.permutation(len(sizes))
    start = np.empty(len(sizes), np.int64)
    start[shuffled] = np.cumsum(sizes[shuffled]) - sizes[shuffled]
    group = (start * groups // max(1, n))[units]  # of the row with which its unit starts
    return Placement(ids, group.astype(np.int32), (group * shards // groups).astype(np.int32))


def units_of(clusters: np.ndarray, part: int, rng: np.random.Generator) -> np.ndarray:
    """The images that stay together.

    A cluster of s images is cut into max(1, s // part) units of about equal size: at random if it
    is one of the finest granularity, and otherwise between the units of the next finer one inside
    it. So a unit has fewer than 2 G part images.

    Args:
        clusters: int32 (N, G), from coarse to fine; -1 = a cluster of its own.
        part: least images of a unit of a cluster that is cut.

    Returns:
        int64 (N,): the number of the unit of each image, from 0.

    >>> units_of(np.zeros((5, 1), int), part=2, rng=np.random.default_rng(0))
    array([0, 1, 1, 0, 0])
    """
    n, levels = clusters.shape
    key = clusters.astype(np.int64)
    key[key < 0] = key.max(initial=0) + 1 + np.arange(int((key < 0).sum()))
    order = np.lexsort((rng.permutation(n), *key.T[::-1]))
    differs = np.ones((n, levels), bool)
    differs[1:] = np.diff(key[order], axis=0) != 0
    first = np.ones(n, bool)  # of a unit; at first all images are units
    for level in reversed(range(levels)):
        begins = differs[:, : level + 1].any(1)
        cluster = np.cumsum(begins) - 1
        size = np.bincount(cluster)[cluster]
        inside = np.flatnonzero(first)[np.cumsum(first) - 1] - np.flatnonzero(begins)[cluster]
        number = inside * np.maximum(1, size // part) // size
        first = begins | (np.diff(number, prepend=-1) != 0)
    units = np.empty(n, np.int64)
    units[order] = np.cumsum(first) - 1
    return units


def partners_together(clusters: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """How much of their clusters images find in their own row group.

    Args:
        clusters: int (N,); -1 = singleton. groups: int (N,).

    Returns:
        Of the images with a partner: the mean share of their partners that lie in the same row
        group, and the share of images with none there.

    >>> partners_together(np.array([0, 0, 1, 1, -1]), np.array([0, 0, 0, 1, 1]))
    (0.5, 0.5)
    """
    known = np.flatnonzero(clusters >= 0)
    clusters, groups = clusters[known].astype(np.int64), groups[known].astype(np.int64)
    sizes = np.bincount(clusters)[clusters] if len(known) else clusters
    paired = sizes > 1
    if not paired.any():
        return 1.0, 0.0
    clusters, groups, sizes = clusters[paired], groups[paired], sizes[paired]
    groups = groups - groups.min()
    pairs = clusters * (int(groups.max()) + 1) + groups
    _, inverse, counts = np.unique(pairs, return_inverse=True, return_counts=True)
    near = counts[inverse] - 1
    return float((near / (sizes - 1)).mean()), float((near == 0).mean())
