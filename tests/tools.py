"""What several test files share: a place to work in, small trainings, mixes with chosen numbers."""

from __future__ import annotations

import csv
import hashlib
import logging
import os
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image, ImageFont
from torch import Tensor, nn
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_msda import MSDA, Mixture
from lightning_msda.mixed_tensor import release

QUIET = [
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]


@contextmanager
def working_in(folder: Path) -> Iterator[Path]:
    """Work in a folder; leave neither variables nor levels of loggers behind."""
    variables = dict(os.environ)
    loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
    for name in set(os.environ) - set(variables):
        del os.environ[name]
    os.environ.update(variables)


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path) -> Iterator[Path]:
    """Work in an empty folder, wherever this fixture is imported."""
    with working_in(tmp_path):
        yield tmp_path


@pytest.fixture(autouse=True)
def released() -> Iterator[None]:
    """Make mixed labels plain after each test, wherever this fixture is imported."""
    yield
    release()


def pairs(lam: float | Sequence[float], inputs: Tensor, dtype: torch.dtype = torch.float64) -> Mixture:
    """Interpolate every sample with the next one, by one lam or by one for each sample."""
    lams = torch.tensor([lam] if isinstance(lam, float) else lam, dtype=dtype)
    partner = torch.arange(len(inputs)).roll(-1)
    shares = lams.reshape(-1, *[1] * (inputs.dim() - 1)).to(inputs.dtype)
    return Mixture.of_pairs(shares * inputs + (1 - shares) * inputs[partner], partner, lams)


class Classifier(LightningModule):
    """A linear classifier that knows nothing of mixing."""

    def __init__(self, features: int = 64, classes: int = 4) -> None:
        super().__init__()
        self.linear = nn.Linear(features, classes)

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self.linear(x.flatten(1)), y)
        self.log("train/loss", loss)
        return loss

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(
    callbacks: list[Callback],
    *,
    module: LightningModule | None = None,
    batches: int = 4,
    shape: Sequence[int] = (6, 1, 8, 8),
    **options: Any,
) -> Trainer:
    """Train on batches of random inputs with labels from 0 to 3."""
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        callbacks=callbacks,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 1, "logger": False, **options},
    )
    data = [[torch.rand(*shape), torch.randint(0, 4, (shape[0],))] for _ in range(batches)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "1")
        trainer.fit(module or Classifier(), DataLoader(data, batch_size=None))  # type: ignore[arg-type]
    return trainer


class Training(NamedTuple):
    """What a `Recorder` keeps of a training: how it began, and for each batch its inputs and its mix."""

    seed: str | None
    short: bool
    weights: Tensor
    batches: list[Tensor]
    mixes: list[Mixture | None]
    methods: list[str | None]


class Recorder(Callback):
    """Records every training of the process, the batches as they were loaded."""

    trainings: ClassVar[list[Training]] = []

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        weights = nn.utils.parameters_to_vector(pl_module.parameters()).detach().clone()
        short = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
        self.trainings.append(Training(os.environ.get("PL_GLOBAL_SEED"), short, weights, [], [], []))

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.trainings[-1].batches.append(batch[0].clone())

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        for method in [callback for callback in callbacks if isinstance(callback, MSDA)]:
            self.trainings[-1].mixes.append(method.last_mix)
            self.trainings[-1].methods.append(method.last_method)


def write_cifar(root: Path, original: Any, images: dict[str, Tensor], labels: dict[str, list[int]]) -> Any:
    """Write images as CIFAR's authors do, and return a data set that finds them intact.

    Args:
        root: Where the data set's folder is made.
        original: torchvision's class: its files, keys and checks are kept, with the sums of these files.
        images: Bytes, shape ``(n, 3, 32, 32)``, for ``"train"`` and ``"test"``; dealt to the files in turn.
        labels: Their labels.
    """
    folder = root / original.base_folder
    folder.mkdir(parents=True)

    def write(name: str, content: dict[str, Any]) -> str:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    sums: dict[str, list[list[str]]] = {"train": [], "test": []}
    for stage, files in (("train", original.train_list), ("test", original.test_list)):
        for i, (name, _) in enumerate(files):
            part = images[stage][i :: len(files)]
            key = "labels" if original.meta["key"] == "label_names" else "fine_labels"
            content = {"data": part.flatten(1).numpy(), key: labels[stage][i :: len(files)]}
            sums[stage].append([name, write(name, content)])
    names = [f"class {i}" for i in range(100 if original.meta["key"] == "fine_label_names" else 10)]
    meta = {**original.meta, "md5": write(original.meta["filename"], {original.meta["key"]: names})}
    lists = {"train_list": sums["train"], "test_list": sums["test"], "meta": meta}
    return type(f"Tiny{original.__name__}", (original,), lists)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_picture(path: Path | str) -> Image.Image:
    """Return a picture, its file closed."""
    with Image.open(path) as picture:
        picture.load()
        return picture


def grid_size(
    rows: int,
    columns: int,
    image: tuple[int, int],
    *,
    titles: Sequence[str],
    captions: Sequence[str] = (),
    headers: Sequence[str] = (),
) -> tuple[int, int]:
    """Return width and height of a grid by its definition: gaps of 8, lines of 16, sides of 112 at least.

    Left of the cells stand the titles with a gap on both sides; a cell is as wide as the widest of image,
    captions and headers, and as high as the image and a line.
    """
    small, large = (ImageFont.load_default(size=size) for size in (12, 13))
    scale = -(-112 // max(image)) if max(image) < 112 else 1
    width = 8 + max([image[1] * scale, *(int(small.getlength(text)) for text in [*captions, *headers])])
    left = 16 + max(int(large.getlength(title)) for title in titles)
    height = 8 + image[0] * scale + 16
    return left + columns * width, (24 if headers else 8) + rows * height
