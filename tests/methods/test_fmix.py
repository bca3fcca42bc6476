"""FMix against equation 5 and the two-term formula, and against the laws of its masks."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from lightning_msda.methods import FMix, fmix, fmix_mask
from lightning_msda.methods.fmix import Spectrum
from lightning_msda.ops import low_frequency_images
from lightning_msda.randomness import Step, sample_beta, sample_partners, sample_uniform
from lightning_msda.schedule import Schedule
from tests.helpers import (
    BAD_ALPHAS,
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

SPECTRA: tuple[Spectrum, ...] = get_args(Spectrum)


def equation_5(image: Tensor, lam: float, up: bool, max_soft: float) -> list[float]:
    """Return the weights of an image's elements: 1 for the top ``lam * n``, rounded up or down, else 0.

    With ``max_soft`` there is an edge in between (as in github.com/ecs-vlc/FMix).
    """
    values = image.flatten().tolist()
    n = len(values)
    count = (math.ceil if up else math.floor)(lam * n)
    soft = math.floor(n * min(max_soft, lam, 1 - lam))
    edge = [1 - i / (2 * soft - 1) for i in range(2 * soft)]
    weights = [1.0] * (count - soft) + edge + [0.0] * (n - count - soft)
    ranked = sorted(range(n), key=values.__getitem__, reverse=True)
    return [weights[ranked.index(i)] for i in range(n)]


@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("max_soft", [0.0, 0.3])
def test_every_element_is_mixed_by_the_mask_of_equation_5(
    spatial: tuple[int, ...], per_sample: bool, max_soft: float
) -> None:
    x = torch.randn(4, 2, *spatial, dtype=torch.float64, generator=seeded(1))
    r = 4 if per_sample else 1
    for seed in range(3):
        mix = fmix(
            x, alpha=0.7, decay_power=2.0, max_soft=max_soft, per_sample=per_sample, generator=seeded(seed)
        )
        draws = seeded(seed)
        partner = sample_partners(4, draws).tolist()
        lam = sample_beta(0.7, r, draws).tolist()
        images = low_frequency_images(r, spatial, 2.0, generator=draws)
        up = (sample_uniform(0, 1, r, draws) < 0.5).tolist()
        assert mix.partner.tolist() == partner
        for i in range(4):
            row = i % r
            mask = equation_5(images[row], lam[row], up[row], max_soft)
            for own, place in zip(mask, positions(spatial), strict=True):
                for channel in range(2):
                    mine, other = x[(i, channel, *place)], x[(partner[i], channel, *place)]
                    expected = own * float(mine) + (1 - own) * float(other)
                    assert float(mix.inputs[(i, channel, *place)]) == pytest.approx(expected, abs=1e-6)
            assert float(mix.lam[i]) == pytest.approx(sum(mask) / len(mask), abs=1e-6)


@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize("per_sample", [False, True])
def test_lam_is_the_share_of_own_pixels(spatial: tuple[int, ...], per_sample: bool) -> None:
    x = constant_samples(4, 2, *spatial)
    for seed in range(5):
        mix = fmix(x, per_sample=per_sample, partner=neighbours(4), generator=seeded(seed))
        assert torch.allclose(own_pixels(mix), mix.lam.double(), atol=1e-7)


@pytest.mark.parametrize(("shape", "dims"), NAMED_DIMS)
@pytest.mark.parametrize("per_sample", [False, True])
def test_named_dimensions_are_masked_and_the_others_follow(
    shape: tuple[int, ...], dims: list[int], per_sample: bool
) -> None:
    mix = fmix(
        constant_samples(*shape),
        alpha=8.0,
        dims=dims,
        per_sample=per_sample,
        partner=neighbours(4),
        generator=seeded(),
    )
    assert torch.allclose(own_pixels(mix), mix.lam.double(), atol=1e-7)
    assert all(0 < lam < 1 for lam in mix.lam.tolist())
    assert varies_only_along(mix.inputs, dims)


@pytest.mark.parametrize("max_soft", [0.0, 0.5])
def test_lam_0_and_1_give_the_partner_and_the_own_sample_unchanged(max_soft: float) -> None:
    # At this alpha nearly every lam is 0 or 1 to the last bit.
    x = torch.randn(100, 3, 6, 7, generator=seeded(1))
    mix = fmix(x, alpha=1e-7, max_soft=max_soft, per_sample=True, partner=neighbours(100), generator=seeded())
    own, other = mix.lam == 1, mix.lam == 0
    assert min(int(own.sum()), int(other.sum())) > 20
    assert torch.equal(mix.inputs[own], x[own])
    assert torch.equal(mix.inputs[other], x[mix.partner][other])


def test_a_batch_of_one_sample_is_unchanged() -> None:
    x = numbered(1, 2, 5, 7)
    assert torch.equal(fmix(x, generator=seeded()).inputs, x)


@pytest.mark.parametrize("spatial", [*SPATIAL, (6, 1), (4, 4, 1), (32, 32)])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_the_mean_of_a_mask_is_lam_up_to_one_element(spatial: tuple[int, ...], spectrum: Spectrum) -> None:
    lam = torch.rand(300, dtype=torch.float64, generator=seeded(1))
    masks = fmix_mask(lam, spatial, spectrum=spectrum, generator=seeded())
    assert masks.dtype == torch.bool
    assert masks.shape == (300, *spatial)
    assert float((masks.flatten(1).sum(1) - lam * math.prod(spatial)).abs().max()) < 1


@pytest.mark.parametrize("spatial", [(7,), (5, 8), (3, 4, 5)])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_masks_of_lam_0_and_1_are_empty_and_full(spatial: tuple[int, ...], spectrum: Spectrum) -> None:
    masks = fmix_mask(torch.tensor([0.0, 1.0]), spatial, spectrum=spectrum, generator=seeded())
    assert not masks[0].any()
    assert masks[1].all()


def test_a_mask_for_a_number_has_no_leading_dimension() -> None:
    mask = fmix_mask(0.25, (6, 10), generator=seeded())
    assert mask.shape == (6, 10)
    assert int(mask.sum()) == 15
    assert torch.equal(mask, fmix_mask(torch.tensor([0.25]), (6, 10), generator=seeded())[0])


@pytest.mark.parametrize("lam", [0.53, 0.501])
def test_a_fair_coin_rounds_up_or_down(lam: float) -> None:
    # 33.92 and 32.06 elements of 64: the nearer number is no more likely.
    masks = fmix_mask(torch.full((20_000,), lam, dtype=torch.float64), (8, 8), generator=seeded())
    counts = masks.flatten(1).sum(1).bincount(minlength=65).tolist()
    assert_frequencies(counts, [0.5 * (k in (math.floor(64 * lam), math.ceil(64 * lam))) for k in range(65)])


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_lam_follows_the_beta_law(alpha: float) -> None:
    # The coin adds at most 1 / 256 to a lam, and as often takes it away: 4e-6 of the variance.
    lam = fmix(torch.zeros(20_000, 1, 256), alpha=alpha, per_sample=True, generator=seeded()).lam.double()
    assert_mean(lam, 0.5)
    assert_mean((lam - 0.5) ** 2, 1 / (4 * (2 * alpha + 1)))


@pytest.mark.parametrize("max_soft", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("spatial", [(33,), (32, 32), (6, 7, 8)])
def test_a_soft_edge_preserves_the_mean(spatial: tuple[int, ...], max_soft: float) -> None:
    n = math.prod(spatial)
    lam = torch.rand(200, dtype=torch.float64, generator=seeded(1))
    masks = fmix_mask(lam, spatial, max_soft=max_soft, generator=seeded()).flatten(1)
    assert masks.dtype == torch.float32
    assert masks.min() >= 0
    assert masks.max() <= 1
    assert float((masks.double().mean(1) - lam).abs().max()) < 1 / n + 1e-6
    soft = (n * lam.minimum(1 - lam).clamp(max=max_soft)).floor()
    between = ((masks > 0) & (masks < 1)).sum(1)
    assert torch.equal(between, (2 * soft - 2).clamp(min=0).long())  # the edge's ends are 1 and 0


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_reformulated_masks_follow_the_unequal_beta_law_and_the_own_label_has_weight_1(alpha: float) -> None:
    mix = fmix(
        torch.zeros(20_000, 1, 256), alpha=alpha, reformulate=True, per_sample=True, generator=seeded()
    )
    assert mix.mask is not None
    assert torch.equal(mix.weights, torch.tensor([1.0, 0.0]).expand(20_000, 2))
    kept, mean = mix.mask.flatten(1).double().mean(1), (alpha + 1) / (2 * alpha + 1)
    assert_mean(kept, mean)
    assert_mean((kept - mean) ** 2, alpha / (2 * (2 * alpha + 1) ** 2))


def test_reformulated_inputs_are_mixed_by_the_mask() -> None:
    x = constant_samples(4, 2, 6, 6)
    mix = fmix(x, alpha=8.0, reformulate=True, partner=neighbours(4), generator=seeded())
    assert mix.mask is not None
    assert torch.allclose(own_pixels(mix), mix.mask.double().mean().expand(4))
    assert 0 < float(own_pixels(mix)[0]) < 1


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_the_spectrum_is_the_one_that_is_named(spectrum: Spectrum) -> None:
    images = low_frequency_images(1, (6, 10), 1.5, official=spectrum == "official", generator=seeded())
    mask = fmix_mask(0.5, (6, 10), decay_power=1.5, spectrum=spectrum, generator=seeded())
    assert torch.equal(mask, images[0] > images[0].median())


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("per_sample", [False, True])
def test_inputs_of_any_dtype_are_masked_without_a_change_of_values(
    dtype: torch.dtype, per_sample: bool
) -> None:
    x = numbered(4, 3, 5, 8, dtype=dtype)
    mix = fmix(x, per_sample=per_sample, partner=neighbours(4), generator=seeded())
    assert mix.mask is not None
    assert mix.inputs.dtype == dtype
    assert mix.lam.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(mix.inputs, torch.where(mix.mask, x, x[neighbours(4)]))


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("max_soft", [0.0, 0.3])
def test_inputs_may_lie_in_memory_as_they_like(per_sample: bool, max_soft: float) -> None:
    x = torch.randn(4, 3, 5, 6, generator=seeded(1))
    assert_layout_does_not_matter(
        lambda laid: fmix(laid, max_soft=max_soft, per_sample=per_sample, generator=seeded()), x
    )


def test_the_callback_draws_by_its_step_and_its_schedules() -> None:
    x = torch.randn(5, 3, 6, 8, generator=seeded(1))
    method = FMix(
        alpha={0: 1.0, 2: 0.1},
        decay_power={0: 3.0, 1: 1.5},
        max_soft=0.2,
        reformulate=True,
        spectrum="official",
        per_sample=True,
        dims=[3],
    )
    for epoch, (alpha, decay_power) in enumerate([(1.0, 3.0), (1.0, 1.5), (0.1, 1.5)]):
        step = Step(seed=3, ordinal=7, epoch=epoch, rank=1)
        expected = fmix(
            x,
            alpha=alpha,
            decay_power=decay_power,
            max_soft=0.2,
            reformulate=True,
            spectrum="official",
            dims=[3],
            per_sample=True,
            partner=step.partners(5),
            generator=step.generator(),
        )
        assert_same_mix(method.mix(x, step), expected)


@pytest.mark.parametrize(("alpha", "message"), BAD_ALPHAS)
def test_an_alpha_out_of_range_is_refused(alpha: Schedule, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FMix(alpha)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decay_power": 0}, "decay_power=0 is out of range"),
        ({"decay_power": -3.0}, r"decay_power=-3\.0 is out of range"),
        ({"decay_power": {1: 3.0}}, r"decay_power=\{1: 3\.0\} has no value for the first epochs"),
        ({"decay_power": {0: 3.0, 4: math.nan}}, "decay_power=nan is out of range"),
        ({"max_soft": -0.1}, r"max_soft=-0\.1 is out of range: it must be a share from 0 to 0\.5"),
        ({"max_soft": 0.6}, r"max_soft=0\.6 is out of range"),
        ({"max_soft": math.nan}, "max_soft=nan is out of range"),
        ({"spectrum": "Paper"}, "spectrum='Paper' is unknown: it must be 'paper' or 'official'"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FMix(**arguments)


@pytest.mark.parametrize(("shape", "dims", "message"), BAD_DIMS)
def test_inputs_without_the_dimensions_are_refused(
    shape: tuple[int, ...], dims: list[int] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fmix(torch.zeros(shape), dims=dims)


def test_masks_of_four_dimensions_are_refused() -> None:
    with pytest.raises(ValueError, match="one to three dimensions, not of 4"):
        fmix(torch.zeros(2, 1, 2, 2, 2, 2))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_a_soft_edge_of_integers_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=rf"max_soft=0\.2 interpolates at the edge, which {dtype} cannot"):
        fmix(torch.zeros(2, 1, 4, dtype=dtype), max_soft=0.2)
