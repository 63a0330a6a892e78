"""A cache of results shared by the trials of a search, in Ray's object store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

T = TypeVar("T")


class Shared:
    """Results by a key of what they were computed from, kept in memory while the process that
    created this lives. Two trials that need the same result at once both compute it."""

    def __init__(self) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._keeper = _Keeper.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]

    def refs(self, key: str, make: Callable[[], list[Any]]) -> list[Any]:
        """The references under a key, else those that ``make`` returns, which are then kept."""
        cached = ray.get(self._keeper.get.remote(key))
        return cached or ray.get(self._keeper.keep.remote(key, make()))  # type: ignore[no-any-return]

    def value(self, key: str, make: Callable[[], T]) -> T:
        """The object under a key, else the one that ``make`` returns, which is then kept."""
        (ref,) = self.refs(key, lambda: [ray.put(make())])
        return ray.get(ref)  # type: ignore[no-any-return]


@ray.remote(num_cpus=0)
class _Keeper:
    """Owns the objects, which would otherwise be lost with the trial that created them."""

    def __init__(self) -> None:
        self._kept: dict[str, list[Any]] = {}

    def get(self, key: str) -> list[Any] | None:
        return self._kept.get(key)

    def keep(self, key: str, refs: list[Any]) -> list[Any]:
        if key not in self._kept:
            self._kept[key] = [ray.put(ray.get(ref)) for ref in refs]
        return self._kept[key]
