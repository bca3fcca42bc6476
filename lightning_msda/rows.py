"""Where each sample's lam goes while its labels are moved and computed with.

Used by `mixed_tensor` alone, for weights of shape ``(rows, k)``. A function that is not known here to
keep the rows in their places makes a value whose lam nobody knows, and a loss made of that is refused:
better a sentence than a wrong label.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from lightning_msda import ledger
from lightning_msda.blending import LOSSES, Picked, Scattered, einsum_indices, misses_rows

__all__ = [
    "INDEXING",
    "JOINING",
    "MOVING",
    "PLAIN",
    "PURE",
    "agreed",
    "alike",
    "follow_rows",
    "follow_writes",
    "moves_rows",
    "simplest",
]


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
# What goes along the last dimensions, and returns the others as they were.
_BEHIND = frozenset("linear layer_norm softmax log_softmax normalize".split())
# Layers that treat each sample of a batch by itself, which may lie along another dimension than the first.
_CELLS = frozenset("lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell".split())
_RECURRENT = frozenset("lstm gru rnn_tanh rnn_relu".split())
_LAYERS = _CELLS | _RECURRENT | {"multi_head_attention_forward"}
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
# Where something is written at places that an index names, along a dimension.
_SCATTERING = frozenset("scatter scatter_add scatter_reduce".split())
_INDEXED = frozenset("index_fill index_add index_copy".split())
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
        if name == "__getitem__" and any(table is not tables[0] for table in tables):
            return _looked_up(calls, operands, tables)
        table = _followed(func, name, base, args, kwargs, own, tables, results[0])
        return _copied(calls, name, operands, tables, results) if table is None else table
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
    return _made(lambda: torch.cat(columns, 1)) if same else Picked(tuple(columns))


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
    return _made(lambda: table[picked.reshape(len(picked), -1)[:, 0]]) if picked.numel() > 0 else table[:0]


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
    if base in _LAYERS:
        return _of_layer(base, args, kwargs, operands, tables, result)
    looked_up = base == "index_select" and not leads
    if (base in MOVING and not looked_up) or (base == "getitem" and leads):
        return _moved(func, base, args, kwargs, operands, tables, first)
    if isinstance(weights, Scattered):
        if base in ("sum", "mean") and (dim := _dim(base, args, kwargs)) is not None:
            return _summed(weights, dim, bool(kwargs.get("keepdim", False)))
        if base in ("matmul", "mm") and len(operands) == 1 and args[1] is operands[0] and first.dim() == 2:
            by_column = bool((weights.rows == weights.rows[0]).all())
            return _table(weights.rows[:1].expand(first.shape), [weights.weights[:-1]]) if by_column else None
        if base in _POINTWISE and all(operand.shape == first.shape for operand in operands):
            return weights
        if base in _BEHIND and leads and len(operands) == 1:
            return _spread(weights, base, args, kwargs, first)
        weights = simplest(weights)
    if isinstance(weights, Scattered):
        return None
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
    elif base == "layer_norm":
        kept = aligned and leads and len(operands) == 1 and args[0].dim() > len(args[1])
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
        table.weights[:-1] if isinstance(table, Scattered) else table.view(-1, table.size(-1))
        for table in tables
    ]
    numbers: dict[int, Tensor] = {}
    distinct: list[Tensor] = []
    for operand, table, own in zip(operands, tables, weights, strict=True):
        rows = table.rows if isinstance(table, Scattered) else _row_numbers(operand, len(own))
        if rows is None:
            return None
        same = (i for i, other in enumerate(distinct) if alike(other, own))
        place = next(same, len(distinct)) if len(own) > 1 else len(distinct)
        distinct += [own] if place == len(distinct) else []
        begin = sum(map(len, distinct[:place]))
        numbers[id(operand)] = rows.where(rows < 0, rows + begin)
    # Whatever is joined has a row of its own; an index stays what it is.
    indexes = base in ("getitem", "index_select", "repeat_interleave")
    if indexes and (len(operands) > 1 or args[0] is not operands[0]):
        return None

    def number(value: Tensor) -> Tensor:
        if id(value) in numbers:
            return numbers[id(value)]
        return value.cpu() if indexes else torch.full(value.shape, -1)

    new_args, new_kwargs = tree_map_only(Tensor, number, (tuple(args), dict(kwargs)))
    moved = func(*new_args, **new_kwargs)
    if isinstance(moved, Tensor):
        return _table(moved, distinct)
    return [_table(rows, distinct) for rows in moved]


def moves_rows(name: str, args: Sequence[Any]) -> bool:
    """Tell whether a function may leave the rows of a tensor in another order.

    Args:
        name: The name of the function.
        args: Its positional arguments.
    """
    base = name.strip("_")
    if base == "getitem":
        return not (isinstance(lead := _lead(args), slice) and lead == slice(None))
    return base in MOVING and base not in _IN_ORDER


def _lead(args: Sequence[Any]) -> Any:
    """Return the first index of ``args[0][args[1]]``."""
    return args[1][0] if isinstance(args[1], tuple) else args[1]


def _traced(base: str, args: Sequence[Any], operands: Sequence[Tensor], weights: Any, first: Tensor) -> Any:
    """Return the weights where values are not known yet: of what stays in its place, or is sliced."""
    if len(operands) == 1 and args[0] is operands[0] and isinstance(weights, Tensor):
        in_order = first.dim() > 0 and first.size(0) % len(weights) == 0
        if not moves_rows(base, args) and in_order:
            return weights
        lead = _lead(args) if base == "getitem" else None
        if isinstance(lead, slice) and len(weights) == args[0].size(0):
            return weights[lead]
    torch._dynamo.graph_break()
    return None


def _summed(weights: Scattered, dim: Any, keepdim: bool) -> Any:
    """Return the weights of a sum along dimensions in which every entry is of one row."""
    high = weights.rows.amax(dim, keepdim)
    low = weights.rows.where(weights.rows >= 0, len(weights.weights)).amin(dim, keepdim).where(high >= 0, -1)
    alike = torch.equal(weights.weights[low], weights.weights[high])
    return _table(high, [weights.weights[:-1]]) if alike else None


def _spread(
    weights: Scattered, base: str, args: Sequence[Any], kwargs: Mapping[str, Any], first: Tensor
) -> Any:
    """Return the weights of what goes along dimensions in which every entry is of one row."""
    dims: Any = _dim(base, args, kwargs) if base in _ALONG else -1
    if base == "layer_norm":
        dims = tuple(range(-len(args[1]), 0))
    if dims is None:
        return None
    lead = weights.rows.amax(dims, keepdim=True)
    kept = bool(((weights.rows == lead) | (weights.rows < 0)).all())
    return weights._replace(rows=lead.expand(first.shape)) if kept else None


def _of_layer(
    base: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    operands: Sequence[Tensor],
    tables: Sequence[Any],
    result: Any,
) -> Any:
    """Return the weights of what a layer returns that treats each sample by itself."""
    if base in _CELLS:
        sides = dict.fromkeys(map(id, tree_leaves(args[:2])), 0)
        returned: tuple[int, ...] = (0, 0)
    elif args[0].dim() != 3:
        return None
    elif base in _RECURRENT:
        along = 0 if args[-1] is True else 1
        sides = {id(args[0]): along, **dict.fromkeys(map(id, tree_leaves(args[1])), 1)}
        returned = (along, 1, 1)
    else:
        sides = {**dict.fromkeys(map(id, args[:3]), 1), id(kwargs.get("key_padding_mask")): 0}
        returned = (1, 0)
    numbered = _numbered(_empty(tables[0]), list(zip(operands, tables, strict=True)))
    if numbered is None or any(id(operand) not in sides for operand in operands):
        return None
    samples: Tensor | None = None
    for operand, rows in zip(operands, numbered[1], strict=True):
        each = rows.movedim(sides[id(operand)], 0).flatten(1)
        lead = each.amax(1)
        samples = lead if samples is None else _merged(samples, lead)
        if samples is None or not bool(((each == lead[:, None]) | (each < 0)).all()):
            return None
    assert samples is not None

    def weights(value: Tensor, side: int) -> Any:
        shape = [-1 if dim == side else 1 for dim in range(value.dim())]
        return simplest(Scattered(numbered[0], samples.view(shape).expand(value.shape)))

    if isinstance(result, Tensor):
        return weights(result, returned[0])
    return [
        None if value is None else weights(value, side) for value, side in zip(result, returned, strict=False)
    ]


def _row_numbers(value: Tensor, rows: int) -> Tensor | None:
    """Return the row of each entry of a value whose leading dimension holds them in order."""
    if value.dim() == 0 or rows == 0:
        return torch.zeros(value.shape, dtype=torch.long) if max(value.numel(), rows) <= 1 else None
    if value.size(0) % rows != 0:
        return None
    numbers = torch.arange(rows).repeat_interleave(value.size(0) // rows)
    return numbers.view(-1, *[1] * (value.dim() - 1)).expand(value.shape)


def _table(rows: Tensor, weights: Sequence[Tensor]) -> Any:
    """Return the weights of a value by the numbers of its rows, -1 for what is alike in all worlds."""
    if rows.numel() == 0:
        return weights[0][:0]
    leading = rows.reshape(len(rows) if rows.dim() > 0 else 1, -1)
    lead = leading.amax(1)
    last = lead.max()
    if last < 0:
        return PLAIN
    in_order = _row_numbers(lead, len(weights[0]))
    by_row = bool(((leading == lead[:, None]) | (leading < 0)).all())
    if by_row and len(weights) == 1 and in_order is not None and torch.equal(lead, in_order):
        return weights[0]
    if by_row and bool(((lead == last) | (lead < 0)).all()):
        return _made(lambda: _joined(weights)[last])  # a single sample's: one lam again
    if by_row:
        return _made(lambda: _joined(weights)[lead])
    return Scattered(_made(lambda: _joined(weights)), rows)


def _joined(weights: Sequence[Tensor]) -> Tensor:
    """Return one table of several; its last row, of number -1, is for what is alike: any weights will do."""
    alike = torch.eye(1, weights[0].size(1), dtype=weights[0].dtype, device=weights[0].device)
    return torch.cat([*weights, alike])


def _made(make: Callable[[], Tensor]) -> Tensor:
    """Return weights made of others, and make them anew once those of a hidden layer are known."""
    made = make()
    ledger.when_known(lambda: made.copy_(make()))
    return made


def simplest(weights: Any) -> Any:
    """Return scattered weights by row, or those of one sample, where that is what they are.

    Args:
        weights: Of any kind.
    """
    if not isinstance(weights, Scattered):
        return weights
    table = _table(weights.rows, [weights.weights[:-1]])
    if table is PLAIN:
        return weights
    return table[0] if isinstance(table, Tensor) and len(table) == 1 else table


def agreed(weights: Any, other: Any) -> Any:
    """Return the weights of two arguments that differ only where one is alike in all worlds, or None.

    Args:
        weights: Of one argument.
        other: Of the other one.
    """
    if isinstance(weights, Tensor) and isinstance(other, Tensor):  # of a batch of one, and of its one sample
        batch, one = (weights, other) if weights.dim() == 2 else (other, weights)
        return batch if len(batch) == 1 and alike(batch[0], one) else None
    like = next((w.rows for w in (weights, other) if isinstance(w, Scattered)), None)
    if like is None or any(isinstance(w, Scattered) and w.rows.shape != like.shape for w in (weights, other)):
        return None
    numbered = _numbered(_empty(weights), [(like, weights), (like, other)])
    if numbered is None or (merged := _merged(*numbered[1])) is None:
        return None
    by_row = next((w for w in (weights, other) if isinstance(w, Tensor)), None)
    return Scattered(numbered[0], merged) if by_row is None else by_row


def follow_writes(
    name: str,
    calls: Sequence[tuple[Sequence[Any], Mapping[str, Any]]],
    memory: tuple[Tensor, Any],
    into: tuple[Tensor, Any],
    places: Sequence[Tensor],
    others: Sequence[tuple[Sequence[Tensor], Any]],
) -> Scattered | None:
    """Return the weights of memory that rows were written into, or None if unknown.

    Each entry belongs to the row that was written there, in whichever world; so no two may have been.

    Args:
        name: The name of the function that writes.
        calls: Its positional and keyword arguments in each world.
        memory: All of the memory, and its weights before; None: it was alike in all worlds.
        into: The tensor in it that is written into, and its weights before, likewise.
        places: The number in memory of each entry of that tensor, in each world.
        others: The other arguments that have rows, as they are in each world, and their weights.
    """
    if torch.compiler.is_compiling():
        torch._dynamo.graph_break()
    parts = [memory, into, *((worlds[0], weights) for worlds, weights in others)]
    numbered = _numbered(_empty(next(weights for _, weights in parts if weights is not None)), parts)
    if numbered is None or any(w.shape != worlds[0].shape for worlds, _ in others for w in worlds):
        return None
    table, (rows, mine, *numbers) = numbered
    rows = rows.flatten()
    for j, (args, kwargs) in enumerate(calls):
        marks = {id(worlds[j]): number for (worlds, _), number in zip(others, numbers, strict=True)}
        hits = _hits(name.strip("_"), args, kwargs, places[j], marks)
        if hits is None:
            return None
        for hit, new in ((places[j], mine), hits):  # what labels have looked up is theirs
            merged = _merged(rows[hit], new)
            if merged is None:
                return None
            rows = rows.index_put((hit,), merged)
            if not torch.equal(rows[hit], merged):  # two rows at one place
                return None
    return Scattered(table, rows)


def _copied(
    calls: Sequence[tuple[Sequence[Any], Mapping[str, Any]]],
    name: str,
    operands: Sequence[Sequence[Tensor]],
    tables: Sequence[Any],
    results: Sequence[Any],
) -> Any:
    """Return the weights of a copy that rows were written into, or None if that is no copy."""
    args = calls[0][0]
    if name not in _SCATTERING | _INDEXED | {"index_put"} or not args:
        return None
    parts = list(zip(operands, tables, strict=True))
    before = next((table for worlds, table in parts if worlds[0] is args[0]), None)
    others = [(worlds, table) for worlds, table in parts if worlds[0] is not args[0]]
    places = [torch.arange(result.numel()).view(result.shape) for result in results]
    memory = follow_writes(name, calls, (results[0], None), (results[0], before), places, others)
    return None if memory is None else memory._replace(rows=memory.rows.view(results[0].shape))


def _looked_up(
    calls: Sequence[tuple[Sequence[Any], Mapping[str, Any]]],
    operands: Sequence[Sequence[Tensor]],
    tables: Sequence[Any],
) -> Any:
    """Return the weights of what an index picks, where both have rows of their own."""
    parts = [(worlds[0], table) for worlds, table in zip(operands, tables, strict=True)]
    numbered = _numbered(_empty(tables[0]), parts)
    if numbered is None or calls[0][0][0] is not operands[0][0]:
        return None
    table, (rows, *numbers) = numbered
    picked: Tensor | None = None
    for j, (args, kwargs) in enumerate(calls):
        marks = {id(worlds[j]): number for worlds, number in zip(operands[1:], numbers, strict=True)}
        hits = _hits("getitem", args, kwargs, rows, marks)
        merged = None if hits is None else _merged(*hits)
        picked = merged if picked is None or merged is None else _merged(picked, merged)
        if picked is None:
            return None
    assert picked is not None
    return simplest(Scattered(table, picked))


def _hits(
    base: str, args: Sequence[Any], kwargs: Mapping[str, Any], places: Tensor, marks: Mapping[int, Tensor]
) -> tuple[Tensor, Tensor] | None:
    """Return what stands at the places that an index names, and the numbers of the rows that go there.

    Args:
        base: The name of a function that writes, or ``getitem``.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        places: What stands where, shaped like the tensor that is written into.
        marks: The numbers of the rows of its arguments, by their ids.
    """
    found: list[Tensor] = []
    if base in ("getitem", "setitem", "index_put"):
        key = args[1] if isinstance(args[1], tuple) or base == "index_put" else (args[1],)
        key = [torch.tensor(part) if isinstance(part, range) else part for part in key]
        index = [part for part in key if isinstance(part, Tensor)]
        if any(part.dtype in (torch.bool, torch.uint8) for part in index):
            return None
        shape = torch.broadcast_shapes(*[part.shape for part in index])  # type: ignore[no-untyped-call]
        first = next((i for i, part in enumerate(key) if isinstance(part, Tensor)), 0)
        if len(shape) > 0 and not all(isinstance(part, int) for part in key[:first]):
            return None
        hit = places[tuple(part.cpu() if isinstance(part, Tensor) else part for part in key)]
        behind = [1] * (hit.dim() - len(shape))
        found += [
            marks[id(part)].expand(shape).reshape([*shape, *behind]) for part in index if id(part) in marks
        ]
        source = args[2] if len(args) > 2 else None
        found += [marks[id(source)]] if id(source) in marks else []
    elif base in _SCATTERING | _INDEXED:
        call = {**dict(zip(("input", "dim", "index", "source"), args, strict=False)), **kwargs}
        source = call.get("source", call.get("src", call.get("value")))
        dim, index = call["dim"], call["index"]
        mark, given = marks.get(id(index)), marks.get(id(source))
        if base in _SCATTERING:
            hit = places.gather(dim, index.cpu())
            given = None if given is None else given[tuple(map(slice, index.shape))]
        else:
            hit = places.index_select(dim, index.cpu())
            behind = [1] * (hit.dim() - 1 - dim % max(hit.dim(), 1))
            mark = None if mark is None else mark.view(-1, *behind)
        found += [part for part in (mark, given) if part is not None]
    elif base in _POINTWISE:
        hit, found = places, list(marks.values())
    else:
        return None
    rows = torch.full(hit.shape, -1)
    for mark in found:
        merged = _merged(rows, mark.expand(hit.shape))
        if merged is None:
            return None
        rows = merged
    return hit, rows


def _empty(weights: Any) -> Tensor:
    """Return a table for what is alike, of as many worlds as weights have."""
    table = weights.weights if isinstance(weights, Scattered) else weights
    return _joined([table.view(-1, table.size(-1))[:0]])


def _numbered(table: Tensor, parts: Sequence[tuple[Tensor, Any]]) -> tuple[Tensor, list[Tensor]] | None:
    """Return a table that has the rows of several values too, and the number there of each of their entries.

    Rows of the same weights have the same number.

    Args:
        table: Weights; the last row is for what is alike.
        parts: Values, each with its weights; None: it is alike in all worlds.
    """
    numbers = []
    for value, weights in parts:
        if weights is None:
            numbers.append(torch.full(value.shape, -1))
            continue
        if isinstance(weights, Picked):
            return None
        own = weights.weights[:-1] if isinstance(weights, Scattered) else weights.view(-1, weights.size(-1))
        rows: Tensor | None = torch.zeros(value.shape, dtype=torch.long)
        if isinstance(weights, Scattered):
            rows = weights.rows
        elif weights.dim() == 2:
            rows = _row_numbers(value, len(own))
        if rows is None:
            return None
        before = len(table) - 1
        table = _made(partial(_joined, [table[:-1], own]))
        same = (table[:-1, None] == own).all(-1)
        same[before:].fill_diagonal_(True)  # weights that are not known yet
        places = torch.cat([same.int().argmax(0).cpu(), torch.tensor([-1])])
        numbers.append(places[rows])
    return table, numbers


def _merged(rows: Tensor, others: Tensor) -> Tensor | None:
    """Return the numbers of rows where one of two has one, or None where both have and they differ."""
    apart = (rows >= 0) & (others >= 0) & (rows != others)
    return None if bool(apart.any()) else torch.maximum(rows, others)


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
