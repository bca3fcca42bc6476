"""Handwritten Bengali graphemes (Bengali.AI, arXiv:2010.00170)."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset
from torchvision.transforms.v2 import functional as V
from typing_extensions import override

from lightning_msda.experiments.data.base import DataModule, Splits
from lightning_msda.experiments.data.files import Source, damaged, kept, needs_extra
from lightning_msda.experiments.data.subsets import folds

__all__ = ["BengaliData", "cropped"]

Part = Literal["grapheme_root", "vowel_diacritic", "consonant_diacritic", "all"]
CLASSES = {"grapheme_root": 168, "vowel_diacritic": 11, "consonant_diacritic": 7}


class BengaliData(DataModule):
    """Handwritten Bengali graphemes, cropped to the ink and resized to 64x64, light on dark.

    FMix's experiments train a model for each of the three parts, on each of five folds. A fold is the same
    for all parts, and is validated and tested on.

    Args:
        root: The folder that holds ``bengaliai-cv19``.
        part: The part of the grapheme that is the class; ``all``: labels are ``(N, 3)``, a column for each.
        fold: Which fifth is held out, from 0 to 4.
        batch_size: Samples in a batch.
        workers: Processes that load the data.
        train_size: How many training samples are used, a fixed choice with even classes; None: all.

    Raises:
        FileNotFoundError: If it is missing: it cannot be downloaded without an account.
        ModuleNotFoundError: If pyarrow, which reads its files, is not installed.
        ValueError: If an argument is out of range, or a file is damaged.
    """

    mean = (0.0692,)
    std = (0.2051,)
    height, width = 137, 236
    source = Source(
        name="Bengali.AI",
        folder="bengaliai-cv19",
        fetch_by_hand="bengaliai-cv19.zip from https://www.kaggle.com/c/bengaliai-cv19 (with an account)",
    )

    def __init__(
        self,
        root: str = "data",
        part: Part = "grapheme_root",
        fold: int = 0,
        batch_size: int = 512,
        workers: int = 4,
        train_size: int | None = None,
    ) -> None:
        super().__init__(batch_size, workers, train_size)
        if part not in (*CLASSES, "all"):
            raise ValueError(f"part={part!r} is unknown: it must be one of {', '.join(CLASSES)} and all.")
        if fold not in range(5):
            raise ValueError(f"fold={fold} is out of range: it must be from 0 to 4.")
        self.root = root
        self.part = part
        self.fold = fold
        self.classes = tuple(str(i) for i in range(CLASSES.get(part, 0)))

    @override
    def prepare_data(self) -> None:
        self.splits()

    @override
    def splits(self) -> Splits:
        files = [self.source.find(self.root, f"train_image_data_{i}.parquet") for i in range(4)]
        made = kept("graphemes", self.source.find(self.root), files, lambda: self._read(files))
        table = self.source.find(self.root, "train.csv")
        with table.open(encoding="utf8", newline="") as file:
            rows = {row["image_id"]: [int(row[part]) for part in CLASSES] for row in csv.DictReader(file)}
        missing = [name for name in made["names"] if name not in rows]
        if missing:
            raise damaged(table, f"it has no row for {missing[0]}")
        targets = torch.tensor([rows[name] for name in made["names"]])
        if self.part != "all":
            targets = targets[:, list(CLASSES).index(self.part)]
        parts = folds(len(targets), 5)
        chosen = sorted(i for k, part in enumerate(parts) if k != self.fold for i in part)
        data = Graphemes(made["images"], targets, self.mean[0], self.std[0])
        train: Any = Subset(data, chosen)
        train.targets = targets[chosen]
        test = Subset(data, sorted(parts[self.fold]))
        return Splits(train, test, test)

    def _read(self, files: list[Path]) -> dict[str, Any]:
        """Crop and resize all images: of each file, 2048 rows at a time are in memory."""
        try:
            from pyarrow import ArrowInvalid, parquet
        except ModuleNotFoundError as error:
            raise needs_extra("BengaliData", "pyarrow") from error
        names: list[str] = []
        images = []
        for path in files:
            try:
                with parquet.ParquetFile(path) as file:
                    for rows in file.iter_batches(batch_size=2048):
                        column_of = dict(zip(rows.schema.names, rows.columns, strict=True))
                        names += column_of["image_id"].to_pylist()
                        pixels = [_bytes(column_of[str(i)]) for i in range(self.height * self.width)]
                        pages = torch.stack(pixels, 1).view(-1, 1, self.height, self.width)
                        images += [cropped(255 - page) for page in pages]
            except (ArrowInvalid, OSError, KeyError) as error:
                raise damaged(path, error) from error
        return {"names": names, "images": torch.stack(images)}


class Graphemes(Dataset[Any]):
    """Images with classes.

    Args:
        images: Bytes, shape ``(n, 1, 64, 64)``.
        targets: Classes, shape ``(n,)`` or ``(n, 3)``.
        mean: What is subtracted from images in [0, 1].
        std: What they are divided by then.
    """

    def __init__(self, images: Tensor, targets: Tensor, mean: float, std: float) -> None:
        self.images = images
        self.targets = targets
        self.mean = mean
        self.std = std

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return (self.images[index] / 255 - self.mean) / self.std, self.targets[index]


def cropped(image: Tensor, size: int = 64) -> Tensor:
    """Return the box around the ink, resized to a square; an empty image whole.

    Args:
        image: Bytes, light ink on dark, shape ``(1, H, W)``; what is not above 5 is no ink.
        size: Height and width of the result.
    """
    ink = image[0] > 5
    for dim in (1, 0):
        filled = ink.any(dim).nonzero()
        if len(filled):
            start, end = int(filled[0]), int(filled[-1]) + 1
            image = image.narrow(2 - dim, start, end - start)
    resized: Tensor = V.resize(image, [size, size], antialias=True)
    return resized


def _bytes(column: Any) -> Tensor:
    """Return a column of bytes."""
    data = torch.frombuffer(bytearray(column.buffers()[1]), dtype=torch.uint8)
    return data[column.offset : column.offset + len(column)]
