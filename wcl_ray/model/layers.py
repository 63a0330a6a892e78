"""The layers of a backbone in order: to freeze the first ones, and for learning rates that fall
towards the input."""

from __future__ import annotations

import re

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from wcl_ray.errors import UserError

# stages or blocks of torchvision's networks and of the small one; as in timm, the transition after
# a dense block is part of it
NUMBERED = re.compile(
    r"^(layer|features\.|encoder\.layers\.encoder_layer_"
    r"|trunk_output\.block|blocks\.|stage|inception|Mixed_"
    r"|layers\.(?=(?:8|9|1[0-3])\.))"  # the stages of MNASNet
    r"(?:denseblock|transition)?(\d+)[a-z]?\."
)
# of torchvision: every even one of their features is the downsampling before a stage
DOWNSAMPLED = ("ConvNeXt", "SwinTransformer")


def layer_numbers(backbone: nn.Module) -> dict[str, int]:
    """Parameter → its layer: 0 is the stem (or patch embedding), then come the stages of a
    convolutional network or the blocks of a transformer.

    Downsampling before a stage counts as part of the stage, and what follows the last stage, such
    as a norm, as part of that one. timm's networks say it themselves (``group_matcher``).

    Raises:
        UserError: no stages are found in the network.
    """
    matcher = getattr(backbone, "group_matcher", None)
    names = [name for name, _ in backbone.named_parameters()]
    if matcher is not None:
        from timm.models import group_parameters

        groups = group_parameters(backbone, matcher(coarse=True), reverse=True)
        last = max(groups.values())
        tail = [name for name in names if groups[name] == last]
        if not any(re.search(r"\d+\.", name) for name in tail):  # a norm before the classifier
            groups |= dict.fromkeys(tail, last - 1)
        return _check_stages(dict(groups))
    layers: dict[str, int] = {}
    numbers: dict[tuple[str, int], int] = {}
    current, paired = 0, type(backbone).__name__ in DOWNSAMPLED
    for name in names:
        match = NUMBERED.match(name)
        if match is not None:
            kind, number = match[1], int(match[2])
            stage = number // 2 + 1 if paired else number
            stem = kind == "features." and number == 0
            current = 0 if stem else numbers.setdefault((kind, stage), len(numbers) + 1)
        layers[name] = current
    return _check_stages(layers)


def _check_stages(layers: dict[str, int]) -> dict[str, int]:
    if not any(layers.values()):
        raise UserError(
            "the stages of this backbone are not known: use model.freeze-stages 0 and "
            "train.layer-decay 1, or another --model.backbone"
        )
    return layers


def freeze(backbone: nn.Module, count: int) -> None:
    """Take the first ``count`` layers out of training, the stem being the first.

    Raises:
        UserError: no layer would be left, or the layers are not known.
    """
    if not count:
        return
    layers = layer_numbers(backbone)
    total = max(layers.values()) + 1
    if count >= total:
        raise UserError(
            f"model.freeze-stages {count} leaves nothing to train: the backbone has {total} "
            "stages, the stem included"
        )
    for name, parameter in backbone.named_parameters():
        if layers[name] < count:
            parameter.requires_grad_(False)


def set_training(model: nn.Module) -> None:
    """Put a model into training mode, except its batch norms without a trained parameter, which
    keep the statistics that they came with."""
    model.train()
    for module in model.modules():
        weights = list(module.parameters(recurse=False))
        if isinstance(module, _BatchNorm) and weights:
            module.train(any(weight.requires_grad for weight in weights))
