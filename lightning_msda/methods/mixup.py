"""MixUp: interpolate samples (Zhang et al., ICLR 2018, arXiv:1710.09412)."""

from __future__ import annotations

from torch import Generator, Tensor
from typing_extensions import Unpack, override

from lightning_msda.callback import MSDA, CommonArgs
from lightning_msda.mixture import Mixture
from lightning_msda.ops import check_interpolable, interpolate, to_device, weight_dtype
from lightning_msda.randomness import Step, sample_beta, sample_partners
from lightning_msda.schedule import Schedule, check_positive, value_at

__all__ = ["MixUp", "mixup"]


def mixup(
    x: Tensor,
    *,
    alpha: float = 1.0,
    per_sample: bool = False,
    partner: Tensor | None = None,
    generator: Generator | None = None,
) -> Mixture:
    """Interpolate every sample with a partner: ``lam * x + (1 - lam) * x[partner]``.

    ``lam ~ Beta(alpha, alpha)``, one for the batch as in the paper, or one for each sample.

    Args:
        x: Inputs, floating point, shape ``(N, ...)``.
        alpha: Concentration of the Beta law, above 0; 1 is uniform, small values mix little.
        per_sample: Whether to draw lam for each sample.
        partner: Partner of each sample, int64 on the CPU, shape ``(N,)``; None: a random permutation.
        generator: Source of randomness, on the CPU; None: the global one.

    Returns:
        The mixed inputs, of the shape, dtype and device of ``x``, with partners and weights.

    Raises:
        ValueError: If ``x`` is not floating point, or ``alpha`` out of range.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> mix = mixup(x, partner=torch.tensor([1, 0]), generator=torch.Generator().manual_seed(0))
        >>> bool(torch.isclose(mix.inputs[1, 0], mix.lam[1]))
        True
    """
    check_positive("alpha", alpha)
    check_interpolable(x, "MixUp")
    if partner is None:
        partner = sample_partners(len(x), generator)
    lam = sample_beta(alpha, len(x) if per_sample else 1, generator).to(weight_dtype(x))
    partner, lam = to_device(x.device, partner, lam)
    return Mixture.of_pairs(interpolate(x, partner, lam), partner, lam)


class MixUp(MSDA):
    """Interpolates every sample with a partner (Zhang et al., arXiv:1710.09412).

    Args:
        alpha: Concentration of the ``Beta(alpha, alpha)`` law of lam, above 0; or values by the epoch that
            they begin with, ``{0: 1.0, 100: 0.2}``.
        common: What every method takes, see `CommonArgs`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> callback = MixUp(alpha=0.2, stop_epoch=-10)  # Trainer(callbacks=[callback])
    """

    def __init__(self, alpha: Schedule = 1.0, **common: Unpack[CommonArgs]) -> None:
        super().__init__(**common)
        check_positive("alpha", alpha)
        self._leave_out("dims", because="interpolates whole samples")
        self.alpha = alpha

    @override
    def mix(self, x: Tensor, step: Step) -> Mixture:
        return mixup(
            x,
            alpha=value_at(self.alpha, step.epoch),
            per_sample=self.per_sample,
            partner=step.partners(len(x)),
            generator=step.generator(),
        )
