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
from torch.utils._pytree import tree_leaves, tree_map_only

from lightning_msda.blending import LOSSES, Picked, Scattered, einsum_indices, misses_rows

__all__ = ["INDEXING", "JOINING", "MOVING", "PLAIN", "PURE", "alike", "follow_rows"]


# In the place of weights: what was moved along with labels, but is none.
PLAIN = "plain"

# One entry of the result for one entry of each argument, broadcast. "wrapped" is what a compiler calls
# ``__rsub__``, ``__rpow__`` and the like.
_POINTWISE = frozenset(loss.__name__ for loss in LOSSES) | frozenset(
    """
    add sub subtract mul multiply div divide truediv true_divide floordiv floor_divide mod remainder fmod
    pow float_power square sqrt rsqrt reciprocal neg negative pos positive abs absolute sign sgn exp exp2
    expm1 log log2 log10 log1p sin cos tan acos arccos asin arcsin atan arctan atan2 sinh cosh tanh
    sigmoid logsigmoid softplus softsign relu relu6 leaky_relu elu selu celu gelu silu mish hardtanh
    hardsigmoid hardswish threshold erf erfc logit xlogy logaddexp lerp addcmul addcdiv rsub bucketize isin
    dropout alpha_dropout type_as
    eq ne lt le gt ge not_equal less less_equal greater greater_equal isnan isinf isfinite isclose
    and or xor not invert bitwise_and bitwise_or bitwise_xor bitwise_not logical_and logical_or
    logical_xor logical_not where clamp clamp_min clamp_max clip maximum minimum max min fmax fmin ceil
    floor round trunc frac nan_to_num masked_fill clone contiguous detach data to type float double half
    bfloat16 long int short char byte bool cpu cuda copy deepcopy fill zero wrapped
    """.split()
)
# The same entries in other places: their rows are moved by the same function.
JOINING = frozenset("cat concat concatenate stack hstack vstack broadcast_tensors".split())
MOVING = JOINING | frozenset(
    """
    view reshape flatten unflatten squeeze unsqueeze view_as reshape_as ravel expand expand_as broadcast_to
    select narrow index_select flip fliplr flipud roll repeat tile repeat_interleave chunk split tensor_split
    unbind t T mT transpose swapaxes swapdims permute movedim moveaxis diagonal
    """.split()
)
# Of these, the ones that leave the entries in their order.
_IN_ORDER = frozenset("view reshape flatten squeeze unsqueeze view_as reshape_as ravel".split())
# Each row of the result from the same row of the first argument.
_ROWWISE = frozenset("one_hot embedding".split())
_PRODUCTS = frozenset("linear matmul mm".split())
# Along a dimension: the position of that argument, and what it is by default.
_ALONG: dict[str, tuple[int, int | None]] = {
    **dict.fromkeys(
        "sum mean prod amax amin max min any all argmax argmin logsumexp var std count_nonzero softmax"
        " log_softmax cumsum cumprod logcumsumexp gather scatter scatter_add".split(),
        (1, None),
    ),
    **dict.fromkeys("sort argsort".split(), (1, -1)),
    **dict.fromkeys("topk kthvalue".split(), (2, -1)),
    "take_along_dim": (2, None),
    "norm": (2, None),
    "normalize": (2, 1),
    "cosine_similarity": (2, 1),
}
# Where rows are picked by an index that may be made of labels. What is picked, the index and what it is taken
# from may each have weights of their own.
INDEXING = frozenset("__getitem__ __setitem__ index_select masked_select".split())
_FINDING = frozenset("nonzero argwhere where".split())
# Of these, the ones that may look labels up in another tensor.
_LOOKING_UP = frozenset("gather take_along_dim".split())


# What is known to do nothing but return a value, beside the dropouts.
PURE = (
    _POINTWISE
    | MOVING
    | _ROWWISE
    | _PRODUCTS
    | frozenset([*_ALONG, "getitem", "setitem", "index_put", "take", "bmm", "einsum"])
)


