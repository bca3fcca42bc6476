"""Labels of a grid, against all labellings and against exact solutions of special cases."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from lightning_msda.ops.labelling import label_grid, labelling_energy
from tests.helpers import positions, seeded


def instances(
    n: int, labels: int, height: int, width: int, seed: int = 0, lowest: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return random costs, with weights that matter as much as they do."""
    generator = seeded(seed)
    unary = torch.rand(n, labels, height, width, generator=generator)
    shapes = [(n, height - 1, width), (n, height, width - 1)]
    down, right = (lowest + (1 - lowest) * torch.rand(shape, generator=generator) for shape in shapes)
    scale = 2 * torch.rand(n, 1, 1, generator=generator)
    return unary, scale * down, scale * right


def energy_of(labels: Tensor, unary: Tensor, down: Tensor, right: Tensor) -> float:
    """Return the energy of one labelling, by its definition."""
    top, total = len(unary) - 1, 0.0
    for y, x in positions(labels.shape):
        here = int(labels[y, x])
        total += float(unary[here, y, x])
        if y + 1 < labels.size(0):
            total += float(down[y, x]) * ((here - int(labels[y + 1, x])) / top) ** 2
        if x + 1 < labels.size(1):
            total += float(right[y, x]) * ((here - int(labels[y, x + 1])) / top) ** 2
    return total


def lowest_energies(unary: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Return the lowest energy of each instance, by trying all labellings."""
    _, labels, height, width = unary.shape
    every = torch.cartesian_prod(*[torch.arange(labels)] * (height * width)).view(-1, height, width)
    share = every.double() / (labels - 1)
    steps = [share.diff(dim=1).square().flatten(1), share.diff(dim=2).square().flatten(1)]
    picked = torch.nn.functional.one_hot(every.flatten(1), labels).transpose(1, 2).flatten(1).double()
    found = picked @ unary.double().flatten(1).T
    for step, weight in zip(steps, (down, right), strict=True):
        found += step @ weight.double().flatten(1).T
    return found.amin(0)


@pytest.mark.parametrize("labels", [2, 3, 4])
def test_the_energy_is_a_sum_over_cells_and_neighbours(labels: int) -> None:
    costs = instances(3, labels, 3, 5, lowest=-1.0)
    chosen = torch.randint(labels, (3, 3, 5), generator=seeded(1))
    expected = [energy_of(chosen[i], *(part[i] for part in costs)) for i in range(3)]
    assert labelling_energy(chosen, *costs).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("labels", "height", "width"),
    [(2, 2, 2), (3, 2, 2), (4, 2, 2), (2, 3, 3), (2, 1, 1), (4, 1, 5), (2, 3, 4), (3, 3, 2)],
)
def test_of_few_labellings_the_best_is_found_whatever_the_weights(
    labels: int, height: int, width: int
) -> None:
    costs = instances(200, labels, height, width, lowest=-1.0)
    found = labelling_energy(label_grid(*costs), *(part.double() for part in costs))
    assert torch.allclose(found, lowest_energies(*costs), atol=1e-5)


@pytest.mark.parametrize(("labels", "height", "width"), [(3, 3, 3), (4, 3, 3), (2, 4, 4), (3, 2, 5)])
def test_of_many_labellings_one_near_the_best_is_found(labels: int, height: int, width: int) -> None:
    costs = instances(300, labels, height, width)
    if labels > 2:  # convex, as costs from saliency and a binomial prior are
        share = torch.arange(labels)[:, None, None] / (labels - 1)
        low, high = costs[0][:, :1].clone(), costs[0][:, 1:2].clone()
        costs[0].copy_(torch.lerp(low, high, share) + 0.1 * (share - 0.5).square())
    best = lowest_energies(*costs)
    found = labelling_energy(label_grid(*costs), *(part.double() for part in costs))
    assert float((found <= best + 1e-5).double().mean()) >= 0.99
    assert bool((found <= 1.01 * best + 1e-6).all())


@pytest.mark.parametrize("labels", [2, 3, 4])
@pytest.mark.parametrize("size", [5, 16])
def test_the_extremes_are_exact(labels: int, size: int) -> None:
    unary, down, right = instances(20, labels, size, size + 1)
    free = label_grid(unary, torch.zeros_like(down), torch.zeros_like(right))
    assert torch.equal(free, unary.argmin(1))
    tied = label_grid(unary, down + 1000, right + 1000)
    assert torch.equal(tied, unary.sum((2, 3)).argmin(1)[:, None, None].expand_as(tied))


@pytest.mark.parametrize("size", [6, 16])
def test_no_constant_is_better_and_no_single_cell(size: int) -> None:
    unary, down, right = instances(10, 3, size, size, lowest=-0.2)
    chosen = label_grid(unary, down, right)
    found = labelling_energy(chosen, unary, down, right)
    assert bool((found[:, None] <= unary.sum((2, 3)) + 1e-4).all())
    better = torch.zeros(10)
    for (y, x), label in itertools.product([(0, 0), (2, 3), (size - 1, 1)], range(3)):
        other = chosen.clone()
        other[:, y, x] = label
        better += (labelling_energy(other, unary, down, right) < found - 1e-3).float()
    assert int(better.sum()) <= 1  # where negative weights still let it sway


def test_a_grid_turned_or_with_its_labels_reversed_has_the_same_solution() -> None:
    unary, down, right = instances(20, 3, 5, 7)
    chosen = label_grid(unary, down, right)
    turned = label_grid(unary.transpose(2, 3), right.transpose(1, 2), down.transpose(1, 2))
    upright, back = (labelling_energy(each, unary, down, right) for each in (chosen, turned.transpose(1, 2)))
    assert torch.allclose(upright, back, rtol=5e-3)
    alone = torch.cat([label_grid(*(part[i : i + 1] for part in (unary, down, right))) for i in range(20)])
    assert torch.equal(alone, chosen)
