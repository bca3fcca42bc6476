"""PointNet (Qi et al., CVPR 2017, arXiv:1612.00593), for point clouds and for grids of voxels."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override

__all__ = ["PointNet", "VoxelPointNet", "VoxelsToPoints"]


class PointNet(nn.Module):
    """PointNet for point clouds ``(N, 3, P)``, blind to the order of the points.

    Without ``align`` it is the paper's vanilla form, which FMix trained (that of Kaolin).

    Args:
        num_classes: Number of classes.
        align: Whether points and features are aligned by learned transforms. The paper's penalty on the
            latter is left out.
        dropout: Chance that one of the last hidden layer's features is dropped.
        width: Channels of the widest layer, of which the others are fractions; a multiple of 16.

    Raises:
        ValueError: If the width is not a multiple of 16.
    """

    def __init__(
        self, num_classes: int = 10, align: bool = False, dropout: float = 0.3, width: int = 1024
    ) -> None:
        super().__init__()
        if width < 16 or width % 16:
            raise ValueError(f"width={width} must be a multiple of 16, such as 1024.")
        narrow = width // 16
        self.align_points = _Alignment(3, width) if align else nn.Identity()
        self.layer1 = _for_each_point(3, narrow, narrow)
        self.align_features = _Alignment(narrow, width) if align else nn.Identity()
        self.layer2 = _for_each_point(narrow, narrow, width // 8, width)
        self.head = nn.Sequential(
            _for_each_cloud(width, width // 2, width // 4),
            nn.Dropout(dropout),
            nn.Linear(width // 4, num_classes),
        )

    @override
    def forward(self, points: Tensor) -> Tensor:
        features = self.layer1(self.align_points(points))
        logits: Tensor = self.head(self.layer2(self.align_features(features)).amax(2))
        return logits


class _Alignment(nn.Module):
    """Multiplies points by a matrix that a small PointNet computes of them; at first the identity."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.size = size
        self.points = _for_each_point(size, width // 16, width // 8, width)
        self.cloud = _for_each_cloud(width, width // 2, width // 4)
        self.matrix = nn.Linear(width // 4, size * size)
        nn.init.zeros_(self.matrix.weight)
        with torch.no_grad():
            self.matrix.bias.copy_(torch.eye(size).flatten())

    @override
    def forward(self, x: Tensor) -> Tensor:
        matrix: Tensor = self.matrix(self.cloud(self.points(x).amax(2)))
        return matrix.view(-1, self.size, self.size) @ x


def _for_each_point(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Conv1d(before, after, 1), nn.BatchNorm1d(after), nn.ReLU()]
    return nn.Sequential(*layers)


def _for_each_cloud(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()]
    return nn.Sequential(*layers)


class VoxelsToPoints(nn.Module):
    """Turns grids of voxels ``(N, 1, D, H, W)`` into clouds ``(N, 3, P)`` of centres of occupied voxels.

    A voxel is occupied where it is above 0, and a grid's sides reach from -1 to 1. The points are spread
    evenly over the occupied voxels in their order, so that each voxel comes about as often; in training the
    place of each within its share is drawn. A grid without any gives points at 0. No gradient goes back to
    the voxels.

    Args:
        points: Number of points of a cloud.

    Raises:
        ValueError: If there are none.
    """

    def __init__(self, points: int = 1024) -> None:
        super().__init__()
        if points < 1:
            raise ValueError(f"points={points} is out of range: it must be a whole number from 1.")
        self.points = points

    @override
    def forward(self, voxels: Tensor) -> Tensor:
        if voxels.dim() != 5 or voxels.shape[1] != 1:
            raise ValueError(
                f"Voxels are of shape (N, 1, D, H, W), and these of {tuple(voxels.shape)}. Give a grid of one"
                " channel for each sample."
            )
        counted = (voxels > 0).flatten(1).cumsum(1)
        total = counted[:, -1:]
        start = torch.arange(self.points, device=voxels.device)
        offset = torch.rand(len(voxels), self.points, device=voxels.device) if self.training else 0.5
        ranks = (start + offset).div(self.points).mul(total).long().clamp(max=total - 1)
        index = torch.searchsorted(counted, ranks + 1).clamp(max=counted.shape[1] - 1)
        centres = _centres(voxels.shape[2:], voxels.device)
        return centres[:, index].transpose(0, 1) * (total > 0)[:, None]

    @override
    def extra_repr(self) -> str:
        return f"points={self.points}"


def _centres(sides: Sequence[int], device: torch.device) -> Tensor:
    """Return the centres of voxels ``(3, D * H * W)``."""
    axes = [(2 * torch.arange(side, device=device) + 1) / side - 1 for side in sides]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)


class VoxelPointNet(nn.Sequential):
    """PointNet for grids of voxels ``(N, 1, D, H, W)``, which can be mixed by masks, as FMix does.

    Args:
        num_classes: Number of classes.
        points: How many of the occupied voxels' centres are the points.
        align: Whether points and features are aligned by learned transforms.
        dropout: Chance that one of the last hidden layer's features is dropped.
        width: Channels of the widest layer, of which the others are fractions; a multiple of 16.
    """

    def __init__(
        self,
        num_classes: int = 10,
        points: int = 1024,
        align: bool = False,
        dropout: float = 0.3,
        width: int = 1024,
    ) -> None:
        super().__init__()
        self.points = VoxelsToPoints(points)
        self.pointnet = PointNet(num_classes, align, dropout, width)
