"""Mixed-sample data augmentation for PyTorch Lightning: any method, any unmodified module."""

from lightning_msda.mixture import Mixture
from lightning_msda.randomness import Step

__all__ = ["Mixture", "Step"]

__version__ = "0.1.0"
