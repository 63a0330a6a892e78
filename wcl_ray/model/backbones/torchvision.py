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
def build(
    name: str, image_size: int, pretrained: bool = False, drop_path: float | None = None
) -> nn.Module:
    """A model, randomly initialised, or in its own size with torchvision's best weights. New
    ResNets get a small stem for small images.

    Raises:
        UserError: an unknown name (suggests the nearest names), or a network without stochastic
            depth.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        others = [family for family in BACKBONES.names() if family != "torchvision"]
        near = difflib.get_close_matches(name, [*others, *known], n=3, cutoff=0.4)
        raise UserError(
            f"model.backbone {name!r} is unknown; it is {', '.join(others)}, or a torchvision "
            f"classification model such as {', '.join(near or ['resnet18', 'resnet50'])}"
        )
    if pretrained:
        return _described(torchvision.models.get_model(name, weights="DEFAULT"), name)
    options: dict[str, Any] = {"weights": None}
    if name.startswith("vit_"):
        options["image_size"] = image_size
    if name in ("inception_v3", "googlenet"):
        options |= {"aux_logits": False, "init_weights": True}
    if drop_path is not None:
        options["stochastic_depth_prob"] = drop_path
    try:
        network: nn.Module = torchvision.models.get_model(name, **options)
    except TypeError as error:
        if "stochastic_depth_prob" not in str(error):
            raise
        raise UserError(f"model.drop-path: torchvision's {name} has no stochastic depth") from None
    if isinstance(network, ResNet) and image_size <= SMALL_IMAGE:
        network.conv1 = nn.Conv2d(3, network.conv1.out_channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        network.maxpool = nn.Identity()  # type: ignore[assignment]
    return _described(network, name)


def _described(network: nn.Module, name: str) -> nn.Module:
    """The network with timm's ``pretrained_cfg``: what images the published weights take."""
    best = torchvision.models.get_model_weights(name).DEFAULT.transforms()  # type: ignore[attr-defined]
    size = best.crop_size[0]
    network.pretrained_cfg = {"mean": best.mean, "std": best.std, "input_size": (3, size, size)}  # type: ignore[assignment]
    return network
