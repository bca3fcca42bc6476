"""Labels that were mixed themselves: numbers, as long as nobody takes them for classes again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only
from typing_extensions import override

from lightning_msda import ledger
from lightning_msda.mixed_tensor import MixedTensor, lose, name_of
from lightning_msda.rows import MOVING, alike

__all__ = ["MixedValue", "as_numbers", "guarded"]

# What is still the labels, moved, in another precision or on another scale.
_KEEPING = MOVING | frozenset(
    """
    __getitem__ clone contiguous detach data to type float double half bfloat16 cpu cuda
    add sub mul div neg abs __add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__ rsub __neg__
    """.split()
)
_ROUNDING = frozenset("round round_ floor floor_ ceil ceil_ trunc trunc_ sign sgn".split())


class MixedValue(Tensor):
    """``lam * own + (1 - lam) * partner`` of floating-point labels.

    It behaves as a plain tensor, and what is computed from it together with anything else is one. But a
    class that is made of the labels alone (``argmax``, ``y.long()``, ``y > 0.5``) may be neither source's.
    Where the sources would not all have had it, a loss with that in it is refused.

    Attributes:
        sources: The labels that were mixed, moved as they were.
    """

    sources: tuple[Tensor, ...]

    @classmethod
    @override
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if MixedTensor in types:
            return NotImplemented  # it computes in every world
        kwargs = kwargs or {}
        name = name_of(func)
        with torch._C.DisableTorchFunctionSubclass():
            tensors: list[Any] = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            values = [tensor for tensor in tensors if type(tensor) is cls]
            result = func(*args, **kwargs)
            made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
            classes = any(not tensor.is_floating_point() for tensor in made) or name in _ROUNDING
            beside = [tensor for tensor in tensors if type(tensor) is not cls]
            alone = len(values) > 0 and all(_is_threshold(tensor, classes) for tensor in beside)
            if not alone or not made or not (classes or name in _KEEPING or result is values[0]):
                return result

            def of_source(j: int) -> Any:
                a, k = tree_map_only(cls, lambda value: value.sources[j], (args, kwargs))
                return func(*a, **k)

            each = [of_source(j) for j in range(len(values[0].sources))]
            if result is values[0]:  # edited in place, and so are its sources
                return result
            return tree_map(lambda tensor, *sources: _told(tensor, sources, name), result, *each)


def as_numbers(arguments: Any) -> Any:
    """Return arguments, nested in any way, with plain tensors in the place of mixed values."""
    return tree_map_only(MixedValue, lambda tensor: tensor.as_subclass(Tensor), arguments)


def guarded(value: Tensor, sources: Sequence[Tensor]) -> MixedValue:
    """Return a mixed label under guard, until all labels are made plain again.

    Args:
        value: The label.
        sources: What it was mixed of.
    """
    guard = value.as_subclass(MixedValue)
    guard.sources = tuple(sources)
    ledger.remember(guard, Tensor)
    return guard


def _is_threshold(value: Tensor, read: bool) -> bool:
    """Tell whether a tensor without a gradient holds one number, such as 0.5; if need be, read it."""
    if value.requires_grad or value.numel() < 2:
        return not value.requires_grad
    return read and bool((value == value.flatten()[0]).all())


def _told(made: Any, of_sources: Sequence[Any], name: str) -> Any:
    """Return what a function has made of mixed values alone, under guard or lost if it must be."""
    if not isinstance(made, Tensor):
        return made
    if made.is_floating_point() and name not in _ROUNDING:
        return guarded(made, of_sources) if name in _KEEPING else made
    if alike(made, *of_sources):
        return made
    return lose(
        made,
        f"{name} makes classes of floating-point labels that were mixed themselves, where 0.4 is neither 0"
        " nor 1. Say target='class', so that their losses are mixed instead.",
    )
