"""What a Trainer can be told to do, each row beside a twin whose loss is the explicit formula.

The twin is the same module under the same Trainer, without a method: its batches are mixed beforehand, its
labels are both sources' with their lam, and its loss is the formula. After each batch the loss, every
gradient and every weight of both must agree, and at the end what was logged and all of their states.
"""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch import callbacks as of_lightning
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.tuner.tuning import Tuner
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_msda import MSDA, CutMix, FMix, MixedTensor, Mixture, MixUp, RandomMix
from tests.contract.oracle import Terms, blended, classes, masked, row, rows, trains
from tests.training import make_trainer

N, K, BATCHES = 6, 5, 4
Loss = Callable[[Tensor, Any], Tensor]
Train = Callable[[LightningModule, list[Callback]], Any]


def mixtures_cross_entropy(scores: Tensor, y: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Return the formula, of the labels of both sources and of the own ones' lam."""
    own, partner, lam = y
    terms = [F.cross_entropy(scores, labels, reduction="none") for labels in (own, partner)]
    lam = lam.to(terms[0].dtype)
    return (lam * terms[0] + (1 - lam) * terms[1]).sum() / (lam + (1 - lam)).sum()


class Net(LightningModule):
    """Two layers under a loss of scores and labels; modules of each row do something else with them."""

    def __init__(self, loss: Loss, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.hidden = nn.Linear(3 * 4 * 4, 8, bias=False, dtype=dtype)
        self.norm = nn.BatchNorm1d(8, dtype=dtype)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(8, K, dtype=dtype)
        self.loss = loss
        self.noted: list[Tensor] = []
        self.validated = 0

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.drop(torch.tanh(self.norm(self.hidden(x.flatten(1))))))
        return scores

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        loss = self.loss(self(x), y)
        self.log("loss", loss, on_step=True, on_epoch=True, batch_size=N)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        assert type(y) is Tensor and any(torch.equal(x.double().cpu(), seen) for seen, _ in data())
        self.validated += 1
        self.log("val_loss", F.cross_entropy(self(x), y), batch_size=N)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.5)


def data(dtype: torch.dtype = torch.float64, n: int = N) -> list[tuple[Tensor, Tensor]]:
    """Return the batches, the same each time."""
    draws = torch.Generator().manual_seed(0)
    return [
        (
            # In steps that every dtype holds exactly.
            torch.randint(0, 16, (n, 3, 4, 4), generator=draws).to(dtype) / 8 - 1,
            torch.randint(0, K, (n,), generator=draws),
        )
        for _ in range(BATCHES)
    ]


def batches(dtype: torch.dtype = torch.float64) -> DataLoader[Any]:
    return DataLoader([[x, y] for x, y in data(dtype)], batch_size=None)  # type: ignore[arg-type]


def fit(*others: Callable[[], Callback], dtype: torch.dtype = torch.float64, **options: Any) -> Train:
    """Return how to train with other callbacks, which come first, and options of the Trainer."""

    def train(module: LightningModule, callbacks: list[Callback]) -> Trainer:
        trainer = make_trainer(*(make() for make in others), *callbacks, **{"max_epochs": 2, **options})
        trainer.fit(module, batches(dtype), batches(dtype))
        return trainer

    return train


