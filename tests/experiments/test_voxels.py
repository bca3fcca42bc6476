"""ModelNet10: meshes written here as .off files, their voxels by geometry, and points again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from lightning_msda.experiments.data import ModelNet10Data, voxels_to_points
from lightning_msda.experiments.data.voxels import filled_cells, in_cube, points_on, read_off
from tests.experiments.tools import made, real, refuse, unplugged, whole
from tests.tools import workplace as workplace

CUBE = [(x, y, z) for x in (0, 2) for y in (0, 2) for z in (0, 2)]
SIDES = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]


def off(corners: Sequence[tuple[float, ...]], faces: Sequence[tuple[int, ...]], head: str = "OFF\n") -> str:
    """Return a mesh in the Object File Format."""
    lines = [f"{len(corners)} {len(faces)} 0"]
    lines += [" ".join(map(str, corner)) for corner in corners]
    lines += [" ".join(map(str, (len(face), *face))) for face in faces]
    return head + "\n".join(lines) + "\n"


def triangles_of(sides: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    return [part for a, b, c, d in sides for part in ((a, b, c), (a, c, d))]


def shell(resolution: int) -> Tensor:
    """Return which cells touch the surface of the cube that fills a grid."""
    grid = torch.ones(*[resolution] * 3, dtype=torch.bool)
    grid[1:-1, 1:-1, 1:-1] = False
    return grid


@pytest.mark.parametrize("head", ["OFF\n", "OFF"])
@pytest.mark.parametrize("faces", [SIDES, triangles_of(SIDES)], ids=["polygons", "triangles"])
def test_meshes_are_read_and_polygons_cut(
    head: str, faces: Sequence[tuple[int, ...]], tmp_path: Path
) -> None:
    path = tmp_path / "cube.off"
    path.write_text(off([(*map(float, corner),) for corner in CUBE], faces, head))
    vertices, triangles = read_off(path)
    assert vertices.tolist() == [list(map(float, corner)) for corner in CUBE]
    assert [tuple(t) for t in triangles.tolist()] == triangles_of(SIDES)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "does not begin with OFF"),
        ("<html>", "does not begin with OFF"),
        ("OFF\n8 12", "ends too early"),
        (off(CUBE, triangles_of(SIDES))[:-3], "ends too early"),
        (off(CUBE, triangles_of(SIDES))[:60], "ends too early"),
        (off(CUBE, triangles_of(SIDES)).replace("2", "x", 1), "ends too early, or has words"),
        (off(CUBE, [(0, 1, 8)]), "between other than its 8 corners"),
        (off(CUBE, []), "no triangles"),
    ],
)
def test_a_damaged_mesh_is_named(content: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "cube.off"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"{path} is damaged: .*{reason}"):
        read_off(path)


def test_meshes_fill_the_cube_in_their_longest_direction() -> None:
    vertices = torch.tensor([[0.0, 10, 5], [4, 12, 5], [2, 11, 5]])
    expected = torch.tensor([[-1, -0.5, 0], [1, 0.5, 0], [0, 0, 0]])
    torch.testing.assert_close(in_cube(vertices), expected)
    assert in_cube(torch.ones(2, 3)).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_points_lie_on_triangles_as_their_areas_say() -> None:
    # Two triangles in the planes z = 0 and z = 1, of areas 1/2 and 9/2, and one without area.
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [3, 0, 1], [0, 3, 1]])
    triangles = torch.tensor([[0, 1, 2], [0, 0, 1], [3, 4, 5]])
    points = points_on(vertices, triangles, 40000, Generator().manual_seed(0))
    upper = points[:, 2] > 0.5
    assert float(upper.float().mean()) == pytest.approx(0.9, abs=0.01)
    large, small = points[upper], points[~upper]
    assert bool((large[:, 2] == 1).all()) and bool((small[:, 2] == 0).all())
    assert float(large.min()) >= 0 and float(large[:, :2].sum(1).max()) <= 3 + 1e-5
    # Uniform on a triangle: the means are its middle, and half of the area is below x + y = 3 / sqrt(2).
    torch.testing.assert_close(large[:, :2].mean(0), torch.ones(2), atol=0.02, rtol=0)
    assert float((large[:, :2].sum(1) < 3 / 2**0.5).float().mean()) == pytest.approx(0.5, abs=0.01)


def test_a_cube_fills_the_outer_cells_and_no_others(tmp_path: Path) -> None:
    path = tmp_path / "cube.off"
    path.write_text(off(CUBE, SIDES))
    points = points_on(in_cube(read_off(path)[0]), read_off(path)[1], 40 * 12**2, Generator().manual_seed(0))
    grid = torch.zeros(12**3, dtype=torch.bool)
    grid[filled_cells(points, 12)] = True
    grid = grid.view(12, 12, 12)
    assert not bool((grid & ~shell(12)).any())
    assert float(grid[shell(12)].float().mean()) > 0.99


def write_modelnet(root: Path) -> Path:
    """Write ModelNet10: of each class two meshes to train on and one to test on, each of another height."""
    folder = root / "ModelNet10"
    for k, name in enumerate(ModelNet10Data.classes):
        for i, part in enumerate(("train", "train", "test"), 1):
            corners = [(x, y, z * (k + 1) / 10) for x, y, z in CUBE]
            path = folder / name / part / f"{name}_{i:04d}.off"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(off(corners, triangles_of(SIDES), head="OFF" if k == 3 else "OFF\n"))
    return folder


@pytest.fixture
def modelnet(tmp_path: Path) -> Path:
    return write_modelnet(tmp_path)


def modelnet_data(folder: Path, **arguments: Any) -> Any:
    return ModelNet10Data(root=str(folder.parent), workers=0, **arguments)


def test_modelnet_is_read_as_grids_of_its_classes(modelnet: Path) -> None:
    data = made(modelnet_data(modelnet, resolution=10))
    x, y = whole(data.train_dataloader())
    assert x.shape == (20, 1, 10, 10, 10)
    assert set(x.flatten().tolist()) == {0, 1}
    assert sorted(y.tolist()) == sorted([*range(10)] * 2)
    x, y = whole(data.test_dataloader())
    assert y.tolist() == list(range(10))
    for k in range(10):  # the same meshes give the same grids, whatever stands before them
        assert torch.equal(data.test[k][0], data.train[2 * k][0])
        assert torch.equal(data.test[k][0], data.train[2 * k + 1][0])
    for k in range(10):  # class k is k + 1 cells high, and more where top and bottom lie between cells
        levels = x[k, 0].any(0).any(0).nonzero().flatten()
        assert k + 1 <= int(levels.max() - levels.min()) + 1 <= k + 3
    assert torch.equal(x[9, 0].bool() & ~shell(10), torch.zeros(10, 10, 10, dtype=torch.bool))


def test_meshes_are_read_once(modelnet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, _ = whole(made(modelnet_data(modelnet, resolution=6)).test_dataloader())
    monkeypatch.setattr("lightning_msda.experiments.data.modelnet.read_off", refuse)
    assert torch.equal(whole(made(modelnet_data(modelnet, resolution=6)).test_dataloader())[0], x)
    with pytest.raises(AssertionError, match="a download"):
        made(modelnet_data(modelnet, resolution=7))


def test_a_damaged_mesh_stops_the_run_before_training(modelnet: Path) -> None:
    path = modelnet / "sofa" / "test" / "sofa_0003.off"
    path.write_text(path.read_text()[:-10])
    with pytest.raises(ValueError, match=f"{path} is damaged: it ends too early"):
        modelnet_data(modelnet).prepare_data()


def test_modelnet_that_is_missing_says_what_to_fetch(modelnet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", unplugged)
    with pytest.raises(FileNotFoundError, match="fetch ModelNet10.zip from http"):
        ModelNet10Data(root="elsewhere").prepare_data()
    (modelnet / "bed" / "test").rename(modelnet / "bed" / "tested")
    with pytest.raises(FileNotFoundError, match="bed/test is missing. For ModelNet10, fetch"):
        modelnet_data(modelnet).prepare_data()
    with pytest.raises(ValueError, match="resolution=0 is out of range"):
        ModelNet10Data(resolution=0)


def back(points: Tensor, resolution: int) -> Tensor:
    """Return the grid of one sample's points."""
    grid = torch.zeros(resolution**3)
    grid[filled_cells(points, resolution)] = 1
    return grid.view(1, resolution, resolution, resolution)


