"""Low-frequency images against equations 3 and 4, and against what the authors' code does instead."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from lightning_msda.ops import low_frequency_images
from tests.helpers import assert_frequencies, positions, seeded

SIZES = [(8,), (9,), (2,), (8, 8), (7, 10), (10, 7), (5, 2), (1, 6), (6, 1), (4, 6, 5), (3, 1, 4)]


def frequency(place: tuple[int, ...], spatial: tuple[int, ...]) -> float:
    """Return the magnitude of the frequency of a bin of the Fourier transform, in cycles per element."""
    return math.hypot(*(min(k, size - k) / size for k, size in zip(place, spatial, strict=True)))


def frequencies(spatial: tuple[int, ...]) -> Tensor:
    """Return all of them, with infinity instead of the mean's 0: equation 3 has no value there."""
    values = [frequency(place, spatial) or math.inf for place in positions(spatial)]
    return torch.tensor(values, dtype=torch.float64).view(spatial)


def equation_4(n: int, spatial: tuple[int, ...], delta: float) -> Tensor:
    """Return ``Re(F^-1(Z / freq^delta))`` with Z on the full grid, as the paper writes it."""
    z = torch.randn(n, *spatial, dtype=torch.complex128, generator=seeded(99))
    dims = tuple(range(1, len(spatial) + 1))
    image: Tensor = torch.fft.ifftn(z / frequencies(spatial) ** delta, dim=dims).real
    return image


def coefficients(images: Tensor) -> Tensor:
    spectrum: Tensor = torch.fft.fftn(images.double(), dim=tuple(range(1, images.dim())))
    return spectrum


def power(images: Tensor) -> Tensor:
    """Return the mean power at every frequency."""
    return coefficients(images).abs().square().mean(0)


def ours(n: int, spatial: tuple[int, ...], delta: float, *, official: bool = False, seed: int = 0) -> Tensor:
    images = low_frequency_images(n, spatial, delta, official=official, generator=seeded(seed))
    assert images.shape == (n, *spatial)
    assert images.dtype == torch.float32
    return images


def top_half(images: Tensor) -> Tensor:
    return images > images.flatten(1).median(1).values.view(-1, *[1] * (images.dim() - 1))


def segments(masks: Tensor) -> Tensor:
    """Return how many runs of 1 each mask has around its circle, shape ``(R, L)``."""
    return (masks & ~masks.roll(1, 1)).sum(1)


def edges(masks: Tensor, dim: int) -> float:
    """Return how many neighbours along a dimension differ, on average."""
    return float(masks.diff(dim=dim).flatten(1).sum(1).double().mean())


@pytest.mark.parametrize("delta", [1.5, 3.0])
@pytest.mark.parametrize("spatial", SIZES)
def test_power_at_every_frequency_is_that_of_equation_4(spatial: tuple[int, ...], delta: float) -> None:
    n = 20_000
    there = frequencies(spatial).isfinite()
    ratio = power(ours(n, spatial, delta))[there] / power(equation_4(n, spatial, delta))[there]
    # The power of one draw varies by at most sqrt(2) of its mean (where a bin is its own mirror image), in
    # both implementations. Only the scale of the images is free: no threshold sees it.
    assert torch.allclose(ratio, ratio.mean(), rtol=5 * 2 / n**0.5, atol=0)


@pytest.mark.parametrize("spatial", [(7,), (8,), (4, 5), (5, 4), (4, 4), (2, 3, 4)])
def test_frequencies_are_independent_but_for_the_mirror_image(spatial: tuple[int, ...]) -> None:
    n, size = 20_000, math.prod(spatial)
    z = (coefficients(ours(n, spatial, 2.0)) * frequencies(spatial).square()).view(n, size)[:, 1:]
    mirrors = [tuple(-k % s for k, s in zip(place, spatial, strict=True)) for place in positions(spatial)]
    order = {place: i for i, place in enumerate(positions(spatial))}
    mirror = torch.zeros(size, size, dtype=torch.complex128)
    for i, place in enumerate(mirrors):
        mirror[i, order[place]] = 1
    scale = z.abs().square().mean()
    covariance, pseudo_covariance = z.t() @ z.conj() / n / scale, z.t() @ z / n / scale
    # White noise of a real image: E[z z*] = 1, E[z z^T] = the mirror image. An entry's standard error is at
    # most sqrt(2 / n).
    bound = 5.5 * (2 / n) ** 0.5
    assert float((covariance - torch.eye(size - 1)).abs().max()) < bound
    assert float((pseudo_covariance - mirror[1:, 1:]).abs().max()) < bound


