"""Who is mixed with whom: at random, or by the labels."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Generator, Tensor

from lightning_msda.ops import to_device
from lightning_msda.randomness import sample_partners, sample_uniform

__all__ = ["Pairing", "pair_up"]

Pairing = Literal["any", "other_class", "same_class", "balanced", "near"]

_BANDWIDTH = 0.5  # of the kernel of "near", in standard deviations of the batch's labels


def pair_up(labels: Tensor, pair: Pairing, generator: Generator | None = None) -> Tensor:
    """Draw a partner for each sample by the labels, on their device and without waiting for it.

    Args:
        labels: Classes: integers, shape ``(N,)`` or ``(N, 1)``, or floating-point scores ``(N, K)``, of
            which the largest counts; for ``"near"`` any numbers, shape ``(N, ...)``.
        pair: ``"any"``: a random permutation. ``"other_class"``: one that pairs no sample with its own class,
            as far as no class has more than half of the batch. ``"same_class"``: one within the classes; a
            class's only sample is its own partner. ``"balanced"``: a class that is in the batch, each as
            likely, then one of its samples. ``"near"``: another sample, by a Gaussian kernel of half a
            standard deviation on the labels (C-Mixup, Yao et al., NeurIPS 2022, arXiv:2210.05775).
        generator: Source of randomness, on the CPU; None: the global one.

    Returns:
        Index of each sample's partner, int64, shape ``(N,)``, on the labels' device.

    Raises:
        ValueError: If the labels are no classes, where classes are needed.
    """
    n, device = len(labels), labels.device
    shuffled, u = to_device(device, sample_partners(n, generator), sample_uniform(0, 1, n, generator).float())
    if pair == "any":
        return shuffled
    if pair == "near":
        return _near(labels, u)
    classes = _classes(labels)[shuffled]
    order = classes.argsort(stable=True)
    ordered = classes[order].contiguous()
    begin, end = torch.searchsorted(ordered, ordered), torch.searchsorted(ordered, ordered, right=True)
    place = torch.arange(n, device=device)
    if pair == "balanced":
        counted = (1 / (end - begin)).cumsum(0)
        chosen = torch.searchsorted(counted, u * counted[-1]).clamp(max=n - 1)
        return shuffled[order[chosen]]
    if pair == "same_class":
        following = torch.where(place + 1 < end, place + 1, begin)
    else:
        # Classes in a random order, by their first sample; then all are shifted past the largest class.
        order = order[order[begin].argsort(stable=True)]
        largest = (end - begin).amax()
        choices = (n - 2 * largest + 1).clamp(min=1)
        following = (place + largest + (u[0] * choices).long().clamp(max=choices - 1)) % n
    samples = shuffled[order]
    return torch.empty_like(samples).scatter_(0, samples, samples[following])


def _classes(labels: Tensor) -> Tensor:
    """Return the class of each sample, shape ``(N,)``."""
    flat = labels.flatten(1) if labels.dim() > 1 else labels[:, None]
    if flat.size(1) == 1 and not flat.is_floating_point():
        return flat[:, 0]
    if labels.dim() == 2 and flat.is_floating_point() and flat.size(1) > 1:
        return flat.argmax(1)
    raise ValueError(
        f"Labels of type {labels.dtype} and shape {tuple(labels.shape)} are no classes to pair by. Put"
        " integers (N,) or scores (N, K) first in target_key, or use pair='any' or pair='near'."
    )


def _near(labels: Tensor, u: Tensor) -> Tensor:
    """Draw another sample for each, by how near its labels are."""
    values = labels.flatten(1) if labels.dim() > 1 else labels[:, None]
    values = values.to(u.dtype)
    squares = torch.cdist(values, values).square()
    variance = values.var(0, unbiased=False).sum() * _BANDWIDTH**2
    chance = torch.exp(-squares / (2 * variance).clamp(min=torch.finfo(u.dtype).tiny))
    chance = chance.clamp(min=1e-6).fill_diagonal_(0)
    counted = chance.cumsum(1)
    return torch.searchsorted(counted, (u[:, None] * counted[:, -1:])).clamp(max=len(u) - 1)[:, 0]
