"""Grids that share their labels out, against all grids and against the energy in plain loops."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_msda.ops.joint_labelling import JointCosts, joint_energy, label_jointly, match_greedily
from tests.helpers import positions, seeded


def costs_of(
    parts: int, n: int, height: int, width: int, seed: int = 0, omega: float = 0.1, **others: Any
) -> JointCosts:
    """Return costs as saliency has them: minus the cells' shares of each label."""
    generator = seeded(seed)
    saliency = torch.rand(parts, n, height, width, generator=generator, dtype=torch.float64) ** 3
    distance = torch.rand(parts, n, n, generator=generator, dtype=torch.float64)
    near = (1 - omega) * torch.eye(n, dtype=torch.float64) + omega * (distance + distance.mT) / n
    cells = height * width
    values: dict[str, Any] = {"smooth": 0.32 / cells, "spread": 1 / cells, "allowed": 0.83 * cells, **others}
    return JointCosts(-saliency / saliency.sum((2, 3), keepdim=True), near, **values)


def begun(costs: JointCosts, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return a random beginning, and that all labels are there."""
    parts, n, height, width = costs.cost.shape
    return torch.randint(n, (parts, n, height, width), generator=seeded(seed)), torch.ones(parts, n).bool()


def energy_of(shown: Tensor, costs: JointCosts, part: int) -> float:
    """Return the energy of one problem's grids, by its definition."""
    grids, n, height, width = shown.shape
    own = [[float(shown[k, j].sum()) for j in range(n)] for k in range(grids)]
    total = 0.0
    for k, y, x in positions((grids, height, width)):
        z = shown[k, :, y, x]
        total += float((z * costs.cost[part, :, y, x]).sum()) + 1e-3 * float(z.square().sum())
        for dy, dx in ((1, 0), (0, 1)):
            if y + dy < height and x + dx < width:
                other = shown[k, :, y + dy, x + dx]
                total += costs.smooth / 2 * float((z - other).square().sum())
    for k, j in positions((grids, n)):
        cells = sum(
            float(costs.near[part, j, i]) * sum(own[o][i] for o in range(grids) if o != k) for i in range(n)
        )
        over = max(0.0, cells - costs.allowed) if costs.beyond else cells * (cells > costs.allowed)
        total += costs.spread * over * own[k][j]
    return total


def lowest_energies(costs: JointCosts, grids: int, *, halves: bool = False) -> Tensor:
    """Return the lowest energy of each problem, by trying all grids."""
    parts, n, height, width = costs.cost.shape
    kinds = list(torch.eye(n, dtype=torch.float64))
    if halves:
        kinds += [(kinds[a] + kinds[b]) / 2 for a, b in itertools.combinations(range(n), 2)]
    cells = grids * height * width
    every = torch.cartesian_prod(*[torch.arange(len(kinds))] * cells).view(-1, grids, height, width)
    shown = torch.stack(kinds)[every].movedim(-1, 2)
    each = []
    for part in range(parts):
        one = JointCosts(
            costs.cost[part, None].expand(len(shown), -1, -1, -1),
            costs.near[part, None],
            costs.smooth,
            costs.spread,
            costs.allowed,
            costs.beyond,
        )
        each.append(joint_energy(shown, one).amin())
    return torch.stack(each)


@pytest.mark.parametrize("beyond", [False, True])
@pytest.mark.parametrize(("height", "width"), [(2, 3), (1, 1), (4, 4)])
def test_the_joint_energy_is_that_of_its_definition(height: int, width: int, beyond: bool) -> None:
    costs = costs_of(2, 3, height, width, allowed=0.4 * height * width)
    costs = JointCosts(costs.cost, costs.near, costs.smooth, costs.spread, costs.allowed, beyond)
    shown = label_jointly(costs, *begun(costs), sweeps=2)
    wanted = [energy_of(shown[part], costs, part) for part in range(2)]
    assert joint_energy(shown, costs).tolist() == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize(("height", "width", "n"), [(2, 3, 3), (3, 3, 2), (2, 2, 4)])
def test_a_grid_without_others_is_the_best_of_all(height: int, width: int, n: int) -> None:
    # What others show is free here, so that the grids are independent and all alike.
    costs = costs_of(100, n, height, width, spread=0.0)
    found = joint_energy(label_jointly(costs, *begun(costs), most=n, sweeps=1), costs)
    gaps = found / n - lowest_energies(costs, 1)
    assert float(gaps.min()) > -1e-12
    assert float((gaps < 1e-9).double().mean()) >= 0.85 and float(gaps.mean()) < 2e-3  # of about 1


@pytest.mark.parametrize(
    ("height", "width", "n", "halves"),
    [(2, 2, 2, False), (2, 2, 2, True), (1, 4, 2, False), (1, 3, 3, False)],
)
def test_grids_together_are_near_the_best_of_all(height: int, width: int, n: int, halves: bool) -> None:
    costs = costs_of(100, n, height, width)
    start, real = begun(costs)
    at_random = joint_energy((start[:, :, None] == torch.arange(n)[:, None, None]).double(), costs)
    found = joint_energy(label_jointly(costs, start, real, distinct=False), costs)
    best = lowest_energies(costs, n, halves=halves)
    assert float((found - best).mean()) < 0.1 * float((at_random - best).mean())
    assert not halves or bool((found > best - 1e-9).all())
    if n == 2:
        assert float((found < best + 1e-9).double().mean()) > 0.7


@pytest.mark.parametrize("side", [2, 4, 7])
@pytest.mark.parametrize("beyond", [False, True])
def test_the_energy_falls_with_every_sweep(side: int, beyond: bool) -> None:
    costs = costs_of(6, 9, side, side, seed=side)
    costs = JointCosts(costs.cost, costs.near, costs.smooth, costs.spread, costs.allowed, beyond)
    start, real = begun(costs)
    at_random = (start[:, :, None] == torch.arange(9)[:, None, None]).double()
    by_sweep = [
        joint_energy(label_jointly(costs, start, real, sweeps=sweeps, distinct=False), costs)
        for sweeps in range(1, 7)
    ]
    assert all(bool((later <= earlier + 1e-9).all()) for earlier, later in itertools.pairwise(by_sweep))
    assert bool((by_sweep[3] < joint_energy(at_random, costs)).all())


def test_together_they_are_better_than_each_by_itself() -> None:
    costs = costs_of(6, 9, 4, 4)
    alone = JointCosts(costs.cost, costs.near, costs.smooth, 0.0)
    start, real = begun(costs)
    apart = label_jointly(alone, start, real, distinct=False)  # each the most salient, all the same
    jointly = label_jointly(costs, start, real, distinct=False)
    assert bool((joint_energy(jointly, costs) < joint_energy(apart, costs) - 1).all())
    used = [(shown.sum((1, 3, 4)) > 0).sum(1).double().mean() for shown in (apart, jointly)]
    assert used[1] == 9 and used[0] < 6  # labels that are seen at all


@pytest.mark.parametrize("most", [1, 2, 3, 5])
def test_cells_show_one_label_or_two_halves_and_grids_few(most: int) -> None:
    costs = costs_of(4, 7, 4, 5)
    shown = label_jointly(costs, *begun(costs), most=most)
    assert shown.shape == (4, 7, 7, 4, 5)
    assert torch.equal(shown.sum(2), torch.ones(4, 7, 4, 5, dtype=torch.float64))
    assert bool(((shown == 0) | (shown == 0.5) | (shown == 1)).all())
    assert int((shown.sum((3, 4)) > 0).sum(2).max()) <= most
    assert bool((shown == 0.5).any()) == (most > 1)
    assert not bool((label_jointly(costs, *begun(costs), most=most, sweeps=1) == 0.5).any())


def test_what_is_not_there_is_not_shown_and_changes_nothing() -> None:
    costs = costs_of(3, 5, 3, 3)
    start, real = begun(costs)
    start = start % 4
    start[:, 4] = 7  # no grid at all
    real[:, 4] = False
    shown = label_jointly(costs, start, real)
    assert not bool(shown[:, 4].any()) and not bool(shown[:, :, 4].any())
    fewer = JointCosts(
        costs.cost[:, :4], costs.near[:, :4, :4], costs.smooth, costs.spread, costs.allowed, costs.beyond
    )
    assert torch.equal(shown[:, :4, :4], label_jointly(fewer, start[:, :4], real[:, :4]))


def test_problems_do_not_know_of_each_other() -> None:
    costs = costs_of(3, 5, 3, 3)
    start, real = begun(costs)
    alone = JointCosts(costs.cost[1:2], costs.near[1:2], costs.smooth, costs.spread, costs.allowed)
    assert torch.equal(label_jointly(costs, start, real)[1:2], label_jointly(alone, start[1:2], real[1:2]))


def test_grids_of_the_same_labels_are_told_apart() -> None:
    costs = costs_of(40, 8, 2, 2, spread=0.25, allowed=3.3)
    same = []
    for distinct in (False, True):
        used = label_jointly(costs, *begun(costs), most=2, distinct=distinct).sum((3, 4)) > 0
        alike = (used[:, :, None] == used[:, None]).all(3).triu(1).sum()
        same.append(int(alike))
    assert same[1] < 0.7 * same[0]


def test_rows_are_matched_by_the_largest_score_first() -> None:
    scores = torch.rand(20, 6, 6, generator=seeded())
    for found, score in zip(match_greedily(scores), scores, strict=True):
        assert sorted(found.tolist()) == list(range(6))
        left, wanted = score.clone(), {}
        for _ in range(6):
            row, column = divmod(int(left.argmax()), 6)
            wanted[column] = row
            left[row], left[:, column] = -1, -1
        assert found.tolist() == [wanted[column] for column in range(6)]
