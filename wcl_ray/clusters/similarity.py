"""How much metadata images share: weighted binary attributes, kept as packed bits.

Two images are as similar as the weighted Jaccard index of their attributes. An attribute weighs its
self-information, -log of the share of the images that have it: a rare tag in common counts more
than a common one. A number or date has "above" and "below" (after and before) attributes at many
quantiles, or at each of a number's few values, so the nearer two of them are in rank, the more
attributes the images share; together these weigh as much as the bin between two would alone. The
cells of a place lie in each other, and weigh as much as the smallest would alone. Of a column with
two values images may share either.
"""

from __future__ import annotations

import io
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from ray.data import Dataset

from wcl_ray.clusters.binarise import (
    COMPLEMENTS,
    THRESHOLDS,
    Attribute,
    attributes,
    binary_entropy,
)
from wcl_ray.clusters.counts import ColumnCounts
from wcl_ray.clusters.metadata import count_types, leaks, pack_attributes
from wcl_ray.clusters.types import NO_TYPES
from wcl_ray.clusters.views import View
from wcl_ray.data.ids import positions_of
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


@dataclass(frozen=True)
class Similarity:
    """Attributes that images are compared by, and what to tell the user of them.

    Attributes:
        used: columns that give attributes.
        skipped: column → why it gives none.
        notes: warnings to show the user.
    """

    metadata: MetadataBits
    used: tuple[str, ...]
    skipped: dict[str, str]
    notes: tuple[str, ...]

    def describe(self) -> str:
        """One line, such as ``12 attributes of colour, tags (left out: day, an identifier)``."""
        count = self.metadata.count
        reasons = "; ".join(f"{name}, {reason}" for name, reason in self.skipped.items())
        bare = int((~self.metadata.bits.any(1)).sum())
        text = f"{count} attributes of {', '.join(self.used)}"
        text += f" (left out: {reasons})" if reasons else ""
        return text + (f"; {bare:,} images have none" if bare else "")


def metadata_bits(
    rows: Dataset,
    columns: list[str],
    named: tuple[str, ...],
    ids: np.ndarray,
    types: Mapping[str, str] = NO_TYPES,
    label: str | None = None,
    needed_by: str = "loss.positives graded",
) -> Similarity:
    """The attributes of images, in two passes over the metadata.

    If there are more than MOST, every column in turn gives its one of highest entropy.

    Args:
        rows: ``__id``, the columns and the label.
        named: columns to use even if they look like identifiers.
        ids: int64 (N,), increasing, of the images in order.
        types: column → type, instead of the detected one.
        label: name of the label column, for the leak check.
        needed_by: named in the error.

    Raises:
        UserError: no column gives a usable attribute, a type does not fit the values, or a column
            is equivalent to the label.
    """
    counts, detected = count_types(rows, columns, label, types, QUANTILES, MIN_SHARE)
    notes = [] if label is None else leaks({name: counts[name] for name in columns}, label)
    usable, skipped = attributes(counts, QUANTILES, MIN_SHARE, named, detected, ordered=True)
    if not usable:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise UserError(f"{needed_by}: no column gives an attribute ({reasons})")
    of_column: dict[str, list[Attribute]] = {}
    for attribute in usable:
        of_column.setdefault(attribute.column, []).append(attribute)
    turns = itertools.zip_longest(*of_column.values())
    in_turn = [attribute for turn in turns for attribute in turn if attribute is not None]
    weighted = weigh(in_turn, counts)[:MOST]
    size = -(-len(weighted) // 8) * 8
    known, packed = pack_attributes(rows, [attribute for attribute, _ in weighted], size)
    positions = positions_of(known, ids)
    bits = np.where((positions >= 0)[:, None], packed[positions], np.uint8(0))
    weights = np.zeros(size, np.float32)
    weights[: len(weighted)] = [weight for _, weight in weighted]
    used = tuple(dict.fromkeys(attribute.column for attribute, _ in weighted))
    return Similarity(MetadataBits(bits, weights), used, skipped, tuple(notes))


def weigh(
    usable: list[Attribute], counts: Mapping[Any, ColumnCounts]
) -> list[tuple[Attribute, float]]:
    """Attributes with their weights, in order, each followed by its opposite if images may agree in
    that, too: "below" by "above", and the other value of a column with two.

    Args:
        counts: of the columns and views of the attributes.
    """
    shares: defaultdict[View, list[float]] = defaultdict(list)
    entropies: defaultdict[View, float] = defaultdict(float)
    for a in usable:
        if a.test in THRESHOLDS:
            shares[a.source].append(a.share)
            entropies[a.source] += a.entropy
    alone = {source for source, n in Counter(a.source for a in usable).items() if n == 1}
    cells = {(a.column, a.value): a.share for a in usable if a.test == "within"}
    weighted = []
    for a in usable:
        column = counts[a.source.key]
        scale, opposite = 1.0, None
        if a.test in THRESHOLDS:
            # the mean weight that an image has from the column: that of its bin instead of Σ H(p)
            known = column.total / column.rows
            scale = _bin_entropy(shares[a.source], known) / entropies[a.source]
            opposite = THRESHOLDS[a.test]
        elif a.source in alone and len(column.values) == 2 and not column.undercount:
            opposite = COMPLEMENTS.get(a.test)
        # a cell adds what the larger cell around it does not tell yet
        inside = a.value if a.test == "within" else ""
        around = [(a.column, inside[:n]) for n in range(1, len(inside))]
        outer = min([cells[c] for c in around if c in cells], default=1.0)
        weighted.append((a, -scale * math.log(a.share / outer)))
        share = column.total / column.rows - a.share
        if opposite and share > 0:
            other = replace(a, test=opposite, share=share, entropy=binary_entropy(share))
            weighted.append((other, -scale * math.log(share)))
    return weighted


def _bin_entropy(above: list[float], known: float) -> float:
    """Entropy in bits of the bins between thresholds.

    Args:
        above: share of the images above each threshold.
        known: share of the images with a value.
    """
    edges = np.array([known, *sorted(above, reverse=True), 0.0])
    bins = -np.diff(edges) / known
    bins = bins[bins > 0]
    return float(-(bins * np.log2(bins)).sum())
