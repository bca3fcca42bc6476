"""LeNet-5 (LeCun et al., Proceedings of the IEEE 1998)."""

from __future__ import annotations

from torch import nn

__all__ = ["LeNet"]


class LeNet(nn.Sequential):
    """LeNet-5 with ReLU and max pooling: convolutions ``layer1`` and ``layer2``, three linear layers.

    Args:
        num_classes: Number of classes.
        channels: Channels of the images.
        size: Height and width of the images.
        padded: Whether the first convolution is 3x3 with padding and without bias instead of 5x5, as in the
            code that LaMix took it from (github.com/facebookresearch/mixup-cifar10).

    Raises:
        ValueError: If the images are too small.
    """

    def __init__(
        self,
        num_classes: int = 10,
        channels: int = 3,
        size: tuple[int, int] = (32, 32),
        padded: bool = False,
    ) -> None:
        height, width = ((side // 2 - 4) // 2 if padded else ((side - 4) // 2 - 4) // 2 for side in size)
        if height < 1 or width < 1:
            raise ValueError(f"size={tuple(size)} is too small for LeNet: both sides must be from 16.")
        conv = nn.Conv2d(channels, 6, 3, padding=1, bias=False) if padded else nn.Conv2d(channels, 6, 5)
        super().__init__()
        self.layer1 = nn.Sequential(conv, nn.ReLU(), nn.MaxPool2d(2))
        self.layer2 = nn.Sequential(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2))
        self.flatten = nn.Flatten()
        self.linear1 = nn.Sequential(nn.Linear(16 * height * width, 120), nn.ReLU())
        self.linear2 = nn.Sequential(nn.Linear(120, 84), nn.ReLU())
        self.linear3 = nn.Linear(84, num_classes)
