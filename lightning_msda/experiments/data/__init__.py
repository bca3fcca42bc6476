"""Data modules. Each has ``mean``, ``std`` and ``classes``, by which pictures are drawn."""

from lightning_msda.experiments.data.bengali import BengaliData
from lightning_msda.experiments.data.cifar import CIFAR10Data, CIFAR100Data
from lightning_msda.experiments.data.digits import DigitsData
from lightning_msda.experiments.data.fsdd import FSDDData
from lightning_msda.experiments.data.imagenet import ImageNetAData, ImageNetData
from lightning_msda.experiments.data.mnist import FashionMNISTData, MNISTData
from lightning_msda.experiments.data.modelnet import ModelNet10Data
from lightning_msda.experiments.data.sentiment import (
    IMDbData,
    RTPolarityData,
    ToxicCommentsData,
    YelpFullData,
    YelpPolarityData,
)
from lightning_msda.experiments.data.speech_commands import SpeechCommandsData
from lightning_msda.experiments.data.subsets import NoisyLabels
from lightning_msda.experiments.data.svhn import SVHNData
from lightning_msda.experiments.data.tiny_imagenet import TinyImageNetData
from lightning_msda.experiments.data.trec import TRECData
from lightning_msda.experiments.data.voxels import voxels_to_points

__all__ = [
    "BengaliData",
    "CIFAR10Data",
    "CIFAR100Data",
    "DigitsData",
    "FSDDData",
    "FashionMNISTData",
    "IMDbData",
    "ImageNetAData",
    "ImageNetData",
    "MNISTData",
    "ModelNet10Data",
    "NoisyLabels",
    "RTPolarityData",
    "SVHNData",
    "SpeechCommandsData",
    "TRECData",
    "TinyImageNetData",
    "ToxicCommentsData",
    "YelpFullData",
    "YelpPolarityData",
    "voxels_to_points",
]
