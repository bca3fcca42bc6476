"""PyramidNet and ShakeDrop: the laws of its draws, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_msda.experiments.models import PyramidNet
from lightning_msda.experiments.models.shakedrop import ShakeDrop
from tests.helpers import assert_mean


def test_shakedrop_takes_its_mean_in_evaluation() -> None:
    x = torch.rand(4, 2, 3, 3)
    assert torch.equal(ShakeDrop(0.75).eval()(x), 0.75 * x)


def factors(keep: float, n: int) -> tuple[Tensor, Tensor]:
    """Return by what each of n samples and its gradient are multiplied."""
    x = torch.ones(n, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    out = ShakeDrop(keep)(x)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    for values in (out, gradient):  # the same for all features of a sample
        assert torch.equal(values, values[:, :, :1, :1].expand_as(values))
    return out[:, 0, 0, 0].detach(), gradient[:, 0, 0, 0]


def test_shakedrop_leaves_a_branch_that_is_kept() -> None:
    forwards, backwards = factors(1.0, 5)
    assert torch.equal(forwards, torch.ones_like(forwards)) and torch.equal(backwards, forwards)


def test_shakedrop_multiplies_by_alpha_forward_and_by_beta_backward() -> None:
    alpha, beta = factors(0.0, 20_000)
    assert float(alpha.min()) < -0.99 and float(alpha.max()) > 0.99
    assert float(beta.min()) > 0 and float(beta.min()) < 0.01 and float(beta.max()) > 0.99
    for values, mean, square in ((alpha, 0.0, 1 / 3), (beta, 0.5, 1 / 3)):  # of uniform laws
        assert_mean(values, mean)
        assert_mean(values.square(), square)
    assert_mean(alpha * beta, 0.0)  # they are drawn apart


def test_shakedrop_decides_for_the_whole_batch() -> None:
    kept = []
    for _ in range(2000):
        forwards, backwards = factors(0.7, 2)
        kept.append(bool((forwards == 1).all()))
        assert bool((forwards == 1).any()) == kept[-1] == bool((backwards == 1).all())
    assert_mean(torch.tensor(kept).double(), 0.7)


def test_shakedrop_grows_with_depth_up_to_a_half() -> None:
    network = PyramidNet(depth=20, alpha=8)
    keeps = [m.keep for m in network.modules() if isinstance(m, ShakeDrop)]
    assert keeps == pytest.approx([1 - 0.5 * i / 6 for i in range(1, 7)])


def test_pyramidnet_widens_by_the_same_amount_in_each_block() -> None:
    network = PyramidNet(depth=20, alpha=90)
    widths = [
        m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)
    ]
    assert widths == [16, 31, 46, 61, 76, 91, 106]
