"""Images in files, as the archives of Tiny-ImageNet and ImageNet hold them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from lightning_msda.experiments.data.files import damaged

__all__ = ["ImageFiles", "images_in"]


class ImageFiles(Dataset[Any]):
    """Colour images with their classes.

    Args:
        files: The images.
        targets: Their classes.
        transform: What is done to each image.
    """

    def __init__(
        self, files: Sequence[Path], targets: Sequence[int], transform: Callable[[Any], Any]
    ) -> None:
        self.files = files
        self.targets = targets
        self.transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        try:
            with Image.open(self.files[index]) as image:
                pixels = image.convert("RGB")
        except OSError as error:
            raise damaged(self.files[index], error) from error
        return self.transform(pixels), self.targets[index]


def images_in(folder: Path, classes: Sequence[str]) -> tuple[list[Path], list[int]]:
    """Return the images of a folder that has a folder for each class.

    Args:
        folder: The folder.
        classes: The names of the classes' folders; a class may have none.

    Returns:
        The files in order, and their classes.
    """
    files, targets = [], []
    for target, name in enumerate(classes):
        found = sorted(p for p in (folder / name).rglob("*") if p.suffix.lower() in (".jpeg", ".jpg", ".png"))
        files += found
        targets += [target] * len(found)
    return files, targets
