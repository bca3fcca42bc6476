"""Losses that modules compute, each trained through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_msda import MSDA, CutMix, MixUp
from tests.contract.oracle import classes, classes_by_sample, row, trains

N, K = 6, 5


class Classifier(LightningModule):
    """A linear classifier under a loss of logits and labels."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 4 * 4, K, dtype=torch.float64)
        self.loss = loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return self.loss(self.linear(x.flatten(1)), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def batches() -> list[tuple[Tensor, Tensor]]:
    return [(torch.rand(N, 3, 4, 4, dtype=torch.float64), torch.randint(0, K, (N,))) for _ in range(4)]


@pytest.mark.parametrize("kind", [MixUp, CutMix])
@pytest.mark.parametrize(
    "loss",
    [pytest.param(F.cross_entropy, marks=row("Losses", "cross-entropy"))],
)
def test_one_lam(loss: Callable[[Tensor, Tensor], Tensor], kind: Callable[..., MSDA]) -> None:
    trains(lambda: Classifier(loss), batches(), kind())


@pytest.mark.parametrize(
    "loss",
    [pytest.param(F.cross_entropy, marks=row("Losses", "cross-entropy", per_sample=True))],
)
def test_a_lam_for_each_sample(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    trains(lambda: Classifier(loss), batches(), MixUp(per_sample=True), terms=classes_by_sample)


def test_the_formula_notices_labels_that_were_not_mixed() -> None:
    with pytest.raises(AssertionError, match="the loss is off"):
        trains(lambda: Classifier(F.cross_entropy), batches(), MixUp(target_key=False), terms=classes)
