"""Every base, and every overlay on one, trains for a step by the line in its header."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_msda.cli import main
from lightning_msda.cli.recipes import read_recipe, recipe_names, recipes_folder
from lightning_msda.experiments.data import (
    BengaliData,
    CIFAR10Data,
    CIFAR100Data,
    FashionMNISTData,
    MNISTData,
    SVHNData,
)
from tests.experiments.test_bengali import HEIGHT, WIDTH, write_bengali
from tests.experiments.test_data import Tiny
from tests.experiments.test_folders import write_imagenet, write_imagenet_a, write_tiny_imagenet
from tests.experiments.test_images import TinyMNIST, TinySVHN
from tests.experiments.test_speech import write_commands
from tests.experiments.test_text_data import write_imdb, write_tokenizer, write_toxic, write_yelp
from tests.experiments.test_voxels import write_modelnet
from tests.tools import QUIET
from tests.tools import workplace as workplace

# What makes a network tiny; the others have no width.
NETWORKS: dict[str, dict[str, Any]] = {
    "BERT": {"pretrained": None, "tokens": 20, "layers": 1, "heads": 1, "width": 8},
    "BiLSTM": {"size": 2, "width": 4},
    "DenseNet121": {"growth": 2},
    "DenseNetBC": {"depth": 10, "growth": 2},
    "PreActResNet18": {"width": 2},
    "PreActResNet18In2D": {"width": 2},
    "PyramidNet": {"depth": 11, "alpha": 4},
    "SideBySide": {"checkpoints": None},
    "TextCNN": {"size": 2, "width": 4},
    "VoxelPointNet": {"points": 16, "width": 16},
    "WideResNet": {"depth": 10, "widen": 1},
}
TRAINER = {"accelerator": "cpu", "devices": 1, "strategy": "auto", "precision": "32-true"}
RUN_LINES = {
    name: shlex.split((recipes_folder() / f"{name}.yaml").read_text().splitlines()[1])[3:]
    for name in recipe_names()
    if not name.startswith(("digits/", "log/", "msda/"))
}
# The large networks take seconds each; each of them, and each data set, is in another line.
SLOW = re.compile(
    r"(mnist|svhn|fashion|cifar100|tinyimagenet)/resnet50|vgg11|bengali/|^imagenet/|/imagenet$|puzzlemix/|fmix/three"
    r"|fmix/imagenet_a|fmix/tokens|fmix/words|cifar100/densenetbc190"
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Write all data sets in small, in their original formats."""
    folder = tmp_path_factory.mktemp("sets")
    write_tiny_imagenet(folder)
    write_imagenet(folder)
    write_imagenet_a(folder)
    write_commands(folder)
    write_modelnet(folder)
    write_toxic(folder)
    write_imdb(folder)
    write_yelp(folder, "yelp_review_polarity_csv", 2)
    write_yelp(folder, "yelp_review_full_csv", 5)
    write_tokenizer(folder)
    write_bengali(folder / "bengaliai-cv19")
    (folder / "crawl.vec").write_text("2 2\nfilm 0.5 -1\ngood 1 1\n")
    with pytest.MonkeyPatch.context() as patch:
        for kind in (CIFAR10Data, CIFAR100Data):
            patch.setattr(kind, "dataset", Tiny(kind, folder).kind.dataset)
        for images in (FashionMNISTData, MNISTData):
            patch.setattr(images, "dataset", TinyMNIST(images, folder).kind.dataset)
        svhn = TinySVHN(folder / "svhn")
        for file in svhn.root.iterdir():
            file.rename(folder / file.name)
        patch.setattr(SVHNData, "dataset", svhn.kind.dataset)
        patch.setattr(BengaliData, "height", HEIGHT)
        patch.setattr(BengaliData, "width", WIDTH)
        yield folder


def tiny(words: list[str], root: Path) -> dict[str, Any]:
    """Return the one override under which a line runs here: tiny networks, small sets, no GPU."""
    network = classes = ""
    given: dict[str, Any] = {}
    for name in [words[i + 1] for i, word in enumerate(words) if word == "--config"]:
        content = read_recipe(recipes_folder() / f"{name}.yaml")
        classes = content.get("data", {}).get("class_path", classes)
        given |= content.get("data", {}).get("init_args", {})
        inside = content.get("model", {}).get("init_args", {}).get("network", {})
        network = inside.get("class_path", network).rpartition(".")[2]
    data: dict[str, Any] = {"root": str(root), "workers": 0, "batch_size": 4}
    data |= {"resolution": 6} if "resolution" in given else {}
    data |= {"vectors": str(root / "crawl.vec")} if "vectors" in given else {}
    data |= {"tokenizer": str(root / "bert")} if "tokenizer" in given else {}
    model = {"init_args": {"network": {"init_args": NETWORKS.get(network, {})}}}
    return {"trainer": TRAINER, "data": {"init_args": data}, "model": model}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * bool(SLOW.search(name))) for name in RUN_LINES]
)
@pytest.mark.filterwarnings("ignore:No (positive|negative) samples in targets")  # the sets are small
def test_the_line_of_a_recipe_runs(name: str, root: Path) -> None:
    words = RUN_LINES[name]
    Path("tiny.yaml").write_text(yaml.safe_dump(tiny(words, root)))
    if "--ckpt_path" in words:  # of a training that takes days
        del words[(at := words.index("--ckpt_path")) : at + 2]
    torch.manual_seed(0)
    main([*words, "--config", "tiny.yaml", *QUIET, "--trainer.fast_dev_run=true"])
