"""Bengali graphemes, whose three parts are told one by one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from typing_extensions import override

__all__ = ["Graphemes"]

CLASSES = {"root": 168, "vowel": 11, "consonant": 7}


class Graphemes(LightningModule):
    """Cross-entropy of each part of a grapheme, summed; accuracy of each, and of all of them at once.

    The labels are ``(N, 3)``, a column for each of root, vowel and consonant. One network may tell all parts,
    or ``parts`` names the one that it tells, as in FMix (arXiv:2002.12047, table IV), where three models are
    trained. These are then tested together as one network, `SideBySide`.

    Logged are ``acc_root``, ``acc_vowel`` and ``acc_consonant``, and as ``acc`` the share of graphemes of
    which all parts are right.

    Args:
        network: Returns logits ``(N, C)`` for images ``(N, ...)``, the classes of each part after those of
            the one before: 168 for the root, 11 for the vowel, 7 for the consonant, so 186 for all.
        parts: Which parts the network tells: some of ``root``, ``vowel`` and ``consonant``.

    Raises:
        ValueError: If there are no parts, or no such part.
    """

    def __init__(self, network: nn.Module, parts: Sequence[str] = ("root", "vowel", "consonant")) -> None:
        super().__init__()
        if len(parts) == 0 or isinstance(parts, str) or not set(parts) <= set(CLASSES):
            raise ValueError(f"parts={parts!r} must be a list of some of {list(CLASSES)}, such as ['root'].")
        self.network = network
        self.parts = list(parts)
        self.accuracies = MetricCollection(
            {
                f"{stage}/{name}": MeanMetric()
                for stage in ("train", "val", "test")
                for name in ("acc", *(f"acc_{part}" for part in parts))
            },
            compute_groups=False,
        )

    @override
    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the logits of each part.

        Args:
            x: Images, shape ``(N, ...)``.

        Raises:
            ValueError: If the network returns not as many logits as the parts have classes.
        """
        logits = self.network(x)
        sizes = [CLASSES[part] for part in self.parts]
        if logits.shape[1] != sum(sizes):
            raise ValueError(
                f"The network returns {logits.shape[1]} logits, and the parts {self.parts} have"
                f" {sum(sizes)} classes: write num_classes={sum(sizes)} for it."
            )
        return list(logits.split(sizes, 1))

    @override
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self._step(batch, "train")

    @override
    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._step(batch, "val")

    @override
    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._step(batch, "test")

    @override
    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the class of each part, shape ``(N, parts)``."""
        return torch.stack([logits.argmax(1) for logits in self(batch[0])], 1)

    def _step(self, batch: tuple[Tensor, Tensor], stage: str) -> Tensor:
        x, y = batch
        columns = [y[:, list(CLASSES).index(part)] for part in self.parts]
        logits = self(x)
        losses = [F.cross_entropy(each, column) for each, column in zip(logits, columns, strict=True)]
        right = [each.argmax(1) == column for each, column in zip(logits, columns, strict=True)]
        loss = torch.stack(losses).sum()
        self.log(f"{stage}/loss", loss)
        self._log_accuracy(f"{stage}/acc", torch.stack(right).all(0))
        for part, hits in zip(self.parts, right, strict=True):
            self._log_accuracy(f"{stage}/acc_{part}", hits)
        return loss

    def _log_accuracy(self, name: str, hits: Tensor) -> None:
        self.accuracies[name].update(hits.float())
        self.log(name, self.accuracies[name], on_step=False, on_epoch=True)
