"""Networks."""

from lightning_msda.experiments.models.preact_resnet import PreActResNet18
from lightning_msda.experiments.models.small_cnn import SmallCNN

__all__ = ["PreActResNet18", "SmallCNN"]
