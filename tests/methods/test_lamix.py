"""LaMix, against its equations in plain torch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR
from torch.utils.checkpoint import checkpoint

from lightning_msda import LaMix, MixedLossError, Mixture, MixUp, PuzzleMix, RandomMix, Step
from lightning_msda.functional import mixed_loss, puzzlemix
from lightning_msda.methods.lamix import lamix
from lightning_msda.saliency import gradient_saliency
from lightning_msda.second_head import soft_label
from tests.helpers import assert_frequencies, assert_mean, neighbours, seeded
from tests.training import in_a_fresh_process, loader, make_trainer

N, C, FEATURES, CLASSES, BATCHES = 24, 3, 3 * 4 * 4, 5, 6


def assert_close(found: Any, wanted: Any) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def samples(n: int = N, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    draws = seeded(3)
    return torch.randn(n, C, 4, 4, dtype=dtype, generator=draws), torch.randint(
        CLASSES, (n,), generator=draws
    )


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(FEATURES, 7)
        self.head = nn.Linear(7, CLASSES)

    def embed(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.hidden(x.flatten(1)).tanh()
        return hidden

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.embed(x))
        return scores


Optimizers = Callable[[Any], Any]


class Module(LightningModule):
    """As everybody writes it."""

    def __init__(self, optimizers: Optimizers, loss: Callable[..., Tensor] = F.cross_entropy) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.network = Network().double()
        self.make, self.loss = optimizers, loss

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.network(x)
        return scores

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return self.loss(self(x), y)

    def configure_optimizers(self) -> Any:
        return self.make(self.network)


class Recorder(Callback):
    """Keeps how each batch was mixed."""

    def __init__(self) -> None:
        self.mixes: list[Mixture] = []
        self.batches: list[tuple[Tensor, Tensor]] = []

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.batches.append(batch)
        method = next(c for c in trainer.callbacks if isinstance(c, LaMix))
        assert method.last_mix is not None
        self.mixes.append(method.last_mix)


def sgd(network: Any) -> Any:
    return SGD(network.parameters(), lr=0.3, momentum=0.9, weight_decay=0.01)


def adamw(network: Any) -> Any:
    return AdamW(network.parameters(), lr=0.05, weight_decay=0.1)


def two_groups(network: Any) -> Any:
    groups = [
        {"params": network.hidden.parameters(), "lr": 0.01},
        {"params": network.head.parameters(), "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=0.05)


def one_cycle(network: Any) -> Any:
    optimizer = sgd(network)
    return [optimizer], [{"scheduler": OneCycleLR(optimizer, 0.4, total_steps=24), "interval": "step"}]


def cosine(network: Any) -> Any:
    optimizer = two_groups(network)
    return [optimizer], [CosineAnnealingLR(optimizer, 3)]


def lambdas(network: Any) -> Any:
    optimizer = two_groups(network)
    return [optimizer], [LambdaLR(optimizer, [lambda epoch: 0.9**epoch, lambda epoch: 0.8**epoch])]


ROUTES = {
    "SGD": sgd,
    "AdamW": adamw,
    "two groups": two_groups,
    "OneCycleLR by step": one_cycle,
    "cosine": cosine,
    "a lambda for each group": lambdas,
}


def target(y: Tensor, mix: Mixture, p: Tensor, beta: float, *, clean: bool) -> Tensor:
    """Return equation 10's target; that of a clean batch has the own label alone."""
    own, other = F.one_hot(y, CLASSES).double(), F.one_hot(y[mix.partner], CLASSES).double()
    lam = 1.0 if clean else mix.weights[:, :1] / beta
    return beta * (lam * own + (1 - lam) * other) + (1 - beta) * p