class Record(Callback):
    """Keeps how each batch was mixed, and all values after it; to be listed after the method."""

    def __init__(self, method: MSDA | None = None) -> None:
        self.method = method
        self.mixes: list[Mixture | None] = []
        self.after: list[dict[str, Tensor]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self.method is not None:
            self.mixes.append(self.method.last_mix)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.method is not None:
            self.mixes[-1] = self.method.last_mix  # at a layer it is known only now
        returned = outputs if isinstance(outputs, dict) else {"loss": outputs}
        assert all(type(value) is Tensor for value in returned.values())
        after = {"loss": returned["loss"]} if "loss" in returned else {}
        for name, parameter in pl_module.named_parameters():
            after[name] = parameter
            if parameter.grad is not None:
                after[f"the gradient of {name}"] = parameter.grad
        self._keep(after)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._keep(trainer.callback_metrics)

    def keep_end(self, module: LightningModule) -> None:
        """Keep what the module is and noted when all is over."""
        noted = {f"note {i}": note for i, note in enumerate(getattr(module, "noted", []))}
        self._keep({**module.state_dict(), **noted})

    def _keep(self, values: dict[str, Tensor]) -> None:
        # What is compiled has another name.
        self.after.append({name.replace("_orig_mod.", ""): v.detach().clone() for name, v in values.items()})


def train_like_the_formula(
    make: Callable[[Loss], LightningModule],
    train: Train,
    method: MSDA,
    *,
    layer: str | None = None,
    rtol: float = 1e-10,
    prepare: Callable[[Any], Any] = lambda module: module,
    only: str | None = None,
) -> list[Mixture | None]:
    """Train a module with a method, and its twin on the formula; compare them and return the mixes.

    Args:
        make: Returns a new module under a loss.
        train: Trains a module with callbacks.
        method: The method.
        layer: Name of the layer at which it mixes, if not at the inputs.
        rtol: Largest relative error, by the norm of each tensor.
        prepare: Returns what is trained in the place of the module, such as the compiled one.
        only: Name of what alone is compared; None: all that was kept.
    """
    torch.manual_seed(0)
    module, record = make(F.cross_entropy), Record(method)
    train(prepare(module), [method, record])
    record.keep_end(module)

    torch.manual_seed(0)
    twin, wanted = make(mixtures_cross_entropy), Record()
    left = deque(record.mixes)
    mix_beforehand(twin, wanted, left, layer)
    train(twin, [wanted])
    wanted.keep_end(twin)

    assert not left
    compare(record.after, wanted.after, rtol, only)
    lams = [float(mix.lam.double().mean()) for mix in record.mixes if mix is not None]
    assert any(0.02 < lam < 0.98 for lam in lams), "nothing was mixed: this row shows nothing"
    return record.mixes


def mix_beforehand(twin: Any, record: Record, left: deque[Mixture | None], layer: str | None) -> None:
    """Let a twin's training batches be mixed as they were, or at a layer, while its record is kept."""
    now: Mixture | None = None

    def trained() -> bool:
        # Validation is not mixed, nor is a search that takes the callbacks out.
        return bool(twin.trainer.training) and record in twin.trainer.callbacks

    def mix_batch(batch: Any, dataloader_idx: int) -> Any:
        nonlocal now
        if not twin.trainer.training:
            return batch
        x, y = batch
        now = left.popleft() if trained() else None
        if now is None:
            return [x, (y, y, torch.ones(len(y), dtype=torch.float64, device=y.device))]
        return [x if layer is not None else mixed(now, x), (y, y[now.partner], now.lam)]

    twin.on_after_batch_transfer = mix_batch
    if layer is not None:
        twin.get_submodule(layer).register_forward_hook(
            lambda module, args, out: mixed(now, out) if trained() and now is not None else None
        )


def mixed(mix: Mixture, x: Tensor) -> Tensor:
    """Return inputs or features mixed as was told; a partner that was made smaller is taken as it is."""
    if mix.source is not None:
        return mix.inputs
    return (blended if mix.mask is None else masked)(mix, x)  # type: ignore[no-any-return]


def compare(
    actual: Sequence[dict[str, Tensor]],
    wanted: Sequence[dict[str, Tensor]],
    rtol: float,
    only: str | None = None,
) -> None:
    """Hold what was kept against the formula's, each tensor by its norm."""
    assert len(actual) == len(wanted) > 1
    for i, (one, other) in enumerate(zip(actual, wanted, strict=True)):
        assert only is not None or one.keys() == other.keys()
        for name in other if only is None else {only} & other.keys():
            error = float((one[name].double() - other[name].double()).norm())
            scale = float(other[name].double().norm())
            assert error <= rtol * scale, f"batch {i}: {name} is off by {error:.3g} of {scale:.3g}"


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """Undo what `deterministic=True` sets for good."""
    yield
    torch.use_deterministic_algorithms(False)
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_the_comparison_notices_labels_that_were_not_mixed() -> None:
    with pytest.raises(AssertionError, match="is off by"):
        train_like_the_formula(Net, fit(), MixUp(seed=1, target_key=False))


# --- precision ----------------------------------------------------------------------------------------------


def both(mix: Mixture, y: Tensor) -> Terms:
    """Return the one term whose labels are both sources' with their lam."""
    return [(1.0, (y, y[mix.partner], mix.lam))]


def of_either(scores: Tensor, y: Any) -> Tensor:
    """Return the formula of the labels of `both`, and a plain loss of others."""
    return mixtures_cross_entropy(scores, y) if isinstance(y, tuple) else F.cross_entropy(scores, y)


@pytest.mark.parametrize("kind", [MixUp, CutMix])
@pytest.mark.parametrize(
    ("precision", "per_sample", "rtol"),
    [
        pytest.param(
            precision,
            per_sample,
            rtol,
            marks=row("Trainer", f'precision="{precision}"', per_sample=per_sample),
            id=f"{precision}{', by sample' * per_sample}",
        )
        for precision, rtol in {
            "32-true": 1e-5,
            "64-true": 1e-10,
            "bf16-mixed": 1e-2,
            "bf16-true": 1e-2,
            "16-true": 1e-2,
        }.items()
        for per_sample in (False, True)
    ],
)
def test_precision(precision: str, per_sample: bool, rtol: float, kind: Callable[..., MSDA]) -> None:
    # Each step begins with the same weights: over a whole training in half precision the rounding adds up.
    trains(
        lambda: Net(of_either, torch.float32),
        data(torch.float32, 32),
        kind(per_sample=per_sample),
        terms=both if per_sample else classes,
        rtol=rtol,
        precision=precision,
    )


# --- options and callbacks ----------------------------------------------------------------------------------

OPTIONS: dict[str, dict[str, Any]] = {
    "accumulate_grad_batches": {"accumulate_grad_batches": 3},
    "gradient_clip_val, by norm": {"gradient_clip_val": 0.1},
    "gradient_clip_val, by value": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    "gradients accumulated, then clipped": {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1},
    "overfit_batches": {"overfit_batches": 2},
    "fast_dev_run": {"fast_dev_run": 3},
    "limit_train_batches": {"limit_train_batches": 0.75},
    "limit_val_batches=0": {"limit_val_batches": 0},
    "max_steps": {"max_steps": 6, "max_epochs": -1},
    "max_time": {"max_time": {"hours": 1}},
    "val_check_interval inside an epoch": {"val_check_interval": 1},
    "check_val_every_n_epoch": {"check_val_every_n_epoch": 2},
    "inference_mode=False": {"inference_mode": False},
    "reload_dataloaders_every_n_epochs": {"reload_dataloaders_every_n_epochs": 1},
    "detect_anomaly": {"detect_anomaly": True},
    "deterministic": {"deterministic": True},
    "profiler": {"profiler": "simple"},
    "enable_progress_bar": {"enable_progress_bar": True},
    "barebones": {"barebones": True},
}


# Each with the layer that it mixes at.
METHODS: dict[str, tuple[MSDA, str | None]] = {
    "MixUp": (MixUp(seed=1), None),
    "CutMix": (CutMix(seed=1), None),
    "MixUp, at a layer": (MixUp(seed=1, at="hidden"), "hidden"),
}
BY_SAMPLE = {"CutMix, by sample": (CutMix(seed=1, per_sample=True), None)}


def by_every_method(table: dict[str, Any]) -> list[Any]:
    """Return the values of a table, each with every method and its layer, as rows."""
    return [
        pytest.param(
            value,
            method,
            layer,
            marks=row("Trainer", name, per_sample=method.per_sample),
            id=f"{name}, {kind}",
        )
        for name, value in table.items()
        for kind, (method, layer) in {**METHODS, **BY_SAMPLE}.items()
    ]


@pytest.mark.parametrize("options", rows("Trainer", OPTIONS))
def test_options(options: dict[str, Any]) -> None:
    train_like_the_formula(Net, fit(**options), MixUp(seed=1))


@pytest.mark.parametrize(
    ("options", "method", "layer"),
    by_every_method({name: OPTIONS[name] for name in OPTIONS if "accum" in name or "clip" in name}),
)
def test_options_of_gradients(options: dict[str, Any], method: MSDA, layer: str | None) -> None:
    train_like_the_formula(Net, fit(**options), method, layer=layer)


class ReadsOutputs(Callback):
    """Keeps what the step returned and logged, as callbacks that watch a training do."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert torch.equal(trainer.callback_metrics["loss_step"], outputs["loss"])
        assert not isinstance(batch[1], MixedTensor)
        pl_module.noted.append(outputs["loss"])


CALLBACKS: dict[str, Callable[[], Callback]] = {
    "EMAWeightAveraging": lambda: of_lightning.EMAWeightAveraging(decay=0.9),
    "WeightAveraging": lambda: of_lightning.WeightAveraging(),
    "StochasticWeightAveraging": lambda: of_lightning.StochasticWeightAveraging(0.05, swa_epoch_start=1),
    "EarlyStopping": lambda: of_lightning.EarlyStopping("loss_epoch", min_delta=10.0, patience=1),
    "GradientAccumulationScheduler": lambda: of_lightning.GradientAccumulationScheduler({0: 1, 1: 2}),
    "BackboneFinetuning": lambda: of_lightning.BackboneFinetuning(1, backbone_initial_lr=0.05),
    "ModelPruning": lambda: of_lightning.ModelPruning("l1_unstructured", amount=0.5),
    "ModelSummary": lambda: of_lightning.ModelSummary(max_depth=-1),
    "RichModelSummary": lambda: of_lightning.RichModelSummary(),
    "Timer": lambda: of_lightning.Timer(),
    "a callback that reads the step's outputs": ReadsOutputs,
}


class WithBackbone(Net):
    def __init__(self, loss: Loss) -> None:
        super().__init__(loss)
        self.backbone = self.hidden

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.head.parameters(), lr=0.1)


@pytest.mark.parametrize("first", [False, True], ids=["after the method", "before it"])
@pytest.mark.parametrize("callback", rows("Trainer", CALLBACKS))
def test_callbacks_beside_us(callback: Callable[[], Callback], first: bool) -> None:
    make = WithBackbone if isinstance(callback(), of_lightning.BackboneFinetuning) else Net

    def train(module: LightningModule, callbacks: list[Callback]) -> None:
        beside = [callback(), *callbacks] if first else [*callbacks, callback()]
        make_trainer(*beside, max_epochs=3).fit(module, batches(), batches())

    train_like_the_formula(make, train, MixUp(seed=1))


@row("Trainer", "LearningRateMonitor")
def test_a_callback_that_writes_to_a_logger(tmp_path: Path) -> None:
    train = fit(of_lightning.LearningRateMonitor, logger=CSVLogger(tmp_path), log_every_n_steps=1)
    train_like_the_formula(Net, train, MixUp(seed=1))


# --- steps --------------------------------------------------------------------------------------------------


class ReturnsDict(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        scores = self(x)
        return {"loss": self.loss(scores, y), "scores": scores.detach(), "inputs": x}

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.noted += [outputs["scores"], outputs["inputs"]]


class ReturnsNone(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx == 1 else loss


class ReturnsEarly(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None if batch_idx == 1 else super().training_step(batch, batch_idx)


class SkipsTheRest(Net):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == 2 else None


class Stops(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.trainer.should_stop = self.trainer.current_epoch == 1 and batch_idx == 1
        return super().training_step(batch, batch_idx)


class TakesTheBatchAlone(Net):
    def training_step(self, batch: Any) -> Any:  # type: ignore[override]
        return super().training_step(batch, 0)


class HasHooks(Net):
    """Overrides what Lightning lets one override around the optimizer."""

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        assert type(loss) is Tensor
        self.noted.append(loss.detach())
        super().backward(2 * loss, *args, **kwargs)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
    ) -> None:
        optimizer.step(closure=optimizer_closure)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        optimizer.zero_grad(set_to_none=False)

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        self.clip_gradients(optimizer, 0.1, "norm")

    def on_before_backward(self, loss: Tensor) -> None:
        self.noted.append(loss.detach())


class StepsInBackward(Net):
    """Lets each parameter's own optimizer step as soon as its gradient is there."""

    def on_fit_start(self) -> None:
        parameters: Any = self.parameters()
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self.descend)

    def descend(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self.noted.append(parameter.grad.clone())
        parameter.data.sub_(parameter.grad, alpha=0.05)


class Penalised(Net):
    """Punishes the slope of its scores along the inputs."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        x.requires_grad_()
        scores = self(x)
        (slope,) = torch.autograd.grad(scores.square().sum(), x, create_graph=True)
        return self.loss(scores, y) + 0.1 * slope.square().mean()


class LossPenalised(Net):
    """Punishes the slope of its loss along the inputs."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        x.requires_grad_()
        loss = self.loss(self(x), y)
        (slope,) = torch.autograd.grad(loss, x, create_graph=True)
        return loss + slope.square().sum()


class Schedules(Net):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        steps = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": steps, "interval": "step"}}


class SchedulesByTheLoss(Net):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=1.0)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": plateau, "monitor": "loss_step", "interval": "step"},
        }


