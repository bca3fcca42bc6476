"""What the tests of the data modules share."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader


def made(data: LightningDataModule) -> Any:
    """Return a data module that is ready to train on."""
    data.prepare_data()
    data.setup("fit")
    return data


def whole(loader: DataLoader[Any]) -> tuple[Tensor, Tensor]:
    """Return all inputs and labels of a loader."""
    batches = list(loader)
    return torch.cat([batch[0] for batch in batches]), torch.cat([batch[1] for batch in batches])


def standardised(images: Tensor, data: Any) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    return (images - mean) / std


def random_images(count: int, channels: int, side: int, seed: int = 1) -> Tensor:
    """Return bytes of random images."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=generator)


def crops_of(x: Tensor, image: Tensor, data: Any) -> list[tuple[bool, int, int]]:
    """Return from where in a padded image, mirrored or not, a training image is cut."""
    side = x.shape[-1]
    padded = torch.nn.functional.pad(image, (4, 4, 4, 4))
    crops = standardised(padded.unfold(1, side, 1).unfold(2, side, 1).movedim(0, 2), data)
    found = []
    for flip in (False, True):
        same = ((crops.flip(-1) if flip else crops) - x).abs().amax((2, 3, 4)) < 1e-5
        found += [(flip, top, left) for top, left in same.nonzero().tolist()]
    return found


def refuse(*args: Any, **kwargs: Any) -> None:
    """Stand for a download that must not be."""
    raise AssertionError("a download")


def unplugged(*args: Any, **kwargs: Any) -> None:
    """Stand for a download without a network."""
    raise OSError("no network")


def real(name: str) -> Any:
    """Return arrays of a real set for development, or skip the test where there is none."""
    for folder in Path(__file__).resolve().parents:
        script = folder / "shared" / "data" / "load.py"
        if script.exists():
            spec = importlib.util.spec_from_file_location("load", script)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return getattr(module, name)
    pytest.skip("the real sets for development are not here")
