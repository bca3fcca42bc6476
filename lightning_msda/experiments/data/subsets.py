"""Smaller training sets and corrupted labels: both drawn once and for all, whatever the run's seed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset

__all__ = ["NoisyLabels", "balanced_subset", "folds"]


def balanced_subset(targets: Tensor, size: int) -> list[int]:
    """Choose samples at random so that classes differ by one sample, as far as there are enough of each.

    A larger choice contains every smaller one.

    Args:
        targets: Classes, shape ``(n,)``; of several labels for each sample, ``(n, k)``, none is looked at.
        size: How many samples are chosen.

    Returns:
        Their indices.

    Example:
        >>> chosen = balanced_subset(torch.tensor([0, 0, 0, 0, 0, 0, 1, 1]), 4)
        >>> sorted(i >= 6 for i in chosen)
        [False, False, True, True]
    """
    order = torch.randperm(len(targets), generator=Generator().manual_seed(0))
    if targets.dim() == 1:
        classes, by_class = targets[order].sort(stable=True)
        first_of_class = torch.searchsorted(classes, classes)
        turn = torch.empty_like(order)
        turn[by_class] = torch.arange(len(targets)) - first_of_class
        order = order[turn.argsort(stable=True)]
    return order[:size].tolist()


def folds(size: int, count: int) -> list[list[int]]:
    """Deal samples at random into parts whose sizes differ by one at most.

    Args:
        size: How many samples there are.
        count: How many parts are made.
    """
    order = torch.randperm(size, generator=Generator().manual_seed(0))
    return [order[i::count].tolist() for i in range(count)]


class NoisyLabels(Dataset[Any]):
    """A data set in which some labels are drawn anew, from all classes alike (arXiv:1710.09412, section 3.4).

    ``targets`` are the labels to train on, ``true_targets`` those as they were, ``corrupted`` tells
    whose label was drawn (a drawn label can be the true one).

    Args:
        data: Pairs of inputs and classes, with ``targets``.
        share: The share of samples whose label is drawn.
        classes: How many classes there are.
        hide: Whether samples are pairs; otherwise they are ``(x, y, y_true)``.
    """

    def __init__(self, data: Any, share: float, classes: int, hide: bool = True) -> None:
        generator = Generator().manual_seed(0)
        self.data = data
        self.hide = hide
        self.true_targets = torch.as_tensor(data.targets)
        count = len(self.true_targets)
        self.corrupted = torch.zeros(count, dtype=torch.bool)
        self.corrupted[torch.randperm(count, generator=generator)[: round(share * count)]] = True
        drawn = torch.randint(classes, (count,), generator=generator)
        self.targets = torch.where(self.corrupted, drawn, self.true_targets)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        pair = self.data[index][0], int(self.targets[index])
        return pair if self.hide else (*pair, int(self.true_targets[index]))
