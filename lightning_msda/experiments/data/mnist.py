"""MNIST and Fashion-MNIST."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torchvision import datasets
from typing_extensions import override

from lightning_msda.experiments.data.files import damaged
from lightning_msda.experiments.data.images import SmallImages

__all__ = ["FashionMNISTData", "MNISTData"]


class MNISTData(SmallImages):
    """MNIST, 28x28 grey digits (LeCun 1998), with crops and without flips: a mirrored digit is another sign.

    Args:
        root: Folder of the data set; it is downloaded into it where it is missing.
        size: Height and width that images are resized to; LaMix has 32.
        batch_size: Samples in a batch.
        workers: Processes that load the data.
        train_size: How many training samples are used, a fixed choice with even classes; None: all.
        augment: Whether training images are cropped.

    Raises:
        ValueError: If an argument is out of range.
    """

    mean = (0.1307,)
    std = (0.3081,)
    dataset = datasets.MNIST
    page = "http://yann.lecun.com/exdb/mnist"
    mirrored = False
    native_size = 28

    def __init__(
        self,
        root: str = "data",
        size: int = 28,
        batch_size: int = 128,
        workers: int = 4,
        train_size: int | None = None,
        augment: bool = True,
    ) -> None:
        super().__init__(root, size, augment, batch_size, workers, train_size)

    @override
    def part(self, train: bool, **options: Any) -> Any:
        return self.dataset(self.root, train=train, **options)

    @override
    def check(self) -> None:
        folder = Path(self.root, self.dataset.__name__, "raw")
        for archive, _ in self.dataset.resources:
            path = folder / archive.removesuffix(".gz")
            if path.exists() and (reason := _idx_fault(path)):
                raise damaged(path, reason)


class FashionMNISTData(MNISTData):
    """Fashion-MNIST, 28x28 grey pictures of clothes (arXiv:1708.07747), with the usual crops and flips."""

    mean = (0.2860,)
    std = (0.3530,)
    dataset = datasets.FashionMNIST
    page = "https://github.com/zalandoresearch/fashion-mnist"
    mirrored = True


def _idx_fault(path: Path) -> str | None:
    """Compare the size of a file of MNIST's format with the dimensions in its head."""
    content = path.read_bytes()
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        return "it does not begin as an idx file of bytes"
    head = 4 + 4 * content[3]
    expected = head
    if len(content) >= head:
        sizes = [int.from_bytes(content[i : i + 4], "big") for i in range(4, head, 4)]
        expected += math.prod(sizes)
    return None if len(content) == expected else f"it has {len(content)} of {expected} bytes"
