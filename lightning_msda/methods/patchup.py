"""PatchUp: mix blocks of hidden features (Faramarzi et al., AAAI 2022, arXiv:2006.07794)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from typing_extensions import Unpack, override

from lightning_msda.callback import MSDA, CommonArgs
from lightning_msda.drawn_layer import AtDrawnLayer
from lightning_msda.methods.cutmix import CutMix
from lightning_msda.mixture import Mixture
from lightning_msda.ops import mixed_dims, select, take, to_device, weight_dtype
from lightning_msda.randomness import Step, sample_beta, sample_partners, sample_uniform
from lightning_msda.schedule import Schedule, check_positive, value_at

__all__ = ["PatchUp", "patchup"]

Mode = Literal["soft", "hard"]
_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def patchup(
    x: Tensor,
    *,
    mode: Mode = "soft",
    gamma: float = 0.75,
    block_size: int = 7,
    alpha: float = 2.0,
    per_sample: bool = False,
    partner: Tensor | None = None,
    generator: Generator | None = None,
) -> Mixture:
    """Mix blocks of every channel with a partner, and leave the rest.

    Seeds fall on each position of each channel with the chance that lets blocks around them cover about
    ``gamma`` of it (as in DropBlock). Inside of the blocks ``hard`` takes the partner's features; ``soft``
    interpolates, ``lam * x + (1 - lam) * x[partner]`` with ``lam ~ Beta(alpha, alpha)``. With the share ``u``
    that no block covers, the label's lam is ``u`` (hard) or ``u + (1 - u) * lam`` (soft): the mask's mean.

    Args:
        x: Features, floating point (or any dtype, if hard), shape ``(N, C, *spatial)`` with one to three
            spatial dimensions.
        mode: ``"soft"`` or ``"hard"``.
        gamma: Share that blocks are to cover, in (0, 1].
        block_size: Side of a block, odd, from 1; smaller features have smaller blocks.
        alpha: Concentration of the Beta law, above 0.
        per_sample: Whether to draw blocks and lam for each sample.
        partner: Partner of each sample, int64, shape ``(N,)``; None: a random permutation.
        generator: Source of randomness, on the CPU; None: the global one.

    Returns:
        The mixed features, of the shape, dtype and device of ``x``, with partners, weights and mask.

    Raises:
        ValueError: If an argument is out of range, or the features have no spatial dimensions.

    Example:
        >>> import torch
        >>> mix = patchup(torch.zeros(4, 8, 16, 16), generator=torch.Generator().manual_seed(0))
        >>> tuple(mix.mask.shape)
        (1, 8, 16, 16)
    """
    _check(mode, gamma, block_size)
    check_positive("alpha", alpha)
    spatial = [x.size(dim) for dim in mixed_dims(x, None)]
    if len(spatial) > 3:
        raise ValueError(
            f"PatchUp mixes features (N, C, *spatial) of one to three dimensions, not {tuple(x.shape)}."
        )
    if mode == "soft" and not x.is_floating_point():
        raise ValueError(
            f"PatchUp(mode='soft') interpolates, and the inputs are {x.dtype} of shape {tuple(x.shape)}. Use"
            " mode='hard', or convert them to floating point."
        )
    rows = len(x) if per_sample else 1
    if partner is None:
        partner = sample_partners(len(x), generator)
    lam = sample_beta(alpha, rows, generator) if mode == "soft" else torch.zeros(rows, dtype=torch.float64)
    size = min(block_size, *spatial)
    size -= 1 - size % 2
    chance = gamma
    for side in spatial:
        chance *= side / (size * (side - size + 1))
    drawn = sample_uniform(0, 1, rows * x[0].numel(), generator).view(rows, *x.shape[1:])
    seeds = (drawn < chance).float()
    covered = _MAX_POOL[len(spatial)](seeds, size, stride=1, padding=size // 2).bool()
    mask = ~covered if mode == "hard" else torch.where(covered, lam.view(-1, *[1] * (x.dim() - 1)), 1.0)
    kept = mask.double().flatten(1).mean(1).to(weight_dtype(x))
    mask = mask if mode == "hard" else mask.to(weight_dtype(x))
    partner, kept, mask = to_device(x.device, partner, kept, mask)
    mixed = select(x, take(x, partner), mask, in_place=True)
    return Mixture.of_pairs(mixed, partner, kept, mask=mask, dims=tuple(range(1, x.dim())))


class PatchUp(AtDrawnLayer):
    """Mixes blocks of hidden features, at another layer for every batch (Faramarzi et al., arXiv:2006.07794).

    At the input it is `CutMix` with alpha 1. The published loss has two terms whose sum is twice this one.

    Args:
        layers: Names of the layers whose outputs may be mixed, each as likely; ``input`` stands for the
            inputs. Default: the input and the first two stages that are found.
        mode: ``soft`` interpolates inside of the blocks, ``hard`` takes the partner's features.
        gamma: Share that blocks are to cover, in (0, 1]; the paper's recipes have 0.75 (soft), 0.5 (hard).
        block_size: Side of a block, odd.
        alpha: Concentration of the ``Beta(alpha, alpha)`` law of lam, above 0; or values by the epoch that
            they begin with.
        common: What every method takes, see `CommonArgs`, but for ``at`` and ``dims``.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> callback = PatchUp(["input", "backbone.layer1"], mode="hard", gamma=0.5)
    """

    def __init__(
        self,
        layers: Sequence[str] | None = None,
        mode: Mode = "soft",
        gamma: float = 0.75,
        block_size: int = 7,
        alpha: Schedule = 2.0,
        **common: Unpack[CommonArgs],
    ) -> None:
        _check(mode, gamma, block_size)
        check_positive("alpha", alpha)
        self.mode = mode
        self.gamma = gamma
        self.block_size = block_size
        self.alpha = alpha
        super().__init__(layers, **common)
        self._leave_out("dims", because="lays its blocks in all dimensions")

    @override
    def at_input(self) -> MSDA:
        return CutMix(alpha=1.0, per_sample=self.per_sample, pair=self.pair)

    @override
    def mix(self, x: Tensor, step: Step) -> Mixture:
        return patchup(
            x,
            mode=self.mode,
            gamma=self.gamma,
            block_size=self.block_size,
            alpha=value_at(self.alpha, step.epoch),
            per_sample=self.per_sample,
            partner=step.partners(len(x)),
            generator=step.generator(),
        )


def _check(mode: str, gamma: float, block_size: int) -> None:
    if mode not in get_args(Mode):
        raise ValueError(f"mode={mode!r} is unknown: it must be 'soft' or 'hard'.")
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma={gamma} is out of range: it must be above 0 and at most 1.")
    if not isinstance(block_size, int) or block_size < 1 or block_size % 2 == 0:
        raise ValueError(f"block_size={block_size} must be an odd whole number from 1.")
