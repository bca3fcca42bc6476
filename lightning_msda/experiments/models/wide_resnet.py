"""Wide ResNet (Zagoruyko and Komodakis, BMVC 2016, arXiv:1605.07146)."""

from __future__ import annotations

from lightning_msda.experiments.models.initial import he_normal
from lightning_msda.experiments.models.preact_resnet import PreActBlock, PreActNet

__all__ = ["WideResNet"]


class WideResNet(PreActNet):
    """WRN-28-10, or of another depth and width: three stages of pre-activation blocks.

    Args:
        num_classes: Number of classes.
        channels: Channels of the images ``(N, channels, H, W)``.
        depth: Number of layers, 4 more than a multiple of 6.
        widen: How many times 16, 32 and 64 channels the stages have.
        dropout: Chance that a feature between the two convolutions of a block is dropped.

    Raises:
        ValueError: If there is no network of this depth.
    """

    def __init__(
        self,
        num_classes: int = 10,
        channels: int = 3,
        depth: int = 28,
        widen: int = 10,
        dropout: float = 0.0,
    ) -> None:
        blocks, rest = divmod(depth - 4, 6)
        if blocks < 1 or rest:
            raise ValueError(
                f"depth={depth} is not the depth of a Wide ResNet: it is 4 more than a multiple of 6, such as"
                " 10, 16, 28 or 40."
            )
        widths = [16 * widen, 32 * widen, 64 * widen]
        super().__init__(PreActBlock, [blocks] * 3, widths, 16, num_classes, channels, dropout)
        he_normal(self)
