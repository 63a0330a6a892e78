"""The joint pattern of the top-k tags of highest entropy, from columns of lists."""

from __future__ import annotations

from wcl_ray.clusters.binarise import ColumnCounts
from wcl_ray.clusters.kinds.attributes import Attributes
from wcl_ray.errors import UserError
from wcl_ray.registry import KINDS


@KINDS.add("tags")
class Tags(Attributes):
    """Attributes of list columns only; an image without any chosen tag is a singleton."""

    singleton_if_none_true = True

    def usable(self, counts: dict[str, ColumnCounts]) -> dict[str, ColumnCounts]:
        lists = {name: column for name, column in counts.items() if column.kind == "list"}
        if self.config.columns and len(lists) < len(counts):
            other = next(name for name in counts if name not in lists)
            raise UserError(f"clusters.kind tags: column {other!r} is not a list of tags")
        if not lists:
            raise UserError(
                f"clusters.kind tags needs a column of lists, and {', '.join(counts)} are not; use "
                "--clusters.kind attributes"
            )
        return lists
