"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009)."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.transforms import v2
from typing_extensions import override

__all__ = ["CIFAR10Data", "CIFAR100Data"]


class CIFAR10Data(LightningDataModule):
    """CIFAR-10, 32x32 colour images of 10 classes, with the usual crops and flips.

    Args:
        root: Folder of the data set; it is downloaded into it where it is missing.
        batch_size: Samples in a batch.
        workers: Processes that load the data.

    Raises:
        ValueError: If an argument is out of range.
    """

    mean: tuple[float, ...] = (0.4914, 0.4822, 0.4465)
    std: tuple[float, ...] = (0.2470, 0.2435, 0.2616)
    dataset: Any = datasets.CIFAR10

    def __init__(self, root: str = "data", batch_size: int = 128, workers: int = 4) -> None:
        super().__init__()
        if batch_size < 1 or workers < 0:
            raise ValueError(f"batch_size={batch_size} must be from 1 and workers={workers} from 0.")
        self.root = root
        self.batch_size = batch_size
        self.workers = workers
        self.classes: tuple[str, ...] = ()

    @override
    def prepare_data(self) -> None:
        for train in (True, False):
            self.dataset(self.root, train=train, download=True)

    @override
    def setup(self, stage: str) -> None:
        plain = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(self.mean, self.std)]
        moved = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]
        self.train = self.dataset(self.root, train=True, transform=v2.Compose([*moved, *plain]))
        self.test = self.dataset(self.root, train=False, transform=v2.Compose(plain))
        self.classes = tuple(self.train.classes)

    def _loader(self, data: Any, *, shuffle: bool) -> DataLoader[Any]:
        return DataLoader(
            data,
            batch_size=self.batch_size,
            shuffle=shuffle,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    @override
    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.train, shuffle=True)

    @override
    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.test, shuffle=False)

    @override
    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.test, shuffle=False)

    @override
    def predict_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.test, shuffle=False)


class CIFAR100Data(CIFAR10Data):
    """CIFAR-100, 32x32 colour images of 100 classes, with the usual crops and flips.

    Args:
        root: Folder of the data set; it is downloaded into it where it is missing.
        batch_size: Samples in a batch.
        workers: Processes that load the data.

    Raises:
        ValueError: If an argument is out of range.
    """

    mean = (0.5071, 0.4865, 0.4409)
    std = (0.2673, 0.2564, 0.2762)
    dataset = datasets.CIFAR100