class Frozen(Net):
    def configure_optimizers(self) -> Any:
        self.hidden.requires_grad_(False)
        return torch.optim.Adam(self.head.parameters())


class RunningMean(Net):
    """Keeps a running mean of its loss, which is part of what it minimises."""

    running: Tensor
    history: Tensor

    def __init__(self, loss: Loss) -> None:
        super().__init__(loss)
        self.register_buffer("running", torch.zeros((), dtype=torch.float64))
        self.register_buffer("history", torch.zeros(BATCHES, dtype=torch.float64))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(self(batch[0]), batch[1])
        self.history[batch_idx] = loss.detach()
        self.running.lerp_(loss.detach(), 0.1)
        return loss + self.running


class KeepsLosses(Net):
    """Keeps its losses until the epoch's end, as Lightning's documentation writes it."""

    def __init__(self, loss: Loss) -> None:
        super().__init__(loss)
        self.kept: list[Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(self(batch[0]), batch[1])
        self.kept.append(loss)
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("mean_loss", torch.stack(self.kept).mean())
        self.kept.clear()


class LearnsAWeight(Net):
    """Learns the weight of its loss (arXiv:1705.07115)."""

    def __init__(self, loss: Loss) -> None:
        super().__init__(loss)
        self.log_variance = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(self(batch[0]), batch[1])
        return (torch.exp(-self.log_variance) * loss + self.log_variance).unsqueeze(0)


class LooksAhead(Net):
    """Minimises the loss after an inner step, as MAML does."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        weights = dict(self.named_parameters())
        slopes = torch.autograd.grad(self.loss(self(x), y), list(weights.values()), create_graph=True)
        ahead = {name: w - 0.1 * g for (name, w), g in zip(weights.items(), slopes, strict=True)}
        return self.loss(torch.func.functional_call(self, ahead, (x,)), y)


class Criterion(nn.Module):
    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, scores: Tensor, y: Any) -> Tensor:
        return self.loss(scores, y)


class EditsInputs(Net):
    """Blackens a channel, which is the same before mixing and after."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        batch[0][:, 0] = 0


class ReplacesInputs(Net):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        batch[0] = batch[0] * (torch.arange(3, device=self.device) > 0).view(-1, 1, 1)


class Checkpointed(Net):
    """Computes its layers, or its loss too, again in the backward pass."""

    def __init__(self, loss: Loss, *, reentrant: bool, with_loss: bool) -> None:
        super().__init__(loss)
        self.reentrant = reentrant
        self.with_loss = with_loss

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        x.requires_grad_()
        if self.with_loss:
            return checkpoint(self.compute_loss, x, y, use_reentrant=self.reentrant)
        return self.loss(checkpoint(self, x, use_reentrant=self.reentrant), y)

    def compute_loss(self, x: Tensor, y: Tensor) -> Tensor:
        return self.loss(self(x), y)


STEPS: dict[str, Callable[[Loss], Net]] = {
    "a step that returns a dict": ReturnsDict,
    "a step that returns None": ReturnsNone,
    "a step that returns before it begins": ReturnsEarly,
    "on_train_batch_start that returns -1": SkipsTheRest,
    "trainer.should_stop": Stops,
    "a step that takes the batch alone": TakesTheBatchAlone,
    "backward, optimizer_step and their like overridden": HasHooks,
    "parameters that step in the backward pass": StepsInBackward,
    "a gradient penalty of the scores": Penalised,
    "a gradient penalty of the loss": LossPenalised,
    "a step that looks ahead by gradients": LooksAhead,
    "a learned weight of the loss": LearnsAWeight,
    "a running mean of the loss in a buffer": RunningMean,
    "losses kept until the epoch's end": KeepsLosses,
    "inputs edited in on_train_batch_start": EditsInputs,
    "inputs replaced in on_train_batch_start": ReplacesInputs,
    "a scheduler by step": Schedules,
    "a scheduler by the loss": SchedulesByTheLoss,
    "frozen layers": Frozen,
    "activation checkpointing": partial(Checkpointed, reentrant=False, with_loss=False),
    "activation checkpointing, reentrant": partial(Checkpointed, reentrant=True, with_loss=False),
    "activation checkpointing of the loss": partial(Checkpointed, reentrant=False, with_loss=True),
    "activation checkpointing of the loss, reentrant": partial(Checkpointed, reentrant=True, with_loss=True),
}


@pytest.mark.parametrize(("make", "method", "layer"), by_every_method(STEPS))
def test_steps(make: Callable[[Loss], Net], method: MSDA, layer: str | None) -> None:
    train_like_the_formula(make, fit(), method, layer=layer)


# --- closures -----------------------------------------------------------------------------------------------


class Closures(Net):
    """Notes the loss and a gradient of every closure."""

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
    ) -> None:
        def closure() -> Any:
            loss = optimizer_closure()
            assert self.head.weight.grad is not None
            self.noted += [loss.detach(), self.head.weight.grad.clone()]
            return loss

        before = len(self.noted)
        optimizer.step(closure=closure)
        assert len(self.noted) > before + 2, "the step ran once"


