"""Several grids that show the same labels, made together so that each label is shared out among them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["JointCosts", "joint_energy", "label_jointly", "match_greedily"]

_HALVED = 3  # so many of a grid's labels are shown half and half
_WHOLE = 1e-3  # what |z|^2 costs in a cell: 5e-4 less for two halves than for a whole label
_NEVER = 1e6  # the cost of what must not be


@dataclass(frozen=True)
class JointCosts:
    """What several grids cost that show the same labels; `joint_energy` is their sum.

    Attributes:
        cost: Cost of each of ``n`` labels in each cell, float32 or float64, shape ``(P, n, h, w)``, for P
            problems apart from each other.
        near: How much two labels are felt as one, at least 0, shape ``(P, n, n)``.
        smooth: Cost of neighbours with different labels, at least 0.
        spread: Cost of a label that other grids show too, for each of their cells and each own one.
        allowed: So many cells of other grids may show a label unfelt.
        beyond: Whether only the cells beyond these are felt then, instead of all.
    """

    cost: Tensor
    near: Tensor
    smooth: float
    spread: float
    allowed: float = 0.0
    beyond: bool = False

    def felt(self, cells: Tensor) -> Tensor:
        """Return how many cells of other grids are felt.

        Args:
            cells: How many show a label, any shape.
        """
        if self.beyond:
            return (cells - self.allowed).clamp(min=0)
        return cells * (cells > self.allowed)


class _Kinds(NamedTuple):
    """What cells can show: labels, whole or two of them half and half.

    Attributes:
        table: The share of each label in each kind, shape ``(L, n)``.
        codes: The numbers of the kinds, shape ``(L, 1)``.
        alike: Products of the kinds' shares, shape ``(L, L)``; None: they are whole labels.
    """

    table: Tensor
    codes: Tensor
    alike: Tensor | None = None

    @classmethod
    def whole(cls, n: int, like: Tensor) -> _Kinds:
        """Return whole labels."""
        codes = torch.arange(n, device=like.device)
        return cls(torch.eye(n, dtype=like.dtype, device=like.device), codes[:, None])

    def with_halves(self) -> _Kinds:
        """Return these, and pairs of the first of them."""
        pairs = combinations(self.table[:_HALVED].unbind(), 2)
        table = torch.stack([*self.table.unbind(), *((first + second) / 2 for first, second in pairs)])
        codes = torch.arange(len(table), device=table.device)
        return _Kinds(table, codes[:, None], table @ table.T)


class _Lattice(NamedTuple):
    """The cells of a grid, one after the other, and what they cost.

    Attributes:
        beside: What two cells cost that differ, shape ``(cells, cells)``: 0 unless they are neighbours.
        square: What ``|z|^2`` costs in each cell, shape ``(cells,)``.
        dark: The dark cells of a checkerboard, bool, shape ``(cells,)``.
    """

    beside: Tensor
    square: Tensor
    dark: Tensor

    @classmethod
    def of(cls, costs: JointCosts) -> _Lattice:
        """Return the cells of what the costs are of."""
        height, width = costs.cost.shape[2:]
        cells = torch.arange(height * width, device=costs.cost.device)
        row, column = cells // width, cells % width
        apart = (row[:, None] - row).abs() + (column[:, None] - column).abs()
        beside = costs.smooth * (apart == 1).to(costs.cost.dtype)
        return cls(beside, beside.sum(1) / 2 + _WHOLE, (row + column) % 2 == 0)

    def energy(self, z: Tensor, cost: Tensor) -> Tensor:
        """Return what grids ``(..., n, cells)`` cost by themselves."""
        return (z * (cost + self.square * z - z @ self.beside / 2)).sum((-2, -1))

    def settle(self, z: Tensor, cost: Tensor, kinds: _Kinds, sweeps: int) -> Tensor:
        """Return 0 and 1 for each kind of cell, after setting each cell to its best in turn.

        Args:
            z: Where to begin, shape ``(..., L, cells)``.
            cost: Cost of each kind, broadcast against it.
            kinds: What they are.
            sweeps: How often each cell is set.
        """
        if kinds.alike is not None:
            cost = cost + kinds.alike.diagonal()[:, None] * self.square
        for cells in (self.dark, ~self.dark) * sweeps:
            pull = z @ self.beside
            pull = pull if kinds.alike is None else kinds.alike @ pull
            best = (cost - pull).min(-2, keepdim=True).indices == kinds.codes  # argmin is 10 times slower
            z = torch.where(cells, best.to(z.dtype), z)
        return z


def joint_energy(shown: Tensor, costs: JointCosts) -> Tensor:
    """Return what grids cost together, shape ``(P,)``.

    With ``z`` the share of each label in each cell it is the sum over the grids of ``cost . z``, of
    ``smooth / 2 |z_p - z_q|^2`` over neighbours p and q (``smooth`` where two labels meet), of a thousandth
    of ``|z|^2``, and of ``spread * felt(near @ others) . own``: how many cells a label has in the
    other grids, and in this one.

    Args:
        shown: Share of each label in each cell of each grid, shape ``(P, grids, n, h, w)``.
        costs: The costs.
    """
    own = shown.sum((3, 4))
    others = own.sum(1, keepdim=True) - own
    apart = costs.spread * (costs.felt(others @ costs.near.mT) * own).sum((1, 2))
    return _Lattice.of(costs).energy(shown.flatten(3), costs.cost.flatten(2)[:, None]).sum(1) + apart


def label_jointly(
    costs: JointCosts,
    start: Tensor,
    real: Tensor,
    *,
    sweeps: int = 4,
    most: int = 3,
    distinct: bool = True,
) -> Tensor:
    """Return as many grids as there are labels, with a low `joint_energy` (Co-Mixup's iteration).

    Each sweep makes one grid after the other, while the others stay. What these show of a label costs twice
    ``spread`` times what is felt of it, for each cell: the slope of the joint energy, but for the step at
    ``allowed``. Under these costs cells are set to their best from three beginnings: the best label
    of each cell, the best for all, and what is there. Of what was found and what is there, that with the
    lowest joint energy is taken, which therefore falls from the end of the first sweep on. A grid shows
    ``most`` labels, those that have most of it; from the second sweep on cells can show two of
    its first three half and half.

    Args:
        costs: The costs.
        start: A label for each cell of each grid to begin with, int64, shape ``(P, n, h, w)``.
        real: Which labels there are, and which grids: the first of them, bool, shape ``(P, n)``.
        sweeps: How often each grid is made.
        most: How many labels a grid shows, at most.
        distinct: Whether grids that show the same labels are told apart before the last sweep: one pays
            ``spread`` for cells of the first of these labels, another for the second.

    Returns:
        Share of each label in each cell of each grid, 0, 1/2 or 1, shape ``(P, n, n, h, w)``.
    """
    n = costs.cost.size(1)
    lattice, whole = _Lattice.of(costs), _Kinds.whole(n, costs.cost)
    kinds = _Kinds.whole(min(most, n), costs.cost)
    near, exists = costs.near.mT, real.to(costs.cost.dtype)[..., None]
    cost = costs.cost.flatten(2).masked_fill(~real[..., None], _NEVER)
    shown = (start.flatten(2)[:, :, None] == whole.codes) * exists[..., None]
    own = shown.sum(3)
    paid = torch.zeros_like(own)
    for sweep in range(sweeps):
        if sweep == 1:
            kinds = kinds.with_halves()
        if distinct and sweep == sweeps - 1 > 0:
            paid = costs.spread * _told_apart(own)
        for grid in range(n):
            present = shown[:, grid]
            own[:, grid] = 0  # from here on what the others show
            others = (own.sum(1, keepdim=True) - own) @ near
            felt = costs.felt(others[:, grid])
            alone = cost + paid[:, grid, :, None]
            slope = alone + (2 * costs.spread * felt)[..., None]
            found = _found(slope, present, whole, kinds, lattice)
            if sweep > 0:  # what it began with may show any number of labels
                found = torch.cat([present[:, None], found], 1)
            shares = found.sum(3)
            all_felt = costs.felt(others[:, None] + (shares @ near)[:, :, None])
            apart = (felt[:, None] * shares).sum(2) + (all_felt * own[:, None]).sum((2, 3))
            best = (lattice.energy(found, alone[:, None]) + costs.spread * apart).min(1).indices
            best = best.view(-1, 1, 1, 1).expand(-1, 1, *cost.shape[1:])
            shown[:, grid] = found.gather(1, best)[:, 0] * exists[:, grid, None]
            own[:, grid] = shown[:, grid].sum(2)
    return shown.view(*shown.shape[:3], *costs.cost.shape[2:])


def match_greedily(scores: Tensor) -> Tensor:
    """Return a row for each column, each row once: the largest score of all, then of the rest, and so on.

    Args:
        scores: Finite, shape ``(P, n, n)``.

    Returns:
        Rows by column, int64, shape ``(P, n)``.

    Example:
        >>> import torch
        >>> match_greedily(torch.tensor([[[3.0, 5.0], [1.0, 4.0]]]))
        tensor([[1, 0]])
    """
    n = scores.size(1)
    places = torch.arange(n, device=scores.device)
    rows = torch.zeros(scores.shape[:2], dtype=torch.int64, device=scores.device)
    for _ in range(n):
        best = scores.flatten(1).argmax(1, keepdim=True)
        row, column = best // n, best % n
        rows = torch.where(places == column, row, rows)
        taken = (places == row)[:, :, None] | (places == column)[:, None]
        scores = scores.masked_fill(taken, -torch.inf)
    return rows


def _found(cost: Tensor, present: Tensor, whole: _Kinds, kinds: _Kinds, lattice: _Lattice) -> Tensor:
    """Return grids with low costs of their own, shape ``(P, 3, n, cells)``.

    Args:
        cost: Cost of each label in each cell, shape ``(P, n, cells)``.
        present: What is there, of the same shape.
        whole: All labels.
        kinds: What cells can show of those labels that have most of a grid.
        lattice: The cells.
    """
    by_cell = cost.min(1, keepdim=True).indices == whole.codes
    by_grid = (cost.sum(2, keepdim=True).min(1, keepdim=True).indices == whole.codes).expand_as(by_cell)
    z = torch.stack([by_cell.to(cost.dtype), by_grid.to(cost.dtype), present], 1)
    z = lattice.settle(z, cost[:, None], whole, sweeps=1)
    counts, which = z.sum(3).topk(kinds.table.size(1), 2)
    at = which[..., None].expand(*which.shape, cost.size(2))
    missing = (counts == 0).to(cost.dtype)[..., None] * _NEVER
    kept = cost[:, None].expand_as(z).gather(2, at) + missing
    begun = pad(z.gather(2, at), (0, 0, 0, len(kinds.table) - counts.size(2)))
    settled = lattice.settle(begun, kinds.table @ kept, kinds, sweeps=2)
    return torch.zeros_like(z).scatter(2, at, kinds.table.T @ settled)


def _told_apart(own: Tensor) -> Tensor:
    """Return which labels are to cost more in which grids, as 0 and 1, shape ``(P, n, n)``.

    Of two grids that show the same labels, two or more, the earlier is kept from the first of these, the
    later from the second.

    Args:
        own: How many cells each grid gives to each label, shape ``(P, n, n)``.
    """
    used = own > 0
    several = used.sum(2, keepdim=True) > 1
    same = (used[:, :, None] == used[:, None]).all(3).triu(1)
    order = used.cumsum(2)
    first, second = used & (order == 1), used & (order == 2)
    earlier, later = same.any(2)[..., None], same.any(1)[..., None]
    return (several & ((first & earlier) | (second & later))).to(own.dtype)
