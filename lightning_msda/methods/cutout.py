"""Cutout: hide boxes (DeVries & Taylor, 2017, arXiv:1708.04552)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Generator, Tensor
from typing_extensions import Unpack, override

from lightning_msda.callback import MSDA, CommonArgs
from lightning_msda.mixture import Mixture
from lightning_msda.ops import along, box_mask, center_boxes, mixed_dims, select, to_device
from lightning_msda.randomness import Step

__all__ = ["Cutout", "cutout"]


def cutout(
    x: Tensor,
    *,
    holes: int = 1,
    length: int = 16,
    fill: float = 0.0,
    dims: Sequence[int] | None = None,
    per_sample: bool = True,
    generator: Generator | None = None,
) -> Mixture:
    """Fill boxes of every sample with a number, and keep its label.

    The centre of a box is uniform, and what lies outside is cut off: of a size ``S`` a box covers
    ``length - length^2 / (4 S)`` on average, for lengths that are even and no larger than ``S``.

    Args:
        x: Inputs of any dtype, shape ``(N, C, *spatial)``, or another with ``dims``.
        holes: Number of boxes, from 1; they may overlap.
        length: Length of their sides, from 1; an odd length is one shorter.
        fill: What they are filled with; a whole number for integers.
        dims: Dimensions that the boxes lie in; None: all after the channel.
        per_sample: Whether to draw boxes for each sample, as in the paper, or the same for the batch.
        generator: Source of randomness, on the CPU; None: the global one.

    Returns:
        The filled inputs, of the shape, dtype and device of ``x``, with the mask of what is left. Every
        sample is its own partner and has lam 1.

    Raises:
        ValueError: If ``x`` has no such dimensions or cannot hold ``fill``, or an argument is out of range.

    Example:
        >>> import torch
        >>> x = torch.ones(4, 3, 32, 32)
        >>> mix = cutout(x, length=8)
        >>> mix.lam, bool(mix.inputs.mean() < 1)
        (tensor([1., 1., 1., 1.]), True)
    """
    _check(holes, length, fill)
    dims = mixed_dims(x, dims)
    if not (x.is_floating_point() or x.is_complex()) and fill != int(fill):
        raise ValueError(f"fill={fill} is no value of {x.dtype}: it must be a whole number for such inputs.")
    spatial = [x.size(dim) for dim in dims]
    r = len(x) if per_sample else 1
    sides = torch.full((r * holes, len(dims)), length)
    (boxes,) = to_device(x.device, center_boxes(sides, spatial, generator))
    left = along(box_mask(boxes, spatial).view(r, holes, *spatial).all(1), dims, x.dim())
    filled = select(x, torch.full((), fill, dtype=x.dtype, device=x.device), left)
    return replace(Mixture.untouched(x), inputs=filled, mask=left, dims=dims, fill=fill)


class Cutout(MSDA):
    """Fills boxes of every sample with a number, and keeps its label (DeVries & Taylor, arXiv:1708.04552).

    Args:
        holes: Number of boxes, from 1.
        length: Length of their sides in pixels, from 1: 16 for CIFAR-10, 8 for CIFAR-100, 20 for SVHN.
        fill: What they are filled with; 0 is the mean of normalised images.
        common: What every method takes, see `CommonArgs`; ``per_sample`` is true by default.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> callback = Cutout(length=8)  # Trainer(callbacks=[callback])
    """

    needs_partner: ClassVar[bool] = False

    def __init__(
        self, holes: int = 1, length: int = 16, fill: float = 0.0, **common: Unpack[CommonArgs]
    ) -> None:
        common.setdefault("per_sample", True)
        super().__init__(**common)
        _check(holes, length, fill)
        self.holes = holes
        self.length = length
        self.fill = fill

    @property
    @override
    def lam_by_sample(self) -> bool:
        return False

    @override
    def mix(self, x: Tensor, step: Step) -> Mixture:
        return cutout(
            x,
            holes=self.holes,
            length=self.length,
            fill=self.fill,
            dims=self.dims,
            per_sample=self.per_sample,
            generator=step.generator(),
        )


def _check(holes: int, length: int, fill: float) -> None:
    for name, number in {"holes": holes, "length": length}.items():
        if not isinstance(number, int) or number < 1:
            raise ValueError(f"{name}={number!r} is out of range: it must be a whole number from 1.")
    if not math.isfinite(fill):
        raise ValueError(f"fill={fill} is out of range: it must be a finite number.")
