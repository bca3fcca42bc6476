"""PyramidNet (Han et al., CVPR 2017, arXiv:1610.02915) with ShakeDrop (Yamada et al., arXiv:1802.02375)."""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from lightning_msda.experiments.models.initial import he_normal
from lightning_msda.experiments.models.shakedrop import ShakeDrop

__all__ = ["PyramidNet"]


class PyramidNet(nn.Sequential):
    """PyramidNet-272-200 with bottleneck blocks and ShakeDrop, as Fast AutoAugment and FMix trained it.

    From block to block the channels grow by the same amount, from 16 to ``16 + alpha``, four times as many
    after each block's last convolution; so does the chance of ShakeDrop, up to a half.

    Args:
        num_classes: Number of classes.
        channels: Channels of the images ``(N, channels, H, W)``.
        depth: Number of layers, 2 more than a multiple of 9.
        alpha: By how many channels the network widens in all.
        drop: Chance that ShakeDrop acts in the last block; 0: a plain PyramidNet.

    Raises:
        ValueError: If there is no network of this depth.
    """

    def __init__(
        self,
        num_classes: int = 10,
        channels: int = 3,
        depth: int = 272,
        alpha: int = 200,
        drop: float = 0.5,
    ) -> None:
        each, rest = divmod(depth - 2, 9)
        if each < 1 or rest:
            raise ValueError(
                f"depth={depth} is not the depth of a PyramidNet: it is 2 more than a multiple of 9, such as"
                " 11, 110, 164 or 272."
            )
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        parts["conv1"] = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        parts["norm1"] = nn.BatchNorm2d(16)
        before, blocks = 16, 3 * each
        for stage in range(3):
            members: list[nn.Module] = []
            for i in range(stage * each + 1, (stage + 1) * each + 1):
                width = round(16 + alpha * i / blocks)
                stride = 2 if stage > 0 and not members else 1
                members.append(_Bottleneck(before, width, stride, 1 - drop * i / blocks))
                before = 4 * width
            parts[f"layer{stage + 1}"] = nn.Sequential(*members)
        parts["norm2"] = nn.BatchNorm2d(before)
        parts["relu"] = nn.ReLU()
        parts["pool"] = nn.AdaptiveAvgPool2d(1)
        parts["flatten"] = nn.Flatten()
        parts["linear"] = nn.Linear(before, num_classes)
        super().__init__(parts)
        he_normal(self)


class _Bottleneck(nn.Module):
    """Convolutions 1x1, 3x3, 1x1 between batch norms, no ReLU at either end; the shortcut has no weights."""

    def __init__(self, before: int, width: int, stride: int, keep: float) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.BatchNorm2d(before),
            nn.Conv2d(before, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 4 * width, 1, bias=False),
            nn.BatchNorm2d(4 * width),
            ShakeDrop(keep),
        )
        self.pool = nn.Identity() if stride == 1 else nn.AvgPool2d(2, ceil_mode=True)
        self.more = 4 * width - before

    @override
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.branch(x) + F.pad(self.pool(x), (0, 0, 0, 0, 0, self.more))
        return out
