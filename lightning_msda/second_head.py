"""A second linear layer on a module's embedding, and the label that it learns (LaMix).

It belongs to the callback: the module, its state and its checkpoints do not know of it. It is trained by the
module's own optimizer, whose last group it joins while a fit runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from lightning_msda.mixture import Mixture
from lightning_msda.randomness import sample_uniform

__all__ = ["SecondHead", "SoftLabel", "soft_label"]

_KEY = "second_heads"  # in a checkpoint


def soft_label(embedding: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the probabilities ``softmax(sigmoid(W s + b))`` that a second head learns (LaMix, equation 9).

    Each lies between ``1 / (1 + e (K - 1))`` and ``e / (e + K - 1)``.

    Args:
        embedding: What the last linear layer receives, shape ``(N, M)``.
        weight: Of the second head, shape ``(K, M)``.
        bias: Of the second head, shape ``(K,)``, or None.

    Returns:
        Probabilities, at least float32, shape ``(N, K)``.
    """
    scores = F.linear(embedding, weight, bias)
    return scores.to(torch.promote_types(scores.dtype, torch.float32)).sigmoid().softmax(-1)


class SecondHead:
    """A second linear layer beside a classifier, of its form.

    Args:
        classifier: Name of the module's last linear layer; None: the last ``nn.Linear`` that it has.
    """

    def __init__(self, classifier: str | None = None) -> None:
        self.classifier = classifier
        self.beside = ""  # the classifier's name, once it is found
        self.parameters: list[nn.Parameter] = []
        self._loaded: list[Tensor] | None = None

    def find(self, module: nn.Module) -> tuple[str, nn.Linear]:
        """Return the name of the classifier, and the classifier.

        Args:
            module: The module that is trained.

        Raises:
            ValueError: If there is none.
        """
        layers = {name: part for name, part in module.named_modules() if isinstance(part, nn.Linear)}
        name = self.classifier or next(reversed(layers), "")
        if name not in layers:
            found = f"{self.classifier!r} is none" if self.classifier else f"{type(module).__name__} has none"
            raise ValueError(
                "LaMix puts a second head beside the linear layer that makes the scores, and"
                f" {found}. Name it by classifier='...'; linear layers here: {', '.join(layers) or 'none'}."
            )
        return name, layers[name]

    def attach(
        self, module: nn.Module, strategy: Strategy, optimizers: list[Optimizer], draws: Generator
    ) -> None:
        """Make the layer, if there is none yet, and let the module's last optimizer train it.

        A group of its own would not fit schedulers and checkpoints that know how many groups there are.

        Args:
            module: The module that is trained.
            strategy: The trainer's.
            optimizers: The trainer's.
            draws: Source of the initial numbers, the same on every process.

        Raises:
            ValueError: If the module has no classifier, or if nothing can train the layer.
        """
        if not isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)):
            raise ValueError(
                f"LaMix trains a layer of its own, which {type(strategy).__name__} does not know. Use one"
                " device, or strategy='ddp'."
            )
        if not optimizers:
            raise ValueError(
                "LaMix trains a layer of its own, and configure_optimizers returns no optimizer for it."
            )
        self.beside, like = self.find(module)
        shapes = [part.shape for part in (like.weight, like.bias) if part is not None]
        if [parameter.shape for parameter in self.parameters] != shapes:
            bound = 1 / math.sqrt(like.in_features)  # torch's for a linear layer
            drawn = [
                sample_uniform(-bound, bound, shape.numel(), draws).view(shape).to(like.weight)
                for shape in shapes
            ]
            self.parameters = [nn.Parameter(part) for part in drawn]
        for i, parameter in enumerate(self.parameters):
            parameter.data = parameter.data.to(like.weight.device)
            if self._loaded is not None:
                parameter.data.copy_(self._loaded[i])
        self._loaded = None
        trained = optimizers[-1].param_groups[-1]["params"]
        trained += [mine for mine in self.parameters if not any(mine is other for other in trained)]

    def average_gradients(self, strategy: Strategy) -> None:
        """Average the gradients over the processes, as the strategy does for the module's.

        Args:
            strategy: The trainer's.
        """
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        if not gradients or not isinstance(strategy, DDPStrategy):
            return
        mean = strategy.reduce(torch.cat([part.flatten() for part in gradients]), reduce_op="mean")
        start = 0
        for gradient in gradients:
            gradient.copy_(mean[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()

    def take_out(self, checkpoint: MutableMapping[str, Any]) -> None:
        """Take the layer out of the optimizer's state in a checkpoint, which then fits the module alone.

        Of several layers the last one that was attached goes first.

        Args:
            checkpoint: What is about to be saved.
        """
        optimizer = checkpoint["optimizer_states"][-1]
        places = optimizer["param_groups"][-1]["params"]
        mine = places[len(places) - len(self.parameters) :]
        del places[len(places) - len(mine) :]
        checkpoint.setdefault(_KEY, []).insert(
            0,
            {
                "parameters": [parameter.detach() for parameter in self.parameters],
                "optimizer": [optimizer["state"].pop(place, None) for place in mine],
            },
        )

    def put_back(self, module: nn.Module, checkpoint: MutableMapping[str, Any]) -> None:
        """Put the layer into the optimizer's state of a checkpoint again, in the order of attaching.

        Args:
            module: The module that is trained.
            checkpoint: What was loaded. If the layer is not in it, training starts with a fresh one.
        """
        kept = checkpoint[_KEY].pop(0) if checkpoint.get(_KEY) else None
        if kept is not None:
            self._loaded = kept["parameters"]
        if not checkpoint.get("optimizer_states"):
            return
        optimizer = checkpoint["optimizer_states"][-1]
        first = sum(len(group["params"]) for group in optimizer["param_groups"])
        count = 1 if self.find(module)[1].bias is None else 2
        optimizer["param_groups"][-1]["params"] += range(first, first + count)
        for place, state in enumerate([] if kept is None else kept["optimizer"], first):
            if state is not None:
                optimizer["state"][place] = state


class SoftLabel:
    """The learned label of one batch, known when the classifier has been reached.

    Args:
        head: Whose label it is.
        module: The module that is trained.
        mixture: How the batch is mixed; its weights leave room for this label's.
    """

    def __init__(self, head: SecondHead, module: nn.Module, mixture: Mixture) -> None:
        self.name, self._classifier = head.beside, module.get_submodule(head.beside)
        self._parameters = head.parameters
        weights = mixture.label_weights
        self.weights = torch.cat([weights, 1 - weights.sum(-1, keepdim=True)], -1)
        self.value: Tensor | None = None
        self._open = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look at what the classifier receives, for as long as a part of the step runs."""
        if self._open:  # a backward pass within the step
            yield
            return
        self._open = True
        handle = self._classifier.register_forward_pre_hook(self._look)
        try:
            yield
        finally:
            handle.remove()
            self._open = False

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy of the module takes along: a hook that does nothing."""
        return {"_open": False}

    def _look(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self._open:
            self.value = soft_label(args[0], *self._parameters)
