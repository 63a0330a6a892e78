"""Every image by itself, which is SimCLR."""

from __future__ import annotations

import pyarrow as pa

from wcl_ray.clusters.kinds import Kind, no_keys
from wcl_ray.registry import KINDS


@KINDS.add("instance")
class Instance(Kind):
    """Every image is a singleton."""

    needs = "nothing"

    def keys(self, table: pa.Table) -> list[pa.Array]:
        return no_keys(table)
