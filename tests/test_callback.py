"""The callback inside a Trainer: when it mixes, whom it touches, what it refuses, what it leaves behind."""

from __future__ import annotations

import copy
import pickle
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import lightning.pytorch as L
import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_msda import (
    MSDA,
    CutMix,
    FMix,
    MixedLossError,
    MixedTensor,
    MixUp,
    RandomMix,
    ResizeMix,
    ledger,
)
from tests.training import Classifier, basis, loader, make_trainer, shares

N = 8
X = basis(N, 4, 5)
Y = torch.arange(N)


def train(callback: L.Callback, module: Any = None, batches: int = 4, **options: Any) -> Any:
    """Train a module, by default a classifier, on batches of a basis."""
    module = Classifier(X[0].numel(), N) if module is None else module
    make_trainer(callback, **options).fit(
        module, loader(X.repeat(batches, 1, 1, 1), Y.repeat(batches), batch_size=N)
    )
    return module


class Record(L.Callback):
    """Remembers the method and the mix of every batch; to be listed after the method."""

    def __init__(self, method: MSDA) -> None:
        self.method = method
        self.names: list[str | None] = []
        self.lams: list[float] = []

    def on_train_batch_end(self, *args: Any) -> None:
        mix = self.method.last_mix
        self.names.append(self.method.last_method)
        self.lams.append(1.0 if mix is None else float(mix.lam.mean()))


def record(method: MSDA, module: Any = None, batches: int = 4, **options: Any) -> Record:
    """Train with a method and return what it did."""
    seen = Record(method)
    module = Classifier(X[0].numel(), N) if module is None else module
    make_trainer(method, seen, **options).fit(
        module, loader(X.repeat(batches, 1, 1, 1), Y.repeat(batches), batch_size=N)
    )
    return seen


def test_training_is_bit_identical_without_mixing() -> None:
    start = Classifier(X[0].numel(), N)
    weights = []
    for callbacks in ([], [MixUp(prob=0.0)], [RandomMix(start_epoch=5)]):
        module = copy.deepcopy(start)
        make_trainer(*callbacks).fit(module, loader(X.repeat(4, 1, 1, 1), Y.repeat(4), batch_size=N))
        weights.append(module.linear.weight)
    assert torch.equal(weights[0], weights[1]) and torch.equal(weights[0], weights[2])


def test_prob_is_the_share_of_mixed_batches_and_may_change_by_epoch() -> None:
    seen = record(MixUp(prob={0: 0.0, 1: 0.5, 2: 1.0}, seed=1), batches=200, max_epochs=3)
    epochs = [seen.names[200 * epoch : 200 * (epoch + 1)].count("MixUp") for epoch in range(3)]
    assert epochs[0] == 0 and epochs[2] == 200
    assert abs(epochs[1] - 100) < 5 * (200 * 0.25) ** 0.5


@pytest.mark.parametrize(
    ("start", "stop", "mixed"),
    [(0, None, "1111"), (2, None, "0011"), (1, 3, "0110"), (0, -1, "1110"), (1, -2, "0100")],
)
def test_epochs_are_mixed_from_start_to_stop(start: int, stop: int | None, mixed: str) -> None:
    seen = record(MixUp(start_epoch=start, stop_epoch=stop), batches=1, max_epochs=4)
    assert "".join(str(int(name is not None)) for name in seen.names) == mixed


def test_alpha_may_change_by_epoch() -> None:
    seen = record(MixUp(alpha={0: 1e-6, 2: 1e6}), batches=8, max_epochs=4)
    assert all(min(lam, 1 - lam) < 1e-3 for lam in seen.lams[:16])
    assert all(abs(lam - 0.5) < 1e-2 for lam in seen.lams[16:])