class SAM(torch.optim.SGD):
    """Descends by the gradient at the worst weights near by (arXiv:2010.01412)."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = closure()
        parameters = [p for group in self.param_groups for p in group["params"]]
        climbs = [0.1 * p.grad / p.grad.norm() for p in parameters]
        for parameter, climb in zip(parameters, climbs, strict=True):
            parameter.add_(climb)
        with torch.enable_grad():
            closure()
        for parameter, climb in zip(parameters, climbs, strict=True):
            parameter.sub_(climb)
        super().step()
        return loss


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "LBFGS": lambda parameters: torch.optim.LBFGS(parameters, lr=0.1, max_iter=4),
    "LBFGS, strong Wolfe": lambda parameters: torch.optim.LBFGS(
        parameters, max_iter=3, line_search_fn="strong_wolfe"
    ),
    "SAM": lambda parameters: SAM(parameters, lr=0.1),
}


def closures(optimizer: Callable[[Any], torch.optim.Optimizer]) -> type[Net]:
    """Return the module that an optimizer searches by closures."""

    class Searched(Closures):
        def configure_optimizers(self) -> Any:
            return optimizer(self.parameters())

    return Searched


@pytest.mark.parametrize(("optimizer", "method", "layer"), by_every_method(OPTIMIZERS))
def test_a_step_that_runs_several_times(optimizer: Any, method: MSDA, layer: str | None) -> None:
    train_like_the_formula(closures(optimizer), fit(max_epochs=1), method, layer=layer, rtol=1e-10)


# --- manual optimization ------------------------------------------------------------------------------------


class Manual(Net):
    """Optimizes by hand."""

    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.optimize(optimizer, lambda: self.loss(self(x), y))
        self.noted += [p.grad.clone() for p in self.parameters() if p.grad is not None]

    def optimize(self, optimizer: Any, loss: Callable[[], Tensor]) -> None:
        self.manual_backward(loss())
        optimizer.step()


class BackwardByTorch(Manual):
    def optimize(self, optimizer: Any, loss: Callable[[], Tensor]) -> None:
        doubled: Any = 2 * loss()
        doubled.backward()
        optimizer.step()


class GradientsByTorch(Manual):
    def optimize(self, optimizer: Any, loss: Callable[[], Tensor]) -> None:
        gradients = torch.autograd.grad(loss(), list(self.parameters()))
        for parameter, gradient in zip(self.parameters(), gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()


class BackwardTwice(Manual):
    def optimize(self, optimizer: Any, loss: Callable[[], Tensor]) -> None:
        once = loss()
        self.manual_backward(once, retain_graph=True)
        self.manual_backward(3 * once)
        self.manual_backward(loss())
        optimizer.step()


class ClipsByHand(Manual):
    def optimize(self, optimizer: Any, loss: Callable[[], Tensor]) -> None:
        self.manual_backward(loss())
        self.clip_gradients(optimizer, 0.1, "norm")
        optimizer.step()


class SAMByHand(Manual):
    def optimize(self, optimizer: Any, loss: Callable[[], Tensor]) -> None:
        self.manual_backward(loss())
        climbs = [0.1 * p.grad / p.grad.norm() for p in self.parameters() if p.grad is not None]
        with torch.no_grad():
            for parameter, climb in zip(self.parameters(), climbs, strict=True):
                parameter.add_(climb)
        optimizer.zero_grad()
        self.manual_backward(loss())
        with torch.no_grad():
            for parameter, climb in zip(self.parameters(), climbs, strict=True):
                parameter.sub_(climb)
        optimizer.step()


class ClosureByHand(Manual):
    def optimize(self, optimizer: Any, loss: Callable[[], Tensor]) -> None:
        def closure() -> Tensor:
            optimizer.zero_grad()
            value = loss()
            self.manual_backward(value)
            return value

        optimizer.step(closure=closure)

    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)


class AccumulatesByHand(Manual):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        optimizer: Any = self.optimizers()
        loss = self.loss(self(x), y) / 2
        self.manual_backward(loss)
        if batch_idx % 2:
            optimizer.step()
            optimizer.zero_grad()
        return loss


class PretendsAndLearns(Manual):
    """A GAN whose critic names classes too; its generator's step never reads labels."""

    def __init__(self, loss: Loss) -> None:
        super().__init__(loss)
        self.generator = nn.Linear(2, 48, dtype=torch.float64)
        self.real = nn.Linear(8, 1, dtype=torch.float64)

    def criticise(self, x: Tensor, real: bool) -> Tensor:
        scores = self.real(torch.tanh(self.hidden(x.flatten(1))))
        return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, float(real)))

    def pretend(self, x: Tensor) -> Tensor:
        fake: Tensor = self.generator(torch.randn(len(x), 2, dtype=x.dtype, device=x.device))
        return fake

    def critics_step(self, x: Tensor, y: Tensor, optimizer: Any) -> Tensor:
        self.toggle_optimizer(optimizer)
        loss = self.criticise(x, True) + self.criticise(self.pretend(x).detach(), False)
        loss = loss + self.loss(self(x), y)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.untoggle_optimizer(optimizer)
        self.log("critic", loss)
        return loss

    def generators_step(self, x: Tensor, optimizer: Any) -> None:
        self.toggle_optimizer(optimizer)
        loss = self.criticise(self.pretend(x), True)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.untoggle_optimizer(optimizer)
        self.log("generator", loss)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        (x, y), optimizers = batch, cast(Any, self.optimizers())
        self.critics_step(x, y, optimizers[0])
        self.generators_step(x, optimizers[1])

    def configure_optimizers(self) -> Any:
        critic = [*self.hidden.parameters(), *self.head.parameters(), *self.real.parameters()]
        return [torch.optim.SGD(critic, lr=0.1), torch.optim.Adam(self.generator.parameters())]


