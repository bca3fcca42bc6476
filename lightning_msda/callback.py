"""The only Lightning hooks of the methods: when a batch is mixed, and that everything is left as it was."""

from __future__ import annotations

import os
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any, ClassVar, Literal, TypedDict, get_args

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Generator, Tensor, nn
from torch._dynamo import config as dynamo_config
from typing_extensions import override

from lightning_msda.fields import Key, find_inputs, find_targets, get
from lightning_msda.layer import Layer, find_criterion, find_layer
from lightning_msda.mixture import Mixture
from lightning_msda.pairing import Pairing, pair_up
from lightning_msda.randomness import Step, make_generator, sample_uniform
from lightning_msda.schedule import Schedule, check_schedule, value_at
from lightning_msda.second_head import SecondHead, SoftLabel
from lightning_msda.span import Span
from lightning_msda.targets import TargetKind

__all__ = ["MSDA", "CommonArgs", "find_method"]


class CommonArgs(TypedDict, total=False):
    """What every method takes.

    Attributes:
        prob: Chance that a batch is mixed, in [0, 1]; or chances by the epoch that they begin with,
            ``{0: 1.0, 100: 0.5}``. Default 1.
        per_sample: Draw lam and mask for each sample instead of one for the batch. Default False.
        pair: Who is mixed with whom: ``any``, a random permutation of the batch; ``other_class``,
            ``same_class``; ``balanced``, a class of the batch, each as likely, then one of its samples (long
            tails); ``near``, by the distance of the labels (regression). Labels are the first target.
            Default ``any``.
        at: Name of the hidden layer to mix at, such as ``backbone.layer2``: the first tensor that it
            returns is mixed. There the losses of all kinds of targets are mixed, by the mean of the mask.
            Default: the input.
        dims: Dimensions that a mask runs over, the batch being 0. Default: all after the channel of
            ``(N, C, *spatial)``; tokens ``(N, T, E)`` are masked along ``[1]``.
        criterion: Name of the module's loss, an attribute or a method, for a loss that leaves torch: it is
            called once for each source. Default: none, whatever torch dispatches is mixed.
        input_key: Index, name or dotted path of the inputs in the batch, or a list of them that share one
            mask, such as ``[input_ids, attention_mask]``; ``at`` mixes the features of the first. Attention
            masks beside interpolated samples are joined; they are booleans, or integers with ``mask`` in
            their name. Default: the first of a pair, or one of the usual names.
        target_key: The same for the targets; ``false`` mixes the inputs alone.
        target: ``class`` for targets whose losses are mixed (also floating-point 0 and 1, if metrics must
            see them whole), ``value`` for targets that are mixed themselves. Default: integers are classes,
            floating point is values. Labels that line up with a mask follow it.
        start_epoch: First epoch that is mixed. Default 0.
        stop_epoch: First epoch that is not mixed any more; negative: the last epochs stay clean. Default:
            none.
        seed: Seed of the draws. Default: Lightning's global seed, or else a random one.
    """

    prob: Schedule
    per_sample: bool
    pair: Pairing
    at: str | None
    dims: Sequence[int] | None
    criterion: str | None
    input_key: Key | Sequence[Key] | None
    target_key: Literal[False] | Key | Sequence[Key] | None
    target: TargetKind | None
    start_epoch: int
    stop_epoch: int | None
    seed: int | None


