"""Low-frequency images, the source of FMix's masks (Harris et al., arXiv:2002.12047, equations 3 and 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Generator, Tensor

from lightning_msda.ops.layout import to_device

__all__ = ["low_frequency_images"]

_LOWEST = 32  # frequencies along each dimension
_LEFT_OUT = 1e-6  # share of the power


def low_frequency_images(
    n: int,
    spatial: Sequence[int],
    decay_power: float,
    *,
    official: bool = False,
    device: torch.device | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Draw real images whose amplitude falls as a power of the frequency.

    ``G = Re(F^-1(Z / freq^decay_power))`` with Z complex Gaussian on the whole grid (equations 3 and 4),
    computed from half of it: the other half only repeats it, but for the columns that are their own
    mirror image, which carry twice the power here. The mean of an image is 0.

    On larger grids of two dimensions or more, the 32 lowest frequencies along each dimension do where all
    others together hold less than a millionth of the power, as they do for images at the papers' 3: then G
    is the sum of these waves by two small matrix products. That changes 3 in 10,000 elements of a mask.

    Args:
        n: Number of images ``R``.
        spatial: Their sizes, one to three.
        decay_power: The power delta; the power spectrum falls as ``freq^(-2 delta)``.
        official: The law of the authors' code instead: it reads the first two rows of the first
            dimension as real and imaginary part, so that the last dimension has one frequency only.
        device: Where the images are computed; the draws are on the CPU.
        generator: Source of randomness; None: the global one.

    Returns:
        Images, float32, shape ``(R, *spatial)``.
    """
    device = device or torch.device("cpu")
    waves = None if official else _waves(tuple(spatial), decay_power)
    if waves is not None:
        scale, *bases = waves
        noise = scale * torch.randn(n, *scale.shape, generator=generator)
        images, *bases = to_device(device, noise, *bases)
        with torch.autocast(device.type, enabled=False):
            for basis in bases:  # each turns the first dimension into the last
                images = torch.tensordot(images, basis, ([1], [0]))
        return images
    make = _official_spectrum if official else _spectrum
    noise, scale = make(n, spatial, decay_power, generator)
    noise, scale = to_device(device, noise, scale)
    spectrum = torch.view_as_complex(noise * scale)
    image: Tensor = torch.fft.irfftn(spectrum, s=tuple(spatial), dim=tuple(range(1, len(spatial) + 1)))
    return image


@lru_cache(maxsize=8)
def _waves(spatial: tuple[int, ...], decay_power: float) -> tuple[Tensor, ...] | None:
    """Return the scale of each low wave, and for each dimension the waves along it, orthonormal.

    White noise is white in any orthonormal basis, so that equation 4 scales the waves' coefficients. None
    where nothing may be left out, or too little for matrix products to be worth it.
    """
    kept = [min(size // 2, _LOWEST) for size in spatial]
    if len(spatial) == 1 or max(spatial) <= 2 * _LOWEST:
        return None
    power = _magnitude([torch.fft.fftfreq(size, dtype=torch.float64) for size in spatial])
    power = power.pow(-2 * decay_power)
    power[(0,) * len(spatial)] = 0.0
    low = power
    for dim, (size, most) in enumerate(zip(spatial, kept, strict=True)):
        lowest = torch.tensor([k for k in range(size) if min(k, size - k) <= most])
        low = low.index_select(dim, lowest)
    if float(low.sum()) < (1 - _LEFT_OUT) * float(power.sum()):
        return None
    axes, bases = [], []
    for size, most in zip(spatial, kept, strict=True):
        place = torch.arange(size, dtype=torch.float64) * (2 * math.pi / size)
        both = range(1, most + (2 * most < size))  # the highest of an even size has no sine
        waves = [torch.cos(k * place) for k in range(most + 1)] + [torch.sin(k * place) for k in both]
        bases.append(torch.stack([wave / wave.norm() for wave in waves]).float())
        axes.append(torch.tensor([*range(most + 1), *both], dtype=torch.float64) / size)
    scale = _magnitude(axes).pow(-decay_power)
    scale[(0,) * len(spatial)] = 0.0
    return scale.float(), *bases


@lru_cache(maxsize=8)
def _scale(spatial: tuple[int, ...], decay_power: float) -> Tensor:
    """Return the scale of each frequency of the half spectrum."""
    *leading, last = spatial
    axes = [torch.fft.fftfreq(size) for size in leading] + [torch.fft.rfftfreq(last)]
    scale = _magnitude(axes).pow(-decay_power)
    scale[(0,) * len(spatial)] = 0.0  # the mean of an image, which no threshold sees
    own_mirror = [0, last // 2] if last % 2 == 0 else [0]
    scale[..., own_mirror] *= math.sqrt(2)
    return scale


def _spectrum(
    n: int, spatial: Sequence[int], decay_power: float, generator: Generator | None
) -> tuple[Tensor, Tensor]:
    """Return Gaussian noise for half of the frequencies and the scale of each, both ending in (re, im)."""
    scale = _scale(tuple(spatial), decay_power)
    return torch.randn(n, *scale.shape, 2, generator=generator), scale.unsqueeze(-1)


def _official_spectrum(
    n: int, spatial: Sequence[int], decay_power: float, generator: Generator | None
) -> tuple[Tensor, Tensor]:
    """Return noise and scale as the authors' code arranges them."""
    first, *rest = spatial
    axes = [torch.fft.fftfreq(first)]
    if len(rest) == 2:
        axes.append(torch.fft.fftfreq(rest[1]))
    if rest:
        axes.append(torch.fft.fftfreq(rest[0])[: rest[0] // 2 + 1 + rest[0] % 2])
    frequencies = _magnitude(axes) if rest else axes[0]
    scale = frequencies.clamp(min=1 / max(spatial)).pow(-decay_power)[:2]
    if first == 1:
        scale = torch.cat([scale, torch.zeros_like(scale)])
    scale = scale.movedim(0, -1).unsqueeze(-2)  # (..., one of the last dimension's two bins, re or im)
    return torch.randn(n, *scale.shape[:-2], 2, 2, generator=generator), scale


def _magnitude(axes: Sequence[Tensor]) -> Tensor:
    """Return the magnitude of the frequency at every point of a grid."""
    grid = torch.meshgrid(*axes, indexing="ij")
    return torch.stack(grid).square().sum(0).sqrt()
