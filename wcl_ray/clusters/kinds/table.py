"""Clusters that exist already, see --clusters.from, which implies it."""

from __future__ import annotations

from wcl_ray.clusters.kinds import Kind
from wcl_ray.registry import KINDS


@KINDS.add("table")
class Table(Kind):
    """Clusters of a file or another run, read by :mod:`wcl_ray.clusters.table`."""

    needs = "table"
