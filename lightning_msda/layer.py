"""Parts of the module by name: a hidden layer that mixes its output, a loss that is called by source."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lightning_msda import ledger
from lightning_msda.fields import first_tensor, get, replace
from lightning_msda.mixture import Mixture
from lightning_msda.randomness import Step

if TYPE_CHECKING:
    from lightning_msda.callback import MSDA

__all__ = ["Layer", "find_criterion", "find_layer"]


class Layer:
    """A hidden layer that mixes what it returns, while a part of the step runs.

    It mixes at every call, and each time alike: a layer may be called several times in a step, and runs
    again in the backward pass under activation checkpointing.

    Args:
        module: The layer.
        method: Whose ``mix`` is applied to its output.
        step: Where training stands.
        weights: Filled with the weights of the labels when they are known, shape ``(N, 2)`` or ``(1, 2)``.
        n: Number of samples ``N``.
    """

    def __init__(self, module: nn.Module, method: MSDA, step: Step, weights: Tensor, n: int) -> None:
        self.name = method.at
        self.mixture: Mixture | None = None
        self._method = method
        self._step = step
        self._weights = weights
        self._n = n
        self._foreseen: list[list[int]] = []
        self._module = module
        self._open = False

    @contextmanager
    def mixing(self) -> Iterator[None]:
        """Mix what the layer returns, for as long as a part of the step runs."""
        if self._open:  # a backward pass within the step
            yield
            return
        self._open = True
        handle = self._module.register_forward_hook(self._mix_output)
        try:
            yield
        finally:
            handle.remove()
            self._open = False

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy of the module takes along: a hook that does nothing."""
        return {"name": self.name, "_open": False}

    def foresee(self, other: Tensor) -> Mixture:
        """Return how another input must be mixed beside the layer's features: by the same draws.

        Args:
            other: Shape ``(N, ...)``; for methods with a mask, of the features' sizes where it runs.

        Raises:
            ValueError: If the method's masks depend on the features.
        """
        if self._method.reads_values:
            name = type(self._method).__name__
            raise ValueError(
                f"{name} looks at what it mixes: its mask at {self.name!r} is not known before, and other"
                " inputs cannot follow it. Leave them out of input_key, or use CutMix."
            )
        mixture = self._method.mix(other if other.is_floating_point() else other.float(), self._step)
        self._foreseen.append(_masked_sizes(mixture))
        return mixture

    def _mix_output(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Return the output with its first tensor mixed."""
        if not self._open:
            return output
        if isinstance(output, Tensor):
            return self._mixed(output)
        place = first_tensor(output)
        if place is None:
            raise ValueError(f"{self.name!r} returned a {type(output).__name__} without a tensor to mix.")
        return replace(output, {place: self._mixed(get(output, place))})

    def _mixed(self, features: Tensor) -> Tensor:
        if features.dim() == 0 or len(features) != self._n:
            raise ValueError(
                f"{self.name!r} returned features of shape {tuple(features.shape)} for {self._n} samples:"
                " their first dimension must be the batch. Name another layer by at."
            )
        first = self.mixture
        if first is not None and self._method.reads_values and first.aligned_dims(features) == first.dims:
            return first.follow(features)  # the weights belong to the masks of the first call
        mixture = self._method.mix(features, self._step)
        if mixture.per_sample and len(self._weights) < self._n:
            name = type(self._method).__name__
            raise ValueError(
                f"{name} mixed at {self.name!r} with a lam for each sample, which it did not say before. Set"
                f" per_sample=True, or let {name}.lam_by_sample be true."
            )
        if mixture.mask is not None and self._method.dims is None and features.dim() == 3:
            raise ValueError(
                f"{self.name!r} returned features of shape {tuple(features.shape)}, and a mask could run over"
                " either dimension: say dims=[1] for tokens (N, T, E) or dims=[2] for signals (N, C, L)."
            )
        sizes = _masked_sizes(mixture)
        if any(other != sizes for other in self._foreseen):
            raise ValueError(
                f"At {self.name!r} the mask has sizes {sizes}, but beside it other inputs were mixed by masks"
                f" of sizes {self._foreseen}. Leave them out of input_key, or name another layer by at."
            )
        if self.mixture is not None:
            before = _masked_sizes(self.mixture)
            if before != sizes:
                raise ValueError(
                    f"{self.name!r} was called for features of shape {tuple(self.mixture.inputs.shape)} and"
                    f" of {tuple(features.shape)} in one step: masks of sizes {before} and {sizes} have no"
                    " common lam. Name another layer by at, or use MixUp."
                )
            return mixture.inputs  # the weights may be in a graph already
        self._weights.copy_(mixture.weights[: len(self._weights)])
        ledger.weights_are_known()
        self.mixture = dataclasses.replace(mixture, inputs=mixture.inputs.detach())
        return mixture.inputs


def _masked_sizes(mixture: Mixture) -> list[int]:
    return [mixture.inputs.size(dim) for dim in mixture.dims]


def find_layer(module: nn.Module, name: str) -> nn.Module:
    """Return a sub-module by its dotted name.

    Args:
        module: The module to look in.
        name: The name.

    Raises:
        ValueError: If there is none of that name, with those that come near.
    """
    layers: dict[str, nn.Module] = dict(module.named_modules(remove_duplicate=False))
    if name not in layers:
        near = difflib.get_close_matches(name, [layer for layer in layers if layer], n=3, cutoff=0.4)
        raise ValueError(
            f"at={name!r} is no layer of {type(module).__name__}."
            + (
                f" Near it are {', '.join(near)}."
                if near
                else f" Its layers are {', '.join(list(layers)[1:9])}."
            )
        )
    return layers[name]


def find_criterion(module: nn.Module, name: str) -> tuple[Any, str]:
    """Return who owns a loss, and the loss's name there.

    Args:
        module: The module to look in.
        name: Dotted name of an attribute or a method.

    Raises:
        ValueError: If there is nothing of that name that can be called.
    """
    *path, last = name.split(".")
    owner: Any = module
    for step in path:
        owner = getattr(owner, step, None)
    loss = getattr(owner, last, None)
    if not callable(loss):
        raise ValueError(
            f"criterion={name!r} is nothing that can be called in {type(module).__name__}. Name the attribute"
            " or the method that computes the loss from the labels, such as 'loss_fn' or 'model.loss'."
        )
    return (loss, "forward") if isinstance(loss, nn.Module) else (owner, last)
