"""Blocks of a grid moved to where they are seen."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["transport_blocks"]

# Gains are whole numbers of 2^-30, so that sums are exact and no rounding error passes for a gain. A number
# carries the place that it belongs to in its last 16 bits.
_UNIT = 2**30
_BITS = 16
_NEVER = -(2**40)


def transport_blocks(
    saliency: Tensor, visible: Tensor, eps: float, *, rounds: int = 3, links: int = 2
) -> Tensor:
    """Return for each place of a grid the block to show there, a permutation.

    Minimises ``eps |place - block|^2 - saliency_block``, summed over the visible places, with positions from
    0 to 1 along each dimension. All blocks begin where they are. Then those that nobody sees push others
    away: one goes to a visible place, whose block goes on to another, and so on, until one is dropped where
    the first came from. The best chains are found like shortest paths; in each round those that do not meet
    a better one are carried out. No round makes the sum larger.

    Args:
        saliency: Of each block, in [0, 1], floating point, shape ``(N, H, W)``.
        visible: Whether a place is seen, bool, shape ``(N, H, W)``.
        eps: Weight of the distance, at least 0.
        rounds: How often blocks push.
        links: How often a chain goes on, at most.

    Returns:
        The block at each place, both counted row by row, int64, shape ``(N, H * W)``.

    Example:
        >>> import torch
        >>> saliency, visible = torch.tensor([[[0.1, 0.9]]]), torch.tensor([[[True, False]]])
        >>> transport_blocks(saliency, visible, eps=0.5)
        tensor([[1, 0]])
        >>> transport_blocks(saliency, visible, eps=1.0)
        tensor([[0, 1]])
    """
    n, height, width = saliency.shape
    cells, device = height * width, saliency.device
    # The batch goes last: slices of the grid are then long runs of memory.
    seen = visible.flatten(1).T.contiguous()
    worth = (saliency.flatten(1).T * _UNIT).round().long()
    down, right = (_apart(size, eps, device) for size in (height, width))
    distance = (down[:, None, :, None] + right[None, :, None, :]).flatten()  # by block and place
    places = torch.arange(cells, device=device)[:, None].expand(cells, n)
    block, at = places.contiguous(), places.contiguous()  # the block of each place, the place of each block
    for _ in range(rounds):
        share = worth.gather(0, block)
        cost = distance.take(block * cells + places) - share
        # What a place gains beside the share of a block that comes in: its own is dropped, or goes on.
        dropped = cost.masked_fill(~seen, _NEVER)
        gain, onward = dropped, torch.full_like(block, -1)
        for _ in range(links):
            reached, target = _reach(gain, down, right)
            pushed = dropped + share + reached.gather(0, block)
            onward = torch.where(pushed > gain, target.gather(0, block), onward)
            gain = torch.maximum(gain, pushed)
        reached, first = _reach(gain, down, right)
        total = worth + reached
        key = (total << _BITS) + places  # in the order of the totals, and each only once
        key = key.masked_fill(seen.gather(0, at) | (total <= 0), -1)
        block = _carry_out(block, at, key, first, onward, links)
        at = torch.empty_like(at).scatter_(0, block, places)
    return block.T.contiguous()


def _apart(size: int, eps: float, device: torch.device) -> Tensor:
    """Return the distance between positions along a dimension, in units, shape ``(size, size)``.

    What is farther than 2 is no nearer than any gain, and no farther.
    """
    steps = torch.arange(size, device=device)
    square = (steps[:, None] - steps).square() * _UNIT
    return (square * (eps / max(1, size - 1) ** 2)).clamp(max=2 * _UNIT).round().long()


def _reach(gain: Tensor, down: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest gain less the distance to it, as seen from each place, and where it is.

    The distance is a sum, so that one dimension is searched after the other.

    Args:
        gain: Of each place, in units, int64, shape ``(H * W, N)``.
        down: Distance between rows, shape ``(H, H)``.
        right: Distance between columns, shape ``(W, W)``.
    """
    best = (gain << _BITS) + torch.arange(len(gain), device=gain.device)[:, None]
    best = best.view(len(down), len(right), -1)
    best = (best[:, None] - (down << _BITS)[:, :, None, None]).amax(0)
    best = (best[:, :, None] - (right << _BITS)[:, :, None]).amax(1).view_as(gain)
    return best >> _BITS, best & (2**_BITS - 1)


def _carry_out(block: Tensor, at: Tensor, key: Tensor, first: Tensor, onward: Tensor, links: int) -> Tensor:
    """Return the block of each place after those chains that meet no chain with a larger key.

    Args:
        block: The block of each place, int64 like all, shape ``(cells, N)``.
        at: The place of each block.
        key: Of the chain that each block begins, the block in its last bits; -1: it begins none.
        first: The place that each block goes to.
        onward: The place that the block of each place then goes to; -1: it is dropped.
        links: How often a chain goes on, at most.
    """
    cells = len(block)
    ends, after = onward < 0, onward.clamp(min=0)
    claim = torch.full_like(key, -1).scatter_reduce(0, first, key, "amax")
    for _ in range(links):
        claim = claim.scatter_reduce(0, after, claim.masked_fill(ends, -1), "amax")
    wins, ended, place = key >= 0, torch.zeros_like(ends), first
    for _ in range(links + 1):
        wins = wins & (ended | (claim.gather(0, place) == key))
        ended = ended | ends.gather(0, place)
        place = after.gather(0, place)
    wins = wins & ended  # a chain that runs into itself does not end
    begins = claim & (2**_BITS - 1)
    begins = begins.clamp(max=cells - 1)  # of places that nobody claims
    moves = (claim >= 0) & wins.gather(0, begins)
    to = torch.where(ends, at.gather(0, begins), after)
    # Whatever stays is written into one more row, which is thrown away.
    new = torch.cat([block, block[:1]])
    new.scatter_(
        0, first.masked_fill(~wins, cells), torch.arange(cells, device=key.device)[:, None].expand_as(key)
    )
    new.scatter_(0, to.masked_fill(~moves, cells), block)
    return new[:cells]
