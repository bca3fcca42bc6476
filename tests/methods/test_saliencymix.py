"""SaliencyMix: CutMix's box, around each partner's peak."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lightning_msda import Mixture, SaliencyMix
from lightning_msda.functional import saliencymix
from lightning_msda.ops import salient_peaks
from lightning_msda.randomness import Step, sample_beta, sample_partners
from lightning_msda.schedule import Schedule
from tests.helpers import (
    BAD_ALPHAS,
    BAD_DIMS,
    NAMED_DIMS,
    SPATIAL,
    assert_layout_does_not_matter,
    assert_mean,
    assert_same_mix,
    constant_samples,
    neighbours,
    own_pixels,
    positions,
    seeded,
    varies_only_along,
)
from tests.training import Classifier, loader, make_trainer


@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize("per_sample", [False, True])
def test_the_box_lies_around_the_partners_peak(spatial: tuple[int, ...], per_sample: bool) -> None:
    x, d = torch.randn(5, 2, *spatial, generator=seeded(1)), len(spatial)
    peaks = salient_peaks(x, range(2, 2 + d)).tolist()
    for seed in range(3):
        mix = saliencymix(x, alpha=0.8, per_sample=per_sample, generator=seeded(seed))
        draws = seeded(seed)
        partner = sample_partners(5, draws).tolist()
        lam = sample_beta(0.8, 5 if per_sample else 1, draws).tolist()
        assert mix.partner.tolist() == partner
        for i in range(5):
            kept = 0
            halves = [math.floor((1 - lam[i % len(lam)]) ** (1 / d) * size) // 2 for size in spatial]
            for place in positions(spatial):
                own = any(
                    not center - half <= at < center + half
                    for at, center, half in zip(place, peaks[partner[i]], halves, strict=True)
                )
                kept += own
                for channel in range(2):
                    source = i if own else partner[i]
                    assert mix.inputs[(i, channel, *place)] == x[(source, channel, *place)]
            assert float(mix.lam[i]) == pytest.approx(kept / math.prod(spatial), abs=1e-6)


def spotted(n: int, size: int = 32, side: int = 8) -> tuple[Tensor, list[tuple[int, int]]]:
    """Return noise with a bright square in each image, and where the squares begin."""
    x = 0.1 * torch.randn(n, 3, size, size, generator=seeded(2))
    corners = torch.randint(size - side + 1, (n, 2), generator=seeded(3)).tolist()
    for image, (row, column) in zip(x, corners, strict=True):
        image[:, row : row + side, column : column + side] += 1
    return x, [(row, column) for row, column in corners]


def test_what_is_pasted_holds_the_partners_object() -> None:
    x, corners = spotted(40)
    mix = saliencymix(x, partner=neighbours(40), generator=seeded(1))
    assert mix.mask is not None
    assert 0.1 < float(mix.lam.mean()) < 0.9
    hit = 0
    for i, j in enumerate(neighbours(40).tolist()):
        row, column = corners[j]
        hit += bool(~mix.mask[i, 0, row + 4, column + 4])  # the middle of the object
    assert hit >= 36


def test_one_length_for_the_batch_still_gives_a_lam_for_each_sample() -> None:
    x, _ = spotted(20)
    mix = saliencymix(x, generator=seeded(1))
    assert mix.per_sample and mix.mask is not None
    assert len(set(mix.lam.tolist())) > 1  # boxes are cut off differently at the border
    sides = (~mix.mask[:, 0]).any(2).sum(1)
    assert float((sides == sides.max()).double().mean()) > 0.3  # those that are not cut off are alike
    own = saliencymix(x, per_sample=True, generator=seeded(1))
    assert len(set(own.lam.tolist())) > 10


def test_boxes_in_the_middle_keep_the_share_that_was_drawn() -> None:
    x = torch.zeros(6000, 1, 33, 33, dtype=torch.float32)
    x[:, :, 16, 16] = 1
    lam = saliencymix(x, per_sample=True, generator=seeded()).lam.double()
    # Twice half a side, rounded down twice: the mean over lam uniform, by its closed form.
    ends = [(k / 33) ** 2 for k in range(34)]
    expected = sum(
        (b - a) * (1 - (2 * (k // 2)) ** 2 / 33**2) for k, (a, b) in enumerate(itertools.pairwise(ends))
    )
    assert_mean(lam, expected)


@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize("per_sample", [False, True])
def test_lam_is_the_share_of_own_pixels(spatial: tuple[int, ...], per_sample: bool) -> None:
    x = constant_samples(4, 2, *spatial)
    for seed in range(5):
        mix = saliencymix(x, per_sample=per_sample, partner=neighbours(4), generator=seeded(seed))
        assert torch.allclose(own_pixels(mix), mix.lam.double(), atol=1e-6)


@pytest.mark.parametrize(("shape", "dims"), NAMED_DIMS)
def test_named_dimensions_are_cut_and_the_others_are_pasted_whole(
    shape: tuple[int, ...], dims: list[int]
) -> None:
    changed = False
    for seed in range(5):
        x = constant_samples(*shape)
        mix = saliencymix(x, dims=dims, partner=neighbours(4), generator=seeded(seed))
        assert torch.allclose(own_pixels(mix), mix.lam.double(), atol=1e-6)
        assert varies_only_along(mix.inputs, dims)
        changed |= bool((mix.lam < 1).any())
    assert changed


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.bfloat16, torch.float64])
def test_inputs_of_any_dtype_are_cut_without_a_change_of_values(dtype: torch.dtype) -> None:
    x = (torch.rand(4, 3, 9, 8, generator=seeded(1)) * 200).to(dtype)
    mix = saliencymix(x, partner=neighbours(4), generator=seeded(1))
    assert mix.mask is not None
    assert mix.inputs.dtype == dtype
    assert torch.equal(mix.inputs, torch.where(mix.mask, x, x[neighbours(4)]))
    assert bool((mix.lam < 1).any())


def test_label_maps_follow_the_box() -> None:
    x, labels = torch.rand(4, 3, 9, 8, generator=seeded(1)), torch.arange(4 * 72).view(4, 9, 8)
    mix = saliencymix(x, partner=neighbours(4), generator=seeded(1))
    assert mix.mask is not None
    assert torch.equal(mix.follow(labels), torch.where(mix.mask[:, 0], labels, labels[neighbours(4)]))


def test_inputs_may_lie_in_memory_as_they_like() -> None:
    x = torch.randn(4, 3, 5, 6, generator=seeded(1))
    assert_layout_does_not_matter(lambda laid: saliencymix(laid, generator=seeded()), x)


def test_the_callback_draws_by_its_step_and_its_schedule() -> None:
    x = torch.randn(5, 3, 4, 6, generator=seeded(1))
    method = SaliencyMix(alpha={0: 1.0, 2: 0.1}, per_sample=True, dims=[3])
    for epoch, alpha in enumerate([1.0, 1.0, 0.1]):
        step = Step(seed=3, ordinal=7, epoch=epoch, rank=1)
        expected = saliencymix(
            x, alpha=alpha, dims=[3], per_sample=True, partner=step.partners(5), generator=step.generator()
        )
        assert_same_mix(method.mix(x, step), expected)


class Deep(Classifier):
    """Calls its body once or twice, with checkpointing or without."""

    def __init__(self, *, twice: bool = False, checkpointed: bool = False) -> None:
        super().__init__(2 * 36, 4)
        self.body = torch.nn.Conv2d(2, 2, 3, padding=1)
        self.twice, self.checkpointed = twice, checkpointed
        self.bodies: list[Tensor] = []

    def run(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        self.bodies.append(out.detach())
        return out

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        out = checkpoint(self.run, x, use_reentrant=False) if self.checkpointed else self.run(x)
        if self.twice:
            out = out + self.run(x.flip(2, 3))
        return F.cross_entropy(self.linear(out.flatten(1)), y)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.loss_seen = outputs["loss"]


def trained(method: SaliencyMix, **options: bool) -> tuple[Deep, Mixture, Tensor]:
    torch.manual_seed(1)
    x, y = torch.randn(4, 2, 6, 6), torch.arange(4)
    module = Deep(**options)
    initial = module.linear.weight.detach().clone()
    make_trainer(method).fit(module, loader(x, y, batch_size=4))
    assert method.last_mix is not None
    return module, method.last_mix, initial


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("options", [{}, {"twice": True}, {"checkpointed": True}], ids=str)
def test_at_a_hidden_layer_lam_is_that_of_the_boxes_of_the_first_call(
    per_sample: bool, options: dict[str, bool]
) -> None:
    module, mix, weight = trained(SaliencyMix(at="body", per_sample=per_sample, seed=2), **options)
    assert mix.per_sample and mix.mask is not None
    assert len(set(mix.lam.tolist())) > 1
    out = torch.stack(module.bodies[: 1 + module.twice]).sum(0)
    logits = out.flatten(1) @ weight.t()  # the bodies are mixed by the hook already
    hot = F.one_hot(torch.arange(4), 4)
    soft = mix.lam[:, None] * hot + (1 - mix.lam[:, None]) * hot[mix.partner]
    torch.testing.assert_close(
        module.loss_seen, -(soft * logits.log_softmax(1)).sum(1).mean(), check_dtype=False
    )


def test_other_inputs_cannot_follow_a_mask_that_is_not_known_yet() -> None:
    x, y = torch.randn(4, 2, 6, 6), torch.arange(4)

    class Three(Deep):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step((batch[0], batch[2]), batch_idx)

    method = SaliencyMix(at="body", input_key=[0, 1], target_key=2)
    with pytest.raises(ValueError, match=r"SaliencyMix looks at what it mixes.*'body'.*use CutMix"):
        make_trainer(method).fit(Three(), loader(x, x.clone(), y, batch_size=4))


def test_a_lam_by_sample_that_was_not_announced_is_refused_at_a_hidden_layer() -> None:
    class Hushed(SaliencyMix):
        lam_by_sample = False

    with pytest.raises(ValueError, match=r"Hushed mixed at 'body' with a lam for each sample.*lam_by_sample"):
        trained(Hushed(at="body"))


@pytest.mark.parametrize(("alpha", "message"), BAD_ALPHAS)
def test_an_alpha_out_of_range_is_refused(alpha: Schedule, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SaliencyMix(alpha)


@pytest.mark.parametrize(
    ("shape", "dims", "message"),
    [*BAD_DIMS, ((2, 1, 3, 3, 3, 3), None, "one to three dimensions, not in 4: name them by dims")],
)
def test_inputs_without_the_dimensions_are_refused(
    shape: tuple[int, ...], dims: list[int] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        saliencymix(torch.zeros(shape), dims=dims)