class GeneratorFirst(PretendsAndLearns):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        (x, y), optimizers = batch, cast(Any, self.optimizers())
        self.generators_step(x, optimizers[1])
        self.critics_step(x, y, optimizers[0])


class InTurns(PretendsAndLearns):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        (x, y), optimizers = batch, cast(Any, self.optimizers())
        if batch_idx % 2:
            self.generators_step(x, optimizers[1])
        else:
            self.critics_step(x, y, optimizers[0])


MANUAL: dict[str, Callable[[Loss], Net]] = {
    "manual optimization": Manual,
    "manual optimization, loss.backward()": BackwardByTorch,
    "manual optimization, torch.autograd.grad": GradientsByTorch,
    "manual optimization, several backward passes": BackwardTwice,
    "manual optimization, clip_gradients": ClipsByHand,
    "manual optimization, SAM": SAMByHand,
    "manual optimization, LBFGS": ClosureByHand,
    "manual optimization, gradients accumulated": AccumulatesByHand,
    "a GAN whose generator never reads labels": PretendsAndLearns,
    "a GAN whose generator comes first": GeneratorFirst,
    "a GAN whose critic and generator take turns": InTurns,
}


@pytest.mark.parametrize(("make", "method", "layer"), by_every_method(MANUAL))
def test_manual_optimization(make: Callable[[Loss], Net], method: MSDA, layer: str | None) -> None:
    rtol = 1e-8 if make is ClosureByHand else 1e-10
    train_like_the_formula(make, fit(), method, layer=layer, rtol=rtol)


