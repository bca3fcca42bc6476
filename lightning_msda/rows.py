"""Where each sample's lam goes while its labels are moved and computed with.

Used by `mixed_tensor` alone, for weights of shape ``(rows, k)``. A function that is not known here to
keep the rows in their places makes a value whose lam nobody knows, and a loss made of that is refused:
better a sentence than a wrong label.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_msda.blending import LOSSES, misses_rows, per_entry

__all__ = ["follow_rows"]

# One entry of the result for one entry of each argument, broadcast. "wrapped" is what a compiler calls
# ``__rsub__``, ``__rpow__`` and the like.
_POINTWISE = frozenset(loss.__name__ for loss in LOSSES) | frozenset(
    """
    add sub subtract mul multiply div divide truediv true_divide floordiv floor_divide mod remainder fmod
    pow float_power square sqrt rsqrt reciprocal neg negative pos positive abs absolute sign sgn exp exp2
    expm1 log log2 log10 log1p sin cos tan acos arccos asin arcsin atan arctan atan2 sinh cosh tanh
    sigmoid logsigmoid softplus softsign relu relu6 leaky_relu elu selu celu gelu silu mish hardtanh
    hardsigmoid hardswish threshold erf erfc logit xlogy logaddexp lerp addcmul addcdiv rsub
    eq ne lt le gt ge not_equal less less_equal greater greater_equal isnan isinf isfinite isclose
    and or xor not invert bitwise_and bitwise_or bitwise_xor bitwise_not logical_and logical_or
    logical_xor logical_not where clamp clamp_min clamp_max clip maximum minimum max min fmax fmin ceil
    floor round trunc frac nan_to_num masked_fill clone contiguous detach data to type float double half
    bfloat16 long int short char byte bool cpu cuda copy fill zero wrapped
    """.split()
)
# The same entries in the same order under another shape.
_RESHAPING = frozenset("view reshape flatten unflatten squeeze unsqueeze view_as reshape_as ravel".split())
# Each row of the result from the same row of the first argument.
_ROWWISE = frozenset("one_hot embedding expand expand_as".split())
_PRODUCTS = frozenset("linear matmul mm".split())
# Along a dimension: the position of that argument, and what it is by default.
_ALONG: dict[str, tuple[int, int | None]] = {
    **dict.fromkeys(
        "sum mean prod amax amin max min any all argmax argmin logsumexp var std count_nonzero softmax"
        " log_softmax cumsum cumprod logcumsumexp gather scatter scatter_add index_select".split(),
        (1, None),
    ),
    **dict.fromkeys("sort argsort".split(), (1, -1)),
    **dict.fromkeys("cat stack unbind".split(), (1, 0)),
    **dict.fromkeys("split chunk".split(), (2, 0)),
    **dict.fromkeys("topk kthvalue".split(), (2, -1)),
    "norm": (2, None),
    "normalize": (2, 1),
    "cosine_similarity": (2, 1),
}
# Of these, the ones that only pick rows, or put them in another order, along the leading dimension.
_MOVING = frozenset("index_select unbind split chunk cat".split())


def follow_rows(
    func: Callable[..., Any],
    name: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    operands: Sequence[Tensor],
    result: Any,
    weights: Tensor,
) -> Any:
    """Return the weights of a result's rows (for several tensors a list of them), or None if unknown.

    Args:
        func: The function that was called.
        name: Its name.
        args: Its positional arguments in the own world.
        kwargs: Its keyword arguments in the own world.
        operands: Those among the arguments that have rows.
        result: What came out; for an assignment, the tensor assigned to.
        weights: Weights of the operands' rows, shape ``(rows, k)``.
    """
    first = result[0] if isinstance(result, (tuple, list)) and result else result
    if len(weights) == 1 or not isinstance(first, Tensor):
        return weights  # a single sample's, or no value at all
    base = name.strip("_")
    if name.startswith(("__r", "__i")) and base[1:] in _POINTWISE:
        base = base[1:]
    leads = args[0] is operands[0]
    aligned = first.dim() > 0 and all(
        operand.dim() > 0 and operand.size(0) == first.size(0) for operand in operands
    )

    if base == "getitem":
        if leads:
            return _picked(args[0], args[1], weights) if len(operands) == 1 else None
        kept = aligned and _reads_by_row(args[1])
    elif base == "setitem":
        kept = aligned and _writes_by_row(args[0], args[1], operands)
    elif base in _RESHAPING:
        kept = first.dim() > 0 and first.size(0) % len(weights) == 0
    elif base in _ROWWISE:
        kept = aligned and leads and len(operands) == 1 and first.dim() >= args[0].dim()
    elif base in _PRODUCTS:
        kept = aligned and leads and len(operands) == 1 and args[0].dim() > 1
    elif base in _ALONG and (dim := _dim(base, args, kwargs)) is not None:
        elsewhere = misses_rows(dim, operands[0].dim() + (base == "stack"))
        if base in _MOVING and not elsewhere:
            return _moved(func, base, args, kwargs, operands, weights)
        kept = aligned and (elsewhere or (base == "gather" and not leads))
    else:
        kept = aligned and base in _POINTWISE and {operand.dim() for operand in operands} == {first.dim()}
    return weights if kept else None


def _dim(base: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return the dimension that a function goes along, or None."""
    position, default = _ALONG[base]
    dim = kwargs.get("dim", args[position] if len(args) > position else default)
    return None if isinstance(dim, Tensor) else dim  # max and min of two tensors


def _picked(value: Tensor, key: Any, weights: Tensor) -> Tensor | None:
    """Return the weights of ``value[key]``."""
    lead = key[0] if isinstance(key, tuple) else key
    if lead is Ellipsis:
        return weights if value.dim() > 1 else None
    if isinstance(lead, slice) and lead == slice(None):
        return weights
    if lead is None or isinstance(lead, bool) or (isinstance(lead, Tensor) and lead.dim() > 1):
        return None
    picked = per_entry(weights, value)[lead]
    return picked.unsqueeze(0) if picked.dim() == 1 else picked


def _moved(
    func: Callable[..., Any],
    base: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    operands: Sequence[Tensor],
    weights: Tensor,
) -> Any:
    """Return the weights after their rows went the way of the values' rows."""
    values = args[0] if base == "cat" else [args[0]]
    if len(operands) != len(values):  # what joins them has no lam
        return None
    moved = [per_entry(weights, value) for value in values]
    rest = [0 if i == _ALONG[base][0] else arg for i, arg in enumerate(args) if i > 0]
    named = {key: 0 if key == "dim" else value for key, value in kwargs.items()}
    result = func(moved if base == "cat" else moved[0], *rest, **named)
    return [row.unsqueeze(0) for row in result] if base == "unbind" else result


def _reads_by_row(key: Any) -> bool:
    """Tell whether ``table[key]`` has a row for each row of the labels in the key."""
    lead = key[0] if isinstance(key, tuple) else key
    return isinstance(lead, Tensor) and lead.dtype != torch.bool


def _writes_by_row(into: Tensor, key: Any, operands: Sequence[Tensor]) -> bool:
    """Tell whether ``into[key] = value`` writes each row of the labels into the same row."""
    lead = key[0] if isinstance(key, tuple) else key
    if isinstance(lead, slice):
        return lead == slice(None) and not any(k is o for k in key[1:] for o in operands)
    if not isinstance(lead, Tensor):
        return False
    if any(lead is operand for operand in operands):  # y[y == 255] = -100
        return lead.dtype == torch.bool and lead.shape == into.shape[: lead.dim()] and len(operands) == 2
    return lead.dim() == 1 and torch.equal(lead, torch.arange(len(into), device=lead.device))
