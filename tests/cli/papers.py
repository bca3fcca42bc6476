"""What the papers say about the cells of their tables: how each is trained, and with what it is mixed.

The keys are those of docs/recipes.md, which has the commands. Where a paper's text needs care, a comment says
how it is read.
"""

from __future__ import annotations

from typing import Any

__all__ = ["METHODS", "SETTINGS", "SWEEPS"]


def sgd(
    epochs: int, schedule: list[int] | str, batch: int, lr: float, decay: float = 1e-4, **more: Any
) -> dict[str, Any]:
    """Return a training by SGD; ``schedule`` lists when the rate is divided by 10, or is ``cosine``."""
    common = {"optimizer": "SGD", "momentum": 0.9, "epochs": epochs, "schedule": schedule}
    return {**common, "batch": batch, "lr": lr, "decay": decay, **more}


def adam(
    epochs: int, schedule: list[int], batch: int, lr: float, decay: float = 1e-4, **more: Any
) -> dict[str, Any]:
    """Return a training by Adam."""
    common = {"optimizer": "Adam", "epochs": epochs, "schedule": schedule}
    return {**common, "batch": batch, "lr": lr, "decay": decay, **more}


# Beta(1, 1) is the uniform law that RandomMix names for CutMix, and LaMix for Mixup and CutMix.
METHODS: dict[str, dict[str, Any] | None] = {
    "msda/none": None,
    "msda/mixup": {"class": "MixUp", "alpha": 1.0},
    "msda/cutmix": {"class": "CutMix", "alpha": 1.0},
    "msda/fmix": {"class": "FMix", "alpha": 1.0, "decay_power": 3.0},  # FMix, appendix A
    "msda/resizemix": {"class": "ResizeMix", "side": [0.1, 0.8]},
    "msda/saliencymix": {"class": "SaliencyMix", "alpha": 1.0},
    "msda/cutout": {"class": "Cutout", "holes": 1},
    "msda/manifoldmixup": {"class": "ManifoldMixup", "alpha": 2.0},
    "msda/puzzlemix": {
        "class": "PuzzleMix",
        "alpha": 1.0,
        "labels": 3,
        "beta": 1.2,
        "gamma": 0.5,
        "eta": 0.2,
        "neigh_size": 4,
        "transport": True,
        "t_eps": 0.8,
        "t_size": 4,
        "clean_lam": 0.0,
        "adv_p": 0.0,
    },
    # On Tiny-ImageNet, by the authors' commands.
    "puzzlemix/clean": {"class": "PuzzleMix", "alpha": 1.0, "labels": 3, "t_size": None, "clean_lam": 1.0},
    "msda/lamix": {"class": "LaMix", "beta": 0.5, "lam": "uniform", "base": "average", "clean": True},
    "lamix/saliency": {
        "class": "LaMix",
        "beta": 1.0,
        "base.class": "PuzzleMix",
        "base.t_size": None,
    },  # section 3.2
    "msda/randommix": {
        "class": "RandomMix",
        "order": "random",
        "weights": [1, 1, 1, 1],
        "candidates": ["MixUp", "CutMix", "ResizeMix", "FMix"],
        "alphas": [1.0, 1.0, 1.0],
    },
    "randommix/imagenet": {  # section 3.1.2
        "class": "RandomMix",
        "order": "random",
        "weights": [3, 1, 1, 1],
        "candidates": ["MixUp", "CutMix", "ResizeMix", "FMix"],
        "alphas": [0.2, 0.2, 0.2],
    },
    # FMix, section V.E: "alternating their application per batch".
    "msda/fmix_mixup": {"class": "RandomMix", "order": "cycle", "candidates": ["FMix", "MixUp"]},
    "msda/cutmix_mixup": {"class": "RandomMix", "order": "cycle", "candidates": ["CutMix", "MixUp"]},
    "msda/fmix_cutmix": {"class": "RandomMix", "order": "cycle", "candidates": ["FMix", "CutMix"]},
    "fmix/words_fmix": {"class": "FMix", "alpha": 1.0, "at": "network.embedding", "dims": [1]},
    "fmix/words_mixup": {"class": "MixUp", "alpha": 1.0, "at": "network.embedding"},
    "fmix/tokens_fmix": {"class": "FMix", "alpha": 0.1, "input_key": "input_ids", "dims": [1]},
    "mixup/label_noise_mixup": {"class": "MixUp", "alpha": 8.0, "input_key": 0, "target_key": 1},
}

