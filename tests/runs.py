"""Run folders as a job finds them."""

from __future__ import annotations

from wcl_ray.storage import Folder
from wcl_ray.train.folder import open_run
from wcl_ray.train.stored import C


def settle(config: C) -> tuple[C, Folder]:
    """The run as it is found, held for a moment only."""
    with open_run(config, "results.json") as found:
        return found
