"""SimCLR: every image by itself (Chen et al., ICML 2020), which is --clusters.kind instance.

NT-Xent, equation 1, over the global batch. Faithful; views and optimiser are those of the options,
not the paper's.
"""

from __future__ import annotations

from wcl_ray.model.methods import Preset
from wcl_ray.registry import METHODS


@METHODS.add("simclr")
class SimCLR(Preset):
    """Every image is a singleton."""

    kind = "instance"
