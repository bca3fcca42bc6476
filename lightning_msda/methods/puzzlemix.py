"""Puzzle Mix: fit the salient parts of two images together (Kim et al., ICML 2020, arXiv:2009.06962)."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from typing_extensions import Unpack, override

from lightning_msda.by_saliency import (
    BySaliency,
    check_blocks,
    check_images,
    check_saliency,
    saliency_at,
    sample_block_num,
)
from lightning_msda.callback import CommonArgs
from lightning_msda.mixture import Mixture
from lightning_msda.ops import along, select, to_device, weight_dtype
from lightning_msda.ops.blocks import block_shares, cell_means, owners, to_pixels
from lightning_msda.ops.labelling import label_grid
from lightning_msda.ops.transport import transport_blocks
from lightning_msda.randomness import Step, sample_beta, sample_integers, sample_partners, sample_uniform
from lightning_msda.saliency import resized
from lightning_msda.schedule import Schedule, check_positive, check_share, check_weight, value_at

__all__ = ["PuzzleMix", "adversarial_noise", "puzzle_energy", "puzzlemix"]


def puzzlemix(
    x: Tensor,
    *,
    saliency: Tensor,
    alpha: float = 1.0,
    lam: float | None = None,
    labels: int = 3,
    beta: float = 1.2,
    gamma: float = 0.5,
    eta: float = 0.2,
    block_num: int | None = None,
    neigh_size: int = 4,
    transport: bool = True,
    t_eps: float = 0.8,
    t_size: int | None = None,
    noise: tuple[Tensor | None, Tensor | None] = (None, None),
    partner: Tensor | None = None,
    generator: Generator | None = None,
) -> Mixture:
    """Show of two images what is salient in each, in blocks.

    Each block has one of ``labels`` own shares from 0 to 1. They minimise an energy (``puzzle_energy``): the
    saliency that is lost, differences between neighbours in their shares and across their edges, and a
    binomial prior with ``lam ~ Beta(alpha, alpha)``. With ``transport`` blocks that would be hidden move to
    where their image is seen. The label's lam is the mean of each sample's mask; moving does not change it.

    Masks belong to samples, lam and the number of blocks to the batch. Where blocks move, label maps cannot
    follow the mask: the mixture then names no ``dims`` for it, and what would have to follow is refused.

    Args:
        x: Images, shape ``(N, C, H, W)``; floating point, or any dtype with two labels. Edges are compared
            with each channel stretched to [0, 1] over the batch, so that it may be normalised or not.
        saliency: How much each pixel matters, at least 0, floating point, shape ``(N, H, W)``.
        alpha: Concentration of the Beta law, above 0.
        lam: The lam of the prior, in [0, 1]; None: drawn.
        labels: How many shares a block can have, 2, 3 or 4.
        beta: Weight of differences between the shares of neighbours, at least 0.
        gamma: Weight of differences across their edges, as a part of ``beta``, at least 0. Above 1 it can
            pay for neighbours to differ.
        eta: Weight of the prior, at least 0.
        block_num: Number of blocks in each dimension, up to the smaller size; they differ by a pixel where
            it does not divide the size. None: 2, 4, 8 or 16 with equal chance, or the smaller size.
        neigh_size: Side of the cells that edges are compared in, in pixels, above 0; never more than a block.
        transport: Whether blocks move.
        t_eps: Weight of the squared distance that a block moves, as a part of the image, at least 0.
        t_size: Side of the blocks that move, in pixels, above 0; never more than a block. None: a block's.
        noise: What is added to each image where it is the own one, and where it is a partner, shape
            ``(N, C, H, W)`` or None. The sums keep to the range of their channel over the batch.
        partner: Partner of each sample, int64 on the CPU, shape ``(N,)``; None: a random permutation.
        generator: Source of randomness, on the CPU; None: the global one.

    Returns:
        The mixed inputs, of the shape, dtype and device of ``x``, with partners, weights by sample, and
        masks of shape ``(N, 1, H, W)``, bool with two labels.

    Raises:
        ValueError: If ``x`` or ``saliency`` has another shape or dtype, or an argument is out of range.

    Example:
        >>> import torch
        >>> x, saliency = torch.rand(4, 3, 32, 32), torch.rand(4, 32, 32)
        >>> mix = puzzlemix(x, saliency=saliency, generator=torch.Generator().manual_seed(0))
        >>> mix.mask.shape, torch.equal(mix.lam, mix.mask.mean((1, 2, 3)))
        (torch.Size([4, 1, 32, 32]), True)
    """
    _check(alpha, lam, labels, beta, gamma, eta, t_eps)
    check_images(x, "Puzzle Mix")
    _check_sizes(neigh_size=neigh_size, t_size=1 if t_size is None else t_size)
    check_blocks(block_num, x)
    if labels > 2 and not x.is_floating_point():
        raise ValueError(
            f"labels={labels} interpolates between images, which {x.dtype} cannot. Set labels=2."
        )
    check_saliency(saliency, x)
    n, _, height, width = x.shape
    if partner is None:
        partner = sample_partners(n, generator)
    drawn = sample_beta(alpha, 1, generator) if lam is None else torch.tensor([lam], dtype=torch.float64)
    if block_num is None:
        block_num = sample_block_num(x, generator)
    dtype = weight_dtype(x)
    share = torch.arange(labels, dtype=torch.float64)
    ways = torch.tensor([math.comb(labels - 1, i) for i in range(labels)])
    prior = -(ways * drawn**share * (1 - drawn) ** (labels - 1 - share) + 1e-8).log()
    partner, prior = to_device(x.device, partner, prior.to(dtype))

    saliency = saliency.detach().to(dtype)
    energy = puzzle_energy(x.detach(), saliency, partner, prior, block_num, beta, gamma, eta, neigh_size)
    chosen = label_grid(*energy)
    level = to_pixels(chosen, height, width)
    mask = level > 0 if labels == 2 else level.to(dtype) / (labels - 1)
    kept = (level.to(dtype) / (labels - 1)).mean((1, 2))
    mask = along(mask, (2, 3), 4)
    own, disturbed = (x if part is None else _within_range(x + part, x) for part in noise)
    shown = disturbed.index_select(0, partner)
    if transport:
        per = [max(1, size // block_num // t_size) if t_size else 1 for size in (height, width)]
        down, right = (block_num * times for times in per)
        chosen = chosen.repeat_interleave(per[0], 1).repeat_interleave(per[1], 2)
        worth = block_shares(saliency, down, right)
        blocks = transport_blocks(
            torch.cat([worth, worth.index_select(0, partner)]),
            torch.cat([chosen > 0, chosen < labels - 1]),
            t_eps,
        )
        own, shown = (
            _moved(part, to, down, right) for part, to in zip((own, shown), blocks.chunk(2), strict=True)
        )
    mixed = select(own, shown, mask)
    return Mixture.of_pairs(mixed, partner, kept, mask=mask, dims=() if transport else (2, 3))


class PuzzleMix(BySaliency):
    """Shows of two images what is salient in each, in blocks (Kim et al., arXiv:2009.06962).

    What is salient is the gradient of a loss that the module computes on the clean batch first:
    cross-entropy on the scores that its ``forward(x)`` returns, in evaluation mode, without a trace in the
    module. Where there is no module, as in a preview, it is the spectral residual of each image. Masks and
    lam are always by sample.

    Args:
        alpha: Concentration of the ``Beta(alpha, alpha)`` law of lam, above 0; or values by the epoch that
            they begin with.
        lam: The lam of the prior, in [0, 1], in the place of one that is drawn for each batch.
        labels: How many shares a block can have, 2, 3 or 4.
        beta: Weight of differences between the shares of neighbours.
        gamma: Weight of differences across their edges, as a part of ``beta``.
        eta: Weight of the prior.
        block_num: Blocks in each dimension; by default 2, 4, 8 or 16, drawn for each batch.
        neigh_size: Side of the cells that edges are compared in, in pixels.
        transport: Whether blocks that would be hidden move to where they are seen. Label maps cannot follow.
        t_eps: Weight of the squared distance that a block moves.
        t_size: Side of the blocks that move, in pixels, 4 in the CIFAR recipe; by default a whole block.
        saliency_stride: How much smaller the batch is made before its gradient is computed, which costs less.
        saliency_loss: Name of a method of the module that takes ``(x, y)`` and returns the loss whose
            gradient is computed instead.
        clean_lam: Weight of the module's loss on the batch as it came, in training mode, which is added to
            the mixture's; 1 on Tiny-ImageNet and ImageNet.
        adv_p: Chance that adversarial noise is added to the own images, and likewise to the partners; 0.1 on
            CIFAR, 0.15 on Tiny-ImageNet.
        adv_eps: The largest noise, in 255ths of the range that a channel has over the batch.
        common: What every method takes, see `CommonArgs`, but for ``at`` and ``dims``.

    Raises:
        ValueError: If an argument is out of range or has no meaning here.

    Example:
        >>> callback = PuzzleMix(t_size=4)  # Trainer(callbacks=[callback])
    """

    def __init__(
        self,
        alpha: Schedule = 1.0,
        lam: float | None = None,
        labels: int = 3,
        beta: float = 1.2,
        gamma: float = 0.5,
        eta: float = 0.2,
        block_num: int | None = None,
        neigh_size: int = 4,
        transport: bool = True,
        t_eps: float = 0.8,
        t_size: int | None = None,
        saliency_stride: int = 1,
        saliency_loss: str | None = None,
        clean_lam: float = 0.0,
        adv_p: float = 0.0,
        adv_eps: float = 10.0,
        **common: Unpack[CommonArgs],
    ) -> None:
        super().__init__(saliency_stride, saliency_loss, clean_lam, **common)
        check_positive("alpha", alpha)
        check_share("adv_p", adv_p)
        check_weight("adv_eps", adv_eps)
        _check(1.0, lam, labels, beta, gamma, eta, t_eps)
        self.alpha = alpha
        self.lam = lam
        self.labels = labels
        self.beta = beta
        self.gamma = gamma
        self.eta = eta
        self.block_num = block_num
        self.neigh_size = neigh_size
        self.transport = transport
        self.t_eps = t_eps
        self.t_size = t_size
        self.adv_p = adv_p
        self.adv_eps = adv_eps

    @override
    def look(
        self,
        step: Step,
        x: Tensor,
        labels: Any,
        module: nn.Module,
        context: Callable[[], AbstractContextManager[Any]],
    ) -> Step:
        if (attack := self._attack(x, step)) is not None:
            x = _within_range(x + attack.start, x)
        return super().look(step, x, labels, module, context)

    @override
    def mix(self, x: Tensor, step: Step) -> Mixture:
        return puzzlemix(
            x,
            saliency=saliency_at(step, x),
            alpha=value_at(self.alpha, step.epoch),
            lam=self.lam,
            labels=self.labels,
            beta=self.beta,
            gamma=self.gamma,
            eta=self.eta,
            block_num=self.block_num,
            neigh_size=self.neigh_size,
            transport=self.transport,
            t_eps=self.t_eps,
            t_size=self.t_size,
            noise=self._noise(x, step),
            partner=step.partners(len(x)),
            generator=step.generator(),
        )

    def _noise(self, x: Tensor, step: Step) -> tuple[Tensor | None, Tensor | None]:
        """Return the noise of the own images and of the partners, of which there may be none."""
        attack = self._attack(x, step)
        if attack is None or step.gradient is None:
            return None, None
        begun = _within_range(x + attack.start, x) - x
        noise = attack.share * adversarial_noise(begun, resized(step.gradient, x), _units(x), self.adv_eps)
        return noise if attack.own else None, noise if attack.shown else None

    def _attack(self, x: Tensor, step: Step) -> _Attack | None:
        """Return what a batch's noise begins with, or None if there is none; the same at every call."""
        draws = step.generator("noise")
        own, shown = (sample_uniform(0, 1, 2, draws) < self.adv_p).tolist()
        if not (own or shown) or x.dim() != 4 or not x.is_floating_point():
            return None
        share = float(sample_uniform(0, 1, 1, draws))
        there = Generator(x.device).manual_seed(int(sample_integers(2**62, 1, draws)))
        start = torch.rand(x.shape, dtype=weight_dtype(x), device=x.device, generator=there).mul_(2).sub_(1)
        return _Attack((self.adv_eps * _units(x) * start).to(x.dtype), own, shown, share)


