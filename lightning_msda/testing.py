"""A contract for mixing methods: `check_method` tells whether one keeps the library's laws."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_msda.callback import MSDA
from lightning_msda.mixture import Mixture
from lightning_msda.ops import along
from lightning_msda.quiet import quiet
from lightning_msda.randomness import Step

__all__ = ["check_method"]


def check_method(
    make: Callable[[], MSDA],
    *,
    spatial: Sequence[int] = (7, 10),
    channels: int = 6,
    labels_follow_pixels: bool = True,
) -> None:
    """Check that a mixing method keeps the laws, by itself and inside a Trainer.

    What a mix claims is held against its pixels: of images that are constant for each sample, a mix shows
    how much of each went into it. The loss computed from these shares is then held against the loss that
    a Trainer minimises, with its gradients.

    Args:
        make: Returns a new method; a class whose arguments have defaults will do.
        spatial: Spatial sizes of the images.
        channels: Their channels, from 2.
        labels_follow_pixels: Whether the labels are weighted by the shares of the pixels, as they are in
            most methods.

    Raises:
        AssertionError: If a law is broken, with a sentence.

    Example:
        >>> from lightning_msda import CutMix
        >>> check_method(CutMix)
    """
    method = make()
    n = min(6, channels)
    odd = tuple(3 + 2 * i for i in range(len(spatial)))
    for ordinal in range(3):
        for size in (tuple(spatial), odd, (1,) * len(spatial)):
            for samples in (n, 1):
                _check_mix(method, _basis(samples, channels, size), Step(1, ordinal), labels_follow_pixels)
    _check_randomness(method, _basis(n, channels, tuple(spatial)))
    strided = _basis(2 * n, 2 * channels, tuple(spatial))[::2, ::2]
    mixes = [method.mix(x, Step(seed=1, ordinal=0)).inputs for x in (strided, strided.contiguous())]
    _require(torch.equal(*mixes), "a mix does not depend on how its inputs lie in memory")
    _require(type(pickle.loads(pickle.dumps(method))) is type(method), "a method can be pickled")
    with quiet():
        _check_training(make(), _basis(n, channels, tuple(spatial)), labels_follow_pixels)


def _check_mix(method: MSDA, x: Tensor, step: Step, labels_follow_pixels: bool) -> None:
    """Check one mix by itself."""
    before = x.clone()
    with torch.no_grad():
        mix = method.mix(x, step)
    n, k = mix.weights.shape
    _require(torch.equal(x, before), "inputs are not written to")
    kind = (x.shape, x.dtype, x.device)
    _require(
        (mix.inputs.shape, mix.inputs.dtype, mix.inputs.device) == kind, "inputs keep shape, dtype and device"
    )
    _require(mix.weights.shape == (len(x), k), "weights have shape (N, k)")
    _require(mix.partners.shape == (n, k - 1), "partners have shape (N, k - 1)")
    inside = mix.partners.numel() == 0 or (int(mix.partners.min()) >= 0 and int(mix.partners.max()) < n)
    _require(inside, "partners are samples of the batch")
    _require(bool((mix.weights >= 0).all() and (mix.weights.sum(1) <= 1 + 1e-6).all()), "weights are shares")
    _require(mix.per_sample or bool((mix.weights == mix.weights[0]).all()), "without per_sample lam is one")
    if mix.mask is not None:
        own = mix.mask.to(mix.weights.dtype).expand(n, *mix.mask.shape[1:]).flatten(1).mean(1)
        close = torch.allclose(own, mix.lam, atol=1e-6)
        _require(close or not labels_follow_pixels, "lam is the mean of the mask that was used")
    if labels_follow_pixels:
        shares = torch.zeros(n, n, dtype=mix.weights.dtype).scatter_add_(1, _sources(mix), mix.weights.cpu())
        seen = _shares(mix.inputs)[:, :n]
        _require(
            torch.allclose(seen, shares.to(seen.dtype), atol=1e-5),
            f"labels are weighted by what the pixels show (shares {_first(seen)}, weights {_first(shares)})",
        )


def _check_randomness(method: MSDA, x: Tensor) -> None:
    """Check that draws come from the step alone."""
    states = torch.get_rng_state(), random.getstate()
    mixes = [method.mix(x, Step(seed=1, ordinal=ordinal)) for ordinal in [0, *range(8)]]
    ranks = [method.mix(x, Step(seed=1, ordinal=ordinal, rank=1)) for ordinal in range(8)]
    after = torch.get_rng_state(), random.getstate()
    untouched = torch.equal(states[0], after[0]) and states[1] == after[1]
    _require(untouched, "global generators are not advanced")
    torch.manual_seed(torch.initial_seed() + 1)
    again = method.mix(x, Step(seed=1, ordinal=0))
    torch.set_rng_state(states[0])
    same = torch.equal(mixes[0].inputs, mixes[1].inputs) and torch.equal(mixes[0].inputs, again.inputs)
    _require(same, "the same step draws the same mix")
    if any(not torch.equal(mix.inputs, x) for mix in mixes):
        changing = any(not torch.equal(mix.inputs, mixes[0].inputs) for mix in mixes)
        _require(changing, "other steps draw other mixes")
        differing = any(not torch.equal(a.inputs, b.inputs) for a, b in zip(mixes[1:], ranks, strict=True))
        _require(differing, "other processes draw other mixes")


def _check_training(method: MSDA, x: Tensor, labels_follow_pixels: bool) -> None:
    """Check that the mixture's loss is minimised, and nothing but the training batches is mixed."""
    n = len(x)
    data = x.repeat(4, *[1] * (x.dim() - 1)), torch.arange(n).repeat(4)
    before = [tensor.clone() for tensor in data]
    module = _train([method], data)
    _require(len(module.steps) == 4, "every batch is trained on")
    for seen, weight, loss, gradient in module.steps if labels_follow_pixels else []:
        free = weight.clone().requires_grad_()
        logits = seen.flatten(1) @ free.t()
        own_losses = [F.cross_entropy(logits, torch.full((n,), y), reduction="none") for y in range(n)]
        wanted = (_shares(seen)[:, :n] * torch.stack(own_losses, 1)).sum(1).mean()
        (wanted_gradient,) = torch.autograd.grad(wanted, free)
        close = torch.allclose(loss, wanted, rtol=1e-4) and torch.allclose(
            gradient, wanted_gradient, atol=1e-5
        )
        _require(close, f"the loss is the mixture's (it is {loss:.6f}, by the pixels {wanted:.6f})")
    _require(module.validated_plain, "validation is not mixed")
    _require(all(map(torch.equal, data, before)), "the data set is not written to")
    _check_left_alone(module, _train([], data))
    crashed = _train([method], data, crashes=True)
    _require(len(crashed.steps) == 2, "an exception in the step gets through")
    _check_left_alone(crashed, _train([], data, crashes=True))