def by_the_equations(
    optimizers: Optimizers,
    head: list[Tensor],
    mixes: list[Mixture],
    beta: float = 0.5,
    *,
    accumulate: int = 1,
    clip: float = math.inf,
) -> tuple[Network, list[Tensor]]:
    """Train a network and a second head in a plain loop by equations 4, 6, 7, 9, 10 and 11."""
    torch.manual_seed(1)
    network = Network().double()
    weight, bias = (part.clone().requires_grad_() for part in head)
    made = optimizers(network)
    optimizer, schedulers = (made, []) if isinstance(made, Optimizer) else (made[0][0], made[1])
    optimizer.param_groups[-1]["params"] += [weight, bias]
    x, y = samples()
    i = 0
    for _ in range(2):
        for own, labels in zip(torch.split(x, 4), torch.split(y, 4), strict=True):
            clean = i % 2 == 1
            shown = own if clean else 0.5 * own + 0.5 * own[mixes[i].partner]
            embedding = network.embed(shown)
            p = torch.softmax(torch.sigmoid(embedding @ weight.T + bias), 1)
            wanted = target(labels, mixes[i], p, beta, clean=clean)
            loss = -(wanted * network.head(embedding).log_softmax(1)).sum(1).mean()
            torch.autograd.backward(loss / accumulate)
            if (i + 1) % accumulate == 0:
                parameters = [*network.parameters(), weight, bias]
                nn.utils.clip_grad_norm_(parameters, clip)
                optimizer.step()
                optimizer.zero_grad()
            for scheduler in schedulers:
                if isinstance(scheduler, dict):
                    scheduler["scheduler"].step()
            i += 1
        for scheduler in schedulers:
            if not isinstance(scheduler, dict):
                scheduler.step()
    return network, [weight.detach(), bias.detach()]


def fit(
    module: Module, method: LaMix, *others: Callback, epochs: int = 2, batch: int = 4, **options: Any
) -> tuple[Recorder, list[Tensor]]:
    """Train, and return what was recorded and the head that training began with."""
    recorder, start = Recorder(), Start(method)
    resumed = options.pop("ckpt_path", None)
    trainer = make_trainer(start, method, recorder, *others, max_epochs=epochs, **options)
    trainer.fit(module, loader(*samples(), batch_size=batch), ckpt_path=resumed)
    return recorder, start.head


class Start(Callback):
    """Keeps the head that training begins with."""

    def __init__(self, method: LaMix) -> None:
        self.method = method
        self.head: list[Tensor] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        assert self.method._head is not None
        self.head = [part.detach().clone() for part in self.method._head.parameters]


def trained(method: LaMix) -> list[Tensor]:
    assert method._head is not None
    return [part.detach() for part in method._head.parameters]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("per_sample", [False, True])
def test_network_and_second_head_train_by_the_equations(route: str, per_sample: bool) -> None:
    module, method = Module(ROUTES[route]), LaMix(seed=5, per_sample=per_sample)
    recorder, head = fit(module, method)
    network, wanted = by_the_equations(ROUTES[route], head, recorder.mixes)
    assert_close(module.network.state_dict(), network.state_dict())
    assert_close(trained(method), wanted)
    moved = [(a - b).abs().max() for a, b in zip(trained(method), head, strict=True)]
    assert min(map(float, moved)) > 1e-4


@pytest.mark.parametrize("beta", [0.3, 0.8])
def test_any_beta_trains_by_the_equations(beta: float) -> None:
    module, method = Module(sgd), LaMix(beta=beta, seed=5)
    recorder, head = fit(module, method)
    network, wanted = by_the_equations(sgd, head, recorder.mixes, beta)
    assert_close(module.network.state_dict(), network.state_dict())
    assert_close(trained(method), wanted)


def test_at_beta_1_the_second_head_has_no_say_and_learns_nothing() -> None:
    module, method = Module(sgd), LaMix(beta=1.0, seed=5)
    recorder, head = fit(module, method)
    network, _ = by_the_equations(sgd, list(map(torch.zeros_like, head)), recorder.mixes, 1.0)
    assert_close(module.network.state_dict(), network.state_dict())


def test_clean_batches_take_turns_with_averaged_ones() -> None:
    recorder, _ = fit(Module(sgd), method := LaMix(seed=5), epochs=1)
    x, _ = samples()
    for i, (own, mix) in enumerate(zip(torch.split(x, 4), recorder.mixes, strict=True)):
        torch.testing.assert_close(mix.inputs, own if i % 2 == 1 else (own + own[mix.partner]) / 2)
        if i % 2 == 1:
            assert torch.equal(mix.weights, torch.tensor([0.5, 0.0]).double().expand(4, 2))
    assert method.last_method == "LaMix"


