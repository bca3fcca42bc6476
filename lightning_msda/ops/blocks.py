"""Images cut into a grid of blocks, as equal as can be: they differ by a pixel where need be."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["block_shares", "cell_means", "members", "owners", "to_pixels"]


def owners(size: int, parts: int, device: torch.device) -> Tensor:
    """Return which of several parts each position belongs to, as equal as can be, shape ``(size,)``.

    Args:
        size: Number of positions.
        parts: Number of parts.
        device: Where the result is made.
    """
    return torch.arange(size, device=device) * parts // size


def members(size: int, parts: int, like: Tensor) -> Tensor:
    """Return whether each position belongs to each part, as 0 and 1, shape ``(parts, size)``.

    Args:
        size: Number of positions.
        parts: Number of parts.
        like: Has the dtype and the device of the result.
    """
    parts_ = torch.arange(parts, device=like.device)
    return (owners(size, parts, like.device) == parts_[:, None]).to(like.dtype)


def cell_means(x: Tensor, rows: int, cols: int) -> Tensor:
    """Return the mean of each cell of a grid, shape ``(..., rows, cols)``.

    Args:
        x: Floating point, shape ``(..., H, W)``.
        rows: Number of rows of the grid.
        cols: Number of columns.
    """
    down, right = members(x.size(-2), rows, x), members(x.size(-1), cols, x)
    return (down / down.sum(1, keepdim=True)) @ x @ (right / right.sum(1, keepdim=True)).T


def block_shares(saliency: Tensor, rows: int, cols: int) -> Tensor:
    """Return each block's share of its image's saliency, equal where there is none, ``(N, rows, cols)``.

    Args:
        saliency: At least 0, floating point, shape ``(N, H, W)``.
        rows: Number of rows of the grid.
        cols: Number of columns.
    """
    mass = members(saliency.size(1), rows, saliency) @ saliency @ members(saliency.size(2), cols, saliency).T
    total = mass.sum((1, 2), keepdim=True)
    return torch.where(total > 0, mass / total, 1 / (rows * cols))


def to_pixels(blocks: Tensor, height: int, width: int) -> Tensor:
    """Return the value of each pixel's block, shape ``(..., height, width)``.

    Args:
        blocks: Values of a grid, shape ``(..., rows, cols)``.
        height: Height of the image.
        width: Width of the image.
    """
    rows, cols = (
        owners(size, parts, blocks.device)
        for size, parts in zip((height, width), blocks.shape[-2:], strict=True)
    )
    return blocks.index_select(-2, rows).index_select(-1, cols)
