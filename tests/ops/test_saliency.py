"""Saliency against its equations in plain loops, and on images of which the answer is known."""

from __future__ import annotations

import cmath
import math

import pytest
import torch
from torch import Tensor

from lightning_msda.ops import salient_peaks, spectral_residual
from tests.helpers import positions, seeded


def residual_by_hand(image: Tensor) -> list[float]:
    """Return the saliency of one image by the paper's equations, element by element."""
    sizes, places = image.shape, list(positions(image.shape))

    def turn(a: tuple[int, ...], b: tuple[int, ...]) -> float:
        return 2 * math.pi * sum(i * j / size for i, j, size in zip(a, b, sizes, strict=True))

    spectrum = {f: sum(float(image[p]) * cmath.exp(-1j * turn(f, p)) for p in places) for f in places}
    log = {f: math.log(abs(value)) for f, value in spectrum.items()}

    def mean(f: tuple[int, ...]) -> float:
        near = [
            log[tuple((i + s) % n for i, s, n in zip(f, shift, sizes, strict=True))]
            for shift in positions((3,) * len(sizes))
        ]  # shifts of 0 to 2 from one before
        return sum(near) / len(near)

    before = {f: tuple((i - 1) % n for i, n in zip(f, sizes, strict=True)) for f in places}
    residual = {f: log[f] - mean(before[f]) for f in places}
    back = [
        abs(sum(cmath.exp(residual[f] + 1j * (cmath.phase(spectrum[f]) + turn(f, p))) for f in places)) ** 2
        / len(places) ** 2
        for p in places
    ]
    return [
        sum(
            value * math.exp(-sum((12 * (i - j) / n) ** 2 for i, j, n in zip(p, q, sizes, strict=True)) / 2)
            for q, value in zip(places, back, strict=True)
        )
        for p in places
    ]


@pytest.mark.parametrize("spatial", [(9,), (5, 6), (3, 4, 5)])
def test_the_map_is_that_of_the_equations(spatial: tuple[int, ...]) -> None:
    x = torch.rand(2, 3, *spatial, dtype=torch.float64, generator=seeded())
    dims = tuple(range(2, x.dim()))
    maps = spectral_residual(x, dims)
    for image, saliency in zip(x.mean(1), maps, strict=True):
        assert saliency.flatten().tolist() == pytest.approx(residual_by_hand(image), rel=1e-8)


def scene(
    n: int, channels: int, spatial: tuple[int, ...], share: float, *, noise: float = 0.3
) -> tuple[Tensor, Tensor]:
    """Return noise with a bright box in each image, and where the boxes are, shape ``(n, *spatial)``."""
    generator = seeded(sum(spatial))
    inside = torch.ones(n, *spatial, dtype=torch.bool)
    for axis, size in enumerate(spatial):
        side = int(share * size)
        start = torch.randint(size - side + 1, (n, 1), generator=generator)
        at = torch.arange(size)
        within = (at >= start) & (at < start + side)
        inside &= within.view(n, *[size if i == axis else 1 for i in range(len(spatial))])
    return noise * torch.randn(n, channels, *spatial, generator=generator) + inside[:, None], inside


def hits(x: Tensor, inside: Tensor) -> float:
    """Return the share of the images whose peak lies inside."""
    peaks = salient_peaks(x, tuple(range(2, x.dim())))
    return float(inside[(torch.arange(len(x)), *peaks.unbind(1))].double().mean())


@pytest.mark.parametrize("noise", [0.1, 0.3])
@pytest.mark.parametrize("share", [0.2, 0.35])
@pytest.mark.parametrize("channels", [1, 3, 7])
@pytest.mark.parametrize("size", [32, 64])
def test_the_peak_lies_in_the_bright_object(size: int, channels: int, share: float, noise: float) -> None:
    x, inside = scene(100, channels, (size, size), share, noise=noise)
    assert inside.double().mean() < 0.13  # a place drawn blindly hits as often as this
    assert hits(x, inside) >= 0.9


@pytest.mark.parametrize("spatial", [(100,), (40, 90), (224, 224), (16, 16, 16), (70, 8, 20)])
def test_the_peak_lies_in_the_object_in_other_dimensions_and_sizes(spatial: tuple[int, ...]) -> None:
    x, inside = scene(30, 2, spatial, 0.25, noise=0.1)
    assert hits(x, inside) >= 0.9


def test_a_dark_object_is_salient_too() -> None:
    x, inside = scene(100, 3, (32, 32), 0.25)
    assert hits(x + 0.5 - 2 * inside[:, None], inside) >= 0.9


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float64])
def test_inputs_of_any_dtype_are_looked_at(dtype: torch.dtype) -> None:
    x, inside = scene(50, 3, (32, 32), 0.25, noise=0.1)
    x = (128 + 60 * x).clamp(0, 255).to(dtype)
    assert hits(x, inside) >= 0.9
    assert spectral_residual(x, (2, 3)).dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_the_scale_of_the_values_does_not_matter() -> None:
    x, _ = scene(20, 3, (32, 32), 0.25)
    assert torch.equal(salient_peaks(x, (2, 3)), salient_peaks(1024 * x, (2, 3)))


@pytest.mark.parametrize("value", [0.0, 0.1, 3.0])
def test_an_image_without_structure_has_a_peak_inside(value: float) -> None:
    for spatial in [(7,), (1, 6), (1, 1), (32, 32), (3, 4, 5), (100, 70)]:
        x = torch.full((2, 3, *spatial), value)
        peaks = salient_peaks(x, tuple(range(2, x.dim())))
        assert peaks.shape == (2, len(spatial))
        assert bool(((peaks >= 0) & (peaks < torch.tensor(spatial))).all())


def test_named_dimensions_are_looked_along_and_the_others_averaged() -> None:
    x, inside = scene(30, 2, (48,), 0.2, noise=0.1)
    wide = x[:, :, None].expand(30, 2, 5, 48)
    peaks = salient_peaks(wide, (3,))
    assert torch.equal(peaks, salient_peaks(x, (2,)))
    assert float(inside[torch.arange(30), peaks[:, 0]].double().mean()) >= 0.9
    transposed = wide.movedim(3, 1)
    assert torch.equal(salient_peaks(transposed, (1,)), peaks)


@pytest.mark.parametrize(("size", "peak"), [(64, 20), (128, 41), (192, 61), (65, 40)])
def test_a_peak_at_a_coarser_scale_is_the_middle_of_what_was_averaged(size: int, peak: int) -> None:
    x = torch.zeros(1, 1, size)
    x[..., peak] = 1
    found = int(salient_peaks(x, (2,)))
    assert abs(found - peak) <= size // 64


def test_no_gradient_is_kept() -> None:
    assert not spectral_residual(torch.rand(2, 3, 8, 8, requires_grad=True), (2, 3)).requires_grad