def test_without_clean_batches_all_are_averaged() -> None:
    recorder, _ = fit(Module(sgd), LaMix(seed=5, clean=False), epochs=1)
    x, _ = samples()
    for own, mix in zip(torch.split(x, 4), recorder.mixes, strict=True):
        torch.testing.assert_close(mix.inputs, (own + own[mix.partner]) / 2)


def test_turns_are_its_own_inside_of_a_cycle() -> None:
    method = RandomMix([lamix_ := LaMix(), MixUp()], order="cycle")
    chosen = [method.choose(step := Step(0, i), step.policy()) for i in range(0, 12, 2)]
    assert [choice is lamix_ for choice in chosen] == [True, False] * 3
    assert {type(choice) for choice in chosen} == {LaMix}


def test_the_label_keeps_the_learned_part_and_it_is_bounded() -> None:
    recorder, _ = fit(Module(sgd), LaMix(seed=5))
    for mix in recorder.mixes:
        assert mix.soft is not None and not mix.soft.requires_grad
        torch.testing.assert_close(mix.soft.sum(1), torch.ones(4).double())
        assert mix.soft.max() <= math.e / (math.e + CLASSES - 1)
        assert mix.soft.min() >= 1 / (1 + math.e * (CLASSES - 1))
        torch.testing.assert_close(mix.label_weights.sum(), torch.tensor(1.0).double())


def test_the_bounds_of_equation_9_are_reached() -> None:
    scores = torch.full((1, 10), -1e6)
    scores[0, 0] = 1e6
    p = soft_label(scores, torch.eye(10))
    assert p.max().item() == pytest.approx(math.e / (math.e + 9))
    assert p.min().item() == pytest.approx(1 / (math.e + 9))


def test_lam_is_uniform_or_fixed() -> None:
    x = torch.zeros(4000, 1)
    drawn = lamix(x, beta=0.8, per_sample=True, generator=seeded()).weights[:, 0] / 0.8
    assert_mean(drawn, 0.5)
    assert_frequencies(torch.histc(drawn, 10, 0, 1), [0.1] * 10)
    assert torch.equal(lamix(x, lam=0.25, beta=1.0).weights[0], torch.tensor([0.25, 0.75]))
    once = lamix(x, generator=seeded())
    assert not once.per_sample and len(torch.unique(once.weights, dim=0)) == 1


def test_the_learned_label_enters_a_loss_of_a_plain_loop() -> None:
    x, y = samples()
    network, weight = Network().double(), torch.randn(CLASSES, 7).double().requires_grad_()
    mix = lamix(x, beta=0.6, generator=seeded())
    embedding = network.embed(mix.inputs)
    p = soft_label(embedding, weight)
    loss = mixed_loss(F.cross_entropy, network.head(embedding), y, replace(mix, soft=p))
    wanted = -(target(y, mix, p, 0.6, clean=False) * network.head(embedding).log_softmax(1)).sum(1).mean()
    assert_close(loss, wanted)
    assert_close(torch.autograd.grad(loss, weight, retain_graph=True), torch.autograd.grad(wanted, weight))


# Losses that are cross-entropy with equation 10's target: as the step writes them, and by the target.
def smoothed(z: Tensor, t: Tensor) -> Tensor:
    return F.cross_entropy(z, t, label_smoothing=0.1)


