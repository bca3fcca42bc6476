"""What several test files share: inputs, and bounds that follow from the number of draws."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from scipy import stats
from torch import Generator, Tensor

from lightning_msda.mixture import Mixture

# One, two and three dimensions; even, odd, not square, and of size 1.
SPATIAL = [(7,), (8,), (1,), (5, 8), (1, 6), (1, 1), (3, 4, 5), (2, 1, 3)]

# Shapes of a batch and the dimensions that are named: tokens, embeddings, one axis of a spectrogram, video.
NAMED_DIMS = [((4, 9), [1]), ((4, 9, 3), [1]), ((4, 3, 6, 5), [3]), ((4, 3, 6, 5, 4), [-1, -2])]

BAD_DIMS = [
    ((4, 9), None, r"Inputs of shape \(4, 9\) have no dimension after the channel"),
    ((4, 3, 5), [0], r"dims=\(0,\) does not fit inputs of shape \(4, 3, 5\)"),
    ((4, 3, 5), [3], r"dims=\(3,\) does not fit inputs of shape \(4, 3, 5\)"),
]

BAD_ALPHAS = [
    (0, "alpha=0 is out of range"),
    (-0.5, r"alpha=-0\.5 is out of range"),
    (math.nan, "alpha=nan is out of range"),
    (math.inf, "alpha=inf is out of range"),
    ({5: 1.0}, r"alpha=\{5: 1\.0\} has no value for the first epochs"),
    ({0: 1.0, 5: 0.0}, r"alpha=0\.0 is out of range"),
]


def seeded(seed: int = 0) -> Generator:
    """Return a generator with a seed."""
    return Generator().manual_seed(seed)


def positions(sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield every index of an array of these sizes."""
    return itertools.product(*(range(size) for size in sizes))


def numbered(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a tensor whose elements are different, so that one in the wrong place shows."""
    values = torch.arange(math.prod(shape)).view(shape)
    return (values % 2 == 0) if dtype == torch.bool else (values % 251).to(dtype)


def constant_samples(n: int, *rest: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return samples that are ``i`` everywhere: a mix shows where each of its elements comes from."""
    return torch.arange(n).view(n, *[1] * len(rest)).expand(n, *rest).to(dtype)


def neighbours(n: int) -> Tensor:
    """Return partners of which nobody is his own."""
    return torch.arange(n).roll(1)


def own_pixels(mix: Mixture) -> Tensor:
    """Return the share of each of the `constant_samples` that still shows itself."""
    own = torch.arange(len(mix.inputs)).view(-1, *[1] * (mix.inputs.dim() - 1))
    return (mix.inputs == own).flatten(1).double().mean(1)


def varies_only_along(inputs: Tensor, dims: Sequence[int]) -> bool:
    """Tell whether inputs are constant along all dimensions but the batch and those that are named."""
    named = {0, *(dim % inputs.dim() for dim in dims)}
    others = set(range(inputs.dim())) - named
    return all(torch.equal(inputs, inputs.narrow(dim, 0, 1).expand_as(inputs)) for dim in others)


def outside_box(place: Sequence[int], box: Sequence[Sequence[int]]) -> bool:
    """Tell whether a position lies outside of a box of first and last-plus-one positions."""
    return not all(start <= at < stop for at, (start, stop) in zip(place, box, strict=True))


def assert_mean(values: Tensor, expected: float, sigmas: float = 5.0) -> None:
    """Hold a mean against its expectation, within standard errors as the draws themselves show them."""
    values = values.double()
    mean, error = float(values.mean()), float(values.std()) / math.sqrt(values.numel())
    assert abs(mean - expected) <= sigmas * error + 1e-12, (mean, expected, error)


def assert_frequencies(counts: Sequence[int] | Tensor, chances: Sequence[float] | Tensor) -> None:
    """Hold counts against chances by a chi-square test; what has no chance must not have happened.

    The test fails by accident once in 10^5, like a bound of 4.4 standard errors.
    """
    seen, chance = (torch.as_tensor(values, dtype=torch.float64) for values in (counts, chances))
    assert abs(float(chance.sum()) - 1) < 1e-9
    assert not seen[chance == 0].any()
    seen, chance = seen[chance > 0], chance[chance > 0]
    expected = chance / chance.sum() * seen.sum()
    assert float(expected.min()) >= 5, "too few draws for a chi-square test"
    if len(seen) > 1:
        assert float(stats.chisquare(seen.numpy(), expected.numpy()).pvalue) > 1e-5, (seen, expected)


def assert_layout_does_not_matter(method: Callable[[Tensor], Mixture], x: Tensor) -> None:
    """Check that a mix has the same values however its inputs lie in memory, and leaves them as they are."""
    expected = method(x.clone())
    layouts = [torch.stack([x, x], -1)[..., 0], x.transpose(0, -1).contiguous().transpose(0, -1)]
    layouts += [x.to(memory_format=torch.channels_last)] if x.dim() == 4 else []
    for laid in layouts:
        mix = method(laid)
        assert torch.equal(mix.inputs, expected.inputs)
        assert torch.equal(mix.weights, expected.weights)
        assert torch.equal(laid, x)


def assert_same_mix(mix: Mixture, expected: Mixture) -> None:
    """Check that two mixes are the same, bit for bit."""
    assert torch.equal(mix.inputs, expected.inputs)
    assert torch.equal(mix.partners, expected.partners)
    assert torch.equal(mix.weights, expected.weights)
    assert (mix.dims, mix.per_sample) == (expected.dims, expected.per_sample)
    assert (mix.mask is None) == (expected.mask is None)
    assert mix.mask is None or expected.mask is None or torch.equal(mix.mask, expected.mask)
