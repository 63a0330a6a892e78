"""Run folders as a job finds them."""

from __future__ import annotations

from wcl_ray.runs.folder import open_run
from wcl_ray.runs.stored import C
from wcl_ray.storage import Folder


def settle(config: C) -> tuple[C, Folder]:
    """The run as it is found, held for a moment only."""
    with open_run(config, "results.json") as found:
        return found