def test_the_module_sees_own_labels_and_lam_is_what_the_pixels_show() -> None:
    method = CutMix(per_sample=True)
    module = Classifier(X[0].numel(), N)
    lams: list[Tensor] = []

    class KeepLam(L.Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            assert method.last_mix is not None
            lams.append(method.last_mix.lam)

    make_trainer(method, KeepLam()).fit(module, loader(X.repeat(4, 1, 1, 1), Y.repeat(4), batch_size=N))
    for seen, lam in zip(module.seen, lams, strict=True):
        own, partner = shares(seen.inputs)
        assert torch.equal(seen.labels, Y) and type(seen.labels) is Tensor
        alone = partner == Y
        torch.testing.assert_close(own[~alone], lam[~alone])


class Logging(Classifier):
    """Logs what modules log."""

    def __init__(self) -> None:
        super().__init__(X[0].numel(), N)
        self.accuracy = torchmetrics.classification.MulticlassAccuracy(N, average="micro")
        self.auroc = torchmetrics.classification.MulticlassAUROC(N)
        self.expected: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        scores = self.linear(x.flatten(1))
        self.accuracy(scores, y)
        self.auroc(scores, y)
        loss = F.cross_entropy(scores, y)
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("right", (scores.argmax(1) == y).float().mean())
        self.log("accuracy", self.accuracy, on_epoch=True, on_step=False)
        self.expected.append(float((scores.argmax(1) == Y).float().mean()))
        return {
            "loss": loss,
            "scores": scores.detach(),
            "labels": y,
            "own": F.cross_entropy(scores, y, reduction="none"),
        }

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert all(type(value) is Tensor for value in outputs.values())
        assert torch.equal(outputs["labels"], Y)
        self.losses = [*getattr(self, "losses", []), float(outputs["loss"])]
        for metric in (self.accuracy, self.auroc):
            for state in metric.metric_state.values():
                assert all(type(part) is Tensor for part in (state if isinstance(state, list) else [state]))


@pytest.mark.parametrize(
    "method", [MixUp(), CutMix(per_sample=True), RandomMix()], ids=lambda m: type(m).__name__
)
def test_what_is_logged_is_the_mixtures_loss_and_the_own_labels_accuracy(method: MSDA) -> None:
    module = Logging()
    trainer = make_trainer(method)
    trainer.fit(module, loader(X.repeat(4, 1, 1, 1), Y.repeat(4), batch_size=N))
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert logged["loss_epoch"] == pytest.approx(sum(module.losses) / 4, rel=1e-5)
    assert logged["loss_step"] == pytest.approx(module.losses[-1], rel=1e-5)
    assert logged["right"] == pytest.approx(module.expected[-1])
    assert logged["accuracy"] == pytest.approx(sum(module.expected) / 4)


def test_only_training_is_mixed() -> None:
    class Watching(Classifier):
        def _check(self, batch: Any, batch_idx: int) -> None:
            assert type(batch[1]) is Tensor and torch.equal(batch[0], X)
            self.checked = {*getattr(self, "checked", set()), self.trainer.state.stage}

        validation_step = test_step = predict_step = _check

    data = loader(X, Y, batch_size=N)
    module, trainer = Watching(X[0].numel(), N), make_trainer(MixUp(), max_epochs=2)
    trainer.fit(module, data, data)
    trainer.validate(module, data, verbose=False)
    trainer.test(module, data, verbose=False)
    trainer.predict(module, data)
    assert {str(stage.value) for stage in module.checked} == {"sanity_check", "validate", "test", "predict"}


class Failing(Classifier):
    """Fails in the step, in the backward pass or after it."""

    def __init__(self, where: str, error: BaseException) -> None:
        super().__init__(X[0].numel(), N)
        self.where = where
        self.error = error

    def _fail(self, where: str) -> None:
        if where == self.where and self.trainer.global_step == 2:
            raise self.error

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self._fail("step")
        return loss

    def on_after_backward(self) -> None:
        self._fail("backward")

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._fail("batch end")


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, torch.OutOfMemoryError])
@pytest.mark.parametrize("where", ["step", "backward", "batch end"])
@pytest.mark.parametrize("at", [None, "linear"])
def test_after_a_failure_the_module_is_as_if_it_had_never_been_mixed(
    where: str, error: type[BaseException], at: str | None
) -> None:
    module = Failing(where, error())
    trainer = make_trainer(MixUp(at=at))
    with pytest.raises((error, SystemExit)):
        trainer.fit(module, loader(X.repeat(4, 1, 1, 1), Y.repeat(4), batch_size=N))
    assert "training_step" not in vars(trainer.strategy)
    assert not ledger.living()
    module.where = "nowhere"
    twin = Classifier(X[0].numel(), N)
    twin.load_state_dict(module.state_dict())
    copies = [copy.deepcopy(module), pickle.loads(pickle.dumps(module))]
    for each in (module, twin, *copies):  # three steps without us
        make_trainer(limit_train_batches=3).fit(each, loader(X.repeat(4, 1, 1, 1), Y.repeat(4), batch_size=N))
        assert torch.equal(each.linear.weight, module.linear.weight)
        assert not any(m._forward_hooks for m in each.modules())


