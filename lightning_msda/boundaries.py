"""Calls that torch makes without asking its arguments, watched while a step runs.

Scripted functions, constructors of tensors and `vmap` are called in every world instead. What a custom
autograd function or a metric makes of mixed labels is the own world's, and lost for the loss. A collective
is a way by which labels leave torch: other processes have another lam. And torch.compile's tracer is made
to ask where torch does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch._functorch.apis
import torch.distributed
from torch._dynamo.variables import TensorVariable, TupleVariable, torch_function
from torch._dynamo.variables.builder import SourcelessBuilder
from torch.utils.checkpoint import CheckpointFunction, checkpoint
from torchmetrics import Metric

from lightning_msda.mixed_tensor import (
    BY_CRITERION,
    hand_over,
    in_every_world,
    in_own_world,
    is_mixed,
    note_leaks,
)
from lightning_msda.mixed_value import as_numbers

__all__ = ["watched"]

_COLLECTIVES = (
    "all_gather all_gather_into_tensor all_gather_object all_reduce all_to_all all_to_all_single broadcast"
    " gather reduce reduce_scatter reduce_scatter_tensor send".split()
)

_CONSTRUCTORS = (
    "tensor as_tensor asarray scalar_tensor full full_like arange linspace range sparse_coo_tensor".split()
)

_UNASKED = (
    "torch.compile computed with the own labels only. Exclude the function that reads them from compilation"
    " by @torch.compiler.disable."
)


@contextmanager
def watched() -> Iterator[None]:
    """Watch these calls; afterwards they are torch's own again."""
    originals: list[Any] = []
    try:
        for owner, name, wrap in _CALLS:
            own = vars(owner).get(name)
            originals.append(own)
            setattr(owner, name, wrap(getattr(owner, name) if own is None else own))
        yield
    finally:
        for (owner, name, _), own in reversed(list(zip(_CALLS, originals, strict=False))):
            if own is None:  # inherited
                delattr(owner, name)
            else:
                setattr(owner, name, own)


# What is cached wraps once and for all: a compiled function must meet the same wrapper in every step.
@cache
def _apply(original: Any) -> Any:
    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        name, bound = cls.__name__, original.__get__(None, cls)
        if name == "BackwardHookFunction":  # hands its arguments on as they are
            return in_every_world(bound, name, by_row=True)(*args, **kwargs)
        if name == "_DDPSink":  # hands on what the step returns
            return bound(*map(hand_over, args), **kwargs)
        if cls is CheckpointFunction and is_mixed(args):  # the other kind asks, and computes the same
            function, preserve_rng_state, *rest = args
            return checkpoint(function, *rest, use_reentrant=False, preserve_rng_state=preserve_rng_state)
        lost = f"the custom autograd function {name} computed with the own labels only. {BY_CRITERION}"
        args, kwargs = as_numbers((args, kwargs))
        return in_own_world(bound, _UNASKED if name == "CompiledFunction" else lost)(*args, **kwargs)

    return classmethod(apply)


def _script(original: Any) -> Any:
    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        bound = original.__get__(function)
        return in_every_world(bound, f"the scripted function {function.name}", by_row=False)(*args, **kwargs)

    return call


@cache
def _constructor(original: Any) -> Any:
    return in_every_world(original, original.__name__, by_row=True)


@cache
def _vmap(original: Any) -> Any:
    return in_every_world(original, "vmap", by_row=False)


@cache
def _metric(original: Any) -> Any:
    def forward(metric: Any, *args: Any, **kwargs: Any) -> Any:
        bound = original.__get__(metric)
        if getattr(metric, "reads_every_source", False):
            return bound(*args, **kwargs)
        lost = f"the metric {type(metric).__name__} sees own labels only. {BY_CRITERION}"
        args, kwargs = as_numbers((args, kwargs))
        return in_own_world(bound, lost)(*args, **kwargs)

    return forward


@cache
def _collective(original: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        note_leaks(original.__name__, (args, kwargs))
        return original(*args, **kwargs)

    return call


@cache
def _flatten(original: Callable[..., Any]) -> Callable[..., Any]:
    """Let the compiler look for labels in tuples too: ``z[arange(n), y]``."""

    def flatten(arguments: Any) -> list[Any]:
        flat = []
        for argument in original(arguments):
            inner = argument.items if isinstance(argument, TupleVariable) else None
            flat += [argument] if inner is None else flatten(inner)
        return flat

    return flatten


@cache
def _assign(original: Callable[..., Any]) -> Callable[..., Any]:
    """Let the compiler ask where an item is assigned: ``hot[arange(n), y] = 1``."""

    def assign(self: Any, tracer: Any, key: Any, value: Any) -> Any:
        arguments = (self, key, value)
        if value is None or not torch_function.can_dispatch_torch_function(tracer, arguments, {}):
            return original(self, tracer, key, value)
        function = SourcelessBuilder.create(tracer, torch.Tensor.__setitem__)
        torch_function.dispatch_torch_function(tracer, function, arguments, {})
        return SourcelessBuilder.create(tracer, None)

    return assign


_CALLS: list[tuple[Any, str, Callable[[Any], Any]]] = [
    (torch.autograd.Function, "apply", _apply),
    (torch._C.ScriptFunction, "__call__", _script),
    *((torch, name, _constructor) for name in _CONSTRUCTORS),
    *((torch.Tensor, name, _constructor) for name in ("new_full", "new_tensor", "select")),
    (torch._functorch.apis, "vmap_impl", _vmap),
    (torch_function, "_flatten_vts", _flatten),
    (TensorVariable, "mp_ass_subscript_impl", _assign),
    (Metric, "forward", _metric),
    *((torch.distributed, name, _collective) for name in _COLLECTIVES if torch.distributed.is_available()),
]
