"""The contract on a GPU: the same rows, and no wait for the device where batches are mixed.

Where the method acts, and for the plain rows until the loss has left the step, whatever waits for the device
is an error. Batches are on the device by then; the twin and the comparison are those of `test_trainer`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import DeviceStatsMonitor
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

from lightning_msda import MSDA, CutMix, FMix, MixUp, RandomMix, ResizeMix
from tests.contract.oracle import classes, row, rows, trains
from tests.contract.test_trainer import (
    BATCHES,
    COMPILED,
    MANUAL,
    METHODS,
    NOW_AND_THEN,
    OPTIMIZERS,
    OPTIONS,
    STEPS,
    ClosureByHand,
    Loss,
    Net,
    Plain,
    Train,
    both,
    closures,
    data,
    fit,
    of_either,
    train_like_the_formula,
)
from tests.training import in_a_fresh_process

K = 5
pytestmark = pytest.mark.gpu


class Forbid(Callback):
    """Lets waiting for the device be an error from where the method begins; to be listed before it."""

    def on_train_batch_start(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")


class Allow(Callback):
    """Allows it again where the method, or the step too, is done; to be listed after it."""

    def __init__(self, *, after_the_step: bool) -> None:
        self.after_the_step = after_the_step

    def on_train_batch_start(self, *_: Any) -> None:
        if not self.after_the_step:
            torch.cuda.set_sync_debug_mode("default")

    def on_before_backward(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")

    def on_train_batch_end(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")


def on_gpu(
    *others: Callable[[], Callback],
    whole_step: bool = False,
    plugins: Callable[[], list[Any]] = list,
    **options: Any,
) -> Train:
    """Return how to train on the GPU, where the method does not wait, or neither does the whole step."""

    def train(module: LightningModule, callbacks: list[Callback]) -> None:
        first, *rest = callbacks
        if isinstance(first, MSDA):
            callbacks = [Forbid(), first, Allow(after_the_step=whole_step), *rest]
        fit(*others, **{"accelerator": "gpu", "plugins": plugins(), **options})(module, callbacks)

    return train


@pytest.fixture(autouse=True)
def _waiting_is_allowed_again() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")
    torch.use_deterministic_algorithms(False)
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


# --- methods and losses -------------------------------------------------------------------------------------

KINDS: dict[str, Callable[..., MSDA]] = {
    "MixUp": MixUp,
    "CutMix": CutMix,
    "ResizeMix": ResizeMix,
    "FMix": FMix,
    "RandomMix": lambda per_sample=False, **common: RandomMix(
        [kind(per_sample=per_sample) for kind in (MixUp, CutMix, FMix)], prob=0.7, **common
    ),
}


@pytest.mark.parametrize(
    ("kind", "per_sample"),
    [
        pytest.param(kind, per_sample, marks=row("On a GPU", name, per_sample=per_sample))
        for name, kind in KINDS.items()
        for per_sample in (False, True)
    ],
)
def test_methods_wait_for_nothing(kind: Callable[..., MSDA], per_sample: bool) -> None:
    train_like_the_formula(Plain, on_gpu(whole_step=True), kind(per_sample=per_sample, seed=1))


LAYER_METHODS: dict[str, Callable[..., MSDA]] = {
    "MixUp, at a layer": lambda **common: MixUp(at="hidden", **common),
    "CutMix, at a layer": lambda **common: CutMix(at="hidden", dims=[1], **common),
}


@pytest.mark.parametrize(
    ("kind", "per_sample"),
    [
        pytest.param(kind, per_sample, marks=row("On a GPU", name, per_sample=per_sample))
        for name, kind in LAYER_METHODS.items()
        for per_sample in (False, True)
    ],
)
def test_layers_wait_for_nothing(kind: Callable[..., MSDA], per_sample: bool) -> None:
    method = kind(per_sample=per_sample, seed=1)
    train_like_the_formula(Plain, on_gpu(whole_step=True), method, layer="hidden")


def focal(scores: Tensor, y: Tensor) -> Tensor:
    p = scores.softmax(1).gather(1, y[:, None])
    return (-((1 - p) ** 2) * p.log()).mean()


def with_margin(scores: Tensor, y: Tensor) -> Tensor:
    lowered = scores.clone()
    lowered[torch.arange(len(y), device=y.device), y] -= 0.3
    return F.cross_entropy(4 * lowered, y)


def ignoring(scores: Tensor, y: Tensor) -> Tensor:
    y[y == 3] = -100
    return F.cross_entropy(scores, y)


def dice(scores: Tensor, y: Tensor) -> Tensor:
    p, hot = scores.softmax(1), F.one_hot(y, K)
    return 1 - (2 * (p * hot).sum(0) / (p.sum(0) + hot.sum(0))).mean()


def of_each_class(scores: Tensor, y: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(
        scores, (y[:, None] == torch.arange(K, device=y.device)).to(scores)
    )


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": F.cross_entropy,
    "cross_entropy, class weight": lambda scores, y: F.cross_entropy(
        scores, y, torch.linspace(0.5, 2, K, dtype=scores.dtype, device=scores.device)
    ),
    "cross_entropy, label_smoothing": lambda scores, y: F.cross_entropy(scores, y, label_smoothing=0.1),
    "cross_entropy, reduction none": lambda scores, y: F.cross_entropy(scores, y, reduction="none").mean(),
    "nll_loss": lambda scores, y: F.nll_loss(scores.log_softmax(1), y),
    "multi_margin_loss": F.multi_margin_loss,
    "focal loss": focal,
    "a margin by index": with_margin,
    "labels edited in place": ignoring,
    "Dice": dice,
    "BCE of each class": of_each_class,
}


@pytest.mark.parametrize("loss", rows("On a GPU", LOSSES))
def test_losses(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    def mixtures(scores: Tensor, y: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        own, partner, lam = y
        return lam[0] * loss(scores, own) + (1 - lam[0]) * loss(scores, partner)

    train_like_the_formula(
        lambda plain: Net(loss if plain is F.cross_entropy else mixtures), on_gpu(), MixUp(seed=1)
    )


# --- precision ----------------------------------------------------------------------------------------------


def scaled() -> list[Any]:
    """Return mixed precision with a scale that no gradient here overflows at."""
    return [MixedPrecision("16-mixed", "cuda", torch.amp.GradScaler("cuda", init_scale=2.0**10))]


MIXED: dict[str, dict[str, Any]] = {
    'precision="16-mixed"': {"plugins": scaled},
    'precision="16-mixed", gradients clipped': {"plugins": scaled, "gradient_clip_val": 0.1},
    'precision="16-mixed", accumulate_grad_batches': {"plugins": scaled, "accumulate_grad_batches": 2},
    'precision="bf16-mixed"': {"precision": "bf16-mixed"},
}


@pytest.mark.parametrize(
    ("options", "per_sample"),
    [
        pytest.param(options, per_sample, marks=row("On a GPU", name, per_sample=per_sample))
        for name, options in MIXED.items()
        for per_sample in (False, True)
    ],
)
def test_mixed_precision(options: dict[str, Any], per_sample: bool) -> None:
    train_like_the_formula(
        lambda loss: Plain(loss, torch.float32),
        on_gpu(whole_step=True, dtype=torch.float32, **options),
        MixUp(per_sample=per_sample, seed=1),
        rtol=1e-2,
    )


@pytest.mark.parametrize(
    ("precision", "per_sample", "rtol"),
    [
        pytest.param(
            precision,
            per_sample,
            rtol,
            marks=row("On a GPU", f'precision="{precision}"', per_sample=per_sample),
        )
        for precision, rtol in {"32-true": 1e-5, "64-true": 1e-10, "bf16-true": 1e-2, "16-true": 1e-2}.items()
        for per_sample in (False, True)
    ],
)
def test_true_precision(precision: str, per_sample: bool, rtol: float) -> None:
    trains(
        lambda: Plain(of_either, torch.float32).cuda(),
        [(x.cuda(), y.cuda()) for x, y in data(torch.float32, 32)],
        CutMix(per_sample=per_sample),
        terms=both if per_sample else classes,
        rtol=rtol,
        accelerator="gpu",
        precision=precision,
    )


# --- the Trainer --------------------------------------------------------------------------------------------

# On a GPU some operations have no deterministic form, and a profiler waits for the device.
ON_GPU = {name: options for name, options in OPTIONS.items() if name not in ("deterministic", "profiler")}


@pytest.mark.parametrize("options", rows("On a GPU", ON_GPU))
def test_options(options: dict[str, Any]) -> None:
    train_like_the_formula(Net, on_gpu(**options), MixUp(seed=1))


@pytest.mark.parametrize(("method", "layer"), METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("make", rows("On a GPU", STEPS))
def test_steps(make: Callable[[Loss], Net], method: MSDA, layer: str | None) -> None:
    train_like_the_formula(make, on_gpu(), method, layer=layer)


@pytest.mark.parametrize(("method", "layer"), METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("optimizer", rows("On a GPU", OPTIMIZERS))
def test_a_step_that_runs_several_times(optimizer: Any, method: MSDA, layer: str | None) -> None:
    train_like_the_formula(closures(optimizer), on_gpu(max_epochs=1), method, layer=layer, rtol=1e-8)


@pytest.mark.parametrize(("method", "layer"), METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("make", rows("On a GPU", MANUAL))
def test_manual_optimization(make: Callable[[Loss], Net], method: MSDA, layer: str | None) -> None:
    rtol = 1e-8 if make is ClosureByHand else 1e-10
    train_like_the_formula(make, on_gpu(), method, layer=layer, rtol=rtol)


@row("On a GPU", "DeviceStatsMonitor")
def test_a_callback_that_asks_the_device(tmp_path: Path) -> None:
    train = on_gpu(
        lambda: DeviceStatsMonitor(cpu_stats=False), logger=CSVLogger(tmp_path), log_every_n_steps=1
    )
    train_like_the_formula(Net, train, MixUp(seed=1))


# --- compiled -----------------------------------------------------------------------------------------------

BY_INDUCTOR: dict[str, Callable[[Any], Any]] = {
    **COMPILED,
    "torch.compile(module), by inductor": torch.compile,
}


@pytest.mark.parametrize(
    ("name", "method", "layer"),
    [
        pytest.param(name, method, layer, marks=row("On a GPU", name + when), id=name + when)
        for name in BY_INDUCTOR
        for when, layer, method in [
            (", prob < 1 and start_epoch > 0", None, MixUp(**NOW_AND_THEN)),
            (", at= a layer, prob < 1 and start_epoch > 0", "hidden", MixUp(at="hidden", **NOW_AND_THEN)),
        ]
    ],
)
def test_compiled(name: str, method: MSDA, layer: str | None) -> None:
    if "inductor" in name and shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("needs a compiler")
    torch._dynamo.reset()
    train = on_gpu(max_epochs=3, limit_val_batches=0)
    mixes = train_like_the_formula(Plain, train, method, layer=layer, prepare=BY_INDUCTOR[name], rtol=1e-8)
    assert mixes[:BATCHES] == [None] * BATCHES and None in mixes[BATCHES:]


# --- processes ----------------------------------------------------------------------------------------------


def train_under(strategy: str, layer: str | None) -> None:
    """Compare the losses under a strategy with the formula's: each tells of the gradients before it."""

    def train(module: LightningModule, callbacks: list[Callback]) -> None:
        options: dict[str, Any] = {"strategy": strategy} if isinstance(callbacks[0], MSDA) else {}
        on_gpu(devices=1, use_distributed_sampler=False, limit_val_batches=0, **options)(module, callbacks)

    method = MixUp(seed=1) if layer is None else MixUp(at=layer, seed=1)
    train_like_the_formula(Plain, train, method, layer=layer, only="loss")


@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param(name, marks=row("On a GPU", name))
        for name in ("fsdp", "ddp", "ddp_find_unused_parameters_true")
    ],
)
@pytest.mark.parametrize("layer", [None, "hidden"])
def test_strategies(strategy: str, layer: str | None) -> None:
    in_a_fresh_process(train_under, strategy, layer)
