"""Classification, as everybody writes it."""

from __future__ import annotations

import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import override

__all__ = ["Classification"]


class Classification(LightningModule):
    """Cross-entropy and accuracy; the optimizer is the command line's.

    Args:
        network: Returns logits ``(N, num_classes)`` for inputs ``(N, ...)``.
        num_classes: Number of classes.
        top_k: Among how many classes of the largest logits the label must be for a second accuracy, which is
            logged as ``acc_top5`` for 5 in validation and testing. Default: there is no second one.

    Raises:
        ValueError: If there are not as many classes.
    """

    def __init__(self, network: nn.Module, num_classes: int, top_k: int | None = None) -> None:
        super().__init__()
        if top_k is not None and not 1 < top_k <= num_classes:
            raise ValueError(
                f"top_k={top_k} is out of range: it must be from 2 to the {num_classes} classes; accuracy"
                " itself, which is that of the largest logit, is always there."
            )
        self.network = network
        self.train_accuracy = MulticlassAccuracy(num_classes, average="micro")
        metrics = MetricCollection({"acc": MulticlassAccuracy(num_classes, average="micro")})
        if top_k is not None:
            metrics[f"acc_top{top_k}"] = MulticlassAccuracy(num_classes, top_k=top_k, average="micro")
        self.val_metrics = metrics.clone(prefix="val/")
        self.test_metrics = metrics.clone(prefix="test/")

    @override
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits

    @override
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return self._learn(self(x), y)

    @override
    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "val", self.val_metrics)

    @override
    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "test", self.test_metrics)

    @override
    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        probabilities: Tensor = self(batch[0]).softmax(1)
        return probabilities

    def _learn(self, logits: Tensor, y: Tensor) -> Tensor:
        loss = F.cross_entropy(logits, y)
        self.train_accuracy(logits, y)
        self.log("train/loss", loss)
        self.log("train/acc", self.train_accuracy, on_step=False, on_epoch=True)
        return loss

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: str, metrics: MetricCollection) -> None:
        x, y = batch
        logits = self(x)
        metrics(logits, y)
        self.log(f"{stage}/loss", F.cross_entropy(logits, y), add_dataloader_idx=False)
        self.log_dict(metrics, add_dataloader_idx=False)