def low(spatial: tuple[int, ...]) -> Tensor:
    """Return where the 32 lowest frequencies along each dimension are."""
    return torch.tensor(
        [
            all(min(k, s - k) <= 32 for k, s in zip(place, spatial, strict=True))
            for place in positions(spatial)
        ]
    ).view(spatial)


@pytest.mark.parametrize("spatial", [(70, 66), (75, 20), (6, 81), (66, 1)])
def test_on_larger_grids_low_frequencies_have_the_power_of_equation_4(spatial: tuple[int, ...]) -> None:
    n, there = 2000, low(spatial) & frequencies(spatial).isfinite()
    seen, scale = power(ours(n, spatial, 3.0)), frequencies(spatial) ** -6
    ratio = (seen / scale)[there]
    # Up to 4,600 bins, of which a few are their own mirror image: 7 standard errors of those.
    assert torch.allclose(ratio, ratio.mean(), rtol=7 * (2 / n) ** 0.5, atol=0)
    assert float(scale[~low(spatial)].sum()) < 1e-6 * float(scale.sum())
    assert float(seen[~low(spatial)].sum()) < 1e-10 * float(seen.sum())


@pytest.mark.parametrize(("spatial", "delta"), [((80, 70), 1.5), ((90,), 3.0), ((66, 6, 5), 1.0)])
def test_where_high_frequencies_have_power_none_is_left_out(spatial: tuple[int, ...], delta: float) -> None:
    n, there = 400, frequencies(spatial).isfinite()
    ratio = (power(ours(n, spatial, delta)) * frequencies(spatial) ** (2 * delta))[there]
    assert torch.allclose(ratio, ratio.mean(), rtol=7 * (2 / n) ** 0.5, atol=0)


def test_what_is_left_out_would_change_few_elements_of_a_mask() -> None:
    n, spatial = 20, (224, 224)
    images = ours(n, spatial, 3.0).double()
    z = torch.fft.fft2(torch.randn(n, *spatial, dtype=torch.float64, generator=seeded(5)))
    rest = torch.fft.ifft2(z * frequencies(spatial) ** -3 * ~low(spatial)).real
    changed = (top_half(images) != top_half(images + rest)).double().mean()
    assert 0 < float(changed) < 5e-4


def test_elements_are_normally_distributed() -> None:
    images = ours(20_000, (6, 5), 1.5)[:, 2, 3].double()
    assert float(stats.kstest((images / images.std()).numpy(), "norm").pvalue) > 1e-5


@pytest.mark.parametrize("delta", [1.5, 3.0])
@pytest.mark.parametrize("spatial", [(64,), (33,), (32, 32), (24, 41), (12, 16, 9)])
def test_power_falls_radially_as_a_power_of_the_frequency(spatial: tuple[int, ...], delta: float) -> None:
    radius = frequencies(spatial).flatten()[1:].round(decimals=6)
    rings, ring = torch.unique(radius, return_inverse=True)
    seen = power(ours(1000, spatial, delta)).flatten()[1:]
    by_ring = torch.zeros_like(rings).index_add_(0, ring, seen) / ring.bincount()
    slope = stats.linregress(rings.log().numpy(), by_ring.log().numpy()).slope
    # A ring's power is uncertain by sqrt(2 / 1000) = 4.5 %, the slope over 16 rings or more by 0.015 at most.
    assert slope == pytest.approx(-2 * delta, abs=0.06)


def test_squares_have_no_direction() -> None:
    images = torch.cat([ours(20_000, (32, 32), 3.0, seed=seed) for seed in range(3)])
    down, across = (power(images.sum(dim))[1] for dim in (2, 1))  # frequencies (1, 0) and (0, 1)
    # The ratio is uncertain by sqrt(2 / 60 000) = 0.6 %. Without the sqrt(2) of the columns that are their
    # own mirror image it is 0.5, which a radial average hides.
    assert float(down / across) == pytest.approx(1, abs=0.03)


