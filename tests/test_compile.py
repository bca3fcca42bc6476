"""Under torch.compile: one graph, no recompilation, the same loss; where dynamo does not ask, a refusal."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.utils import counters

from lightning_msda import MSDA, CutMix, FMix, MixedLossError, MixedTensor, MixUp, RandomMix, ResizeMix
from lightning_msda.boundaries import watched
from lightning_msda.mixed_tensor import refuse_unread, release, settle
from tests.losses import CASES, K, N
from tests.training import Classifier, basis, loader, make_trainer

BACKENDS = ["aot_eager", *(["inductor"] if shutil.which("g++") or shutil.which("clang++") else [])]
# A plain tensor that labels are written into becomes a mixed one, which breaks the graph; so does a loop.
BREAKING = {"setitem", "loop", "ArcFace, in place", "ArcFace, by index"}
# The view that a graph hands out shares the memory of the tensor it hands out as well.
SHARING = "written into a view"
# By sample it must be known whether they are a view of others, at which the graph breaks.
EDITED = "labels edited in place"


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    release()


def labels(per_sample: bool, seed: int) -> MixedTensor:
    generator = torch.Generator().manual_seed(seed)
    own, partner = torch.randint(0, K, (2, N), generator=generator).unbind()
    lam = torch.rand(N if per_sample else 1, dtype=torch.float64, generator=generator)
    weights = torch.stack([lam, 1 - lam], 1)
    return MixedTensor((own, partner), weights if per_sample else weights[0])


@pytest.mark.parametrize(
    ("name", "per_sample", "backend"),
    [
        (name, per_sample, backend)
        for backend in BACKENDS
        for name in (
            sorted(CASES.keys() - BREAKING - {SHARING})
            if backend == "aot_eager"
            else ["class weights", "focal", "Dice"]
        )
        for per_sample in ([False] if CASES[name].by_sample == "refused" or name == EDITED else [False, True])
    ],
)
def test_a_compiled_loss_is_one_graph_and_the_mixtures(name: str, per_sample: bool, backend: str) -> None:
    loss = CASES[name].loss
    x = torch.randn(N, 8, dtype=torch.float64).requires_grad_()
    compiled: Callable[..., Tensor] = torch.compile(loss, fullgraph=True, backend=backend)
    for seed in range(3):
        values = []
        for function in (compiled, loss):
            with watched():
                value = settle(function(x, labels(per_sample, seed)))
            values += [value.detach(), torch.autograd.grad(value, x)[0]]
            release()
        torch.testing.assert_close(values[:2], values[2:])
    assert counters["stats"]["unique_graphs"] == 1


def prototypes(x: Tensor, y: Tensor) -> Tensor:
    centers = torch.zeros(K, x.size(1), dtype=x.dtype).index_add_(0, y, x.detach())
    return (x - centers[y]).square().mean()


def valid_ones(x: Tensor, y: Tensor) -> Tensor:
    valid = y != 2
    return F.cross_entropy(x[:, :K][valid], y[valid]) + x[y == 3].square().sum()


def by_helper(x: Tensor, y: Tensor) -> Tensor:
    """Compiles what has no gradient of its own."""
    return -(hot(y) * F.log_softmax(x[:, :K], 1)).sum(1).mean() + (looked_up(y) * x[:, 0]).mean()


@torch.compile(backend=BACKENDS[-1])
def hot(y: Tensor) -> Tensor:
    zeros = torch.zeros(N, K, dtype=torch.float64)
    zeros[torch.arange(N), y] = 1.0
    return zeros


@torch.compile(backend=BACKENDS[-1])
def looked_up(y: Tensor) -> Tensor:
    return torch.linspace(0, 1, N * K, dtype=torch.float64).view(N, K)[torch.arange(N), y]


OTHERS = {"prototypes": prototypes, "valid ones": valid_ones}
LOSSES = {name: CASES[name].loss for name in sorted(BREAKING)} | OTHERS


@pytest.mark.parametrize(
    ("name", "backend"),
    [(name, "aot_eager") for name in LOSSES] + [("ArcFace, by index", backend) for backend in BACKENDS[1:]],
)
def test_a_compiled_loss_that_breaks_the_graph_is_the_mixtures(name: str, backend: str) -> None:
    compiled: Callable[..., Tensor] = torch.compile(LOSSES[name], backend=backend)
    assert_mixed(compiled, LOSSES[name])


def test_a_compiled_helper_of_an_eager_loss_is_asked() -> None:
    def eager(x: Tensor, y: Tensor) -> Tensor:
        picked = torch.linspace(0, 1, N * K, dtype=torch.float64).view(N, K)[torch.arange(N), y]
        return F.cross_entropy(x[:, :K], y) + (picked * x[:, 0]).mean()

    assert_mixed(by_helper, eager)


def assert_mixed(loss: Callable[[Tensor, Tensor], Tensor], plain: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Hold a loss of mixed labels, and its gradient, against the formula on plain ones."""
    for seed in range(3):
        x = torch.randn(N, 8, dtype=torch.float64).requires_grad_()
        mixed = labels(False, seed)
        assert isinstance(mixed.weights, torch.Tensor)
        losses = [plain(x, world.clone()) for world in mixed.worlds]
        wanted = mixed.weights[0] * losses[0] + mixed.weights[1] * losses[1]
        with watched():
            value = settle(loss(x, mixed))
        torch.testing.assert_close(value, wanted)
        torch.testing.assert_close(torch.autograd.grad(value, x), torch.autograd.grad(wanted, x))
        release()


