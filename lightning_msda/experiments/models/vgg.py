"""VGG-11 of torchvision (Simonyan and Zisserman, ICLR 2015, arXiv:1409.1556)."""

from __future__ import annotations

from torch import nn
from torchvision import models
from torchvision.models.vgg import cfgs, make_layers

__all__ = ["VGG11"]


class VGG11(models.VGG):  # type: ignore[misc]
    """VGG-11 of torchvision, for images from 32x32.

    Args:
        num_classes: Number of classes.
        channels: Channels of the images ``(N, channels, H, W)``.
        small: Whether images are small, as those of CIFAR: the features are averaged, and one linear layer
            takes the place of three.
        batch_norm: Whether each convolution is followed by batch norm.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        channels: int = 3,
        small: bool = False,
        batch_norm: bool = False,
    ) -> None:
        features = make_layers(cfgs["A"], batch_norm=batch_norm)
        features[0] = nn.Conv2d(channels, 64, 3, padding=1)
        super().__init__(features, num_classes)
        if small:
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.classifier = nn.Linear(512, num_classes)
