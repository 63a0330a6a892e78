"""Clusterings that were made before, found again by what they were made of.

An entry is one Parquet file, named by the hash of everything that the clusters depend on: the
files, the split, the kind of clusters and its options, for clusters of features also the encoder.
Runs and trials share a folder of entries; one that is lost or damaged is made again.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wcl_ray.clusters.assignment import Assignment
from wcl_ray.clusters.binarise import Attribute
from wcl_ray.clusters.kinds.attributes import shortage
from wcl_ray.clusters.metadata import Clustering
from wcl_ray.config import ClustersConfig, Config
from wcl_ray.registry import KINDS
from wcl_ray.storage import Folder
from wcl_ray.terminal import say, warn

VERSION = 4  # of the entries; another one makes all old entries unknown
NOTHING = "none"
FACTS = b"wcl_ray"
SEAL, BLANK = b"sealed with ", b"0" * 64
KMEANS = ("k", "nested", "min_size", "iterations", "spherical", "two_level", "features")

_told: set[str] = set()  # cache folders that could not be written


def cache_folder(config: Config) -> Folder | None:
    """Where a run keeps what others may use; None when it keeps nothing."""
    if config.cache == NOTHING:
        return None
    place = config.cache or f"{config.storage.rstrip('/')}/cache"
    folder = Folder(place, config.data.endpoint)
    # tasks may have another working folder
    return Folder(folder.path, config.data.endpoint) if folder.local else folder


def digest(facts: dict[str, Any]) -> str:
    """Name of an entry: a hash of JSON types, whatever their order."""
    text = json.dumps({"version": VERSION, **facts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def array_digest(array: np.ndarray | None) -> str | None:
    """Hash of an array's type, shape and content."""
    if array is None:
        return None
    found = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:40]


def kmeans_facts(config: ClustersConfig) -> dict[str, Any]:
    """Options that k-means clusters depend on; the kernel gives the same bits whichever it is."""
    return {name: getattr(config, name) for name in KMEANS}


def cached_clustering(
    folder: Folder | None,
    data: dict[str, Any],
    config: ClustersConfig,
    columns: list[str],
    seed: int,
    make: Callable[[ClustersConfig], Clustering],
) -> Clustering:
    """Clusters of metadata from the cache; what it does not hold is made in one pass and kept.

    Clusters of attributes, tags and hierarchies are kept by the granularity, so that a run with one
    finds what another has made together with others.

    Args:
        data: what tells the rows: fingerprint, split and label.
        columns: metadata columns that are read.
        make: makes the clusters of an options' set; whether they are of any use is not asked.
    """
    if folder is None or config.kind in KINDS.plugins():
        return make(config)
    ones = [_with(config, (value,)) for value in _values(config)] or [config]
    names = [_name(data, one, columns, seed) for one in ones]
    found = {name: part for name in names if (part := load(folder, name)) is not None}
    if not _same_rows(list(found.values())):
        warn(f"cache entries in {folder.uri} contradict each other; they are made again")
        found = {}
    missing = {name: one for name, one in zip(names, ones, strict=True) if name not in found}
    if missing:
        made = make(_with(config, tuple(v for one in missing.values() for v in _values(one))))
        for g, (name, one) in enumerate(missing.items()):
            found[name] = _single(made, g, one) if len(missing) > 1 else made
            keep(folder, name, found[name])
    elif config.kind != "instance":
        own = ", ".join(n for name in names for n in found[name].assignment.names)
        say("clusters", f"{own} from the cache in {folder.uri}")
    return _joined([found[name] for name in names], ones)


def _values(config: ClustersConfig) -> tuple[int, ...]:
    """The granularities that are kept one by one; none: all that there are make one entry."""
    if config.kind in ("attributes", "tags"):
        return config.top_k
    return config.level if config.kind == "hierarchy" else ()


def _with(config: ClustersConfig, values: tuple[int, ...]) -> ClustersConfig:
    if config.kind in ("attributes", "tags"):
        return replace(config, top_k=values)
    return replace(config, level=values) if config.kind == "hierarchy" else config


def _name(data: dict[str, Any], config: ClustersConfig, columns: list[str], seed: int) -> str:
    """File of a clustering with one granularity (k-means: with all of them)."""
    facts: dict[str, Any] = {"data": data, "kind": config.kind, "columns": columns}
    if config.kind in ("attributes", "tags"):
        facts |= {"min_share": config.min_share, "top_k": config.top_k}
    if config.kind == "attributes":
        facts["quantiles"] = config.quantiles
    elif config.kind == "tags":
        facts["given"] = bool(config.columns)  # then a column that holds no lists is an error
    elif config.kind == "hierarchy":
        facts |= {"level": config.level, "separator": config.separator if len(columns) == 1 else ""}
    elif config.kind == "kmeans" and columns:
        facts |= {"seed": seed, **kmeans_facts(config)}
    if config.kind == "kmeans" and not columns:
        facts["kind"] = "instance"  # k-means of features starts with every image alone
    return f"clusters/{digest(facts)}.parquet"


