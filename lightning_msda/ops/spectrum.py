"""Low-frequency images, the source of FMix's masks (Harris et al., arXiv:2002.12047, equations 3 and 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from lightning_msda.ops.layout import to_device

__all__ = ["low_frequency_images"]


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
    make = _official_spectrum if official else _spectrum
    noise, scale = make(n, spatial, decay_power, generator)
    noise, scale = to_device(device, noise, scale)
    spectrum = torch.view_as_complex(noise * scale)
    images: Tensor = torch.fft.irfftn(spectrum, s=tuple(spatial), dim=tuple(range(1, len(spatial) + 1)))
    return images


def _spectrum(
    n: int, spatial: Sequence[int], decay_power: float, generator: Generator | None
) -> tuple[Tensor, Tensor]:
    """Return Gaussian noise for half of the frequencies and the scale of each, both ending in (re, im)."""
    *leading, last = spatial
    axes = [torch.fft.fftfreq(size) for size in leading] + [torch.fft.rfftfreq(last)]
    scale = _magnitude(axes).pow(-decay_power)
    scale[(0,) * len(spatial)] = 0.0  # the mean of an image, which no threshold sees
    own_mirror = [0, last // 2] if last % 2 == 0 else [0]
    scale[..., own_mirror] *= math.sqrt(2)
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
