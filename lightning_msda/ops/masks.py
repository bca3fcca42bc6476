"""Masks of the own share: boxes and thresholded images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import torch
from torch import Generator, Tensor

from lightning_msda.ops.layout import along, to_device
from lightning_msda.randomness import sample_integers

__all__ = ["box_mask", "box_share", "box_sides", "boxes_around", "center_boxes", "fitted_boxes", "top_mask"]


def center_boxes(sides: Tensor, spatial: Sequence[int], generator: Generator | None = None) -> Tensor:
    """Draw boxes around a uniform centre and cut off what lies outside.

    Args:
        sides: Lengths of the sides, int64, shape ``(R, d)``; an odd length is one shorter, the box is
            ``[centre - side // 2, centre + side // 2)``.
        spatial: The ``d`` sizes that the boxes lie in.
        generator: Source of randomness; None: the global one.

    Returns:
        First and last-plus-one position along each dimension, int64, shape ``(R, d, 2)``.
    """
    centers = torch.stack([sample_integers(size, len(sides), generator) for size in spatial], 1)
    return boxes_around(centers, sides, spatial)


def boxes_around(centers: Tensor, sides: Tensor, spatial: Sequence[int]) -> Tensor:
    """Return boxes around centres, and cut off what lies outside.

    Args:
        centers: Positions, int64, shape ``(R, d)``.
        sides: Lengths of the sides, int64, shape ``(R, d)`` or ``(1, d)``, as in `center_boxes`.
        spatial: The ``d`` sizes that the boxes lie in.

    Returns:
        First and last-plus-one position along each dimension, int64, shape ``(R, d, 2)``.
    """
    ends = torch.stack([centers - sides // 2, centers + sides // 2], 2)
    return torch.stack([ends[:, i].clamp(0, size) for i, size in enumerate(spatial)], 1)


def fitted_boxes(n: int, sides: Tensor, spatial: Sequence[int], generator: Generator | None = None) -> Tensor:
    """Draw boxes around a uniform centre and shift them inside.

    Args:
        n: Number of boxes ``N``.
        sides: Lengths of the sides, int64, shape ``(R, d)`` with ``R`` 1 or ``N``.
        spatial: The ``d`` sizes that the boxes lie in.
        generator: Source of randomness; None: the global one.

    Returns:
        First and last-plus-one position along each dimension, int64, shape ``(N, d, 2)``.
    """
    centers = torch.stack([sample_integers(size, n, generator) for size in spatial], 1)
    starts = (centers - sides // 2).clamp(min=0).minimum(torch.tensor(spatial) - sides)
    return torch.stack([starts, starts + sides], 2)


def box_share(boxes: Tensor, spatial: Sequence[int]) -> Tensor:
    """Return the share of the elements that lie outside of each box, float64, shape ``(R,)``.

    Args:
        boxes: First and last-plus-one positions, shape ``(R, d, 2)``.
        spatial: The ``d`` sizes.
    """
    inside = (boxes[..., 1] - boxes[..., 0]).prod(1)
    return 1 - inside.double() / math.prod(spatial)


def box_sides(lam: Tensor, spatial: Sequence[int]) -> Tensor:
    """Return the sides of boxes that cover ``1 - lam``, ``(1 - lam)^(1/d)`` of each size, int64, ``(R, d)``.

    Args:
        lam: Share outside of each box, in [0, 1], shape ``(R,)``, on the CPU.
        spatial: The ``d`` sizes.
    """
    ratio = (1 - lam) ** (1 / len(spatial))
    return (ratio[:, None] * torch.tensor(spatial)).long()


def box_mask(boxes: Tensor, spatial: Sequence[int]) -> Tensor:
    """Return masks that are False inside of boxes.

    Args:
        boxes: First and last-plus-one positions, shape ``(R, d, 2)``.
        spatial: The ``d`` sizes.

    Returns:
        Masks, bool, shape ``(R, *spatial)``, on the boxes' device.
    """
    outside = []
    for i, size in enumerate(spatial):
        place = torch.arange(size, device=boxes.device)
        beside = (place < boxes[:, i, :1]) | (place >= boxes[:, i, 1:])
        outside.append(along(beside, (i + 1,), 1 + len(spatial)))
    return reduce(torch.logical_or, outside)


def top_mask(images: Tensor, counts: Tensor, soft: Tensor | None = None) -> Tensor:
    """Return masks of the largest elements of images.

    Args:
        images: Shape ``(R, *spatial)``.
        counts: How many elements to take of each, int64 on the CPU, shape ``(R,)``.
        soft: Half the width of a soft edge, in ranks, int64 on the CPU, shape ``(R,)``: the mask falls
            linearly from 1 to 0 between the ranks ``count - soft`` and ``count + soft``. None: a hard one.

    Returns:
        Masks of the images' shape: bool, or float in [0, 1] with a soft edge.
    """
    flat = images.flatten(1)
    n = flat.size(1)
    if soft is None:
        masks = torch.zeros_like(flat, dtype=torch.bool)
        few = counts <= n - counts  # the smaller part is looked for, and turned around if it is the lower one
        for row, image, count, largest in zip(masks, flat, counts.tolist(), few.tolist(), strict=True):
            part = image.topk(min(count, n - count), largest=largest, sorted=False).indices
            row.index_fill_(0, part, True)
        (few,) = to_device(images.device, few)
        return (masks == few[:, None]).view_as(images)
    counts, soft = to_device(images.device, counts, soft)
    width = torch.where(soft > 0, 2 * soft - 1, 1)
    start = counts - torch.where(soft > 0, soft, 1)
    values = (1 - (torch.arange(n, device=images.device) - start[:, None]) / width[:, None]).clamp(0, 1)
    mask = torch.empty_like(flat).scatter_(1, flat.argsort(1, descending=True), values.to(images.dtype))
    return mask.view_as(images)
