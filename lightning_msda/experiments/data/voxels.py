"""Meshes, points on their surface, and grids of voxels. Everything lives in the cube from -1 to 1."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from torch import Generator, Tensor

from lightning_msda.experiments.data.files import damaged

__all__ = ["filled_cells", "in_cube", "points_on", "read_off", "voxels_to_points"]


def read_off(path: Path) -> tuple[Tensor, Tensor]:
    """Read a mesh of the Object File Format; polygons are cut into triangles.

    Args:
        path: The file. ModelNet has some whose first line goes on with the counts (``OFF490 518 0``).

    Returns:
        Corners, shape ``(V, 3)``, and triangles by the numbers of their corners, shape ``(F, 3)``.

    Raises:
        ValueError: If it is damaged.
    """
    text = path.read_text(errors="replace").lstrip()
    if not text.startswith("OFF"):
        raise damaged(path, "it does not begin with OFF")
    words = text[3:].split()
    try:
        corners, faces = int(words[0]), int(words[1])
        at = 3 + 3 * corners
        vertices = torch.tensor([float(word) for word in words[3:at]]).view(corners, 3)
        triangles = []
        for _ in range(faces):
            first, *others = (int(word) for word in words[at + 1 : at + 1 + int(words[at])])
            triangles += [(first, *pair) for pair in pairwise(others)]
            if len(others) + 1 != int(words[at]):
                raise IndexError("it ends too early")
            at += len(others) + 2
    except (ValueError, IndexError, RuntimeError) as error:
        raise damaged(path, "it ends too early, or has words for numbers") from error
    found = torch.tensor(triangles, dtype=torch.int64).view(-1, 3)
    if not len(found) or int(found.min()) < 0 or int(found.max()) >= corners:
        raise damaged(path, f"it has no triangles, or some between other than its {corners} corners")
    return vertices, found


def in_cube(vertices: Tensor) -> Tensor:
    """Return points moved and scaled alike in all directions, so that they just fit into the cube.

    Args:
        vertices: Shape ``(V, 3)``.
    """
    low, high = vertices.amin(0), vertices.amax(0)
    return (2 * vertices - low - high) / (high - low).max().clamp(min=1e-12)


def points_on(vertices: Tensor, triangles: Tensor, count: int, generator: Generator) -> Tensor:
    """Return points drawn uniformly from the surface of a mesh.

    Args:
        vertices: Corners, shape ``(V, 3)``.
        triangles: Numbers of corners, shape ``(F, 3)``.
        count: How many points are drawn.
        generator: Source of all randomness.

    Returns:
        Shape ``(count, 3)``.
    """
    a, b, c = vertices[triangles].double().unbind(1)
    areas = torch.linalg.cross(b - a, c - a).norm(dim=1).cumsum(0)
    places = torch.rand(count, generator=generator, dtype=torch.float64) * areas[-1]
    face = torch.searchsorted(areas, places, right=True).clamp(max=len(areas) - 1)
    u, v = torch.rand(2, count, 1, generator=generator, dtype=torch.float64)
    u, v = torch.where(u + v > 1, 1 - u, u), torch.where(u + v > 1, 1 - v, v)
    return (a[face] + u * (b - a)[face] + v * (c - a)[face]).float()


def filled_cells(points: Tensor, resolution: int) -> Tensor:
    """Return which cells of a grid have points inside.

    Args:
        points: In the cube, shape ``(P, 3)``.
        resolution: Cells along each axis.

    Returns:
        The cells' numbers in a grid of shape ``(resolution, resolution, resolution)``, in order.
    """
    x, y, z = ((points + 1) / 2 * resolution).long().clamp(0, resolution - 1).unbind(1)
    return torch.unique((x * resolution + y) * resolution + z)  # type: ignore[no-any-return]


def voxels_to_points(voxels: Tensor, count: int, generator: Generator | None = None) -> Tensor:
    """Return the middles of filled cells, as networks on points take them; shapes depend on no value.

    Args:
        voxels: Grids of equal sides, shape ``(N, 1, R, R, R)``; cells above 0 are filled, as far as mixed
            grids go. A grid without any gives points of any cells.
        count: How many points each sample gets: different cells, again from the first where there are fewer.
        generator: Source of all randomness; ``None`` uses the global one.

    Returns:
        Points in the cube, shape ``(N, count, 3)``.

    Example:
        >>> grid = torch.zeros(1, 1, 2, 2, 2)
        >>> grid[0, 0, 1, 0, 1] = 1
        >>> voxels_to_points(grid, 2)
        tensor([[[ 0.5000, -0.5000,  0.5000],
                 [ 0.5000, -0.5000,  0.5000]]])
    """
    resolution = voxels.shape[-1]
    filled = voxels.flatten(1) > 0
    keys = torch.rand(filled.shape, generator=generator, device=voxels.device) - (~filled).float()
    drawn = keys.topk(min(count, filled.shape[1]), dim=1).indices
    available = filled.sum(1, keepdim=True).clamp(1, drawn.shape[1])
    cell = drawn.gather(1, torch.arange(count, device=voxels.device).expand(len(voxels), -1) % available)
    axes = torch.stack([cell // resolution**2, cell // resolution % resolution, cell % resolution], 2)
    return (2 * axes.float() + 1) / resolution - 1
