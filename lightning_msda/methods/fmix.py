"""FMix: masks of any shape from low-frequency images (Harris et al., 2020, arXiv:2002.12047)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Generator, Tensor
from typing_extensions import Unpack, override

from lightning_msda.callback import MSDA, CommonArgs
from lightning_msda.mixture import Mixture
from lightning_msda.ops import (
    along,
    low_frequency_images,
    mixed_dims,
    select,
    take,
    to_device,
    top_mask,
    weight_dtype,
)
from lightning_msda.randomness import Step, sample_beta, sample_partners, sample_uniform
from lightning_msda.schedule import Schedule, check_positive, check_schedule, value_at

__all__ = ["FMix", "Spectrum", "fmix", "fmix_mask"]

Spectrum = Literal["paper", "official"]


def fmix_mask(
    lam: float | Tensor,
    shape: Sequence[int],
    *,
    decay_power: float = 3.0,
    max_soft: float = 0.0,
    spectrum: Spectrum = "paper",
    device: torch.device | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Draw masks whose mean is lam, up to one element, from images of low frequency.

    The ``lam * n`` largest of the ``n`` elements of an image are 1 (equation 5), up or down with equal
    chance where that is no whole number.

    Args:
        lam: Mean of each mask, in [0, 1], shape ``(R,)`` on the CPU, or a number for one mask.
        shape: The spatial sizes, one to three.
        decay_power: The power delta by which amplitudes fall with the frequency, above 0.
        max_soft: Half the share of the elements in the soft edge between 1 and 0, in [0, 0.5]; never
            more than ``lam`` or ``1 - lam``.
        spectrum: ``"paper"`` for equations 3 and 4, ``"official"`` for the law of the authors' code, which
            has one frequency along the last dimension.
        device: Where the masks are computed; the draws are on the CPU.
        generator: Source of randomness, on the CPU; None: the global one.

    Returns:
        Masks, bool, or float32 in [0, 1] with a soft edge, shape ``(R, *shape)``; ``shape`` for a number.

    Example:
        >>> import torch
        >>> fmix_mask(0.5, (8, 8), generator=torch.Generator().manual_seed(0)).sum()
        tensor(32)
    """
    check_positive("decay_power", decay_power)
    _check_shape(max_soft, spectrum)
    lams = lam.double() if isinstance(lam, Tensor) else torch.tensor([lam], dtype=torch.float64)
    if not bool(((lams >= 0) & (lams <= 1)).all()):
        raise ValueError(f"lam={lam} is out of range: it must be a mean from 0 to 1.")
    images = low_frequency_images(
        len(lams),
        shape,
        decay_power,
        official=spectrum == "official",
        device=device,
        generator=generator,
    )
    n = images[0].numel()
    up = sample_uniform(0, 1, len(lams), generator) < 0.5
    counts = torch.where(up, (lams * n).ceil(), (lams * n).floor()).long()
    soft = (n * lams.minimum(1 - lams).clamp(max=max_soft)).long() if max_soft > 0 else None
    masks = top_mask(images, counts, soft)
    return masks if isinstance(lam, Tensor) else masks[0]


