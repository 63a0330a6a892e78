"""Checks of the options that define the clusters: those that have no effect are said."""

from __future__ import annotations

from dataclasses import fields

from wcl_ray.config import KMEANS, ClustersConfig, Config, option_name
from wcl_ray.data.images import Images
from wcl_ray.errors import UserError
from wcl_ray.registry import KINDS
from wcl_ray.terminal import warn


def check_types(config: Config, images: Images | None = None) -> None:
    """Raise a UserError if ``clusters.types`` has no effect.

    Args:
        images: None: the columns are not checked.
    """
    clusters = config.clusters
    if not clusters.types:
        return
    no_effect = "clusters.types has no effect on"
    kind, loss_reads_types = f"clusters.kind {clusters.kind}", config.uses_metadata
    if not clusters.uses_types and not loss_reads_types:
        what = "clusters.from" if clusters.kind == "table" else kind
        only = " without clusters.features metadata" if clusters.kind == "kmeans" else ""
        raise UserError(f"{no_effect} {what}{only}; leave it out")
    only_type = KINDS.get(clusters.kind).only_type
    for name, type_name in clusters.column_types.items():
        if only_type not in (None, type_name) and not loss_reads_types:
            raise UserError(
                f"{no_effect} column {name!r} of type {type_name}: {kind} uses columns of type "
                f"{only_type} alone; leave it out"
            )
    if images is None:
        return
    images.train.check_columns(tuple(clusters.column_types), "clusters.types")
    named = named_metadata(clusters, images)
    for name in clusters.column_types:
        if name == images.label or name not in (named or images.available):
            why = "is the label" if name == images.label else "is not among clusters.columns"
            if not named and name == images.group:
                why = "is that of data.split-by, and not named in clusters.columns"
            raise UserError(f"{no_effect} column {name!r}, which {why}; leave it out")


def named_metadata(clusters: ClustersConfig, images: Images) -> tuple[str, ...]:
    """The metadata columns in ``clusters.columns``, which with ``clusters.from`` may name columns
    of that table as well."""
    if clusters.kind != "table":
        return clusters.columns
    columns = [name for name in images.train.columns if name != images.label]
    return tuple(name for name in clusters.columns if name in columns)


def warn_unused(config: Config) -> None:
    """Warn of options that the kind of clusters does not read; those of a plugin are not known."""
    clusters = config.clusters
    if clusters.kind not in KINDS.shipped:
        return
    kind = KINDS.get(clusters.kind)
    of_metadata = kind.needs == "columns" or clusters.features == "metadata"
    reads_attributes = clusters.kind in ("attributes", "tags") or config.uses_metadata
    readers = {
        "columns": of_metadata or clusters.kind == "table" or config.uses_metadata,
        "top_k": kind.granularity == "top_k",
        "level": kind.granularity == "level",
        "separator": clusters.kind == "hierarchy",
        "quantiles": reads_attributes or clusters.features == "metadata",
        "min_share": reads_attributes,
        **dict.fromkeys(KMEANS, clusters.kind == "kmeans" or clusters.from_features),
    }
    for option in fields(clusters):
        given = getattr(clusters, option.name) != option.default
        if given and not readers.get(option.name, True):
            warn(
                f"clusters.{option_name(option)} has no effect on clusters.kind {clusters.kind}; "
                "leave it out"
            )