class _Attack(NamedTuple):
    """What adversarial noise begins with.

    Attributes:
        start: Uniform noise, shape ``(N, C, H, W)``.
        own: Whether there is noise in the own images.
        shown: Whether there is noise in the partners.
        share: How much of the noise is added.
    """

    start: Tensor
    own: bool
    shown: bool
    share: float


def adversarial_noise(start: Tensor, gradient: Tensor, unit: Tensor, eps: float) -> Tensor:
    """Return noise along the signs of a gradient, from a random start (fast gradient sign method).

    Args:
        start: Noise to begin with, shape ``(N, C, H, W)``.
        gradient: Of the loss that is to grow, of the same shape.
        unit: What noise is counted in, broadcast against it.
        eps: The largest noise, in units; the step is 2 units longer.
    """
    most = eps * unit
    return (start + (most + 2 * unit) * gradient.sign()).clamp(-most, most)


def puzzle_energy(
    x: Tensor,
    saliency: Tensor,
    partner: Tensor,
    prior: Tensor,
    block_num: int,
    beta: float,
    gamma: float,
    eta: float,
    neigh_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the costs that the shares of blocks minimise, as `label_grid` takes them.

    With ``b`` blocks in each dimension the share z of a block costs ``z`` times the partner's saliency there
    plus ``1 - z`` times the own (each with sum 1), and ``eta / b^2`` times the prior. Neighbours cost
    ``beta / 16 b`` times the squared difference of their shares, and ``gamma`` times that for the mean
    difference of the pixels that meet at their edge. The latter is a cost of two choices, own or partner,
    and is split into costs of each block and one of choosing differently, whose weight may be negative.

    Args:
        x: Images, shape ``(N, C, H, W)``.
        saliency: At least 0, float32 or float64, shape ``(N, H, W)``.
        partner: Partner of each sample, int64, shape ``(N,)``.
        prior: Cost of each label from share 0 to share 1, shape ``(L,)``.
        block_num: Number of blocks ``b``, no more than H or W.
        beta: As in `puzzlemix`.
        gamma: As in `puzzlemix`.
        eta: As in `puzzlemix`.
        neigh_size: As in `puzzlemix`.

    Returns:
        Cost of each label, ``(N, L, b, b)``, and weights between neighbours, ``(N, b - 1, b)`` below each
        other and ``(N, b, b - 1)`` side by side.
    """
    own = block_shares(saliency, block_num, block_num)
    if_own, if_shown = own.index_select(0, partner), own.clone()
    rows, cols = (max(1, size // block_num // neigh_size) for size in x.shape[2:])
    cells = cell_means(_stretched(x, saliency.dtype), block_num * rows, block_num * cols)
    smooth = beta / (16 * block_num)
    weights = []
    for dim, meeting, lengthwise in ((1, rows, cols), (2, cols, rows)):
        facing = cells.transpose(1 + dim, 3)  # the dimension that is crossed goes last
        before, after = facing[..., meeting - 1 : -1 : meeting], facing[..., meeting::meeting]
        sides = [(side, side.index_select(0, partner)) for side in (before, after)]
        (own_own, own_shown), (shown_own, shown_shown) = (
            [_edge(first, second, lengthwise).transpose(dim, 2) * (smooth * gamma) for second in sides[1]]
            for first in sides[0]
        )
        first, second = (costs.narrow(dim, 0, block_num - 1) for costs in (if_own, if_shown))
        first += (own_shown + own_own) / 2
        second += (shown_own + shown_shown) / 2
        first, second = (costs.narrow(dim, 1, block_num - 1) for costs in (if_own, if_shown))
        first += (shown_own + own_own) / 2
        second += (own_shown + shown_shown) / 2
        weights.append((own_shown + shown_own - own_own - shown_shown) / 2 + smooth)
    share = torch.arange(len(prior), device=x.device)[:, None, None] / (len(prior) - 1)
    unary = torch.lerp(if_shown[:, None], if_own[:, None], share.to(own.dtype))
    return unary + (eta / block_num**2) * prior[:, None, None], weights[0], weights[1]


def _edge(first: Tensor, second: Tensor, cells: int) -> Tensor:
    """Return the mean difference across edges, over channels and over the cells of each block."""
    difference = (first - second).abs().mean(1)
    return difference.reshape(len(first), first.size(2) // cells, cells, first.size(3)).mean(2)


def _within_range(disturbed: Tensor, x: Tensor) -> Tensor:
    """Return images whose channels keep to the range that they have in others."""
    return disturbed.clamp(x.amin((0, 2, 3), keepdim=True), x.amax((0, 2, 3), keepdim=True))


def _units(x: Tensor) -> Tensor:
    """Return a 255th of the range of each channel, shape ``(1, C, 1, 1)``."""
    return (x.amax((0, 2, 3), keepdim=True) - x.amin((0, 2, 3), keepdim=True)) / 255


def _stretched(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return images with the values of each channel brought to [0, 1]."""
    x = x.to(dtype)
    low, high = x.amin((0, 2, 3), keepdim=True), x.amax((0, 2, 3), keepdim=True)
    return (x - low) / torch.where(high > low, high - low, 1)


def _moved(x: Tensor, blocks: Tensor, rows: int, cols: int) -> Tensor:
    """Return images with other blocks in the places of a grid, resized by a pixel where needed (nearest).

    Args:
        x: Shape ``(N, C, H, W)``.
        blocks: The block to show in each place, int64, shape ``(N, rows * cols)``.
        rows: Number of rows of the grid.
        cols: Number of columns.
    """
    n, channels, height, width = x.shape
    at = blocks.view(n, rows, cols)
    for dim, (size, parts) in enumerate(((height, rows), (width, cols)), 1):
        at = at.index_select(dim, owners(size, parts, x.device))
    source = torch.zeros_like(at)
    for dim, (size, parts, part) in enumerate(((height, rows, at // cols), (width, cols, at % cols)), 1):
        owner = owners(size, parts, x.device)
        starts = -(torch.arange(parts + 1, device=x.device) * -size // parts)  # rounded up
        sides = starts.diff()
        inside = torch.arange(size, device=x.device) - starts[owner]
        inside, side = along(inside[None], (dim,), 3), along(sides[owner][None], (dim,), 3)
        source = source * size + starts[part] + inside * sides[part] // side
    flat = source.view(n, 1, -1).expand(n, channels, height * width)
    return x.flatten(2).gather(2, flat).view_as(x)


def _check(
    alpha: float, lam: float | None, labels: int, beta: float, gamma: float, eta: float, t_eps: float
) -> None:
    check_positive("alpha", alpha)
    if lam is not None:
        check_share("lam", lam)
    if labels not in (2, 3, 4):
        raise ValueError(f"labels={labels!r} is out of range: it must be 2, 3 or 4.")
    for name, value in (("beta", beta), ("gamma", gamma), ("eta", eta), ("t_eps", t_eps)):
        check_weight(name, value)


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name}={size!r} is out of range: it must be a whole number of pixels above 0.")
