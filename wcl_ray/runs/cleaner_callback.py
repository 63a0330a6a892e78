"""Starts our :class:`Cleaner` instead of Ray Train's; apart from it, as this imports Ray Train."""

from __future__ import annotations

from typing import Any

from ray.train.v2._internal.callbacks import placement_group_callback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from wcl_ray.runs.cleaner import Cleaner


class CleanerCallback(PlacementGroupCleanerCallback):
    """Starts a :class:`Cleaner`."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Called in the process of Ray Train's controller."""
        placement_group_callback.PlacementGroupCleaner = Cleaner  # type: ignore[misc,assignment]
        super().after_controller_start(train_run_context)
