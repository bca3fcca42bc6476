"""ImageNet (ILSVRC 2012), and ImageNet-A as a test set (Hendrycks et al., arXiv:1907.07174)."""

from __future__ import annotations

from pathlib import Path

import torch
from torchvision.transforms import v2
from typing_extensions import override

from lightning_msda.experiments.data.base import DataModule, Splits
from lightning_msda.experiments.data.files import Source, check_images, needs_extra
from lightning_msda.experiments.data.folders import ImageFiles, images_in

__all__ = ["ImageNetAData", "ImageNetData"]

DEVKIT = "ILSVRC2012_devkit_t12"


class ImageNetData(DataModule):
    """ImageNet, 224x224 crops of colour images of 1000 classes.

    Its validation set is validated and tested on. ``train`` holds a folder for each class, as the archive of
    archives unpacks. ``val`` holds the same, or all images beside each other; then the development kit says
    of what class they are.

    Args:
        root: The folder that holds ``imagenet``, with ``train`` and ``val`` inside.
        batch_size: Samples in a batch.
        workers: Processes that load the data.
        train_size: How many training samples are used, a fixed choice with even classes; None: all.
        augment: Whether training images are crops of random size and mirrored, or the middle of the image.

    Raises:
        FileNotFoundError: If it is missing: it cannot be downloaded without an account.
        ModuleNotFoundError: If scipy, which reads the development kit, is needed and not installed.
        ValueError: If an argument is out of range, or a file is damaged.
    """

    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)
    source = Source(
        name="ImageNet",
        folder="imagenet",
        fetch_by_hand=(
            "ILSVRC2012_img_train.tar for train (a folder for each class), ILSVRC2012_img_val.tar for val "
            f"and {DEVKIT}.tar.gz from https://image-net.org/download (with an account)"
        ),
    )

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 256,
        workers: int = 8,
        train_size: int | None = None,
        augment: bool = True,
    ) -> None:
        super().__init__(batch_size, workers, train_size)
        self.root = root
        self.augment = augment

    @override
    def prepare_data(self) -> None:
        files = [*self._train_files()[0], *self._val_files()[0]]
        check_images("imagenet", self.source.find(self.root), files)

    @override
    def splits(self) -> Splits:
        plain = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(self.mean, self.std)]
        middle = v2.Compose([v2.Resize(256), v2.CenterCrop(224), *plain])
        moved = v2.Compose([v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), *plain])
        self.classes = self._wnids()
        train = ImageFiles(*self._train_files(), moved if self.augment else middle)
        val = ImageFiles(*self._val_files(), middle)
        return Splits(train, val, val)

    def _wnids(self) -> tuple[str, ...]:
        return tuple(sorted(p.name for p in self.source.find(self.root, "train").iterdir() if p.is_dir()))

    def _train_files(self) -> tuple[list[Path], list[int]]:
        return images_in(self.source.find(self.root, "train"), self._wnids())

    def _val_files(self) -> tuple[list[Path], list[int]]:
        folder, wnids = self.source.find(self.root, "val"), self._wnids()
        if any(p.is_dir() for p in folder.iterdir()):
            return images_in(folder, wnids)
        try:
            from scipy.io import loadmat
        except ModuleNotFoundError as error:
            raise needs_extra("ImageNet's development kit", "scipy") from error
        kit = [self.root, DEVKIT, "data"]
        synsets = loadmat(self.source.find(*kit, "meta.mat"), squeeze_me=True)["synsets"]
        of_number = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
        truth = self.source.find(*kit, "ILSVRC2012_validation_ground_truth.txt").read_text().split()
        files = sorted(folder.glob("*.JPEG"))
        if len(files) != len(truth):
            raise ValueError(
                f"{folder} has {len(files)} images where the development kit knows {len(truth)}."
            )
        return files, [wnids.index(of_number[int(number)]) for number in truth]


class ImageNetAData(ImageNetData):
    """ImageNet to train on, ImageNet-A to test on: 7,500 photographs of 200 classes that mislead models.

    ``known`` are these classes' numbers: the published figures compare the scores of these alone.

    Args:
        root: The folder that holds ``imagenet``, and ``imagenet-a``, which is downloaded where it is missing.
        batch_size: Samples in a batch.
        workers: Processes that load the data.
        train_size: How many training samples are used, a fixed choice with even classes; None: all.
        augment: Whether training images are crops of random size and mirrored, or the middle of the image.

    Raises:
        FileNotFoundError: If one of them is missing.
        ValueError: If an argument is out of range, or a file is damaged.
    """

    adversarial = Source(
        name="ImageNet-A",
        folder="imagenet-a",
        fetch_by_hand="imagenet-a.tar from https://github.com/hendrycks/natural-adv-examples",
        urls=("https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar",),
    )

    @override
    def prepare_data(self) -> None:
        super().prepare_data()
        self.adversarial.fetch(self.root)
        folder = self.adversarial.find(self.root)
        check_images("imagenet-a", folder, images_in(folder, self._wnids())[0])

    @override
    def splits(self) -> Splits:
        train, val, _ = super().splits()
        folder = self.adversarial.find(self.root)
        unknown = {p.name for p in folder.iterdir() if p.is_dir()} - {*self.classes, ".lightning_msda"}
        if unknown:
            raise ValueError(
                f"{folder} has classes that ImageNet's train has not: {', '.join(sorted(unknown))}."
            )
        files, targets = images_in(folder, self.classes)
        self.known = sorted(set(targets))
        return Splits(train, val, ImageFiles(files, targets, val.transform))
