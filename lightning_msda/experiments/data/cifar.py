"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.utils.data import Subset
from torchvision import datasets
from typing_extensions import override

from lightning_msda.experiments.data.base import Splits
from lightning_msda.experiments.data.images import SmallImages, check_sums
from lightning_msda.experiments.data.subsets import NoisyLabels

__all__ = ["CIFAR10Data", "CIFAR100Data"]


class CIFAR10Data(SmallImages):
    """CIFAR-10, 32x32 colour images of 10 classes, with the usual crops and flips (Krizhevsky 2009).

    Args:
        root: Folder of the data set; it is downloaded into it where it is missing.
        batch_size: Samples in a batch.
        workers: Processes that load the data.
        train_size: How many training samples are used, a fixed choice with even classes; None: all.
        augment: Whether training images are cropped and mirrored.
        label_noise: The share of training labels that are replaced by random ones. `NoisyLabels` keeps the
            true ones, as ``data.train.true_targets``.
        true_labels: Whether training samples are ``(x, y, y_true)``, as `LabelNoise` takes them. The training
            set without crops and flips, in the same form, then comes second in validation and testing.

    Raises:
        ValueError: If an argument is out of range.
    """

    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)
    dataset = datasets.CIFAR10
    page = "https://www.cs.toronto.edu/~kriz/cifar.html"

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 128,
        workers: int = 4,
        train_size: int | None = None,
        augment: bool = True,
        label_noise: float = 0.0,
        true_labels: bool = False,
    ) -> None:
        super().__init__(root, 32, augment, batch_size, workers, train_size)
        if not 0 <= label_noise <= 1:
            raise ValueError(f"label_noise={label_noise} is out of range: it must be from 0 to 1.")
        self.label_noise = label_noise
        self.true_labels = true_labels
        self.as_is: Any = None

    @override
    def part(self, train: bool, **options: Any) -> Any:
        return self.dataset(self.root, train=train, **options)

    @override
    def check(self) -> None:
        folder = Path(self.root, self.dataset.base_folder)
        meta = self.dataset.meta
        files = [*self.dataset.train_list, *self.dataset.test_list, (meta["filename"], meta["md5"])]
        check_sums((folder / name, md5) for name, md5 in files)

    @override
    def splits(self) -> Splits:
        train, val, test = super().splits()
        if self.true_labels:
            self.as_is = self._noisy(self.part(True, transform=test.transform))
        if self.label_noise or self.true_labels:
            train = self._noisy(train)
        return Splits(train, val, test)

    @override
    def val_dataloader(self) -> Any:
        return self._beside_training_set(super().val_dataloader())

    @override
    def test_dataloader(self) -> Any:
        return self._beside_training_set(super().test_dataloader())

    @override
    def predict_dataloader(self) -> Any:
        return super().test_dataloader()

    def _noisy(self, train: Any) -> NoisyLabels:
        return NoisyLabels(train, self.label_noise, len(self.classes), hide=not self.true_labels)

    def _beside_training_set(self, loader: Any) -> Any:
        if not self.true_labels:
            return loader
        used = Subset(self.as_is, self.train.indices) if self.train_size is not None else self.as_is
        return [loader, self.loader(used, batch_size=self.batch_size)]


class CIFAR100Data(CIFAR10Data):
    """CIFAR-100, 32x32 colour images of 100 classes, with the usual crops and flips (Krizhevsky 2009)."""

    mean = (0.5071, 0.4865, 0.4409)
    std = (0.2673, 0.2564, 0.2762)
    dataset = datasets.CIFAR100