# --- how training is begun ----------------------------------------------------------------------------------


class BringsCallbacks(Net):
    brought: list[Callback]

    def configure_callbacks(self) -> list[Callback]:
        return self.brought


@row("Trainer", "configure_callbacks")
def test_a_module_may_bring_the_method() -> None:
    def train(module: Any, callbacks: list[Callback]) -> None:
        module.brought = callbacks
        trainer = make_trainer()
        trainer.fit(module, batches())
        trainer.fit_loop.max_epochs = 2
        trainer.fit(module, batches())

    train_like_the_formula(BringsCallbacks, train, MixUp(seed=1))


@pytest.mark.parametrize(
    "same",
    [
        pytest.param(True, marks=row("Trainer", "a second fit of the same Trainer")),
        pytest.param(False, marks=row("Trainer", "a second fit of another Trainer")),
    ],
)
@pytest.mark.parametrize("method", [MixUp(seed=1), CutMix(seed=1, start_epoch=1, stop_epoch=3)])
def test_a_second_fit(method: MSDA, same: bool) -> None:
    def train(module: LightningModule, callbacks: list[Callback]) -> None:
        trainer = fit()(module, callbacks)
        trainer = trainer if same else make_trainer(*callbacks)
        trainer.fit_loop.max_epochs = 4
        trainer.fit(module, batches())
        trainer.validate(module, batches(), verbose=False)

    train_like_the_formula(Net, train, method)


class FailsOnce(Callback):
    def __init__(self) -> None:
        self.failed = False

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == 2 and not self.failed:
            self.failed = True
            raise ZeroDivisionError


@row("Faults", "another fit after a failure")
def test_another_fit_after_a_failure() -> None:
    def train(module: LightningModule, callbacks: list[Callback]) -> None:
        trainer = make_trainer(FailsOnce(), *callbacks, max_epochs=2)
        with pytest.raises(ZeroDivisionError):
            trainer.fit(module, batches(), batches())
        make_trainer(*callbacks).fit(module, batches(), batches())

    train_like_the_formula(Net, train, MixUp(seed=1))


@row("Trainer", "ModelCheckpoint, and resuming in the middle of an epoch")
def test_a_run_is_resumed(tmp_path: Path) -> None:
    def train(module: LightningModule, callbacks: list[Callback]) -> None:
        save = of_lightning.ModelCheckpoint(
            tmp_path / str(len(callbacks)),
            "{step}",
            monitor="loss_step",
            every_n_train_steps=1,
            save_top_k=-1,
        )
        fit(lambda: save, enable_checkpointing=True)(module, callbacks)
        trainer = make_trainer(*callbacks, max_epochs=3)
        trainer.fit(module, batches(), ckpt_path=Path(save.dirpath) / "step=6.ckpt")  # type: ignore[arg-type]

    mixes = train_like_the_formula(Net, train, MixUp(seed=1))
    assert len(mixes) == 2 * BATCHES + 6


# --- copies made meanwhile ----------------------------------------------------------------------------------


