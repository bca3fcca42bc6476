"""Accuracy under mixing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_msda.blending import total_of
from lightning_msda.mixed_tensor import MixedTensor

__all__ = ["MixedAccuracy"]


class MixedAccuracy(Metric):
    """Accuracy against the mixture: ``lam * acc(own) + (1 - lam) * acc(partner)``.

    Other metrics see the own labels and therefore look low under mixing: a prediction of the partner counts
    as wrong. This one gives it the partner's share. On labels that are not mixed it is the plain accuracy.

    Args:
        top_k: A prediction counts if the label is among the ``top_k`` largest logits.
        kwargs: What every metric takes, see ``torchmetrics.Metric``.

    Raises:
        ValueError: If ``top_k`` is below 1.

    Example:
        >>> import torch
        >>> accuracy = MixedAccuracy()
        >>> own, partner = torch.tensor([0, 1]), torch.tensor([1, 1])
        >>> y = MixedTensor((own, partner), torch.tensor([0.75, 0.25]))
        >>> accuracy(torch.tensor([[9.0, 0.0], [0.0, 9.0]]), y)
        tensor(0.8750)
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    reads_every_source = True  # it is given the mixed labels, other metrics the own ones
    correct: Tensor
    total: Tensor

    def __init__(self, top_k: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if top_k < 1:
            raise ValueError(f"top_k={top_k} is out of range: it must be a whole number from 1.")
        self.top_k = top_k
        self.add_state("correct", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count a batch.

        Args:
            preds: Logits or probabilities, shape ``(N, K, ...)``, or classes, shape ``(N, ...)``.
            target: Labels of the batch, mixed or not, shape ``(N, ...)``.
        """
        classes = preds.topk(self.top_k, 1).indices if preds.dim() > target.dim() else preds[:, None]
        worlds = target.worlds if isinstance(target, MixedTensor) else (target,)
        weights = target.weights if isinstance(target, MixedTensor) else None
        hits = [(classes == world[:, None]).any(1).to(self.correct.dtype) for world in worlds]
        self.correct += total_of(hits, weights)
        self.total += total_of([torch.ones_like(hit) for hit in hits], weights)

    def compute(self) -> Tensor:
        """Return the accuracy so far, in [0, 1]."""
        return self.correct / self.total
