"""What is done to a batch, against the rules in plain loops."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_msda.ops import (
    along,
    box_mask,
    fitted_boxes,
    interpolate,
    paste_box,
    paste_resized,
    resized_source,
    select,
    take_source,
)
from tests.helpers import SPATIAL, neighbours, numbered, outside_box, positions, seeded

DTYPES = [torch.bool, torch.uint8, torch.int64, torch.bfloat16, torch.float32, torch.float64, torch.complex64]

# Shapes of a batch and the dimensions that are mixed: images, tokens, embeddings, channels too, video frames.
LAYOUTS: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    *(((3, 2, *spatial), tuple(range(2, 2 + len(spatial)))) for spatial in SPATIAL),
    ((3, 9), (1,)),
    ((3, 9, 2), (1,)),
    ((3, 4, 6), (1, 2)),
    ((3, 2, 4, 5, 6), (2, 4)),
    ((1, 2, 5, 4), (2, 3)),
]


def sizes_of(shape: tuple[int, ...], dims: tuple[int, ...]) -> list[int]:
    return [shape[dim] for dim in dims]


def some_boxes(n: int, sides: list[int], sizes: list[int]) -> Tensor:
    return fitted_boxes(n, torch.tensor([sides]), sizes, seeded())


def assert_pasted(mixed: Tensor, x: Tensor, boxes: Tensor, dims: tuple[int, ...]) -> None:
    """Hold a mix against the rule, element by element: the partner, resized (nearest), where a box is."""
    partner = neighbours(len(x)).tolist()
    assert mixed.dtype == x.dtype
    assert mixed.shape == x.shape
    for place in positions(x.shape):
        box = boxes[place[0]].tolist()
        if outside_box([place[dim] for dim in dims], box):
            assert mixed[place] == x[place]
        else:
            shown = [partner[place[0]], *place[1:]]
            for dim, (start, stop) in zip(dims, box, strict=True):
                shown[dim] = math.floor((place[dim] - start) * x.shape[dim] / (stop - start))
            assert mixed[place] == x[tuple(shown)]


@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize("lam", [[0.3], [0.0], [1.0], [0.3, 0.0, 1.0]])
def test_interpolation_is_the_two_term_formula(spatial: tuple[int, ...], lam: list[float]) -> None:
    x = torch.randn(3, 2, *spatial, dtype=torch.float64, generator=seeded())
    partner = neighbours(3)
    mixed = interpolate(x, partner, torch.tensor(lam, dtype=torch.float64))
    for i, *place in positions(x.shape):
        share = lam[i % len(lam)]
        expected = share * float(x[(i, *place)]) + (1 - share) * float(x[(int(partner[i]), *place)])
        assert float(mixed[(i, *place)]) == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_interpolation_keeps_the_dtype_and_is_as_exact_as_it_can_be(dtype: torch.dtype) -> None:
    x = torch.randn(3, 50, dtype=torch.float64, generator=seeded()).to(dtype)
    lam = torch.tensor([0.3], dtype=torch.float64)
    mixed = interpolate(x, neighbours(3), lam)
    expected = 0.3 * x.double() + 0.7 * x.double().roll(1, 0)
    assert mixed.dtype == dtype
    # lam and the result are rounded, each by half an eps of values of about 1, at most 5.
    assert torch.allclose(mixed.double(), expected, rtol=0, atol=5 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_interpolation_at_lam_0_and_1_and_with_itself_is_exact(dtype: torch.dtype) -> None:
    x = torch.randn(3, 50, generator=seeded()).to(dtype)
    ends = torch.tensor([0.0, 1.0, 0.3])
    partner = torch.tensor([1, 0, 2])
    assert torch.equal(interpolate(x, partner, ends), x[[1, 1, 2]])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask_shape", [(3, 1, 4, 5), (1, 1, 4, 5), (3, 2, 4, 5), (1, 1, 4, 1)])
def test_a_hard_mask_selects_elements_of_any_dtype(mask_shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, shown = numbered(3, 2, 4, 5, dtype=dtype), numbered(3, 2, 4, 5, dtype=dtype).flip(0)
    mask = torch.rand(mask_shape, generator=seeded()) < 0.5
    mixed = select(x, shown, mask)
    assert mixed.dtype == dtype
    for place in positions(x.shape):
        own = mask[tuple(at % size for at, size in zip(place, mask_shape, strict=True))]
        assert mixed[place] == (x if own else shown)[place]


@pytest.mark.parametrize("mask_shape", [(3, 1, 4, 5), (1, 1, 4, 5), (3, 2, 4, 5)])
def test_a_soft_mask_is_the_own_share_of_each_element(mask_shape: tuple[int, ...]) -> None:
    x, shown = torch.randn(2, 3, 2, 4, 5, dtype=torch.float64, generator=seeded())
    mask = torch.rand(mask_shape, generator=seeded())
    mixed = select(x, shown, mask)
    for place in positions(x.shape):
        own = float(mask[tuple(at % size for at, size in zip(place, mask_shape, strict=True))])
        expected = own * float(x[place]) + (1 - own) * float(shown[place])
        assert float(mixed[place]) == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize(("shape", "dims"), LAYOUTS)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_same_box_comes_from_each_partner(
    shape: tuple[int, ...], dims: tuple[int, ...], share: float
) -> None:
    x = numbered(*shape)
    sizes = sizes_of(shape, dims)
    box = some_boxes(1, [math.ceil(share * size) for size in sizes], sizes)[0]
    mixed = paste_box(x, neighbours(len(x)), box, dims)
    assert torch.equal(x, numbered(*shape))
    for place in positions(shape):
        own = outside_box([place[dim] for dim in dims], box.tolist())
        assert mixed[place] == x[(place[0] if own else int(neighbours(len(x))[place[0]]), *place[1:])]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_box_can_be_pasted_in_any_dtype(dtype: torch.dtype) -> None:
    x = numbered(3, 2, 4, 5, dtype=dtype)
    mixed = paste_box(x, neighbours(3), torch.tensor([[1, 3], [2, 5]]), (2, 3))
    expected = x.clone()
    for i, channel, row, column in itertools.product(range(3), range(2), (1, 2), (2, 3, 4)):
        expected[i, channel, row, column] = x[i - 1, channel, row, column]
    assert mixed.dtype == dtype
    assert torch.equal(mixed, expected)


@pytest.mark.parametrize(("shape", "dims"), LAYOUTS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_a_resized_partner_is_pasted_by_nearest_neighbours(
    shape: tuple[int, ...], dims: tuple[int, ...], share: float
) -> None:
    x = numbered(*shape)
    sizes = sizes_of(shape, dims)
    boxes = some_boxes(len(x), [math.floor(share * size) for size in sizes], sizes)
    sides = (boxes[0, :, 1] - boxes[0, :, 0]).tolist()
    mixed = paste_resized(x, neighbours(len(x)), boxes[..., 0], sides, dims)
    assert torch.equal(x, numbered(*shape))
    assert_pasted(mixed, x, boxes, dims)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_resized_partner_can_be_pasted_in_any_dtype(dtype: torch.dtype) -> None:
    x = numbered(3, 2, 5, 7, dtype=dtype)
    boxes = some_boxes(3, [3, 4], [5, 7])
    assert_pasted(paste_resized(x, neighbours(3), boxes[..., 0], [3, 4], (2, 3)), x, boxes, (2, 3))


@pytest.mark.parametrize(("size", "side"), [(32, 25), (224, 179), (7, 1), (1000, 999), (5, 5)])
def test_resizing_shows_evenly_spaced_elements(size: int, side: int) -> None:
    # Element k of side shows the one at floor(k * size / side), exactly: a float32 ratio can be one off.
    x = torch.arange(2 * size).view(2, 1, size)
    mixed = paste_resized(x, torch.tensor([1, 0]), torch.zeros(2, 1, dtype=torch.int64), [side], (2,))
    assert mixed[1, 0, :side].tolist() == [k * size // side for k in range(side)]


@pytest.mark.parametrize(("shape", "dims"), LAYOUTS)
@pytest.mark.parametrize("one_size", [True, False])
def test_what_a_resized_partner_shows_where(
    shape: tuple[int, ...], dims: tuple[int, ...], one_size: bool
) -> None:
    x, n = numbered(*shape), shape[0]
    sizes = sizes_of(shape, dims)
    rows = 1 if one_size else n
    sides = torch.tensor([[math.floor((i + 1) / (rows + 1) * size) for size in sizes] for i in range(rows)])
    boxes = fitted_boxes(n, sides, sizes, seeded())
    source = resized_source(boxes[..., 0], sides, sizes)
    assert [tuple(places.shape) for places in source] == [(n, size) for size in sizes]
    shown = take_source(x.index_select(0, neighbours(n)), source, dims)
    assert_pasted(select(x, shown, along(box_mask(boxes, sizes), dims, x.dim())), x, boxes, dims)


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: interpolate(x, neighbours(3), torch.tensor([0.3])),
        lambda x: interpolate(x, neighbours(3), torch.tensor([0.3, 0.0, 1.0])),
        lambda x: select(x, x.flip(0), torch.rand(3, 1, 3, 4, generator=seeded()) < 0.5),
        lambda x: select(x, x.flip(0), torch.rand(1, 1, 3, 4, generator=seeded())),
        lambda x: paste_box(x, neighbours(3), torch.tensor([[0, 2], [1, 3]]), (2, 3)),
        lambda x: paste_resized(x, neighbours(3), torch.tensor([[0, 0], [1, 1], [0, 2]]), [2, 2], (2, 3)),
        lambda x: take_source(x, (torch.tensor([[0, 0, 1], [2, 1, 2], [1, 0, 1]]),), (2,)),
    ],
)
def test_gradients_flow_to_both_samples(mix: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(3, 2, 3, 4, dtype=torch.float64, generator=seeded()).requires_grad_()
    assert torch.autograd.gradcheck(mix, (x,))