# FMix, table VI. Its weight decay of "1e4" is 1e-4; the epochs that the copy at hand lost are those of its
# schedules: 200, 200, 300 and 1800.
FMIX = "FMix (arXiv:2002.12047)"
CIFAR = sgd(200, [100, 150], 128, 0.1)
TEXT = adam(15, [10], 64, 1e-3, vectors="data/crawl-300d-2M.vec")
BENGALI = sgd(100, [50, 75], 512, 0.1, part="all")
RANDOMMIX = "RandomMix (arXiv:2205.08728)"
COSINE = sgd(200, "cosine", 256, 0.1, 5e-4)
IMAGENET = sgd(100, "cosine", 8 * 256, 0.8, 4e-5, devices=8, top_k=5)  # section 3.1.2
LAMIX = "LaMix (openreview.net/forum?id=mLtPtH2SIHX)"
# "With the exact settings as in the Facebook codes, for 400 epochs": these lower the rate at 100 and 150.
LONG = sgd(400, [100, 150], 128, 0.1)
PUZZLEMIX = "Puzzle Mix (arXiv:2009.06962)"  # by the commands of its authors' code
MIXUP = "mixup (arXiv:1710.09412)"
SPEECH = adam(30, [10, 20], 100, 3e-3, 0.0)
CUTMIX = "CutMix (arXiv:1905.04899)"
LARGE = sgd(300, [75, 150, 225], 256, 0.1, devices=4, nesterov=True, top_k=5)

