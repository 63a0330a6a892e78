"""Supervised contrastive learning (Khosla et al., NeurIPS 2020), which is --clusters.kind label.

``L_out``, equation 2. Faithful, but batches are composed of images of one class
(``--clusters.samples-per-cluster``), and images without a label have only their own other view as
positive.
"""

from __future__ import annotations

from wcl_ray.model.methods import Preset
from wcl_ray.registry import METHODS


@METHODS.add("supcon")
class SupCon(Preset):
    """Clusters are the classes."""

    kind = "label"
    needs = "label"
