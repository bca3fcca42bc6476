"""SE-ResNeXt of timm (Xie et al., arXiv:1611.05431; Hu et al., arXiv:1709.01507)."""

from __future__ import annotations

from torch import Tensor, nn
from typing_extensions import override

__all__ = ["SEResNeXt50"]


class SEResNeXt50(nn.Module):
    """SE-ResNeXt-50 (32x4d) of timm; its stages are ``backbone.layer1`` to ``backbone.layer4``.

    Args:
        num_classes: Number of classes.
        channels: Channels of the images ``(N, channels, H, W)``.

    Raises:
        ModuleNotFoundError: If timm is not installed.
    """

    def __init__(self, num_classes: int = 1000, channels: int = 3) -> None:
        super().__init__()
        try:
            import timm
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "SEResNeXt50 is timm's network: pip install 'lightning-msda[experiments]'."
            ) from error
        self.backbone = timm.create_model("seresnext50_32x4d", num_classes=num_classes, in_chans=channels)

    @override
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.backbone(x)
        return logits
