"""Checks that the levels of the loss fit the granularities of the clusters."""

from __future__ import annotations

from wcl_ray.clusters.assignment import Assignment
from wcl_ray.config import ClustersConfig, LossConfig
from wcl_ray.data.sampler import without_siblings
from wcl_ray.errors import UserError
from wcl_ray.registry import KINDS
from wcl_ray.terminal import warn


def check_level_options(clusters: ClustersConfig, loss: LossConfig) -> None:
    """Raise a UserError if the levels of the loss do not fit the granularities that the options of
    the clusters ask for; those of k-means are checked by :class:`wcl_ray.config.Config`, and those
    of tables and plugins once there are clusters."""
    if clusters.kind in ("kmeans", "table") or clusters.kind not in KINDS.shipped:
        return
    kind = KINDS.get(clusters.kind)
    values = getattr(clusters, kind.granularity) if kind.granularity else ()
    names = tuple(f"{clusters.kind}-{value}" for value in values) or (clusters.kind,)
    _check_level_names(loss, names)


def _check_level_names(loss: LossConfig, names: tuple[str, ...]) -> None:
    weights = loss.level_weights
    if weights and len(weights) != len(names):
        raise UserError(
            f"loss.level-weights has {len(weights)} number(s) for the level(s) {', '.join(names)}"
        )
    if loss.negatives == "siblings" and len(names) == 1:
        raise UserError(
            f"loss.negatives siblings needs several levels, not {names[0]} alone; give them from "
            "coarse to fine, such as --clusters.level 1 2"
        )


def check_levels(loss: LossConfig, table: Assignment) -> None:
    """Raise a UserError if the levels of the loss do not fit the granularities of the clusters."""
    names = table.names
    _check_level_names(loss, names)
    if loss.negatives != "siblings":
        return
    for level in range(1, len(names)):
        if not table.is_nested(level):
            raise UserError(
                f"loss.negatives siblings: clusters of {names[level]} are not inside those of "
                f"{names[level - 1]}; give levels from coarse to fine"
            )


def warn_siblings(
    loss: LossConfig, table: Assignment, batch_size: int, samples_per_cluster: int
) -> None:
    """Warn if anchors often meet no sibling of another cluster in a batch."""
    if loss.negatives != "siblings":
        return
    for level in range(1, len(table.names)):
        share = without_siblings(table.clusters, level, batch_size, samples_per_cluster)
        if share > 0.25:
            warn(
                f"loss.negatives siblings: in a batch {share:.0%} of the anchors meet no other "
                f"cluster of {table.names[level]} inside their own of {table.names[level - 1]}; "
                "raise train.batch-size or leave out the level above"
            )