def test_a_step_that_ends_the_epoch_leaves_nothing_behind() -> None:
    class EndsEpoch(Classifier):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if batch_idx == 2 else None

    method = MixUp()
    module, trainer = EndsEpoch(X[0].numel(), N), make_trainer(method, max_epochs=2)
    trainer.fit(module, loader(X.repeat(4, 1, 1, 1), Y.repeat(4), batch_size=N))
    assert len(module.seen) == 4
    assert "training_step" not in vars(trainer.strategy)


def test_the_batch_and_the_data_set_are_not_written_to() -> None:
    class Edits(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            batch[1][batch[1] == 3] = -100
            batch[1].clamp_(max=5)
            return super().training_step(batch, batch_idx)

    batches = [[X.clone(), Y.clone()] for _ in range(3)]
    entries = [list(map(id, batch)) for batch in batches]
    for method in (MixUp(), CutMix(), FMix(), ResizeMix(), MixUp(prob=0.0)):
        module = Edits(X[0].numel(), N)
        make_trainer(method).fit(module, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
        assert all(torch.equal(x, X) and torch.equal(y, Y) for x, y in batches)
        assert [list(map(id, batch)) for batch in batches] == entries


def test_a_closure_that_runs_the_step_again_sees_one_mix_and_fresh_labels() -> None:
    class Closures(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            self.inputs = [*getattr(self, "inputs", []), x.clone()]
            y -= 1
            y[y < 0] = N - 1
            loss = F.cross_entropy(self.linear(x.flatten(1)), y)
            self.after = [*getattr(self, "after", []), y.tolist()]
            return loss

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            assert len(self.inputs) > 2
            assert all(torch.equal(x, self.inputs[0]) for x in self.inputs)
            assert all(after == ((Y - 1) % N).tolist() for after in self.after)
            self.inputs, self.after = [], []

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.LBFGS(self.parameters(), max_iter=5)

    train(MixUp(), Closures(X[0].numel(), N))


def test_manual_optimization_takes_the_mixtures_loss() -> None:
    class Manual(Classifier):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
            x, y = batch
            weight = self.linear.weight.detach().clone().requires_grad_()
            loss = F.cross_entropy(self.linear(x.flatten(1)), y)
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            own, partner = shares(x)
            lam = own.min()
            losses = [F.cross_entropy(x.flatten(1) @ weight.t(), labels) for labels in (Y, Y[partner])]
            (wanted,) = torch.autograd.grad(lam * losses[0] + (1 - lam) * losses[1], weight)
            torch.testing.assert_close(self.linear.weight.grad, wanted)
            optimizer.step()
            self.done = True

        def on_train_batch_end(self, *args: Any) -> None:
            pass

    assert train(MixUp(), Manual(X[0].numel(), N)).done


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_precision_is_the_trainers(precision: Any) -> None:
    module = train(CutMix(), precision=precision)
    assert {seen.inputs.dtype for seen in module.seen} == {
        {"bf16-mixed": torch.float32, "bf16-true": torch.bfloat16, "64-true": torch.float64}[precision]
    }
    for seen in module.seen:
        own, partner = shares(seen.inputs.double())
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            scores = F.linear(seen.inputs.flatten(1), seen.weight)
            losses = [F.cross_entropy(scores, labels) for labels in (Y, Y[partner])]
        wanted = own.min() * losses[0] + (1 - own.min()) * losses[1]
        tolerance = 1e-10 if precision == "64-true" else 1e-2
        torch.testing.assert_close(seen.loss, wanted.to(seen.loss.dtype), rtol=tolerance, atol=0)


Pair = namedtuple("Pair", ["image", "label"])


@pytest.mark.parametrize(
    ("collate", "read", "keys"),
    [
        (lambda x, y: (x, y), lambda b: b, {}),
        (lambda x, y: [x, y], lambda b: b, {}),
        (lambda x, y: Pair(x, y), lambda b: (b.image, b.label), {}),
        (lambda x, y: {"image": x, "label": y, "name": "kept"}, lambda b: (b["image"], b["label"]), {}),
        (
            lambda x, y: {"data": {"pixels": x}, "meta": ("kept", [y])},
            lambda b: (b["data"]["pixels"], b["meta"][1][0]),
            {"input_key": "data.pixels", "target_key": "meta.1.0"},
        ),
        (lambda x, y: (y, "kept", x), lambda b: (b[2], b[0]), {"input_key": 2, "target_key": 0}),
        (lambda x, y: (x, {"a": y, "b": [y, y]}), lambda b: (b[0], b[1]["b"][1]), {}),
    ],
    ids=["tuple", "list", "named tuple", "dict", "nested", "by index", "heads"],
)
def test_any_batch_keeps_its_form(collate: Any, read: Any, keys: dict[str, Any]) -> None:
    class Reads(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            assert type(batch) is type(collate(X, Y))
            assert "kept" not in str(collate(0, 0)) or "kept" in str(batch)
            return super().training_step(read(batch), batch_idx)

    data: Any = [(X[i], Y[i]) for i in range(N)] * 2

    def fold(samples: list[tuple[Tensor, Tensor]]) -> Any:
        x, y = zip(*samples, strict=True)
        return collate(torch.stack(x), torch.stack(y))

    module = Reads(X[0].numel(), N)
    make_trainer(CutMix(**keys)).fit(module, DataLoader(data, batch_size=N, collate_fn=fold))
    assert len(module.seen) == 2
    for seen in module.seen:
        own, partner = shares(seen.inputs)
        losses = [F.cross_entropy(seen.inputs.flatten(1) @ seen.weight.t(), y) for y in (Y, Y[partner])]
        torch.testing.assert_close(seen.loss, own.min() * losses[0] + (1 - own.min()) * losses[1])


def test_a_batch_of_one_is_left_as_it_is_and_warned_of_once() -> None:
    module = Classifier(X[0].numel(), N)
    method = RandomMix()
    data = loader(X.repeat(2, 1, 1, 1)[:9], Y.repeat(2)[:9], batch_size=N)
    with pytest.warns(UserWarning, match="one sample and nothing to be mixed with") as warned:
        make_trainer(method, max_epochs=3).fit(module, data)
    assert sum("nothing to be mixed with" in str(warning.message) for warning in warned) == 1
    assert torch.equal(module.seen[1].inputs, X[:1]) and method.last_mix is None


def test_the_last_mix_is_kept_detached() -> None:
    for method in (MixUp(), FMix(at="linear", dims=[1]), RandomMix([ResizeMix()])):
        train(method)
        assert method.last_mix is not None and not method.last_mix.inputs.requires_grad
        assert method.last_mix.lam.shape == (N,) and method.last_mix.partners.shape == (N, 1)


def test_a_method_forgets_its_mix_when_it_is_pickled() -> None:
    method = MixUp(seed=3)
    train(method)
    again = pickle.loads(pickle.dumps(method))
    assert again.last_mix is None and again.seed == 3
    train(again)


class TwoLayers(L.LightningModule):
    """A hidden layer before a head; the step may use the labels before the layer runs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(X[0].numel(), N, bias=False, dtype=torch.float64)
        self.head = nn.Linear(N, N, dtype=torch.float64)
        self.checked = 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        hot = F.one_hot(y, N).double()
        features = self.embed(x.double().flatten(1))
        self.features = features.detach()
        return -(hot * F.log_softmax(self.head(features), 1)).sum(1).mean()

    def on_after_backward(self) -> None:
        self.gradient = self.embed.weight.grad

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("kind", [MixUp, CutMix, FMix, ResizeMix])
def test_at_a_hidden_layer_features_are_mixed_and_the_loss_follows(kind: Any, per_sample: bool) -> None:
    dims = None if kind is MixUp else [1]
    method = kind(at="embed", dims=dims, per_sample=per_sample, seed=0)
    module = TwoLayers()
    twin = copy.deepcopy(module)

    class Check(L.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
            mix = method.last_mix
            clean = twin.embed(X.double().flatten(1))
            if mix.mask is None:
                mixed = mix.lam[:, None] * clean + (1 - mix.lam[:, None]) * clean[mix.partner]
            elif mix.source is None:
                mixed = torch.where(mix.mask, clean, clean[mix.partner])
            else:
                mixed = torch.where(mix.mask, clean, clean[mix.partner].gather(1, mix.source[0]))
            torch.testing.assert_close(pl_module.features, mixed.detach())
            scores = F.log_softmax(twin.head(mixed), 1)
            terms = mix.lam * scores[Y, Y] + (1 - mix.lam) * scores[Y, Y[mix.partner]]
            torch.testing.assert_close(outputs["loss"], -terms.mean().detach(), rtol=1e-7, atol=0)
            (gradient,) = torch.autograd.grad(-terms.mean(), twin.embed.weight)
            torch.testing.assert_close(pl_module.gradient, gradient, rtol=1e-6, atol=1e-12)
            twin.load_state_dict(pl_module.state_dict())
            pl_module.checked += 1

    make_trainer(method, Check()).fit(module, loader(X.repeat(3, 1, 1, 1), Y.repeat(3), batch_size=N))
    assert module.checked == 3


def test_a_layer_called_twice_mixes_alike() -> None:
    class Twice(TwoLayers):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            first, second = (self.embed(batch[0].double().flatten(1)) for _ in range(2))
            assert torch.equal(first, second)
            return super().training_step(batch, batch_idx)

    train(FMix(at="embed", dims=[1]), Twice())


class Numpy(nn.Module):
    """A loss that torch does not see through."""

    def forward(self, scores: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(scores, torch.from_numpy(y.numpy()))


class LeavesTorch(Classifier):
    """Has its loss as a module, in a container and as a method."""

    def __init__(self, name: str) -> None:
        super().__init__(X[0].numel(), N)
        self.criterion = Numpy()
        self.parts = nn.ModuleDict({"loss": self.criterion})
        self.loss = lambda scores, y: (self.by_method if name == "by_method" else self.criterion)(scores, y)

    def by_method(self, scores: Tensor, y: Tensor) -> Tensor:
        loss: Tensor = Numpy()(scores, y)
        return loss


@pytest.mark.parametrize("name", ["criterion", "parts.loss", "by_method"])
def test_criterion_names_a_loss_that_leaves_torch(name: str) -> None:
    module, twin = LeavesTorch(name), LeavesTorch(name)
    train(MixUp(criterion=name), module)
    for seen in module.seen:
        own, partner = shares(seen.inputs)
        losses = [F.cross_entropy(seen.inputs.flatten(1) @ seen.weight.t(), y) for y in (Y, Y[partner])]
        torch.testing.assert_close(seen.loss, own.min() * losses[0] + (1 - own.min()) * losses[1])
    assert "by_method" not in vars(module)
    assert "forward" not in vars(module.criterion)
    with pytest.raises(MixedLossError, match="numpy.*criterion="):
        train(MixUp(), twin)


class Tokens(Classifier):
    """Gets integers, or whatever else a batch holds."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        raise AssertionError("the step is not reached")


IDS = torch.randint(0, 9, (N, 6))
BAD_BATCHES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no targets": ([X], {}, "no input.*list of 1.*input_key"),
    "three entries": ([X, Y, Y], {}, "list of 3.*input_key"),
    "unknown names": ({"pixels": X, "class": Y}, {}, "no input.*pixels: a tensor.*image, images.*input_key"),
    "no labels": ({"image": X, "class": Y}, {}, "no target.*target_key.*target_key=False"),
    "two inputs": ({"image": X, "x": X, "y": Y}, {}, r"more than one input.*\['image', 'x'\]"),
    "a wrong key": ([X, Y], {"input_key": "image"}, "no 'image'.*list of 2.*index, a name or a dotted path"),
    "boxes": ([X, [{"boxes": X, "labels": Y}]], {}, "detection boxes"),
    "fewer labels": ([X, Y[:3]], {}, r"8 samples, but a target has shape \(3,\)"),
    "labels of text": ([X, ["a"] * N], {}, "holds no tensor"),
    "inputs of text": ([["a"] * N, Y], {}, "no input.*list of 8"),
    "named inputs of text": ({"x": ["a"] * N, "y": Y}, {}, "'x' is a list of 8.*not a tensor"),
}


@pytest.mark.parametrize("name", BAD_BATCHES)
def test_a_batch_without_inputs_or_targets_gets_a_sentence(name: str) -> None:
    batch, keys, sentence = BAD_BATCHES[name]
    trainer = make_trainer(CutMix(**keys))
    with pytest.raises(ValueError, match=f"(?s){sentence}"):
        trainer.fit(Tokens(X[0].numel()), DataLoader([batch], batch_size=None))  # type: ignore[arg-type]
    assert "training_step" not in vars(trainer.strategy) and not ledger.living()


@pytest.mark.parametrize(
    ("method", "x", "sentence"),
    [
        (MixUp(), IDS, "MixUp interpolates.*int64.*at='embedding'.*CutMix"),
        (CutMix(), IDS, r"no dimension after the channel.*dims=\(1,\)"),
        (FMix(), torch.rand(N, 6), "no dimension after the channel"),
        (FMix(max_soft=0.2, dims=[1]), IDS, "max_soft"),
        (CutMix(dims=[3]), torch.rand(N, 3, 6), r"dims=\(3,\) does not fit"),
        (FMix(), torch.rand(N, 2, 2, 2, 2, 2), "one to three dimensions"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_inputs_that_a_method_cannot_mix_get_a_sentence(method: MSDA, x: Tensor, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make_trainer(method).fit(Tokens(6), loader(x, Y, batch_size=N))


class Embeds(Tokens):
    """Embeds tokens into (N, T, E)."""

    def __init__(self) -> None:
        super().__init__(24, N)
        self.embedding = nn.Embedding(9, 4)
        self.unused = nn.Linear(2, 2)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.linear(self.embedding(batch[0]).flatten(1)), batch[1])

    def on_train_batch_end(self, *args: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        (FMix(at="embedding"), r"say dims=\[1\] for tokens \(N, T, E\)"),
        (MixUp(at="embeding"), "at='embeding' is no layer of Embeds. Near it are embedding"),
        (MixUp(at="unused"), "never called 'unused'"),
        (MixUp(criterion="los"), "criterion='los' is nothing that can be called"),
        (MixUp(stop_epoch=-1), "does not know"),
    ],
    ids=["dims", "layer", "layer not called", "criterion", "epochs"],
)
def test_a_wrong_name_gets_a_sentence(method: MSDA, sentence: str) -> None:
    trainer = make_trainer(method, max_epochs=-1, max_steps=2)
    with pytest.raises(ValueError, match=sentence):
        trainer.fit(Embeds(), loader(IDS, Y, batch_size=N))
    assert "training_step" not in vars(trainer.strategy) and not ledger.living()


def test_tokens_are_mixed_at_their_embedding() -> None:
    for method in (MixUp(at="embedding"), FMix(at="embedding", dims=[1]), CutMix(at="embedding", dims=[1])):
        make_trainer(method).fit(Embeds(), loader(IDS, Y, batch_size=N))
        assert method.last_mix is not None and method.last_mix.inputs.shape == (N, 6, 4)


def test_two_methods_in_one_trainer_are_refused() -> None:
    with pytest.raises(ValueError, match=r"MixUp and CutMix would both mix.*RandomMix\(\[MixUp"):
        make_trainer(MixUp(), CutMix()).fit(Classifier(X[0].numel()), loader(X, Y, batch_size=N))


def test_a_step_that_fetches_its_batches_is_refused() -> None:
    class Fetches(Classifier):
        def training_step(self, dataloader_iter: Any) -> Any:  # type: ignore[override]
            raise AssertionError

    with pytest.raises(ValueError, match="dataloader_iter"):
        make_trainer(MixUp()).fit(Fetches(X[0].numel()), loader(X, Y, batch_size=N))


UNMIXED: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "labels left as numbers": lambda module, x, y: F.cross_entropy(x, torch.tensor(y.tolist())),
    "labels were not read": lambda module, x, y: x.square().mean(),
}


@pytest.mark.parametrize("name", UNMIXED)
def test_a_loss_that_was_not_computed_from_the_labels_is_refused(name: str) -> None:
    class Ignores(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return {"loss": UNMIXED[name](self, self.linear(batch[0].flatten(1)), batch[1])}

        def on_train_batch_end(self, *args: Any) -> None:
            pass

    module, trainer = Ignores(X[0].numel(), N), make_trainer(MixUp())
    before = module.linear.weight.detach().clone()
    with pytest.raises(MixedLossError, match="criterion=.*target_key=False"):
        trainer.fit(module, loader(X, Y, batch_size=N))
    assert torch.equal(module.linear.weight, before)
    if "not read" in name:
        make_trainer(MixUp(target_key=False)).fit(module, loader(X, Y, batch_size=N))


def test_under_manual_optimization_labels_that_left_torch_stop_the_step() -> None:
    class Manual(Classifier):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
            labels = torch.tensor(batch[1].tolist())
            self.manual_backward(F.cross_entropy(self.linear(batch[0].flatten(1)), labels))

    with pytest.raises(MixedLossError, match="left torch through tolist"):
        train(MixUp(), Manual(X[0].numel(), N))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"prob": 1.5}, r"prob=1.5 .* from 0 to 1"),
        ({"prob": {5: 0.5}}, "no value for the first epochs"),
        ({"seed": -1}, "seed=-1"),
        ({"start_epoch": -1}, "start_epoch=-1"),
        ({"start_epoch": 3, "stop_epoch": 3}, "no epoch would be mixed"),
        ({"target": "label"}, "'class' or 'value'"),
        ({"at": ""}, "must name a part of the module"),
    ],
)
def test_wrong_arguments_are_refused_at_construction(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        MixUp(**arguments)


def test_the_seed_is_lightnings_unless_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    lams = {}
    for name, method, seed in (
        ("given", MixUp(seed=7), "1"),
        ("global", MixUp(), "7"),
        ("other", MixUp(), "8"),
        ("none", MixUp(), None),
        ("none again", MixUp(), None),
    ):
        monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
        if seed is not None:
            monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        lams[name] = record(method).lams
    assert lams["given"] == lams["global"]
    assert len({tuple(drawn) for drawn in lams.values()}) == 4


def test_mixed_labels_are_not_seen_after_the_step() -> None:
    class Keeps(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.kept = [*getattr(self, "kept", []), batch[1]]
            assert isinstance(batch[1], MixedTensor)
            return super().training_step(batch, batch_idx)

    module = train(MixUp(), Keeps(X[0].numel(), N))
    assert all(type(y) is Tensor and torch.equal(y, Y) for y in module.kept)


@pytest.mark.parametrize("prob", [0.0, 0.5, 1.0])
def test_other_inputs_stay_whole_in_a_batch_that_is_not_mixed(prob: float) -> None:
    class Reads(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            same = torch.equal(batch["mask"], (batch["x"].flatten(1)[:, :5] > 0).long())
            assert same or not torch.equal(batch["x"], X)
            return super().training_step((batch["x"], batch["y"]), batch_idx)

    rows = [{"x": x, "mask": (x.flatten()[:5] > 0).long(), "y": y} for x, y in zip(X, Y, strict=True)]
    method = CutMix(prob=prob, input_key=["x", "x"], target_key="y")
    make_trainer(method).fit(Reads(X[0].numel(), N), DataLoader(rows * 4, batch_size=N))  # type: ignore[arg-type]


def test_at_a_layer_other_inputs_are_mixed_at_once_by_the_same_draws() -> None:
    class Reads(TwoLayers):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.inputs = batch[:2]
            return super().training_step((batch[0], batch[2]), batch_idx)

    data = TensorDataset(X.double(), X.double(), Y)
    method = MixUp(at="embed", input_key=[0, 1], target_key=2, per_sample=True)
    module = Reads()
    make_trainer(method).fit(module, DataLoader(data, batch_size=N))
    assert method.last_mix is not None
    own, partner = shares(module.inputs[1])
    mixed = method.last_mix.partner != torch.arange(N)
    torch.testing.assert_close(own[mixed], method.last_mix.lam[mixed])
    assert torch.equal(partner, method.last_mix.partner)
    assert torch.equal(module.inputs[0], X.double())


def test_another_input_that_the_layers_mask_does_not_fit_is_refused() -> None:
    class Reads(TwoLayers):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step((batch[0], batch[2]), batch_idx)

    data = TensorDataset(X, X.flatten(2).sum(1).repeat(1, 2), Y)
    method = CutMix(at="embed", dims=[1], input_key=[0, 1], target_key=2)
    with pytest.raises(ValueError, match=r"'embed' the mask has sizes \[8\], but beside it.*\[\[40\]\]"):
        make_trainer(method).fit(Reads(), DataLoader(data, batch_size=N))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomMix(per_sample=True), "per_sample=True is for each candidate"),
        (lambda: RandomMix(at="linear"), "at='linear' is for each candidate"),
        (lambda: RandomMix(dims=[3]), "dims=.3. is for each candidate"),
        (lambda: MixUp(dims=[3]), "no meaning for MixUp"),
        (lambda: CutMix(dims=[0]), "0 is the batch"),
        (lambda: CutMix(dims=[]), "one dimension or more"),
        (lambda: MixUp(seed=1.5), "seed=1.5 must be a whole number"),  # type: ignore[arg-type]
        (lambda: MixUp(start_epoch=0.5), "start_epoch=0.5 must be"),  # type: ignore[arg-type]
        (lambda: MixUp(prob={0: 1.0, -3: 0.5}), "epochs for keys"),
        (lambda: MixUp(prob={0: 1.0, 2.5: 0.5}), "epochs for keys"),  # type: ignore[dict-item]
        (lambda: MixUp(prob="0.5"), "prob='0.5' is out of range"),  # type: ignore[arg-type]
        (lambda: MixUp(criterion=3), "criterion=3 must name"),  # type: ignore[arg-type]
    ],
)
def test_what_would_do_nothing_or_is_of_the_wrong_kind_is_refused(
    make: Callable[[], MSDA], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_values_are_not_mixed_themselves_at_a_layer() -> None:
    with pytest.raises(ValueError, match="target='value' mixes the labels themselves"):
        train(RandomMix([MixUp(at="linear"), CutMix()], target="value"))


class FailsToo(L.Callback):
    """Fails when another failure is announced, so that no later callback hears of it."""

    def on_exception(self, *args: Any) -> None:
        raise RuntimeError("announced")


@pytest.mark.parametrize("where", ["training_step", "backward"])
def test_nothing_is_left_behind_where_no_callback_is_told_of_a_failure(where: str) -> None:
    class Fails(TwoLayers):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            if where == "training_step":
                raise ZeroDivisionError
            return loss

        def backward(self, *args: Any, **kwargs: Any) -> None:
            raise ZeroDivisionError

    module = Fails()
    with pytest.raises((ZeroDivisionError, RuntimeError)):
        make_trainer(FailsToo(), MixUp(at="embed")).fit(
            module, DataLoader(TensorDataset(X.double(), Y), batch_size=N)
        )
    assert all(not layer._forward_hooks for layer in module.modules())
    assert ledger.living() == []


def test_under_manual_optimization_no_backward_takes_labels_that_left_torch() -> None:
    class Manual(Classifier):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
            x, y = batch
            scores = self.linear(x.flatten(1))
            self.manual_backward(F.cross_entropy(scores, y), retain_graph=True)
            self.manual_backward(F.cross_entropy(self.linear(x.flatten(1)), torch.tensor(y.tolist())))

    with pytest.raises(MixedLossError, match="left torch through tolist"):
        train(MixUp(), Manual(X[0].numel(), N))


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_layer_that_runs_again_in_the_backward_pass_is_mixed_again(reentrant: bool) -> None:
    class Checkpointed(TwoLayers):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            inputs = x.flatten(1).requires_grad_()
            features = checkpoint(self.embed, inputs, use_reentrant=reentrant)
            return F.cross_entropy(self.head(features), y)

    class Plain(TwoLayers):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(self.head(self.embed(batch[0].flatten(1))), batch[1])

    gradients = []
    for kind in (Plain, Checkpointed):
        torch.manual_seed(0)
        module = kind()
        data = DataLoader(TensorDataset(X.double(), Y), batch_size=N)
        make_trainer(CutMix(at="embed", dims=[1], seed=0)).fit(module, data)
        gradients.append(module.gradient)
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)