class Copies(Callback):
    """Copies the module once while it trains, as averages and snapshots do."""

    def __init__(self, hook: str) -> None:
        self.copies: list[Any] = []
        setattr(self, hook, self.copy)

    def copy(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step > 0 and not self.copies:
            self.copies = [copy.deepcopy(pl_module), pickle.loads(pickle.dumps(pl_module))]


class CopiesItself(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        if batch_idx == 1:
            vars(self)["copied"] = copy.deepcopy(self.hidden)  # no sub-module
        return loss


@pytest.mark.parametrize("first", [False, True], ids=["after the method", "before it"])
@pytest.mark.parametrize(
    "hook",
    [
        pytest.param(hook, marks=row("Trainer", "a copy of the module made by a callback"))
        for hook in (
            "on_train_batch_start",
            "on_before_backward",
            "on_before_optimizer_step",
            "on_train_batch_end",
        )
    ],
)
def test_a_copy_by_a_callback_mixes_nothing(hook: str, first: bool) -> None:
    copies, method = Copies(hook), MixUp(at="hidden", seed=1)
    module = Net(F.cross_entropy)
    fit()(module, [copies, method] if first else [method, copies])
    assert len(copies.copies) == 2
    for copied in copies.copies:
        copied.load_state_dict(module.state_dict())
        x = data()[0][0]
        assert torch.equal(copied.eval()(x), module.eval()(x))


@row("Trainer", "a copy of a layer made in the step")
def test_a_copy_in_the_step_mixes_nothing() -> None:
    module = CopiesItself(F.cross_entropy)
    fit()(module, [MixUp(at="hidden", seed=1)])
    copied, x = vars(module)["copied"], data()[0][0].flatten(1)
    copied.load_state_dict(module.hidden.state_dict())
    assert torch.equal(copied(x), module.hidden(x))


# --- searches, which are not mixed --------------------------------------------------------------------------


class Tried(Net):
    """Has what a search tries out, and remembers whether it was ever shown mixed labels."""

    def __init__(self, loss: Loss) -> None:
        super().__init__(loss)
        self.lr = 0.01
        self.batch_size = 2
        self.shown_mixed: list[bool] = []

    def train_dataloader(self) -> DataLoader[Any]:
        x, y = (torch.cat(tensors) for tensors in zip(*data(), strict=True))
        return DataLoader(TensorDataset(x, y), batch_size=self.batch_size)

    def val_dataloader(self) -> DataLoader[Any]:
        return batches()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.shown_mixed.append(isinstance(batch[1], MixedTensor))
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def by_tuner(search: Callable[[Tuner, LightningModule], Any]) -> Train:
    def train(module: Any, callbacks: list[Callback]) -> None:
        trainer = make_trainer(*callbacks, max_epochs=2)
        search(Tuner(trainer), module)
        assert not any(module.shown_mixed)
        trainer.fit(module)

    return train


def by_callback(finder: Callable[[], Callback]) -> Train:
    return lambda module, callbacks: make_trainer(*callbacks, finder(), max_epochs=2).fit(module)


LEARNING_RATE = {"min_lr": 1e-4, "early_stop_threshold": None}
BATCH_SIZE = {"max_trials": 2, "steps_per_trial": 2}
SEARCHES: dict[str, Train] = {
    "Tuner.lr_find, which is not mixed": by_tuner(
        lambda tuner, module: tuner.lr_find(module, num_training=20, **LEARNING_RATE)  # type: ignore[arg-type]
    ),
    "Tuner.scale_batch_size, which is not mixed": by_tuner(
        lambda tuner, module: tuner.scale_batch_size(module, **BATCH_SIZE)  # type: ignore[arg-type]
    ),
    "LearningRateFinder, which is not mixed": by_callback(
        lambda: of_lightning.LearningRateFinder(num_training_steps=20, **LEARNING_RATE)  # type: ignore[arg-type]
    ),
    "BatchSizeFinder, which is not mixed": by_callback(
        lambda: of_lightning.BatchSizeFinder(**BATCH_SIZE)  # type: ignore[arg-type]
    ),
}


@pytest.mark.parametrize("train", rows("Trainer", SEARCHES))
def test_a_search_is_not_mixed_and_what_follows_is(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # searches save the weights there
    searched: list[Tried] = []

    def make(loss: Loss) -> Tried:
        searched.append(Tried(loss))
        return searched[-1]

    with pytest.warns(UserWarning, match="without mixing"):
        train_like_the_formula(make, train, MixUp(seed=1))
    module = searched[0]
    assert (module.lr, module.batch_size) != (0.01, 2), "nothing was found"
    first = module.shown_mixed.index(True)
    assert first > 0 and all(module.shown_mixed[first:])


# --- compiled -----------------------------------------------------------------------------------------------


def compile_hidden(module: Any) -> Any:
    module.hidden = torch.compile(module.hidden, backend="aot_eager")
    return module


def compile_loss(module: Any) -> Any:
    module.loss = torch.compile(module.loss, backend="aot_eager")
    return module


def compile_in_place(module: Any) -> Any:
    module.compile(backend="aot_eager")
    return module


COMPILED: dict[str, Callable[[Any], Any]] = {
    "torch.compile(module)": lambda module: torch.compile(module, backend="aot_eager"),
    "module.compile()": compile_in_place,
    "a compiled sub-network": compile_hidden,
    "a compiled loss": compile_loss,
}
NOW_AND_THEN: dict[str, Any] = {"prob": 0.5, "start_epoch": 1, "seed": 4}


class Plain(Net):
    """Neither drops, which draws otherwise where it is compiled, nor logs, which takes long to compile."""

    def __init__(self, loss: Loss, dtype: torch.dtype = torch.float64) -> None:
        super().__init__(loss, dtype)
        self.drop.p = 0.0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(self(batch[0]), batch[1])


@pytest.mark.parametrize(
    ("compiled", "method", "layer"),
    [
        pytest.param(compiled, method, layer, marks=row("Trainer", name + when), id=name + when)
        for name, compiled in COMPILED.items()
        for when, layer, method in [
            (", prob < 1 and start_epoch > 0", None, MixUp(**NOW_AND_THEN)),
            (", at= a layer, prob < 1 and start_epoch > 0", "hidden", MixUp(at="hidden", **NOW_AND_THEN)),
        ]
    ],
)
def test_compiled(compiled: Callable[[Any], Any], method: MSDA, layer: str | None) -> None:
    torch._dynamo.reset()
    mixes = train_like_the_formula(
        Plain, fit(max_epochs=3, limit_val_batches=0), method, layer=layer, prepare=compiled, rtol=1e-10
    )
    assert mixes[:BATCHES] == [None] * BATCHES and None in mixes[BATCHES:]


@row("Trainer", "torch.compile(module), per_sample", per_sample=True)
def test_compiled_by_sample() -> None:
    torch._dynamo.reset()
    methods = [kind(per_sample=True) for kind in (MixUp, CutMix, FMix)]
    method = RandomMix(methods, **NOW_AND_THEN)
    train_like_the_formula(
        Plain,
        fit(max_epochs=3, limit_val_batches=0),
        method,
        prepare=COMPILED["torch.compile(module)"],
        rtol=1e-10,
    )


# --- one process and several --------------------------------------------------------------------------------


class PartlyUsed(Net):
    def __init__(self, loss: Loss) -> None:
        super().__init__(loss)
        self.unused = nn.Linear(2, 2)


DDP: dict[str, tuple[Callable[[Loss], Net], dict[str, Any]]] = {
    "DDP, find_unused_parameters": (PartlyUsed, {"find_unused_parameters": True}),
    "DDP, static_graph": (Net, {"static_graph": True}),
    "DDP, gradient_as_bucket_view": (Net, {"gradient_as_bucket_view": True}),
    "DDP, ddp_comm_hook": (Net, {"ddp_comm_hook": default_hooks.allreduce_hook}),
    "DDP, manual optimization": (Manual, {}),
}


@pytest.mark.parametrize(("make", "options"), rows("Trainer", DDP))
def test_ddp_of_one_process(
    make: Callable[[Loss], Net], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(module: LightningModule, callbacks: list[Callback]) -> None:
        try:
            fit(strategy=DDPStrategy(**options), accumulate_grad_batches=accumulated)(module, callbacks)
        finally:
            torch.distributed.destroy_process_group()

    monkeypatch.setattr(os, "environ", os.environ.copy())
    accumulated = 1 if make is Manual or "static_graph" in options else 2
    train_like_the_formula(make, train, MixUp(seed=1))


class Synchronised(Plain):
    """Logs the mean over all processes."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("mean", loss, sync_dist=True)
        return loss


class WriteSteps(Callback):
    """Saves what each process was given, how it was mixed, and what came of it."""

    def __init__(self, method: MSDA, folder: Path) -> None:
        self.method = method
        self.folder = folder
        self.steps: list[dict[str, Any]] = []

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.weights = {name: value.clone() for name, value in pl_module.state_dict().items()}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        mix = self.method.last_mix
        assert mix is not None
        gradients = {name: p.grad.clone() for name, p in pl_module.named_parameters() if p.grad is not None}
        step = {"batch": batch, "lam": mix.lam, "partner": mix.partner, "mask": mix.mask, "dims": mix.dims}
        values = {"loss": outputs["loss"], "logged": trainer.callback_metrics["mean"].clone()}
        self.steps.append({**step, **values, "weights": self.weights, "gradients": gradients})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.save(self.steps, self.folder / f"{trainer.global_rank}.pt")


def train_by_ddp(folder: Path) -> None:
    """Train on two processes, of which Lightning starts the second one by the same command."""
    torch.manual_seed(0)
    method = CutMix(seed=1)
    x, y = (torch.cat(tensors) for tensors in zip(*data(), strict=True))
    loader = DataLoader(TensorDataset(x, y), batch_size=N)
    module = Synchronised(F.cross_entropy)
    trainer = make_trainer(method, WriteSteps(method, folder), strategy="ddp", devices=2, max_epochs=2)
    trainer.fit(module, loader)


@row("Trainer", "ddp")
def test_two_processes_train_on_the_joint_formula(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.contract.test_trainer", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[2])
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1)]
    assert len(ranks[0]) == 4
    for steps in zip(*ranks, strict=True):
        assert not torch.equal(steps[0]["batch"][0], steps[1]["batch"][0])
        gradients: list[dict[str, Any]] = []
        for step in steps:
            (x, y), twin = step["batch"], Plain(mixtures_cross_entropy)
            twin.load_state_dict(step["weights"])
            other = torch.where(step["mask"], x, x[step["partner"]])
            loss: Any = twin.loss(twin(other), (y, y[step["partner"]], step["lam"]))
            loss.backward()
            torch.testing.assert_close(step["loss"], loss.detach(), rtol=1e-10, atol=0)
            gradients.append({name: p.grad for name, p in twin.named_parameters()})
        mean = (steps[0]["loss"] + steps[1]["loss"]) / 2
        for step in steps:
            torch.testing.assert_close(step["logged"], mean, rtol=1e-10, atol=0)
        for name, gradient in steps[0]["gradients"].items():
            wanted = (gradients[0][name] + gradients[1][name]) / 2
            torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-14)
            torch.testing.assert_close(steps[1]["gradients"][name], gradient, rtol=0, atol=0)
    lams = [[float(step["lam"][0]) for step in steps] for steps in ranks]
    assert lams[0] != lams[1] and any(0 < lam < 1 for lam in lams[0] + lams[1])


@row("Trainer", "FSDP on a CPU", refused="by Lightning")
def test_fsdp_on_a_cpu_is_refused_by_lightning() -> None:
    with pytest.raises(Exception, match="`fsdp` requires a GPU accelerator"):
        make_trainer(MixUp(), strategy="fsdp")


if __name__ == "__main__":
    train_by_ddp(Path(sys.argv[1]))
