"""Calls that torch makes without asking its arguments, watched while a step runs.

A scripted function is called in every world instead. What a custom autograd function makes of mixed
labels is lost. A collective is a way by which labels leave torch: other processes have another lam.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed

from lightning_msda.mixed_tensor import BY_CRITERION, in_every_world, in_own_world, note_leaks

__all__ = ["watched"]

_COLLECTIVES = (
    "all_gather all_gather_into_tensor all_gather_object all_reduce all_to_all all_to_all_single broadcast"
    " gather reduce reduce_scatter reduce_scatter_tensor send".split()
)

_UNASKED = (
    "torch.compile computed with the own labels only: it does not ask labels in an index of several parts,"
    " z[arange(n), y], or that are written into another tensor. Write z.gather(1, y[:, None]) and one_hot(y),"
    " or exclude the function from compilation by @torch.compiler.disable."
)


@contextmanager
def watched() -> Iterator[None]:
    """Watch these calls; afterwards they are torch's own again."""
    with ExitStack() as stack:
        stack.enter_context(_wrapped(torch.autograd.Function, "apply", _apply))
        stack.enter_context(_wrapped(torch._C.ScriptFunction, "__call__", _script))
        for name in _COLLECTIVES if torch.distributed.is_available() else ():
            stack.enter_context(_wrapped(torch.distributed, name, _collective))
        yield


@contextmanager
def _wrapped(owner: Any, name: str, wrap: Callable[[Any], Any]) -> Iterator[None]:
    """Put a wrapper in the place of an attribute."""
    original = vars(owner)[name]
    setattr(owner, name, wrap(original))
    try:
        yield
    finally:
        setattr(owner, name, original)


def _apply(original: Any) -> Any:
    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        name = (
            f"the custom autograd function {cls.__name__} computed with the own labels only. {BY_CRITERION}"
        )
        lost = _UNASKED if cls.__name__ == "CompiledFunction" else name
        return in_own_world(original.__get__(None, cls), lost)(*args, **kwargs)

    return classmethod(apply)


def _script(original: Any) -> Any:
    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        bound = original.__get__(function)
        return in_every_world(bound, f"the scripted function {function.name}", by_row=False)(*args, **kwargs)

    return call


def _collective(original: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        note_leaks(original.__name__, (args, kwargs))
        return original(*args, **kwargs)

    return call
