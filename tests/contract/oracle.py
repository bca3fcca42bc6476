"""The explicit formula of a mixed step, computed by an untouched twin of the module, and what rows share.

A row trains an unmodified module through a real Trainer. Beside it stands a `Witness`: at each batch it
lets a twin with the same weights run the same step on the mixed inputs with *plain* labels, once for each
term of the formula, and holds the loss and every gradient of the module against the weighted sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader

from lightning_msda import MSDA, Mixture
from tests.training import make_trainer

Terms = list[tuple[Any, Any]]  # weights with the labels that they stand before


def row(
    section: str, name: str, *, per_sample: bool = False, refused: str | None = None
) -> pytest.MarkDecorator:
    """Mark a test as a row of docs/contract.md.

    Args:
        section: The section's title.
        name: What works, in the words of its users.
        per_sample: Whether it was tried with a lam for each sample; otherwise with one for the batch.
        refused: What the refusal is for, if training stops with a sentence; None: it trains.
    """
    return pytest.mark.row(section, name, per_sample=per_sample, refused=refused)


def rows(section: str, table: dict[str, Any]) -> list[Any]:
    """Return the values of a table as parameters, each marked as a row under its name."""
    return [
        pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=row(section, name), id=name)
        for name, value in table.items()
    ]


def both(section: str, name: str) -> list[Any]:
    """Return one lam and a lam for each sample, as rows of one name."""
    return [
        pytest.param(p, marks=row(section, name, per_sample=p), id="by sample" if p else "by batch")
        for p in (False, True)
    ]


def cells(section: str, names: Iterable[str], prefix: str = "", *, refused: str | None = None) -> list[Any]:
    """Return names with one lam and with one for each sample, as rows of these names."""
    return [
        pytest.param(name, p, marks=row(section, prefix + name, per_sample=p, refused=refused))
        for name in names
        for p in (False, True)
    ]


def classes(mix: Mixture, y: Any) -> Terms:
    """Return the terms of a loss of classes with one lam: the labels of each source."""
    sources = [y, *(tree_map(lambda t, p=p: t[p], y) for p in mix.partners.unbind(1))]
    return list(zip(mix.weights[0].unbind(), sources, strict=True))


def classes_by_sample(mix: Mixture, y: Any) -> Terms:
    """Return the terms of a mean over samples with a lam for each: swapping one label changes one term."""
    terms: Terms = [(1 - (1 - mix.lam).sum(), y)]
    for i, (partner, lam) in enumerate(zip(mix.partner.tolist(), mix.lam.unbind(), strict=True)):

        def swap(t: Tensor, i: int = i, partner: int = partner) -> Tensor:
            swapped = t.clone()
            swapped[i] = t[partner]
            return swapped

        terms.append((1 - lam, tree_map(swap, y)))
    return terms


def joint(counted: Callable[[Any], Tensor]) -> Callable[[Mixture, Any], Terms]:
    """Return the formula by sample of a mean S / W that divides by what its labels count.

    ``sum_i [lam_i w(a_i) l(a_i) + (1 - lam_i) w(b_i) l(b_i)] / sum_i [lam_i w(a_i) + (1 - lam_i) w(b_i)]``:
    S and W are each a sum over samples, and have the terms of `classes_by_sample`. So the formula is
    ``sum_t c_t S_t / sum_t c_t W_t``, and S_t is W_t times the loss.

    Args:
        counted: Returns W of labels.
    """

    def formula(mix: Mixture, y: Any) -> Terms:
        terms = classes_by_sample(mix, y)
        shares = [c * counted(labels) for c, labels in terms]
        return [(share / sum(shares), labels) for share, (_, labels) in zip(shares, terms, strict=True)]

    return formula


def values(mix: Mixture, y: Any) -> Terms:
    """Return the one term of labels that are mixed themselves."""
    return [(1.0, blended(mix, y))]


def dense(mix: Mixture, y: Any) -> Terms:
    """Return the one term of labels that follow the pixels' mask."""
    return [(1.0, masked(mix, y))]


def unmixed(mix: Mixture, y: Any) -> Terms:
    """Return the one term of labels that are left alone."""
    return [(1.0, y)]


def blended(mix: Mixture, value: Any) -> Any:
    """Return ``lam * own + (1 - lam) * partner`` of every tensor."""

    def mixed(t: Tensor) -> Tensor:
        lam = mix.lam.to(t.dtype).view(-1, *[1] * (t.dim() - 1))
        return lam * t + (1 - lam) * t[mix.partner]

    return tree_map(mixed, value)


def masked(mix: Mixture, value: Any) -> Any:
    """Return own where the mask is 1 and partner elsewhere, of every tensor laid out as (N, *mask)."""

    def mixed(t: Tensor) -> Tensor:
        assert mix.mask is not None and mix.source is None
        sizes = [mix.inputs.size(dim) for dim in mix.dims]
        mask = mix.mask.reshape(-1, *sizes)
        if list(t.shape[1:]) != sizes:  # beside the dimensions of the mask there are others, as in inputs
            mask = mix.mask.reshape(
                len(mask), *[t.size(d) if d in mix.dims else 1 for d in range(1, t.dim())]
            )
        return torch.where(mask, t, t[mix.partner])

    return tree_map(mixed, value)


def mixed(mix: Mixture, value: Any) -> Any:
    """Return every tensor as the formula mixes it, all by the same lam or mask."""
    return blended(mix, value) if mix.mask is None else masked(mix, value)


