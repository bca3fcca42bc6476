"""Cutout against its rule in plain loops, and against the law of a box that is cut off at the border."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lightning_msda import Cutout, Mixture
from lightning_msda.functional import cutout, mixed_loss
from lightning_msda.randomness import Step
from lightning_msda.targets import mix_target
from tests.helpers import (
    BAD_DIMS,
    NAMED_DIMS,
    SPATIAL,
    assert_frequencies,
    assert_layout_does_not_matter,
    assert_mean,
    assert_same_mix,
    numbered,
    positions,
    seeded,
    varies_only_along,
)
from tests.training import Classifier, basis, loader, make_trainer


@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize(("holes", "length"), [(1, 4), (3, 3), (2, 50)])
def test_boxes_are_filled_and_all_else_is_left(
    spatial: tuple[int, ...], per_sample: bool, holes: int, length: int
) -> None:
    x = numbered(4, 2, *spatial) + 1
    mix = cutout(x, holes=holes, length=length, fill=-1, per_sample=per_sample, generator=seeded())
    draws, r = seeded(), 4 if per_sample else 1
    centers = [torch.randint(size, (r * holes,), generator=draws).view(r, holes).tolist() for size in spatial]
    assert mix.mask is not None
    mask = mix.mask.expand(4, 1, *spatial)
    for i, place in itertools.product(range(4), positions(spatial)):
        hidden = any(
            all(
                axis[i % r][hole] - length // 2 <= at < axis[i % r][hole] + length // 2
                for at, axis in zip(place, centers, strict=True)
            )
            for hole in range(holes)
        )
        for channel in range(2):
            at_place = (i, channel, *place)
            assert float(mix.inputs[at_place]) == (-1 if hidden else float(x[at_place]))
        assert bool(mask[(i, 0, *place)]) == (not hidden)


def test_the_published_box_is_16_of_32_pixels_by_sample_and_filled_with_0() -> None:
    mix = cutout(torch.ones(2000, 1, 32, 32), generator=seeded())
    hidden = mix.inputs[:, 0] == 0
    rows, columns = hidden.any(2).sum(1), hidden.any(1).sum(1)
    assert torch.equal(hidden.flatten(1).sum(1), rows * columns)  # a box
    # Centres at least 8 from the low border and at most 24 show all 16, the others 8 to 15.
    assert_frequencies(rows.bincount(minlength=17)[8:], [1 / 32] + [2 / 32] * 7 + [17 / 32])
    assert_frequencies(columns.bincount(minlength=17)[8:], [1 / 32] + [2 / 32] * 7 + [17 / 32])


@pytest.mark.parametrize(("size", "length"), [(32, 16), (32, 8), (32, 20), (24, 6), (10, 10)])
@pytest.mark.parametrize("d", [1, 2])
def test_the_removed_share_has_the_mean_of_a_clipped_box(size: int, length: int, d: int) -> None:
    ratio = length / size
    mix = cutout(torch.ones(4000, 1, *[size] * d), length=length, generator=seeded())
    assert_mean((mix.inputs == 0).flatten(1).double().mean(1), (ratio - ratio**2 / 4) ** d)


def test_the_expected_area_at_cifars_setting_is_19_percent() -> None:
    area = (0.5 - 0.5**2 / 4) ** 2
    assert area == pytest.approx(0.191, abs=5e-4)


@pytest.mark.parametrize("per_sample", [False, True])
def test_labels_stay_and_every_sample_is_its_own_partner(per_sample: bool) -> None:
    x, y = torch.rand(5, 3, 8, 8, generator=seeded()), torch.tensor([0, 3, 1, 2, 2])
    mix = cutout(x, length=4, per_sample=per_sample, generator=seeded())
    assert mix.lam.tolist() == [1.0] * 5
    assert mix.partner.tolist() == [0, 1, 2, 3, 4]
    assert not mix.per_sample  # any loss can be computed
    logits = torch.randn(5, 4, generator=seeded())
    assert torch.equal(mixed_loss(F.cross_entropy, logits, y, mix), F.cross_entropy(logits, y))


def test_boxes_are_each_samples_own_unless_they_are_the_batchs() -> None:
    x = torch.ones(20, 1, 32, 32)
    for per_sample in (True, False):
        inputs = cutout(x, per_sample=per_sample, generator=seeded()).inputs
        assert bool((inputs == inputs[:1]).all()) != per_sample


@pytest.mark.parametrize(
    "labels",
    [torch.arange(4 * 63).view(4, 9, 7), torch.rand(4, 2, 9, 7), torch.rand(4, 9, 7), torch.rand(4, 3)],
    ids=["map", "soft map", "depth", "soft labels"],
)
def test_dense_labels_stay_too(labels: torch.Tensor) -> None:
    mix = cutout(torch.rand(4, 3, 9, 7), length=4, generator=seeded())
    assert torch.equal(mix_target(labels, mix).as_subclass(torch.Tensor), labels)


def test_further_inputs_are_filled_in_the_same_places() -> None:
    x, other = torch.rand(4, 3, 9, 7), torch.rand(4, 2, 9, 7, dtype=torch.float64)
    mix = cutout(x, length=4, fill=0.5, generator=seeded())
    assert mix.mask is not None
    hidden = ~mix.mask.expand(4, 2, 9, 7)
    followed = mix.follow(other)
    assert bool((followed[hidden] == 0.5).all())
    assert torch.equal(followed[~hidden], other[~hidden])
    assert 0 < int(hidden.sum()) < hidden.numel()


def test_an_attention_mask_beside_hidden_tokens_is_left_as_it_is() -> None:
    tokens, attention = torch.arange(1, 49).view(4, 12), torch.randint(0, 2, (4, 12))
    mix = cutout(tokens, length=4, dims=[1], generator=seeded())
    assert bool((mix.inputs == 0).any())
    followed = mix.follow(attention, marks=True)
    assert torch.equal(followed, attention) and followed is not attention
    assert torch.equal(mix.follow(tokens), mix.inputs)


@pytest.mark.parametrize(("shape", "dims"), NAMED_DIMS)
def test_named_dimensions_are_cut_and_the_others_are_hidden_whole(
    shape: tuple[int, ...], dims: list[int]
) -> None:
    mix = cutout(torch.ones(shape), length=2, dims=dims, generator=seeded())
    assert varies_only_along(mix.inputs, dims)
    assert 0 < float(mix.inputs.mean()) < 1


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.bfloat16, torch.float64])
def test_inputs_of_any_dtype_are_filled(dtype: torch.dtype) -> None:
    x = torch.ones(4, 3, 9, 8, dtype=dtype)
    mix = cutout(x, length=4, generator=seeded())
    assert mix.mask is not None
    assert mix.inputs.dtype == dtype
    assert torch.equal(mix.inputs, mix.mask.expand_as(x).to(dtype))


def test_inputs_may_lie_in_memory_as_they_like() -> None:
    x = torch.randn(4, 3, 5, 6, generator=seeded(1))
    assert_layout_does_not_matter(lambda laid: cutout(laid, length=4, generator=seeded()), x)


@pytest.mark.parametrize("per_sample", [False, True])
def test_the_callback_draws_by_its_step(per_sample: bool) -> None:
    x = torch.randn(5, 3, 9, 6, generator=seeded(1))
    method = Cutout(holes=2, length=4, fill=0.5, dims=[2], per_sample=per_sample)
    step = Step(seed=3, ordinal=7, rank=1)
    expected = cutout(
        x, holes=2, length=4, fill=0.5, dims=[2], per_sample=per_sample, generator=step.generator()
    )
    assert_same_mix(method.mix(x, step), expected)


def test_the_callback_hides_by_sample_as_in_the_paper() -> None:
    assert Cutout().per_sample
    assert not Cutout(per_sample=False).per_sample


def test_a_sample_alone_in_its_batch_is_cut_too() -> None:
    x, y = torch.ones(3, 2, 8, 8), torch.tensor([0, 1, 0])
    module = Classifier(2 * 64, 2)
    make_trainer(Cutout(length=4)).fit(module, loader(x, y, batch_size=1))
    assert [bool((seen.inputs == 0).any()) for seen in module.seen] == [True] * 3


@pytest.mark.parametrize("per_sample", [False, True])
def test_features_of_a_hidden_layer_are_cut(per_sample: bool) -> None:
    class Deep(Classifier):
        def __init__(self) -> None:
            super().__init__(4 * 25, 4)
            self.body = torch.nn.Identity()

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return super().training_step((self.body(batch[0]), batch[1]), batch_idx)

    x, y = basis(4, 5, 5), torch.arange(4)
    module, method = Deep(), Cutout(length=2, at="body", per_sample=per_sample)
    make_trainer(method).fit(module, loader(x, y, batch_size=4))
    (seen,) = module.seen
    assert bool((seen.inputs.sum(1) == 0).any())
    assert method.last_mix is not None
    assert method.last_mix.lam.tolist() == [1.0] * 4
    own = F.cross_entropy(seen.inputs.flatten(1) @ seen.weight.t(), y)
    torch.testing.assert_close(seen.loss, own)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cutout(holes=0), "holes=0 is out of range"),
        (lambda: Cutout(length=0), "length=0 is out of range"),
        (lambda: Cutout(length=1.5), r"length=1\.5 is out of range: it must be a whole number"),  # type: ignore[arg-type]
        (lambda: Cutout(fill=float("nan")), "fill=nan is out of range"),
        (lambda: cutout(torch.zeros(2, 3, 4), holes=-1), "holes=-1 is out of range"),
        (
            lambda: cutout(torch.zeros(2, 3, 4, dtype=torch.int64), fill=0.5),
            r"fill=0\.5 is no value of .*int64",
        ),
    ],
)
def test_arguments_out_of_range_are_refused(make: Callable[[], Cutout | Mixture], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(("shape", "dims", "message"), BAD_DIMS)
def test_inputs_without_the_dimensions_are_refused(
    shape: tuple[int, ...], dims: list[int] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        cutout(torch.zeros(shape), dims=dims)
