"""Networks: logits ``(N, num_classes)`` for inputs ``(N, ...)``."""

from lightning_msda.experiments.models.pointnet import PointNet, VoxelPointNet
from lightning_msda.experiments.models.preact_resnet import (
    PreActResNet18,
    PreActResNet18In2D,
    PreActResNet34,
    PreActResNet50,
)
from lightning_msda.experiments.models.pyramidnet import PyramidNet
from lightning_msda.experiments.models.small_cnn import SmallCNN
from lightning_msda.experiments.models.wide_resnet import WideResNet

__all__ = [
    "PointNet",
    "PreActResNet18",
    "PreActResNet18In2D",
    "PreActResNet34",
    "PreActResNet50",
    "PyramidNet",
    "SmallCNN",
    "VoxelPointNet",
    "WideResNet",
]
