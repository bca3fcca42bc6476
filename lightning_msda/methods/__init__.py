"""The mixing methods, one file each: the pure function, then its callback."""

from lightning_msda.methods.cutmix import CutMix, cutmix
from lightning_msda.methods.fmix import FMix, fmix, fmix_mask
from lightning_msda.methods.manifoldmixup import ManifoldMixup
from lightning_msda.methods.mixup import MixUp, mixup
from lightning_msda.methods.patchup import PatchUp, patchup
from lightning_msda.methods.randommix import RandomMix
from lightning_msda.methods.resizemix import ResizeMix, resizemix

__all__ = [
    "CutMix",
    "FMix",
    "ManifoldMixup",
    "MixUp",
    "PatchUp",
    "RandomMix",
    "ResizeMix",
    "cutmix",
    "fmix",
    "fmix_mask",
    "mixup",
    "patchup",
    "resizemix",
]
