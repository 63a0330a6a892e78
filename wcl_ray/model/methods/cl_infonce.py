"""Cl-InfoNCE with the clusters of --clusters.kind (Tsai et al., ICLR 2022).

The loss is :func:`wcl_ray.model.loss.cl_infonce`, with all options of ``--loss``.
"""

from __future__ import annotations

from wcl_ray.model.methods import Preset
from wcl_ray.registry import METHODS


@METHODS.add("cl-infonce")
class ClInfoNCE(Preset):
    """Clusters of any kind."""