class MSDA(Callback, ABC):
    """Mixes every training batch and makes the loss that the module computes the mixture's loss.

    The module, its metrics, its precision and its batch format stay as they are. Subclasses say what a mix
    is (`mix`); this class says when, and keeps Lightning's hooks.

    Attributes:
        needs_partner: Whether a sample that is alone in its batch has nothing to be mixed with.
        clean_lam: Weight of the module's loss on the batch as it came, which is added to the mixture's.
        reads_values: Whether a mask depends on what is mixed, and not on the step alone.
        last_mix: How the last training batch was mixed (detached), or None if it was not.
        last_method: Name of the method that mixed it, or None.
        last_seconds: How long the host was at it, in seconds; the device may be still.

    Raises:
        ValueError: If an argument is out of range.
    """

    needs_partner: ClassVar[bool] = True
    reads_values: ClassVar[bool] = False
    clean_lam: float = 0.0
    _head: SecondHead | None = None  # learns a part of the labels

    def __init__(
        self,
        prob: Schedule = 1.0,
        per_sample: bool = False,
        pair: Pairing = "any",
        at: str | None = None,
        dims: Sequence[int] | None = None,
        criterion: str | None = None,
        input_key: Key | Sequence[Key] | None = None,
        target_key: Literal[False] | Key | Sequence[Key] | None = None,
        target: TargetKind | None = None,
        start_epoch: int = 0,
        stop_epoch: int | None = None,
        seed: int | None = None,
    ) -> None:
        check_schedule("prob", prob, lambda p: 0 <= p <= 1, "a chance from 0 to 1")
        for name, number in {"seed": seed, "start_epoch": start_epoch, "stop_epoch": stop_epoch}.items():
            if not isinstance(number, int | None):
                raise ValueError(f"{name}={number!r} must be a whole number.")
        if dims is not None and (
            len(dims) == 0 or not all(isinstance(dim, int) and dim != 0 for dim in dims)
        ):
            raise ValueError(
                f"dims={dims} must name one dimension or more, such as [2, 3]; 0 is the batch, which no mask"
                " runs over."
            )
        if pair not in get_args(Pairing):
            raise ValueError(f"pair={pair!r} is unknown: it must be one of {', '.join(get_args(Pairing))}.")
        if target not in (None, "class", "value"):
            raise ValueError(f"target={target!r} is unknown: it must be 'class' or 'value'.")
        if seed is not None and seed < 0:
            raise ValueError(f"seed={seed} is out of range: it must be a whole number from 0.")
        if start_epoch < 0:
            raise ValueError(f"start_epoch={start_epoch} is out of range: it must be a whole number from 0.")
        if stop_epoch is not None and 0 <= stop_epoch <= start_epoch:
            raise ValueError(
                f"stop_epoch={stop_epoch} is not after start_epoch={start_epoch}: no epoch would be mixed."
                " Negative numbers count from the end of training."
            )
        for name, part in {"at": at, "criterion": criterion}.items():
            if part is not None and (not isinstance(part, str) or part == ""):
                raise ValueError(
                    f"{name}={part!r} must name a part of the module, such as 'backbone.layer2', or be None."
                )
        self.prob = prob
        self.per_sample = per_sample
        self.pair = pair
        self.at = at
        self.dims = dims
        self.criterion = criterion
        self.input_key = input_key
        self.target_key = target_key
        self.target = target
        self.start_epoch = start_epoch
        self.stop_epoch = stop_epoch
        self.seed = seed
        self.last_mix: Mixture | None = None
        self.last_method: str | None = None
        self.last_seconds = 0.0
        self._seed = seed
        self._span: Span | None = None
        self._hook_guards: bool | None = None
        self._warned = False

    def _leave_out(self, *names: str, because: str) -> None:
        """Refuse arguments that mean nothing to a method.

        Args:
            names: Of arguments, whose defaults are None or False.
            because: What the method does instead.
        """
        for name in names:
            if value := getattr(self, name):
                method = type(self).__name__
                raise ValueError(
                    f"{name}={value!r} has no meaning for {method}, which {because}: leave it out."
                )

    @abstractmethod
    def mix(self, x: Tensor, step: Step) -> Mixture:
        """Mix inputs; their labels are taken care of.

        Args:
            x: Inputs or features, shape ``(N, ...)``; not to be written to.
            step: Where training stands. All randomness comes from there: the partners from
                ``step.partners(N)``, everything else from ``step.generator()``.
        """

    def look(
        self,
        step: Step,
        x: Tensor,
        labels: Any,
        module: nn.Module,
        context: Callable[[], AbstractContextManager[Any]],
    ) -> Step:
        """Return the step with what must be known of the batch and the module before it is mixed.

        Args:
            step: Where training stands.
            x: The inputs, shape ``(N, ...)``.
            labels: The first target, shape ``(N, ...)``, or None.
            module: The module, to be left as it is.
            context: Where its forward pass runs: the precision's autocast.
        """
        if self.pair == "any":
            return step
        if not isinstance(labels, Tensor) or labels.dim() == 0:
            raise ValueError(
                f"pair={self.pair!r} goes by the labels, and target_key names none: let it name them."
            )
        return replace(step, partner=pair_up(labels, self.pair, step.pairing()))

    @property
    def lam_by_sample(self) -> bool:
        """Whether each sample of a mix has a lam of its own, as is known before the batch is mixed."""
        return self.per_sample

    def members(self) -> list[MSDA]:
        """Return this method, or all those that it may choose from."""
        return [self]

    def leaves(self) -> list[MSDA]:
        """Return the methods that mix by themselves: this one, or those at the end of every choice."""
        return [member for member in self.members() if member.members() == [member]]

    def prepare(self, module: nn.Module) -> None:
        """Look at the module before training; by default nothing is to be seen.

        Args:
            module: The module that will be trained.
        """

    def choose(self, step: Step, draws: Generator) -> MSDA | None:
        """Return the method that mixes a batch, or None if the batch stays as it is.

        Args:
            step: Where training stands.
            draws: Source of the decisions, the same on every process.
        """
        prob = value_at(self.prob, step.epoch)
        if not self.covers(step) or (prob < 1 and float(sample_uniform(0, 1, 1, draws)) >= prob):
            return None
        return self

    def covers(self, step: Step) -> bool:
        """Tell whether the epoch is one of those that are mixed.

        Args:
            step: Where training stands.
        """
        stop = self.stop_epoch
        if stop is not None and stop < 0:
            stop += step.max_epochs
        return self.start_epoch <= step.epoch and (stop is None or step.epoch < stop)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._close()
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        others = [type(c).__name__ for c in callbacks if isinstance(c, MSDA) and c is not self]
        if others:
            raise ValueError(
                f"{type(self).__name__} and {others[0]} would both mix the batch. Give the"
                f" Trainer one of them, or RandomMix([{type(self).__name__}(...), {others[0]}(...)])."
            )
        if stage == "fit":
            self._seed = self.seed
            _warn_of_finders(callbacks)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._seed is None:
            self._seed = _global_seed(trainer)
        for i, head in enumerate(self._heads()):
            draws = make_generator(self._seed, "head", i)
            head.attach(pl_module, trainer.strategy, trainer.optimizers, draws)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if is_param_in_hook_signature(pl_module.training_step, "dataloader_iter", explicit=True):
            raise ValueError(
                "training_step takes dataloader_iter and fetches its batches itself, where they cannot be"
                " mixed. Let it take (batch, batch_idx)."
            )
        for method in self.members():
            method.prepare(pl_module)
        for method in self.members():
            if method.at is not None:
                find_layer(pl_module, method.at)
                if self.target == "value":
                    raise ValueError(
                        f"target='value' mixes the labels themselves, before the step; at={method.at!r} mixes"
                        " later, and there the losses of values are mixed. Leave out target, or at."
                    )
            if method.clean_lam and not pl_module.automatic_optimization:
                raise ValueError(
                    f"clean_lam={method.clean_lam} adds a loss to the one that training_step returns, and"
                    " under manual optimization it returns none. Leave out clean_lam."
                )
            if method.clean_lam and method.at is not None:
                raise ValueError(
                    f"clean_lam={method.clean_lam} adds the loss of the batch as it came, and"
                    f" at={method.at!r} mixes whatever runs through that layer. Leave out clean_lam, or at."
                )
            if (method.stop_epoch or 0) < 0 and (trainer.max_epochs or -1) < 0:
                raise ValueError(
                    f"stop_epoch={method.stop_epoch} counts from the end of training, which a Trainer without"
                    " max_epochs does not know. Set max_epochs, or a stop_epoch from 0."
                )
        if self.criterion is not None:
            find_criterion(pl_module, self.criterion)

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        begin = perf_counter()
        self._close()
        self._open(trainer, pl_module, batch)
        self.last_seconds = perf_counter() - begin

    def _open(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        """Mix a batch, and let the strategy hand it to the step."""
        if any(method.at is not None for method in self.members()):
            # Otherwise a compiled module does not notice hooks that come and go.
            self._hook_guards = dynamo_config.skip_nnmodule_hook_guards
            dynamo_config.skip_nnmodule_hook_guards = False
        self.last_mix = self.last_method = None
        assert self._seed is not None
        step = Step(
            seed=self._seed,
            ordinal=trainer.fit_loop.epoch_loop.batch_progress.total.completed,
            epoch=trainer.current_epoch,
            max_epochs=trainer.max_epochs or -1,
            rank=trainer.global_rank,
        )
        if not self.covers(step):
            return
        inputs = find_inputs(batch, self.input_key)
        targets = [] if self.target_key is False else find_targets(batch, self.target_key, inputs)
        x = get(batch, inputs[0])
        method = self.choose(step, step.policy())
        if method is not None and method.needs_partner and len(x) == 1:
            self._warn_of_one_sample()
            method = None
        if method is not None:
            labels = get(batch, targets[0]) if targets else None
            step = method.look(step, x, labels, pl_module, trainer.precision_plugin.train_step_context)
        layer = None
        mix: Callable[[Tensor], Mixture]
        if method is None:
            mix = Mixture.untouched
        elif method.at is None:
            mix = partial(method.mix, step=step)
        else:
            pending, weights = Mixture.pending(x, step.partners(len(x)), per_sample=method.lam_by_sample)
            layer = Layer(pl_module.get_submodule(method.at), method, step, weights, len(x))
            mix = partial(_with_inputs, pending)
        with torch.no_grad():
            mixture = mix(x)
        if method is not None:
            self.last_mix, self.last_method = mixture, type(method).__name__
        learned = None
        if method is not None and method._head is not None:
            learned = SoftLabel(method._head, pl_module, mixture)
        self._span = Span(
            trainer.strategy,
            batch,
            mixture,
            mix,
            inputs=inputs if method is not None else inputs[:1],
            targets=targets,
            kind=self.target,
            automatic=pl_module.automatic_optimization,
            criterion=None if self.criterion is None else find_criterion(pl_module, self.criterion),
            layer=layer,
            module=pl_module,
            clean_lam=0.0 if method is None else method.clean_lam,
            learned=learned,
            on_close=self._put_hook_guards_back,
        )

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for head in self._heads():
            head.average_gradients(trainer.strategy)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._close()

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._close()

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled and copied: all but the last batch."""
        return {**vars(self), "last_mix": None, "last_method": None, "_span": None}

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"seed": self._seed}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.seed is None:
            self._seed = state_dict["seed"]

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        for head in reversed(self._heads()):
            head.take_out(checkpoint)

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        for head in self._heads():
            head.put_back(pl_module, checkpoint)

    def _heads(self) -> list[SecondHead]:
        return [method._head for method in self.leaves() if method._head is not None]

    def _close(self) -> None:
        """End the batch, wherever it was left."""
        if self._span is not None:
            if self.last_method is not None:
                self.last_mix = (self._span.layer or self._span).mixture
            self._span.close()
            self._span = None
        self._put_hook_guards_back()

    def _put_hook_guards_back(self) -> None:
        if self._hook_guards is not None:
            dynamo_config.skip_nnmodule_hook_guards = self._hook_guards
            self._hook_guards = None

    def _warn_of_one_sample(self) -> None:
        if not self._warned:
            rank_zero_warn(
                "A training batch has one sample and nothing to be mixed with: it is left as it is. Set"
                " drop_last=True in the DataLoader if it is the rest of an epoch."
            )
        self._warned = True


def find_method(trainer: Trainer) -> MSDA | None:
    """Return the method among a trainer's callbacks, if there is one.

    Args:
        trainer: The trainer.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if isinstance(callback, MSDA)), None)


def _with_inputs(mixture: Mixture, x: Tensor) -> Mixture:
    return replace(mixture, inputs=x)


def _warn_of_finders(callbacks: Sequence[Callback]) -> None:
    """Say that a search for the learning rate or the batch size trains without mixing."""
    for name in [type(c).__name__ for c in callbacks if isinstance(c, (LearningRateFinder, BatchSizeFinder))]:
        rank_zero_warn(f"{name} searches without mixing: Lightning takes the other callbacks out meanwhile.")


def _global_seed(trainer: Trainer) -> int:
    """Return Lightning's global seed, or if there is none, one that all processes have drawn together."""
    if (given := os.environ.get("PL_GLOBAL_SEED")) is not None:
        return int(given)
    seed: int = trainer.strategy.broadcast(secrets.randbits(32))
    rank_zero_info(f"Mixing draws from seed {seed} (seed_everything or seed={seed} repeats this run).")
    return seed