ACCEPTED: dict[str, tuple[Callable[..., Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "nn.CrossEntropyLoss": (lambda z, y: nn.CrossEntropyLoss()(z, y), F.cross_entropy),
    "label smoothing": (smoothed, smoothed),
    "nll_loss": (lambda z, y: F.nll_loss(z.log_softmax(1), y), F.cross_entropy),
    "nll_loss, summed": (
        lambda z, y: F.nll_loss(z.log_softmax(1), y, reduction="sum"),
        lambda z, t: F.cross_entropy(z, t, reduction="sum"),
    ),
    "summed": (
        lambda z, y: F.cross_entropy(z, y, reduction="sum"),
        lambda z, t: F.cross_entropy(z, t, reduction="sum"),
    ),
    "unreduced, then a mean": (lambda z, y: F.cross_entropy(z, y, reduction="none").mean(), F.cross_entropy),
    "the hardest half": (
        lambda z, y: F.cross_entropy(z, y, reduction="none").mul(torch.linspace(0, 1, len(z))).sum(),
        lambda z, t: F.cross_entropy(z, t, reduction="none").mul(torch.linspace(0, 1, len(z))).sum(),
    ),
    "cast labels": (lambda z, y: F.cross_entropy(z, y.to(torch.uint8).long().view(-1)), F.cross_entropy),
    "labels as one-hot rows": (
        lambda z, y: F.cross_entropy(z, F.one_hot(y, CLASSES).double()),
        F.cross_entropy,
    ),
    "an auxiliary loss beside it": (
        lambda z, y: F.cross_entropy(z, y) + 0.1 * z.square().mean(),
        lambda z, t: F.cross_entropy(z, t) + 0.1 * z.square().mean(),
    ),
    "twice": (
        lambda z, y: F.cross_entropy(z, y) + 0.5 * F.cross_entropy(2 * z, y),
        lambda z, t: F.cross_entropy(z, t) + 0.5 * F.cross_entropy(2 * z, t),
    ),
    "before an accuracy": (
        lambda z, y: (F.cross_entropy(z, y), float((z.argmax(1) == y).double().mean()))[0],
        F.cross_entropy,
    ),
}


@pytest.mark.parametrize("case", ACCEPTED)
@pytest.mark.parametrize("per_sample", [False, True])
def test_cross_entropy_in_any_spelling(case: str, per_sample: bool) -> None:
    loss, by_target = ACCEPTED[case]
    values: list[tuple[Tensor, Tensor]] = []

    class Watched(Module):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            mix = method.last_mix
            assert mix is not None and mix.soft is not None
            t = target(batch[1], mix, mix.soft, 0.5, clean=batch_idx % 2 == 1)
            values.append((outputs["loss"].double(), by_target(self.scores, t).double()))

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            self.scores = self(batch[0])
            return self.loss(self.scores, batch[1])

    method = LaMix(seed=5, per_sample=per_sample)
    fit(Watched(sgd, loss), method)
    assert len(values) == 12
    for found, wanted in values:
        assert_close(found, wanted.detach())


WEIGHTS = torch.linspace(1, 2, CLASSES).double()
REFUSED: dict[str, tuple[Callable[..., Tensor], str]] = {
    "written out": (
        lambda z, y: -(F.one_hot(y, CLASSES) * z.log_softmax(1)).sum(1).mean(),
        "a part of the label is learned, and enters the loss through torch's cross_entropy",
    ),
    "gathered": (
        lambda z, y: -z.log_softmax(1).gather(1, y[:, None]).mean(),
        "a part of the label is learned",
    ),
    "picked": (
        lambda z, y: -z.log_softmax(1)[torch.arange(len(z)), y].mean(),
        "a part of the label is learned",
    ),
    "multi_margin_loss": (F.multi_margin_loss, "a part of the label is learned"),
    "mean squared error": (
        lambda z, y: F.mse_loss(z.softmax(1), F.one_hot(y, CLASSES).double()),
        "a part of the label is learned",
    ),
    "one of two losses": (
        lambda z, y: F.cross_entropy(z, y) + F.multi_margin_loss(z, y),
        "a part of the label is learned",
    ),
    "class weights": (lambda z, y: F.cross_entropy(z, y, WEIGHTS), "cross_entropy has no weight where"),
    "ignored labels": (
        lambda z, y: F.nll_loss(z.log_softmax(1), y, ignore_index=3),
        "nll_loss has no ignore_index where",
    ),
    "other scores": (
        lambda z, y: F.cross_entropy(torch.cat([z, z], 1), y),
        r"scores of shape \(4, 10\), and the label that is learned beside 'network.head' has shape \(4, 5\)",
    ),
    "other places": (
        lambda z, y: F.cross_entropy(z.flip(0), y.flip(0)),
        "learned for the samples in their order, and flip moves them",
    ),
    "another order": (
        lambda z, y: F.cross_entropy(z[torch.randperm(4)], y[torch.randperm(4)]),
        "learned for the samples in their order, and __getitem__ moves them",
    ),
    "masked": (
        lambda z, y: (F.cross_entropy(z, y, reduction="none") * (y >= 0)).mean(),
        "labels of different samples, or of two mixes, meet in mul",
    ),
    "no labels": (lambda z, y: z.square().mean(), "nothing that torch dispatches read them"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("per_sample", [False, True])
def test_any_other_loss_is_refused(case: str, per_sample: bool) -> None:
    loss, sentence = REFUSED[case]
    with pytest.raises(MixedLossError, match=sentence):
        fit(Module(sgd, loss), LaMix(per_sample=per_sample))


def test_without_the_callback_the_checkpoint_resumes_and_has_the_modules_numbers_alone(
    tmp_path: Path,
) -> None:
    save = ModelCheckpoint(tmp_path, "{epoch}", every_n_epochs=1, save_top_k=-1)
    module = Module(two_groups)
    fit(module, LaMix(seed=5), save, enable_checkpointing=True)
    kept = torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)
    assert kept["state_dict"].keys() == module.state_dict().keys()
    (optimizer,) = kept["optimizer_states"]
    assert [len(group["params"]) for group in optimizer["param_groups"]] == [2, 2]
    assert sorted(optimizer["state"]) == [0, 1, 2, 3]
    plain = Module(two_groups)
    plain.make(plain.network).load_state_dict(optimizer)
    trainer = make_trainer(max_epochs=2)
    trainer.fit(plain, loader(*samples(), batch_size=4), ckpt_path=str(tmp_path / "epoch=0.ckpt"))
    assert trainer.global_step == 2 * BATCHES


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("inside", [False, True])
def test_a_resumed_run_is_exact(route: str, inside: bool, tmp_path: Path) -> None:
    def run(resumed: str | None) -> tuple[dict[str, Tensor], list[list[Tensor]]]:
        members = [LaMix(), LaMix(beta=0.7)]
        method = RandomMix([*members, MixUp()], seed=5) if inside else LaMix(seed=5)
        module = Module(ROUTES[route])
        save = ModelCheckpoint(tmp_path, "{epoch}", every_n_epochs=1, save_top_k=-1)
        trainer = make_trainer(method, save, max_epochs=4, enable_checkpointing=True)
        trainer.fit(module, loader(*samples(), batch_size=4), ckpt_path=resumed)
        return module.state_dict(), [trained(m) for m in (members if inside else [method])]  # type: ignore[arg-type]

    whole, heads = run(None)
    again, heads_again = run(str(tmp_path / "epoch=1.ckpt"))
    torch.testing.assert_close(again, whole, rtol=0, atol=0)
    torch.testing.assert_close(heads_again, heads, rtol=0, atol=0)
    assert len(heads) == (2 if inside else 1)


def test_a_run_without_it_is_gone_on_with_by_it(tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, "{epoch}", every_n_epochs=1, save_top_k=-1)
    make_trainer(save, enable_checkpointing=True).fit(Module(adamw), loader(*samples(), batch_size=4))
    recorder, head = fit(Module(adamw), LaMix(seed=5), ckpt_path=str(tmp_path / "epoch=0.ckpt"))
    assert len(recorder.mixes) == BATCHES
    assert all(part.abs().sum() > 0 for part in head)


def test_a_second_fit_goes_on_with_its_second_head() -> None:
    module, method = Module(sgd), LaMix(seed=5)
    fit(module, method)
    before = [part.clone() for part in trained(method)]
    _, head = fit(module, method)
    torch.testing.assert_close(head, before, rtol=0, atol=0)


def test_nothing_of_it_stays_in_the_module() -> None:
    module = Module(sgd)
    state, attributes = list(module.state_dict()), set(vars(module.network.head))
    fit(module, LaMix())
    assert list(module.state_dict()) == state
    assert set(vars(module.network.head)) == attributes
    assert not module.network.head._forward_pre_hooks


def test_the_global_generator_is_not_asked() -> None:
    after = []
    for methods in ([], [LaMix(seed=5)]):
        make_trainer(*methods).fit(Module(sgd), loader(*samples(), batch_size=4))
        after.append(torch.get_rng_state())
    assert torch.equal(*after)


def test_puzzle_mix_shows_what_is_salient_at_one_half() -> None:
    def seen(method: LaMix) -> list[tuple[Tensor, Mixture]]:
        module = Module(lambda network: SGD(network.parameters(), lr=0.0))
        recorder, _ = fit(module, method, epochs=1)
        return list(zip(torch.split(samples()[0], 4), recorder.mixes, strict=True))

    _, y = samples()
    torch.manual_seed(1)
    plain = Module(sgd)
    for i, (own, mix) in enumerate(seen(LaMix(base=PuzzleMix(block_num=2, t_size=1), seed=5))):
        if i % 2 == 1:
            assert torch.equal(mix.inputs, own)
            continue
        wanted = puzzlemix(
            own,
            saliency=gradient_saliency(plain, own, torch.split(y, 4)[i]),
            lam=0.5,
            block_num=2,
            t_size=1,
            partner=mix.partner,
        )
        torch.testing.assert_close(mix.inputs, wanted.inputs)
        assert len(torch.unique(mix.weights, dim=0)) == 1  # of the label, whatever each mask shows
    by_name = seen(LaMix(base="puzzlemix", seed=5))
    assert any(not torch.equal(own, mix.inputs) for own, mix in by_name)


@pytest.mark.parametrize(
    ("options", "same"),
    [
        ({"accumulate_grad_batches": 3}, {"accumulate": 3}),
        ({"gradient_clip_val": 0.05}, {"clip": 0.05}),
        ({"precision": "64-true"}, {}),
    ],
)
def test_trainers_of_all_kinds(options: dict[str, Any], same: dict[str, Any]) -> None:
    module, method = Module(adamw), LaMix(seed=5)
    recorder, head = fit(module, method, **options)
    network, wanted = by_the_equations(adamw, head, recorder.mixes, **same)
    assert_close(module.network.state_dict(), network.state_dict())
    assert_close(trained(method), wanted)


class Checkpointed(Module):
    """Computes its scores again in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = checkpoint(self.network, x, use_reentrant=False)
        return scores


class CheckpointedByHand(Module):
    """The same, with gradients recorded in the backward pass alone."""

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = checkpoint(self.network, x.requires_grad_(), use_reentrant=True)
        return scores


def test_reentrant_checkpoints_hide_the_gradient_of_the_label() -> None:
    with pytest.raises(MixedLossError, match="computed without gradients.*use_reentrant=False"):
        fit(CheckpointedByHand(sgd), LaMix())


def test_activation_checkpoints() -> None:
    module, method = Checkpointed(sgd), LaMix(seed=5)
    recorder, head = fit(module, method)
    network, wanted = by_the_equations(sgd, head, recorder.mixes)
    assert_close(module.network.state_dict(), network.state_dict())
    assert_close(trained(method), wanted)


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_compiled_module(per_sample: bool) -> None:
    torch._dynamo.reset()
    module, method = Module(sgd), LaMix(seed=5, per_sample=per_sample)
    compiled: Any = torch.compile(module, backend="aot_eager")
    recorder, head = fit(compiled, method)
    network, wanted = by_the_equations(sgd, head, recorder.mixes)
    assert_close(module.network.state_dict(), network.state_dict())
    assert_close(trained(method), wanted)


def test_manual_optimization() -> None:
    class Manual(Module):
        def __init__(self) -> None:
            super().__init__(sgd)
            self.automatic_optimization = False

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:  # type: ignore[override]
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
            optimizer.step()

    module, method = Manual(), LaMix(seed=5)
    recorder, head = fit(module, method)
    network, wanted = by_the_equations(sgd, head, recorder.mixes)
    assert_close(module.network.state_dict(), network.state_dict())
    assert_close(trained(method), wanted)


def joint(folder: Path, beta: float) -> None:
    """Train on two processes and keep what each of them drew and ended with."""
    module, method = Module(adamw), LaMix(beta=beta, seed=5)

    class Save(Recorder):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            kept = (
                [*zip(self.batches, self.mixes, strict=True)],
                start.head,
                trained(method),
                pl_module.network.state_dict(),
            )
            torch.save(kept, folder / f"{trainer.global_rank}.pt")

    start = Start(method)
    trainer = make_trainer(start, method, Save(), strategy="ddp_notebook", devices=2, max_epochs=2)
    trainer.fit(module, loader(*samples(), batch_size=4))


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_two_processes_train_as_one_on_the_joint_batch(beta: float, tmp_path: Path) -> None:
    in_a_fresh_process(joint, tmp_path, beta)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1))
    for part in (1, 2, 3):
        torch.testing.assert_close(first[part], second[part], rtol=0, atol=0)
    torch.manual_seed(1)
    network = Network().double()
    weight, bias = (part.clone().requires_grad_() for part in first[1])
    optimizer = adamw(network)
    optimizer.param_groups[-1]["params"] += [weight, bias] if beta < 1 else []
    assert len(first[0]) == len(second[0]) == BATCHES
    for i, ranks in enumerate(zip(first[0], second[0], strict=True)):
        losses = []
        for (own, y), mix in ranks:
            clean = i % 2 == 1
            embedding = network.embed(own if clean else 0.5 * own + 0.5 * own[mix.partner])
            p = soft_label(embedding, weight, bias)
            wanted = target(y, mix, p, beta, clean=clean)
            losses.append(F.cross_entropy(network.head(embedding), wanted))
        optimizer.zero_grad()
        torch.autograd.backward(torch.stack(losses).mean())
        optimizer.step()
    assert_close(first[3], network.state_dict())
    if beta < 1:
        assert_close(first[2], [weight.detach(), bias.detach()])


class Bare(Module):
    """Has no linear layer."""

    def __init__(self) -> None:
        super().__init__(sgd)
        self.network = nn.Conv2d(C, CLASSES, 4).double()  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flatten(1)


def test_a_module_without_a_linear_layer_is_refused() -> None:
    with pytest.raises(
        ValueError, match="second head beside the linear layer.*Bare has none.*linear layers here: none"
    ):
        fit(Bare(), LaMix())


def test_a_classifier_of_another_name_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"'heads' is none.*linear layers here: network\.hidden, network\.head"
    ):
        fit(Module(sgd), LaMix(classifier="heads"))


def test_the_classifier_can_be_named() -> None:
    class Crossed(Module):
        def __init__(self) -> None:
            super().__init__(sgd)
            self.network.projection = nn.Linear(7, 2).double()

    with pytest.raises(MixedLossError, match=r"was called before 'network\.projection'"):
        fit(Crossed(), LaMix())
    fit(Crossed(), LaMix(classifier="network.head"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"beta": 1.5}, r"beta=1\.5 is out of range: it must be a number from 0 to 1"),
        ({"lam": -0.1}, r"lam=-0\.1 is out of range"),
        ({"lam": "beta"}, "lam='beta' is unknown"),
        ({"base": "cutmix"}, "base='cutmix' is unknown"),
        ({"at": "hidden"}, "at='hidden' has no meaning for LaMix"),
        ({"dims": [2]}, r"dims=\[2\] has no meaning for LaMix"),
        ({"criterion": "loss"}, "criterion='loss' has no meaning for LaMix"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        LaMix(**arguments)


def test_integers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"LaMix interpolates its inputs, which are torch\.int64"):
        lamix(torch.ones(4, 3, dtype=torch.int64))


def test_a_copy_shares_nothing() -> None:
    method = LaMix(seed=5)
    fit(Module(sgd), method)
    twin = copy.deepcopy(method)
    assert twin._head is not method._head and twin._clean._head is twin._head
    torch.testing.assert_close(trained(twin), trained(method), rtol=0, atol=0)


def test_a_pair_is_any_two_by_default() -> None:
    x = torch.arange(6.0)[:, None]
    mix = LaMix(seed=0).mix(x, Step(0, 1))
    torch.testing.assert_close(mix.inputs, (x + x[mix.partner]) / 2)
    assert torch.equal(lamix(x, partner=neighbours(6)).partner, neighbours(6))


def test_half_precision_computes_the_label_in_single() -> None:
    class Single(Module):
        def __init__(self) -> None:
            super().__init__(sgd)
            self.float()

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            self.scores = self(batch[0].float())
            return F.cross_entropy(self.scores, batch[1])

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            mix = method.last_mix
            assert mix is not None and mix.soft is not None and mix.soft.dtype == torch.float32
            assert self.scores.dtype == torch.bfloat16
            wanted = target(batch[1], mix, mix.soft.double(), 0.5, clean=batch_idx % 2 == 1)
            losses.append((outputs["loss"].double(), F.cross_entropy(self.scores.double(), wanted)))

    losses: list[tuple[Tensor, Tensor]] = []
    method = LaMix(seed=5)
    fit(Single(), method, precision="bf16-mixed")
    for found, wanted in losses:
        torch.testing.assert_close(found, wanted.detach(), rtol=1e-5, atol=0)
    assert len(losses) == 2 * BATCHES
