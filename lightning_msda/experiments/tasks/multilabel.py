"""Classification where a sample may be of several classes, or of none."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import BinaryAUROC, MultilabelAUROC
from typing_extensions import override

from lightning_msda.experiments.tasks.word_vectors import take_word_vectors

__all__ = ["MultilabelClassification"]

Batch = tuple[Tensor, Tensor] | Mapping[str, Tensor]


class MultilabelClassification(LightningModule):
    """Binary cross-entropy and the area under the ROC curve, its mean over the labels; one label is binary.

    This is the measure of the Toxic Comments competition, and of table V of FMix (arXiv:2002.12047). Batches
    are pairs, or as for models of transformers dicts with ``input_ids`` and ``labels``. A data module's word
    vectors (``vectors``) become those of the network's ``embedding``.

    Args:
        network: Returns logits ``(N, num_labels)`` for inputs ``(N, ...)``; the targets are 0 or 1 and of the
            logits' shape.
        num_labels: Number of labels.
    """

    def __init__(self, network: nn.Module, num_labels: int) -> None:
        super().__init__()
        self.network = network
        self.val_auroc, self.test_auroc = _auroc(num_labels), _auroc(num_labels)

    @override
    def setup(self, stage: str) -> None:
        take_word_vectors(self)

    @override
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x, y = _pair(batch)
        loss = F.binary_cross_entropy_with_logits(self(x), y.float())
        self.log("train/loss", loss)
        return loss

    @override
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "val", self.val_auroc)

    @override
    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "test", self.test_auroc)

    @override
    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        probabilities: Tensor = self(_pair(batch)[0]).sigmoid()
        return probabilities

    def _evaluate(self, batch: Batch, stage: str, auroc: Metric) -> None:
        x, y = _pair(batch)
        logits = self(x)
        # Of float32: under bf16 many probabilities would be alike.
        auroc.update(logits.float(), y.int())
        self.log(f"{stage}/loss", F.binary_cross_entropy_with_logits(logits, y.float()))
        self.log(f"{stage}/auroc", auroc)


def _pair(batch: Batch) -> tuple[Tensor, Tensor]:
    return (batch["input_ids"], batch["labels"]) if isinstance(batch, Mapping) else batch


def _auroc(num_labels: int) -> Metric:
    return BinaryAUROC() if num_labels == 1 else MultilabelAUROC(num_labels)
