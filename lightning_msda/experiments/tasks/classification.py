"""Classification, as everybody writes it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import override

from lightning_msda.experiments.tasks.word_vectors import take_word_vectors

__all__ = ["Classification"]


class Classification(LightningModule):
    """Cross-entropy and accuracy; the optimizer is the command line's.

    What a data module has in addition is used: word vectors (``vectors``) become those of the network's
    ``embedding``; of ``known`` classes, as ImageNet-A has, testing compares the logits of these alone.

    Args:
        network: Returns logits ``(N, num_classes)`` for inputs ``(N, ...)``.
        num_classes: Number of classes.
        top_k: Among how many classes of the largest logits the label must be for a second accuracy, which is
            logged as ``acc_top5`` for 5 in validation and testing. Default: there is no second one.
        label_smoothing: The share of a label that all classes have in training, alike.

    Raises:
        ValueError: If there are not as many classes, or the share is none.
    """

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        top_k: int | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing={label_smoothing} is out of range: it must be from 0 to 1.")
        if top_k is not None and not 1 < top_k <= num_classes:
            raise ValueError(
                f"top_k={top_k} is out of range: it must be from 2 to the {num_classes} classes; accuracy"
                " itself, which is that of the largest logit, is always there."
            )
        self.network = network
        self.label_smoothing = label_smoothing
        self.train_accuracy = MulticlassAccuracy(num_classes, average="micro")
        metrics = MetricCollection({"acc": MulticlassAccuracy(num_classes, average="micro")})
        if top_k is not None:
            metrics[f"acc_top{top_k}"] = MulticlassAccuracy(num_classes, top_k=top_k, average="micro")
        self.val_metrics = metrics.clone(prefix="val/")
        self.test_metrics = metrics.clone(prefix="test/")

    @override
    def setup(self, stage: str) -> None:
        take_word_vectors(self)

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
        loss = F.cross_entropy(logits, y, label_smoothing=self.label_smoothing)
        self.train_accuracy(logits, y)
        self.log("train/loss", loss)
        self.log("train/acc", self.train_accuracy, on_step=False, on_epoch=True)
        return loss

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: str, metrics: MetricCollection) -> None:
        x, y = batch
        logits = self(x)
        known = getattr(self.trainer.datamodule, "known", None)  # type: ignore[attr-defined]
        if stage == "test" and known is not None:
            others = torch.ones(logits.shape[1], dtype=torch.bool)
            others[known] = False
            logits = logits.masked_fill(others.to(logits.device), -torch.inf)
        metrics(logits, y)
        self.log(f"{stage}/loss", F.cross_entropy(logits, y), add_dataloader_idx=False)
        self.log_dict(metrics, add_dataloader_idx=False)
