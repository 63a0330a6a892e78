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
from wcl_ray.clusters.metadata import Clustering, shortage
from wcl_ray.config import ClustersConfig, Config
from wcl_ray.storage import Folder
from wcl_ray.terminal import say, warn

VERSION = 1  # of the entries; another one makes all old entries unknown
NOTHING = "none"
FACTS = b"wcl_ray"
MATTERS = {
    "attributes": ("quantiles", "min_share", "top_k"),
    "tags": ("quantiles", "min_share", "top_k"),
    "hierarchy": ("separator", "level"),
    "label": (),
    "instance": (),
}
KMEANS = ("k", "nested", "min_size", "iterations", "spherical", "two_level", "features")
SPLITS = {"attributes": "top_k", "tags": "top_k", "hierarchy": "level"}

_told: set[str] = set()  # cache folders that could not be written


def cache_folder(config: Config) -> Folder | None:
    """Where a run keeps what others may use; None when it keeps nothing."""
    if config.cache == NOTHING:
        return None
    place = config.cache or f"{config.storage.rstrip('/')}/cache"
    return Folder(place, config.data.endpoint)


def digest(facts: dict[str, Any]) -> str:
    """Name of an entry."""
    text = json.dumps({"version": VERSION, **facts}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def bytes_digest(*parts: bytes | np.ndarray | None) -> str:
    """Hash of contents."""
    found = hashlib.sha256()
    for part in parts:
        content = part.tobytes() if isinstance(part, np.ndarray) else part or b""
        found.update(len(content).to_bytes(8, "little") + content)
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
        make: makes the clusters of an options' set.
    """
    if folder is None:
        return make(config)
    several = SPLITS.get(config.kind)
    values = getattr(config, several) if several else ()
    ones = [config]
    if several and values:
        each: list[dict[str, Any]] = [{several: (v,)} for v in values]
        ones = [replace(config, **one) for one in each]
    names = [_name(data, one, columns, seed) for one in ones]
    found = {name: entry for name in names if (entry := load(folder, name)) is not None}
    missing = [one for one, name in zip(ones, names, strict=True) if name not in found]
    if missing:
        asked = missing[0]
        if several and values:
            wanted: dict[str, Any] = {several: tuple(getattr(m, several)[0] for m in missing)}
            asked = replace(config, **wanted)
        made = make(asked)
        for g, one in enumerate(missing):
            name = _name(data, one, columns, seed)
            found[name] = _single(made, g, one, asked) if len(missing) > 1 else made
            keep(folder, name, found[name])
    else:
        say("clusters", f"from the cache in {folder.uri}")
    return _joined([found[name] for name in names])


def _name(data: dict[str, Any], config: ClustersConfig, columns: list[str], seed: int) -> str:
    facts: dict[str, Any] = {"data": data, "kind": config.kind, "columns": columns}
    if config.kind != "kmeans":
        facts |= {name: getattr(config, name) for name in MATTERS[config.kind]}
    elif columns:  # of metadata; those of features start with every image alone
        facts |= {"seed": seed, **kmeans_facts(config)}
    return f"clusters/{digest(facts)}.parquet"


def _single(whole: Clustering, g: int, config: ClustersConfig, asked: ClustersConfig) -> Clustering:
    """One granularity of several, as it would have been made alone."""
    table = whole.assignment
    own = replace(table, clusters=table.clusters[:, [g]], names=(table.names[g],))
    found = replace(whole, assignment=own)
    if config.kind == "hierarchy":
        return found
    other = shortage(len(whole.chosen), max(asked.top_k))
    others = tuple(note for note in whole.notes if note != other)
    chosen = whole.chosen[: config.top_k[0]]
    few = (shortage(len(chosen), config.top_k[0]),) if len(chosen) < config.top_k[0] else ()
    return replace(found, chosen=chosen, notes=others + few)


def _joined(parts: list[Clustering]) -> Clustering:
    """Several granularities of the same rows."""
    if len(parts) == 1:
        return parts[0]
    last = max(parts, key=lambda part: len(part.chosen))
    few = max(parts, key=lambda part: len(part.notes))
    tables = [part.assignment for part in parts]
    table = replace(
        tables[0],
        clusters=np.concatenate([t.clusters for t in tables], axis=1),
        names=tuple(name for t in tables for name in t.names),
    )
    return replace(last, assignment=table, notes=few.notes)


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
        "version": VERSION,
        "names": table.names,
        "classes": clustering.classes,
        "chosen": [asdict(a) for a in clustering.chosen],
        "skipped": clustering.skipped,
        "notes": clustering.notes,
        "more": more or {},
    }
    sink = io.BytesIO()
    text = json.dumps(facts, default=lambda x: x.item())
    whole = pa.table(columns).replace_schema_metadata({FACTS: text.encode()})
    pq.write_table(whole, sink, compression="zstd")
    try:
        folder.write(name, sink.getvalue())
    except OSError as error:
        unwritten(folder, error)


def unwritten(folder: Folder, error: Exception) -> None:
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
        table = pq.read_table(io.BytesIO(folder.read(name)))
        facts = json.loads(table.schema.metadata[FACTS])
        columns = [table[f"c{g}"].to_numpy() for g in range(len(facts["names"]))]
        keys = table["key"].combine_chunks() if "key" in table.column_names else None
        labels = table["label"].to_numpy() if "label" in table.column_names else None
        assignment = Assignment(
            table["id"].to_numpy(), np.stack(columns, 1), tuple(facts["names"]), keys
        )
        chosen = tuple(Attribute(**a) for a in facts["chosen"])
        clustering = Clustering(
            assignment, labels, facts["classes"], chosen, facts["skipped"], tuple(facts["notes"])
        )
        return clustering, facts["more"]
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        warn(f"the cache entry {folder.uri}/{name} cannot be read ({error}); it is made again")
        return None
