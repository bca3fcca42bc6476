"""MixUp against its two-term formula."""

from __future__ import annotations

import pytest
import torch

from lightning_msda.methods import MixUp, mixup
from lightning_msda.randomness import Step, sample_beta, sample_partners
from lightning_msda.schedule import Schedule
from tests.helpers import (
    BAD_ALPHAS,
    SPATIAL,
    assert_layout_does_not_matter,
    assert_mean,
    assert_same_mix,
    constant_samples,
    neighbours,
    positions,
    seeded,
)


@pytest.mark.parametrize("shape", [(), (3,), *((2, *spatial) for spatial in SPATIAL)])
@pytest.mark.parametrize("per_sample", [False, True])
def test_every_element_is_the_two_term_formula(shape: tuple[int, ...], per_sample: bool) -> None:
    x = torch.randn(4, *shape, dtype=torch.float64, generator=seeded(1))
    mix = mixup(x, alpha=0.7, per_sample=per_sample, generator=seeded())
    draws = seeded()
    partner = sample_partners(4, draws).tolist()
    lam = sample_beta(0.7, 4 if per_sample else 1, draws).tolist()
    assert mix.partner.tolist() == partner
    assert mix.lam.tolist() == [lam[i % len(lam)] for i in range(4)]
    for i, *place in positions(x.shape):
        share = lam[i % len(lam)]
        expected = share * float(x[(i, *place)]) + (1 - share) * float(x[(partner[i], *place)])
        assert float(mix.inputs[(i, *place)]) == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("per_sample", [False, True])
def test_lam_is_the_weight_of_the_own_pixels(per_sample: bool) -> None:
    x = constant_samples(2, 3, 4, 5)
    mix = mixup(x, per_sample=per_sample, partner=torch.tensor([1, 0]), generator=seeded())
    own = torch.stack([1 - mix.inputs[0], mix.inputs[1]]).flatten(1).mean(1)
    assert torch.allclose(own, mix.lam, atol=1e-6)
    assert torch.allclose(mix.weights.sum(1), torch.ones(2))
    assert mix.mask is None


def test_lam_0_and_1_give_the_partner_and_the_own_sample_unchanged() -> None:
    # At this alpha nearly every lam is 0 or 1 to the last bit.
    x = torch.randn(100, 5, generator=seeded(1))
    mix = mixup(x, alpha=1e-7, per_sample=True, generator=seeded())
    own, other = mix.lam == 1, mix.lam == 0
    assert min(int(own.sum()), int(other.sum())) > 20
    assert torch.equal(mix.inputs[own], x[own])
    assert torch.equal(mix.inputs[other], x[mix.partner][other])


def test_a_sample_that_is_its_own_partner_is_unchanged() -> None:
    x = torch.randn(6, 3, 4, generator=seeded(1))
    assert torch.equal(mixup(x, partner=torch.arange(6), generator=seeded()).inputs, x)
    assert torch.equal(mixup(x[:1], generator=seeded()).inputs, x[:1])


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_lam_follows_the_beta_law(alpha: float) -> None:
    lam = mixup(torch.zeros(100_000), alpha=alpha, per_sample=True, generator=seeded()).lam
    assert_mean(lam, 0.5)
    assert_mean((lam - 0.5) ** 2, 1 / (4 * (2 * alpha + 1)))


def test_a_batch_has_one_lam_unless_each_sample_has_its_own() -> None:
    assert len(set(mixup(torch.zeros(9, 2), generator=seeded()).lam.tolist())) == 1
    assert len(set(mixup(torch.zeros(9, 2), per_sample=True, generator=seeded()).lam.tolist())) == 9


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floating_point_inputs_keep_their_dtype(dtype: torch.dtype) -> None:
    x = constant_samples(4, 3, 5, 5, dtype=dtype)
    mix = mixup(x, partner=neighbours(4), generator=seeded())
    assert mix.inputs.dtype == dtype
    assert mix.lam.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = mix.lam.double() * torch.arange(4) + (1 - mix.lam.double()) * neighbours(4)
    # lam and the result, at most 3, are rounded by half an eps each.
    atol = 4 * torch.finfo(dtype).eps
    assert torch.allclose(mix.inputs[:, 0, 0, 0].double(), expected, rtol=0, atol=atol)


def test_inputs_may_lie_in_memory_as_they_like() -> None:
    x = torch.randn(4, 3, 5, 6, generator=seeded(1))
    assert_layout_does_not_matter(lambda laid: mixup(laid, generator=seeded()), x)


def test_the_callback_draws_by_its_step_and_its_schedule() -> None:
    x = torch.randn(5, 3, 4, 4, generator=seeded(1))
    method = MixUp(alpha={0: 1.0, 2: 0.1}, per_sample=True)
    for epoch, alpha in enumerate([1.0, 1.0, 0.1]):
        step = Step(seed=3, ordinal=7, epoch=epoch, rank=1)
        expected = mixup(
            x, alpha=alpha, per_sample=True, partner=step.partners(5), generator=step.generator()
        )
        assert_same_mix(method.mix(x, step), expected)


@pytest.mark.parametrize(("alpha", "message"), BAD_ALPHAS)
def test_an_alpha_out_of_range_is_refused(alpha: Schedule, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixUp(alpha)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_integers_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=rf"{dtype} of shape \(2, 3\).*convert images to floating point"):
        mixup(torch.zeros(2, 3, dtype=dtype))
