"""The draws: functions of a place in training, and of the right law."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Generator, Tensor

from lightning_msda.randomness import (
    Step,
    make_generator,
    sample_beta,
    sample_choice,
    sample_dirichlet,
    sample_integers,
    sample_partners,
    sample_uniform,
)
from tests.helpers import assert_frequencies, assert_mean, seeded

PLACE = Step(seed=3, ordinal=5, epoch=1, max_epochs=9, rank=2)


def bits(generator: Generator) -> list[int]:
    """Return what two generators share by accident with a chance of 2^-248."""
    return torch.randint(2**62, (4,), generator=generator).tolist()


def first_uniform(seed: int, stream: str, rank: int | None, n: int) -> Tensor:
    """Return the first draw of each of the first ``n`` batches."""
    return torch.cat([sample_uniform(0, 1, 1, make_generator(seed, stream, k, rank)) for k in range(n)])


def test_the_same_place_gives_the_same_bits() -> None:
    assert bits(make_generator(3, "mix", 5, 2)) == bits(make_generator(3, "mix", 5, 2))
    assert bits(PLACE.generator()) == bits(PLACE.generator())
    assert bits(PLACE.policy()) == bits(PLACE.policy())
    assert torch.equal(PLACE.partners(50), PLACE.partners(50))


def test_every_coordinate_of_a_place_changes_the_bits() -> None:
    # 1 and 11, 12 and 112: places whose digits would be the same text without a separator.
    places = itertools.product((0, 1, 11), ("mix", "partners"), (0, 1, 12, 112), (None, 0, 1, 2))
    drawn = [tuple(bits(make_generator(*place))) for place in places]
    assert len(set(drawn)) == len(drawn) == 3 * 2 * 4 * 4


@pytest.mark.parametrize("change", [{"seed": 4}, {"ordinal": 6}, {"rank": 3}])
def test_mixes_and_partners_depend_on_seed_ordinal_and_rank(change: dict[str, Any]) -> None:
    other = dataclasses.replace(PLACE, **change)
    assert bits(other.generator()) != bits(PLACE.generator())
    assert not torch.equal(other.partners(50), PLACE.partners(50))


@pytest.mark.parametrize("change", [{"seed": 4}, {"ordinal": 6}])
def test_policy_depends_on_seed_and_ordinal(change: dict[str, Any]) -> None:
    assert bits(dataclasses.replace(PLACE, **change).policy()) != bits(PLACE.policy())


def test_policy_ignores_the_rank() -> None:
    assert bits(dataclasses.replace(PLACE, rank=0).policy()) == bits(PLACE.policy())


@pytest.mark.parametrize("change", [{"epoch": 2}, {"max_epochs": -1}])
def test_draws_do_not_depend_on_how_batches_are_counted_into_epochs(change: dict[str, Any]) -> None:
    other = dataclasses.replace(PLACE, **change)
    assert bits(other.generator()) == bits(PLACE.generator())
    assert bits(other.policy()) == bits(PLACE.policy())
    assert torch.equal(other.partners(50), PLACE.partners(50))


def test_the_streams_of_a_step_are_independent_of_each_other() -> None:
    partners = sample_partners(50, PLACE.generator()), sample_partners(50, PLACE.policy())
    assert not any(torch.equal(PLACE.partners(50), other) for other in partners)
    assert bits(PLACE.generator()) != bits(PLACE.policy())


def test_first_draws_of_consecutive_batches_are_uniform_and_uncorrelated() -> None:
    n = 2000
    here = first_uniform(0, "mix", 0, n)
    assert float(stats.kstest(here.numpy(), "uniform").pvalue) > 1e-5
    others = [first_uniform(0, "mix", 1, n), first_uniform(0, "policy", 0, n), first_uniform(1, "mix", 0, n)]
    for other in (here.roll(1), *others):
        assert abs(float(torch.corrcoef(torch.stack([here, other]))[0, 1])) < 5 / n**0.5


def test_the_global_generator_is_neither_read_nor_advanced() -> None:
    drawn = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        partners, generator = PLACE.partners(9), PLACE.generator()
        drawn.append(
            [
                partners,
                sample_partners(9, generator),
                sample_beta(0.3, 9, generator),
                sample_uniform(1, 2, 9, generator),
                sample_integers(99, 9, generator),
                torch.tensor(sample_choice([1] * 99, PLACE.policy())),
            ]
        )
        assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, *drawn))


def test_without_a_generator_the_global_one_is_used() -> None:
    drawn = []
    for _ in range(2):
        torch.manual_seed(7)
        drawn.append(
            torch.cat(
                [sample_beta(2, 9), sample_uniform(0, 1, 9), sample_integers(99, 9), sample_partners(9)]
            )
        )
    assert torch.equal(*drawn)


@pytest.mark.parametrize("alpha", [0.01, 0.2, 1, 2, 8])
def test_symmetric_beta_has_mean_one_half_and_the_variance_of_the_law(alpha: float) -> None:
    draws = sample_beta(alpha, 200_000, seeded())
    assert draws.dtype == torch.float64
    assert draws.min() >= 0
    assert draws.max() <= 1
    assert_mean(draws, 0.5)
    assert_mean((draws - 0.5) ** 2, 1 / (4 * (2 * alpha + 1)))


@pytest.mark.parametrize("alpha", [0.01, 0.2, 1, 2, 8])
def test_unequal_beta_has_the_mean_and_the_variance_of_the_law(alpha: float) -> None:
    draws = sample_beta(alpha + 1, 200_000, seeded(1), beta=alpha)
    mean = (alpha + 1) / (2 * alpha + 1)
    assert_mean(draws, mean)
    assert_mean((draws - mean) ** 2, alpha / (2 * (2 * alpha + 1) ** 2))


@pytest.mark.parametrize(("alpha", "k"), [(0.02, 3), (2.0, 5), (1.0, 1)])
def test_shares_of_a_dirichlet_law_are_beta_distributed(alpha: float, k: int) -> None:
    draws = sample_dirichlet(alpha, k, 100_000, seeded(4))
    assert draws.shape == (100_000, k) and bool(draws.isfinite().all())
    assert torch.allclose(draws.sum(1), torch.ones(100_000, dtype=torch.float64))
    for share in draws.unbind(1) if k > 1 else ():
        assert_mean(share, 1 / k)
        assert_mean((share - 1 / k) ** 2, (k - 1) / k**2 / (k * alpha + 1))


@pytest.mark.parametrize(("alpha", "beta"), [(0.2, 0.2), (1, 1), (2, 2), (8, 8), (1.2, 0.2), (2, 1), (3, 2)])
def test_beta_draws_pass_a_kolmogorov_smirnov_test(alpha: float, beta: float) -> None:
    draws = sample_beta(alpha, 100_000, seeded(2), beta=beta)
    assert float(stats.kstest(draws.numpy(), stats.beta(alpha, beta).cdf).pvalue) > 1e-5


@pytest.mark.parametrize("alpha", [1e-2, 1e-4])
def test_small_concentrations_give_nearly_0_or_1_as_often_as_the_law_says(alpha: float) -> None:
    draws = sample_beta(alpha, 200_000, seeded(3))
    assert not draws.isnan().any()
    assert not (draws == 0.5).any()
    edges = [0.0, 1e-3, 1 - 1e-3, 1.0]
    chances = torch.from_numpy(stats.beta(alpha, alpha).cdf(edges)).diff()
    # Beside the two ends 0.0007 of the draws at alpha 1e-4, so 140 of them.
    counts = [int((draws < edges[1]).sum()), 0, int((draws > edges[2]).sum())]
    counts[1] = len(draws) - sum(counts)
    assert_frequencies(counts, chances)


def test_uniform_draws_fill_their_interval_evenly() -> None:
    draws = sample_uniform(0.1, 0.8, 100_000, seeded())
    assert draws.dtype == torch.float64
    assert draws.min() >= 0.1
    assert draws.max() < 0.8
    assert float(stats.kstest(draws.numpy(), stats.uniform(0.1, 0.7).cdf).pvalue) > 1e-5


@pytest.mark.parametrize("high", [1, 2, 7])
def test_integers_are_uniform(high: int) -> None:
    draws = sample_integers(high, 70_000, seeded())
    assert_frequencies(draws.bincount(minlength=high), [1 / high] * high)


@pytest.mark.parametrize("n", [0, 1, 2, 17])
def test_partners_are_a_permutation(n: int) -> None:
    for partners in (sample_partners(n, seeded()), PLACE.partners(n)):
        assert partners.dtype == torch.int64
        assert sorted(partners.tolist()) == list(range(n))


def test_all_permutations_are_equally_likely() -> None:
    generator = seeded()
    counts = Counter(tuple(sample_partners(4, generator).tolist()) for _ in range(24_000))
    assert_frequencies([counts[p] for p in itertools.permutations(range(4))], [1 / 24] * 24)


def test_all_permutations_are_equally_likely_over_the_steps_of_a_run() -> None:
    counts = Counter(tuple(Step(seed=0, ordinal=k).partners(3).tolist()) for k in range(6000))
    assert_frequencies([counts[p] for p in itertools.permutations(range(3))], [1 / 6] * 6)


@pytest.mark.parametrize("weights", [[1], [3, 1, 1, 1], [0.5, 0, 0.25], [0, 7]])
def test_choices_have_the_frequencies_of_their_weights(weights: list[float]) -> None:
    generator = seeded()
    counts = Counter(sample_choice(weights, generator) for _ in range(12_000))
    chances = [weight / sum(weights) for weight in weights]
    assert_frequencies([counts[i] for i in range(len(weights))], chances)