def test_cubes_have_no_direction() -> None:
    seen = power(ours(3000, (16, 16, 16), 3.0))
    along_axes = torch.stack([seen[1, 0, 0], seen[0, 1, 0], seen[0, 0, 1]])
    # Each is uncertain by 1 / sqrt(3000) = 1.8 %.
    assert torch.allclose(along_axes / along_axes.mean(), torch.ones(3, dtype=torch.float64), atol=0.08)


@pytest.mark.parametrize("spatial", [(1,), (1, 1), (9,), (8, 6), (4, 4, 4)])
def test_the_mean_of_an_image_is_0(spatial: tuple[int, ...]) -> None:
    images = ours(50, spatial, 3.0)
    largest = images.abs().amax(dim=tuple(range(1, images.dim())))
    assert torch.all(images.flatten(1).mean(1).abs() <= 1e-5 * largest)


@pytest.mark.parametrize(
    ("delta", "chances", "error"),
    [(3.0, [0.925, 0.07, 0.003], 0.01), (1.5, [0.32, 0.33, 0.21, 0.09], 0.02)],
)
def test_masks_in_one_dimension_have_as_many_segments_as_equation_4_gives(
    delta: float, chances: list[float], error: float
) -> None:
    n = 30_000
    here = segments(top_half(ours(n, (64,), delta))).clamp(max=5).bincount(minlength=6)[1:]
    # Measured beforehand on the full transform of equation 4, with fewer draws (standard error 0.003).
    assert (here / n)[: len(chances)].tolist() == pytest.approx(chances, abs=error)
    there = segments(top_half(equation_4(n, (64,), delta))).clamp(max=5).bincount(minlength=6)[1:]
    often = here + there >= 20
    assert float(stats.chi2_contingency(torch.stack([here, there])[:, often].numpy()).pvalue) > 1e-5


def test_other_draws_come_from_another_generator_and_the_global_one_is_left_alone() -> None:
    before = torch.get_rng_state()
    first = low_frequency_images(2, (8, 8), 3.0, generator=seeded(0))
    assert torch.equal(first, low_frequency_images(2, (8, 8), 3.0, generator=seeded(0)))
    assert not torch.equal(first, low_frequency_images(2, (8, 8), 3.0, generator=seeded(1)))
    assert torch.equal(torch.get_rng_state(), before)


def official_power(spatial: tuple[int, ...], delta: float) -> Tensor:
    """Return the mean power at every frequency of an image of the authors' code (github.com/ecs-vlc/FMix).

    The code lays the decayed noise out as (h, z, half of w, re or im). Rows 0 and 1 of h become real and
    imaginary part, and (re or im) the two lowest bins of the last dimension's half spectrum, which here
    has 3 elements or more. An odd w has one bin too many.
    """
    h, *rest = spatial
    frequency_sizes = (h, *rest[1:], *rest[:1])
    laid = [*rest[1:], *(w // 2 + 1 + w % 2 for w in rest[:1])]
    strength = {
        place: [
            max(frequency((row, *place), frequency_sizes), 1 / max(spatial)) ** (-2 * delta) for row in (0, 1)
        ]
        for place in positions(laid)
    }
    expected = torch.zeros(spatial, dtype=torch.float64)
    for place in positions(spatial[:-1]):
        mirror = tuple(-k % size for k, size in zip(place, spatial, strict=False))
        (re, im), (re_there, im_there) = (strength.get(there, [0.0, 0.0]) for there in (place, mirror))
        # Bin 1 and its mirror image have the whole. Of bin 0, its own mirror image, the real part of the
        # inverse transform keeps half, shared by place and mirror.
        expected[(*place, 1)] = expected[(*mirror, -1)] = re + im
        expected[(*place, 0)] = re if place == mirror else (re + im + re_there + im_there) / 4
    return expected


@pytest.mark.parametrize("delta", [1.5, 3.0])
@pytest.mark.parametrize("spatial", [(8,), (9,), (8, 8), (8, 6), (6, 9), (9, 5), (6, 6, 6), (4, 6, 5)])
def test_official_power_is_that_of_the_authors_arrangement(spatial: tuple[int, ...], delta: float) -> None:
    n = 20_000
    seen, expected = power(ours(n, spatial, delta, official=True)), official_power(spatial, delta)
    there = expected > 0
    assert float(seen[~there].sum()) < 1e-10 * float(seen.sum())
    ratio = seen[there] / expected[there]
    # As above, of one implementation alone; real and imaginary part are of unequal strength, like one.
    assert torch.allclose(ratio, ratio.mean(), rtol=5 * (2 / n) ** 0.5, atol=0)


@pytest.mark.parametrize("size", [64, 33])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9])
def test_official_masks_in_one_dimension_are_one_segment_of_the_circle(size: int, share: float) -> None:
    images = ours(2000, (size,), 3.0, official=True)
    threshold = images.sort(1, descending=True).values[:, math.ceil(share * size) - 1, None]
    assert segments(images >= threshold).eq(1).all()