def follow_rows(
    func: Callable[..., Any],
    name: str,
    calls: Sequence[tuple[Sequence[Any], Mapping[str, Any]]],
    operands: Sequence[Sequence[Tensor]],
    tables: Sequence[Any],
    results: Sequence[Any],
) -> Any:
    """Return the weights of a result's rows (for several tensors a list of them), or None if unknown.

    Args:
        func: The function that was called.
        name: Its name.
        calls: Its positional and keyword arguments in each world.
        operands: Those among the arguments that have rows, each as it is in each world.
        tables: Their weights, shape ``(rows, k)``, or `Scattered` or `Picked`; they are the same except in
            `JOINING` and `INDEXING`.
        results: What came out in each world; for an assignment, the tensor assigned to.
    """
    base = name if name in ("T", "mT") else name.strip("_")
    args, kwargs = calls[0]
    own = [worlds[0] for worlds in operands]
    picks = _picks(base, args, kwargs, own)
    if not picks and not any(isinstance(table, Picked) for table in tables):
        return _followed(func, name, base, args, kwargs, own, tables, results[0])
    found = [tree_leaves(result) for result in results]
    if base in _FINDING and all(alike(*leaves) for leaves in zip(*found, strict=True)):
        return PLAIN
    if any(isinstance(table, Scattered) for table in tables):
        return None
    if base == "setitem" and isinstance(tables[0], Picked):
        return None  # it may just have been adopted, and have other rows
    each = []
    for j, (args, kwargs) in enumerate(calls):
        own = [worlds[j] for worlds in operands]
        of_world = [_of_world(table, j) for table in tables]
        if base in _FINDING or (name in INDEXING and isinstance(args[-1 if name[0] == "i" else 1], Tensor)):
            each.append(_indexed(base, args, own, of_world))
        else:
            each.append(_followed(func, name, base, args, kwargs, own, of_world, results[j]))
    columns = [table.view(-1, 1) for table in each if isinstance(table, Tensor)]
    if len(columns) < len(each):
        return None
    if base == "setitem":
        return tables[0]
    same = picks and base not in _FINDING and alike(*(args[1] for args, _ in calls))
    return torch.cat(columns, 1) if same else Picked(tuple(columns))


def _picks(base: str, args: Sequence[Any], kwargs: Mapping[str, Any], operands: Sequence[Tensor]) -> bool:
    """Tell whether a function picks entries where labels say so."""
    if base in _FINDING:
        picks = base != "where" or len(args) + len(kwargs) == 1
    else:
        key = args[1] if base in ("getitem", "masked_select") and len(args) > 1 else None
        picks = isinstance(key, Tensor) and key.dtype == torch.bool and any(key is o for o in operands)
    if picks and torch.compiler.is_compiling():
        torch._dynamo.graph_break()  # how many there are is not known yet
    return picks


def _of_world(table: Tensor | Picked, j: int) -> Tensor:
    return table.tables[j] if isinstance(table, Picked) else table[:, j : j + 1]


def alike(*values: Tensor) -> bool:
    """Tell whether tensors have the same shape and values.

    Args:
        values: Any number of them; none are alike.
    """
    return all(value.shape == values[0].shape and torch.equal(value, values[0]) for value in values[1:])


def _indexed(
    base: str, args: Sequence[Any], operands: Sequence[Tensor], tables: Sequence[Tensor]
) -> Tensor | None:
    """Return the weights of what an index picks in one world, or of what it is assigned to."""
    table_of = {id(operand): table for operand, table in zip(operands, tables, strict=True)}
    table = table_of.get(id(args[0]))
    if base in _FINDING:
        return None if table is None else _at(args[0], args[0] != 0, table)
    if base == "index_select" and args[1] != 0:
        return None
    key = args[2] if base == "index_select" else args[1]
    if not isinstance(key, Tensor):
        return None
    if base == "masked_select" and key.shape != args[0].shape:
        return None
    picked = table_of.get(id(key))
    if picked is not None and key.dtype == torch.bool:
        picked = _at(key, key, picked)
    taken = None if table is None else _at(args[0], key, table)
    given = table_of.get(id(args[2])) if base == "setitem" else None
    known = [t for t in (picked, taken, given) if t is not None]
    if not alike(*known):
        return None
    return table if base == "setitem" else known[0]


def _at(value: Tensor, key: Tensor, table: Tensor) -> Tensor | None:
    """Return the weights of the leading entries of ``value[key]``."""
    rows = _row_numbers(value, len(table))
    if rows is None:
        return None
    picked = rows[key.cpu()]
    return table[picked.reshape(len(picked), -1)[:, 0]] if picked.numel() > 0 else table[:0]


