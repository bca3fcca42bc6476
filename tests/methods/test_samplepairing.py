"""SamplePairing: the mean of two samples, the own label, and the epochs in which it happens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lightning_msda import RandomMix, SamplePairing
from lightning_msda.functional import mixed_loss, samplepairing
from lightning_msda.randomness import Step, sample_partners
from tests.helpers import (
    SPATIAL,
    assert_layout_does_not_matter,
    assert_same_mix,
    neighbours,
    positions,
    seeded,
)


@pytest.mark.parametrize("shape", [(), (3,), *((2, *spatial) for spatial in SPATIAL)])
def test_every_element_is_the_mean_of_two(shape: tuple[int, ...]) -> None:
    x = torch.randn(4, *shape, dtype=torch.float64, generator=seeded(1))
    mix = samplepairing(x, generator=seeded())
    partner = sample_partners(4, seeded()).tolist()
    assert mix.partner.tolist() == partner
    for i, *place in positions(x.shape):
        expected = (float(x[(i, *place)]) + float(x[(partner[i], *place)])) / 2
        assert float(mix.inputs[(i, *place)]) == pytest.approx(expected, abs=1e-15)


def test_two_partners_become_the_same_but_keep_their_labels() -> None:
    x, y = torch.rand(2, 3, 4, generator=seeded()), torch.tensor([0, 1])
    mix = samplepairing(x, partner=torch.tensor([1, 0]))
    torch.testing.assert_close(mix.inputs[0], mix.inputs[1])
    assert mix.weights.tolist() == [[1.0, 0.0], [1.0, 0.0]]
    assert not mix.per_sample
    logits = torch.randn(2, 3, generator=seeded())
    assert torch.equal(mixed_loss(F.cross_entropy, logits, y, mix), F.cross_entropy(logits, y))
    values = torch.rand(2, 3)
    assert torch.equal(mixed_loss(F.mse_loss, logits, values, mix), F.mse_loss(logits, values))


def test_further_inputs_are_averaged_like_the_first() -> None:
    other = torch.rand(5, 4, dtype=torch.float64)
    mix = samplepairing(torch.rand(5, 3, 8, 8), partner=neighbours(5))
    torch.testing.assert_close(mix.follow(other), (other + other[neighbours(5)]) / 2, rtol=1e-12, atol=0)
    counts = torch.tensor([[1, 0], [0, 0], [0, 0], [0, 1], [0, 0]])
    assert torch.equal(mix.follow(counts, marks=True), counts | counts[neighbours(5)])
    with pytest.raises(ValueError, match="cannot follow"):
        mix.follow(counts)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floating_point_inputs_keep_their_dtype(dtype: torch.dtype) -> None:
    x = torch.tensor([[1.0], [4.0]], dtype=dtype)
    mix = samplepairing(x, partner=torch.tensor([1, 0]))
    assert mix.inputs.dtype == dtype
    assert mix.inputs.flatten().tolist() == [2.5, 2.5]


def test_inputs_may_lie_in_memory_as_they_like() -> None:
    x = torch.randn(4, 3, 5, 6, generator=seeded(1))
    assert_layout_does_not_matter(lambda laid: samplepairing(laid, generator=seeded()), x)


def mixed_epochs(method: Any, epochs: int) -> list[int]:
    steps = [Step(seed=1, ordinal=0, epoch=epoch, max_epochs=epochs) for epoch in range(epochs)]
    return [step.epoch for step in steps if method.covers(step)]


def test_eight_epochs_are_mixed_and_two_are_not_between_the_papers_bounds() -> None:
    mixed = mixed_epochs(SamplePairing(start_epoch=100, stop_epoch=800), 1000)
    assert mixed == [epoch for epoch in range(100, 800) if (epoch - 100) % 10 < 8]
    assert len(mixed) == 560


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, [0, 1, 2, 3, 4, 5, 6, 7, 10, 11]),
        ({"epochs_on": 1, "epochs_off": 2}, [0, 3, 6, 9]),
        ({"epochs_on": 2, "epochs_off": 1, "start_epoch": 3, "stop_epoch": -2}, [3, 4, 6, 7, 9]),
        ({"epochs_on": 3, "epochs_off": 0, "stop_epoch": 5}, [0, 1, 2, 3, 4]),
    ],
)
def test_epochs_are_mixed_and_left_in_turn(arguments: dict[str, int], expected: list[int]) -> None:
    assert mixed_epochs(SamplePairing(**arguments), 12) == expected  # type: ignore[arg-type]


def test_inside_of_a_choice_its_pauses_are_the_others_turn() -> None:
    chosen = []
    method = RandomMix([SamplePairing(epochs_on=1, epochs_off=1)], weights=[1])
    for epoch in range(4):
        step = Step(seed=1, ordinal=epoch, epoch=epoch)
        chosen.append(method.choose(step, step.policy()) is not None)
    assert chosen == [True, False, True, False]


def test_the_callback_takes_the_partners_of_its_step() -> None:
    x, step = torch.randn(5, 3, 4, 4, generator=seeded(1)), Step(seed=3, ordinal=7, rank=1)
    assert_same_mix(SamplePairing().mix(x, step), samplepairing(x, partner=step.partners(5)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs_on": 0}, "epochs_on=0 is out of range: it must be a whole number from 1"),
        ({"epochs_off": -1}, "epochs_off=-1 is out of range: it must be a whole number from 0"),
        ({"epochs_on": 0.5}, r"epochs_on=0\.5 is out of range"),
        ({"per_sample": True}, "per_sample=True has no meaning for SamplePairing"),
        ({"dims": [2]}, r"dims=\[2\] has no meaning for SamplePairing"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplePairing(**arguments)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_integers_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=rf"{dtype} of shape \(2, 3\).*convert images to floating point"):
        samplepairing(torch.zeros(2, 3, dtype=dtype))
