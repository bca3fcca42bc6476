"""ResizeMix: paste another sample, resized to a patch (Qin et al., 2020, arXiv:2012.11101)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor
from typing_extensions import Unpack, override

from lightning_msda.callback import MSDA, CommonArgs
from lightning_msda.mixture import Mixture
from lightning_msda.ops import (
    along,
    box_mask,
    box_share,
    fitted_boxes,
    mixed_dims,
    paste_resized,
    resized_source,
    select,
    take_source,
    to_device,
    weight_dtype,
)
from lightning_msda.randomness import Step, sample_partners, sample_uniform

__all__ = ["ResizeMix", "resizemix"]


def resizemix(
    x: Tensor,
    *,
    side: tuple[float, float] = (0.1, 0.8),
    dims: Sequence[int] | None = None,
    per_sample: bool = False,
    partner: Tensor | None = None,
    generator: Generator | None = None,
) -> Mixture:
    """Paste the whole partner, resized to a patch, into every sample.

    The side of the patch is ``tau ~ U(side)`` of each mixed size, rounded down, one tau for the batch; the
    resizing is nearest-neighbour. The centre of the patch is uniform for each sample, and a patch that
    would stick out is shifted inside. The label's lam is the share outside of the patch.

    Args:
        x: Inputs of any dtype, shape ``(N, C, *spatial)``, or another with ``dims``.
        side: Smallest and largest ratio of the patch's side, in [0, 1].
        dims: Dimensions that are resized; None: all after the channel.
        per_sample: Whether to draw the ratio for each sample too.
        partner: Partner of each sample, int64 on the CPU, shape ``(N,)``; None: a random permutation.
        generator: Source of randomness, on the CPU; None: the global one.

    Returns:
        The mixed inputs, of the shape, dtype and device of ``x``, with partners, weights and mask.

    Raises:
        ValueError: If ``x`` has no such dimensions, or ``side`` is out of range.

    Example:
        >>> import torch
        >>> x = torch.zeros(4, 3, 32, 32)
        >>> mix = resizemix(x, side=(0.5, 0.5))
        >>> mix.lam
        tensor([0.7500, 0.7500, 0.7500, 0.7500])
    """
    _check_side(side)
    dims = mixed_dims(x, dims)
    spatial = [x.size(dim) for dim in dims]
    if partner is None:
        partner = sample_partners(len(x), generator)
    ratio = sample_uniform(*side, len(x) if per_sample else 1, generator)
    sides = (ratio[:, None] * torch.tensor(spatial)).long()
    boxes = fitted_boxes(len(x), sides, spatial, generator)
    kept = box_share(boxes[: len(sides)], spatial).to(weight_dtype(x))
    partner, kept, boxes, sides_there = to_device(x.device, partner, kept, boxes, sides)
    mask = along(box_mask(boxes, spatial), dims, x.dim())
    source = resized_source(boxes[..., 0], sides_there, spatial)
    if per_sample:
        mixed = select(x, take_source(x, source, dims, partner), mask)
    else:
        mixed = paste_resized(x, partner, boxes[..., 0], sides[0].tolist(), dims)
    return Mixture.of_pairs(mixed, partner, kept, mask=mask, dims=dims, source=source)


class ResizeMix(MSDA):
    """Pastes its partner, resized to a patch, into every sample (Qin et al., arXiv:2012.11101).

    Args:
        side: Smallest and largest ratio of the patch's side to the image's, in [0, 1].
        common: What every method takes, see `CommonArgs`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> callback = ResizeMix()  # Trainer(callbacks=[callback])
    """

    def __init__(self, side: tuple[float, float] = (0.1, 0.8), **common: Unpack[CommonArgs]) -> None:
        super().__init__(**common)
        _check_side(side)
        self.side = side

    @override
    def mix(self, x: Tensor, step: Step) -> Mixture:
        return resizemix(
            x,
            side=self.side,
            dims=self.dims,
            per_sample=self.per_sample,
            partner=step.partners(len(x)),
            generator=step.generator(),
        )


def _check_side(side: tuple[float, float]) -> None:
    if len(side) != 2 or not 0 <= side[0] <= side[1] <= 1:
        raise ValueError(f"side={side} is out of range: it must be two ratios in [0, 1], the smaller first.")
