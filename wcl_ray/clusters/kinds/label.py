"""One cluster for each class, as in supervised contrastive learning."""

from __future__ import annotations

import pyarrow as pa

from wcl_ray.clusters.kinds import Kind
from wcl_ray.clusters.metadata import value_texts
from wcl_ray.registry import KINDS


@KINDS.add("label")
class Label(Kind):
    """One cluster per class."""

    needs = "label"

    def keys(self, table: pa.Table) -> list[pa.Array]:
        assert self.label is not None
        return [value_texts(self.label, table, "data.label")]
