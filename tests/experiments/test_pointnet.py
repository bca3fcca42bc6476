"""PointNet and the points of voxels: order, alignment, which voxels are taken and where they are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_msda.experiments.models import PointNet
from lightning_msda.experiments.models.pointnet import VoxelsToPoints


@pytest.mark.parametrize("align", [False, True])
def test_pointnet_is_blind_to_the_order_of_the_points_and_to_their_repetition(align: bool) -> None:
    network = PointNet(5, align=align, width=128).double().eval()
    points = torch.randn(2, 3, 9, dtype=torch.float64)
    for part in network.modules():  # an alignment begins as the identity
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight)
    logits = network(points)
    torch.testing.assert_close(network(points[:, :, torch.randperm(9)]), logits)
    torch.testing.assert_close(network(torch.cat([points, points[:, :, :4]], 2)), logits)
    assert not torch.allclose(network(points + 1), logits)


def test_an_alignment_begins_as_the_identity() -> None:
    network, points = PointNet(5, align=True, width=32), torch.randn(4, 3, 9)
    torch.testing.assert_close(network.align_points(points), points)


@pytest.mark.parametrize("training", [False, True])
def test_points_are_centres_of_occupied_voxels_each_about_as_often(training: bool) -> None:
    grid = (torch.rand(3, 1, 4, 5, 6) < torch.tensor([0.1, 0.5, 1.0]).view(3, 1, 1, 1, 1)).float()
    points = VoxelsToPoints(400).train(training)(grid)
    assert points.shape == (3, 3, 400)
    for sample, cloud in zip(grid, points, strict=True):
        occupied = sample[0].nonzero()
        sides = torch.tensor(sample[0].shape)
        where = (((cloud.T + 1) * sides - 1) / 2).round().long()
        found, times = where.unique(dim=0, return_counts=True)
        assert torch.equal(found, occupied)
        assert bool(((times - 400 / len(occupied)).abs() <= 2).all())
        assert float(cloud.abs().max()) < 1


def test_as_many_of_the_voxels_as_there_are_points_are_left() -> None:
    grid = torch.ones(2, 1, 8, 8, 8)
    points = VoxelsToPoints(100).eval()(grid)
    assert all(len(cloud.T.unique(dim=0)) == 100 for cloud in points)
    first, second = (VoxelsToPoints(100)(grid) for _ in range(2))  # another choice at each step of training
    assert not torch.equal(first, second)
    assert all(len(cloud.T.unique(dim=0)) > 80 for cloud in first)


def test_a_grid_without_voxels_gives_points_at_the_centre() -> None:
    grid = torch.zeros(2, 1, 3, 3, 3)
    grid[1, 0, 2, 0, 1] = 1
    points = VoxelsToPoints(4)(grid)
    assert torch.equal(points[0], torch.zeros(3, 4))
    torch.testing.assert_close(points[1], torch.tensor([2 / 3, -2 / 3, 0]).view(3, 1).expand(3, 4))