def test_official_segments_begin_anywhere() -> None:
    masks = top_half(ours(30_000, (16,), 3.0, official=True))
    starts = (masks & ~masks.roll(1, 1)).int().argmax(1)
    assert_frequencies(starts.bincount(minlength=16), [1 / 16] * 16)


def test_official_masks_in_one_dimension_do_not_depend_on_the_decay_power() -> None:
    masks = [top_half(ours(500, (64,), delta, official=True)) for delta in (0.5, 3.0)]
    assert torch.equal(*masks)


@pytest.mark.parametrize("spatial", [(32, 32), (64, 32), (24, 15), (16, 16, 16), (8, 12, 10)])
def test_official_images_have_one_frequency_along_the_last_dimension(spatial: tuple[int, ...]) -> None:
    seen = power(ours(100, spatial, 3.0, official=True)).movedim(-1, 0).flatten(1).sum(1)
    # What is left are float32's roundings, whose squares are about 1e-14 of the whole.
    assert float(seen[2:-1].sum()) < 1e-10 * float(seen.sum())


@pytest.mark.parametrize(
    ("spatial", "axis", "at_0_and_1"),
    [
        ((32, 32), 0, [0.543, 0.220, 0.0074]),
        ((32, 32), 1, [0.112, 0.444, 0.0]),
        ((64, 32), 0, [0.96]),
        ((16, 16, 16), 0, [0.509, 0.234]),
        ((16, 16, 16), 1, [0.697, 0.144]),
        ((16, 16, 16), 2, [0.157, 0.421]),
    ],
)
def test_official_marginals_are_those_measured_with_the_authors_code(
    spatial: tuple[int, ...], axis: int, at_0_and_1: list[float]
) -> None:
    images = coefficients(ours(1000, spatial, 3.0, official=True)).abs().square().flatten(1)
    images[:, 0] = 0
    shares = (images / images.sum(1, keepdim=True)).mean(0).view(spatial)
    others = tuple(dim for dim in range(len(spatial)) if dim != axis)
    # The share of one image varies by up to 0.28; 0.04 are three standard errors of 400.
    assert shares.sum(others)[: len(at_0_and_1)].tolist() == pytest.approx(at_0_and_1, abs=0.04)


@pytest.mark.parametrize(
    ("spatial", "official", "expected"),
    [((64, 32), True, (8, 125)), ((64, 32), False, (66, 27)), ((32, 64), False, (27, 66))],
)
def test_edges_of_oblong_masks_run_as_measured(
    spatial: tuple[int, int], official: bool, expected: tuple[float, float]
) -> None:
    masks = top_half(ours(3000, spatial, 3.0, official=official))
    # A mask's count varies by 10 to 23, so means of 200 masks by 1.6.
    assert (edges(masks, 1), edges(masks, 2)) == pytest.approx(expected, abs=5)


def test_official_images_are_biased_the_other_way_if_the_last_dimension_is_the_longer() -> None:
    masks = top_half(ours(2000, (32, 64), 3.0, official=True))
    assert edges(masks, 1) > edges(masks, 2) + 10
