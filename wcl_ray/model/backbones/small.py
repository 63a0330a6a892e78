"""A light ResNet for small images."""

from __future__ import annotations

import torch
from torch import nn

from wcl_ray.registry import BACKBONES


@BACKBONES.add("small")
def build(name: str, image_size: int) -> nn.Module:
    """The only network of this family, for images of any size."""
    return Small()


class Small(nn.Module):
    """A light ResNet for small images: four stages of one basic block, 1.2 million weights.

    A 3×3 stem with stride 2 gives a 32-pixel image 16 × 16 pixels in the first stage; widths are
    32, 64, 128, 256. Parameter names are those of torchvision's ResNet, which is not used here
    since every process that imports it starts a second later. Features: (B, 256).
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(Block(32, 32, stride=1))
        self.layer2 = nn.Sequential(Block(32, 64, stride=2))
        self.layer3 = nn.Sequential(Block(64, 128, stride=2))
        self.layer4 = nn.Sequential(Block(128, 256, stride=2))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(256, 1000)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) → the output of ``fc``."""
        x = self.relu(self.bn1(self.conv1(x)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.fc(self.avgpool(x).flatten(1))  # type: ignore[no-any-return]


class Block(nn.Module):
    """The basic block of a ResNet: two 3×3 convolutions and a shortcut."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        downsample = None
        if stride > 1:
            shortcut = nn.Conv2d(width_in, width, 1, stride=stride, bias=False)
            downsample = nn.Sequential(shortcut, nn.BatchNorm2d(width))
        self.conv1 = nn.Conv2d(width_in, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, width_in, h, w) → (B, width, h / stride, w / stride)."""
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        shortcut = x if self.downsample is None else self.downsample(x)
        out += shortcut
        return self.relu(out)  # type: ignore[no-any-return]
