"""The joint pattern of the top-k tags of highest entropy, of columns that hold lists."""

from __future__ import annotations

from wcl_ray.clusters.binarise import ColumnCounts
from wcl_ray.clusters.kinds.attributes import Attributes
from wcl_ray.errors import UserError
from wcl_ray.registry import KINDS


@KINDS.add("tags")
class Tags(Attributes):
    """Attributes of columns that hold lists; an image without any chosen tag is a singleton."""

    empty_singleton = True

    def usable(self, counts: dict[str, ColumnCounts]) -> dict[str, ColumnCounts]:
        lists = {name: column for name, column in counts.items() if column.kind == "list"}
        if self.config.columns and len(lists) < len(counts):
            other = next(name for name in counts if name not in lists)
            raise UserError(f"clusters.kind tags: column {other!r} is no list of tags")
        if not lists:
            raise UserError(
                "clusters.kind tags needs a column of lists; there is none among "
                f"{', '.join(counts)}; use --clusters.kind attributes"
            )
        return lists
