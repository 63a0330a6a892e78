"""A light ResNet for small images."""

from __future__ import annotations

from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from wcl_ray.registry import BACKBONES


@BACKBONES.add("small")
def build(name: str, image_size: int) -> nn.Module:
    """The only network of this family, for images of any size."""
    return Small()


class Small(ResNet):
    """A light ResNet for small images: four stages of one basic block, 1.2 million weights.

    A 3×3 stem with stride 2 gives a 32-pixel image 16 × 16 pixels in the first stage; widths are
    32, 64, 128, 256. Parameter names are those of torchvision's ResNet. Features: (B, 256).
    """

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self._norm_layer = nn.BatchNorm2d
        self.inplanes, self.dilation, self.groups, self.base_width = 32, 1, 1, 64
        self.conv1 = nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity()  # type: ignore[assignment]
        self.layer1 = self._make_layer(BasicBlock, 32, 1)
        self.layer2 = self._make_layer(BasicBlock, 64, 1, stride=2)
        self.layer3 = self._make_layer(BasicBlock, 128, 1, stride=2)
        self.layer4 = self._make_layer(BasicBlock, 256, 1, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(256, 1000)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
