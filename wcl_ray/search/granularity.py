"""Which granularities are searched: their clusters, how good they are, and which are hopeless.

Clusters of metadata are made for all candidates in one pass, before any trial, and kept in the
folder of the search. Clusters of features do not exist before training; for them the sizes are told
that even clusters would have.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from wcl_ray.clusters.assignment import FILE, Assignment
from wcl_ray.clusters.metadata import Clustering, columns_of
from wcl_ray.clusters.quality import Quality, measure, render
from wcl_ray.config import Config, field_name
from wcl_ray.data.images import Images
from wcl_ray.errors import UserError
from wcl_ray.runs.clusters import build_clusters, qualities, read_labels
from wcl_ray.search.options import SearchConfig, with_value
from wcl_ray.search.space import Dimension, granularity_option, listing, show, spaced
from wcl_ray.storage import Folder
from wcl_ray.terminal import put, say, warn

DEFAULT_TOP_K = (2, 3, 5, 8, 12, 20, 32, 50, 80, 128)
MOST = 12  # candidates of a range
HOPELESS_SHARE = 0.95  # share of images that are singletons from which a granularity is hopeless
LONELY = 0.95  # share of anchors without any positive


@dataclass(frozen=True)
class Granularities:
    """The searched granularity.

    Attributes:
        dimension: with the hopeless left out; None where the granularity is not searched.
        base: clusters of all images outside the test split, one column a granularity; single images
            where clusters depend on features.
        labels: int32 (N,) of the images in ``base``, or None.
        columns: searched value (None where it is not searched) → its columns of ``base``.
        quality: searched value → measures.
    """

    dimension: Dimension | None
    base: Assignment
    labels: np.ndarray | None
    columns: dict[Any, tuple[int, ...]]
    quality: dict[Any, Quality]


def find_granularities(
    config: SearchConfig, images: Images, given: dict[str, Dimension], folder: Folder
) -> Granularities:
    """Make and measure the clusters of all candidates, print the report, leave out the hopeless.

    Args:
        images: with the validation share set aside; all of them are clustered.
        given: the dimensions of ``--search``.
        folder: of the search; clusters that it holds are not made again.

    Raises:
        UserError: see :func:`build_clusters`; no candidate is left.
    """
    kind, whole = config.clusters.kind, images.without_validation()
    key = granularity_option(kind)
    plain = config.plain()
    if key is None or "clusters.kind" in given:
        if key in given:
            raise UserError(f"search.{key} and search.clusters.kind cannot be searched together")
        clustering, quality = _kept(plain, whole, folder) or build_clusters(plain, whole)
        table = clustering.assignment
        fixed = {None: tuple(range(len(table.names)))}
        return Granularities(None, table, clustering.labels, fixed, {None: quality[0]})
    if config.clusters.from_features and kind == "kmeans":
        return _of_features(config, whole, key, given.get(key), folder)
    wanted = _candidates(config, whole, key, given.get(key), folder)
    every = tuple(sorted({x for value in wanted for x in value}))
    clustering, quality = _kept(plain, whole, folder) or build_clusters(
        with_value(plain, key, every), whole, strict=False, show=False
    )
    table = clustering.assignment
    put(f"\n{render(quality, config.train.batch_size)}\n")
    for note in clustering.notes:
        warn(note)
    columns: dict[Any, tuple[int, ...]] = {
        value: tuple(every.index(x) for x in value) for value in wanted
    }
    found = Granularities(
        None,
        table,
        clustering.labels,
        columns,
        {value: quality[place[0]] for value, place in columns.items()},
    )
    kept = _prune(found.quality, table, columns, key) if config.prune else wanted
    return replace(found, dimension=listing(key, kept))


def _kept(
    config: Config, images: Images, folder: Folder
) -> tuple[Clustering, list[Quality]] | None:
    """The clusters that a search was started with, and their measures."""
    if not folder.exists(FILE):
        return None
    table = Assignment.from_parquet(folder.read(FILE))
    say("clusters", f"{', '.join(table.names)}, as before")
    labels = read_labels(config, images, table.ids)
    return Clustering(table, labels, 0), qualities(table, labels, config)


def _candidates(
    config: SearchConfig, images: Images, key: str, given: Dimension | None, folder: Folder
) -> list[tuple[int, ...]]:
    """Values of the granularity: those given, else a spread and the configured one."""
    if given is not None and given.kind == "values":
        return list(given.values)
    if given is not None:
        return [(k,) for k in spaced(int(given.low), int(given.high), MOST)]
    own = getattr(config.clusters, field_name(key.partition(".")[2]))
    if key == "clusters.level":
        return [(level,) for level in range(1, _depth(config, images, folder) + 1)]
    if key == "clusters.k":
        return [(k,) for k in spaced(*_k_range(_count(images)), 8)]
    return sorted({*((k,) for k in DEFAULT_TOP_K), own})


def _depth(config: SearchConfig, images: Images, folder: Folder) -> int:
    """Levels of the hierarchy."""
    if folder.exists(FILE):  # one column a level
        return len(Assignment.from_parquet(folder.read(FILE)).names)
    deepest = replace(config.plain(), clusters=replace(config.clusters, level=()))
    clustering, _ = build_clusters(deepest, images, strict=False, show=False)
    return int(clustering.assignment.names[0].rpartition("-")[2])


def _count(images: Images) -> int:
    return int(images.metadata(()).count())


def _k_range(images: int) -> tuple[int, int]:
    """Numbers of clusters that are worth a look: 5 to 1,000 images a cluster, at least two."""
    high = max(2, images // 5)
    return min(high, max(2, images // 1000, 10)), high


def _of_features(
    config: SearchConfig, images: Images, key: str, given: Dimension | None, folder: Folder
) -> Granularities:
    """k-means of features: the range of K, and what even clusters would give."""
    plain = config.plain()
    columns_of(config.clusters, config.data.label, images.available)
    clustering, _ = _kept(plain, images, folder) or build_clusters(plain, images, show=False)
    n = len(clustering.assignment.ids)
    low, high = _k_range(round(n * (1 - config.validation)))
    dimension = given or Dimension(key, "int", low, high, log=True)
    if dimension.kind == "values":
        shown = sorted({k for v in dimension.values for k in v})
    else:
        shown = spaced(int(dimension.low), int(dimension.high), 8)
    for k in shown:
        if k > n * (1 - config.validation):
            raise UserError(f"search.{key}: {k} clusters are more than the training images")
    rows = []
    for k in shown:
        even = np.arange(n, dtype=np.int32) % k
        group = config.clusters.samples_per_cluster
        rows.append(measure(f"kmeans-{k}, if even", even, None, config.train.batch_size, group))
    say("clusters", "k-means of features: these do not exist yet; even ones of each K would be")
    put(f"\n{render(rows, config.train.batch_size)}\n")
    return Granularities(dimension, clustering.assignment, clustering.labels, {None: (0,)}, {})


def _prune(
    measures: dict[Any, Quality],
    table: Assignment,
    columns: dict[Any, tuple[int, ...]],
    key: str,
) -> list[tuple[int, ...]]:
    """Leave out what cannot help, and say why.

    Raises:
        UserError: nothing is left.
    """
    kept: list[tuple[int, ...]] = []
    reasons: dict[tuple[int, ...], str] = {}
    seen: dict[bytes, tuple[int, ...]] = {}
    for value, place in columns.items():
        if len(value) > 1:  # several at once: one coarse enough is enough
            kept.append(value)
            continue
        own = table.clusters[:, place[0]].tobytes()
        why = hopeless(measures[value])
        if why is None and own in seen:
            why = f"the same clusters as {show(seen[own])}"
        if why is None:
            seen[own] = value
            kept.append(value)
        else:
            reasons[value] = why
    for value, why in reasons.items():
        say("left out", f"{key} {show(value)}: {why}")
    if not kept:
        why = "; ".join(f"{show(value)}: {text}" for value, text in reasons.items())
        raise UserError(
            f"no granularity of {key} is left ({why}); give others with --search, or --no-prune"
        )
    return kept


def hopeless(quality: Quality) -> str | None:
    """Why clusters cannot help, None when they may."""
    if quality.clusters <= 1:
        return "every image is in one cluster, nothing is left to push apart"
    if quality.singles > HOPELESS_SHARE:
        return f"{quality.singles:.0%} of the images are singletons"
    if quality.composed_lonely > LONELY:
        return f"{quality.composed_lonely:.0%} of the anchors would meet no positive"
    return None


def restricted(table: Assignment, columns: tuple[int, ...], ids: np.ndarray) -> Assignment:
    """Some granularities of some images."""
    names = tuple(table.names[column] for column in columns)
    return replace(table, clusters=table.clusters[:, list(columns)], names=names).restrict(ids)