class Witness(Callback):
    """Holds the loss and every gradient of each batch against the formula; to be listed after the method.

    Args:
        method: The method.
        make: Returns a new module of the kind that is trained.
        data: Inputs and labels of each batch.
        collate: Makes a batch of inputs and labels.
        terms: The formula: weights, and the labels that each stands before.
        inputs: The inputs as the step is expected to see them, of the mix and the original ones.
        layer: Name of the layer at whose output the formula mixes, if not at the inputs.
        rtol: Largest relative error of the loss and of each parameter's gradient, by its norm.
    """

    def __init__(
        self,
        method: MSDA,
        make: Callable[[], LightningModule],
        data: list[tuple[Any, Any]],
        collate: Callable[[Any, Any], Any],
        terms: Callable[[Mixture, Any], Terms],
        inputs: Callable[[Mixture, Any], Any],
        layer: str | None,
        rtol: float,
    ) -> None:
        self.method = method
        self.make = make
        self.data = data
        self.collate = collate
        self.terms = terms
        self.inputs = inputs
        self.layer = layer
        self.rtol = rtol
        self.mixed = 0
        self.seen = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        # Whatever the step draws, the twin draws too; and it begins with the same weights.
        self.rng = torch.get_rng_state()
        self.state = {name: value.detach().clone() for name, value in pl_module.state_dict().items()}
        self.before = {name: _gradient(p) for name, p in pl_module.named_parameters()}

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.before = {name: torch.zeros_like(p) for name, p in pl_module.named_parameters()}

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.after = {name: _gradient(p) for name, p in pl_module.named_parameters()}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        mix = self.method.last_mix
        x, y = self.data[batch_idx % len(self.data)]
        self.seen += 1
        if mix is None:
            terms, seen = [(1.0, y)], x
        else:
            terms, seen = self.terms(mix, y), x if self.layer is not None else self.inputs(mix, x)
        outside = torch.get_rng_state()
        twin = self.make().to(next(pl_module.parameters()).dtype).train()
        twin._trainer = trainer
        twin.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
        twin.log_dict = lambda *args, **kwargs: None  # type: ignore[method-assign]
        if self.layer is not None and mix is not None:
            twin.get_submodule(self.layer).register_forward_hook(lambda m, a, out: _mixed_output(mix, out))
        total: Any = 0.0
        for weight, labels in terms:
            twin.load_state_dict(self.state)
            torch.set_rng_state(self.rng)
            with trainer.precision_plugin.train_step_context():
                out: Any = twin.training_step(self.collate(seen, labels), batch_idx)
            loss = out["loss"] if isinstance(out, dict) else out
            share = torch.as_tensor(weight).to(loss.dtype) * loss / trainer.accumulate_grad_batches
            share.backward()
            total = total + share.detach()
        torch.set_rng_state(outside)
        _close(outputs["loss"], total, self.rtol, "the loss")
        wanted = {name: _gradient(parameter) for name, parameter in twin.named_parameters()}
        largest = max(float(gradient.norm()) for gradient in wanted.values())
        assert largest > 0
        for name, gradient in wanted.items():
            # A bias before a batch norm has the gradient 0, and both sums differ by their rounding alone.
            actual = self.after[name] - self.before[name]
            _close(actual, gradient, self.rtol, f"the gradient of {name}", at_least=largest / 10)
        if mix is not None and 0.02 < float(mix.lam.double().mean()) < 0.98:
            self.mixed += 1


def trains(
    make: Callable[[], LightningModule],
    data: Iterable[tuple[Any, Any]],
    method: MSDA,
    *,
    collate: Callable[[Any, Any], Any] = lambda x, y: (x, y),
    terms: Callable[[Mixture, Any], Terms] = classes,
    inputs: Callable[[Mixture, Any], Any] = lambda mix, x: mix.inputs,
    layer: str | None = None,
    rtol: float = 1e-10,
    callbacks: Iterable[Callback] = (),
    wrap: Callable[[LightningModule], Any] = lambda module: module,
    **options: Any,
) -> LightningModule:
    """Train a module under a method and hold every batch against the formula; return the module.

    Args:
        make: Returns a new module.
        data: Inputs and labels of each batch, tensors of one leading size, nested in any way.
        method: The method.
        collate: Makes the loader's batch of them.
        terms: As in `Witness`, and so are the next three.
        inputs: See there.
        layer: See there.
        rtol: 1e-10 for double, 1e-5 for single, 1e-2 for half precision.
        callbacks: Others beside the method, which come first.
        wrap: What is handed to the Trainer, such as the compiled module.
        **options: Of the Trainer.
    """
    data = list(data)
    module = make()
    witness = Witness(method, make, data, collate, terms, inputs, layer, rtol)
    batches: Any = [collate(x, y) for x, y in data]
    loaded = DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "1")
        make_trainer(*callbacks, method, witness, **options).fit(wrap(module), loaded)
    assert witness.seen > 0 and witness.mixed > 0, "nothing was mixed: this row shows nothing"
    return module


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.detach().clone()


def _mixed_output(mix: Mixture, output: Any) -> Any:
    if isinstance(output, Tensor):
        return mixed(mix, output)
    places = list(output) if isinstance(output, dict) else range(len(output))
    place = next(p for p in places if isinstance(output[p], Tensor))
    first = _mixed_output(mix, output[place])
    if isinstance(output, dict):
        return type(output)({**output, place: first})
    return type(output)(first if p == place else output[p] for p in places)


def _close(actual: Tensor, wanted: Tensor, rtol: float, what: str, at_least: float = 0.0) -> None:
    error = float((actual.double() - wanted.double()).norm())
    scale = max(float(wanted.double().norm()), at_least)
    assert error <= rtol * scale, f"{what} is off by {error:.3g} of {scale:.3g}"
