"""What a function does beside returning a value, when it is called again for another world.

A step runs once. So a layer that embedded labels go through draws its dropout once, and its running
statistics see the own labels alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["calls_alike"]

_RANDOM = frozenset(
    "dropout dropout_ dropout1d dropout2d dropout3d feature_dropout alpha_dropout feature_alpha_dropout rrelu"
    " rrelu_ bernoulli bernoulli_ multinomial normal normal_ poisson gumbel_softmax uniform_ random_"
    " scaled_dot_product_attention multi_head_attention_forward".split()
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
    if torch.compiler.is_compiling() or not (name in _RANDOM or name in _RUNNING):
        return func
    states = _states(device) if name in _RANDOM else []
    first = True

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal first
        if not first:
            for set_state, state in states:
                set_state(state)
            updated = _RUNNING.get(name, {})
            args = tuple(_copy(arg) if i in updated else arg for i, arg in enumerate(args))
            kwargs = {key: _copy(arg) if key in updated.values() else arg for key, arg in kwargs.items()}
        first = False
        return func(*args, **kwargs)

    return call


def _states(device: torch.device) -> list[tuple[Callable[[Tensor], None], Tensor]]:
    """Return the states of the generators that a function may draw from, and how to go back to them."""
    states: list[tuple[Callable[[Tensor], None], Tensor]] = [(torch.set_rng_state, torch.get_rng_state())]
    if device.type not in ("cpu", "meta"):
        there = torch.get_device_module(device)
        states.append((there.set_rng_state, there.get_rng_state()))
    return states


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
