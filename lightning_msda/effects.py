"""What a function does beside returning a value, when it is called again for another world.

A step runs once. So a layer that embedded labels go through draws its dropout once, and its running
statistics see the own labels alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torchmetrics import Metric

from lightning_msda.rows import PURE

__all__ = ["calls_alike", "runs_alike", "silence", "unheard", "untouched"]

_RANDOM = frozenset(
    """
    dropout dropout1d dropout2d dropout3d feature_dropout alpha_dropout feature_alpha_dropout rrelu
    bernoulli multinomial normal poisson gumbel_softmax uniform random exponential geometric cauchy
    log_normal binomial standard_gamma sample_dirichlet lstm gru rnn_tanh rnn_relu
    scaled_dot_product_attention multi_head_attention_forward
    """.split()
)
# The positions and the names of what is updated.
_RUNNING = {name: {1: "running_mean", 2: "running_var"} for name in ("batch_norm", "instance_norm")}


def calls_alike(func: Callable[..., Any], name: str, device: torch.device) -> Callable[..., Any]:
    """Return a function to call instead, any number of times: as if each call were the first.

    The first call is as it would have been. Those that follow draw the same random numbers, leave the
    generator where the first one left it, and update nothing.

    Args:
        func: The function.
        name: Its name.
        device: Where it draws.
    """
    base = name.strip("_")
    random, updated = base in _RANDOM, _RUNNING.get(base, {})
    if torch.compiler.is_compiling():
        if random or updated:
            torch._dynamo.graph_break()  # a graph cannot draw again
        return func
    if base in PURE and not random:
        return func
    states: list[tuple[Generator, Tensor]] = []

    def call(*args: Any, **kwargs: Any) -> Any:
        if not states:  # the first call
            states.extend(_states(device, kwargs.get("generator")))
        else:
            _go_back(states)
            args = tuple(_copy(arg) if i in updated else arg for i, arg in enumerate(args))
            kwargs = {key: _copy(arg) if key in updated.values() else arg for key, arg in kwargs.items()}
        return func(*args, **kwargs)

    return call


def runs_alike(func: Callable[..., Any], owner: Any, device: torch.device) -> Callable[..., Any]:
    """Return a function to call instead, any number of times: as if each call were the first.

    As `calls_alike`, for code that may keep something: what its modules keep (buffers, numbers, lists) is
    what the first call left there.

    Args:
        func: The function.
        owner: Whose method it is; its sub-modules are looked after, if it is a module.
        device: Where it draws.
    """
    modules = list(owner.modules()) if isinstance(owner, nn.Module) else []
    before = [_copies(vars(module)) for module in modules]
    states = _states(device)
    first = True

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal first
        if first:
            first = False
            return func(*args, **kwargs)
        _go_back(states)
        with _in_place_of_state(modules, [_copies(kept) for kept in before]):
            return func(*args, **kwargs)

    return call


@contextmanager
def untouched(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Let a module be called, and leave it and the generators as if it had not been.

    Args:
        module: The module; what it and its sub-modules keep is put back.
        device: Where it draws.
    """
    modules = list(module.modules())
    states = _states(device)
    try:
        with _in_place_of_state(modules, [_copies(vars(part)) for part in modules]):
            yield
    finally:
        _go_back(states)


@contextmanager
def unheard(module: nn.Module) -> Iterator[None]:
    """Let a module's step run once more: its layers notice, what it logs, counts and keeps does not.

    Args:
        module: The module; what it keeps itself and what its metrics have counted is put back.
    """
    keepers = [module, *(part for part in module.modules() if isinstance(part, Metric))]
    with _in_place_of_state(keepers, [_copies(vars(part)) for part in keepers]):
        silence(module)
        yield


def silence(module: nn.Module) -> None:
    """Let a module, whose attributes are a copy, log nothing.

    Args:
        module: The module.
    """
    for name in ("log", "log_dict"):
        if hasattr(module, name):
            vars(module)[name] = _log_nothing


def _log_nothing(*_: Any, **__: Any) -> None:
    pass


@contextmanager
def _in_place_of_state(modules: list[nn.Module], copies: list[dict[str, Any]]) -> Iterator[None]:
    """Let modules keep what they keep in copies for a while."""
    kept = [dict(vars(module)) for module in modules]
    for module, attributes in zip(modules, copies, strict=True):
        vars(module).update(attributes)
    try:
        yield
    finally:
        for module, attributes in zip(modules, kept, strict=True):
            vars(module).clear()
            vars(module).update(attributes)


def _copies(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: _copy(value) for name, value in attributes.items()}


def _states(device: torch.device, generator: Generator | None = None) -> list[tuple[Generator, Tensor]]:
    """Return the states of the generators that a function may draw from."""
    generators = [torch.default_generator]
    if device.type not in ("cpu", "meta"):
        there = torch.get_device_module(device)
        generators.append(there.default_generators[there.current_device()])
    if generator is not None:
        generators.append(generator)
    return [(generator, generator.get_state()) for generator in generators]


def _go_back(states: list[tuple[Generator, Tensor]]) -> None:
    for generator, state in states:
        generator.set_state(state)


def _copy(value: Any) -> Any:
    """Return a copy of what may be edited in place: tensors, buffers, lists, sets and dictionaries."""
    if isinstance(value, nn.Parameter):
        return value
    if isinstance(value, Tensor):
        return value.clone()
    if type(value) is dict:
        return {key: _copy(item) if isinstance(item, Tensor) else item for key, item in value.items()}
    return copy(value) if type(value) in (list, set, deque) else value