def _same_rows(parts: list[Clustering]) -> bool:
    return all(np.array_equal(p.assignment.ids, parts[0].assignment.ids) for p in parts[1:])


def _single(whole: Clustering, g: int, config: ClustersConfig) -> Clustering:
    """One granularity of several, as it would have been made alone."""
    table = whole.assignment
    own = replace(table, clusters=table.clusters[:, [g]], names=(table.names[g],))
    if config.kind == "hierarchy":
        return replace(whole, assignment=own)
    k, usable = config.top_k[0], len(whole.chosen)
    notes = whole.notes
    if notes and notes[-1].startswith(shortage(usable, 0).removesuffix("0")):
        notes = notes[:-1]  # that of the largest top-k
    few = (shortage(usable, k),) if usable < k else ()
    return replace(whole, assignment=own, chosen=whole.chosen[:k], notes=notes + few)


def _joined(parts: list[Clustering], ones: list[ClustersConfig]) -> Clustering:
    """Several granularities of the same rows; what is said of them is that of the largest top-k."""
    if len(parts) == 1:
        return parts[0]
    most = max(range(len(parts)), key=lambda i: ones[i].top_k)
    tables = [part.assignment for part in parts]
    table = replace(
        tables[0],
        clusters=np.concatenate([t.clusters for t in tables], axis=1),
        names=tuple(name for t in tables for name in t.names),
    )
    return replace(parts[most], assignment=table)


def keep(
    folder: Folder, name: str, clustering: Clustering, more: dict[str, Any] | None = None
) -> None:
    """Write an entry; a folder that cannot be written is told once.

    Args:
        more: further facts, JSON types.
    """
    table = clustering.assignment
    columns: dict[str, Any] = {"id": pa.array(table.ids)}
    if table.keys is not None:
        columns["key"] = table.keys
    for g in range(len(table.names)):
        columns[f"c{g}"] = pa.array(np.ascontiguousarray(table.clusters[:, g]))
    if clustering.labels is not None:
        columns["label"] = pa.array(clustering.labels)
    facts = {
        "entry": name,
        "names": table.names,
        "classes": clustering.classes,
        "chosen": [asdict(a) for a in clustering.chosen],
        "skipped": clustering.skipped,
        "notes": clustering.notes,
        "more": more or {},
    }
    sink = io.BytesIO()
    text = json.dumps(facts, default=lambda x: x.item())
    whole = pa.table(columns).replace_schema_metadata({FACTS: text.encode(), "seal": SEAL + BLANK})
    pq.write_table(whole, sink, compression="zstd")
    try:
        folder.write(name, _sealed(sink.getvalue()))
    except OSError as error:
        unwritten(folder, error)


def _sealed(content: bytes) -> bytes:
    """A file with the hash of all the rest in the place for it, so that no damage goes unseen."""
    at = content.rfind(SEAL) + len(SEAL)
    if at < len(SEAL):
        raise ValueError("it is no entry")
    end = at + len(BLANK)
    found = hashlib.sha256(content[:at] + BLANK + content[end:]).hexdigest()
    return content[:at] + found.encode() + content[end:]


def unwritten(folder: Folder, error: BaseException) -> None:
    """Say once that a cache folder cannot be written."""
    if folder.uri not in _told:
        _told.add(folder.uri)
        warn(f"the cache in {folder.uri} cannot be written ({error}); the run goes on without it")


def load(folder: Folder, name: str) -> Clustering | None:
    """Read an entry; None when there is none, or one that cannot be read."""
    found = load_with_facts(folder, name)
    return None if found is None else found[0]


def load_with_facts(folder: Folder, name: str) -> tuple[Clustering, dict[str, Any]] | None:
    """An entry and its further facts."""
    try:
        if not folder.exists(name):
            return None
        content = folder.read(name)
        if _sealed(content) != content:
            raise ValueError("it is damaged")
        table = pq.read_table(io.BytesIO(content))
        facts = json.loads((table.schema.metadata or {})[FACTS])
        if facts["entry"] != name:
            raise ValueError(f"it is the entry {facts['entry']}")
        columns = [table[f"c{g}"].to_numpy() for g in range(len(facts["names"]))]
        keys = table["key"].combine_chunks() if "key" in table.column_names else None
        labels = table["label"].to_numpy().copy() if "label" in table.column_names else None
        assignment = Assignment(
            table["id"].to_numpy().copy(), np.stack(columns, 1), tuple(facts["names"]), keys
        )
        chosen = tuple(Attribute(**a) for a in facts["chosen"])
        clustering = Clustering(
            assignment, labels, facts["classes"], chosen, facts["skipped"], tuple(facts["notes"])
        )
        return clustering, facts["more"]
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        warn(f"the cache entry {folder.uri}/{name} cannot be read ({error}); it is made again")
        return None
