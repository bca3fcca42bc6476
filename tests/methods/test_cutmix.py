"""CutMix against its rule in plain loops, and against the law of a box that is cut off at the border."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from lightning_msda.methods import CutMix, cutmix
from lightning_msda.randomness import Step, sample_beta, sample_partners
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


def visible(center: int, side: int, size: int) -> int:
    """Return how much of a box's side lies inside."""
    return sum(center - side // 2 <= at < center + side // 2 for at in range(size))


def kept_law(spatial: tuple[int, ...], alpha: float) -> tuple[Tensor, Tensor]:
    """Return every kept share and its chance: the clipped box, integrated over lam and over its centre."""
    d, n = len(spatial), math.prod(spatial)
    # 1 - lam has the law of lam. The sides change where its d-th root times a size is whole.
    ends = sorted({(k / size) ** d for size in spatial for k in range(size + 1)})
    chances = torch.from_numpy(stats.beta(alpha, alpha).cdf(ends)).diff() / n
    shares = []
    for low, high in itertools.pairwise(ends):
        sides = [math.floor(((low + high) / 2) ** (1 / d) * size) for size in spatial]
        area = torch.ones(1, dtype=torch.float64)
        for side, size in zip(sides, spatial, strict=True):
            lengths = [float(visible(center, side, size)) for center in range(size)]
            area = (area[:, None] * torch.tensor(lengths, dtype=torch.float64)).flatten()
        shares.append(1 - area / n)
    return torch.cat(shares), chances.repeat_interleave(n)


def lams(n: int, spatial: tuple[int, ...], alpha: float = 1.0) -> Tensor:
    x = torch.zeros(1, 1, *spatial, dtype=torch.uint8).expand(n, 1, *spatial)
    return cutmix(x, alpha=alpha, per_sample=True, generator=seeded()).lam.double()


@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize("per_sample", [False, True])
def test_a_box_of_the_drawn_share_comes_from_the_partner(spatial: tuple[int, ...], per_sample: bool) -> None:
    x, d = numbered(5, 2, *spatial), len(spatial)
    for seed in range(5):
        mix = cutmix(x, alpha=0.8, per_sample=per_sample, generator=seeded(seed))
        draws, r = seeded(seed), 5 if per_sample else 1
        partner = sample_partners(5, draws).tolist()
        lam = sample_beta(0.8, r, draws).tolist()
        centers = [torch.randint(size, (r,), generator=draws).tolist() for size in spatial]
        assert mix.partner.tolist() == partner
        for i in range(5):
            row, kept = i % r, 0
            halves = [math.floor((1 - lam[row]) ** (1 / d) * size) // 2 for size in spatial]
            for place in positions(spatial):
                own = any(
                    not center[row] - half <= at < center[row] + half
                    for at, center, half in zip(place, centers, halves, strict=True)
                )
                kept += own
                for channel in range(2):
                    source = i if own else partner[i]
                    assert mix.inputs[(i, channel, *place)] == x[(source, channel, *place)]
            assert float(mix.lam[i]) == pytest.approx(kept / math.prod(spatial), abs=1e-7)


@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize("per_sample", [False, True])
def test_lam_is_the_share_of_own_pixels(spatial: tuple[int, ...], per_sample: bool) -> None:
    x = constant_samples(4, 2, *spatial)
    for seed in range(5):
        mix = cutmix(x, per_sample=per_sample, partner=neighbours(4), generator=seeded(seed))
        assert torch.allclose(own_pixels(mix), mix.lam.double(), atol=1e-7)


@pytest.mark.parametrize(("shape", "dims"), NAMED_DIMS)
@pytest.mark.parametrize("per_sample", [False, True])
def test_named_dimensions_are_cut_and_the_others_are_pasted_whole(
    shape: tuple[int, ...], dims: list[int], per_sample: bool
) -> None:
    changed = False
    for seed in range(5):
        mix = cutmix(
            constant_samples(*shape),
            dims=dims,
            per_sample=per_sample,
            partner=neighbours(4),
            generator=seeded(seed),
        )
        assert torch.allclose(own_pixels(mix), mix.lam.double(), atol=1e-7)
        assert varies_only_along(mix.inputs, dims)
        changed |= bool((mix.lam < 1).any())
    assert changed


def test_an_empty_box_means_lam_exactly_1_and_an_unchanged_sample() -> None:
    # At this alpha every second lam is 1 to the last bit.
    x = torch.randn(100, 3, 6, 7, generator=seeded(1))
    mix = cutmix(x, alpha=1e-7, per_sample=True, partner=neighbours(100), generator=seeded())
    unchanged = (mix.inputs == x).flatten(1).all(1)
    assert 20 < int(unchanged.sum()) < 80
    assert torch.equal(mix.lam == 1, unchanged)
    whole = [cutmix(x, alpha=1e-7, partner=neighbours(100), generator=seeded(seed)) for seed in range(20)]
    assert any(torch.equal(mix.inputs, x) and bool((mix.lam == 1).all()) for mix in whole)


@pytest.mark.parametrize("spatial", [(1,), (1, 1), (1, 6)])
def test_a_side_of_one_pixel_has_no_box(spatial: tuple[int, ...]) -> None:
    x = numbered(4, 2, *spatial)
    mix = cutmix(x, alpha=0.1, per_sample=True, generator=seeded())
    assert torch.equal(mix.inputs, x)
    assert mix.lam.tolist() == [1.0] * 4


def test_a_batch_of_one_sample_is_unchanged() -> None:
    x = numbered(1, 2, 5, 7)
    assert torch.equal(cutmix(x, generator=seeded()).inputs, x)


@pytest.mark.parametrize(
    ("spatial", "mean"),
    [
        ((8, 8), 0.768),
        ((32, 32), 0.7005),
        ((16,), None),
        ((12, 20), None),
        ((6, 6, 6), None),
        ((4, 7, 5), None),
    ],
)
@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_the_mean_kept_share_is_that_of_a_clipped_box(
    spatial: tuple[int, ...], mean: float | None, alpha: float
) -> None:
    shares, chances = kept_law(spatial, alpha)
    expected = float(shares @ chances)
    if mean is not None and alpha == 1:
        assert expected == pytest.approx(mean, abs=1e-3)
    assert_mean(lams(20_000, spatial, alpha), expected)


def test_the_kept_share_has_the_quantiles_of_a_clipped_box() -> None:
    shares, chances = kept_law((32, 32), 1.0)
    shares, order = shares.sort()
    quantiles = shares[
        torch.searchsorted(chances[order].cumsum(0), torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95]))
    ]
    assert quantiles.tolist() == pytest.approx([0.367, 0.578, 0.718, 0.850, 0.965], abs=0.004)
    bins = torch.bucketize(shares, quantiles - 1e-6)
    expected = torch.zeros(6, dtype=torch.float64).index_add_(0, bins, chances[order])
    drawn = torch.bucketize(lams(20_000, (32, 32)), quantiles - 1e-6)
    assert_frequencies(drawn.bincount(minlength=6), expected)


