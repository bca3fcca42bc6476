"""SaliencyMix: paste the most salient box of another sample (Uddin et al., ICLR 2021, arXiv:2006.01791)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Generator, Tensor
from typing_extensions import Unpack, override

from lightning_msda.callback import MSDA, CommonArgs
from lightning_msda.mixture import Mixture
from lightning_msda.ops import (
    along,
    box_mask,
    box_sides,
    boxes_around,
    mixed_dims,
    salient_peaks,
    select,
    take,
    to_device,
    weight_dtype,
)
from lightning_msda.randomness import Step, sample_beta, sample_partners
from lightning_msda.schedule import Schedule, check_positive, value_at

__all__ = ["SaliencyMix", "saliencymix"]


def saliencymix(
    x: Tensor,
    *,
    alpha: float = 1.0,
    dims: Sequence[int] | None = None,
    per_sample: bool = False,
    partner: Tensor | None = None,
    generator: Generator | None = None,
) -> Mixture:
    """Paste a box around its partner's most salient position into every sample, in the same place.

    With ``lam ~ Beta(alpha, alpha)`` the sides of the box are those of `cutmix`; its centre is the peak of
    the partner's spectral residual, and what lies outside is cut off. The label's lam is the share that was
    kept: as every partner has a centre of its own, it is one for each sample in any case.

    Args:
        x: Inputs of any dtype, shape ``(N, C, *spatial)`` with one to three spatial sizes, or another with
            ``dims``.
        alpha: Concentration of the Beta law, above 0.
        dims: Dimensions that the box lies in, one to three; None: all after the channel.
        per_sample: Whether to draw the length of the sides for each sample instead of once for the batch.
        partner: Partner of each sample, int64 on the CPU, shape ``(N,)``; None: a random permutation.
        generator: Source of randomness, on the CPU; None: the global one.

    Returns:
        The mixed inputs, of the shape, dtype and device of ``x``, with partners, weights and mask.

    Raises:
        ValueError: If ``x`` has no such dimensions, or ``alpha`` is out of range.

    Example:
        >>> import torch
        >>> x = torch.rand(4, 3, 32, 32)
        >>> mix = saliencymix(x)
        >>> bool(mix.lam[0] == mix.mask[0].float().mean())
        True
    """
    check_positive("alpha", alpha)
    dims = mixed_dims(x, dims)
    if len(dims) > 3:
        raise ValueError(
            f"SaliencyMix looks for a peak in one to three dimensions, not in {len(dims)}: name them by dims."
        )
    spatial = [x.size(dim) for dim in dims]
    if partner is None:
        partner = sample_partners(len(x), generator)
    lam = sample_beta(alpha, len(x) if per_sample else 1, generator)
    partner, sides = to_device(x.device, partner, box_sides(lam, spatial))
    centers = salient_peaks(x, dims).index_select(0, partner)
    mask = box_mask(boxes_around(centers, sides, spatial), spatial)
    kept = mask.to(weight_dtype(x)).flatten(1).mean(1)
    mask = along(mask, dims, x.dim())
    mixed = select(x, take(x, partner), mask, in_place=True)
    return Mixture.of_pairs(mixed, partner, kept, mask=mask, dims=dims)


class SaliencyMix(MSDA):
    """Pastes the most salient box of its partner into every sample (Uddin et al., arXiv:2006.01791).

    Every sample has a box and a lam of its own; ``per_sample`` draws the length of the sides for each of them
    too, instead of once for the batch.

    Args:
        alpha: Concentration of the ``Beta(alpha, alpha)`` law of the share that is kept, above 0; or values
            by the epoch that they begin with.
        common: What every method takes, see `CommonArgs`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> callback = SaliencyMix(prob=0.5)  # Trainer(callbacks=[callback])
    """

    reads_values: ClassVar[bool] = True

    def __init__(self, alpha: Schedule = 1.0, **common: Unpack[CommonArgs]) -> None:
        super().__init__(**common)
        check_positive("alpha", alpha)
        self.alpha = alpha

    @property
    @override
    def lam_by_sample(self) -> bool:
        return True

    @override
    def mix(self, x: Tensor, step: Step) -> Mixture:
        return saliencymix(
            x,
            alpha=value_at(self.alpha, step.epoch),
            dims=self.dims,
            per_sample=self.per_sample,
            partner=step.partners(len(x)),
            generator=step.generator(),
        )
