"""ModelNet10, furniture in three dimensions (Wu et al., CVPR 2015)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset
from typing_extensions import override

from lightning_msda.experiments.data.base import DataModule, Splits
from lightning_msda.experiments.data.files import Source, kept
from lightning_msda.experiments.data.voxels import filled_cells, in_cube, points_on, read_off

__all__ = ["ModelNet10Data"]

POINTS_PER_CELL = 40  # of one side of the grid: more than 99 % of the cells that a surface fills get a point


class ModelNet10Data(DataModule):
    """ModelNet10: pieces of furniture of 10 classes as grids of voxels, shape ``(1, R, R, R)``, of 0 and 1.

    A mesh is scaled to fit into the grid, points are drawn from its surface, and cells with points inside
    are filled. `voxels_to_points` turns grids into points again, for networks such as PointNet.

    Args:
        root: The folder that holds ``ModelNet10``; it is downloaded into it where it is missing.
        resolution: Cells along each axis; FMix's experiments have 128.
        batch_size: Samples in a batch.
        workers: Processes that load the data.
        train_size: How many training samples are used, a fixed choice with even classes; None: all.

    Raises:
        FileNotFoundError: If it is missing and cannot be downloaded.
        ValueError: If an argument is out of range, or a file is damaged.
    """

    classes = tuple("bathtub bed chair desk dresser monitor night_stand sofa table toilet".split())
    source = Source(
        name="ModelNet10",
        folder="ModelNet10",
        fetch_by_hand="ModelNet10.zip from http://modelnet.cs.princeton.edu",
        urls=("http://vision.princeton.edu/projects/2014/3DShapeNets/ModelNet10.zip",),
    )

    def __init__(
        self,
        root: str = "data",
        resolution: int = 32,
        batch_size: int = 16,
        workers: int = 4,
        train_size: int | None = None,
    ) -> None:
        super().__init__(batch_size, workers, train_size)
        if resolution < 1:
            raise ValueError(f"resolution={resolution} is out of range: it must be a whole number from 1.")
        self.root = root
        self.resolution = resolution

    @override
    def prepare_data(self) -> None:
        self.source.fetch(self.root)
        self.splits()

    @override
    def splits(self) -> Splits:
        train, test = self._part("train"), self._part("test")
        return Splits(train, test, test)

    def _part(self, part: str) -> VoxelGrids:
        found = [
            (f, i)
            for i, c in enumerate(self.classes)
            for f in sorted(self.source.find(self.root, c, part).glob("*.off"))
        ]
        files = [file for file, _ in found]

        def read() -> dict[str, Tensor]:
            grids = []
            for file in files:
                vertices, triangles = read_off(file)
                count = POINTS_PER_CELL * self.resolution**2
                points = points_on(in_cube(vertices), triangles, count, Generator().manual_seed(0))
                grids.append(filled_cells(points, self.resolution).int())
            return {"cells": torch.cat(grids), "ends": torch.tensor([len(grid) for grid in grids]).cumsum(0)}

        made = kept(f"{part}-{self.resolution}", self.source.find(self.root), files, read)
        return VoxelGrids(
            made["cells"], made["ends"].tolist(), [target for _, target in found], self.resolution
        )


class VoxelGrids(Dataset[Any]):
    """Grids of which the filled cells are kept.

    Args:
        cells: The numbers of the filled cells, one grid after another.
        ends: Where the cells of each grid end.
        targets: The classes of the grids.
        resolution: Cells along each axis.
    """

    def __init__(self, cells: Tensor, ends: list[int], targets: list[int], resolution: int) -> None:
        self.cells = cells
        self.ends = ends
        self.targets = targets
        self.resolution = resolution

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        grid = torch.zeros(self.resolution**3)
        grid[self.cells[self.ends[index - 1] if index else 0 : self.ends[index]].long()] = 1
        return grid.view(1, *[self.resolution] * 3), self.targets[index]
