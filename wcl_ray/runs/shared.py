"""What one trial of a search has made and others may use, in Ray's object store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

T = TypeVar("T")


class Shared:
    """Objects by what they were made of. They last as long as the process that made this, and are
    nowhere on disk; trials that make the same at the same time both make it."""

    def __init__(self) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._keeper = _Keeper.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]

    def refs(self, key: str, make: Callable[[], list[Any]]) -> list[Any]:
        """References to what was made under a key, else to what ``make`` gives."""
        known = ray.get(self._keeper.get.remote(key))
        return known or ray.get(self._keeper.keep.remote(key, make()))  # type: ignore[no-any-return]

    def value(self, key: str, make: Callable[[], T]) -> T:
        """The same of one object."""
        (ref,) = self.refs(key, lambda: [ray.put(make())])
        return ray.get(ref)  # type: ignore[no-any-return]


@ray.remote(num_cpus=0)
class _Keeper:
    """Owns the objects, which would be lost with the trial that made them."""

    def __init__(self) -> None:
        self._kept: dict[str, list[Any]] = {}

    def get(self, key: str) -> list[Any] | None:
        return self._kept.get(key)

    def keep(self, key: str, refs: list[Any]) -> list[Any]:
        if key not in self._kept:
            self._kept[key] = [ray.put(ray.get(ref)) for ref in refs]
        return self._kept[key]