def _check_left_alone(module: _Module, other: _Module) -> None:
    """Check that a module was left like another one that was trained without the method."""
    for (name, part), twin in zip(module.named_modules(), other.modules(), strict=True):
        _require(_form(part) == _form(twin), f"the module's attributes and hooks are left alone ({name!r})")
        _require(part.training == twin.training, f"the module is left in its mode ({name!r})")
    _require(module.strategy_attributes == other.strategy_attributes, "the strategy gets its own step back")
    plain = [type(value) in (Tensor, nn.Parameter) for value in module.state_dict(keep_vars=True).values()]
    _require(all(plain), "the module's tensors are plain")
    copy.deepcopy(module)
    pickle.dumps(module)


def _form(module: nn.Module) -> dict[str, Any]:
    """Return the type of every attribute, and the sizes of those that hold hooks, layers or parameters."""
    return {
        name: (type(value), len(value) if isinstance(value, dict) else None)
        for name, value in vars(module).items()
    }


def _train(callbacks: list[Callback], data: tuple[Tensor, Tensor], *, crashes: bool = False) -> _Module:
    """Train a module for an epoch on views of the data, four batches."""
    n = len(data[0]) // 4
    batches = [[tensor[i : i + n] for tensor in data] for i in range(0, 4 * n, n)]
    module = _Module(data[0][0].numel(), n, crashes=crashes)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with suppress(ZeroDivisionError):
        trainer.fit(module, DataLoader(batches, batch_size=None), DataLoader(batches[:1], batch_size=None))  # type: ignore[arg-type]
    module.strategy_attributes = set(vars(trainer.strategy))
    return module


class _Module(LightningModule):
    """A linear classifier that knows nothing of mixing and remembers what it saw."""

    def __init__(self, features: int, classes: int, *, crashes: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(features, classes, bias=False)
        self.crashes = crashes
        self.steps: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self.seen = (torch.empty(0), torch.empty(0))
        self.strategy_attributes: set[str] = set()
        self.validated_plain = False

    @override
    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.linear(x.flatten(1))
        return scores

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.crashes and batch_idx == 2:
            raise ZeroDivisionError
        x, y = batch
        self.seen = x.clone(), self.linear.weight.detach().clone()
        return F.cross_entropy(self(x), y)

    @override
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert self.linear.weight.grad is not None
        self.steps.append((*self.seen, outputs["loss"], self.linear.weight.grad.clone()))

    @override
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        whole = torch.equal(_shares(x)[:, : len(x)], torch.eye(len(x)))
        self.validated_plain = whole and type(y) is Tensor and torch.equal(y, torch.arange(len(x)))

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _basis(n: int, channels: int, size: tuple[int, ...]) -> Tensor:
    """Return images that are constant, each 1 in a channel of its own."""
    return along(torch.eye(n, channels), (1,), 2 + len(size)).expand(n, channels, *size).contiguous()


def _shares(mixed: Tensor) -> Tensor:
    """Return how much of each of these images is in each mix, shape ``(N, C)``."""
    return mixed.flatten(2).mean(2)


def _sources(mix: Mixture) -> Tensor:
    """Return the index of each source, own first, shape ``(N, k)``."""
    return torch.cat([torch.arange(len(mix.weights))[:, None], mix.partners.cpu()], 1)


def _first(shares: Tensor) -> str:
    return ", ".join(f"{share:.3f}" for share in shares[0].tolist())


def _require(kept: bool, law: str) -> None:
    if not kept:
        raise AssertionError(f"A law is broken: {law}.")
