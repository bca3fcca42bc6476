"""Scans of handwritten digits that ship inside scikit-learn."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import TensorDataset
from typing_extensions import override

from lightning_msda.experiments.data.base import DataModule, Splits

__all__ = ["DigitsData"]


class DigitsData(DataModule):
    """1,797 scans of handwritten digits, 8x8 pixels, one channel, 10 classes (Kaynak 1995).

    The scans are standardised. Which 200 are for validation and which 500 for testing is drawn once and for
    all; the seed has no say in it.

    Args:
        batch_size: Samples in a batch.
        train_size: How many of the 1,097 training scans are used, the first of them; None: all.

    Raises:
        ModuleNotFoundError: If scikit-learn is not installed.
        ValueError: If an argument is out of range.
    """

    mean = (0.305,)
    std = (0.376,)
    classes = tuple("0123456789")
    val_size, test_size = 200, 500

    def __init__(self, batch_size: int = 64, train_size: int | None = None) -> None:
        super().__init__(batch_size, 0, train_size)
        if train_size is not None and train_size > 1097:
            raise ValueError(f"train_size={train_size} is out of range: it must be from 1 to 1097.")

    @override
    def chosen(self, targets: Tensor, size: int) -> list[int]:
        return list(range(size))  # the scans are in random order, and published figures are of the first ones

    @override
    def splits(self) -> Splits:
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
        parts = [TensorDataset(x[part], y[part]) for part in (train, val, test)]
        parts[0].targets = y[train]  # type: ignore[attr-defined]
        return Splits(*parts)
