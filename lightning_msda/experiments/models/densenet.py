"""DenseNets (Huang et al., CVPR 2017, arXiv:1608.06993)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torchvision import models

__all__ = ["DenseNet121", "DenseNetBC"]


class _DenseNet(models.DenseNet):  # type: ignore[misc]
    """torchvision's, whose stem may be that for small images: one 3x3 convolution."""

    def __init__(
        self,
        growth: int,
        depths: Sequence[int],
        num_classes: int,
        channels: int,
        *,
        small: bool,
        memory_efficient: bool,
    ) -> None:
        stem = 2 * growth
        super().__init__(
            growth, tuple(depths), stem, num_classes=num_classes, memory_efficient=memory_efficient
        )
        if small:
            self.features.conv0 = nn.Conv2d(channels, stem, 3, padding=1, bias=False)
            del self.features.norm0, self.features.relu0, self.features.pool0
        else:
            self.features.conv0 = nn.Conv2d(channels, stem, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(self.features.conv0.weight)


class DenseNet121(_DenseNet):
    """DenseNet-121 of torchvision; its stages are ``features.denseblock1`` to ``features.denseblock4``.

    Args:
        num_classes: Number of classes.
        channels: Channels of the images ``(N, channels, H, W)``.
        small: Whether images are small, as those of CIFAR: the stem is a 3x3 convolution and halves nothing.
        growth: Channels that each layer adds.
        memory_efficient: Whether features are computed again in the backward pass, to save memory.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        channels: int = 3,
        small: bool = False,
        growth: int = 32,
        memory_efficient: bool = False,
    ) -> None:
        depths = [6, 12, 24, 16]
        super().__init__(
            growth, depths, num_classes, channels, small=small, memory_efficient=memory_efficient
        )


class DenseNetBC(_DenseNet):
    """DenseNet-BC-190-40 for small images: three dense blocks, ``features.denseblock1`` to ``denseblock3``.

    torchvision's dense blocks with the stem of the paper's section 4.1.

    Args:
        num_classes: Number of classes.
        channels: Channels of the images ``(N, channels, H, W)``.
        depth: Number of layers, 4 more than a multiple of 6.
        growth: Channels that each layer adds.
        memory_efficient: Whether features are computed again in the backward pass, to save memory.

    Raises:
        ValueError: If there is no network of this depth.
    """

    def __init__(
        self,
        num_classes: int = 10,
        channels: int = 3,
        depth: int = 190,
        growth: int = 40,
        memory_efficient: bool = False,
    ) -> None:
        layers, rest = divmod(depth - 4, 6)
        if layers < 1 or rest:
            raise ValueError(
                f"depth={depth} is not the depth of a DenseNet-BC: it is 4 more than a multiple of 6, such as"
                " 40, 100, 190 or 250."
            )
        depths = [layers] * 3
        super().__init__(growth, depths, num_classes, channels, small=True, memory_efficient=memory_efficient)
