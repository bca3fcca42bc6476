"""The laws, for every exported method; and that they notice a method that breaks them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lightning_msda
from lightning_msda import (
    MSDA,
    BCMix,
    CoMixup,
    CutMix,
    Cutout,
    FMix,
    LaMix,
    ManifoldMixup,
    Mixture,
    MixUp,
    PatchUp,
    PuzzleMix,
    RandomMix,
    ResizeMix,
    SaliencyMix,
    SamplePairing,
    Step,
)
from lightning_msda.ops import interpolate
from lightning_msda.randomness import sample_beta
from lightning_msda.testing import check_method
from tests.losses import CASES, K, N, mixtures_loss
from tests.training import Classifier, basis, loader, make_trainer, shares

ROOT = Path(__file__).parents[2]
METHODS: list[type[MSDA]] = [
    kind
    for name in lightning_msda.__all__
    if isinstance(kind := getattr(lightning_msda, name), type) and issubclass(kind, MSDA) and kind is not MSDA
]
NAMES = [method.__name__ for method in METHODS]


def _name(method: Any) -> str:
    return str(getattr(method, "func", method).__name__)


PLAIN: list[Callable[..., MSDA]] = [
    MixUp,
    CutMix,
    FMix,
    ResizeMix,
    SaliencyMix,
    # The modules here have no stages.
    partial(ManifoldMixup, layers=["input"]),
]
MIXES: dict[str, Callable[[], MSDA]] = {
    **{_name(method): method for method in PLAIN},
    **{f"{_name(method)} by sample": partial(method, per_sample=True) for method in PLAIN},
    "BCMix": partial(BCMix, per_sample=False),
    "BCMix by sample": BCMix,
    "RandomMix": RandomMix,
    # It leaves per_sample to its candidates.
    "RandomMix by sample": lambda: RandomMix([make(per_sample=True) for make in (*PLAIN, BCMix)]),
    "RandomMix in turn": partial(RandomMix, order="cycle"),
    "FMix, official": partial(FMix, spectrum="official"),
    "FMix, soft": partial(FMix, max_soft=0.3),
}
# Methods whose labels do not follow the pixels: they stay, or the ratio is the one that is perceived.
APART: dict[str, Callable[[], MSDA]] = {
    "Cutout": partial(Cutout, length=3, per_sample=False),  # the default hides images of this size
    "Cutout by sample": partial(Cutout, length=3),
    "SamplePairing": SamplePairing,
    "FMix, reformulated": partial(FMix, reformulate=True),
    "BCMix, plus": partial(BCMix, plus=True, per_sample=False),
    "BCMix, plus, by sample": partial(BCMix, plus=True),
}


@pytest.mark.parametrize("spatial", [(9,), (7, 10), (3, 4, 5)], ids=["1D", "2D", "3D"])
@pytest.mark.parametrize("name", MIXES)
def test_every_method_keeps_the_laws(name: str, spatial: tuple[int, ...]) -> None:
    check_method(MIXES[name], spatial=spatial)


# Images of up to four channels, salient where their spectral residual is: there is no module to ask.
OF_IMAGES: dict[str, Callable[[], MSDA]] = {
    "CoMixup": CoMixup,
    "CoMixup in parts, of any number of sources": partial(CoMixup, part=4, sources=20, threshold="soft"),
    "PuzzleMix": PuzzleMix,
    "PuzzleMix without transport": partial(PuzzleMix, transport=False, labels=2),
}
# The mask differs by channel, and of the images here each shows in one of them.
BY_CHANNEL: dict[str, Callable[[], MSDA]] = {
    "PatchUp": partial(PatchUp, layers=["input"]),
    "PatchUp, hard, by sample": partial(PatchUp, layers=["input"], mode="hard", per_sample=True),
}
# A part of the label is learned, from cross-entropy alone.
LEARNED: dict[str, Callable[[], MSDA]] = {
    "LaMix": LaMix,
    "LaMix by sample": partial(LaMix, per_sample=True),
}


@pytest.mark.parametrize("spatial", [(9,), (7, 10), (3, 4, 5)], ids=["1D", "2D", "3D"])
@pytest.mark.parametrize("name", [*APART, *BY_CHANNEL, *LEARNED])
def test_a_method_whose_labels_do_not_follow_the_pixels_keeps_the_other_laws(
    name: str, spatial: tuple[int, ...]
) -> None:
    check_method({**APART, **BY_CHANNEL, **LEARNED}[name], spatial=spatial, labels_follow_pixels=False)


@pytest.mark.parametrize("spatial", [(7, 10), (16, 16)])
@pytest.mark.parametrize("name", OF_IMAGES)
def test_a_method_of_images_keeps_the_laws(name: str, spatial: tuple[int, ...]) -> None:
    check_method(OF_IMAGES[name], spatial=spatial, channels=4)


@pytest.mark.parametrize("dims", [(2,), (3,), (2, 4)])
@pytest.mark.parametrize("method", [CutMix, FMix, ResizeMix, SaliencyMix])
@pytest.mark.parametrize("per_sample", [False, True])
def test_masks_run_over_any_dimensions(
    per_sample: bool, method: Callable[..., MSDA], dims: tuple[int, ...]
) -> None:
    check_method(partial(method, dims=dims, per_sample=per_sample), spatial=(5, 6, 7))


def test_every_method_is_held_to_the_laws() -> None:
    makes = (*MIXES.values(), *APART.values(), *BY_CHANNEL.values(), *LEARNED.values(), *OF_IMAGES.values())
    assert {type(make()).__name__ for make in makes} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_method_has_its_test_its_recipe_and_its_page_entry(name: str) -> None:
    assert (ROOT / f"tests/methods/test_{name.lower()}.py").is_file()
    recipes = [path.read_text() for path in (ROOT / "recipes/msda").glob("*.yaml")]
    assert any(f"\n  class_path: {name}\n" in recipe for recipe in recipes)
    assert f"`{name}`" in (ROOT / "README.md").read_text()


def test_every_method_file_is_exported() -> None:
    files = {path.stem for path in (ROOT / "lightning_msda/methods").glob("*.py")} - {"__init__"}
    assert {name.lower() for name in NAMES} == files
    assert len(NAMES) >= 5


class LamFlipped(MixUp):
    def mix(self, x: Tensor, step: Step) -> Mixture:
        mix = super().mix(x, step)
        return Mixture(mix.inputs, mix.partners, mix.weights.flip(1))


class WritesIntoInputs(MixUp):
    def mix(self, x: Tensor, step: Step) -> Mixture:
        mix = super().mix(x, step)
        x.copy_(mix.inputs)
        return mix


class GlobalGenerator(MixUp):
    def mix(self, x: Tensor, step: Step) -> Mixture:
        lam = torch.rand(1)
        partner = step.partners(len(x))
        return Mixture.of_pairs(interpolate(x, partner, lam), partner, lam)


class LamPromised(CutMix):
    """The box is cut off at the border, the label is not told."""

    def mix(self, x: Tensor, step: Step) -> Mixture:
        mix = super().mix(x, step)
        drawn = sample_beta(1.0, 1, step.generator()).expand(len(x)).to(x.dtype)
        return replace(mix, weights=torch.stack([drawn, 1 - drawn], 1))


class AlwaysTheSame(MixUp):
    def mix(self, x: Tensor, step: Step) -> Mixture:
        return super().mix(x, Step(seed=0, ordinal=0, rank=step.rank))


class LamOfEachSampleHidden(CutMix):
    def __init__(self) -> None:
        super().__init__(per_sample=True)

    def mix(self, x: Tensor, step: Step) -> Mixture:
        mix = super().mix(x, step)
        return Mixture(mix.inputs, mix.partners, mix.weights, mix.mask, mix.dims)


class WrongDtype(MixUp):
    def mix(self, x: Tensor, step: Step) -> Mixture:
        mix = super().mix(x, step)
        return Mixture(mix.inputs.double(), mix.partners, mix.weights)


class LeavesAnAttribute(MixUp):
    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        pl_module.mixed_by = "me"


class LeavesAHook(MixUp):
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        pl_module.linear.register_full_backward_hook(lambda *args: None)


class LeavesItEvaluating(MixUp):
    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        pl_module.linear.eval()


class MixesValidation(MixUp):
    def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *_: Any) -> None:
        batch[0] = batch[0].flip(0)


class KeepsTheStep(MixUp):
    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        trainer.strategy.training_step = trainer.strategy.training_step


BROKEN: dict[type[MSDA], str] = {
    LamFlipped: "weighted by what the pixels show",
    WritesIntoInputs: "not written to",
    GlobalGenerator: "global generators",
    LamPromised: "mean of the mask|what the pixels show",
    AlwaysTheSame: "other steps draw other mixes",
    LamOfEachSampleHidden: "without per_sample lam is one",
    WrongDtype: "shape, dtype and device",
    LeavesAnAttribute: "attributes and hooks are left alone",
    LeavesAHook: r"attributes and hooks are left alone \('linear'\)",
    LeavesItEvaluating: "left in its mode",
    MixesValidation: "validation is not mixed",
    KeepsTheStep: "strategy gets its own step back",
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda kind: kind.__name__)
def test_the_contract_notices_a_method_that_breaks_a_law(broken: type[MSDA]) -> None:
    with pytest.raises(AssertionError, match=BROKEN[broken]):
        check_method(broken)


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        (name, loss)
        for name in MIXES
        for loss in CASES
        if not MIXES[name]().lam_by_sample or CASES[loss].by_sample in ("mean", "joint")
    ],
)
def test_the_loss_of_an_unmodified_module_is_the_formula_on_the_pixels(name: str, loss: str) -> None:
    case = CASES[loss]
    by_sample = MIXES[name]().lam_by_sample
    x = basis(N, 4, 5, dtype=torch.float64)
    y = torch.randint(0, K, (N,))
    module = Classifier(x[0].numel(), 8, case.loss, torch.float64)
    make_trainer(MIXES[name]()).fit(module, loader(x.repeat(2, 1, 1, 1), y.repeat(2), batch_size=N))
    for seen in module.seen:
        lam, partner = shares(seen.inputs)
        weight = seen.weight.clone().requires_grad_()
        of_batch = float(lam.min())  # a sample that is its own partner shows 1
        features = seen.inputs.flatten(1) @ weight.t()
        wanted = mixtures_loss(case, features, y, y[partner], lam if by_sample else of_batch)
        (gradient,) = torch.autograd.grad(wanted, weight)
        torch.testing.assert_close(seen.loss, wanted.detach(), rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(seen.gradient, gradient, rtol=1e-7, atol=1e-12)
    assert len(module.seen) == 2


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        (name, loss)
        for name in APART
        for loss in CASES
        if not APART[name]().lam_by_sample or CASES[loss].by_sample in ("mean", "joint")
    ],
)
def test_where_labels_do_not_follow_the_pixels_the_loss_is_the_formula_on_lam(name: str, loss: str) -> None:
    case, method = CASES[loss], APART[name]()
    x, y = basis(N, 4, 5, dtype=torch.float64), torch.randint(0, K, (N,))
    module = Classifier(x[0].numel(), 8, case.loss, torch.float64)
    make_trainer(method).fit(module, loader(x, y, batch_size=N))
    (seen,), mix = module.seen, method.last_mix
    assert mix is not None
    assert mix.per_sample == method.lam_by_sample
    assert isinstance(method, BCMix) or bool((mix.lam == 1).all())
    weight = seen.weight.clone().requires_grad_()
    lam = mix.lam if mix.per_sample else float(mix.lam[0])
    wanted = mixtures_loss(case, seen.inputs.flatten(1) @ weight.t(), y, y[mix.partner], lam)
    (gradient,) = torch.autograd.grad(wanted, weight)
    torch.testing.assert_close(seen.loss, wanted.detach(), rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(seen.gradient, gradient, rtol=1e-7, atol=1e-12)
