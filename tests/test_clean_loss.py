"""A loss of the clean batch beside the mixture's: one backward pass, and nobody hears of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from lightning_msda import Mixture, MixUp
from tests.helpers import seeded
from tests.tools import read_csv
from tests.tools import workplace as workplace
from tests.training import in_a_fresh_process, loader, make_trainer

N, FEATURES, CLASSES, BATCH, CLEAN = 24, 6, 4, 4, 0.7
Loss = Callable[[Tensor, Tensor], Tensor]


class Clean(MixUp):
    """Interpolates, and has the clean loss beside it."""

    clean_lam = CLEAN


def samples() -> tuple[Tensor, Tensor]:
    draws = seeded(3)
    x = torch.randn(N, FEATURES, dtype=torch.float64, generator=draws)
    return x, torch.randint(CLASSES, (N,), generator=draws)


def network() -> nn.Sequential:
    torch.manual_seed(1)
    layers = nn.Linear(FEATURES, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, CLASSES)
    return nn.Sequential(*layers).double()


class Module(LightningModule):
    def __init__(self, loss: Loss = F.cross_entropy, as_dict: bool = False) -> None:
        super().__init__()
        self.network, self.loss, self.as_dict = network(), loss, as_dict
        self.accuracy = MulticlassAccuracy(CLASSES, average="micro")
        self.steps: list[Tensor] = []
        self.count = 0

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
        x, y = batch
        scores = self.network(x)
        loss = self.loss(scores, y)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        self.accuracy(scores, y)
        self.steps.append(y)
        self.count += 1
        return {"loss": loss, "scores": scores} if self.as_dict else loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.3)


class Recorder(Callback):
    def __init__(self, method: MixUp) -> None:
        self.method = method
        self.batches: list[tuple[Any, Mixture]] = []
        self.losses: list[Tensor] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        assert self.method.last_mix is not None
        self.batches.append((batch, self.method.last_mix))
        self.losses.append(outputs["loss"])


def by_the_formula(
    ranks: list[list[Any]], loss: Loss = F.cross_entropy, accumulate: int = 1
) -> nn.Sequential:
    """Train in a plain loop on the mixture's loss and ``CLEAN`` times the clean one, of each process."""
    trained = network()
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.3)
    for i, batches in enumerate(zip(*ranks, strict=True), 1):
        losses = []
        for (x, y), mix in batches:
            clean = loss(trained(x), y)  # batch norm sees it first
            scores = trained(mix.inputs)
            lam = mix.lam[0]
            losses.append(lam * loss(scores, y) + (1 - lam) * loss(scores, y[mix.partner]) + CLEAN * clean)
        torch.autograd.backward(torch.stack(losses).mean() / accumulate)
        if i % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
    return trained


def assert_close(found: nn.Module, wanted: nn.Module) -> None:
    torch.testing.assert_close(found.state_dict(), wanted.state_dict(), rtol=1e-10, atol=1e-12)


LOSSES: dict[str, Loss] = {
    "cross_entropy": F.cross_entropy,
    "one that saves its output": lambda z, y: F.cross_entropy(z, y).exp(),
    "one that is edited in place": lambda z, y: F.cross_entropy(z, y).mul_(2).add_(1),
    "a square root": lambda z, y: F.cross_entropy(z, y).sqrt(),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("as_dict", [False, True])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_step_trains_on_both_losses(name: str, as_dict: bool, accumulate: int) -> None:
    module, method = Module(LOSSES[name], as_dict), Clean(seed=5)
    recorder = Recorder(method)
    trainer = make_trainer(method, recorder, accumulate_grad_batches=accumulate)
    trainer.fit(module, loader(*samples(), batch_size=BATCH))
    assert len(recorder.batches) == N // BATCH
    assert_close(module.network, by_the_formula([recorder.batches], LOSSES[name], accumulate))


def test_a_step_is_logged_counted_and_kept_once() -> None:
    module, method = Module(), Clean(seed=5)
    recorder = Recorder(method)
    trainer = make_trainer(method, recorder, logger=CSVLogger(".", name="runs"), log_every_n_steps=1)
    trainer.fit(module, loader(*samples(), batch_size=BATCH))
    counts: Any = module.accuracy
    assert int(counts.tp.sum() + counts.fn.sum()) == N
    assert len(module.steps) == module.count == N // BATCH
    rows = [row for row in read_csv(Path(str(trainer.log_dir)) / "metrics.csv") if row["train/loss"]]
    twin = network()
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.3)
    mixed = []
    for ((x, y), mix), total in zip(recorder.batches, recorder.losses, strict=True):
        clean, scores, lam = F.cross_entropy(twin(x), y), twin(mix.inputs), mix.lam[0]
        mixed.append(lam * F.cross_entropy(scores, y) + (1 - lam) * F.cross_entropy(scores, y[mix.partner]))
        torch.testing.assert_close(total, (mixed[-1] + CLEAN * clean).detach())
        optimizer.zero_grad()
        torch.autograd.backward(mixed[-1] + CLEAN * clean)
        optimizer.step()
    assert [float(row["train/loss"]) for row in rows] == pytest.approx(
        [float(torch.stack(mixed).mean().detach())]
    )
    assert not {"log", "log_dict"} & vars(module).keys()


def test_a_step_that_skips_its_batch_skips_the_clean_loss_too() -> None:
    class Skips(Module):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            super().training_step(batch, batch_idx)

    module = Skips()
    before = [parameter.clone() for parameter in module.parameters()]
    make_trainer(Clean()).fit(module, loader(*samples(), batch_size=BATCH))
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def test_under_manual_optimization_there_is_no_loss_to_add_to() -> None:
    class Manual(Module):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

    with pytest.raises(ValueError, match=r"clean_lam=0\.7 adds a loss.*manual optimization"):
        make_trainer(Clean()).fit(Manual(), loader(*samples(), batch_size=BATCH))


def test_at_a_hidden_layer_nothing_is_clean() -> None:
    with pytest.raises(ValueError, match=r"clean_lam=0\.7 adds the loss of the batch.*at='network\.0'"):
        make_trainer(Clean(at="network.0")).fit(Module(), loader(*samples(), batch_size=BATCH))


def on_two_processes(folder: Path, options: str) -> None:
    module, method = Module(), Clean(seed=5)
    recorder = Recorder(method)

    class Save(Callback):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            kept = recorder.batches, dict(module.network.named_parameters())
            torch.save(kept, folder / f"{trainer.global_rank}.pt")

    trainer = make_trainer(method, recorder, Save(), strategy=options, devices=2)
    trainer.fit(module, loader(*samples(), batch_size=BATCH))


@pytest.mark.parametrize("strategy", ["ddp_notebook", "ddp_notebook_find_unused_parameters_true"])
def test_two_processes_average_both_losses(strategy: str, tmp_path: Path) -> None:
    in_a_fresh_process(on_two_processes, tmp_path, strategy)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1))
    torch.testing.assert_close(first[1], second[1], rtol=0, atol=0)
    wanted = dict(by_the_formula([first[0], second[0]]).named_parameters())
    torch.testing.assert_close(first[1], wanted, rtol=1e-10, atol=1e-12)
