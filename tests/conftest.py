"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from lightning.pytorch.trainer.connectors import callback_connector

from tests.contract.page import PAGE, written


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-contract", action="store_true", help="write docs/contract.md anew")


def pytest_collection_finish(session: pytest.Session) -> None:
    if session.config.getoption("--write-contract"):
        PAGE.write_text(written(session.items))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _fresh_seed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Begin with a fixed seed, and leave no global seed of Lightning's behind."""
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    # A Trainer looks for callbacks in all that is installed, which takes longer than most trainings here.
    monkeypatch.setattr(f"{callback_connector.__name__}._load_external_callbacks", lambda group: [])
    torch.manual_seed(0)
    torch.set_num_threads(1)  # tensors here are small, and several tests run at once
    yield
    os.environ.pop("PL_GLOBAL_SEED", None)
