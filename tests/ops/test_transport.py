"""Blocks that move, against the published heuristic and against exact assignments."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lightning_msda.ops.transport import transport_blocks
from tests.helpers import positions, seeded


def instances(n: int, height: int, width: int, power: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return saliency, the more uneven the larger the power, and masks of all sizes."""
    generator = seeded(seed)
    saliency = torch.rand(n, height, width, generator=generator).log().neg() ** power
    visible = torch.rand(n, height, width, generator=generator) < torch.rand(n, 1, 1, generator=generator)
    return saliency / saliency.sum((1, 2), keepdim=True), visible


def cost_matrix(saliency: Tensor, visible: Tensor, eps: float) -> Tensor:
    """Return the cost of each block in each place, by its definition."""
    height, width = saliency.shape
    costs = torch.zeros(height * width, height * width, dtype=torch.float64)
    for i, (y, x) in enumerate(positions((height, width))):
        for j, (to_y, to_x) in enumerate(positions((height, width))):
            far = ((y - to_y) / max(1, height - 1)) ** 2 + ((x - to_x) / max(1, width - 1)) ** 2
            costs[i, j] = eps * far - float(saliency[y, x]) * bool(visible[to_y, to_x])
    return costs


def claimed(costs: Tensor, rounds: int) -> Tensor:
    """Return the published heuristic's plan: blocks claim places, and the cheapest claim of each wins."""
    costs = costs.clone()
    n = len(costs)
    for _ in range(rounds):
        plan = torch.zeros(n, n, dtype=torch.bool)
        claims = costs.argmin(1)
        for place in range(n):
            rivals = [block for block in range(n) if claims[block] == place]
            if rivals:
                winner = min(rivals, key=lambda block: float(costs[block, place]))
                plan[winner, place] = True
                for loser in rivals:
                    costs[loser, place] += loser != winner
    return plan


def cost_of(blocks: Tensor, costs: Tensor, visible: Tensor) -> float:
    return float(costs[blocks, torch.arange(len(blocks))][visible.flatten()].sum())


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 6), (2, 2), (4, 4), (3, 7), (8, 8)])
@pytest.mark.parametrize("power", [1.0, 3.0, 8.0])
def test_every_block_is_in_one_place_and_costs_no_more_than_by_claims(
    height: int, width: int, power: float
) -> None:
    saliency, visible = instances(12, height, width, power)
    blocks = transport_blocks(saliency, visible, 0.8)
    assert torch.equal(blocks.sort(1).values, torch.arange(height * width).expand(12, -1))
    for i in range(12):
        costs = cost_matrix(saliency[i], visible[i], 0.8)
        plan, found = claimed(costs, max(height, width)), cost_of(blocks[i], costs, visible[i])
        shown = visible[i].flatten()
        assert found <= float(costs[plan & shown].sum()) + 1e-6 or not plan[:, shown].any(0).all()
        assert found <= cost_of(torch.arange(len(costs)), costs, visible[i]) + 1e-6


@pytest.mark.parametrize(("size", "power"), [(2, 3.0), (4, 1.0), (4, 3.0), (6, 1.0), (8, 8.0)])
def test_the_assignment_is_the_best_there_is(size: int, power: float) -> None:
    saliency, visible = instances(30, size, size, power, seed=1)
    blocks, optimal = transport_blocks(saliency, visible, 0.8), 0
    for i in range(30):
        costs, shown = cost_matrix(saliency[i], visible[i], 0.8), visible[i].flatten()
        rows, cols = linear_sum_assignment(costs[:, shown].numpy())
        best = float(costs[:, shown].numpy()[rows, cols].sum())
        optimal += cost_of(blocks[i], costs, visible[i]) <= best + 1e-6
    assert optimal >= 29


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.5])
def test_a_salient_block_lands_where_it_is_seen(eps: float) -> None:
    saliency, visible = instances(40, 4, 5, 1.0)
    saliency = 0.05 * saliency
    saliency[:, 1, 3] += 0.95
    visible[:, 3, 0] = True
    blocks = transport_blocks(saliency, visible, eps)
    place = (blocks == 8).long().argmax(1)
    assert bool(visible.flatten(1).gather(1, place[:, None]).all())


def test_nothing_moves_where_it_does_not_pay() -> None:
    saliency, visible = instances(20, 4, 4, 3.0)
    stay = torch.arange(16).expand(20, -1)
    assert torch.equal(transport_blocks(saliency, visible, 1e6), stay)
    assert torch.equal(transport_blocks(torch.full_like(saliency, 1 / 16), visible, 0.0), stay)
    assert torch.equal(transport_blocks(saliency, torch.ones_like(visible), 0.8), stay)
    assert torch.equal(transport_blocks(saliency, torch.zeros_like(visible), 0.8), stay)


def test_without_a_cost_of_distance_the_most_salient_are_seen() -> None:
    saliency, visible = instances(20, 4, 4, 1.0)
    blocks = transport_blocks(saliency, visible, 0.0, rounds=16)
    for i in range(20):
        seen = blocks[i][visible[i].flatten()]
        best = saliency[i].flatten().topk(len(seen)).values
        assert torch.allclose(saliency[i].flatten()[seen].sort(descending=True).values, best)
