"""Networks: logits ``(N, num_classes)`` for inputs ``(N, ...)``."""

from lightning_msda.experiments.models.bert import BERT
from lightning_msda.experiments.models.densenet import DenseNet121, DenseNetBC
from lightning_msda.experiments.models.lenet import LeNet
from lightning_msda.experiments.models.pointnet import PointNet, VoxelPointNet
from lightning_msda.experiments.models.preact_resnet import (
    PreActResNet18,
    PreActResNet18In2D,
    PreActResNet34,
    PreActResNet50,
)
from lightning_msda.experiments.models.pyramidnet import PyramidNet
from lightning_msda.experiments.models.resnet import ResNet50, ResNet101, ResNeXt101
from lightning_msda.experiments.models.se_resnext import SEResNeXt50
from lightning_msda.experiments.models.side_by_side import SideBySide
from lightning_msda.experiments.models.small_cnn import SmallCNN
from lightning_msda.experiments.models.text import BiLSTM, TextCNN
from lightning_msda.experiments.models.vgg import VGG11
from lightning_msda.experiments.models.wide_resnet import WideResNet

__all__ = [
    "BERT",
    "VGG11",
    "BiLSTM",
    "DenseNet121",
    "DenseNetBC",
    "LeNet",
    "PointNet",
    "PreActResNet18",
    "PreActResNet18In2D",
    "PreActResNet34",
    "PreActResNet50",
    "PyramidNet",
    "ResNeXt101",
    "ResNet50",
    "ResNet101",
    "SEResNeXt50",
    "SideBySide",
    "SmallCNN",
    "TextCNN",
    "VoxelPointNet",
    "WideResNet",
]
