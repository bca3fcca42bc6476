"""Where an image draws the eye: the spectral residual (Hou & Zhang, CVPR 2007)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["salient_peaks", "spectral_residual"]

_SCALE = 64  # positions along a dimension, at most: the paper's scale of observation
_BLUR = 2.5  # standard deviation of the smoothing in these positions, less where there are few
_FLOOR = 1e-6  # of the largest amplitude; below it a float32 has no digits left


def spectral_residual(x: Tensor, dims: Sequence[int]) -> Tensor:
    """Return the saliency of every sample: ``g * |F^-1[exp(R + i P)]|^2`` with ``R = L - h * L``.

    ``L`` is the logarithm of the spectrum's amplitude, ``P`` its phase, ``h`` the mean over the 3^d nearest
    frequencies (the spectrum is periodic) and ``g`` a Gaussian. The image is the mean over all dimensions
    but the named ones, averaged by a whole number to at most 64 positions along each of these.

    Args:
        x: Inputs of any dtype, shape ``(N, ...)``.
        dims: One to three dimensions that the map runs over, in increasing order.

    Returns:
        Maps, float32 (float64 for float64), shape ``(N, *small)`` with sizes of at most 64; no gradient.
    """
    image = _grey(x, dims)
    axes = tuple(range(1, image.dim()))
    for axis in axes:
        if (cell := _cell(image.size(axis))) > 1:
            lines = image.movedim(axis, -1)
            means = F.avg_pool1d(lines.flatten(0, -2)[:, None], cell, ceil_mode=True)
            image = means.view(*lines.shape[:-1], -1).movedim(-1, axis)
    spectrum = torch.fft.fftn(image, dim=axes)
    amplitude = spectrum.abs()
    floor = _FLOOR * amplitude.amax(axes, keepdim=True)
    mean = amplitude.maximum(floor).clamp(min=1e-30).log()
    for axis in axes:
        mean = (mean.roll(1, axis) + mean + mean.roll(-1, axis)) / 3
    # exp(L - h * L + i P) is the spectrum itself over exp(h * L).
    saliency: Tensor = torch.fft.ifftn(spectrum * torch.exp(-mean), dim=axes).abs().square()
    with torch.autocast(x.device.type, enabled=False):
        for axis in axes:
            at = torch.arange(image.size(axis), device=x.device, dtype=image.dtype)
            kernel = torch.exp(-((at[:, None] - at) / min(_BLUR, len(at) / 12)).square() / 2)
            saliency = (saliency.movedim(axis, -1) @ kernel).movedim(-1, axis)
    return saliency


def salient_peaks(x: Tensor, dims: Sequence[int]) -> Tensor:
    """Return the position of every sample's largest saliency, int64, shape ``(N, d)``.

    Of a sample without any structure it is some position inside.

    Args:
        x: As in `spectral_residual`.
        dims: As in `spectral_residual`.
    """
    saliency = spectral_residual(x, dims)
    place = saliency.flatten(1).argmax(1)
    peaks = []
    for dim, small in zip(reversed(dims), reversed(saliency.shape[1:]), strict=True):
        cell = _cell(x.size(dim))
        peaks.append((place % small * cell + cell // 2).clamp(max=x.size(dim) - 1))  # the middle of a cell
        place = place // small
    return torch.stack(peaks[::-1], 1)


def _cell(size: int) -> int:
    """Return how many positions are averaged to one."""
    return -(-size // _SCALE)


def _grey(x: Tensor, dims: Sequence[int]) -> Tensor:
    """Return the mean over all dimensions but the batch and those named, contiguous, floating point."""
    x = x.detach()
    if x.is_complex():
        x = x.abs()
    x = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32).contiguous()
    others = [dim for dim in range(1, x.dim()) if dim not in dims]
    return x.mean(others) if others else x
