"""Which dimensions are mixed, and how draws get to a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lightning_msda.ops import along, mixed_dims, to_device, weight_dtype
from tests.helpers import numbered, positions, seeded


class Arriving(TorchFunctionMode):
    """Lets what is sent to another device arrive on the CPU, and remembers how it was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[Tensor, bool]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.to and isinstance(args[1], torch.device):
            self.sent.append((args[0], bool((kwargs or {}).get("non_blocking"))))
            return args[0].clone()
        return func(*args, **kwargs or {})


def draws_of_every_kind() -> list[Tensor]:
    generator = seeded()
    return [
        torch.randint(-(2**62), 2**62, (2, 3, 2), generator=generator),
        torch.rand(3, dtype=torch.float64, generator=generator),
        torch.rand(5, generator=generator),  # 20 bytes: what follows is not at a multiple of 8 by itself
        torch.tensor([True, False, True]),
        torch.randint(256, (7,), generator=generator).to(torch.uint8),
        torch.rand(3, generator=generator).bfloat16(),
        torch.tensor(0.25, dtype=torch.float64),
        torch.empty(0, 2, dtype=torch.int64),
        torch.rand(4, 6, generator=generator).t()[::2],
        torch.rand(1, 2, generator=generator).expand(3, 2),
    ]


def assert_same(arrived: Sequence[Tensor], draws: Sequence[Tensor]) -> None:
    assert [there.dtype for there in arrived] == [draw.dtype for draw in draws]
    assert all(map(torch.equal, arrived, draws))


@pytest.mark.parametrize(
    ("shape", "dims", "expected"),
    [
        ((2, 3, 9), None, (2,)),
        ((2, 3, 8, 9), None, (2, 3)),
        ((2, 3, 7, 8, 9), None, (2, 3, 4)),
        ((2, 9), [1], (1,)),
        ((2, 9, 5), [1], (1,)),
        ((2, 3, 8, 9), [-1], (3,)),
        ((2, 3, 8, 9), [-1, 1], (1, 3)),
        ((2, 3, 8, 9), [3, 2], (2, 3)),
        ((2, 3, 7, 8, 9), (-1, -2), (3, 4)),
    ],
)
def test_the_mixed_dimensions_are_those_named_or_all_after_the_channel(
    shape: tuple[int, ...], dims: list[int] | None, expected: tuple[int, ...]
) -> None:
    assert mixed_dims(torch.zeros(shape), dims) == expected


@pytest.mark.parametrize(
    ("shape", "dims", "message"),
    [
        ((2, 3), None, r"Inputs of shape \(2, 3\) have no dimension after the channel"),
        ((2,), None, r"Inputs of shape \(2,\) have no dimension after the channel"),
        ((2, 3, 4), [], r"dims=\(\) does not fit inputs of shape \(2, 3, 4\)"),
        ((2, 3, 4), [0], r"dims=\(0,\) does not fit"),
        ((2, 3, 4), [-3], r"dims=\(-3,\) does not fit"),
        ((2, 3, 4), [3], r"dims=\(3,\) does not fit .* from 1 to 2"),
        ((2, 3, 4), [-4], r"dims=\(-4,\) does not fit"),
        ((2, 3, 4), [2, 2], r"dims=\(2, 2\) does not fit .* different dimensions"),
        ((2, 3, 4), [2, -1], r"dims=\(2, -1\) does not fit"),
    ],
)
def test_dimensions_that_are_not_there_are_refused(
    shape: tuple[int, ...], dims: list[int] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        mixed_dims(torch.zeros(shape), dims)


@pytest.mark.parametrize(
    ("sizes", "dims", "ndim"),
    [
        ((), (), 4),
        ((5,), (1,), 2),
        ((5,), (3,), 4),
        ((5, 4), (2, 3), 4),
        ((5, 4), (1, 3), 5),
        ((1, 4), (1, 2), 3),
    ],
)
@pytest.mark.parametrize("r", [1, 3])
def test_values_lie_along_their_dimensions_without_a_copy(
    r: int, sizes: tuple[int, ...], dims: tuple[int, ...], ndim: int
) -> None:
    values = numbered(r, *sizes)
    laid = along(values, dims, ndim)
    assert laid.dim() == ndim
    assert laid.numel() == values.numel()
    assert laid.data_ptr() == values.data_ptr()
    for row, *place in positions(values.shape):
        there = [0] * ndim
        there[0] = row
        for dim, at in zip(dims, place, strict=True):
            there[dim] = at
        assert laid[tuple(there)] == values[(row, *place)]


def test_on_the_cpu_draws_stay_where_they_are() -> None:
    draws = draws_of_every_kind()
    assert all(
        there is draw for there, draw in zip(to_device(torch.device("cpu"), *draws), draws, strict=True)
    )


def test_what_arrives_on_a_device_is_what_was_sent_bit_for_bit() -> None:
    draws = draws_of_every_kind()
    with Arriving():
        arrived = to_device(torch.device("xpu"), *draws)
    assert_same(arrived, draws)


@pytest.mark.gpu
def test_what_arrives_on_a_gpu_is_what_was_sent_bit_for_bit() -> None:
    draws = draws_of_every_kind()
    arrived = to_device(torch.device("cuda"), *draws)
    assert all(there.device.type == "cuda" for there in arrived)
    assert_same([there.cpu() for there in arrived], draws)


def test_all_draws_are_sent_in_one_copy_that_does_not_block() -> None:
    with Arriving() as arriving:
        to_device(torch.device("xpu"), *draws_of_every_kind())
    [(packed, non_blocking)] = arriving.sent
    assert non_blocking
    assert packed.dtype == torch.uint8


def test_another_device_gets_draws_of_the_same_shapes_and_dtypes() -> None:
    draws = draws_of_every_kind()
    arrived = to_device(torch.device("meta"), *draws)
    assert all(there.device.type == "meta" for there in arrived)
    assert [(there.dtype, there.shape) for there in arrived] == [(draw.dtype, draw.shape) for draw in draws]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bfloat16, torch.float16, torch.float32])
def test_weights_are_float32_beside_anything_but_float64(dtype: torch.dtype) -> None:
    assert weight_dtype(torch.zeros(1, dtype=dtype)) == torch.float32
    assert weight_dtype(torch.zeros(1, dtype=torch.float64)) == torch.float64