def test_labels_written_into_shared_memory_by_a_compiled_loss_are_refused() -> None:
    compiled = torch.compile(CASES[SHARING].loss, backend=BACKENDS[-1])
    x = torch.randn(N, 8, dtype=torch.float64).requires_grad_()
    y = labels(False, 0)
    with pytest.raises(MixedLossError, match="memory that another tensor or array shares"), watched():
        loss = compiled(x, y)
        refuse_unread() if type(loss) is Tensor else settle(loss)


class Compiled(Classifier):
    """Takes the criterion as a module, as most do."""

    def __init__(self) -> None:
        super().__init__(8 * 4 * 5, 8)
        self.criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
        self.losses: list[float] = []
        self.methods: list[str | None] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss: Tensor = self.criterion(self.linear(x.flatten(1)), y)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]))
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        self.methods += [callback.last_method for callback in callbacks if isinstance(callback, MSDA)]


def train(compile_it: Callable[[Compiled], Any], method: Callable[[], Any]) -> Compiled:
    """Train for 20 batches and return the module."""
    torch.manual_seed(0)
    module = Compiled()
    data = loader(basis(8, 4, 5).repeat(20, 1, 1, 1), torch.arange(8).repeat(20), batch_size=8)
    callback = method()
    trainer = make_trainer(callback)
    trainer.fit(compile_it(module), data)
    return module


METHODS: dict[str, Callable[[], Any]] = {
    "mixed every other time": lambda: MixUp(prob=0.5, seed=1),
    "another method each time": lambda: RandomMix([MixUp(), CutMix(), ResizeMix(), FMix()], prob=0.5, seed=2),
}


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("method", METHODS)
def test_a_compiled_module_is_one_graph_over_many_batches(method: str, backend: str) -> None:
    if backend == "inductor" and shutil.which("c++") is None:
        pytest.skip("needs a compiler")
    eager = train(lambda module: module, METHODS[method])
    members = METHODS[method]().members()
    assert set(eager.methods) == {type(one).__name__ for one in members if one.members() == [one]} | {None}
    compiled = train(lambda module: torch.compile(module, fullgraph=True, backend=backend), METHODS[method])
    assert compiled.losses == pytest.approx(eager.losses, rel=1e-5) and len(eager.losses) == 20
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@pytest.mark.parametrize("part", ["module", "layer"])
def test_mixing_at_a_layer_of_a_compiled_module_is_noticed(part: str) -> None:
    def compile_it(module: Compiled) -> Any:
        if part == "module":
            return torch.compile(module, backend="aot_eager")
        module.linear = torch.compile(module.linear, backend="aot_eager")  # type: ignore[assignment]
        return module

    def method() -> Any:
        return MixUp(at="linear", prob=0.5, seed=1)

    guards = torch._dynamo.config.skip_nnmodule_hook_guards
    eager = train(lambda module: module, method)
    assert train(compile_it, method).losses == pytest.approx(eager.losses, rel=1e-5)
    assert torch._dynamo.config.skip_nnmodule_hook_guards == guards


def test_a_compiled_loss_function_in_an_eager_step_is_mixed() -> None:
    compiled = torch.compile(F.cross_entropy, fullgraph=True, backend="aot_eager")
    x = torch.randn(N, 8, dtype=torch.float64).requires_grad_()
    for seed in range(3):
        y = labels(False, seed)
        wanted = settle(F.cross_entropy(x[:, :K], y))
        torch.testing.assert_close(settle(compiled(x[:, :K], y)), wanted)
    assert counters["stats"]["unique_graphs"] == 1
