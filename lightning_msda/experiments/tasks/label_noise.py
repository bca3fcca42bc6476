"""Classification where some labels were corrupted (mixup, arXiv:1710.09412, section 3.4)."""

from __future__ import annotations

from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from typing_extensions import override

from lightning_msda.experiments.tasks.classification import Classification

__all__ = ["LabelNoise"]


class LabelNoise(Classification):
    """Classification, and the training error on real and on corrupted labels.

    Training batches are ``(x, y, y_true)``: inputs, labels that are trained on, labels as they were; to a
    mixing method they are named by ``input_key=0`` and ``target_key=1``. The errors are shares of samples
    whose largest logit is not that of the label that is trained on: ``train/error_real`` where it is the true
    one, ``train/error_corrupted`` where it is not. A low one there means that labels were memorised.

    They are those of the step, mixed and augmented as its inputs are. Where validation or testing has a
    second loader, of the training set in such batches, the errors on its samples as they are become
    ``val/error_real`` and so on, and its accuracy does not count.

    Args:
        network: Returns logits ``(N, num_classes)`` for inputs ``(N, ...)``.
        num_classes: Number of classes.
    """

    def __init__(self, network: nn.Module, num_classes: int) -> None:
        super().__init__(network, num_classes)
        self.errors = MetricCollection(
            {
                f"{stage}/error_{part}": MeanMetric()
                for stage in ("train", "val", "test")
                for part in ("real", "corrupted")
            },
            compute_groups=False,
        )

    @override
    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        x, y, y_true = batch
        logits = self(x)
        self._log_errors("train", logits, y, y_true)
        return self._learn(logits, y)

    @override
    def validation_step(self, batch: tuple[Tensor, ...], batch_idx: int, dataloader_idx: int = 0) -> None:
        if dataloader_idx > 0:
            self._log_errors("val", self(batch[0]), *batch[1:])
        else:
            self._evaluate((batch[0], batch[1]), "val", self.val_metrics)

    @override
    def test_step(self, batch: tuple[Tensor, ...], batch_idx: int, dataloader_idx: int = 0) -> None:
        if dataloader_idx > 0:
            self._log_errors("test", self(batch[0]), *batch[1:])
        else:
            self._evaluate((batch[0], batch[1]), "test", self.test_metrics)

    def _log_errors(self, stage: str, logits: Tensor, y: Tensor, y_true: Tensor) -> None:
        wrong = (logits.argmax(1) != y).float()
        real = (y == y_true).float()
        for part, among in (("real", real), ("corrupted", 1 - real)):
            error = self.errors[f"{stage}/error_{part}"]
            error.update(wrong, among)
            self.log(f"{stage}/error_{part}", error, on_step=False, on_epoch=True, add_dataloader_idx=False)
