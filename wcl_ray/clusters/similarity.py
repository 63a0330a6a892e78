"""How much metadata images share: weighted binary attributes, kept as packed bits.

Two images are as similar as the weighted Jaccard index of their attributes. An attribute weighs its
self-information, -log of the share of the images that have it: a rare tag in common counts more
than a common one. A number or date has "above" and "below" (after and before) attributes at many
quantiles, so the nearer two of them are in rank, the more attributes the images share; together
these weigh as much as the quantile bin would alone. The cells of a place lie in each other, and
weigh as much as the smallest would alone.
"""

from __future__ import annotations

import io
import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from ray.data import Dataset

from wcl_ray.clusters.binarise import OPPOSITE, Attribute, attributes, binary_entropy
from wcl_ray.clusters.counts import ColumnCounts
from wcl_ray.clusters.metadata import count_types, pack_attributes
from wcl_ray.data.stream import positions_of
from wcl_ray.errors import UserError

FILE = "similarity.npz"  # in a run folder
MOST = 1024  # attributes, those of highest entropy
QUANTILES = 15  # of a number column
MIN_SHARE = 0.001  # of the images, for an attribute
NO_TYPES: Mapping[str, str] = {}


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
    types: Mapping[str, str] = NO_TYPES,
    needed_by: str = "loss.positives graded",
) -> MetadataBits:
    """The attributes of images, in two passes over the metadata.

    Args:
        rows: ``__id`` and the columns.
        named: columns to use even if they look like identifiers.
        ids: int64 (N,), increasing, of the images in order.
        types: column → type, instead of the detected one.
        needed_by: named in the error.

    Raises:
        UserError: no column gives a usable attribute, or a type does not fit the values.
    """
    counts, detected = count_types(rows, columns, None, types, QUANTILES, MIN_SHARE)
    usable, skipped = attributes(counts, QUANTILES, MIN_SHARE, named, detected)
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
    usable: list[Attribute], counts: Mapping[Any, ColumnCounts]
) -> list[tuple[Attribute, float]]:
    """Attributes with their weights, in order; "below" attributes follow those "above".

    >>> weigh([Attribute("c", "is", "x", 0.5, 1.0)], {})[0][1] == math.log(2)
    True
    """
    thresholds = Counter(a.column for a in usable if a.test in OPPOSITE)
    entropies: defaultdict[str, float] = defaultdict(float)
    for a in usable:
        if a.test in OPPOSITE:
            entropies[a.column] += a.entropy
    cells = {(a.column, a.value): a.share for a in usable if a.test == "within"}
    weighted = []
    for a in usable:
        if a.test not in OPPOSITE:
            # a cell adds what the larger cell around it does not tell yet
            inside = a.value if a.test == "within" else ""
            around = [(a.column, inside[:n]) for n in range(1, len(inside))]
            outer = min([cells[c] for c in around if c in cells], default=1.0)
            weighted.append((a, -math.log(a.share / outer)))
            continue
        column = counts[a.source.key]
        below = column.total / column.rows - a.share
        # the mean weight that an image has from the column: log2(T + 1) bits instead of Σ H(p)
        scale = math.log2(thresholds[a.column] + 1) / entropies[a.column]
        weighted.append((a, -scale * math.log(a.share)))
        if below > 0:
            other = replace(a, test=OPPOSITE[a.test], share=below, entropy=binary_entropy(below))
            weighted.append((other, -scale * math.log(below)))
    return weighted
