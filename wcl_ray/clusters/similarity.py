"""How much metadata images share: weighted binary attributes, kept as packed bits.

Two images are as similar as the weighted Jaccard index of their attributes. An attribute weighs its
self-information, -log of the share of the images that have it: a rare tag in common counts more
than a common one. A number column has "above" and "below" attributes at many quantiles, so the
nearer two numbers are in rank, the more of them the images share; together these attributes weigh
as much as the quantile bin would alone.
"""

from __future__ import annotations

import io
import math
from collections import Counter, defaultdict
from dataclasses import dataclass, replace

import numpy as np
from ray.data import Dataset

from wcl_ray.clusters.binarise import Attribute, ColumnCounts, attributes, binary_entropy
from wcl_ray.clusters.metadata import count_columns, pack_attributes
from wcl_ray.data.stream import positions_of
from wcl_ray.errors import UserError

FILE = "similarity.npz"  # in a run folder
MOST = 1024  # attributes, those of highest entropy
QUANTILES = 15  # of a number column
MIN_SHARE = 0.001  # of the images, for an attribute


@dataclass(frozen=True)
class MetadataBits:
    """The attributes of the training images.

    Attributes:
        bits: uint8 (N, A / 8), packed; no bit is set for an image without metadata.
        weights: float32 (A,), in nats.
    """

    bits: np.ndarray
    weights: np.ndarray

    def to_npz(self) -> bytes:
        """Content of an ``.npz`` file."""
        sink = io.BytesIO()
        np.savez_compressed(sink, bits=self.bits, weights=self.weights)
        return sink.getvalue()

    @property
    def count(self) -> int:
        """Attributes, without the bits that fill the last byte."""
        return int((self.weights > 0).sum())

    @staticmethod
    def from_npz(content: bytes) -> MetadataBits:
        """The inverse of :meth:`to_npz`."""
        arrays = np.load(io.BytesIO(content))
        return MetadataBits(arrays["bits"], arrays["weights"])


def metadata_bits(
    rows: Dataset,
    columns: list[str],
    named: tuple[str, ...],
    ids: np.ndarray,
    needed_by: str = "loss.positives graded",
) -> MetadataBits:
    """The attributes of images, in two passes over the metadata.

    Args:
        rows: ``__id`` and the columns.
        named: columns to use even if they look like identifiers.
        ids: int64 (N,), increasing, of the images in order.
        needed_by: named in the error.

    Raises:
        UserError: no column gives a usable attribute.
    """
    counts = count_columns(rows, columns, None, MIN_SHARE)
    usable, skipped = attributes(counts, QUANTILES, MIN_SHARE, named)
    if not usable:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise UserError(f"{needed_by}: no column gives an attribute ({reasons})")
    weighted = weigh(usable, counts)[:MOST]
    size = -(-len(weighted) // 8) * 8
    known, packed = pack_attributes(rows, [attribute for attribute, _ in weighted], size)
    positions = positions_of(known, ids)
    bits = np.where((positions >= 0)[:, None], packed[positions], np.uint8(0))
    weights = np.zeros(size, np.float32)
    weights[: len(weighted)] = [weight for _, weight in weighted]
    return MetadataBits(bits, weights)


def weigh(
    usable: list[Attribute], counts: dict[str, ColumnCounts]
) -> list[tuple[Attribute, float]]:
    """Attributes with their weights, in order; "below" attributes follow those "above".

    >>> weigh([Attribute("c", "is", "x", 0.5, 1.0)], {})[0][1] == math.log(2)
    True
    """
    thresholds = Counter(a.column for a in usable if a.test == "above")
    entropies: defaultdict[str, float] = defaultdict(float)
    for a in usable:
        if a.test == "above":
            entropies[a.column] += a.entropy
    weighted = []
    for a in usable:
        if a.test != "above":
            weighted.append((a, -math.log(a.share)))
            continue
        column = counts[a.column]
        below = column.total / column.rows - a.share
        # the mean weight that an image has from the column: log2(T + 1) bits instead of Σ H(p)
        scale = math.log2(thresholds[a.column] + 1) / entropies[a.column]
        weighted.append((a, -scale * math.log(a.share)))
        if below > 0:
            other = replace(a, test="below", share=below, entropy=binary_entropy(below))
            weighted.append((other, -scale * math.log(below)))
    return weighted
