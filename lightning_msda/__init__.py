"""Mixed-sample data augmentation for PyTorch Lightning: any method, any unmodified module."""

from lightning_msda.callback import MSDA
from lightning_msda.methods import (
    BCMix,
    CoMixup,
    CutMix,
    Cutout,
    FMix,
    LaMix,
    ManifoldMixup,
    MixUp,
    PatchUp,
    PuzzleMix,
    RandomMix,
    ResizeMix,
    SaliencyMix,
    SamplePairing,
)
from lightning_msda.mixed_tensor import MixedLossError, MixedTensor
from lightning_msda.mixture import Mixture
from lightning_msda.randomness import Step

__all__ = [
    "MSDA",
    "BCMix",
    "CoMixup",
    "CutMix",
    "Cutout",
    "FMix",
    "LaMix",
    "ManifoldMixup",
    "MixUp",
    "MixedLossError",
    "MixedTensor",
    "Mixture",
    "PatchUp",
    "PuzzleMix",
    "RandomMix",
    "ResizeMix",
    "SaliencyMix",
    "SamplePairing",
    "Step",
]

__version__ = "0.1.0"