SETTINGS: dict[tuple[str, str], dict[str, Any]] = {
    (FMIX, "Table II, CIFAR, ResNet and WRN"): CIFAR,
    (FMIX, "Table II, CIFAR, Dense"): sgd(300, [100, 150, 225], 32, 0.1),
    (FMIX, "Table II, CIFAR-10, Pyramid"): sgd(1800, "cosine", 64, 0.05),
    (FMIX, "Table II, FashionMNIST, ResNet"): sgd(200, [100, 150], 128, 0.1),
    (FMIX, "Table II, FashionMNIST, WRN and Dense"): sgd(300, [100, 150, 225], 32, 0.1),
    (FMIX, "Table II, Tiny-ImageNet, ResNet"): sgd(200, [150, 180], 128, 0.1),
    (FMIX, "Table II, Google Commands, ResNet, alpha 1"): sgd(90, [30, 60, 80], 128, 0.1),
    (FMIX, "Table II, Google Commands, ResNet, alpha 0.2"): sgd(90, [30, 60, 80], 128, 0.1, alpha=0.2),
    (FMIX, "Table II, ModelNet10, PointNet (the median of the last five `val/acc`)"): adam(
        50, [10, 20, 30, 40], 16, 1e-3, resolution=128
    ),
    (FMIX, "Table III, ImageNet, alpha 1"): sgd(90, [30, 60, 80], 256, 0.4, devices=4, top_k=5),
    (FMIX, "Table III, ImageNet, alpha 0.2"): sgd(90, [30, 60, 80], 256, 0.4, devices=4, top_k=5, alpha=0.2),
    (FMIX, "Table III, ImageNet-A"): {"data": "ImageNetAData", "network": "ResNet101", "top_k": 5},
    # Three models, and the accuracy of all three together.
    (FMIX, "Table IV, root"): {**BENGALI, "parts": ["root"], "classes": 168},
    (FMIX, "Table IV, vowel diacritic"): {**BENGALI, "parts": ["vowel"], "classes": 11},
    (FMIX, "Table IV, consonant diacritic"): {**BENGALI, "parts": ["consonant"], "classes": 7},
    (FMIX, "Table IV, grapheme"): {"part": "all", "parts": ["root", "vowel", "consonant"]},
    (FMIX, "beside table IV, one network with three heads"): {
        **BENGALI,
        "parts": ["root", "vowel", "consonant"],
        "classes": 186,
    },
    (FMIX, "Table V, Toxic, CNN and BiLSTM"): {**TEXT, "task": "MultilabelClassification", "classes": 6},
    (FMIX, "Table V, Toxic, BERT"): adam(5, [3], 32, 1e-5, task="MultilabelClassification", classes=6),
    (FMIX, "Table V, IMDb, baseline"): {**TEXT, "classes": 2},
    (FMIX, "Table V, IMDb"): {**TEXT, "classes": 2, "alpha": 0.2},
    (FMIX, "Table V, Yelp"): TEXT,
    (FMIX, "section V.E"): CIFAR,
    (RANDOMMIX, "Table 1, PreAct-ResNet18"): COSINE,
    (RANDOMMIX, "Table 1, WideResNet-28-10"): COSINE,
    (RANDOMMIX, "Table 1, WideResNet-28-10, RandomMix by the text"): {**COSINE, "weights": [3, 1, 1, 1]},
    (RANDOMMIX, "Tables 1 and 4, CIFAR-100, RandomMix by the figures"): {**COSINE, "weights": [4, 1, 1, 1]},
    (RANDOMMIX, "Table 2, Tiny-ImageNet"): {**COSINE, "top_k": 5},
    (RANDOMMIX, "Table 2, ImageNet, RandomMix"): IMAGENET,
    (RANDOMMIX, "Table 2, ImageNet, with alpha"): {**IMAGENET, "alpha": 0.2},
    (RANDOMMIX, "Table 2, ImageNet, without"): IMAGENET,
    (RANDOMMIX, "Table 3"): sgd(300, "cosine", 256, 0.05, 5e-4),
    (LAMIX, "Table 1, MNIST, SVHN"): LONG,
    (LAMIX, "Table 1, Fashion"): {**LONG, "size": 32},
    (LAMIX, "Table 1, CIFAR"): LONG,
    (LAMIX, "Table 2, LeNet and DenseNet-121"): LONG,
    (LAMIX, "Table 2, WideResNet-28-10"): LONG,
    (LAMIX, "Table 3, MNIST, Fashion, Puzzle"): sgd(600, [350, 500], 100, 0.2, size=32, t_size=4),
    (LAMIX, "Table 3, MNIST, Fashion, LaMix"): {
        **sgd(600, [350, 500], 100, 0.2, size=32),
        "base.t_size": 4,
    },
    (LAMIX, "Table 3, SVHN, CIFAR, Puzzle"): sgd(600, [350, 500], 100, 0.2, t_size=4),
    (LAMIX, "Table 3, SVHN, CIFAR, LaMix"): {**sgd(600, [350, 500], 100, 0.2), "base.t_size": 4},
    (LAMIX, "Table 4, PuzzleMix"): sgd(600, [300, 450], 100, 0.2, clean_lam=1.0),
    (LAMIX, "Table 4, LaMix"): {**sgd(600, [300, 450], 100, 0.2), "base.t_size": None},
    (LAMIX, "Table 5, Mixup with label smoothing"): LONG,
    (LAMIX, "Table 6"): LONG,
    (LAMIX, "Table 7, without clean batches"): {**LONG, "clean": False},
    (LAMIX, "Table 8, without the global label"): {**LONG, "beta": 1.0},
    (LAMIX, "Figure 5"): {**LONG, "epochs": 2000},
    (LAMIX, "Figure 8"): {**LONG, "epochs": 1000, "network": "PreActResNet18In2D"},
    (PUZZLEMIX, "CIFAR-100, WRN-28-10, 400 epochs"): sgd(400, [200, 300], 100, 0.1, top_k=5),
    (PUZZLEMIX, "CIFAR-100, WRN-28-10, Puzzle Mix (half)"): sgd(200, [120, 170], 100, 0.2, top_k=5),
    (PUZZLEMIX, "Tiny-ImageNet, Vanilla, Input, CutMix"): sgd(1200, [600, 900], 100, 0.2, top_k=5),
    (PUZZLEMIX, "Tiny-ImageNet, Manifold"): sgd(1200, [600, 900], 100, 0.2, alpha=0.2),
    (PUZZLEMIX, "Tiny-ImageNet, Puzzle Mix"): sgd(1200, [600, 900], 100, 0.2, clean_lam=1.0, adv_p=0.0),
    (PUZZLEMIX, "Tiny-ImageNet, Puzzle Mix (half)"): sgd(600, [300, 450], 100, 0.2, clean_lam=1.0, adv_p=0.0),
    (PUZZLEMIX, "Tiny-ImageNet, Puzzle Mix (adv)"): sgd(
        1200, [600, 900], 100, 0.2, clean_lam=1.0, adv_p=0.15, adv_eps=10.0
    ),
    (PUZZLEMIX, "Tiny-ImageNet, Puzzle Mix (half, adv)"): sgd(
        600, [300, 450], 100, 0.2, clean_lam=1.0, adv_p=0.15, adv_eps=10.0
    ),
    (MIXUP, "CIFAR, PreAct-ResNet18"): CIFAR,
    (MIXUP, "CIFAR, DenseNet-BC-190"): CIFAR,
    (MIXUP, "CIFAR, WideResNet-28-10"): {**CIFAR, "schedule": [60, 120, 180]},
    (MIXUP, "speech, ERM"): SPEECH,
    (MIXUP, "speech, mixup after five epochs without"): {**SPEECH, "start_epoch": 5},
    (MIXUP, "label corruption, ERM"): {**CIFAR, "label_noise": 0.2, "task": "LabelNoise", "dropout": 0.0},
    (MIXUP, "label corruption, ERM and dropout"): {**CIFAR, "label_noise": 0.2, "dropout": 0.7},
    (MIXUP, "label corruption, mixup"): {**CIFAR, "label_noise": 0.2, "alpha": 8.0, "dropout": 0.0},
    (MIXUP, "label corruption, mixup and dropout"): {
        **CIFAR,
        "label_noise": 0.2,
        "alpha": 4.0,
        "dropout": 0.1,
    },
    (CUTMIX, "ImageNet, ResNet-101"): LARGE,
    (CUTMIX, "ImageNet, ResNet-101, Cutout"): {**LARGE, "length": 112},
    (CUTMIX, "ImageNet, ResNeXt-101"): {**LARGE, "network": "ResNeXt101"},
}

# Of the sweeps: what all runs have, and how many settings there are beside the seeds.
SWEEPS: dict[str, tuple[dict[str, Any], int]] = {
    "fmix/figure3": ({**CIFAR, "method": "FMix"}, 40),
    "fmix/figure4": (CIFAR, 24),
    "randommix/table5": ({**COSINE, "method": "RandomMix"}, 4),
    "randommix/table6": ({**COSINE, "method": "RandomMix"}, 15),  # 14, and the one that the paper leaves out
    "lamix/figure4": ({**LONG, "method": "LaMix"}, 9),
    "lamix/figure6": ({**LONG, "method": None}, 9),
}
