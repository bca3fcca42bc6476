"""Tiny-ImageNet (Stanford CS231n, 2015)."""

from __future__ import annotations

from pathlib import Path

import torch
from torchvision.transforms import v2
from typing_extensions import override

from lightning_msda.experiments.data.base import DataModule, Splits
from lightning_msda.experiments.data.files import Source, check_images
from lightning_msda.experiments.data.folders import ImageFiles, images_in

__all__ = ["TinyImageNetData"]


class TinyImageNetData(DataModule):
    """Tiny-ImageNet, 64x64 colour images of 200 classes, with the usual crops and flips.

    The archive's validation images are validated and tested on, for its test images have no labels.

    Args:
        root: The folder that holds ``tiny-imagenet-200``; it is downloaded into it where it is missing.
        batch_size: Samples in a batch.
        workers: Processes that load the data.
        train_size: How many training samples are used, a fixed choice with even classes; None: all.
        augment: Whether training images are cropped and mirrored.

    Raises:
        FileNotFoundError: If it is missing and cannot be downloaded.
        ValueError: If an argument is out of range, or a file is damaged.
    """

    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)
    source = Source(
        name="Tiny-ImageNet",
        folder="tiny-imagenet-200",
        fetch_by_hand="tiny-imagenet-200.zip from http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        urls=("http://cs231n.stanford.edu/tiny-imagenet-200.zip",),
    )

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 128,
        workers: int = 4,
        train_size: int | None = None,
        augment: bool = True,
    ) -> None:
        super().__init__(batch_size, workers, train_size)
        self.root = root
        self.augment = augment

    @override
    def prepare_data(self) -> None:
        self.source.fetch(self.root)
        (train, _), (val, _) = self._files()
        check_images("tiny-imagenet", self.source.find(self.root), [*train, *val])

    @override
    def splits(self) -> Splits:
        plain = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(self.mean, self.std)]
        moved = [v2.RandomCrop(64, padding=4), v2.RandomHorizontalFlip()] if self.augment else []
        train, val = self._files()
        words = self.source.find(self.root, "words.txt").read_text(encoding="utf8").splitlines()
        names = dict(line.split("\t", 1) for line in words if line)
        self.classes = tuple(names[wnid].split(",")[0] for wnid in self._wnids())
        test = ImageFiles(*val, v2.Compose(plain))
        return Splits(ImageFiles(*train, v2.Compose([*moved, *plain])), test, test)

    def _wnids(self) -> list[str]:
        return sorted(self.source.find(self.root, "wnids.txt").read_text().split())

    def _files(self) -> list[tuple[list[Path], list[int]]]:
        wnids = self._wnids()
        train = images_in(self.source.find(self.root, "train"), wnids)
        lines = self.source.find(self.root, "val", "val_annotations.txt").read_text().splitlines()
        rows = [line.split("\t")[:2] for line in lines]
        files = [self.source.find(self.root, "val", "images", name) for name, _ in rows]
        return [train, (files, [wnids.index(wnid) for _, wnid in rows])]
