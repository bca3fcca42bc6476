"""BC and BC+ against their equations."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from lightning_msda import BCMix
from lightning_msda.functional import bcmix
from lightning_msda.methods import bcmix as module_function
from lightning_msda.randomness import Step, sample_partners, sample_uniform
from tests.helpers import (
    SPATIAL,
    assert_layout_does_not_matter,
    assert_same_mix,
    neighbours,
    positions,
    seeded,
)

SHAPES = [(3,), *((2, *spatial) for spatial in SPATIAL)]


@pytest.mark.parametrize("shape", [(), *SHAPES])
@pytest.mark.parametrize("per_sample", [False, True])
def test_bc_is_the_two_term_formula(shape: tuple[int, ...], per_sample: bool) -> None:
    x = torch.randn(4, *shape, dtype=torch.float64, generator=seeded(1))
    mix = bcmix(x, per_sample=per_sample, generator=seeded())
    draws = seeded()
    partner = sample_partners(4, draws).tolist()
    r = sample_uniform(0, 1, 4 if per_sample else 1, draws).tolist()
    assert mix.partner.tolist() == partner
    assert mix.lam.tolist() == [r[i % len(r)] for i in range(4)]
    for i, *place in positions(x.shape):
        share = r[i % len(r)]
        expected = share * float(x[(i, *place)]) + (1 - share) * float(x[(partner[i], *place)])
        assert float(mix.inputs[(i, *place)]) == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("per_sample", [False, True])
def test_bc_plus_is_its_equations(shape: tuple[int, ...], per_sample: bool) -> None:
    x = torch.randn(4, *shape, dtype=torch.float64, generator=seeded(1))
    x = x * torch.tensor([0.1, 1, 5, 20]).view(4, *[1] * len(shape)) + 3
    mix = bcmix(x, plus=True, per_sample=per_sample, generator=seeded())
    draws = seeded()
    partner = sample_partners(4, draws).tolist()
    r = sample_uniform(0, 1, 4 if per_sample else 1, draws).tolist()
    assert mix.lam.tolist() == [r[i % len(r)] for i in range(4)]
    flat = [sample.flatten().tolist() for sample in x]
    means = [sum(values) / len(values) for values in flat]
    centred = [[value - mean for value in values] for values, mean in zip(flat, means, strict=True)]
    spreads = [math.sqrt(sum(value**2 for value in values) / len(values)) for values in centred]
    for i, j in enumerate(partner):
        share = r[i % len(r)]
        p = 1 / (1 + spreads[i] / spreads[j] * (1 - share) / share)
        norm = math.sqrt(p**2 + (1 - p) ** 2)
        wanted = [(p * a + (1 - p) * b) / norm for a, b in zip(centred[i], centred[j], strict=True)]
        assert mix.inputs[i].flatten().tolist() == pytest.approx(wanted, rel=1e-9, abs=1e-12)


def test_bc_plus_perceives_the_ratio_that_the_label_has() -> None:
    x = torch.randn(2, 1, 200, 200, dtype=torch.float64, generator=seeded())
    x = x * torch.tensor([1.0, 30.0], dtype=torch.float64).view(2, 1, 1, 1)
    mix = bcmix(x, plus=True, partner=torch.tensor([1, 0]), generator=seeded(1))
    loud = x - x.mean((1, 2, 3), keepdim=True)
    basis = torch.stack([loud[0].flatten(), loud[1].flatten()], 1)
    for i in range(2):
        amounts = torch.linalg.lstsq(basis, mix.inputs[i].flatten()[:, None]).solution[:, 0]
        strength = amounts * loud.flatten(1).std(1)
        assert float(strength[i] / strength.sum()) == pytest.approx(float(mix.lam[i]), abs=1e-9)


def test_bc_plus_keeps_the_power_of_samples_that_are_equally_strong() -> None:
    x = torch.randn(50, 1, 60, 60, generator=seeded()) + torch.rand(50, 1, 1, 1)
    mix = bcmix(x, plus=True, partner=neighbours(50), generator=seeded(1))
    assert bool((mix.inputs.flatten(1).mean(1).abs() < 1e-5).all())
    assert bool(((mix.inputs.flatten(1).std(1) - 1).abs() < 0.1).all())


def test_r_is_uniform() -> None:
    lam = bcmix(torch.zeros(20_000), generator=seeded()).lam
    assert float(stats.kstest(lam.numpy(), "uniform").pvalue) > 1e-5


@pytest.mark.parametrize("plus", [False, True])
def test_a_ratio_of_0_is_the_partner(plus: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = lambda low, high, n, generator: torch.zeros(n, dtype=torch.float64)  # noqa: E731
    monkeypatch.setitem(module_function.__globals__, "sample_uniform", zeros)
    x = torch.randn(3, 2, 5, 5, generator=seeded())
    mix = bcmix(x, plus=plus, partner=neighbours(3))
    assert mix.lam.tolist() == [0.0] * 3
    wanted = x[neighbours(3)]
    wanted = wanted - wanted.mean((1, 2, 3), keepdim=True) if plus else wanted
    torch.testing.assert_close(mix.inputs, wanted)


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3])
def test_of_a_constant_sample_nothing_is_balanced(value: float) -> None:
    x = torch.randn(3, 2, 5, 5, generator=seeded())
    x[1] = value
    mix = bcmix(x, plus=True, partner=torch.tensor([1, 1, 0]), generator=seeded(1))
    assert bool(mix.inputs.isfinite().all())
    r = mix.lam.view(3, 1, 1, 1)
    centred = x - x.mean((1, 2, 3), keepdim=True)
    norm = (r**2 + (1 - r) ** 2).sqrt()
    torch.testing.assert_close(mix.inputs[0], (r * centred / norm)[0])
    torch.testing.assert_close(mix.inputs[1], torch.zeros(2, 5, 5))


def test_further_inputs_are_mixed_by_the_labels_ratio() -> None:
    x, other = torch.randn(4, 2, 5, 5, generator=seeded()), torch.rand(4, 3, generator=seeded(1))
    for plus in (False, True):
        mix = bcmix(x, plus=plus, partner=neighbours(4), generator=seeded())
        r = mix.lam[:, None]
        torch.testing.assert_close(mix.follow(other), r * other + (1 - r) * other[neighbours(4)])


@pytest.mark.parametrize("plus", [False, True])
def test_each_sample_has_its_ratio_unless_the_batch_has_one(plus: bool) -> None:
    x = torch.randn(9, 2, 4, generator=seeded())
    assert len(set(bcmix(x, plus=plus, generator=seeded()).lam.tolist())) == 9
    assert len(set(bcmix(x, plus=plus, per_sample=False, generator=seeded()).lam.tolist())) == 1


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floating_point_inputs_keep_their_dtype(dtype: torch.dtype, plus: bool) -> None:
    x = torch.randn(4, 3, 5, 5, generator=seeded()).to(dtype)
    mix = bcmix(x, plus=plus, partner=neighbours(4), generator=seeded())
    exact = bcmix(x.double(), plus=plus, partner=neighbours(4), generator=seeded())
    assert mix.inputs.dtype == dtype
    assert mix.lam.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    atol = 16 * torch.finfo(dtype).eps
    assert torch.allclose(mix.inputs.double(), exact.inputs, rtol=0, atol=atol)


@pytest.mark.parametrize("plus", [False, True])
def test_inputs_may_lie_in_memory_as_they_like(plus: bool) -> None:
    x = torch.randn(4, 3, 5, 6, generator=seeded(1))
    assert_layout_does_not_matter(lambda laid: bcmix(laid, plus=plus, generator=seeded()), x)


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("per_sample", [False, True])
def test_the_callback_draws_by_its_step(plus: bool, per_sample: bool) -> None:
    x, step = torch.randn(5, 3, 4, 4, generator=seeded(1)), Step(seed=3, ordinal=7, rank=1)
    expected = bcmix(
        x, plus=plus, per_sample=per_sample, partner=step.partners(5), generator=step.generator()
    )
    assert_same_mix(BCMix(plus, per_sample=per_sample).mix(x, step), expected)


def test_the_callback_draws_by_sample_as_in_the_paper() -> None:
    assert BCMix().per_sample and BCMix().lam_by_sample
    assert not BCMix(per_sample=False).lam_by_sample


def test_dims_have_no_meaning() -> None:
    with pytest.raises(ValueError, match=r"dims=\[2\] has no meaning for BCMix"):
        BCMix(dims=[2])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_integers_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=rf"{dtype} of shape \(2, 3\).*convert images to floating point"):
        bcmix(torch.zeros(2, 3, dtype=dtype))
