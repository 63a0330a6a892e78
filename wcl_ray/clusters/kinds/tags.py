"""The joint pattern of the top-k tags of highest entropy, from columns of lists."""

from __future__ import annotations

from wcl_ray.clusters.kinds.attributes import Attributes
from wcl_ray.clusters.types import ColumnType
from wcl_ray.errors import UserError
from wcl_ray.registry import KINDS


@KINDS.add("tags")
class Tags(Attributes):
    """Attributes of columns of tags only; an image without any chosen tag is a singleton."""

    singleton_if_none_true = True
    only_type = "tags"

    def usable(self, types: dict[str, ColumnType]) -> dict[str, ColumnType]:
        lists = {name: kind for name, kind in types.items() if kind.name == "tags"}
        if self.config.columns and len(lists) < len(types):
            other = next(name for name in types if name not in lists)
            raise UserError(
                f"clusters.kind tags: column {other!r} is not a list of tags; if its texts hold "
                f"them, give --clusters.types {other}=tags"
            )
        if not lists:
            raise UserError(
                f"clusters.kind tags needs a column of lists, and {', '.join(types)} are not; use "
                "--clusters.kind attributes, or --clusters.types COLUMN=tags for texts that hold "
                "tags, such as wild; night"
            )
        return lists
