"""What stands between the trainer and the module for one batch, and is gone after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace as with_changes
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import Strategy
from torch import Tensor

from lightning_msda import ledger
from lightning_msda.boundaries import watched
from lightning_msda.effects import unheard
from lightning_msda.fields import Path, get, map_tensors, replace
from lightning_msda.layer import Layer
from lightning_msda.mixed_tensor import (
    MixedLossError,
    MixedTensor,
    in_every_world,
    refuse_leaked,
    refuse_unread,
    release,
    seen,
    settle,
)
from lightning_msda.mixture import Mixture
from lightning_msda.second_head import SoftLabel
from lightning_msda.targets import TargetKind, mix_target

__all__ = ["Span"]


_WRAPPED = ("training_step", "backward", "optimizer_step")


class Span:
    """One batch's way through the step.

    While it is open, the strategy's ``training_step`` hands the step a shallow copy of the batch with the
    mixed inputs and targets in it, and hands back the mixture's loss; its ``backward`` looks at the losses of
    a manual optimization; and its ``optimizer_step``, which runs all of an automatic one, puts all back when
    it is through. They are instance attributes of the strategy, so neither the module nor the batch is
    touched. A step that runs several times for one batch (LBFGS) sees one mix, and fresh labels each time.

    Args:
        strategy: The trainer's strategy.
        batch: The batch, as the trainer will pass it on.
        mixture: How it is mixed.
        mix: Mixes its inputs again by the same draws, should another hook edit them before the step.
        inputs: Places of the inputs in the batch, the mixed one first.
        targets: Places of the targets.
        kind: What the targets are taken for, as in `mix_target`.
        automatic: Whether the trainer optimizes what the step returns.
        criterion: Who owns the loss that is called once for each source, and its name there.
        layer: The hidden layer at which the batch is mixed, in the place of the input.
        module: The module that is trained.
        clean_lam: Weight of its loss on the batch as it came, which is added to the mixture's.
        learned: The label that is learned beside those of the sources.
        on_close: What else is to be put back.
    """

    def __init__(
        self,
        strategy: Strategy,
        batch: Any,
        mixture: Mixture,
        mix: Callable[[Tensor], Mixture],
        *,
        inputs: Sequence[Path],
        targets: Sequence[Path],
        kind: TargetKind | None = None,
        automatic: bool = True,
        criterion: tuple[Any, str] | None = None,
        layer: Layer | None = None,
        module: LightningModule | None = None,
        clean_lam: float = 0.0,
        learned: SoftLabel | None = None,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self.strategy = strategy
        self.batch = batch
        self.mixture = mixture
        self.targets = targets
        self.kind = kind
        self.automatic = automatic
        self.criterion = criterion
        self.layer = layer
        self.learned = learned
        self.module = module
        self.clean_lam = clean_lam
        self.on_close = on_close
        self._mix = mix
        self._paths = inputs
        self._put_inputs()
        self._before = {name: vars(strategy).get(name) for name in _WRAPPED}
        self._step, self._backward = strategy.training_step, strategy.backward
        self._optimizer_step = strategy.optimizer_step
        self._backwards = 0
        strategy.training_step = self.training_step  # type: ignore[method-assign]
        strategy.backward = self.backward  # type: ignore[method-assign, assignment]
        strategy.optimizer_step = self.optimizer_step  # type: ignore[method-assign]

    def close(self) -> None:
        """Leave everything as it was; a second time does nothing."""
        attributes = vars(self.strategy)
        for name, before in self._before.items():
            if attributes.get(name) == getattr(self, name):
                del attributes[name]
                if before is not None:
                    attributes[name] = before
        release()
        self.on_close()

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Run the step on the mixed batch; on any other, run it as it is."""
        if args[0] is not self.batch:
            return self._step(*args, **kwargs)
        with self._closed_by_failure():
            return self._mixed_step(*args, **kwargs)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the backward pass, if nothing that left torch is in the loss of a manual optimization."""
        with self._closed_by_failure():
            self._backwards += 1
            if not self.automatic and not isinstance(loss, MixedTensor):
                refuse_leaked(loss)
            try:
                return self._backward(loss, *args, **kwargs)
            except RuntimeError as error:
                if self.layer is None or not self.mixture.per_sample or "inplace operation" not in str(error):
                    raise
                raise MixedLossError(
                    f"A loss was computed before {self.layer.name!r} mixed its output, when the lam of each"
                    " sample was not known. Call the layer first, or leave out per_sample."
                ) from error

    def optimizer_step(self, *args: Any, **kwargs: Any) -> Any:
        """Let the optimizer step; where that runs the whole step, all is put back after it."""
        try:
            return self._optimizer_step(*args, **kwargs)
        finally:
            if self.automatic:
                self.close()

    @contextmanager
    def _closed_by_failure(self) -> Iterator[None]:
        """Close at once: another callback's failure may keep ours from being called."""
        try:
            with ExitStack() as hooks:
                if self.layer is not None:
                    hooks.enter_context(self.layer.mixing())
                if self.learned is not None:
                    hooks.enter_context(self.learned.watching())
                yield
        except BaseException:
            self.close()
            raise

    def _mixed_step(self, batch: Any, *rest: Any, **kwargs: Any) -> Any:
        release()
        if any(self._state_of(path) != before for path, before in self._states.items()):
            # Another hook has edited the batch since; the same draws mix what it is now.
            with torch.no_grad():
                self.mixture = self._mix(get(batch, self._paths[0]))
                self._put_inputs()
        if self.learned is not None:
            ledger.expect(self.learned)
        if self.layer is not None and self.layer.mixture is None:
            ledger.await_weights()
        labels = {path: map_tensors(get(batch, path), self._mix_target) for path in self.targets}
        with _once_for_each_source(self.criterion), self._beside_clean_loss(), watched():
            output = self._step(replace(batch, {**self.inputs, **labels}), *rest, **kwargs)
        trained = self._backwards > 0 or output is not None
        if self.layer is not None and self.layer.mixture is None and trained:
            raise ValueError(
                f"The step never called {self.layer.name!r}, so at={self.layer.name!r} mixed nothing. Name a"
                " layer that the training step runs."
            )
        if self.learned is not None and self.learned.value is not None:
            self.mixture = with_changes(self.mixture, soft=self.learned.value.detach())
        return self._hand_back(output)

    @contextmanager
    def _beside_clean_loss(self) -> Iterator[None]:
        """Let the module's step compute the loss of the batch as it came first, and add it to its own.

        That is one call of the strategy: under DDP a second one would exchange buffers in between.
        """
        if not self.clean_lam:
            yield
            return
        module = self.module
        assert module is not None
        step = module.training_step

        def both(batch: Any, *rest: Any, **kwargs: Any) -> Any:
            with unheard(module):
                clean = _loss_of(step(self.batch, *rest, **kwargs))
            output = step(batch, *rest, **kwargs)
            loss = _loss_of(output)
            if loss is None or clean is None:
                return output
            total = loss + self.clean_lam * clean
            return replace(output, {("loss",): total}) if isinstance(output, Mapping) else total

        with _instead(module, "training_step", both):
            yield

    def _put_inputs(self) -> None:
        """Keep the mixed inputs, and what they were made of."""
        first, *others = self._paths
        self._states = {path: self._state_of(path) for path in self._paths}
        self.inputs = {first: self.mixture.inputs, **{path: self._beside(path) for path in others}}

    def _state_of(self, path: Path) -> tuple[int, int]:
        """Return what changes when the tensor at a place is exchanged or edited."""
        tensor: Tensor = get(self.batch, path)
        return id(tensor), 0 if tensor.is_inference() else tensor._version

    def _beside(self, path: Path) -> Tensor:
        """Return another input, mixed as the first one or as the layer's features."""
        other: Tensor = get(self.batch, path)
        mixture = self.mixture if self.layer is None else self.layer.foresee(other)
        return mixture.follow(other, marks=other.dtype == torch.bool or "mask" in str(path[-1]))

    def _mix_target(self, target: Tensor) -> Tensor:
        plain = self.layer is None and self.learned is None
        return mix_target(target, self.mixture, self.kind if plain else "class")

    def _hand_back(self, output: Any) -> Any:
        """Return what the step returned with the mixture's loss and plain tensors in it."""
        loss = _loss_of(output)
        if not self.automatic:
            if ledger.first_leak() is not None and not ledger.settled():
                refuse_unread()
        elif isinstance(loss, MixedTensor):
            loss = settle(loss)
            output = replace(output, {("loss",): loss}) if isinstance(output, Mapping) else loss
        elif isinstance(loss, Tensor) and loss.requires_grad and not ledger.settled():
            refuse_unread()
            refuse_leaked(loss)
        return map_tensors(output, seen)


def _loss_of(output: Any) -> Any:
    return output.get("loss") if isinstance(output, Mapping) else output


@contextmanager
def _once_for_each_source(criterion: tuple[Any, str] | None) -> Iterator[None]:
    """Let a loss be called once for each source while the step runs."""
    if criterion is None:
        yield
        return
    owner, name = criterion
    func = in_every_world(getattr(owner, name), "the criterion", by_row=True, owner=owner)
    with _instead(owner, name, func):
        yield


@contextmanager
def _instead(owner: Any, name: str, func: Callable[..., Any]) -> Iterator[None]:
    """Let an object have another method for a while."""
    attributes = vars(owner)
    before = attributes.get(name)
    attributes[name] = func
    try:
        yield
    finally:
        del attributes[name]
        if before is not None:
            attributes[name] = before
