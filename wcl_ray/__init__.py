"""wcl_ray: image encoders from images and the metadata people already have about them.

The same from Python as from the command line, for notebooks and programs of one's own:
``Config``, ``pretrain``, ``Run``, ``load_encoder`` and ``KMeans``, see ``docs/python.md``. They are
imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wcl_ray.config import Config
    from wcl_ray.kmeans.kmeans import KMeans
    from wcl_ray.report.notebook import Run, pretrain
    from wcl_ray.runs.load import load_encoder

__version__ = "0.3.0.dev0"
__all__ = ["Config", "KMeans", "Run", "load_encoder", "pretrain"]
_HOMES = {
    "Config": "wcl_ray.config",
    "KMeans": "wcl_ray.kmeans.kmeans",
    "Run": "wcl_ray.report.notebook",
    "load_encoder": "wcl_ray.runs.load",
    "pretrain": "wcl_ray.report.notebook",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
