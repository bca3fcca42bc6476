"""What the README shows runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch import nn

from lightning_msda import MSDA, CutMix, RandomMix
from lightning_msda.cli import main
from lightning_msda.cli.recipes import recipe_names
from tests.tools import workplace as workplace
from tests.training import Classifier, basis, loader

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


class Module(Classifier):
    def __init__(self) -> None:
        super().__init__(8 * 6 * 7, 8)


class Data(LightningDataModule):
    def train_dataloader(self) -> Any:
        return loader(basis(8, 6, 7), torch.arange(8), batch_size=4)


def test_the_quickstart_trains_an_unmodified_module(monkeypatch: pytest.MonkeyPatch, workplace: Path) -> None:
    quickstart = BLOCKS[0]
    assert len([line for line in quickstart.splitlines() if line]) <= 6
    monkeypatch.setenv("PL_TRAINER_FAST_DEV_RUN", "1")
    names: dict[str, Any] = {"YourModule": Module, "YourDataModule": Data}
    exec(quickstart, names)
    assert isinstance(names["mixing"], RandomMix)
    assert names["trainer"].global_step == 1


def test_the_plain_loop_computes_the_mixtures_loss() -> None:
    torch.manual_seed(0)
    images, labels = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
    names: dict[str, Any] = {
        "images": images,
        "labels": labels,
        "model": nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 3)),
    }
    exec(BLOCKS[1], names)
    mix, logits = names["mix"], names["model"](names["mix"].inputs)
    own, partner = (nn.functional.cross_entropy(logits, y) for y in (labels, labels[mix.partner]))
    torch.testing.assert_close(names["loss"], mix.lam[0] * own + (1 - mix.lam[0]) * partner)


def test_the_recipes_that_it_names_are_bundled() -> None:
    named = re.findall(r"--config (\S+)", README)
    assert named and set(named) <= set(recipe_names())


def test_the_arguments_in_its_table_are_the_common_ones() -> None:
    table = README.partition("| argument |")[2].partition("\n\n")[0]
    for example in re.findall(r"`(\w+=[^`]+)`", table):
        name, _, value = example.partition("=")
        method = CutMix(**{name: eval(value)})
        assert isinstance(method, MSDA) and getattr(method, name) == eval(value)


@pytest.mark.parametrize("verb", ["recipes", "preview"])
def test_its_commands_run(verb: str, workplace: Path) -> None:
    command = re.search(rf"^lightning-msda ({verb}.*)$", README, re.MULTILINE)
    assert command is not None
    main(command[1].split())
