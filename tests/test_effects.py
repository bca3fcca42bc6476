"""Layers that embedded labels go through draw once and keep the statistics of the own labels."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_msda import MixedTensor
from lightning_msda.mixed_tensor import settle
from tests.tools import released

__all__ = ["released"]

N, K, E = 8, 4, 6
OWN, PARTNER = torch.arange(N) % K, (torch.arange(N) * 3 + 1) % K
LAM = 0.3

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "dropout": lambda: nn.Dropout(0.5),
    "alpha dropout": lambda: nn.AlphaDropout(0.5),
    "batch norm": lambda: nn.BatchNorm1d(E, dtype=torch.float64),
    "batch norm without momentum": lambda: nn.BatchNorm1d(E, momentum=None, dtype=torch.float64),
    "instance norm": lambda: nn.InstanceNorm1d(N, track_running_stats=True, dtype=torch.float64),
    "randomised relu": lambda: nn.RReLU(),
    "both": lambda: nn.Sequential(nn.Dropout(0.2), nn.BatchNorm1d(E, dtype=torch.float64), nn.Dropout(0.2)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_runs_as_once(name: str) -> None:
    embed, layer, x = nn.Embedding(K, E, dtype=torch.float64), LAYERS[name](), torch.rand(N, E).double()

    def loss(labels: Tensor, layer: nn.Module) -> Tensor:
        torch.manual_seed(3)
        value: Tensor = (layer(x + embed(labels)) ** 2 * x).mean()
        return value

    own, partner = copy.deepcopy(layer), copy.deepcopy(layer)
    wanted = LAM * loss(OWN, own) + (1 - LAM) * loss(PARTNER, partner)
    after = torch.rand(3)
    mixed = MixedTensor((OWN.clone(), PARTNER.clone()), torch.tensor([LAM, 1 - LAM], dtype=torch.float64))
    torch.testing.assert_close(settle(loss(mixed, layer)), wanted)
    assert torch.equal(torch.rand(3), after)
    for kept, expected in zip(layer.buffers(), own.buffers(), strict=True):
        torch.testing.assert_close(kept, expected)