def _followed(
    func: Callable[..., Any],
    name: str,
    base: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    operands: Sequence[Tensor],
    tables: Sequence[Any],
    result: Any,
) -> Any:
    """Return the weights of a result's rows in one world."""
    weights = tables[0]
    first = result[0] if isinstance(result, (tuple, list)) and result else result
    if not isinstance(first, Tensor):
        return weights  # no value at all
    if name.startswith(("__r", "__i")) and base[1:] in _POINTWISE:
        base = base[1:]
    leads = args[0] is operands[0]
    looked_up = base == "index_select" and not leads
    if (base in MOVING and not looked_up) or (base == "getitem" and leads):
        return _moved(func, base, args, kwargs, operands, tables, first)
    if isinstance(weights, Scattered):
        if base in ("sum", "mean") and (dim := _dim(base, args, kwargs)) is not None:
            return _summed(weights, dim, bool(kwargs.get("keepdim", False)))
        if base in ("matmul", "mm") and len(operands) == 1 and args[1] is operands[0] and first.dim() == 2:
            by_column = bool((weights.rows == weights.rows[0]).all())
            return _table(weights.rows[:1].expand(first.shape), [weights.weights]) if by_column else None
        same = len(operands) == 1 and base in _POINTWISE and first.shape == operands[0].shape
        return weights if same else None
    if len(weights) == 1:
        return weights  # a single sample's
    aligned = first.dim() > 0 and all(
        operand.dim() > 0 and operand.size(0) == first.size(0) for operand in operands
    )
    if base == "getitem":
        kept = aligned and _reads_by_row(args[1])
    elif base in ("setitem", "index_put"):
        kept = aligned and _writes_by_row(args[0], args[1], operands)
    elif base in _ROWWISE:
        kept = aligned and leads and len(operands) == 1 and first.dim() >= args[0].dim()
    elif base in _PRODUCTS:
        kept = aligned and leads and len(operands) == 1 and args[0].dim() > 1
    elif base in ("bmm", "index_select", "scaled_dot_product_attention") or func in LOSSES:
        kept = aligned
    elif base == "take":
        kept = aligned and not leads
    elif base == "pad":
        kept = aligned and len(args[1]) < 2 * first.dim()
    elif base == "einsum":
        _, lead, indices = einsum_indices(args[0])
        kept = aligned and lead is not None and indices.startswith(lead)
    elif base in _ALONG and (dim := _dim(base, args, kwargs)) is not None:
        elsewhere = misses_rows(dim, operands[0].dim())
        kept = aligned and (elsewhere or (base in _LOOKING_UP and not leads))
    else:
        kept = aligned and base in _POINTWISE and {operand.dim() for operand in operands} == {first.dim()}
    return weights if kept else None


