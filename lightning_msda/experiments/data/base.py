"""What all data modules share: loaders, the size of the training set, one reading of the files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from typing_extensions import override

from lightning_msda.experiments.data.subsets import balanced_subset

__all__ = ["DataModule", "Splits"]


class Splits(NamedTuple):
    """The three parts of a data set. The training set has ``targets``, the labels of all its samples."""

    train: Any
    val: Any
    test: Any


class DataModule(LightningDataModule, ABC):
    """Batches of a data set that is read by `splits`.

    Args:
        batch_size: Samples in a batch.
        workers: Processes that load the data.
        train_size: How many training samples are used, a fixed choice with even classes; None: all.

    Raises:
        ValueError: If an argument is out of range.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    classes: tuple[str, ...] = ()

    def __init__(self, batch_size: int, workers: int, train_size: int | None) -> None:
        super().__init__()
        if batch_size < 1 or workers < 0:
            raise ValueError(f"batch_size={batch_size} must be from 1 and workers={workers} from 0.")
        if train_size is not None and train_size < 1:
            raise ValueError(f"train_size={train_size} is out of range: it must be a whole number from 1.")
        self.batch_size = batch_size
        self.workers = workers
        self.train_size = train_size
        self.train: Any = None
        self.val: Any = None
        self.test: Any = None

    @abstractmethod
    def splits(self) -> Splits:
        """Read the data set."""

    def chosen(self, targets: Tensor, size: int) -> list[int]:
        """Return which training samples are used where not all are.

        Args:
            targets: The labels of all training samples.
            size: How many are wanted.
        """
        return balanced_subset(targets, size)

    @override
    def setup(self, stage: str) -> None:
        if self.train is not None:
            return
        train, self.val, self.test = self.splits()
        if self.train_size is not None:
            if self.train_size > len(train):
                raise ValueError(
                    f"train_size={self.train_size} is out of range: there are {len(train)} training samples."
                )
            train = Subset(train, self.chosen(torch.as_tensor(train.targets), self.train_size))
        self.train = train

    def loader(self, data: Any, **options: Any) -> DataLoader[Any]:
        """Return a loader of batches.

        Args:
            data: The samples.
            options: What the loader takes beside what all of them have in common.
        """
        return DataLoader(
            data,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
            **options,
        )

    @override
    def train_dataloader(self) -> DataLoader[Any]:
        return self.loader(self.train, batch_size=self.batch_size, shuffle=True)

    @override
    def val_dataloader(self) -> DataLoader[Any]:
        return self.loader(self.val, batch_size=self.batch_size)

    @override
    def test_dataloader(self) -> DataLoader[Any]:
        return self.loader(self.test, batch_size=self.batch_size)

    @override
    def predict_dataloader(self) -> DataLoader[Any]:
        return self.test_dataloader()
