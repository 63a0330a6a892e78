"""The granularities that are searched: their clusters and their quality; hopeless ones are dropped.

Clusters of metadata are built for all candidates in one pass, before any trial, and stored in the
search folder. Clusters of features do not exist before training; the quality printed for them is
that of clusters of equal size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from wcl_ray.clusters.assignment import FILE, Assignment, stored_names
from wcl_ray.clusters.metadata import Clustering, columns_of
from wcl_ray.clusters.quality import Quality, measure, render
from wcl_ray.config import Config, field_name
from wcl_ray.data.images import Images
from wcl_ray.errors import UserError
from wcl_ray.runs.clusters import build_clusters, qualities, read_labels
from wcl_ray.runs.levels import check_levels
from wcl_ray.search.options import SearchConfig, with_value
from wcl_ray.search.space import Dimension, granularity_option, listing, show, spaced
from wcl_ray.storage import Folder
from wcl_ray.terminal import put, say, warn

DEFAULT_TOP_K = (2, 3, 5, 8, 12, 20, 32, 50, 80, 128)
MAX_CANDIDATES = 12  # of a range
MAX_SINGLETONS = 0.95  # a granularity with a larger share of singletons is hopeless
MAX_LONELY = 0.95  # so is one with a larger share of anchors without any positive


@dataclass(frozen=True)
class Granularities:
    """The granularities of a search.

    Attributes:
        dimension: without hopeless values; None if the granularity is not searched.
        base: clusters of all images outside the test split, one column per granularity; singletons
            if clusters depend on features.
        labels: int32 (N,) of the images in ``base``, or None.
        columns: searched value (None if not searched) → its columns of ``base``.
        quality: searched value → quality of its clusters.
    """

    dimension: Dimension | None
    base: Assignment
    labels: np.ndarray | None
    columns: dict[Any, tuple[int, ...]]
    quality: dict[Any, Quality]


def find_granularities(
    config: SearchConfig, images: Images, given: dict[str, Dimension], folder: Folder
) -> Granularities:
    """Build the clusters of all candidates, print their quality, and drop hopeless ones.

    Args:
        images: split into training and validation; both are clustered.
        given: the dimensions of ``--search``.
        folder: of the search; clusters stored there are not built again.

    Raises:
        UserError: see :func:`build_clusters`; no candidate is left.
    """
    kind, all_images = config.clusters.kind, images.without_validation()
    key = granularity_option(kind)
    plain = config.plain()
    if key is None or "clusters.kind" in given:
        if key in given:
            raise UserError(f"search.{key} and search.clusters.kind cannot be searched together")
        clustering, quality = _stored(plain, all_images, folder) or build_clusters(
            plain, all_images
        )
        table = clustering.assignment
        if not config.clusters.from_features:
            check_levels(config.loss, table)
        fixed = {None: tuple(range(len(table.names)))}
        return Granularities(None, table, clustering.labels, fixed, {None: quality[0]})
    if config.clusters.from_features and kind == "kmeans":
        return _of_features(config, all_images, key, given.get(key), folder)
    candidates = _candidates(config, all_images, key, given.get(key), folder)
    levels = tuple(sorted({level for value in candidates for level in value}))
    clustering, quality = _stored(plain, all_images, folder) or build_clusters(
        with_value(plain, key, levels), all_images, strict=False, show=False
    )
    table = clustering.assignment
    put(f"\n{render(quality, config.train.batch_size)}\n")
    for note in clustering.notes:
        warn(note)
    columns: dict[Any, tuple[int, ...]] = {
        value: tuple(levels.index(level) for level in value) for value in candidates
    }
    by_value = {value: quality[places[0]] for value, places in columns.items()}
    kept = _prune(by_value, table, columns, key) if config.prune else candidates
    for value in kept:
        check_levels(config.loss, restricted(table, columns[value], table.ids))
    return Granularities(listing(key, kept), table, clustering.labels, columns, by_value)


def _stored(
    config: Config, images: Images, folder: Folder
) -> tuple[Clustering, list[Quality]] | None:
    """The clusters stored in the search folder, and their quality; None before the first start."""
    if not folder.exists(FILE):
        return None
    table = Assignment.read(folder)
    say("clusters", f"{', '.join(table.names)}, as before")
    labels = read_labels(config, images, table.ids)
    return Clustering(table, labels, 0), qualities(table, labels, config)


def _candidates(
    config: SearchConfig, images: Images, key: str, given: Dimension | None, folder: Folder
) -> list[tuple[int, ...]]:
    """Candidate values of the granularity: those given, else a default range."""
    if given is not None and given.kind == "values":
        return list(given.values)
    if given is not None:
        return [(k,) for k in spaced(int(given.low), int(given.high), MAX_CANDIDATES)]
    if key == "clusters.level":
        return [(level,) for level in range(1, _depth(config, images, folder) + 1)]
    if key == "clusters.k":
        return [(k,) for k in spaced(*_k_range(_count(images)), 8)]
    configured = getattr(config.clusters, field_name(key.partition(".")[2]))
    return sorted({*((k,) for k in DEFAULT_TOP_K), configured})


def _depth(config: SearchConfig, images: Images, folder: Folder) -> int:
    """Number of levels of the hierarchy."""
    if folder.exists(FILE):  # one column per level
        return len(stored_names(folder))
    deepest = replace(config.plain(), clusters=replace(config.clusters, level=()))
    clustering, _ = build_clusters(deepest, images, strict=False, show=False)
    return int(clustering.assignment.names[0].rpartition("-")[2])


def _count(images: Images) -> int:
    return int(images.metadata(()).count())


def _k_range(images: int) -> tuple[int, int]:
    """Range of the numbers of clusters to search: 5 to 1,000 images each, at least two clusters."""
    high = max(2, images // 5)
    return min(high, max(2, images // 1000, 10)), high


def _of_features(
    config: SearchConfig, images: Images, key: str, given: Dimension | None, folder: Folder
) -> Granularities:
    """k-means of features: the range of K, and the quality of clusters of equal size."""
    plain = config.plain()
    columns_of(config.clusters, config.data.label, images.available)
    clustering, _ = _stored(plain, images, folder) or build_clusters(plain, images, show=False)
    n = len(clustering.assignment.ids)
    low, high = _k_range(round(n * (1 - config.validation)))
    dimension = given or Dimension(key, "int", low, high, log=True)
    if dimension.kind == "values":
        ks = sorted({k for value in dimension.values for k in value})
    else:
        ks = spaced(int(dimension.low), int(dimension.high), 8)
    for k in ks:
        if k > n * (1 - config.validation):
            raise UserError(f"search.{key}: {k} clusters are more than the training images")
    rows = []
    for k in ks:
        even = np.arange(n, dtype=np.int32) % k
        group = config.clusters.samples_per_cluster
        rows.append(measure(f"kmeans-{k}, if even", even, None, config.train.batch_size, group))
    say("clusters", "k-means of features: none exist yet; clusters of equal size would have")
    put(f"\n{render(rows, config.train.batch_size)}\n")
    return Granularities(dimension, clustering.assignment, clustering.labels, {None: (0,)}, {})


def _prune(
    quality: dict[Any, Quality],
    table: Assignment,
    columns: dict[Any, tuple[int, ...]],
    key: str,
) -> list[tuple[int, ...]]:
    """Drop values whose clusters cannot help or repeat others, and print why.

    Raises:
        UserError: no value is left.
    """
    kept: list[tuple[int, ...]] = []
    reasons: dict[tuple[int, ...], str] = {}
    seen: dict[bytes, tuple[int, ...]] = {}
    for value, places in columns.items():
        if len(value) > 1:  # of several granularities one coarse enough is enough
            kept.append(value)
            continue
        clusters = table.clusters[:, places[0]].tobytes()
        reason = hopeless(quality[value])
        if reason is None and clusters in seen:
            reason = f"the same clusters as {show(seen[clusters])}"
        if reason is None:
            seen[clusters] = value
            kept.append(value)
        else:
            reasons[value] = reason
    for value, reason in reasons.items():
        say("left out", f"{key} {show(value)}: {reason}")
    if not kept:
        text = "; ".join(f"{show(value)}: {reason}" for value, reason in reasons.items())
        raise UserError(
            f"no granularity of {key} is left ({text}); give others with --search, or --no-prune"
        )
    return kept


def hopeless(quality: Quality) -> str | None:
    """Why clusters cannot help, None if they may."""
    if quality.clusters <= 1:
        return "every image is in one cluster, nothing is left to push apart"
    if quality.singles > MAX_SINGLETONS:
        return f"{quality.singles:.0%} of the images are singletons"
    if quality.composed_lonely > MAX_LONELY:
        return f"{quality.composed_lonely:.0%} of the anchors would meet no positive"
    return None


def restricted(table: Assignment, columns: tuple[int, ...], ids: np.ndarray) -> Assignment:
    """The assignment restricted to some granularities and some images."""
    names = tuple(table.names[column] for column in columns)
    return replace(table, clusters=table.clusters[:, list(columns)], names=names).restrict(ids)