def fmix(
    x: Tensor,
    *,
    alpha: float = 1.0,
    decay_power: float = 3.0,
    max_soft: float = 0.0,
    reformulate: bool = False,
    spectrum: Spectrum = "paper",
    dims: Sequence[int] | None = None,
    per_sample: bool = False,
    partner: Tensor | None = None,
    generator: Generator | None = None,
) -> Mixture:
    """Fill every sample with its partner where a mask of any shape is 0.

    ``lam ~ Beta(alpha, alpha)``, and the mask is the top ``lam`` of an image of low frequency (`fmix_mask`),
    one for the batch as in the paper. The label's lam is the mean of the mask.

    Args:
        x: Inputs of any dtype (floating point with ``max_soft``), shape ``(N, C, *spatial)`` with one to
            three spatial sizes, or another with ``dims``.
        alpha: Concentration of the Beta law, above 0.
        decay_power: The power delta by which amplitudes fall with the frequency, above 0.
        max_soft: Half the share of the elements in a soft edge, in [0, 0.5].
        reformulate: Draw ``lam ~ Beta(alpha + 1, alpha)`` and keep the own label with weight 1.
        spectrum: ``"paper"`` or ``"official"``, as in `fmix_mask`.
        dims: Dimensions that the mask runs over, one to three; None: all after the channel.
        per_sample: Whether to draw a mask for each sample instead of one for the batch.
        partner: Partner of each sample, int64 on the CPU, shape ``(N,)``; None: a random permutation.
        generator: Source of randomness, on the CPU; None: the global one.

    Returns:
        The mixed inputs, of the shape, dtype and device of ``x``, with partners, weights and mask.

    Raises:
        ValueError: If ``x`` has no such dimensions, is of integers and ``max_soft`` is not 0, or an argument
            is out of range.

    Example:
        >>> import torch
        >>> x = torch.zeros(4, 3, 32, 32)
        >>> mix = fmix(x, generator=torch.Generator().manual_seed(0))
        >>> mix.mask.shape, bool(mix.lam[0] == mix.mask.float().mean())
        (torch.Size([1, 1, 32, 32]), True)
    """
    check_positive("alpha", alpha)
    dims = mixed_dims(x, dims)
    if len(dims) > 3:
        raise ValueError(
            f"FMix makes masks of one to three dimensions, not of {len(dims)}: name them by dims."
        )
    if max_soft > 0 and not x.is_floating_point():
        raise ValueError(
            f"max_soft={max_soft} interpolates at the edge, which {x.dtype} cannot. Set max_soft=0."
        )
    if partner is None:
        partner = sample_partners(len(x), generator)
    lam = sample_beta(alpha + reformulate, len(x) if per_sample else 1, generator, beta=alpha)
    mask = fmix_mask(
        lam,
        [x.size(dim) for dim in dims],
        decay_power=decay_power,
        max_soft=max_soft,
        spectrum=spectrum,
        device=x.device,
        generator=generator,
    )
    (partner,) = to_device(x.device, partner)
    kept = mask.to(weight_dtype(x)).flatten(1).mean(1)
    mask = along(mask, dims, x.dim())
    mixed = select(x, take(x, partner), mask, in_place=True)
    return Mixture.of_pairs(
        mixed, partner, torch.ones_like(kept) if reformulate else kept, mask=mask, dims=dims
    )


class FMix(MSDA):
    """Fills every sample with its partner where a mask of any shape is 0 (Harris et al., arXiv:2002.12047).

    Args:
        alpha: Concentration of the ``Beta(alpha, alpha)`` law of the mask's mean, above 0; or values by the
            epoch that they begin with.
        decay_power: How fast amplitudes fall with the frequency, above 0: large values make few and large
            shapes; or values by epoch.
        max_soft: Half the share of the elements in a soft edge of the mask, in [0, 0.5].
        reformulate: Whether to keep the own label and draw the mean from ``Beta(alpha + 1, alpha)``.
        spectrum: ``paper`` for the equations, ``official`` for the law of the authors' code.
        common: What every method takes, see `CommonArgs`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> callback = FMix(decay_power=3.0)  # Trainer(callbacks=[callback])
    """

    def __init__(
        self,
        alpha: Schedule = 1.0,
        decay_power: Schedule = 3.0,
        max_soft: float = 0.0,
        reformulate: bool = False,
        spectrum: Spectrum = "paper",
        **common: Unpack[CommonArgs],
    ) -> None:
        super().__init__(**common)
        check_positive("alpha", alpha)
        check_positive("decay_power", decay_power)
        _check_shape(max_soft, spectrum)
        self.alpha = alpha
        self.decay_power = decay_power
        self.max_soft = max_soft
        self.reformulate = reformulate
        self.spectrum = spectrum

    @override
    def mix(self, x: Tensor, step: Step) -> Mixture:
        return fmix(
            x,
            alpha=value_at(self.alpha, step.epoch),
            decay_power=value_at(self.decay_power, step.epoch),
            max_soft=self.max_soft,
            reformulate=self.reformulate,
            spectrum=self.spectrum,
            dims=self.dims,
            per_sample=self.per_sample,
            partner=step.partners(len(x)),
            generator=step.generator(),
        )


def _check_shape(max_soft: float, spectrum: Spectrum) -> None:
    check_schedule("max_soft", max_soft, lambda share: 0 <= share <= 0.5, "a share from 0 to 0.5")
    if spectrum not in ("paper", "official"):
        raise ValueError(f"spectrum={spectrum!r} is unknown: it must be 'paper' or 'official'.")
