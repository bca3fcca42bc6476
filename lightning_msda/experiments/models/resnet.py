"""ResNets and ResNeXts of torchvision (He et al., arXiv:1512.03385; Xie et al., arXiv:1611.05431)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torchvision import models
from torchvision.models.resnet import Bottleneck

__all__ = ["ResNeXt101", "ResNet50", "ResNet101"]


class _ResNet(models.ResNet):  # type: ignore[misc]
    """torchvision's with bottleneck blocks, whose stem may be that for small images."""

    def __init__(
        self, depths: Sequence[int], num_classes: int, channels: int, *, small: bool, **options: int
    ) -> None:
        super().__init__(Bottleneck, list(depths), num_classes, **options)
        if small:
            self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
            self.maxpool = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")


class ResNet50(_ResNet):
    """ResNet-50 of torchvision.

    Args:
        num_classes: Number of classes.
        channels: Channels of the images ``(N, channels, H, W)``.
        small: Whether images are small, as those of CIFAR: the stem is a 3x3 convolution and halves nothing.
    """

    def __init__(self, num_classes: int = 1000, channels: int = 3, small: bool = False) -> None:
        super().__init__([3, 4, 6, 3], num_classes, channels, small=small)


class ResNet101(_ResNet):
    """ResNet-101 of torchvision.

    Args:
        num_classes: Number of classes.
        channels: Channels of the images ``(N, channels, H, W)``.
        small: Whether images are small, as those of CIFAR: the stem is a 3x3 convolution and halves nothing.
    """

    def __init__(self, num_classes: int = 1000, channels: int = 3, small: bool = False) -> None:
        super().__init__([3, 4, 23, 3], num_classes, channels, small=small)


class ResNeXt101(_ResNet):
    """ResNeXt-101 (32x4d) of torchvision.

    Args:
        num_classes: Number of classes.
        channels: Channels of the images ``(N, channels, H, W)``.
        small: Whether images are small, as those of CIFAR: the stem is a 3x3 convolution and halves nothing.
    """

    def __init__(self, num_classes: int = 1000, channels: int = 3, small: bool = False) -> None:
        groups = {"groups": 32, "width_per_group": 4}
        super().__init__([3, 4, 23, 3], num_classes, channels, small=small, **groups)
