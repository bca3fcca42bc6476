"""Between-class learning: BC and BC+ (Tokozume et al., 2018, arXiv:1711.10282 and arXiv:1711.10284)."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from typing_extensions import Unpack, override

from lightning_msda.callback import MSDA, CommonArgs
from lightning_msda.mixture import Mixture
from lightning_msda.ops import along, check_interpolable, interpolate, to_device, weight_dtype
from lightning_msda.randomness import Step, sample_partners, sample_uniform

__all__ = ["BCMix", "bcmix"]

_FLAT = 1e-6  # a standard deviation below this share of the mean is rounding


def bcmix(
    x: Tensor,
    *,
    plus: bool = False,
    per_sample: bool = True,
    partner: Tensor | None = None,
    generator: Generator | None = None,
) -> Mixture:
    """Mix every sample with a partner by a ratio that is uniform, as sounds are or as waves are.

    BC is ``r x + (1 - r) x2`` with ``r ~ U(0, 1)``. BC+ takes each sample's mean off and balances their
    standard deviations ``s``, so that r is the ratio that is perceived: ``(p x + (1 - p) x2) / sqrt(p^2 +
    (1 - p)^2)`` with ``p = 1 / (1 + s / s2 * (1 - r) / r)``; where a sample is constant there is nothing to
    balance, and ``p = r``. The label's lam is r.

    Args:
        x: Inputs, floating point, shape ``(N, ...)``.
        plus: Whether to mix by BC+.
        per_sample: Whether to draw r for each sample, as in the paper, or one for the batch.
        partner: Partner of each sample, int64 on the CPU, shape ``(N,)``, in the paper of another class;
            None: a random permutation.
        generator: Source of randomness, on the CPU; None: the global one.

    Returns:
        The mixed inputs, of the shape, dtype and device of ``x``, with partners and weights.

    Raises:
        ValueError: If ``x`` is not floating point.

    Example:
        >>> import torch
        >>> x = torch.randn(4, 3, 8, 8)
        >>> mix = bcmix(x, plus=True)
        >>> bool(mix.inputs.mean().abs() < 1e-6)
        True
    """
    check_interpolable(x, "BCMix")
    if partner is None:
        partner = sample_partners(len(x), generator)
    r = sample_uniform(0, 1, len(x) if per_sample else 1, generator).to(weight_dtype(x))
    partner, r = to_device(x.device, partner, r)
    mixed = _balanced(x, partner, r) if plus else interpolate(x, partner, r)
    return Mixture.of_pairs(mixed, partner, r)


class BCMix(MSDA):
    """Mixes between classes, BC and BC+ (Tokozume et al., arXiv:1711.10284; sounds: arXiv:1711.10282).

    Args:
        plus: Whether to mix by BC+, which takes the means off and balances the standard deviations.
        common: What every method takes, see `CommonArgs`, but for ``dims``; by default ``per_sample`` is
            true and ``pair`` is ``other_class``.

    Raises:
        ValueError: If an argument is out of range, or has no meaning here.

    Example:
        >>> callback = BCMix(plus=True)  # Trainer(callbacks=[callback])
    """

    def __init__(self, plus: bool = False, **common: Unpack[CommonArgs]) -> None:
        common.setdefault("per_sample", True)
        common.setdefault("pair", "other_class")
        super().__init__(**common)
        self._leave_out("dims", because="interpolates whole samples")
        self.plus = plus

    @override
    def mix(self, x: Tensor, step: Step) -> Mixture:
        return bcmix(
            x,
            plus=self.plus,
            per_sample=self.per_sample,
            partner=step.partners(len(x)),
            generator=step.generator(),
        )


def _balanced(x: Tensor, partner: Tensor, r: Tensor) -> Tensor:
    """Return the mix of BC+.

    Args:
        x: Shape ``(N, ...)``.
        partner: Shape ``(N,)``.
        r: Shape ``(R,)``.
    """
    wide = x.to(r.dtype).contiguous()
    mean = wide.view(len(x), -1).mean(1)
    centred = wide - along(mean, (), x.dim())
    spread = centred.view(len(x), -1).square().mean(1).sqrt()
    spread = spread.masked_fill(spread <= _FLAT * mean.abs(), 0)
    other = spread.index_select(0, partner)
    balanced = (spread > 0) & (other > 0)
    p = r * other / (r * other + (1 - r) * spread).masked_fill(~balanced, 1)
    p = torch.where(balanced, p, r)
    norm = (p.square() + (1 - p).square()).sqrt()
    own, shown = (along(part / norm, (), x.dim()) for part in (p, 1 - p))
    return (own * centred + shown * centred.index_select(0, partner)).to(x.dtype)
