"""A module that knows nothing of mixing and remembers its steps, and a Trainer that is quick and quiet."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Seen(NamedTuple):
    """What a training step saw and what became of it."""

    inputs: Tensor
    labels: Tensor
    loss: Tensor
    weight: Tensor
    gradient: Tensor


class Classifier(LightningModule):
    """A linear layer under any loss of features and labels."""

    def __init__(
        self,
        features: int,
        classes: int = 10,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(features, classes, bias=False, dtype=dtype)
        self.loss = loss
        self.seen: list[Seen] = []
        self._step: tuple[Tensor, ...] = ()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        self._step = x.clone(), y, self.linear.weight.detach().clone()
        return self.loss(self.linear(x.flatten(1)), y)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        inputs, labels, weight = self._step
        assert self.linear.weight.grad is not None
        self.seen.append(Seen(inputs, labels, outputs["loss"], weight, self.linear.weight.grad.clone()))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.validated = batch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def make_trainer(*callbacks: Any, **options: Any) -> Trainer:
    """Return a Trainer for the CPU that prints and saves nothing."""
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(callbacks=list(callbacks), **{**quiet, **options})


def basis(n: int, *spatial: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return images that are constant, sample ``i`` 1 in channel ``i``: a mix shows its shares."""
    images = torch.eye(n, dtype=dtype).view(n, n, *[1] * len(spatial))
    return images.expand(n, n, *spatial).contiguous()


def loader(*tensors: Tensor, batch_size: int) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*tensors), batch_size=batch_size)


def shares(mixed: Tensor) -> tuple[Tensor, Tensor]:
    """Return the own share and the partner of each sample of a mixed basis, by its pixels alone."""
    of_each = mixed.flatten(2).mean(2)
    own = of_each.diagonal().clone()
    partner = (of_each - of_each.diagonal().diag()).argmax(1)
    alone = own > 1 - 1e-6
    return own, torch.where(alone, torch.arange(len(own)), partner)


def in_a_fresh_process(func: Callable[..., None], *args: Any) -> None:
    """Call a function in a process of its own: one in which autograd has run may not be forked."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(func, *args).result()