@pytest.mark.parametrize(("size", "chance"), [(8, 1 / 16), (32, 1 / 256)])
def test_a_sample_stays_whole_as_often_as_its_box_is_thinner_than_two_pixels(
    size: int, chance: float
) -> None:
    whole = int((lams(20_000, (size, size)) == 1).sum())
    assert_frequencies([whole, 20_000 - whole], [chance, 1 - chance])


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("per_sample", [False, True])
def test_inputs_of_any_dtype_are_cut_without_a_change_of_values(dtype: torch.dtype, per_sample: bool) -> None:
    x = numbered(4, 3, 5, 8, dtype=dtype)
    mix = cutmix(x, per_sample=per_sample, partner=neighbours(4), generator=seeded())
    assert mix.mask is not None
    assert mix.inputs.dtype == dtype
    assert mix.lam.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(mix.inputs, torch.where(mix.mask, x, x[neighbours(4)]))


@pytest.mark.parametrize("per_sample", [False, True])
def test_inputs_may_lie_in_memory_as_they_like(per_sample: bool) -> None:
    x = torch.randn(4, 3, 5, 6, generator=seeded(1))
    assert_layout_does_not_matter(lambda laid: cutmix(laid, per_sample=per_sample, generator=seeded()), x)


def test_the_callback_draws_by_its_step_and_its_schedule() -> None:
    x = torch.randn(5, 3, 4, 6, generator=seeded(1))
    method = CutMix(alpha={0: 1.0, 2: 0.1}, per_sample=True, dims=[3])
    for epoch, alpha in enumerate([1.0, 1.0, 0.1]):
        step = Step(seed=3, ordinal=7, epoch=epoch, rank=1)
        expected = cutmix(
            x, alpha=alpha, dims=[3], per_sample=True, partner=step.partners(5), generator=step.generator()
        )
        assert_same_mix(method.mix(x, step), expected)


@pytest.mark.parametrize(("alpha", "message"), BAD_ALPHAS)
def test_an_alpha_out_of_range_is_refused(alpha: Schedule, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CutMix(alpha)


@pytest.mark.parametrize(("shape", "dims", "message"), BAD_DIMS)
def test_inputs_without_the_dimensions_are_refused(
    shape: tuple[int, ...], dims: list[int] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        cutmix(torch.zeros(shape), dims=dims)
