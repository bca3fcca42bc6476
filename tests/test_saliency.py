"""The saliency of a module's own loss: closed forms, and that the module notices nothing."""

from __future__ import annotations

import copy
import warnings
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_msda.saliency import gradient_saliency

N, C, H, W, K = 5, 3, 6, 4, 7
X, Y = torch.rand(N, C, H, W, dtype=torch.float64), torch.arange(N) % K


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(C * H * W, K, dtype=torch.float64)

    def forward(self, x: Tensor) -> Any:
        return self.linear(x.flatten(1))


class Output(NamedTuple):
    name: str
    logits: Tensor


class Wrapped(Linear):
    """Returns its scores as others do."""

    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(super().forward(x))


def closed_form(module: Linear, labels: Tensor) -> Tensor:
    """Return the norm of (softmax - target) W over the channels."""
    error = module.linear(X.flatten(1)).softmax(1) - (
        labels if labels.is_floating_point() else F.one_hot(labels, K).double()
    )
    gradient: Tensor = (error @ module.linear.weight).detach()
    return gradient.view(N, C, H, W).square().sum(1).div(C).sqrt()


@pytest.mark.parametrize("labels", [Y, torch.rand(N, K, dtype=torch.float64).softmax(1)])
def test_saliency_is_the_gradient_of_cross_entropy(labels: Tensor) -> None:
    module = Linear()
    torch.testing.assert_close(gradient_saliency(module, X, labels), closed_form(module, labels))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda z: (z, None),
        lambda z: {"out": z, "aux": 2 * z},
        lambda z: Output("name", z),
        lambda z: [{"scores": z}],
    ],
    ids=["tuple", "dict", "logits", "nested"],
)
def test_scores_are_found_in_what_forward_returns(wrap: Any) -> None:
    module = Wrapped(wrap)
    torch.testing.assert_close(gradient_saliency(module, X, Y), closed_form(module, Y))


def test_a_loss_can_be_named() -> None:
    class Own(Linear):
        def energy(self, x: Tensor, y: Tensor) -> Tensor:
            return (x.square().sum((1, 2, 3)) * y).mean()

    wanted = (2 * X * Y.view(-1, 1, 1, 1) / N).square().mean(1).sqrt()
    torch.testing.assert_close(gradient_saliency(Own(), X, Y, loss="energy"), wanted)


def test_saliency_of_smaller_inputs() -> None:
    class Small(Linear):
        def forward(self, x: Tensor) -> Any:
            return self.linear(F.interpolate(x, (H, W)).flatten(1))

    saliency = gradient_saliency(Small(), X, Y, stride=2)
    assert saliency.shape == (N, H, W)
    blocks = saliency.view(N, H // 2, 2, W // 2, 2)
    assert torch.equal(blocks, blocks[:, :, :1, :, :1].expand_as(blocks))
    with pytest.raises(
        ValueError, match=r"Linear.forward\(x\) on inputs \(5, 3, 3, 2\).*2-fold smaller by saliency_stride"
    ):
        gradient_saliency(Linear(), X, Y, stride=2)


class Module(LightningModule):
    """Has all that could notice: dropout, statistics, a count, a list, logs, hooks and frozen parts."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # modules of others have it still
            self.conv = torch.nn.utils.weight_norm(nn.Conv2d(C, 4, 3, padding=1))
        self.norm, self.dropout = nn.BatchNorm2d(4), nn.Dropout(0.5)
        self.frozen = nn.BatchNorm2d(4).eval()
        self.head = nn.Linear(4, K)
        self.register_buffer("calls", torch.zeros(()))
        self.seen: list[int] = []
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(len(x))
        self.log("scores", x.mean())
        features = self.frozen(self.dropout(self.norm(self.conv(x))))
        scores: Tensor = self.head(features.mean((2, 3))) + 0.0 * torch.rand(())
        return scores


def test_the_module_notices_nothing() -> None:
    module = Module().train()
    module.frozen.eval()
    called: list[str] = []
    module.norm.register_forward_hook(lambda *args: called.append("forward"))
    module.head.register_full_backward_hook(lambda *args: called.append("backward"))
    dict(module.conv.named_parameters())["weight_g"].register_hook(  # type: ignore[no-untyped-call]
        lambda gradient: called.append("gradient")
    )
    module.head.weight.grad = torch.ones_like(module.head.weight)
    before = copy.deepcopy(module.state_dict())
    modes = [part.training for part in module.modules()]
    attributes = [dict(vars(part)) for part in module.modules()]
    generator = torch.get_rng_state()
    saliency = gradient_saliency(module, X, Y)
    assert saliency.abs().sum() > 0
    assert torch.equal(torch.get_rng_state(), generator)
    assert [part.training for part in module.modules()] == modes
    assert called == [] and module.seen == []
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(module.head.weight.grad, torch.ones_like(module.head.weight))
    assert all(p.grad is None for name, p in module.named_parameters() if name != "head.weight")
    for part, kept in zip(module.modules(), attributes, strict=True):
        assert vars(part).keys() == kept.keys() and all(vars(part)[name] is kept[name] for name in kept)
    # Evaluation mode: no dropout, and the running statistics are used.
    assert torch.equal(saliency, gradient_saliency(module, X, Y))
    torch.testing.assert_close(saliency[:2], gradient_saliency(module, X[:2], Y[:2]))


def test_a_module_without_such_a_forward_is_told_so() -> None:
    class Pairs(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x

    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> None:
            return None

    class Deaf(Linear):
        def forward(self, x: Tensor) -> Any:
            return super().forward(torch.zeros_like(x))

    for module in (Pairs(), Nothing()):
        with pytest.raises(ValueError, match=r"forward\(x\) on inputs .* which failed.*saliency_loss="):
            gradient_saliency(module, X, Y)
    with pytest.raises(ValueError, match=r"The loss of Deaf does not depend on the inputs"):
        gradient_saliency(Deaf(), X, Y)


def test_a_failure_puts_everything_back() -> None:
    module = Module().train()
    with pytest.raises(ValueError, match="which failed"):
        gradient_saliency(module, X[:, :1], Y)
    assert module.norm.training and module.seen == [] and float(module.calls) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_nothing_vanishes(dtype: torch.dtype) -> None:
    module = Linear().float()
    saliency = gradient_saliency(module, X.float(), Y, context=lambda: torch.autocast("cpu", dtype=dtype))
    exact = gradient_saliency(module, X.float(), Y)
    torch.testing.assert_close(saliency, exact, rtol=0.05, atol=0.01 * float(exact.max()))
