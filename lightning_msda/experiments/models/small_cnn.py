"""A network for small pictures."""

from __future__ import annotations

from torch import Tensor, nn
from typing_extensions import override

__all__ = ["SmallCNN"]


class SmallCNN(nn.Module):
    """Three convolutions with batch norm, global average pooling and a linear layer.

    Args:
        num_classes: Number of classes.
        channels: Channels of the images.
        width: Channels of the first convolution; the next have twice as many each.
    """

    def __init__(self, num_classes: int = 10, channels: int = 1, width: int = 16) -> None:
        super().__init__()
        self.layer1 = _block(channels, width)
        self.layer2 = _block(width, 2 * width)
        self.layer3 = _block(2 * width, 4 * width)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(4 * width, num_classes)

    @override
    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.pool(self.layer2(self.layer1(x))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def _block(channels: int, width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
    )
