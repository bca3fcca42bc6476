"""What is left behind where training ends otherwise than it should: nothing.

Beside each training that fails stands a control: the same module, which fails in the same place of the same
training without a method. Afterwards all that the module consists of has the form of the control's, no label
is mixed any more, torch's functions are torch's own, and three further steps without a method end with the
weights of a module that never had one, bit for bit.
"""

from __future__ import annotations

import copy
import gc
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_msda import MSDA, CutMix, MixedLossError, MixedTensor, MixUp, ledger
from lightning_msda.mixed_tensor import release
from tests.contract.oracle import row
from tests.training import make_trainer

N, K, BATCHES = 6, 5, 4
THIRD = 2


class Net(LightningModule):
    """Keeps what it sees, and is told where it stands by whoever wants it to fail there."""

    labels: Tensor
    losses: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(3 * 4 * 4, 8, dtype=torch.float64)
        self.norm = nn.BatchNorm1d(8, dtype=torch.float64)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(8, K, dtype=torch.float64)
        self.criterion = nn.CrossEntropyLoss()
        self.register_buffer("labels", torch.zeros(N, dtype=torch.int64))
        self.register_buffer("losses", torch.zeros(BATCHES, dtype=torch.float64))
        self.kept: list[Tensor] = []
        self.fault: Callable[[str], None] | None = None

    def reach(self, where: str) -> None:
        if self.fault is not None and self.trainer.global_step >= THIRD:
            self.fault(where)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        self.labels = y
        self.reach("before the loss")
        scores = self.head(self.drop(torch.tanh(self.norm(self.hidden(x.flatten(1))))))
        loss = self.criterion(scores, y)
        self.kept += [y, scores.argmax(1) == y, loss.detach()]
        self.losses[batch_idx] = loss.detach()
        self.log("loss", loss)
        self.reach("after the loss")
        return loss

    def backward(self, loss: Any, *args: Any, **kwargs: Any) -> None:
        loss.register_hook(lambda gradient: self.reach("inside of autograd"))
        super().backward(loss, *args, **kwargs)
        self.reach("backward")

    def on_before_backward(self, loss: Tensor) -> None:
        self.reach("on_before_backward")

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.reach("optimizer_step")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.reach("on_train_batch_start")

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.reach("on_train_batch_end")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.reach("validation_step")

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Batches:
    """A loader, which is told where it stands too."""

    def __init__(self, module: Net | None = None) -> None:
        self.module = module

    def __len__(self) -> int:
        return BATCHES

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        draws = torch.Generator().manual_seed(0)
        for i in range(BATCHES):
            x = torch.rand(N, 3, 4, 4, dtype=torch.float64, generator=draws)
            if i == THIRD and self.module is not None and self.module.fault is not None:
                x *= self.module.fault("the loader") or 1.0
            yield x, torch.randint(0, K, (N,), generator=draws)


class Fault(NamedTuple):
    """Where training fails, by what, what then comes out of the Trainer, and what the Trainer is given."""

    where: str
    fails: Callable[[Net], Any]
    comes_out: type[BaseException] | None
    given: Callable[[Path], dict[str, Any]] = lambda folder: {}


METHODS: dict[str, Callable[..., MSDA]] = {
    "at the input": MixUp,
    "at a layer": partial(CutMix, at="hidden", dims=[1], criterion="criterion"),
}


def assert_nothing_is_left(method: MSDA, fit: Callable[[Net, list[Callback]], Trainer]) -> Net:
    """Train a module with a method, and the control without; compare what is left, and return the module.

    Args:
        method: The method.
        fit: Trains a module with callbacks until it fails, and catches that.
    """
    untouched = ways_of_torch()
    gc.freeze()  # so that what is searched was made from now on
    try:
        module, control = Net(), Net()
        trainer, plain = fit(module, [method]), fit(control, [])
        assert ways_of_torch() == untouched
        assert not ledger.living()
        assert not [thing for thing in gc.get_objects() if type(thing) is MixedTensor]
    finally:
        gc.unfreeze()
    assert vars(trainer.strategy).keys() == vars(plain.strategy).keys()
    module.fault = control.fault = None
    assert_same_form(module, control)

    never, copied, pickled = Net(), copy.deepcopy(module), pickle.loads(pickle.dumps(module))
    never.load_state_dict(module.state_dict())
    never.train(module.training)
    for each in (copied, pickled):
        assert_same_form(each, copy.deepcopy(control))
    for each in (module, never, copied, pickled):
        torch.manual_seed(1)
        make_trainer(limit_train_batches=3).fit(each, Batches())
    for name, value in never.state_dict().items():
        assert all(same_bits(each.state_dict()[name], value) for each in (module, copied, pickled)), name
    return module


