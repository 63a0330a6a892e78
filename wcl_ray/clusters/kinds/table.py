"""Existing clusters; implied by --clusters.from."""

from __future__ import annotations

from wcl_ray.clusters.kinds import Kind
from wcl_ray.registry import KINDS


@KINDS.add("table")
class Table(Kind):
    """Clusters of a file or another run, see :mod:`wcl_ray.clusters.table`."""

    needs = "table"
