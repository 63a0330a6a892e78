"""torchvision's classification models by NAME alone (resnet18, resnet50, vit_b_16, …)."""

from __future__ import annotations

import difflib
from typing import Any

import torchvision.models
from torch import nn
from torchvision.models.resnet import ResNet

from wcl_ray.errors import UserError
from wcl_ray.registry import BACKBONES

SMALL_IMAGE = 64  # up to this side a ResNet's stem is 3×3 without pooling


@BACKBONES.add("torchvision")
def build(name: str, image_size: int) -> nn.Module:
    """A model without weights; ResNets get a small stem for small images.

    Raises:
        UserError: an unknown name (suggests the nearest names).
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        others = [family for family in BACKBONES.names() if family != "torchvision"]
        near = difflib.get_close_matches(name, [*others, *known], n=3, cutoff=0.4)
        raise UserError(
            f"model.backbone {name!r} is unknown; it is {', '.join(others)}, or a torchvision "
            f"classification model such as {', '.join(near or ['resnet18', 'resnet50'])}"
        )
    options: dict[str, Any] = {"weights": None}
    if name.startswith("vit_"):
        options["image_size"] = image_size
    if name in ("inception_v3", "googlenet"):
        options |= {"aux_logits": False, "init_weights": True}
    network: nn.Module = torchvision.models.get_model(name, **options)
    if isinstance(network, ResNet) and image_size <= SMALL_IMAGE:
        network.conv1 = nn.Conv2d(3, network.conv1.out_channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        network.maxpool = nn.Identity()  # type: ignore[assignment]
    return network