def assert_same_form(one: Any, other: Any) -> None:
    """Check that two things consist of the same, all but floating-point numbers."""
    forms, others = dict(form(one)), dict(form(other))
    different = {name for name in forms.keys() | others.keys() if forms.get(name) != others.get(name)}
    assert not different, {name: (forms.get(name), others.get(name)) for name in different}


def form(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what something consists of: names, classes, sizes, whole numbers and words."""
    yield f"{name}, class", type(value)
    if isinstance(value, Tensor):
        whole = value.tolist() if value.dtype == torch.int64 else None
        yield name, (value.dtype, value.shape, value.requires_grad, whole)
    elif isinstance(value, nn.Module):
        yield from form(vars(value), name)
    elif isinstance(value, dict):
        for i, (key, item) in enumerate(value.items()):  # hooks have numbers for keys, which go on counting
            yield from form(item, f"{name}.{key if isinstance(key, str) else i}")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from form(item, f"{name}.{i}")
    elif isinstance(value, (bool, int, str, set)):
        yield name, value


def ways_of_torch() -> list[Any]:
    """Return what a step may find wrapped, and what it may find set otherwise."""
    owners: list[tuple[Any, str]] = [
        (torch, "tensor asarray full full_like as_tensor"),
        (torch.Tensor, "new_full new_tensor __torch_function__"),
        (torch.autograd.Function, "apply"),
        (torch.distributed, "all_reduce broadcast all_gather"),
        (Metric, "forward"),
        (nn.CrossEntropyLoss, "forward"),
    ]
    functions = [vars(owner).get(name) for owner, names in owners for name in names.split()]
    return [*functions, torch._dynamo.config.skip_nnmodule_hook_guards]


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """Hide nothing from the next test: neither signals nor what this one has left behind."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    with torch._dynamo.config.patch(skip_nnmodule_hook_guards=True):
        yield
    for number, handler in before.items():
        signal.signal(number, handler)
    release()


def raises(kind: type[BaseException]) -> Callable[[Net], Any]:
    def fail(module: Net) -> None:
        raise kind("as it was told to")

    return fail


def sends(number: signal.Signals) -> Callable[[Net], Any]:
    return lambda module: os.kill(os.getpid(), number)


def errors(*places: str, kind: type[BaseException] = ZeroDivisionError) -> list[Fault]:
    return [Fault(where, raises(kind), kind) for where in places]


def saving(folder: Path) -> dict[str, Any]:
    save = ModelCheckpoint(folder, "saved", save_on_exception=True)
    return {"callbacks": [save], "enable_checkpointing": True}


def requeued(folder: Path) -> dict[str, Any]:
    """Let SIGTERM save in the midst of the step, as a preempted job does."""
    return {"plugins": [SLURMEnvironment(requeue_signal=signal.SIGTERM)], "default_root_dir": folder}


FAULTS: dict[str, list[Fault]] = {
    "an exception in the loader": errors("the loader"),
    "an exception in the step": errors("before the loss", "after the loss"),
    "an exception in backward": errors("inside of autograd", "backward"),
    "an exception in a hook of the module": errors(
        "on_train_batch_start",
        "on_before_backward",
        "optimizer_step",
        "on_train_batch_end",
        "validation_step",
    ),
    "out of memory": errors("before the loss", "after the loss", "backward", kind=torch.OutOfMemoryError),
    "SIGINT": [
        Fault(where, sends(signal.SIGINT), SystemExit)
        for where in ("before the loss", "after the loss", "inside of autograd", "on_train_batch_end")
    ],
    "SIGTERM, with a checkpoint on exceptions": [
        Fault("after the loss", sends(signal.SIGTERM), SystemExit, saving)
    ],
    "SIGTERM, with a checkpoint in the midst of the step": [
        Fault(where, sends(signal.SIGTERM), SystemExit, requeued)
        for where in ("before the loss", "after the loss", "inside of autograd", "on_train_batch_end")
    ],
    "an exception, with a checkpoint": [
        Fault("after the loss", raises(ZeroDivisionError), ZeroDivisionError, saving)
    ],
    "NaN": [Fault("the loader", lambda module: torch.nan, None)],
    "NaN, detect_anomaly": [
        Fault("the loader", lambda module: torch.nan, RuntimeError, lambda folder: {"detect_anomaly": True})
    ],
    "NaN, EarlyStopping(check_finite=True)": [
        Fault(
            "the loader",
            lambda module: torch.nan,
            None,
            lambda folder: {"callbacks": [EarlyStopping("loss", check_on_train_epoch_end=True)]},
        )
    ],
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, marks=row("Faults", name), id=f"{name}: {fault.where}")
        for name, faults in FAULTS.items()
        for fault in faults
    ],
)
def test_a_fault(fault: Fault, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in "SLURM_JOB_ID SLURM_NTASKS SLURM_PROCID SLURM_LOCALID SLURM_NODEID".split():
        monkeypatch.setenv(variable, "1" if variable == "SLURM_NTASKS" else "0")

    def fit(module: Net, methods: list[Callback]) -> Trainer:
        module.fault = lambda where: fault.fails(module) if where == fault.where else None
        folder = tmp_path / str(len(methods))
        given = fault.given(folder)
        others = given.pop("callbacks", [])
        trainer = make_trainer(*methods, *others, max_epochs=2, **given)
        catches = pytest.raises(fault.comes_out) if fault.comes_out is not None else nullcontext()
        with catches:
            trainer.fit(module, Batches(module), Batches())
        return trainer

    module = assert_nothing_is_left(METHODS[method](seed=1), fit)
    assert len(module.kept) > 0
    if fault.given in (saving, requeued):
        (saved,), (wanted,) = ((tmp_path / name).rglob("*.ckpt") for name in "10")
        assert_saved_plain(saved, wanted)


def assert_saved_plain(saved: Path, wanted: Path) -> None:
    """Check that a checkpoint holds what is saved without a method, and resumes without one."""
    states = [torch.load(path, weights_only=True)["state_dict"] for path in (saved, wanted)]
    assert_same_form(*states)
    make_trainer(max_epochs=3).fit(Net(), Batches(), ckpt_path=saved)


# --- other callbacks ----------------------------------------------------------------------------------------

EARLY = "setup on_fit_start on_sanity_check_start on_train_start".split()
WITHIN_A_BATCH = (
    "on_train_batch_start on_before_zero_grad on_before_backward on_after_backward on_before_optimizer_step"
    " on_train_batch_end"
).split()
OTHERS = (
    "on_train_epoch_start on_validation_batch_start on_train_epoch_end on_save_checkpoint teardown".split()
)


class FailsIn(Callback):
    """Fails in a hook, and if wanted again when that is announced, so that no later callback hears of it."""

    def __init__(self, hook: str, again: bool) -> None:
        self.again = again
        self.early = hook in EARLY
        setattr(self, hook, self.fail)

    def fail(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        if self.early or trainer.global_step >= THIRD:
            raise ZeroDivisionError

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self.again:
            raise ZeroDivisionError from exception


@pytest.mark.parametrize("first", [False, True], ids=["after the method", "before it"])
@pytest.mark.parametrize(
    ("hook", "again"),
    [
        *(
            pytest.param(hook, False, marks=row("Faults", "an exception in another callback"))
            for hook in EARLY + WITHIN_A_BATCH + OTHERS
        ),
        *(
            pytest.param(
                hook, True, marks=row("Faults", "another callback that fails when told of a failure")
            )
            for hook in WITHIN_A_BATCH
        ),
    ],
)
def test_another_callback_fails(hook: str, again: bool, first: bool, tmp_path: Path) -> None:
    def fit(module: Net, methods: list[Callback]) -> Trainer:
        fails, save = FailsIn(hook, again), ModelCheckpoint(tmp_path / str(len(methods)))
        callbacks = [fails, *methods] if first else [*methods, fails]
        trainer = make_trainer(*callbacks, save, enable_checkpointing=True, max_epochs=2)
        with pytest.raises(ZeroDivisionError):
            trainer.fit(module, Batches(), Batches())
        return trainer

    assert_nothing_is_left(METHODS["at a layer"](seed=1), fit)


# --- what we refuse ourselves -------------------------------------------------------------------------------


@row("Faults", "a refusal of ours")
@pytest.mark.parametrize("method", METHODS)
def test_a_refusal_of_ours(method: str) -> None:
    def fit(module: Net, methods: list[Callback]) -> Trainer:
        def leak(where: str) -> None:
            if methods and where == "before the loss":
                module.labels = torch.tensor(module.labels.tolist())
            if not methods and where == "after the loss":
                raise MixedLossError("where a method refuses")

        module.fault = leak
        trainer = make_trainer(*methods)
        with pytest.raises(MixedLossError):
            trainer.fit(module, Batches(module), Batches())
        return trainer

    assert_nothing_is_left(METHODS[method](seed=1), fit)


class LeavesAnAttribute(MixUp):
    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *args)
        pl_module.mixed_by = "me"


class LeavesLabelsMixed(MixUp):
    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *args)
        labels = torch.zeros(2, dtype=torch.long)
        pl_module.left = MixedTensor((labels, labels + 1), torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize(
    ("method", "message"), [(LeavesAnAttribute, "mixed_by"), (LeavesLabelsMixed, "living|MixedTensor")]
)
def test_what_is_left_is_noticed(method: type[MSDA], message: str) -> None:
    def fit(module: Net, methods: list[Callback]) -> Trainer:
        trainer = make_trainer(*methods)
        trainer.fit(module, Batches())
        return trainer

    with pytest.raises(AssertionError, match=message):
        assert_nothing_is_left(method(seed=1), fit)
