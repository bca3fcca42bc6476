"""Co-Mixup: share what is salient out among mixes (Kim et al., ICLR 2021, arXiv:2102.03065)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
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
from lightning_msda.ops import take, to_device, weight_dtype
from lightning_msda.ops.blocks import block_shares, members, to_pixels
from lightning_msda.ops.joint_labelling import JointCosts, label_jointly, match_greedily
from lightning_msda.randomness import Step, sample_dirichlet, sample_uniform
from lightning_msda.schedule import Schedule, check_positive, check_share, check_weight, value_at

__all__ = ["CoMixup", "comixup", "compatibility"]

Threshold = Literal["hard", "soft"]

_WINDOW = 8  # side of the window, in pixels, whose largest mean says where an image is salient


def comixup(
    x: Tensor,
    *,
    saliency: Tensor,
    alpha: float = 2.0,
    beta: float = 0.32,
    gamma: float = 1.0,
    eta: float = 0.05,
    tau: float = 0.83,
    threshold: Threshold = "hard",
    omega: float = 0.001,
    block_num: int | None = 4,
    part: int = 20,
    sources: int = 3,
    sweeps: int = 4,
    distinct: bool = True,
    generator: Generator | None = None,
) -> Mixture:
    """Make as many mixes of a part of the batch as it has images, all at once, each of up to three of them.

    Each block of a mix shows the same block of one image, or of two half and half. With ``b^2`` blocks the
    mixes minimise together the saliency that they do not show (of each image the sum is 1), ``beta / b^2``
    for neighbours that show different images, ``-eta / b^2`` times the logarithm of how much each image is
    wanted, and ``gamma / b^2`` for each block of an image and each block of it in other mixes, where these
    are more than ``tau b^2`` (``joint_energy``). Labels have the shares of the pixels.

    Mixes have no order: each stands in the place of an image that it shows much of, as its own. Label maps
    cannot follow several masks: the mixture names no ``dims``, and what would have to follow is refused.

    Args:
        x: Images, floating point, shape ``(N, C, H, W)``.
        saliency: How much each pixel matters, at least 0, floating point, shape ``(N, H, W)``.
        alpha: Concentration of the Dirichlet law of how much each image is wanted, above 0.
        beta: Weight of neighbours that show different images, at least 0.
        gamma: Weight of images that other mixes show too, at least 0.
        eta: Weight of the prior, at least 0.
        tau: How much of an image other mixes may show unpunished, as a part of the image, at least 0.
        threshold: What is punished above that: ``hard``, all; ``soft``, what is more.
        omega: How far two images that are salient in places far apart count as one, from 0 to 1: they then
            meet rather in one mix than in two.
        block_num: Number of blocks in each dimension, or the smaller size of smaller images. None: 2, 4, 8 or
            16 with equal chance.
        part: Largest number of images that are mixed with each other. The batch is cut into the fewest such
            parts, in its order; their sizes differ by one at most.
        sources: How many images a mix shows, at most.
        sweeps: How often each mix is made anew, from 1.
        distinct: Whether mixes that show the same images are told apart before the last sweep.
        generator: Source of randomness, on the CPU; None: the global one.

    Returns:
        The mixed inputs, of the shape, dtype and device of ``x``, with up to ``sources`` partners, those with
        more weight first, weights by sample, and the own shares as mask of shape ``(N, 1, H, W)``.

    Raises:
        ValueError: If ``x`` or ``saliency`` has another shape or dtype, or an argument is out of range.

    Example:
        >>> import torch
        >>> x, saliency = torch.rand(4, 3, 32, 32), torch.rand(4, 32, 32)
        >>> mix = comixup(x, saliency=saliency, generator=torch.Generator().manual_seed(0))
        >>> mix.weights.shape, torch.allclose(mix.lam, mix.mask.mean((1, 2, 3)))
        (torch.Size([4, 4]), True)
    """
    _check(alpha, beta, gamma, eta, tau, threshold, omega, part, sources, sweeps)
    check_images(x, "Co-Mixup")
    if not x.is_floating_point():
        raise ValueError(
            f"Co-Mixup shows two images half and half, which {x.dtype} cannot: make it floating point."
        )
    check_saliency(saliency, x)
    if block_num is None:
        block_num = sample_block_num(x, generator)
    side = min(block_num, *x.shape[2:])
    check_blocks(side, x)
    dtype = weight_dtype(x)
    places, real, prior, start = to_device(
        x.device, *_draws(len(x), part, side, alpha, eta, dtype, generator)
    )
    saliency = saliency.detach().to(dtype)
    blocks = block_shares(saliency, side, side)
    costs = JointCosts(
        cost=prior[..., None, None] - blocks[places],
        near=compatibility(saliency, places, real, omega),
        smooth=beta / side**2,
        spread=gamma / side**2,
        allowed=tau * side**2,
        beyond=threshold == "soft",
    )
    shown = label_jointly(costs, start, real, sweeps=sweeps, most=sources, distinct=distinct)
    own = shown.sum((3, 4)) + 2 * side**2 * (~real).diag_embed()  # what is no image stays in its place
    order = match_greedily(own)
    shown = shown.gather(1, order[:, :, None, None, None].expand_as(shown))
    return _mixture(x, shown, places, real, sources)


class CoMixup(BySaliency):
    """Shows in each mix what is salient in up to three images, shared out over the batch (arXiv:2102.03065).

    What is salient is the gradient of a loss that the module computes on the clean batch first:
    cross-entropy on the scores that its ``forward(x)`` returns, in evaluation mode, without a trace in the
    module. Where there is no module, as in a preview, it is the spectral residual of each image. Masks and
    lam are always by sample. Images are mixed with those that stand near them in the batch, not with
    partners.

    Args:
        alpha: Concentration of the Dirichlet law of how much each image is wanted, above 0; or values by the
            epoch that they begin with.
        beta: Weight of neighbours that show different images.
        gamma: Weight of images that other mixes show too.
        eta: Weight of the prior.
        tau: How much of an image other mixes may show unpunished, as a part of the image.
        threshold: What is punished above that: ``hard``, all; ``soft``, what is more.
        omega: How far two images that are salient in places far apart count as one, from 0 to 1.
        block_num: Blocks in each dimension; None: 2, 4, 8 or 16, drawn for each batch.
        part: Largest number of images that are mixed with each other.
        sources: How many images a mix shows, at most. A loss is computed for each, and for the own one.
        sweeps: How often each mix is made anew.
        distinct: Whether mixes that show the same images are told apart.
        saliency_stride: How much smaller the batch is made before its gradient is computed, which costs less.
        saliency_loss: Name of a method of the module that takes ``(x, y)`` and returns the loss whose
            gradient is computed instead.
        clean_lam: Weight of the module's loss on the batch as it came, in training mode, which is added to
            the mixture's; 1 in the paper's recipes.
        common: What every method takes, see `CommonArgs`, but for ``at``, ``dims`` and ``pair``.

    Raises:
        ValueError: If an argument is out of range or has no meaning here.

    Example:
        >>> callback = CoMixup(block_num=None)  # Trainer(callbacks=[callback])
    """

    def __init__(
        self,
        alpha: Schedule = 2.0,
        beta: float = 0.32,
        gamma: float = 1.0,
        eta: float = 0.05,
        tau: float = 0.83,
        threshold: Threshold = "hard",
        omega: float = 0.001,
        block_num: int | None = 4,
        part: int = 20,
        sources: int = 3,
        sweeps: int = 4,
        distinct: bool = True,
        saliency_stride: int = 1,
        saliency_loss: str | None = None,
        clean_lam: float = 0.0,
        **common: Unpack[CommonArgs],
    ) -> None:
        super().__init__(saliency_stride, saliency_loss, clean_lam, **common)
        if self.pair != "any":
            raise ValueError(
                f"pair={self.pair!r} has no meaning for CoMixup, which chooses by itself what it mixes: leave"
                " it out, or use PuzzleMix."
            )
        check_positive("alpha", alpha)
        _check(1.0, beta, gamma, eta, tau, threshold, omega, part, sources, sweeps)
        self.alpha = alpha
        self.beta = beta
        self.gamma = gamma
        self.eta = eta
        self.tau = tau
        self.threshold: Threshold = threshold
        self.omega = omega
        self.block_num = block_num
        self.part = part
        self.sources = sources
        self.sweeps = sweeps
        self.distinct = distinct

    @override
    def mix(self, x: Tensor, step: Step) -> Mixture:
        return comixup(
            x,
            saliency=saliency_at(step, x),
            alpha=value_at(self.alpha, step.epoch),
            beta=self.beta,
            gamma=self.gamma,
            eta=self.eta,
            tau=self.tau,
            threshold=self.threshold,
            omega=self.omega,
            block_num=self.block_num,
            part=self.part,
            sources=self.sources,
            sweeps=self.sweeps,
            distinct=self.distinct,
            generator=step.generator(),
        )


def _draws(
    n: int, part: int, side: int, alpha: float, eta: float, dtype: torch.dtype, generator: Generator | None
) -> tuple[Tensor, ...]:
    """Cut a batch into P parts of up to M samples, and draw what each begins with, on the host.

    Returns:
        Samples ``(P, M)``, int64, and whether there is one in each place; the prior's cost of each, and where
        a mix of each begins: a place of the part for each block, int64, ``(P, M, side, side)``.
    """
    parts = -(-n // part)
    bounds = torch.arange(parts + 1) * n // parts
    size = -(-n // parts)
    places = bounds[:-1, None] + torch.arange(size)
    real = places < bounds[1:, None]
    wanted = sample_dirichlet(alpha, size, parts, generator) * real
    wanted /= wanted.sum(1, keepdim=True)
    prior = -(eta / side**2) * (wanted + 1e-8).log()
    drawn = sample_uniform(0, 1, parts * size * side**2, generator).view(parts, size, side, side)
    start = (drawn * real.sum(1)[:, None, None, None]).long()
    return places.clamp(max=n - 1), real, prior.to(dtype), start


def compatibility(saliency: Tensor, places: Tensor, real: Tensor, omega: float) -> Tensor:
    """Return how far two images count as one, shape ``(P, M, M)``: ``(1 - omega) I + omega D``.

    D is the distance of the places where they are salient, in steps along rows and columns, with mean row
    sum 1.

    Args:
        saliency: At least 0, shape ``(N, H, W)``.
        places: The samples of each part, int64, shape ``(P, M)``.
        real: Whether there is one in each place, bool, shape ``(P, M)``.
        omega: As in `comixup`.
    """
    window = [min(_WINDOW, size) for size in saliency.shape[1:]]
    means = F.avg_pool2d(saliency[:, None], window, stride=1)[:, 0]
    peak = means.flatten(1).argmax(1)[places]
    row, column = peak // means.size(2), peak % means.size(2)
    apart = (row[:, :, None] - row[:, None]).abs() + (column[:, :, None] - column[:, None]).abs()
    apart = apart * (real[:, :, None] & real[:, None])
    total = apart.sum((1, 2), keepdim=True).clamp(min=1)
    distance = apart * real.sum(1)[:, None, None] / total.to(saliency.dtype)
    one = torch.eye(places.size(1), dtype=saliency.dtype, device=saliency.device)
    return (1 - omega) * one + omega * distance


def _mixture(x: Tensor, shown: Tensor, places: Tensor, real: Tensor, sources: int) -> Mixture:
    """Return the mixture of images by the grids of their parts, each in the place of its own image.

    Args:
        x: Images, shape ``(N, C, H, W)``.
        shown: Share of each image in each block of each mix, shape ``(P, M, M, b, b)``.
        places: The samples of each part, int64, shape ``(P, M)``.
        real: Whether there is one in each place, bool, shape ``(P, M)``.
        sources: How many images a mix shows, at most.
    """
    n, _, height, width = x.shape
    size, side = shown.size(1), shown.size(3)
    # Where each sample is among the places: the places in the order of the samples, empty ones last.
    at = torch.where(real, places, n).flatten().argsort(stable=True)[:n]
    grids, own = shown.flatten(0, 1)[at], (at % size)[:, None]
    areas = [members(pixels, side, shown).mean(1) for pixels in (height, width)]
    shares = (grids * (areas[0][:, None] * areas[1])).sum((2, 3))
    weights, which = shares.scatter(1, own, 0).topk(min(sources, size), 1)
    partners = places[at // size].gather(1, which)
    weights = torch.cat([shares.gather(1, own), weights], 1)
    which = torch.cat([own, which], 1)
    masks = to_pixels(grids.gather(1, which[..., None, None].expand(-1, -1, side, side)), height, width)
    masks = torch.where(
        weights[..., None, None] > 0, masks, 0
    )  # the own image may be one of the partners, without weight
    mixed = x * masks[:, :1].to(x.dtype)
    for partner, mask in zip(partners.unbind(1), masks[:, 1:].to(x.dtype).unbind(1), strict=True):
        mixed.addcmul_(take(x, partner), mask[:, None])
    return Mixture(mixed, partners, weights, mask=masks[:, :1], per_sample=n > 1)


def _check(
    alpha: float,
    beta: float,
    gamma: float,
    eta: float,
    tau: float,
    threshold: str,
    omega: float,
    part: int,
    sources: int,
    sweeps: int,
) -> None:
    check_positive("alpha", alpha)
    for name, value in (("beta", beta), ("gamma", gamma), ("eta", eta), ("tau", tau)):
        check_weight(name, value)
    check_share("omega", omega)
    if threshold not in get_args(Threshold):
        raise ValueError(f"threshold={threshold!r} is unknown: it must be 'hard' or 'soft'.")
    for name, count in (("part", part), ("sources", sources), ("sweeps", sweeps)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{name}={count!r} is out of range: it must be a whole number from 1.")
