"""Stage 1 from metadata, for any kind of clusters (:mod:`wcl_ray.clusters.kinds`).

Two passes of Ray Data over the metadata: the first counts values, from which the driver chooses,
the second turns every row into one key per granularity. Rows with equal keys form a cluster.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import Dataset

from wcl_ray.clusters.assignment import Assignment, number_codes
from wcl_ray.clusters.binarise import Attribute, attributes
from wcl_ray.clusters.columns import ColumnSummary
from wcl_ray.clusters.counts import ColumnCounts, Columns, count_selected, count_table
from wcl_ray.clusters.tally import NO_ROWS, tally
from wcl_ray.clusters.types import ColumnType, detect, views_to_count
from wcl_ray.clusters.views import View, read
from wcl_ray.config import ClustersConfig
from wcl_ray.data.data_stats import note
from wcl_ray.data.ids import hash_strings
from wcl_ray.data.sources.base import ID, KEY
from wcl_ray.data.values import value_names
from wcl_ray.errors import UserError
from wcl_ray.registry import KINDS

Keys = Callable[[pa.Table], list[pa.Array]]
LEAK = 0.05  # share of the errors without a column that are left with one that tells the label


@dataclass(frozen=True)
class Clustering:
    """Clusters and how they were made.

    Attributes:
        labels: int32 (N,), label of each position; -1 = missing; None without a label.
        classes: number of distinct labels.
        chosen: the attributes of the largest top-k, by decreasing entropy.
        skipped: column → why it was not used.
        notes: warnings to show the user.
        columns: the type of each metadata column, and what became of it.
    """

    assignment: Assignment
    labels: np.ndarray | None
    classes: int
    chosen: tuple[Attribute, ...] = ()
    skipped: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    columns: tuple[ColumnSummary, ...] = ()


def columns_of(config: ClustersConfig, label: str | None, available: tuple[str, ...]) -> list[str]:
    """The metadata columns that a clustering reads.

    Raises:
        UserError: the label is among them, there are none, or a kind needs a label without one.
    """
    return list(KINDS.get(config.kind)(config, label, available).columns)


def cluster_metadata(
    rows: Dataset,
    config: ClustersConfig,
    label: str | None,
    available: tuple[str, ...],
    seed: int = 0,
    strict: bool = True,
) -> Clustering:
    """Cluster images by their metadata; k-means of features starts with all images as singletons.

    Args:
        rows: ``__id``, ``__key``, the columns of :func:`columns_of` and the label.
        label: name of the label column, for the quality report and the leak check.
        available: all metadata columns of the source.
        seed: seed of k-means over metadata.
        strict: refuse a single cluster, and singletons only.

    Raises:
        UserError: no usable column, a single cluster, singletons only, a column that is equivalent
            to the label, a level beyond the hierarchy, a duplicate id, no rows.
    """
    clustering: Clustering = KINDS.get(config.kind)(config, label, available).cluster(rows, seed)
    if strict:
        check(clustering.assignment, config.kind)
    return clustering


def attribute_bits(
    rows: Dataset, columns: list[str], config: ClustersConfig, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """The ``most`` binary attributes of highest entropy as packed bits, for any kind of metadata.

    Args:
        rows: ``__id`` and the columns.

    Returns:
        int64 (N,) increasing ids, and uint8 (N, most / 8) packed bits; attributes that do not exist
        are false.

    Raises:
        UserError: no column gives a usable attribute, or see :func:`count_types`.
    """
    given, share = config.column_types, config.min_share
    counts, types = count_types(rows, columns, None, given, config.quantiles, share)
    chosen, _ = attributes(counts, config.quantiles, config.min_share, config.columns, types)
    if not chosen:
        raise UserError(f"no column gives a usable attribute: {', '.join(columns)}")
    return pack_attributes(rows, chosen[:most], most)


def pack_attributes(
    rows: Dataset, chosen: list[Attribute], most: int
) -> tuple[np.ndarray, np.ndarray]:
    """The attributes of each row as packed bits.

    Args:
        rows: ``__id`` and the columns of the attributes.
        most: number of bits, a multiple of 8; those without an attribute are false.

    Returns:
        int64 (N,) increasing ids, and uint8 (N, most / 8).
    """

    def pack(table: pa.Table) -> pa.Table:
        arrays = read(table, [attribute.source for attribute in chosen])
        bits = np.zeros((table.num_rows, most // 8), np.uint8)
        for start in range(0, len(chosen), 8):  # one byte of each row
            byte = chosen[start : start + 8]
            masks = [attribute.mask(arrays[attribute.source]) for attribute in byte]
            bits[:, start // 8] = np.packbits(masks, axis=0)[0]
        packed = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(most // 8), table.num_rows, [None, pa.py_buffer(bits)]
        )
        return pa.table({ID: table[ID], "bits": packed})

    patterns = rows.map_batches(pack, batch_format="pyarrow", batch_size=None)
    refs = patterns.to_arrow_refs()
    note("metadata", patterns)
    table = pa.concat_tables([part for part in ray.get(refs) if part.num_rows])
    ids = table[ID].to_numpy()
    order = np.argsort(ids, kind="stable")
    rank = np.empty(len(ids), np.int64)
    rank[order] = np.arange(len(ids))
    packed, start = np.empty((len(ids), most // 8), np.uint8), 0
    for chunk in table["bits"].chunks:
        rows_of_buffer = np.frombuffer(chunk.buffers()[1], np.uint8).reshape(-1, most // 8)
        stop = start + len(chunk)
        packed[rank[start:stop]] = rows_of_buffer[chunk.offset :][: len(chunk)]
        start = stop
    return ids[order], packed


def count_columns(rows: Dataset, columns: list[str], label: str | None) -> Columns:
    """Counts of the columns, for the leak check."""
    return tally(rows, lambda table: count_table(table, columns, _labels(table, label)))


def _labels(table: pa.Table, label: str | None) -> pa.Array | None:
    return None if label is None else value_texts(label, table, "data.label")


def count_types(
    rows: Dataset,
    columns: list[str],
    label: str | None,
    given: Mapping[str, str],
    quantiles: int,
    min_share: float,
) -> tuple[Columns, dict[str, ColumnType]]:
    """Types of the columns, and counts of these and of their views, exact for all values that can
    become attributes.

    Args:
        given, quantiles: see :func:`detect`.
        min_share: smallest share of an attribute.

    Raises:
        UserError: a given type that does not fit the values.
    """

    def count(table: pa.Table) -> Columns:
        views = views_to_count(table.schema, columns, given)
        return count_table(table, columns, _labels(table, label), views)

    counts = tally(rows, count)
    types = detect(counts, quantiles, given)
    return recount(rows, counts, types, min_share), types


def recount(
    rows: Dataset, counts: Columns, types: dict[str, ColumnType], min_share: float
) -> Columns:
    """The counts, exact for all values that can become attributes: of columns with too many values
    the common ones are counted again.

    Args:
        min_share: smallest share of an attribute.
    """
    candidates: dict[View, list[Any]] = {}
    for view in (view for column_type in types.values() for view in column_type.views):
        column = counts[view.key]
        if column.undercount and column.kind != "number":
            least = column.min_rows(min_share) - column.undercount
            candidates[view] = [value for value, n in column.values.items() if n >= least]
    if not candidates:
        return counts

    def count(table: pa.Table) -> Columns:
        arrays = read(table, candidates)
        return Columns({v: count_selected(arrays[v], c) for v, c in candidates.items()})

    for view, exact in tally(rows, count).items():
        column = counts[view.key]
        least = column.min_rows(min_share)
        column.values = Counter({value: n for value, n in exact.items() if n >= least})
    return counts


def leaks(counts: Mapping[str, ColumnCounts], label: str | None) -> list[str]:
    """Warnings of columns that determine the label, or that of nearly all images: guessing the
    commonest class of each value makes a twentieth of the errors of guessing the commonest of all.

    Raises:
        UserError: a column is equivalent to the label.
    """
    notes = []
    for name, column in counts.items():
        pairs = column.pairs
        if not pairs or column.nulls > 0.5 * column.rows:
            continue
        commonest: dict[Any, int] = {}
        classes: Counter[Any] = Counter()
        for (value, label_of), rows in pairs.items():
            commonest[value] = max(commonest.get(value, 0), rows)
            classes[label_of] += rows
        total = classes.total()
        errors, chance = total - sum(commonest.values()), total - max(classes.values())
        if len(classes) < 2 or errors > LEAK * chance:
            continue
        if errors:
            if len(commonest) <= 0.5 * column.rows:
                share = math.floor(1000 * (1 - errors / total)) / 10
                notes.append(f"column {name!r} tells the label {label!r} of {share}% of the images")
            continue
        if len(commonest) == len(classes):
            others = " ".join(n for n in counts if n != name)
            raise UserError(
                f"column {name!r} is equivalent to the label {label!r}: each of its "
                f"{len(commonest)} values stands for one class, so the clusters would give "
                f"the answer away; leave it out with --clusters.columns {others}"
            )
        if len(commonest) <= 0.5 * column.rows:
            notes.append(
                f"column {name!r} determines the label {label!r} ({len(commonest)} values)"
            )
    return notes


def value_texts(column: str, table: pa.Table, option: str = "clusters.columns") -> pa.Array:
    """The values of a column as strings, the same for equal values of different types."""
    return value_names(table[column], f"{option} {column!r}")


def hashed(values: pa.Array) -> pa.Array:
    """int64 hash of each string; null stays null."""
    encoded = values.dictionary_encode()
    codes = pa.array(hash_strings(encoded.dictionary.to_pylist()), pa.int64())
    return codes.take(encoded.indices)


def _codes(keys: pa.Array) -> pa.Array:
    """int64 keys unchanged, hashes of any others."""
    return keys if keys.type == pa.int64() else hashed(keys.cast(pa.string()))


def assign(
    rows: Dataset, keys_of: Keys, names: tuple[str, ...], label: str | None
) -> tuple[Assignment, np.ndarray | None, int]:
    """Cluster rows with equal keys, in one pass.

    Args:
        rows: ``__id``, ``__key``, and the columns that ``keys_of`` reads.
        keys_of: see :meth:`wcl_ray.clusters.kinds.Kind.keys`.
        names: names of the granularities.

    Returns:
        The assignment, int32 (N,) labels (None without a label), and the number of classes.
    """

    def encode(table: pa.Table) -> Iterator[pa.Table]:
        columns = {ID: table[ID], KEY: table[KEY]}
        columns |= {f"c{i}": _codes(keys) for i, keys in enumerate(keys_of(table))}
        if label is not None:
            columns["label"] = hashed(value_texts(label, table, "data.label"))
        yield pa.table(columns)

    encoded = rows.map_batches(encode, batch_format="pyarrow", batch_size=None)
    refs = encoded.to_arrow_refs()
    note("metadata", encoded)
    blocks = [block for block in ray.get(refs) if block.num_rows]
    if not blocks:
        raise UserError(NO_ROWS)
    table = pa.concat_tables(blocks)
    clusters = np.stack([_number_column(table[f"c{i}"]) for i in range(len(names))], axis=1)
    keys = None
    if table[KEY].null_count < len(table):  # a string array holds 2 GB, 5e7 paths of 40 letters
        keys = table[KEY].cast(pa.large_string()).combine_chunks()
    ids = table[ID].to_numpy()
    assignment = Assignment.from_rows(ids, clusters, names, keys)
    if label is None:
        return assignment, None, 0
    labels = _number_column(table["label"])[np.argsort(ids, kind="stable")]
    return assignment, labels, int(labels.max(initial=-1)) + 1


def _number_column(column: pa.ChunkedArray) -> np.ndarray:
    missing = column.is_null().to_numpy()
    return number_codes(column.fill_null(0).to_numpy(), missing)


def check(assignment: Assignment, kind: str) -> None:
    """Raise a UserError if there is a single cluster, or only singletons."""
    if (assignment.clusters < 0).all() and KINDS.get(kind).needs in ("features", "nothing"):
        return
    options = "--clusters.top-k or --clusters.level"
    coarser, finer = f"lower {options}", f"raise {options}"
    if kind == "table":
        coarser = finer = "choose another --clusters.from"
    for granularity, name in enumerate(assignment.names):
        sizes = assignment.sizes(granularity)
        if len(sizes) == 1 and int(sizes[0]) == len(assignment.ids):
            raise UserError(
                f"{name}: all images are in one cluster (K = 1), which leaves nothing to push "
                f"apart; {finer}, or choose other columns"
            )
        if len(sizes) == 0 or int(sizes.max()) == 1:
            raise UserError(
                f"{name}: every image is a singleton, which is SimCLR; {coarser}, or use "
                "--clusters.kind instance"
            )
