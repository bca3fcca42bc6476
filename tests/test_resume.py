"""A run resumed in the middle of an epoch is the uninterrupted run, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor

from lightning_msda import MSDA, CutMix, FMix, MixUp, RandomMix
from tests.training import Classifier, basis, in_a_fresh_process, make_trainer

N = 6


class StatefulLoader:
    """Batches in an order of their own, continued where a checkpoint left them."""

    def __init__(self, batches: int) -> None:
        self.batches = batches
        self.position = 0

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[Tensor]]:
        self.position %= self.batches
        while self.position < self.batches:
            self.position += 1
            y = (torch.arange(N) + self.position) % N
            yield [basis(N, 4, 5)[y], y]

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class WriteMixes(Callback):
    """Writes what every batch became."""

    def __init__(self, method: MSDA, folder: Path, run: str) -> None:
        self.method = method
        self.path = folder / run

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        mix = self.method.last_mix
        lam = [] if mix is None else [*mix.lam.tolist(), *mix.partner.tolist(), float(mix.inputs.sum())]
        step = {"step": trainer.global_step, "method": self.method.last_method, "mix": lam}
        with Path(f"{self.path}-{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(step) + "\n")


def run(folder: Path, name: str, seed: int | None, *, resume: bool = False, devices: int = 1) -> list[Tensor]:
    """Train for two epochs of five batches, or resume after the seventh batch."""
    torch.manual_seed(0)
    method = RandomMix([MixUp(), CutMix(per_sample=True), FMix()], prob=0.8, seed=seed)
    module = Classifier(N * 4 * 5, N)
    save = ModelCheckpoint(folder, "{epoch}-{step}", every_n_train_steps=7, save_top_k=-1)
    parallel = {"strategy": "ddp_notebook", "devices": 2} if devices == 2 else {}
    trainer = make_trainer(
        method, WriteMixes(method, folder, name), save, max_epochs=2, enable_checkpointing=True, **parallel
    )
    path = folder / "epoch=1-step=7.ckpt"
    trainer.fit(module, StatefulLoader(5), ckpt_path=path if resume else None)
    return [parameter.detach() for parameter in module.parameters()]


def check_resumed(folder: Path, seed: int | None, devices: int) -> None:
    """Check that a resumed run mixes, and ends, as the uninterrupted one."""
    whole = run(folder, "whole", seed, devices=devices)
    resumed = run(folder, "resumed", seed, resume=True, devices=devices)
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
    for rank in range(devices):
        mixes = (folder / f"whole-{rank}.jsonl").read_text().splitlines()
        assert len(mixes) == 10
        assert (folder / f"resumed-{rank}.jsonl").read_text().splitlines() == mixes[7:]


@pytest.mark.parametrize("seed", [None, 3])
def test_a_resumed_run_mixes_and_ends_as_the_uninterrupted_one(seed: int | None, tmp_path: Path) -> None:
    check_resumed(tmp_path, seed, 1)


@pytest.mark.parametrize("seed", [None, 3])
def test_so_it_does_on_two_processes(seed: int | None, tmp_path: Path) -> None:
    in_a_fresh_process(check_resumed, tmp_path, seed, 2)
