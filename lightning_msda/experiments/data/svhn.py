"""SVHN, the Street View House Numbers (Netzer et al. 2011)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torchvision import datasets
from typing_extensions import override

from lightning_msda.experiments.data.files import needs_extra
from lightning_msda.experiments.data.images import SmallImages, check_sums

__all__ = ["SVHNData"]


class SVHNData(SmallImages):
    """SVHN, 32x32 colour photographs of house numbers (Netzer 2011), with crops and without flips.

    The 531,131 additional images are left out, as in LaMix.

    Args:
        root: Folder of the data set; it is downloaded into it where it is missing.
        batch_size: Samples in a batch.
        workers: Processes that load the data.
        train_size: How many training samples are used, a fixed choice with even classes; None: all.
        augment: Whether training images are cropped.

    Raises:
        ModuleNotFoundError: If scipy, which reads its files, is not installed.
        ValueError: If an argument is out of range.
    """

    mean = (0.4377, 0.4438, 0.4728)
    std = (0.1980, 0.2010, 0.1970)
    classes = tuple("0123456789")
    dataset = datasets.SVHN
    page = "http://ufldl.stanford.edu/housenumbers"
    mirrored = False

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 128,
        workers: int = 4,
        train_size: int | None = None,
        augment: bool = True,
    ) -> None:
        super().__init__(root, 32, augment, batch_size, workers, train_size)

    @override
    def part(self, train: bool, **options: Any) -> Any:
        try:
            data = self.dataset(self.root, split="train" if train else "test", **options)
        except ModuleNotFoundError as error:
            raise needs_extra("SVHNData", "scipy") from error
        data.targets = data.labels
        return data

    @override
    def check(self) -> None:
        parts = (self.dataset.split_list[part] for part in ("train", "test"))
        check_sums((Path(self.root, name), md5) for _, name, md5 in parts)
