"""Pre-activation ResNets for small images (He et al., ECCV 2016, arXiv:1603.05027)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

__all__ = [
    "PreActNet",
    "PreActResNet18",
    "PreActResNet18In2D",
    "PreActResNet34",
    "PreActResNet50",
]


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each after batch norm and ReLU, beside a shortcut.

    Args:
        before: Channels of the features that come in.
        width: Channels of the convolutions.
        stride: Stride of the first convolution.
        dropout: Chance that a feature between the two convolutions is dropped.
    """

    expansion = 1

    def __init__(self, before: int, width: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shortcut = _shortcut(before, width, stride)

    @override
    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(active)
        between = self.dropout(F.relu(self.norm2(self.conv1(active))))
        out: Tensor = self.conv2(between) + shortcut
        return out


class PreActBottleneck(nn.Module):
    """Convolutions 1x1, 3x3 and 1x1, each after batch norm and ReLU, beside a shortcut.

    Args:
        before: Channels of the features that come in.
        width: Channels of the first two convolutions; the last has four times as many.
        stride: Stride of the 3x3 convolution.
        dropout: Chance that a feature before the last convolution is dropped.
    """

    expansion = 4

    def __init__(self, before: int, width: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, width, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.shortcut = _shortcut(before, 4 * width, stride)

    @override
    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(active)
        between = self.conv2(F.relu(self.norm2(self.conv1(active))))
        out: Tensor = self.conv3(self.dropout(F.relu(self.norm3(between)))) + shortcut
        return out


def _shortcut(before: int, after: int, stride: int) -> nn.Module | None:
    """Return what brings features to another shape, or None where it stays."""
    return nn.Conv2d(before, after, 1, stride=stride, bias=False) if (before, 1) != (after, stride) else None


class PreActNet(nn.Sequential):
    """A 3x3 stem ``conv1``, stages ``layer1``, ``layer2``, ... of pre-activation blocks, a linear layer.

    Each stage but the first halves the image.

    Args:
        block: Kind of the blocks.
        depths: Blocks in each stage.
        widths: Channels of each stage.
        stem: Channels of the stem.
        num_classes: Number of classes.
        channels: Channels of the images ``(N, channels, H, W)``.
        dropout: Chance that a feature inside of a block is dropped.
    """

    def __init__(
        self,
        block: type[PreActBlock | PreActBottleneck],
        depths: Sequence[int],
        widths: Sequence[int],
        stem: int,
        num_classes: int,
        channels: int,
        dropout: float,
    ) -> None:
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        parts["conv1"] = nn.Conv2d(channels, stem, 3, padding=1, bias=False)
        before = stem
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            blocks = []
            for i in range(depth):
                blocks.append(block(before, width, 2 if stage > 0 and i == 0 else 1, dropout))
                before = block.expansion * width
            parts[f"layer{stage + 1}"] = nn.Sequential(*blocks)
        parts["norm"] = nn.BatchNorm2d(before)
        parts["relu"] = nn.ReLU()
        parts["pool"] = nn.AdaptiveAvgPool2d(1)
        parts["flatten"] = nn.Flatten()
        parts["linear"] = nn.Linear(before, num_classes)
        super().__init__(parts)


class PreActResNet18(PreActNet):
    """PreAct-ResNet-18 as it is trained on CIFAR: a 3x3 stem, four stages of two blocks.

    Args:
        num_classes: Number of classes.
        channels: Channels of the images ``(N, channels, H, W)``.
        width: Channels of the first stage; each next one has twice as many.
        dropout: Chance that a feature between the two convolutions of a block is dropped; mixup's table of
            corrupted labels (arXiv:1710.09412, section 3.4) has 0.7.
    """

    def __init__(
        self, num_classes: int = 10, channels: int = 3, width: int = 64, dropout: float = 0.0
    ) -> None:
        widths = [width, 2 * width, 4 * width, 8 * width]
        super().__init__(PreActBlock, [2, 2, 2, 2], widths, width, num_classes, channels, dropout)


class PreActResNet34(PreActNet):
    """PreAct-ResNet-34 for small images: stages of 3, 4, 6 and 3 blocks.

    Args:
        num_classes: Number of classes.
        channels: Channels of the images ``(N, channels, H, W)``.
        width: Channels of the first stage; each next one has twice as many.
        dropout: Chance that a feature between the two convolutions of a block is dropped.
    """

    def __init__(
        self, num_classes: int = 10, channels: int = 3, width: int = 64, dropout: float = 0.0
    ) -> None:
        widths = [width, 2 * width, 4 * width, 8 * width]
        super().__init__(PreActBlock, [3, 4, 6, 3], widths, width, num_classes, channels, dropout)


class PreActResNet50(PreActNet):
    """PreAct-ResNet-50 for small images: stages of 3, 4, 6 and 3 bottleneck blocks.

    Args:
        num_classes: Number of classes.
        channels: Channels of the images ``(N, channels, H, W)``.
        width: Channels of the first stage's 3x3 convolutions; each next one has twice as many.
        dropout: Chance that a feature before the last convolution of a block is dropped.
    """

    def __init__(
        self, num_classes: int = 10, channels: int = 3, width: int = 64, dropout: float = 0.0
    ) -> None:
        widths = [width, 2 * width, 4 * width, 8 * width]
        super().__init__(PreActBottleneck, [3, 4, 6, 3], widths, width, num_classes, channels, dropout)


class PreActResNet18In2D(PreActResNet18):
    """PreAct-ResNet-18 whose pooled features pass through two dimensions, to be drawn (LaMix, figure 8).

    Between the pooled features and the linear layer are ``plane``, a linear layer of 2 units with Tanh, whose
    output ``(N, 2)`` is what the figure shows, and ``expand``, two more with Tanh, of 100 units and of as
    many as there were features.

    Args:
        num_classes: Number of classes.
        channels: Channels of the images ``(N, channels, H, W)``.
        width: Channels of the first stage; each next one has twice as many.
    """

    def __init__(self, num_classes: int = 10, channels: int = 3, width: int = 64) -> None:
        super().__init__(num_classes, channels, width)
        linear = self.get_submodule("linear")
        del self.linear
        self.add_module("plane", nn.Sequential(nn.Linear(8 * width, 2), nn.Tanh()))
        wider = nn.Sequential(nn.Linear(2, 100), nn.Tanh(), nn.Linear(100, 8 * width), nn.Tanh())
        self.add_module("expand", wider)
        self.add_module("linear", linear)
