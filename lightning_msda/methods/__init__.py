"""The mixing methods, one file each: the pure function, then its callback."""

from lightning_msda.methods.bcmix import BCMix, bcmix
from lightning_msda.methods.comixup import CoMixup, comixup
from lightning_msda.methods.cutmix import CutMix, cutmix
from lightning_msda.methods.cutout import Cutout, cutout
from lightning_msda.methods.fmix import FMix, fmix, fmix_mask
from lightning_msda.methods.lamix import LaMix, lamix
from lightning_msda.methods.manifoldmixup import ManifoldMixup
from lightning_msda.methods.mixup import MixUp, mixup
from lightning_msda.methods.patchup import PatchUp, patchup
from lightning_msda.methods.puzzlemix import PuzzleMix, puzzlemix
from lightning_msda.methods.randommix import RandomMix
from lightning_msda.methods.resizemix import ResizeMix, resizemix
from lightning_msda.methods.saliencymix import SaliencyMix, saliencymix
from lightning_msda.methods.samplepairing import SamplePairing, samplepairing

__all__ = [
    "BCMix",
    "CoMixup",
    "CutMix",
    "Cutout",
    "FMix",
    "LaMix",
    "ManifoldMixup",
    "MixUp",
    "PatchUp",
    "PuzzleMix",
    "RandomMix",
    "ResizeMix",
    "SaliencyMix",
    "SamplePairing",
    "bcmix",
    "comixup",
    "cutmix",
    "cutout",
    "fmix",
    "fmix_mask",
    "lamix",
    "mixup",
    "patchup",
    "puzzlemix",
    "resizemix",
    "saliencymix",
    "samplepairing",
]
