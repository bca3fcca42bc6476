"""CutMix: paste a box of another sample (Yun et al., ICCV 2019, arXiv:1905.04899)."""

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
    box_sides,
    boxed,
    center_boxes,
    mixed_dims,
    paste_box,
    select,
    take,
    to_device,
    weight_dtype,
)
from lightning_msda.randomness import Step, sample_beta, sample_partners
from lightning_msda.schedule import Schedule, check_positive, value_at

__all__ = ["CutMix", "cutmix"]


def cutmix(
    x: Tensor,
    *,
    alpha: float = 1.0,
    dims: Sequence[int] | None = None,
    per_sample: bool = False,
    partner: Tensor | None = None,
    generator: Generator | None = None,
) -> Mixture:
    """Paste the same box of its partner into every sample.

    With ``lam ~ Beta(alpha, alpha)`` the sides of the box are ``(1 - lam)^(1/d)`` of the ``d`` mixed sizes,
    rounded down to even numbers; its centre is uniform, and what lies outside is cut off. The label's lam
    is the share that was kept, not the one that was drawn: its mean is 0.70 at 32x32 and alpha 1.

    Args:
        x: Inputs of any dtype, shape ``(N, C, *spatial)``, or another with ``dims``.
        alpha: Concentration of the Beta law, above 0.
        dims: Dimensions that the box lies in; None: all after the channel.
        per_sample: Whether to draw a box for each sample instead of one for the batch.
        partner: Partner of each sample, int64 on the CPU, shape ``(N,)``; None: a random permutation.
        generator: Source of randomness, on the CPU; None: the global one.

    Returns:
        The mixed inputs, of the shape, dtype and device of ``x``, with partners, weights and mask.

    Raises:
        ValueError: If ``x`` has no such dimensions, or ``alpha`` is out of range.

    Example:
        >>> import torch
        >>> x = torch.zeros(4, 3, 32, 32)
        >>> mix = cutmix(x, generator=torch.Generator().manual_seed(0))
        >>> bool(mix.lam[0] == mix.mask.float().mean())
        True
    """
    check_positive("alpha", alpha)
    dims = mixed_dims(x, dims)
    spatial = [x.size(dim) for dim in dims]
    if partner is None:
        partner = sample_partners(len(x), generator)
    lam = sample_beta(alpha, len(x) if per_sample else 1, generator)
    boxes = center_boxes(box_sides(lam, spatial), spatial, generator)
    kept = box_share(boxes, spatial).to(weight_dtype(x))
    partner, kept, boxes_there = to_device(x.device, partner, kept, boxes)
    if per_sample:
        mask = along(box_mask(boxes_there, spatial), dims, x.dim())
        mixed = select(x, take(x, partner), mask, in_place=True)
    else:
        mask = along(x.new_ones(1, *spatial, dtype=torch.bool), dims, x.dim())
        boxed(mask, boxes[0], dims).fill_(False)
        mixed = paste_box(x, partner, boxes[0], dims)
    return Mixture.of_pairs(mixed, partner, kept, mask=mask, dims=dims)


class CutMix(MSDA):
    """Pastes a box of its partner into every sample (Yun et al., arXiv:1905.04899).

    Args:
        alpha: Concentration of the ``Beta(alpha, alpha)`` law of the share that is kept, above 0; or values
            by the epoch that they begin with.
        common: What every method takes, see `CommonArgs`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> callback = CutMix(prob=0.5)  # Trainer(callbacks=[callback])
    """

    def __init__(self, alpha: Schedule = 1.0, **common: Unpack[CommonArgs]) -> None:
        super().__init__(**common)
        check_positive("alpha", alpha)
        self.alpha = alpha

    @override
    def mix(self, x: Tensor, step: Step) -> Mixture:
        return cutmix(
            x,
            alpha=value_at(self.alpha, step.epoch),
            dims=self.dims,
            per_sample=self.per_sample,
            partner=step.partners(len(x)),
            generator=step.generator(),
        )
