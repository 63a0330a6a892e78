"""Stage 1 from metadata: attributes, tags, hierarchy, label, instance.

Two passes of Ray Data over the metadata: the first counts values, the driver chooses, the second
turns every row into one 64-bit code per granularity. Rows with equal codes are a cluster.
Source of the attribute rule: Tsai et al., ICLR 2022, section 3.2 (the k binary attributes of
highest entropy; each joint pattern of them is a cluster).
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import Dataset

from wcl_ray.clusters.assignment import Assignment, number_codes
from wcl_ray.clusters.binarise import (
    Attribute,
    ColumnCounts,
    Columns,
    attributes,
    count_column,
    count_some,
)
from wcl_ray.clusters.tally import NO_ROWS, tally
from wcl_ray.config import ClustersConfig
from wcl_ray.data.data_stats import note
from wcl_ray.data.ids import hash_strings
from wcl_ray.data.sources.base import ID, KEY
from wcl_ray.data.values import decoded, is_list, plain, value_names
from wcl_ray.errors import UserError
from wcl_ray.terminal import say

Codes = Callable[[pa.Table], list[pa.Array]]


@dataclass(frozen=True)
class Clustering:
    """Clusters and how they came about.

    Attributes:
        labels: int32 (N,), label of each position; -1 = missing; None without a label.
        classes: number of different labels.
        chosen: the attributes by falling entropy, those of the largest top-k.
        skipped: column → why it was not used.
        notes: warnings for people.
    """

    assignment: Assignment
    labels: np.ndarray | None
    classes: int
    chosen: tuple[Attribute, ...] = ()
    skipped: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def columns_of(config: ClustersConfig, label: str | None, available: tuple[str, ...]) -> list[str]:
    """The metadata columns that a clustering reads.

    Raises:
        UserError: the label is among them, there are none, or label clusters without a label.
    """
    if config.kind == "instance" or (config.kind == "kmeans" and config.features != "metadata"):
        return []
    if config.kind == "table":
        return []
    if config.kind == "label":
        if label is None:
            raise UserError("clusters.kind label needs --data.label")
        return []
    if label is not None and label in config.columns:
        raise UserError(
            f"clusters.columns holds the label {label!r}: the evaluation would be told the answer; "
            "leave it out, or use --clusters.kind label"
        )
    columns = list(config.columns) or [name for name in available if name != label]
    if config.kind == "hierarchy" and not config.columns:
        raise UserError(
            "clusters.kind hierarchy needs --clusters.columns, from coarse to fine, or one path "
            f"column; the columns are: {', '.join(columns) or '(none)'}"
        )
    if not columns:
        raise UserError(
            f"clusters.kind {config.kind} needs metadata columns, but there are none; use "
            "--clusters.kind instance"
        )
    return columns


def cluster_metadata(
    rows: Dataset,
    config: ClustersConfig,
    label: str | None,
    available: tuple[str, ...],
    seed: int = 0,
    strict: bool = True,
) -> Clustering:
    """Cluster images by their metadata; k-means of features starts with every image a singleton.

    Args:
        rows: ``__id``, ``__key``, the columns of :func:`columns_of` and the label.
        label: name of the label column, for the quality report and the leak check.
        available: all metadata columns of the source.
        seed: of k-means over metadata.
        strict: refuse one cluster only, and nothing but singletons.

    Raises:
        UserError: no usable column, one cluster only, nothing but singletons, a column that is an
            image of the label, a level beyond the hierarchy, a duplicate id, no rows.
    """
    columns = columns_of(config, label, available)
    codes: Codes
    chosen: list[Attribute] = []
    skipped: dict[str, str] = {}
    notes: list[str] = []
    if config.kind in ("attributes", "tags"):
        counts = _count(rows, columns, label, config.min_share)
        if config.kind == "tags":
            counts = _only_lists(counts, bool(config.columns))
        notes += _leaks(counts, label)
        chosen, skipped = attributes(counts, config.quantiles, config.min_share, config.columns)
        if not chosen:
            why = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
            raise UserError(f"no column gives a usable attribute ({why})")
        if len(chosen) < max(config.top_k):
            notes.append(f"only {len(chosen)} attributes are usable, top-k {max(config.top_k)}")
        chosen = chosen[: max(config.top_k)]
        names = tuple(f"{config.kind}-{k}" for k in config.top_k)
        codes = functools.partial(_patterns, chosen, config.top_k, config.kind == "tags")
    elif config.kind == "hierarchy":
        if label is not None:
            joined = rows.map_batches(
                functools.partial(_joined, columns), batch_format="pyarrow", batch_size=None
            )
            notes += _leaks(_count(joined, columns, label), label)
        depth = _depth(rows, columns, config)
        levels = config.level or (depth,)
        if max(levels) > depth:
            raise UserError(f"clusters.level {max(levels)}: the hierarchy is {depth} levels deep")
        names = tuple(f"hierarchy-{level}" for level in levels)
        codes = functools.partial(_ancestors, columns, config.separator, levels)
    elif config.kind == "kmeans" and columns:
        if label is not None:
            notes += _leaks(_count(rows, columns, label), label)
        return _kmeans(rows, config, columns, label, seed, tuple(notes), strict)
    elif config.kind == "label" and label is not None:
        names, codes = ("label",), functools.partial(_values, label)
    else:
        names, codes = ("instance",), _nothing
    assignment, labels, classes = _assign(rows, codes, names, label)
    if strict:
        check(assignment, config.kind)
    return Clustering(assignment, labels, classes, tuple(chosen), skipped, tuple(notes))


def attribute_bits(
    rows: Dataset, columns: list[str], config: ClustersConfig, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """The binary attributes of the highest entropy as bits, for any kind of metadata.

    Args:
        rows: ``__id`` and the columns.
        most: attributes.

    Returns:
        int64 (N,) increasing ids, and uint8 (N, most / 8) packed bits; attributes that do not exist
        are false.

    Raises:
        UserError: no column gives a usable attribute.
    """
    counts = _count(rows, columns, None, config.min_share)
    chosen, _ = attributes(counts, config.quantiles, config.min_share, config.columns)
    if not chosen:
        raise UserError(f"no column gives a usable attribute: {', '.join(columns)}")
    chosen = chosen[:most]

    def pack(table: pa.Table) -> pa.Table:
        arrays = {name: plain(table[name]) for name in {a.column for a in chosen}}
        bits = np.zeros((table.num_rows, most), dtype=bool)
        for place, attribute in enumerate(chosen):
            bits[:, place] = attribute.mask(arrays[attribute.column])
        packed = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(most // 8), table.num_rows, [None, pa.py_buffer(np.packbits(bits, axis=1))]
        )
        return pa.table({ID: table[ID], "bits": packed})

    patterns = rows.map_batches(pack, batch_format="pyarrow", batch_size=None)
    refs = patterns.to_arrow_refs()
    note("metadata", patterns)
    table = pa.concat_tables([part for part in ray.get(refs) if part.num_rows])
    ids = table[ID].to_numpy()
    order = np.argsort(ids, kind="stable")
    packed = np.frombuffer(b"".join(table["bits"].to_pylist()), np.uint8).reshape(-1, most // 8)
    return ids[order], packed[order]


def _kmeans(
    rows: Dataset,
    config: ClustersConfig,
    columns: list[str],
    label: str | None,
    seed: int,
    notes: tuple[str, ...],
    strict: bool,
) -> Clustering:
    """k-means over the metadata themselves."""
    from wcl_ray.clusters.features import cluster_features, wanted_k
    from wcl_ray.clusters.tfidf import vectors

    bare, labels, classes = _assign(rows, _nothing, ("instance",), label)
    made, text = vectors(rows, columns, config.columns)
    say("vectors", text)
    ks = wanted_k(config, len(bare.ids))
    found = cluster_features(made, bare.ids, ks, config, seed=seed)
    assignment = Assignment(bare.ids, found.clusters, found.names, bare.keys)
    if strict:
        check(assignment, config.kind)
    return Clustering(assignment, labels, classes, notes=notes)


def _count(
    rows: Dataset, columns: list[str], label: str | None, min_share: float | None = None
) -> dict[str, ColumnCounts]:
    """Counts of the columns; exact ones of all values that attributes can be made of.

    Args:
        min_share: of an attribute; None: only for the check against the label.
    """

    def count(table: pa.Table) -> Columns:
        target = None if label is None else _names(label, table, "data.label")
        return Columns({name: count_column(table[name], target) for name in columns})

    counts = tally(rows, count)
    wanted = {}
    for name, column in counts.items():
        if column.lost and column.kind != "number" and min_share is not None:
            least = column.enough(min_share) - column.lost
            wanted[name] = [value for value, count in column.values.items() if count >= least]
    if not wanted:
        return counts

    def recount(table: pa.Table) -> Columns:
        return Columns({name: count_some(table[name], few) for name, few in wanted.items()})

    for name, exact in tally(rows, recount).items():
        least = counts[name].enough(min_share or 0)
        counts[name].values = Counter({v: n for v, n in exact.items() if n >= least})
    return counts


def _only_lists(counts: dict[str, ColumnCounts], asked: bool) -> dict[str, ColumnCounts]:
    lists = {name: column for name, column in counts.items() if column.kind == "list"}
    if asked and len(lists) < len(counts):
        other = next(name for name in counts if name not in lists)
        raise UserError(f"clusters.kind tags: column {other!r} is no list of tags")
    if not lists:
        raise UserError(
            "clusters.kind tags needs a column of lists; there is none among "
            f"{', '.join(counts)}; use --clusters.kind attributes"
        )
    return lists


def _leaks(counts: dict[str, ColumnCounts], label: str | None) -> list[str]:
    """Refuse columns that are the label under other names; warn of those that determine it."""
    notes = []
    for name, column in counts.items():
        pairs = column.pairs
        if not pairs or column.nulls > 0.5 * column.rows:
            continue
        values, labels = {v for v, _ in pairs}, {t for _, t in pairs}
        if len(labels) < 2 or len(pairs) != len(values):
            continue
        if len(values) == len(labels):
            others = " ".join(n for n in counts if n != name)
            raise UserError(
                f"column {name!r} is an image of the label {label!r}: each of its {len(values)} "
                "values stands for one class, so the clusters would be told the answer; leave it "
                f"out with --clusters.columns {others}"
            )
        if len(values) <= 0.5 * column.rows:
            notes.append(f"column {name!r} determines the label {label!r} ({len(values)} values)")
    return notes


def _patterns(
    chosen: list[Attribute], top_k: tuple[int, ...], empty_singleton: bool, table: pa.Table
) -> list[pa.Array]:
    """Joint pattern of the first k attributes, as the XOR of the codes of the true ones. Without a
    pattern is who has no value in any of their columns; so each k stands for itself."""
    arrays = {name: plain(table[name]) for name in {a.column for a in chosen}}
    empty = {
        name: array.is_null().to_numpy(zero_copy_only=False) | _no_member(array)
        for name, array in arrays.items()
    }
    unknown = np.ones(table.num_rows, dtype=bool)
    code = np.zeros(table.num_rows, dtype=np.uint64)
    some = np.zeros(table.num_rows, dtype=bool)
    found: dict[int, pa.Array] = {}
    for k, attribute in enumerate(chosen, start=1):
        mask = attribute.mask(arrays[attribute.column])
        code ^= np.where(mask, np.uint64(attribute.code), np.uint64(0))
        some |= mask
        unknown &= empty[attribute.column]
        if k in top_k or k == len(chosen):
            found[k] = pa.array(code.astype(np.int64), mask=~some if empty_singleton else unknown)
    return [found[min(k, len(chosen))] for k in top_k]


def _no_member(array: pa.Array) -> np.ndarray:
    """bool (n,): empty lists."""
    if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
        return np.zeros(len(array), dtype=bool)
    return np.asarray(pc.fill_null(pc.equal(pc.list_value_length(array), 0), True))


def _names(column: str, table: pa.Table, option: str = "clusters.columns") -> pa.Array:
    return value_names(table[column], f"{option} {column!r}")


def _paths(table: pa.Table, columns: list[str], separator: str) -> list[pa.Array]:
    """String columns from coarse to fine; null where an item is shallower."""
    if len(columns) > 1:
        return [_names(name, table) for name in columns]
    lists = decoded(table[columns[0]])
    if is_list(lists.type):
        members = value_names(pc.list_flatten(lists), f"members of clusters.columns {columns[0]!r}")
        rows = pc.list_parent_indices(lists).to_numpy()
        places = np.arange(len(rows)) - np.searchsorted(rows, rows)
        levels = []
        for level in range(int(places.max(initial=-1)) + 1):
            at = np.full(len(lists), -1)
            at[rows[places == level]] = np.flatnonzero(places == level)
            levels.append(members.take(pa.array(at, mask=at < 0)))
        return levels
    parts = pc.split_pattern(_names(columns[0], table), separator).to_pylist()
    clean = [[p for p in row if p] if row else [] for row in parts]
    depth = max((len(row) for row in clean), default=0)
    return [
        pa.array([row[i] if i < len(row) else None for row in clean], pa.string())
        for i in range(depth)
    ]


def _joined(columns: list[str], table: pa.Table) -> Iterator[pa.Table]:
    """With a path in a list as one text, so that the check against the label can read it."""
    if len(columns) > 1 or not is_list(table[columns[0]].type):
        yield table
        return
    place = table.column_names.index(columns[0])
    levels = [level.fill_null("") for level in _paths(table, columns, "")]
    whole = pc.binary_join_element_wise(*levels, "\x1f") if levels else pa.nulls(len(table))
    yield table.set_column(place, columns[0], pc.utf8_rtrim(whole, "\x1f"))


def _escaped(level: str) -> str:
    """A level without the separator of levels."""
    return level.replace("\x1e", "\x1e0").replace("\x1f", "\x1e1")


def _depth(rows: Dataset, columns: list[str], config: ClustersConfig) -> int:
    if len(columns) > 1:
        return len(columns)

    def deepest(table: pa.Table) -> Iterator[dict[str, np.ndarray]]:
        yield {"depth": np.array([len(_paths(table, columns, config.separator))])}

    found = rows.map_batches(deepest, batch_format="pyarrow", batch_size=None).take_all()
    depth = max((int(row["depth"]) for row in found), default=0)
    if depth == 0:
        raise UserError(f"column {columns[0]!r} holds no path at all")
    return depth


def _ancestors(
    columns: list[str], separator: str, levels: tuple[int, ...], table: pa.Table
) -> list[pa.Array]:
    """The ancestor at each level; the deepest known one of items that are shallower."""
    paths = _paths(table, columns, separator)
    prefix: list[str | None] = [""] * table.num_rows
    open_rows = [True] * table.num_rows
    found: dict[int, pa.Array] = {}
    for depth in range(1, max(levels) + 1):
        values = paths[depth - 1].to_pylist() if depth <= len(paths) else [None] * len(prefix)
        for row, value in enumerate(values):
            open_rows[row] = open_rows[row] and value is not None
            if open_rows[row]:
                prefix[row] = f"{prefix[row]}\x1f{_escaped(str(value))}"
        if depth in levels:
            found[depth] = hashed(pa.array([p or None for p in prefix], pa.string()))
    return [found[level] for level in levels]


def hashed(values: pa.Array) -> pa.Array:
    """int64 hash of each string; null stays null."""
    encoded = values.dictionary_encode()
    codes = pa.array(hash_strings(encoded.dictionary.to_pylist()), pa.int64())
    return codes.take(encoded.indices)


def _values(column: str, table: pa.Table) -> list[pa.Array]:
    return [hashed(_names(column, table, "data.label"))]


def _nothing(table: pa.Table) -> list[pa.Array]:
    return [pa.nulls(table.num_rows, pa.int64())]


def _assign(
    rows: Dataset, codes: Codes, names: tuple[str, ...], label: str | None
) -> tuple[Assignment, np.ndarray | None, int]:
    def coded(table: pa.Table) -> Iterator[pa.Table]:
        found = {ID: table[ID], KEY: table[KEY]}
        found |= {f"c{i}": column for i, column in enumerate(codes(table))}
        if label is not None:
            found["label"] = _values(label, table)[0]
        yield pa.table(found)

    made = rows.map_batches(coded, batch_format="pyarrow", batch_size=None)
    refs = made.to_arrow_refs()
    note("metadata", made)
    parts = [part for part in ray.get(refs) if part.num_rows]
    if not parts:
        raise UserError(NO_ROWS)
    table = pa.concat_tables(parts)
    clusters = np.stack([_numbers(table[f"c{i}"]) for i in range(len(names))], axis=1)
    keys = table[KEY].combine_chunks()
    given = None if keys.null_count == len(keys) else keys
    ids = table[ID].to_numpy()
    assignment = Assignment.from_rows(ids, clusters, names, given)
    if label is None:
        return assignment, None, 0
    labels = _numbers(table["label"])[np.argsort(ids, kind="stable")]
    return assignment, labels, int(labels.max(initial=-1)) + 1


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    missing = column.is_null().to_numpy()
    return number_codes(column.fill_null(0).to_numpy(), missing)


def check(assignment: Assignment, kind: str) -> None:
    """Raise a UserError when nothing can be learned from clusters: one only, or single images."""
    if (assignment.clusters < 0).all() and kind in ("instance", "kmeans"):
        return
    options = "--clusters.top-k or --clusters.level"
    coarser, finer = f"lower {options}", f"raise {options}"
    if kind == "table":
        coarser = finer = "choose another --clusters.from"
    for number, name in enumerate(assignment.names):
        sizes = assignment.sizes(number)
        if len(sizes) == 1 and int(sizes[0]) == len(assignment.ids):
            raise UserError(
                f"{name}: every image falls into one cluster (K = 1), nothing is left to push "
                f"apart; {finer}, or choose other columns"
            )
        if len(sizes) == 0 or int(sizes.max()) == 1:
            raise UserError(
                f"{name}: every image is a singleton, which is SimCLR; {coarser}, or use "
                "--clusters.kind instance"
            )
