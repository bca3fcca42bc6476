"""Two processes mix differently, choose alike, and train on the joint formula."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback

from lightning_msda import MSDA, CutMix, FMix, MixUp, RandomMix, ResizeMix
from tests.contract.oracle import row
from tests.training import Classifier, basis, in_a_fresh_process, loader, make_trainer

N = 6


class WriteSteps(Callback):
    """Saves what each process saw, drew and computed."""

    def __init__(self, method: MSDA, folder: Path) -> None:
        self.method = method
        self.folder = folder
        self.names: list[str | None] = []
        self.lams: list[Any] = []

    def on_train_batch_end(self, *args: Any) -> None:
        self.names.append(self.method.last_method)
        self.lams.append(None if self.method.last_mix is None else self.method.last_mix.lam)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        steps = [tuple(seen) for seen in pl_module.seen]
        seed = self.method.state_dict()["seed"]
        saved = {"steps": steps, "names": self.names, "lams": self.lams, "seed": seed}
        torch.save(saved, self.folder / f"{trainer.global_rank}.pt")


def train(folder: Path, strategy: str, per_sample: bool) -> None:
    """Train for eight batches on two processes."""
    kinds: list[Any] = [MixUp, CutMix, ResizeMix, FMix]
    method = RandomMix([kind(per_sample=per_sample) for kind in kinds], prob=0.8)
    module = Classifier(N * 8 * 9, N)
    data = loader(basis(N, 8, 9).repeat(16, 1, 1, 1), torch.arange(N).repeat(16), batch_size=N)
    make_trainer(method, WriteSteps(method, folder), strategy=strategy, devices=2).fit(module, data)


@pytest.mark.parametrize(
    ("strategy", "per_sample"),
    [
        pytest.param("ddp_spawn", False, marks=row("Trainer", "ddp_spawn")),
        pytest.param("ddp_notebook", True, marks=row("Trainer", "ddp_notebook", per_sample=True)),
    ],
)
def test_two_processes_draw_differently_choose_alike_and_train_on_the_joint_batch(
    strategy: str, per_sample: bool, tmp_path: Path
) -> None:
    in_a_fresh_process(train, tmp_path, strategy, per_sample)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1))
    assert len(first["steps"]) == 8
    assert first["seed"] == second["seed"]  # drawn once, with no seed given
    assert first["names"] == second["names"] and len(set(first["names"])) > 2
    pairs = [(a, b) for a, b in zip(first["lams"], second["lams"], strict=True) if a is not None]
    assert not all(torch.equal(a, b) for a, b in pairs)  # a box may agree by chance
    for steps in zip(first["steps"], second["steps"], strict=True):
        weight = steps[0][3].clone().requires_grad_()
        losses = []
        for inputs, *_ in steps:
            scores = inputs.flatten(1) @ weight.t()
            shares = inputs.flatten(2).mean(2)  # of each class, by the pixels
            each = [F.cross_entropy(scores, torch.full((N,), y), reduction="none") for y in range(N)]
            losses.append((shares * torch.stack(each, 1)).sum(1))
        (gradient,) = torch.autograd.grad(torch.cat(losses).mean(), weight)
        for step, own in zip(steps, losses, strict=True):
            torch.testing.assert_close(step[2], own.mean().detach(), rtol=1e-5, atol=0)
            torch.testing.assert_close(step[4], gradient, rtol=1e-5, atol=1e-7)
