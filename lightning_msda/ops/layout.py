"""Which dimensions are mixed, and how draws get to them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["along", "mixed_dims", "to_device", "weight_dtype"]


def mixed_dims(x: Tensor, dims: Sequence[int] | None) -> tuple[int, ...]:
    """Return the dimensions that a mask runs over, in increasing order.

    Args:
        x: Inputs, shape ``(N, ...)``.
        dims: Dimensions of ``x``, the batch not among them; None: all after the channel of
            ``(N, C, *spatial)``.

    Raises:
        ValueError: If there is no such dimension.
    """
    if dims is None:
        if x.dim() < 3:
            raise ValueError(
                f"Inputs of shape {tuple(x.shape)} have no dimension after the channel of (N, C, *spatial) to"
                " lay a mask over. Name the dimensions to mask, for instance dims=(1,) for tokens (N, T)."
            )
        return tuple(range(2, x.dim()))
    named = sorted(dim % x.dim() if -x.dim() <= dim < x.dim() else dim for dim in dims)
    if not named or len(set(named)) < len(named) or not all(0 < dim < x.dim() for dim in named):
        raise ValueError(
            f"dims={tuple(dims)} does not fit inputs of shape {tuple(x.shape)}: it must name different"
            f" dimensions from 1 to {x.dim() - 1}, the batch is dimension 0."
        )
    return tuple(named)


def along(values: Tensor, dims: Sequence[int], ndim: int) -> Tensor:
    """Lay values along dimensions, with size 1 in all others.

    Args:
        values: Shape ``(R, *spatial)``.
        dims: The dimension of each spatial size.
        ndim: Number of dimensions of the result.

    Returns:
        A view of shape ``(R, 1, ..., size, ..., 1)`` that broadcasts against ``ndim`` dimensions.
    """
    shape = [1] * ndim
    shape[0] = values.size(0)
    for dim, size in zip(dims, values.shape[1:], strict=True):
        shape[dim] = size
    return values.view(shape)


def to_device(device: torch.device, *draws: Tensor) -> tuple[Tensor, ...]:
    """Send what the host has drawn to a device in one copy that blocks nobody.

    Args:
        device: Where to.
        draws: CPU tensors of any dtype and shape; those that are there already stay as they are.
    """
    drawn = [draw for draw in draws if draw.device.type == "cpu"]
    if device.type == "cpu" or not drawn:
        return draws
    sent = iter(_sent(device, drawn))
    return tuple(next(sent) if draw.device.type == "cpu" else draw for draw in draws)


def _sent(device: torch.device, draws: Sequence[Tensor]) -> tuple[Tensor, ...]:
    flat = [draw.contiguous().view(-1).view(torch.uint8) for draw in draws]
    padded = [torch.cat([part, part.new_zeros(-len(part) % 8)]) for part in flat]  # aligned to 8 bytes
    packed = torch.cat(padded)
    if device.type == "cuda" and torch.cuda.is_available():
        packed = packed.pin_memory()
    there = torch.split(packed.to(device, non_blocking=True), [len(part) for part in padded])
    return tuple(
        part[: len(bytes_)].view(draw.dtype).view(draw.shape)
        for part, bytes_, draw in zip(there, flat, draws, strict=True)
    )


def weight_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype for the weights of inputs: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
