"""Ray Train's cleaner of placement groups, on machines with more than one Ray.

If a training is killed, as a search does with a weak trial, a detached actor frees the resources of
its workers. It asks Ray whether the training is gone, without an address: if two Rays run on the
machine, its thread ends with an error, or asks the other one, which knows no such training. The
resources are then lost until Ray ends, or those of a living training are freed.
"""

from __future__ import annotations

import os
from typing import Any

import ray
from ray.train.v2._internal.callbacks import placement_group_callback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller.placement_group_cleaner import (
    PlacementGroupCleaner,
)


class Cleaner(PlacementGroupCleaner):
    """Asks its own Ray."""

    def start_monitoring(self) -> Any:
        """Start the thread that asks."""
        os.environ.pop("RAY_API_SERVER_ADDRESS", None)  # it would win
        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
        return super().start_monitoring()


class CleanerCallback(PlacementGroupCleanerCallback):
    """Starts a :class:`Cleaner`."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Called in the process of Ray Train's controller."""
        placement_group_callback.PlacementGroupCleaner = Cleaner  # type: ignore[misc]
        super().after_controller_start(train_run_context)
