"""Frees the resources of a training whose controller was killed, as a search kills a weak trial.

Ray Train's own cleaner imports all of Ray Train, which takes 2 s of CPU in every start, and asks
the dashboard that it finds on the machine, which may be another Ray's. This one asks the head of
its own Ray, and needs no dashboard.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import ray
from ray._private import state
from ray.util.placement_group import PlacementGroup, remove_placement_group


class Cleaner:
    """A detached actor that watches the controller of a training. Its methods are those of Ray
    Train's ``PlacementGroupCleaner``."""

    def __init__(self, controller_actor_id: str, check_interval_s: float, **timeouts: Any) -> None:
        self._controller, self._seconds = controller_actor_id, check_interval_s
        self._group: PlacementGroup | None = None
        self._stopped = asyncio.Event()

    async def register_placement_group(self, group: PlacementGroup) -> None:
        """Take the resources of the training's workers, in place of earlier ones."""
        self._group = group

    async def start_monitoring(self) -> None:
        """Wait until the controller is dead, free the resources, and end."""
        while await asyncio.to_thread(self._alive):
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), self._seconds)
                return
        try:
            if self._group is not None:
                remove_placement_group(self._group)
        finally:
            ray.actor.exit_actor()

    async def stop(self) -> None:
        """End; the training frees its resources itself."""
        self._stopped.set()  # Ray ends the actor after its other tasks
        ray.actor.exit_actor()

    def _alive(self) -> bool:
        return bool(state.actors(self._controller).get("State", "DEAD") != "DEAD")