def _dim(base: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return the dimension that a function goes along, or None."""
    position, default = _ALONG[base]
    dim = kwargs.get("dim", args[position] if len(args) > position else default)
    return None if isinstance(dim, Tensor) else dim  # max and min of two tensors


def _moved(
    func: Callable[..., Any],
    base: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    operands: Sequence[Tensor],
    tables: Sequence[Any],
    first: Tensor,
) -> Any:
    """Return the weights after the numbers of the rows went the way of the values."""
    if torch.compiler.is_compiling():
        return _traced(base, args, operands, tables[0], first)
    if any(isinstance(arg, torch.dtype) for arg in args[1:]):  # y.view(torch.int32)
        return tables[0]
    weights = [
        table.weights if isinstance(table, Scattered) else table.view(-1, table.size(-1)) for table in tables
    ]
    numbers: dict[int, Tensor] = {}
    begins: dict[int, int] = {}
    distinct: list[Tensor] = []
    for operand, table, own in zip(operands, tables, weights, strict=True):
        rows = table.rows if isinstance(table, Scattered) else _row_numbers(operand, len(own))
        if rows is None:
            return None
        if id(own) not in begins:
            begins[id(own)] = sum(map(len, distinct))
            distinct.append(own)
        numbers[id(operand)] = rows + begins[id(own)]
    total = sum(map(len, distinct))
    # Whatever is joined has a row of its own; an index stays what it is.
    indexes = base in ("getitem", "index_select", "repeat_interleave")
    if indexes and (len(operands) > 1 or args[0] is not operands[0]):
        return None

    def number(value: Tensor) -> Tensor:
        if id(value) in numbers:
            return numbers[id(value)]
        return value.cpu() if indexes else torch.full(value.shape, total)

    new_args, new_kwargs = tree_map_only(Tensor, number, (tuple(args), dict(kwargs)))
    moved = func(*new_args, **new_kwargs)
    if isinstance(moved, Tensor):
        return _table(moved, distinct)
    return [_table(rows, distinct) for rows in moved]


def _traced(base: str, args: Sequence[Any], operands: Sequence[Tensor], weights: Any, first: Tensor) -> Any:
    """Return the weights where values are not known yet: of what stays in its place, or is sliced."""
    if len(operands) == 1 and args[0] is operands[0] and isinstance(weights, Tensor):
        key = args[1] if base == "getitem" else None
        lead = key[0] if isinstance(key, tuple) else key
        in_order = base in _IN_ORDER and first.dim() > 0 and first.size(0) % len(weights) == 0
        if in_order or (base == "getitem" and lead == slice(None)):
            return weights
        if isinstance(lead, slice) and len(weights) == args[0].size(0):
            return weights[lead]
    torch._dynamo.graph_break()
    return None


def _summed(weights: Scattered, dim: Any, keepdim: bool) -> Any:
    """Return the weights of a sum along dimensions in which every entry is of one row."""
    low, high = weights.rows.amin(dim, keepdim), weights.rows.amax(dim, keepdim)
    alike = torch.equal(weights.weights[low], weights.weights[high])
    return _table(low, [weights.weights]) if alike else None


def _row_numbers(value: Tensor, rows: int) -> Tensor | None:
    """Return the row of each entry of a value whose leading dimension holds them in order."""
    if value.dim() == 0 or rows == 0:
        return torch.zeros(value.shape, dtype=torch.long) if max(value.numel(), rows) <= 1 else None
    if value.size(0) % rows != 0:
        return None
    numbers = torch.arange(rows).repeat_interleave(value.size(0) // rows)
    return numbers.view(-1, *[1] * (value.dim() - 1)).expand(value.shape)


def _table(rows: Tensor, weights: Sequence[Tensor]) -> Any:
    """Return the weights of a value by the numbers of its rows; one more than there are is any row's."""
    if rows.numel() == 0:
        return weights[0][:0]
    alike_in_all = sum(map(len, weights))
    leading = rows.reshape(len(rows) if rows.dim() > 0 else 1, -1)
    lead = leading.amin(1)
    if bool((lead == alike_in_all).all()):
        return PLAIN
    in_order = _row_numbers(lead, len(weights[0]))
    by_row = bool(((leading == lead[:, None]) | (leading == alike_in_all)).all())
    if by_row and len(weights) == 1 and in_order is not None and torch.equal(lead, in_order):
        return weights[0]
    # The last row is for what is alike in all worlds: any weights will do.
    alike = torch.eye(1, weights[0].size(1), dtype=weights[0].dtype, device=weights[0].device)
    table = torch.cat([*weights, alike])
    if by_row and bool((lead == lead[0]).all()):
        return table[lead[0]]  # a single sample's: one lam again
    return table[lead] if by_row else Scattered(table, rows)


def _reads_by_row(key: Any) -> bool:
    """Tell whether ``table[key]`` has a row for each row of the labels in the key."""
    lead = key[0] if isinstance(key, tuple) else key
    return isinstance(lead, range) or (isinstance(lead, Tensor) and lead.dtype != torch.bool)


def _writes_by_row(into: Tensor, key: Any, operands: Sequence[Tensor]) -> bool:
    """Tell whether ``into[key] = value`` writes each row of the labels into the same row."""
    lead = key[0] if isinstance(key, tuple) else key
    if len(operands) == 1 and into is operands[0]:  # y[:2] = 0
        return True
    if lead is Ellipsis:
        return len(key) <= into.dim() and not any(k is o for k in key for o in operands)
    if isinstance(lead, slice):
        return lead == slice(None) and not any(k is o for k in key[1:] for o in operands)
    if not isinstance(lead, Tensor):
        return False
    if any(lead is operand for operand in operands):  # y[y == 255] = -100
        return lead.dtype == torch.bool and lead.shape == into.shape[: lead.dim()] and len(operands) == 2
    return lead.dim() == 1 and torch.equal(lead, torch.arange(len(into), device=lead.device))
