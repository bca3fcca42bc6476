"""Pre-activation ResNet for 32x32 images (He et al., ECCV 2016, arXiv:1603.05027)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

__all__ = ["PreActResNet18"]


class PreActResNet18(nn.Module):
    """PreAct-ResNet-18 as it is trained on CIFAR: a 3x3 stem, four stages of two blocks.

    Args:
        num_classes: Number of classes.
        channels: Channels of the images.
        width: Channels of the first stage; each next one has twice as many.
    """

    def __init__(self, num_classes: int = 10, channels: int = 3, width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.layer1 = nn.Sequential(_Block(width, width, 1), _Block(width, width, 1))
        self.layer2 = nn.Sequential(_Block(width, 2 * width, 2), _Block(2 * width, 2 * width, 1))
        self.layer3 = nn.Sequential(_Block(2 * width, 4 * width, 2), _Block(4 * width, 4 * width, 1))
        self.layer4 = nn.Sequential(_Block(4 * width, 8 * width, 2), _Block(8 * width, 8 * width, 1))
        self.norm = nn.BatchNorm2d(8 * width)
        self.linear = nn.Linear(8 * width, num_classes)

    @override
    def forward(self, x: Tensor) -> Tensor:
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        logits: Tensor = self.linear(F.relu(self.norm(x)).mean((2, 3)))
        return logits


class _Block(nn.Module):
    """Two 3x3 convolutions, each after batch norm and ReLU, beside a shortcut."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shortcut = (
            nn.Conv2d(channels, width, 1, stride=stride, bias=False)
            if (channels, stride) != (width, 1)
            else None
        )

    @override
    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(active)
        out: Tensor = self.conv2(F.relu(self.norm2(self.conv1(active)))) + shortcut
        return out
