"""Layers that embedded labels go through draw once and keep the statistics of the own labels."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_msda import MixedTensor
from lightning_msda.boundaries import watched
from lightning_msda.mixed_tensor import settle
from tests.tools import released

__all__ = ["released"]

N, K, E = 8, 4, 6
OWN, PARTNER = torch.arange(N) % K, (torch.arange(N) * 3 + 1) % K
LAM = 0.3


class First(nn.Module):
    """Returns the first of what a layer returns."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Any:
        return self.layer(x)[0]


class Noise(nn.Module):
    """Multiplies by noise of a rate that the labels set."""

    def __init__(self, draw: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        return x * self.draw(x.detach().exp())


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "dropout": lambda: nn.Dropout(0.5),
    "alpha dropout": lambda: nn.AlphaDropout(0.5),
    "batch norm": lambda: nn.BatchNorm1d(E, dtype=torch.float64),
    "batch norm without momentum": lambda: nn.BatchNorm1d(E, momentum=None, dtype=torch.float64),
    "instance norm": lambda: nn.InstanceNorm1d(N, track_running_stats=True, dtype=torch.float64),
    "randomised relu": lambda: nn.RReLU(),
    "recurrent dropout": lambda: First(nn.LSTM(E, E, 2, dropout=0.5, dtype=torch.float64)),
    "exponential noise": lambda: Noise(lambda rate: torch.distributions.Exponential(rate).sample()),
    "gamma noise": lambda: Noise(lambda rate: torch.distributions.Gamma(rate, rate).sample()),
    "binomial noise": lambda: Noise(lambda rate: torch.binomial(torch.full_like(rate, 9), rate / (1 + rate))),
    "noise of its own generator": lambda: Noise(
        lambda rate: torch.bernoulli(rate / (1 + rate), generator=torch.Generator().manual_seed(1))
    ),
    "both": lambda: nn.Sequential(nn.Dropout(0.2), nn.BatchNorm1d(E, dtype=torch.float64), nn.Dropout(0.2)),
}


@pytest.mark.parametrize(
    ("name", "compiled"),
    # A compiled graph calls torch._standard_gamma without asking its argument.
    [
        (name, compiled)
        for name in LAYERS
        for compiled in (False, True)
        if (name, compiled) != ("gamma noise", True)
    ],
)
def test_a_layer_runs_as_once(name: str, compiled: bool) -> None:
    embed, layer, x = nn.Embedding(K, E, dtype=torch.float64), LAYERS[name](), torch.rand(N, E).double()

    def loss(labels: Tensor, layer: nn.Module) -> Tensor:
        torch.manual_seed(3)
        value: Tensor = (layer(x + embed(labels)) ** 2 * x).mean()
        return value

    own, partner = copy.deepcopy(layer), copy.deepcopy(layer)
    wanted = LAM * loss(OWN, own) + (1 - LAM) * loss(PARTNER, partner)
    after = torch.rand(3)
    mixed = MixedTensor((OWN.clone(), PARTNER.clone()), torch.tensor([LAM, 1 - LAM], dtype=torch.float64))
    run = torch.compile(loss, backend="eager") if compiled else loss
    with watched():
        torch.testing.assert_close(settle(run(mixed, layer)), wanted)
    assert torch.equal(torch.rand(3), after)
    for kept, expected in zip(layer.buffers(), own.buffers(), strict=True):
        torch.testing.assert_close(kept, expected)
