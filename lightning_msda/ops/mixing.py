"""What is done to a batch: partners interpolated, selected by a mask, pasted as a box or resized."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_msda.ops.layout import along

__all__ = ["interpolate", "paste_box", "paste_resized", "resized_source", "select", "take_source"]


def interpolate(x: Tensor, partner: Tensor, lam: Tensor) -> Tensor:
    """Return ``lam * x + (1 - lam) * x[partner]``.

    Args:
        x: Floating point, shape ``(N, ...)``.
        partner: Partner of each sample, int64, shape ``(N,)``.
        lam: Weight of the own sample, shape ``(R,)``.
    """
    return torch.lerp(x, x.index_select(0, partner), 1 - along(lam, (), x.dim()).to(x.dtype))


def select(x: Tensor, shown: Tensor, mask: Tensor) -> Tensor:
    """Return ``mask * x + (1 - mask) * shown``.

    Args:
        x: Shape ``(N, ...)``; any dtype where the mask is bool.
        shown: What is shown where the mask is 0, of the same shape.
        mask: Own share of each element, bool or float, broadcast against ``x``.
    """
    return torch.where(mask, x, shown) if mask.dtype == torch.bool else torch.lerp(shown, x, mask.to(x.dtype))


def paste_box(x: Tensor, partner: Tensor, box: Tensor, dims: Sequence[int]) -> Tensor:
    """Return a copy of ``x`` in which the same box comes from each sample's partner.

    Args:
        x: Shape ``(N, ...)``.
        partner: Partner of each sample, int64, shape ``(N,)``.
        box: First and last-plus-one position along each mixed dimension, int64 on the CPU, ``(d, 2)``.
        dims: The ``d`` mixed dimensions.
    """
    place = [slice(None)] * x.dim()
    for dim, (start, stop) in zip(dims, box.tolist(), strict=True):
        place[dim] = slice(start, stop)
    mixed = x.clone()
    mixed[tuple(place)] = x[tuple(place)].index_select(0, partner)
    return mixed


def paste_resized(
    x: Tensor, partner: Tensor, starts: Tensor, sides: Sequence[int], dims: Sequence[int]
) -> Tensor:
    """Return a copy of ``x`` with each sample's partner pasted into it, resized to a box (nearest).

    Args:
        x: Shape ``(N, ...)``.
        partner: Partner of each sample, int64, shape ``(N,)``.
        starts: Where each box begins, int64, shape ``(N, d)``.
        sides: The ``d`` lengths of the boxes.
        dims: The ``d`` mixed dimensions.
    """
    small = x
    place = torch.zeros((len(x), *[1] * len(dims)), dtype=torch.int64, device=x.device)
    for i, (dim, side) in enumerate(zip(dims, sides, strict=True)):
        steps = torch.arange(side, device=x.device)
        small = small.index_select(dim, steps * x.size(dim) // max(side, 1))
        place = place * x.size(dim) + along(starts[:, i, None] + steps, (i + 1,), place.dim())
    dims, last = tuple(dims), tuple(range(-len(dims), 0))
    flat = x.movedim(dims, last).flatten(-len(dims))
    patch = small.index_select(0, partner).movedim(dims, last).flatten(-len(dims))
    where = along(place.flatten(1), (patch.dim() - 1,), patch.dim()).expand_as(patch)
    sizes = [x.size(dim) for dim in dims]
    mixed = flat.scatter(-1, where, patch).view(*flat.shape[:-1], *sizes)
    return mixed.movedim(last, dims).contiguous(memory_format=_format(x))


def resized_source(starts: Tensor, sides: Tensor, spatial: Sequence[int]) -> tuple[Tensor, ...]:
    """Return which position of a resized tensor each position along a dimension shows (nearest).

    Args:
        starts: Where each box begins, int64, shape ``(N, d)``.
        sides: Lengths of the boxes, int64, shape ``(R, d)``.
        spatial: The ``d`` sizes that are resized to the boxes.

    Returns:
        For each dimension positions, int64, shape ``(N, size)``; outside of a box they mean nothing.
    """
    return tuple(
        ((torch.arange(size, device=starts.device) - starts[:, i, None]) * size)
        .div(sides[:, i, None].clamp(min=1), rounding_mode="floor")
        .clamp(0, size - 1)
        for i, size in enumerate(spatial)
    )


def take_source(x: Tensor, source: Sequence[Tensor], dims: Sequence[int]) -> Tensor:
    """Return what each position shows of ``x``.

    Args:
        x: Shape ``(N, ...)``.
        source: For each mixed dimension positions, int64, shape ``(N, size)``.
        dims: The mixed dimensions.
    """
    for dim, positions in zip(dims, source, strict=True):
        x = x.gather(dim, along(positions, (dim,), x.dim()).expand_as(x))
    return x


def _format(x: Tensor) -> torch.memory_format:
    """Return the memory format of a tensor."""
    if x.is_contiguous():
        return torch.contiguous_format
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    if x.dim() == 5 and x.is_contiguous(memory_format=torch.channels_last_3d):
        return torch.channels_last_3d
    return torch.contiguous_format
