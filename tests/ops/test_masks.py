"""Masks of the own share, against the rules in plain loops."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from lightning_msda.ops import box_mask, box_share, center_boxes, fitted_boxes, top_mask
from tests.helpers import SPATIAL, assert_frequencies, outside_box, positions, seeded


def some_sides(r: int, spatial: tuple[int, ...]) -> Tensor:
    """Return sides of all lengths, from 0 to the whole."""
    generator = seeded(len(spatial))
    return torch.stack([torch.randint(size + 1, (r,), generator=generator) for size in spatial], 1)


def shuffled_images(r: int, spatial: tuple[int, ...]) -> Tensor:
    """Return images whose elements are all different."""
    n = math.prod(spatial)
    generator = seeded()
    return torch.stack([torch.randperm(n, generator=generator) for _ in range(r)]).view(r, *spatial).double()


@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize("r", [1, 6])
def test_a_box_around_its_centre_is_cut_off_at_the_border(r: int, spatial: tuple[int, ...]) -> None:
    sides = some_sides(r, spatial)
    boxes = center_boxes(sides, spatial, seeded(1))
    again = seeded(1)
    centers = [torch.randint(size, (r,), generator=again).tolist() for size in spatial]
    assert boxes.shape == (r, len(spatial), 2)
    for row, (i, size) in itertools.product(range(r), enumerate(spatial)):
        half = int(sides[row, i]) // 2
        inside = [
            at for at in range(-size, 2 * size) if centers[i][row] - half <= at < centers[i][row] + half
        ]
        inside = [at for at in inside if 0 <= at < size]
        start, stop = boxes[row, i].tolist()
        assert list(range(start, stop)) == inside


@pytest.mark.parametrize("side", [0, 1])
def test_a_side_below_two_makes_an_empty_box(side: int) -> None:
    boxes = center_boxes(torch.full((50, 2), side), (4, 9), seeded())
    assert box_share(boxes, (4, 9)).eq(1).all()


def test_centres_are_uniform_and_independent() -> None:
    # The box [c - 1, c + 1) always ends at c + 1.
    boxes = center_boxes(torch.full((60_000, 2), 2), (3, 5), seeded())
    cells = 5 * (boxes[:, 0, 1] - 1) + boxes[:, 1, 1] - 1
    assert_frequencies(cells.bincount(minlength=15), [1 / 15] * 15)


@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize("one_size", [True, False])
def test_a_box_that_sticks_out_is_shifted_inside(one_size: bool, spatial: tuple[int, ...]) -> None:
    n = 12
    sides = some_sides(1 if one_size else n, spatial)
    boxes = fitted_boxes(n, sides, spatial, seeded(1))
    again = seeded(1)
    centers = [torch.randint(size, (n,), generator=again).tolist() for size in spatial]
    assert boxes.shape == (n, len(spatial), 2)
    for row, (i, size) in itertools.product(range(n), enumerate(spatial)):
        side = int(sides[0 if one_size else row, i])
        start = centers[i][row] - side // 2
        while start < 0:
            start += 1
        while start + side > size:
            start -= 1
        assert boxes[row, i].tolist() == [start, start + side]


@pytest.mark.parametrize(("size", "side"), [(9, 4), (9, 5), (8, 1), (8, 8), (8, 0), (5, 2)])
def test_border_positions_have_the_mass_of_all_centres_that_are_shifted_there(size: int, side: int) -> None:
    chances = [0.0] * (size - side + 1)
    for center in range(size):
        chances[min(max(center - side // 2, 0), size - side)] += 1 / size
    starts = fitted_boxes(60_000, torch.tensor([[side]]), (size,), seeded())[:, 0, 0]
    assert_frequencies(starts.bincount(minlength=len(chances)), chances)


@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize("r", [1, 6])
def test_a_mask_is_false_inside_of_its_box_and_its_share_is_its_mean(
    r: int, spatial: tuple[int, ...]
) -> None:
    boxes = center_boxes(some_sides(r, spatial), spatial, seeded())
    mask, share = box_mask(boxes, spatial), box_share(boxes, spatial)
    assert mask.dtype == torch.bool
    assert mask.shape == (r, *spatial)
    assert share.dtype == torch.float64
    for row, box in enumerate(boxes.tolist()):
        outside = [outside_box(place, box) for place in positions(spatial)]
        assert mask[row].flatten().tolist() == outside
        assert float(share[row]) == pytest.approx(sum(outside) / len(outside), abs=1e-15)


def test_the_share_outside_of_an_empty_and_of_a_full_box_is_exactly_1_and_0() -> None:
    boxes = torch.tensor([[[2, 2], [0, 9]], [[0, 7], [0, 9]]])
    assert box_share(boxes, (7, 9)).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_mask_takes_the_largest_elements(spatial: tuple[int, ...], dtype: torch.dtype) -> None:
    n = math.prod(spatial)
    counts = torch.tensor([0, 1, n // 3, n - 1, n])
    images = shuffled_images(len(counts), spatial).to(dtype) - 3  # some below 0
    masks = top_mask(images, counts)
    assert masks.dtype == torch.bool
    assert masks.shape == images.shape
    for image, mask, count in zip(images, masks, counts.tolist(), strict=True):
        top = sorted(image.flatten().tolist(), reverse=True)[:count]
        assert mask.flatten().tolist() == [value in top for value in image.flatten().tolist()]


@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_soft_edge_falls_linearly_over_its_ranks(spatial: tuple[int, ...], dtype: torch.dtype) -> None:
    n = math.prod(spatial)
    counts = torch.tensor([0, n, n // 2, n // 2, n // 2, n // 4])
    soft = torch.tensor([0, 0, 0, min(1, n // 2), n // 2, n // 8])
    images = shuffled_images(len(counts), spatial).to(dtype)
    masks = top_mask(images, counts, soft)
    assert masks.dtype == dtype
    assert masks.shape == images.shape
    for image, mask, count, half in zip(images, masks, counts.tolist(), soft.tolist(), strict=True):
        ranked = sorted(image.flatten().tolist(), reverse=True)
        for value, weight in zip(image.flatten().tolist(), mask.flatten().tolist(), strict=True):
            rank = ranked.index(value)
            if rank < count - half:
                expected = 1.0
            elif rank >= count + half:
                expected = 0.0
            else:  # 2 * half values in equal steps, the first 1 and the last 0
                expected = 1 - (rank - (count - half)) / (2 * half - 1)
            assert weight == pytest.approx(expected, abs=1e-6)
        assert float(mask.double().sum()) == pytest.approx(count, abs=1e-5)


@pytest.mark.parametrize("soft", [None, torch.tensor([0, 0])])
def test_of_equal_elements_no_more_are_taken_than_asked_for(soft: Tensor | None) -> None:
    images = torch.tensor([[1.0, 5.0, 1.0, 5.0, 5.0, 0.0], [2.0, 2.0, 2.0, 2.0, 2.0, 2.0]])
    assert top_mask(images, torch.tensor([2, 4]), soft).sum(1).tolist() == [2, 4]
