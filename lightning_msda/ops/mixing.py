"""What is done to a batch: partners interpolated, selected by a mask, pasted as a box or resized."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_msda.ops.layout import along

__all__ = [
    "boxed",
    "check_interpolable",
    "interpolate",
    "paste_box",
    "paste_resized",
    "resized_source",
    "select",
    "take",
    "take_source",
]

_LARGE = 2**15  # elements; index_select starts its threads anew for every sample of this size


def check_interpolable(x: Tensor, method: str) -> None:
    """Refuse what lies on no line.

    Args:
        x: Inputs, shape ``(N, ...)``.
        method: Name of the class that would interpolate them.

    Raises:
        ValueError: If they are integers or booleans.
    """
    if not (x.is_floating_point() or x.is_complex()):
        raise ValueError(
            f"{method} interpolates its inputs, which are {x.dtype} of shape {tuple(x.shape)}. Mix tokens at"
            f" their embedding, {method}(at='embedding'), or by a mask, CutMix(dims=[1]); convert images to"
            " floating point."
        )


def interpolate(x: Tensor, partner: Tensor, lam: Tensor) -> Tensor:
    """Return ``lam * x + (1 - lam) * x[partner]``.

    Args:
        x: Floating point, shape ``(N, ...)``.
        partner: Partner of each sample, int64, shape ``(N,)``.
        lam: Weight of the own sample, shape ``(R,)``.
    """
    return take(x, partner).lerp_(x, along(lam, (), x.dim()).to(x.dtype))


def take(x: Tensor, index: Tensor) -> Tensor:
    """Return a copy of samples, laid out in memory like ``x``.

    Args:
        x: Shape ``(N, ...)``.
        index: Which samples, int64, shape ``(n,)``.
    """
    return _gather(x, index) if x.is_contiguous() else x[index]


def _gather(x: Tensor, index: Tensor) -> Tensor:
    """Return a copy of samples, laid out in memory as it is fastest."""
    return x.index_select(0, index) if x.numel() < _LARGE * len(x) else x[index]


def select(x: Tensor, shown: Tensor, mask: Tensor, *, in_place: bool = False) -> Tensor:
    """Return ``mask * x + (1 - mask) * shown``.

    Args:
        x: Shape ``(N, ...)``; any dtype where the mask is bool.
        shown: What is shown where the mask is 0, of the same shape.
        mask: Own share of each element, bool or float, broadcast against ``x``.
        in_place: Whether ``shown`` may be overwritten, which saves memory where no gradient is asked for.
    """
    asked = torch.is_grad_enabled() and (x.requires_grad or shown.requires_grad)
    out = shown if in_place and not asked else None
    if mask.dtype == torch.bool:
        return torch.where(mask, x, shown, out=out)
    return torch.lerp(shown, x, mask.to(x.dtype), out=out)


def boxed(x: Tensor, box: Tensor, dims: Sequence[int]) -> Tensor:
    """Return the part of a tensor inside of a box, a view.

    Args:
        x: Shape ``(N, ...)``.
        box: First and last-plus-one position along each mixed dimension, int64 on the CPU, ``(d, 2)``.
        dims: The mixed dimensions.
    """
    for dim, (start, stop) in zip(dims, box.tolist(), strict=True):
        x = x.narrow(dim, start, stop - start)
    return x


def paste_box(x: Tensor, partner: Tensor, box: Tensor, dims: Sequence[int]) -> Tensor:
    """Return a copy of ``x`` in which the same box comes from each sample's partner.

    Args:
        x: Shape ``(N, ...)``.
        partner: Partner of each sample, int64, shape ``(N,)``.
        box: First and last-plus-one position along each mixed dimension, int64 on the CPU, ``(d, 2)``.
        dims: The ``d`` mixed dimensions.
    """
    mixed = x.clone()
    boxed(mixed, box, dims).copy_(_gather(boxed(x, box, dims), partner))
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
    shown, place = [], []
    for i, (dim, side) in enumerate(zip(dims, sides, strict=True)):
        steps = torch.arange(side, device=x.device)
        shown.append((steps * x.size(dim) // max(side, 1))[None])
        place.append(starts[:, i, None] + steps)
    mixed = x.clone()
    patch = _in_front(x, dims)[_places(partner, shown)]
    _in_front(mixed, dims)[_places(torch.arange(len(x), device=x.device), place)] = patch
    return mixed


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


def take_source(
    x: Tensor, source: Sequence[Tensor], dims: Sequence[int], samples: Tensor | None = None
) -> Tensor:
    """Return what each position shows of ``x``.

    Args:
        x: Shape ``(N, ...)``.
        source: For each mixed dimension positions, int64, shape ``(N, size)``.
        dims: The mixed dimensions.
        samples: Which sample is shown at each place of the batch, int64, shape ``(N,)``; None: its own.
    """
    samples = torch.arange(len(x), device=x.device) if samples is None else samples
    return _in_front(x, dims)[_places(samples, source)].movedim(tuple(range(1, len(dims) + 1)), tuple(dims))


def _in_front(x: Tensor, dims: Sequence[int]) -> Tensor:
    """Return a view with the mixed dimensions right after the batch."""
    return x.movedim(tuple(dims), tuple(range(1, len(dims) + 1)))


def _places(samples: Tensor, positions: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the indices of samples ``(N,)`` at positions ``(R, size)``, which broadcast to all of them."""
    ndim = 1 + len(positions)
    return (along(samples, (), ndim), *(along(at, (i,), ndim) for i, at in enumerate(positions, 1)))
