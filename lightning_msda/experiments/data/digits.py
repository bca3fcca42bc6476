"""Scans of handwritten digits that ship inside scikit-learn."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

__all__ = ["DigitsData"]


class DigitsData(LightningDataModule):
    """1,797 scans of handwritten digits, 8x8 pixels, one channel, 10 classes (Kaynak 1995).

    The scans are standardised. Which 200 are for validation and which 500 for testing is drawn once and for
    all; the seed has no say in it.

    Args:
        batch_size: Samples in a batch.
        train_size: How many of the 1,097 training scans are used; None: all.

    Raises:
        ModuleNotFoundError: If scikit-learn is not installed.
        ValueError: If an argument is out of range.
    """

    mean = (0.305,)
    std = (0.376,)
    classes = tuple("0123456789")
    val_size, test_size = 200, 500

    def __init__(self, batch_size: int = 64, train_size: int | None = None) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} is out of range: it must be a whole number from 1.")
        if train_size is not None and not 1 <= train_size <= 1097:
            raise ValueError(f"train_size={train_size} is out of range: it must be from 1 to 1097.")
        self.batch_size = batch_size
        self.train_size = train_size

    @override
    def setup(self, stage: str) -> None:
        try:
            from sklearn.datasets import load_digits
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "DigitsData needs scikit-learn, which ships the scans: pip install 'lightning-msda[demo]'."
            ) from error
        scans, labels = load_digits(return_X_y=True)
        x = (torch.tensor(scans, dtype=torch.float32).view(-1, 1, 8, 8) / 16 - self.mean[0]) / self.std[0]
        y = torch.tensor(labels, dtype=torch.int64)
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
        held_out = self.val_size + self.test_size
        test, val, train = order[: self.test_size], order[self.test_size : held_out], order[held_out:]
        self.train, self.val, self.test = (
            TensorDataset(x[part], y[part]) for part in (train[: self.train_size], val, test)
        )

    @override
    def train_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        return DataLoader(self.train, batch_size=self.batch_size, shuffle=True)

    @override
    def val_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        return DataLoader(self.val, batch_size=self.val_size)

    @override
    def test_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        return DataLoader(self.test, batch_size=self.test_size)

    @override
    def predict_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        return self.test_dataloader()
