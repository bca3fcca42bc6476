"""What torchvision's sets of small images have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torchvision.datasets.utils import check_integrity
from torchvision.transforms import v2
from typing_extensions import override

from lightning_msda.experiments.data.base import DataModule, Splits
from lightning_msda.experiments.data.files import damaged

__all__ = ["SmallImages", "check_sums"]


class SmallImages(DataModule):
    """Square images of a torchvision data set; they are validated and tested on its test set.

    Training images are cropped from images with four pixels of zeros around them, and mirrored where
    ``mirrored`` says that a mirrored image is of the same class.

    Args:
        root: Folder of the data set; it is downloaded into it where it is missing.
        size: Height and width that images are resized to.
        augment: Whether training images are cropped and mirrored.
        batch_size: Samples in a batch.
        workers: Processes that load the data.
        train_size: How many training samples are used, a fixed choice with even classes; None: all.
    """

    dataset: Any
    page: str
    mirrored = True
    native_size = 32

    def __init__(
        self, root: str, size: int, augment: bool, batch_size: int, workers: int, train_size: int | None
    ) -> None:
        super().__init__(batch_size, workers, train_size)
        if size < 1:
            raise ValueError(f"size={size} is out of range: it must be a whole number from 1.")
        self.root = root
        self.size = size
        self.augment = augment

    @abstractmethod
    def part(self, train: bool, **options: Any) -> Any:
        """Return torchvision's data set of one part.

        Args:
            train: Whether it is the training set, or the test set.
            options: What torchvision's class takes beside that.
        """

    @abstractmethod
    def check(self) -> None:
        """Raise a ValueError that names the first file which is there and is damaged."""

    @override
    def prepare_data(self) -> None:
        self.check()
        try:
            for train in (True, False):
                self.part(train, download=True)
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(
                f"{self.dataset.__name__} is not in {Path(self.root).absolute()} and could not be downloaded "
                f"({error}). Fetch it from {self.page} into this folder as torchvision.datasets expects it."
            ) from error
        self.check()

    @override
    def splits(self) -> Splits:
        resized = [v2.Resize(self.size)] if self.size != self.native_size else []
        plain = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(self.mean, self.std)]
        moved: list[Any] = [v2.RandomCrop(self.size, padding=4)] if self.augment else []
        if self.augment and self.mirrored:
            moved.append(v2.RandomHorizontalFlip())
        train = self.part(True, transform=v2.Compose([*resized, *moved, *plain]))
        test = self.part(False, transform=v2.Compose([*resized, *plain]))
        self.classes = self.classes or tuple(train.classes)
        return Splits(train, test, test)


def check_sums(files: Iterator[tuple[Path, str]]) -> None:
    """Name the first file that is not the published one.

    Args:
        files: Paths and their MD5 sums; a file that is not there is not looked at.

    Raises:
        ValueError: If the sum of a file is another.
    """
    for path, md5 in files:
        if path.exists() and not check_integrity(path, md5):
            raise damaged(path, "its MD5 sum is not the published one")