def test_points_of_grids_give_the_grids_again() -> None:
    grids = (torch.rand(3, 1, 9, 9, 9, generator=Generator().manual_seed(0)) < 0.2).float()
    for resolution in (9, 7):
        part = grids[..., :resolution, :resolution, :resolution]
        points = voxels_to_points(part, resolution**3)
        assert points.shape == (3, resolution**3, 3)
        for i in range(3):
            assert torch.equal(back(points[i], resolution), part[i])


def test_fewer_points_are_different_filled_cells_and_all_alike_likely() -> None:
    grid = torch.zeros(1, 1, 4, 4, 4)
    grid[0, 0, 0] = 0.3  # a mixed grid: 16 cells that are filled in part
    counts = torch.zeros(64)
    generator = Generator().manual_seed(0)
    for _ in range(400):
        cells = filled_cells(voxels_to_points(grid, 4, generator)[0], 4)
        assert len(cells) == 4
        counts[cells] += 1
    assert float(counts[16:].sum()) == 0
    assert float(((counts[:16] - 100) ** 2 / 100).sum()) < 38  # chi squared, 15 degrees: 0.1 %


def test_a_grid_of_few_cells_repeats_them_evenly() -> None:
    grid = torch.zeros(2, 1, 3, 3, 3)
    grid[0, 0, 1, 1, :2] = 1
    points = voxels_to_points(grid, 6)
    places = torch.tensor(sorted(points[0].tolist()))
    torch.testing.assert_close(places, torch.tensor([[0, 0, -2 / 3]] * 3 + [[0, 0, 0]] * 3))
    assert points[1].isfinite().all()  # an empty grid


def test_real_furniture_survives_the_way_to_points_and_back() -> None:
    grids = torch.as_tensor(real("modelnet10_test")()[0][:40]).float()[:, None]
    points = voxels_to_points(grids, int(grids.flatten(1).sum(1).max()))
    for grid, found in zip(grids, points, strict=True):
        assert torch.equal(back(found, 32), grid)
