"""ResizeMix against its rule in plain loops, and against the laws of its patch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_msda.methods import ResizeMix, resizemix
from lightning_msda.randomness import Step, sample_partners, sample_uniform
from tests.helpers import (
    BAD_DIMS,
    NAMED_DIMS,
    SPATIAL,
    assert_frequencies,
    assert_layout_does_not_matter,
    assert_mean,
    assert_same_mix,
    constant_samples,
    neighbours,
    numbered,
    own_pixels,
    positions,
    seeded,
    varies_only_along,
)


def side_law(size: int, low: float, high: float) -> list[float]:
    """Return the chance of each length ``floor(size * tau)`` with ``tau ~ U(low, high)``."""
    return [max(0.0, min(high, (k + 1) / size) - max(low, k / size)) / (high - low) for k in range(size + 1)]


def patch_ends(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the part that is False begins and how long it is, of masks ``(N, 1, L)``."""
    return (~mask[:, 0]).int().argmax(1), (~mask[:, 0]).sum(1)


@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize("per_sample", [False, True])
def test_the_whole_partner_is_pasted_into_a_patch(spatial: tuple[int, ...], per_sample: bool) -> None:
    x = numbered(5, 2, *spatial)
    for seed in range(4):
        mix = resizemix(x, side=(0.1, 1.0), per_sample=per_sample, generator=seeded(seed))
        draws, r = seeded(seed), 5 if per_sample else 1
        partner = sample_partners(5, draws).tolist()
        ratio = sample_uniform(0.1, 1.0, r, draws).tolist()
        centers = [torch.randint(size, (5,), generator=draws).tolist() for size in spatial]
        assert mix.partner.tolist() == partner
        for i in range(5):
            sides = [math.floor(ratio[i % r] * size) for size in spatial]
            starts = [
                min(max(center[i] - side // 2, 0), size - side)
                for center, side, size in zip(centers, sides, spatial, strict=True)
            ]
            for place in positions(spatial):
                inside = [at - start for at, start in zip(place, starts, strict=True)]
                pasted = all(0 <= at < side for at, side in zip(inside, sides, strict=True))
                shown = [
                    at * size // max(side, 1) for at, size, side in zip(inside, spatial, sides, strict=True)
                ]
                for channel in range(2):
                    expected = x[(partner[i], channel, *shown)] if pasted else x[(i, channel, *place)]
                    assert mix.inputs[(i, channel, *place)] == expected
            kept = 1 - math.prod(sides) / math.prod(spatial)
            assert float(mix.lam[i]) == pytest.approx(kept, abs=1e-7)


@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize("per_sample", [False, True])
def test_lam_is_the_share_of_own_pixels(spatial: tuple[int, ...], per_sample: bool) -> None:
    x = constant_samples(4, 2, *spatial)
    for seed in range(5):
        mix = resizemix(
            x, side=(0.0, 1.0), per_sample=per_sample, partner=neighbours(4), generator=seeded(seed)
        )
        assert torch.allclose(own_pixels(mix), mix.lam.double(), atol=1e-7)


@pytest.mark.parametrize(("shape", "dims"), NAMED_DIMS)
@pytest.mark.parametrize("per_sample", [False, True])
def test_named_dimensions_are_resized_and_the_others_are_pasted_whole(
    shape: tuple[int, ...], dims: list[int], per_sample: bool
) -> None:
    mix = resizemix(
        constant_samples(*shape),
        side=(0.6, 0.9),
        dims=dims,
        per_sample=per_sample,
        partner=neighbours(4),
        generator=seeded(),
    )
    assert torch.allclose(own_pixels(mix), mix.lam.double(), atol=1e-7)
    assert float(mix.lam.max()) < 1
    assert varies_only_along(mix.inputs, dims)


@pytest.mark.parametrize("per_sample", [False, True])
def test_an_empty_patch_means_lam_exactly_1_and_an_unchanged_sample(per_sample: bool) -> None:
    x = torch.randn(4, 3, 6, 9, generator=seeded(1))
    mix = resizemix(x, side=(0.0, 0.1), per_sample=per_sample, partner=neighbours(4), generator=seeded())
    assert torch.equal(mix.inputs, x)
    assert mix.lam.tolist() == [1.0] * 4


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_patch_of_the_whole_size_is_the_partner_and_lam_exactly_0(per_sample: bool) -> None:
    x = torch.randn(4, 3, 6, 9, generator=seeded(1))
    mix = resizemix(x, side=(1.0, 1.0), per_sample=per_sample, partner=neighbours(4), generator=seeded())
    assert torch.equal(mix.inputs, x[neighbours(4)])
    assert mix.lam.tolist() == [0.0] * 4


def test_a_batch_has_one_size_of_patch_but_its_places_differ() -> None:
    mask = resizemix(torch.zeros(50, 1, 20), side=(0.4, 0.6), generator=seeded()).mask
    assert mask is not None
    starts, lengths = patch_ends(mask)
    assert len(set(lengths.tolist())) == 1
    assert len(set(starts.tolist())) > 5
    mask = resizemix(torch.zeros(50, 1, 20), side=(0.4, 0.6), per_sample=True, generator=seeded()).mask
    assert mask is not None
    assert len(set(patch_ends(mask)[1].tolist())) > 2


@pytest.mark.parametrize("side", [(0.1, 0.8), (0.3, 0.5), (0.0, 1.0)])
def test_the_side_is_the_uniform_ratio_rounded_down(side: tuple[float, float]) -> None:
    mask = resizemix(torch.zeros(20_000, 1, 12), side=side, per_sample=True, generator=seeded()).mask
    assert mask is not None
    assert_frequencies(patch_ends(mask)[1].bincount(minlength=13), side_law(12, *side))


def test_the_mean_of_lam_and_its_range_are_those_of_a_side_between_one_and_eight_tenths() -> None:
    shares = torch.tensor([1 - k**2 / 32**2 for k in range(33)], dtype=torch.float64)
    chances = torch.tensor(side_law(32, 0.1, 0.8), dtype=torch.float64)
    assert float(shares @ chances) == pytest.approx(0.770, abs=1e-3)
    x = torch.zeros(1, 1, 32, 32, dtype=torch.uint8).expand(20_000, 1, 32, 32)
    lam = resizemix(x, per_sample=True, generator=seeded()).lam
    assert_mean(lam, float(shares @ chances))
    assert (float(lam.min()), float(lam.max())) == pytest.approx((0.390, 0.991), abs=1e-3)


@pytest.mark.parametrize(("size", "side"), [(10, 4), (9, 5), (7, 6)])
def test_a_patch_lies_inside_and_at_the_border_more_often(size: int, side: int) -> None:
    # Centres that would let the patch stick out are shifted to the border, which has their mass too.
    chances = [0.0] * (size - side + 1)
    for center in range(size):
        chances[min(max(center - side // 2, 0), size - side)] += 1 / size
    ratio = (side + 0.5) / size
    mask = resizemix(torch.zeros(50_000, 1, size), side=(ratio, ratio), generator=seeded()).mask
    assert mask is not None
    starts, lengths = patch_ends(mask)
    assert lengths.eq(side).all()
    assert_frequencies(starts.bincount(minlength=len(chances)), chances)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("per_sample", [False, True])
def test_inputs_of_any_dtype_are_pasted_without_new_values(dtype: torch.dtype, per_sample: bool) -> None:
    x = numbered(4, 3, 5, 8, dtype=dtype)
    mix = resizemix(x, per_sample=per_sample, partner=neighbours(4), generator=seeded())
    assert mix.mask is not None
    assert mix.inputs.dtype == dtype
    assert mix.lam.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    own = mix.mask.expand_as(x)
    assert torch.equal(mix.inputs[own], x[own])
    for i, partner in enumerate(neighbours(4).tolist()):
        assert set(mix.inputs[i][~own[i]].tolist()) <= set(x[partner].flatten().tolist())


@pytest.mark.parametrize("per_sample", [False, True])
def test_inputs_may_lie_in_memory_as_they_like(per_sample: bool) -> None:
    x = torch.randn(4, 3, 5, 6, generator=seeded(1))
    assert_layout_does_not_matter(lambda laid: resizemix(laid, per_sample=per_sample, generator=seeded()), x)


def test_the_callback_draws_by_its_step() -> None:
    x = torch.randn(5, 3, 4, 6, generator=seeded(1))
    step = Step(seed=3, ordinal=7, rank=1)
    for per_sample in (False, True):
        expected = resizemix(
            x,
            side=(0.3, 0.9),
            dims=[3],
            per_sample=per_sample,
            partner=step.partners(5),
            generator=step.generator(),
        )
        assert_same_mix(ResizeMix((0.3, 0.9), per_sample=per_sample, dims=[3]).mix(x, step), expected)


@pytest.mark.parametrize(
    "side", [(0.8, 0.1), (-0.1, 0.5), (0.5, 1.1), (0.1,), (0.1, 0.2, 0.3), (math.nan, 0.5), (0.1, math.nan)]
)
def test_ratios_out_of_range_are_refused(side: Any) -> None:
    with pytest.raises(ValueError, match=r"side=.* is out of range: it must be two ratios in \[0, 1\]"):
        ResizeMix(side)


@pytest.mark.parametrize(("shape", "dims", "message"), BAD_DIMS)
def test_inputs_without_the_dimensions_are_refused(
    shape: tuple[int, ...], dims: list[int] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        resizemix(torch.zeros(shape), dims=dims)
