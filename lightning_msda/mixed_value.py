"""Labels that were mixed themselves: numbers, as long as nobody takes them for classes again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only
from typing_extensions import override

from lightning_msda import ledger
from lightning_msda.mixed_tensor import MixedTensor, lose, name_of

__all__ = ["MixedValue", "as_numbers", "guarded"]

# What is still the labels, moved or in another precision.
_MOVING = frozenset(
    """
    view reshape flatten unflatten ravel squeeze unsqueeze view_as reshape_as t transpose permute movedim
    swapaxes __getitem__ select narrow index_select unbind split chunk tensor_split cat stack expand expand_as
    repeat flip roll clone contiguous detach data to type float double half bfloat16 cpu cuda T mT
    """.split()
)
_ROUNDING = frozenset("round round_ floor floor_ ceil ceil_ trunc trunc_ sign sgn".split())
# What answers with a truth value that is none of a class.
_CHECKING = frozenset("isnan isinf isfinite is_nonzero equal allclose".split())


class MixedValue(Tensor):
    """``lam * own + (1 - lam) * partner`` of floating-point labels.

    It behaves as a plain tensor, and what is computed from it together with anything else is one. But a
    class that is made of the labels alone (``argmax``, ``y.long()``, ``y == 1``, ``y > 0.5``) is neither
    source's: a loss with that in it is refused.
    """

    @classmethod
    @override
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if MixedTensor in types:
            return NotImplemented  # it computes in every world
        name = name_of(func)
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
            if _has_others((args, kwargs)):
                return result
            return tree_map_only(Tensor, lambda tensor: _told(tensor, name), result)


def as_numbers(arguments: Any) -> Any:
    """Return arguments, nested in any way, with plain tensors in the place of mixed values."""
    return tree_map_only(MixedValue, lambda tensor: tensor.as_subclass(Tensor), arguments)


def guarded(value: Tensor) -> MixedValue:
    """Return a mixed label under guard, until all labels are made plain again."""
    guard = value.as_subclass(MixedValue)
    ledger.remember(guard, Tensor)
    return guard


def _told(tensor: Tensor, name: str) -> Tensor:
    """Return what a function of mixed values alone has made, under guard or lost if it must be."""
    if isinstance(tensor, MixedValue) or name in _CHECKING:  # in place
        return tensor
    if not tensor.is_floating_point() or name in _ROUNDING:
        return lose(
            tensor,
            f"{name} makes classes of floating-point labels that were mixed themselves, where 0.4 is neither"
            " 0 nor 1. Say target='class', so that their losses are mixed instead.",
        )
    return guarded(tensor) if name in _MOVING else tensor


def _has_others(arguments: Any) -> bool:
    return any(isinstance(leaf, Tensor) and type(leaf) is not MixedValue for leaf in tree_leaves(arguments))
