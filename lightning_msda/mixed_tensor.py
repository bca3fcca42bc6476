"""Labels that live in several worlds.

A `MixedTensor` *is* the own labels to everyone who looks at it: its shape and dtype, printing, metrics,
code that bypasses torch's dispatch. Beside them it carries the labels of every other source and the
weights of the sources, and it has one idea: **whatever is computed from it is computed in every
world**. So a loss need not be known here to be mixed exactly.

One lam per batch (weights of shape ``(k,)``): the worlds stay apart until the loss leaves, where it
becomes ``lam * own + (1 - lam) * partner``, the papers' formula for *any* loss. One lam per sample
(weights of shape ``(rows, k)``): the worlds meet where the batch is reduced (`blending`), and `rows`
knows where each row's lam has gone until then.

A loss leaves as the mixture's value, everything else as the own world's: metrics see own labels.
Where the other worlds cannot be followed the result is *lost*: good enough for a metric, but a loss
that contains it is refused. `release` makes every mixed tensor the plain own value again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._dynamo import eval_frame as _eval_frame
from torch._guards import TracingContext
from torch.utils._pytree import tree_leaves
from typing_extensions import override

from lightning_msda import ledger
from lightning_msda.blending import LOSSES, Picked, Scattered, Weights, blend, nll_of_any, reduced
from lightning_msda.effects import calls_alike, runs_alike
from lightning_msda.rows import (
    INDEXING,
    JOINING,
    MOVING,
    PLAIN,
    agreed,
    alike,
    follow_rows,
    follow_writes,
    moves_rows,
    simplest,
)

__all__ = [
    "BY_CRITERION",
    "MixedLossError",
    "MixedTensor",
    "hand_over",
    "in_every_world",
    "in_own_world",
    "is_mixed",
    "lose",
    "name_of",
    "note_leaks",
    "refuse_leaked",
    "refuse_unread",
    "release",
    "seen",
    "settle",
]

# Where a loss leaves for the optimizer.
_GRADIENTS = (Tensor.backward, torch.autograd.backward, torch.autograd.grad)
# Where a value leaves torch, and may come back in a loss unseen.
_LEAVING = frozenset(
    "item tolist numpy __array__ __bool__ __int__ __float__ __complex__ __index__ __contains__ data_ptr"
    " __dlpack__ as_subclass".split()
)
# Where it leaves to be looked at or kept.
_SHOWING = frozenset("__repr__ __format__ __str__ __hash__ __reduce_ex__ untyped_storage".split())
# Where it answers with its form, and of that with what may differ between the worlds.
_SIZES = frozenset("shape size __len__ numel nelement".split())
_FORM = _SIZES | frozenset("dtype device layout ndim dim is_floating_point is_complex requires_grad".split())
# Where it answers with a truth value that may differ between the worlds.
_JUDGING = frozenset("equal allclose is_nonzero".split())
# Where something is written into the first argument, beside the names that end in one underscore.
_ASSIGNING = frozenset(
    "__setitem__ __iadd__ __isub__ __imul__ __itruediv__ __ifloordiv__ __imod__ __ipow__ __iand__ __ior__"
    " __ixor__ __ilshift__ __irshift__".split()
)
# Where the losses of different samples add up.
_ADDING = frozenset("add __add__ __radd__ __iadd__ add_ sub __sub__ __rsub__ __isub__ sub_".split())
# Nodes of the graph that pick entries, and nodes that make one number of one.
_PICKING = frozenset("Select Index Unbind Gather Take TakeAlongDim IndexSelect AsStrided".split())
_OF_ONE = frozenset(
    """
    Neg Exp Expm1 Log Log1P Log2 Log10 Abs Sqrt Pow Mul Add Sub Rsub Div Clamp ClampMin ClampMax Sigmoid Tanh
    Relu Softplus View UnsafeView Squeeze Unsqueeze Reshape Alias Clone ToCopy
    """.split()
)
# What is linear in its target, and so can contain a label that is learned.
_CROSS_ENTROPIES: dict[Callable[..., Any], Callable[..., Any]] = {
    F.cross_entropy: F.cross_entropy,
    F.nll_loss: nll_of_any,
}
BY_CRITERION = (
    "If that is no part of the loss, let the step compute it after the loss; if it is, name the module's loss"
    " attribute or method by criterion='...', which is then called once for each source."
)
_BY_BATCH = "With per_sample=False there is one lam for the batch, and every loss can be mixed."


class MixedLossError(RuntimeError):
    """A loss was made from mixed labels in a way that cannot be mixed."""


class MixedTensor(Tensor):
    """A value computed from labels, in the world of each source.

    Args:
        worlds: The labels in each of the ``k`` sources' worlds, the own ones first. They are edited in place
            where the tensor is.
        weights: Weights of the sources, shape ``(k,)``, or ``(rows, k)`` where they differ by sample.

    Attributes:
        own: What everyone sees.
        worlds: The value in each world; a single one where the worlds have met.
        weights: As above; None where the worlds have met.
        lost: Why the other worlds could not be followed; None: they could.
        label: Whether it is no loss: a loss may leave torch, since it leaves as the mixture's.
    """

    own: Tensor
    worlds: tuple[Tensor, ...]
    weights: Weights | None
    lost: str | None
    label: bool

    def __new__(cls, worlds: tuple[Tensor, ...], weights: Tensor) -> MixedTensor:  # noqa: D102
        if weights.dim() == 2:
            ledger.note_by_sample()
        # In memory of its own: a compiled function must not take it for the first world.
        return _make(worlds[0].clone(), worlds[0], worlds, weights, None, label=True)

    def __copy__(self) -> Tensor:
        return self.view_as(self)

    @classmethod
    @override
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _GRADIENTS:  # not below: a backward may run parts of the step again
            return func(*_replace(args, settle), **_replace(kwargs, settle))
        with torch._C.DisableTorchFunctionSubclass():
            return _compute(func, args, kwargs)


# Where a graph breaks, the next one begins in the user's code, not in ours. (It is traced all the same where
# it is called from compiled code.)
_eval_frame.set_code_exec_strategy(
    MixedTensor.__torch_function__.__func__.__code__,  # type: ignore[attr-defined]
    _eval_frame._FrameExecStrategy(_eval_frame._FrameAction.SKIP, _eval_frame._FrameAction.SKIP),
)


def settle(loss: Tensor) -> Tensor:
    """Return the mixture's loss as a plain tensor, where it leaves for the optimizer.

    Args:
        loss: What the step computed, shape ``()``. A plain tensor is returned as it is.

    Raises:
        MixedLossError: If the loss contains something that cannot be mixed.
    """
    if not isinstance(loss, MixedTensor):
        return loss
    with torch._C.DisableTorchFunctionSubclass():
        world, weights = loss.worlds[0], loss.weights
        if (lost := loss.lost or _left_dispatch(loss)) is not None:
            raise MixedLossError(f"The loss cannot be mixed: {lost}")
        refuse_leaked(world)
        if isinstance(weights, Picked) or (_is_by_sample(weights) and world.numel() > 1):
            raise MixedLossError(
                f"The loss has shape {tuple(world.shape)} and a lam per sample, but was not reduced over the"
                f" batch, so lam has no place to act. Reduce it by mean or sum. {_BY_BATCH}"
            )
        ledger.note_settled()
        return blend(loss.worlds, weights)


def refuse_leaked(loss: Tensor) -> None:
    """Refuse a loss that may contain what was made of labels outside of torch.

    Args:
        loss: A plain tensor.

    Raises:
        MixedLossError: If labels left torch before it was made.
    """
    if (leak := ledger.leak_into(loss)) is not None:
        raise MixedLossError(
            f"The loss cannot be mixed: before it was made, labels left torch through {leak}, and what"
            f" was computed there knew the own labels only. {BY_CRITERION}"
        )


def refuse_unread() -> None:
    """Refuse a loss that was made without the mixed labels.

    Raises:
        MixedLossError: If there are any.
    """
    if any(isinstance(tensor, MixedTensor) and tensor.lost is None for tensor, _ in ledger.living()):
        leak = ledger.first_leak()
        how = f"labels left torch through {leak}" if leak else "nothing that torch dispatches read them"
        raise MixedLossError(
            f"The loss was not computed from the batch's mixed labels: {how}. Name the loss by"
            " criterion='...', an attribute or a method of the module that is called once for each"
            " source; or, if the loss needs no labels, mix the inputs alone by target_key=False."
        )


def release() -> None:
    """Make every mixed tensor plain again, wherever it has been put: the own value, or the mixture's loss."""
    for tensor, home in ledger.living():
        with torch._C.DisableTorchFunctionSubclass():
            kept = _seen(tensor).detach() if isinstance(tensor, MixedTensor) else tensor
        attributes = type(tensor).__annotations__
        tensor.__class__ = home
        if tensor.data_ptr() != kept.data_ptr():
            tensor.data = kept
        for name in attributes:
            del tensor.__dict__[name]
    ledger.forget()


def in_every_world(
    func: Callable[..., Any], name: str, *, by_row: bool, owner: Any = None
) -> Callable[..., Any]:
    """Return a function that calls another one once for each source, with plain tensors.

    It draws once, and keeps in the owner's modules what it kept for the own labels.

    Args:
        func: What torch does not dispatch.
        name: What it is called in an error.
        owner: Whose method it is.
        by_row: Whether it returns a value for each sample, in their order: then lam may differ by sample.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        mixed = _find((args, kwargs))
        if not mixed:
            return func(*args, **kwargs)
        weights, lost = _meet(mixed, name)
        k = 1 if lost else max(len(tensor.worlds) for tensor in mixed)
        run = runs_alike(func, owner, mixed[0].own.device)
        worlds = [run(*_replace(args, _world(j)), **_replace(kwargs, _world(j))) for j in range(k)]
        lost = lost or _lacking(mixed)
        kept = by_row and isinstance(weights, Tensor) and _has_rows(worlds[0], len(weights))
        if _is_by_sample(weights) and not kept:
            lost = f"{name} reduces over the batch itself, where a lam per sample cannot act. {_BY_BATCH}"
        if lost is not None:
            worlds, weights = worlds[:1], None
        return _join(name, worlds[0], worlds, weights, lost, label=True)

    return call


def in_own_world(func: Callable[..., Any], lost: str) -> Callable[..., Any]:
    """Return a function that is called with the own labels and the mixture's losses; what it makes is lost.

    Args:
        func: What torch does not dispatch.
        lost: What an error says of it.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        if not _find((args, kwargs)):
            return func(*args, **kwargs)
        own = func(*_replace(args, _seen), **_replace(kwargs, _seen))
        return _join("", own, [own], None, lost, label=True)

    return call


def lose(own: Tensor, why: str) -> MixedTensor:
    """Return a value that metrics may use, but that no loss may contain.

    Args:
        own: The value.
        why: What an error says of it.
    """
    return _make(_face(own), own, (own,), None, why, label=True)


def note_leaks(name: str, arguments: Any) -> None:
    """Remember that labels leave torch, if their partners' would be read otherwise.

    Args:
        name: What they leave through.
        arguments: What is read there, nested in any way.
    """
    for tensor in _find(arguments):
        read_alike = tensor.lost is None and all(_equal(world, tensor.own) for world in tensor.worlds)
        if tensor.label and not _is_loss(tensor) and not read_alike:
            ledger.note_leak(name)


def is_mixed(arguments: Any) -> bool:
    """Tell whether there is a mixed tensor among arguments, nested in any way.

    Args:
        arguments: Of a function.
    """
    return bool(_find(arguments))


def hand_over(value: Any) -> Any:
    """Return what leaves for the optimizer: of a loss the mixture's, of all else the own value.

    Args:
        value: Mixed, plain or no tensor.
    """
    if isinstance(value, MixedTensor):
        return settle(value) if _is_loss(value) or value.requires_grad else value.own
    return value


def seen(tensor: Tensor) -> Tensor:
    """Return what a reader outside is shown: of a loss the mixture's, of all else the own value.

    Args:
        tensor: Mixed or plain.
    """
    return _seen(tensor) if isinstance(tensor, MixedTensor) else tensor


def _compute(func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    """Call a function of mixed tensors: as a reader outside where values leave, else in every world."""
    if not args:  # called by keywords
        first = next(iter({"input", "tensor", "tensors", "self"} & kwargs.keys()), None)
        if first is not None:
            args, kwargs = (kwargs[first],), {key: kwargs[key] for key in kwargs if key != first}
    name = name_of(func)
    if name in _FORM:
        tensor = args[0]
        told = name in _SIZES and tensor.label and any(w.shape != tensor.own.shape for w in tensor.worlds)
        if told and TracingContext.try_get() is None:  # a compiler that looks at its arguments keeps nothing
            ledger.note_leak(name)
        return func(tensor.own, *args[1:], **kwargs)
    if name == "__iter__":
        return iter(_compute(Tensor.unbind, args, kwargs))
    mixed = _find((args, kwargs))
    if name in _SHOWING:
        return _call(func, args, kwargs, _seen)
    if name in _LEAVING or (name == "__set__" and not isinstance(args[0], MixedTensor)):
        note_leaks(name, mixed)
        return _call(func, args, kwargs, _seen)
    makes = name.endswith("_like") or name.startswith("new_")
    if makes and len(mixed) == 1 and mixed[0] is args[0]:  # of the labels it takes the form alone
        return _call(func, args, kwargs, _own)
    if not torch.compiler.is_compiling():
        _refuse_inside_of_transforms(name)
    if name in _ADDING and len(mixed) == 2 and not _equal(mixed[0].weights, mixed[1].weights):
        args = _met_in_sum(args, into=_written(name, args, kwargs))
        mixed = _find((args, kwargs))
    if func in _CROSS_ENTROPIES and (learned := ledger.expected()) is not None:
        call = {**dict(zip(LOSSES[func], args, strict=False)), **kwargs}
        return _compute_with_learned_label(func, name, call, learned)
    return _compute_in_worlds(func, name, args, kwargs, mixed)


def _compute_with_learned_label(
    func: Callable[..., Any], name: str, call: dict[str, Any], learned: ledger.Learned
) -> Any:
    """Call cross-entropy with one world more, in which the label is the learned one."""
    target, scores = call["target"], call["input"]
    options = {"reduction", "label_smoothing"} if func is F.cross_entropy else {"reduction"}
    usual = {"weight": None, "size_average": None, "reduce": None, "ignore_index": -100}
    unusual = [key for key, value in usual.items() if call.get(key, value) != value]
    lost = None
    if unusual:
        lost = f"{name} has no {unusual[0]} where a part of the label is learned. Leave it out."
    elif learned.value is None:
        lost = f"{name} was called before {learned.name!r}, whose input says what the label is."
    elif isinstance(scores, MixedTensor) or not isinstance(target, MixedTensor):
        lost = f"{name} gets scores that were computed from labels, where a part of the label is learned."
    elif scores.requires_grad and not learned.value.requires_grad:
        lost = (
            f"the label that is learned beside {learned.name!r} was computed without gradients. Let"
            " checkpoint record them, by use_reentrant=False."
        )
    elif scores.shape != learned.value.shape:
        lost = (
            f"{name} gets scores of shape {tuple(scores.shape)}, and the label that is learned beside"
            f" {learned.name!r} has shape {tuple(learned.value.shape)}. Name the layer that makes these"
            " scores by classifier='...'."
        )
    if lost is not None:
        return lose(_call(func, (), call, _own), lost)
    assert isinstance(target, MixedTensor) and learned.value is not None
    soft = learned.value
    if not torch.is_autocast_enabled(scores.device.type):  # which computes losses in single precision
        soft = soft.to(scores.dtype)
    worlds = (*target.worlds, soft)
    target = _make(target.own, target.own, worlds, learned.weights, target.lost, label=True)
    kwargs = {key: call[key] for key in options & call.keys()}
    return _compute_in_worlds(_CROSS_ENTROPIES[func], name, (scores, target), kwargs, [target])


def _lacking(mixed: list[MixedTensor]) -> str | None:
    """Say so where something is computed from labels that lack the one that is learned."""
    learned = ledger.expected()
    if learned is None or all(len(t.worlds) in (1, learned.weights.size(-1)) for t in mixed):
        return None
    return (
        "a part of the label is learned, and enters the loss through torch's cross_entropy or nll_loss alone,"
        " called with the batch's classes."
    )


def _compute_in_worlds(
    func: Callable[..., Any], name: str, args: Any, kwargs: dict[str, Any], mixed: list[MixedTensor]
) -> Any:
    """Call a function once for each world, and put together what it returns there or has written."""
    written = _written(name, args, kwargs)
    weights, lost = _meet(mixed, name, written)
    k = max(len(tensor.worlds) for tensor in mixed)
    # A loss that leaves the graph is from here on seen as the mixture's.
    leaves = (name in ("detach", "data") or not torch.is_grad_enabled()) and any(map(_is_loss, mixed))
    by_sample = ledger.differs_by_sample()
    known = before = None
    if written is not None and by_sample:
        home = _home(written)
        known, before = _weights(home), None if home is written else _weights(written)
    into = None if written is None else _opened(written, name, k, weights)
    if into is not None:
        if into.own is into.worlds[0] and (leaves or any(t.own is not t.worlds[0] for t in mixed)):
            into.worlds = (into.own.clone(), *into.worlds[1:])  # what is shown differs from the first world
        mixed = [into, *(tensor for tensor in mixed if tensor is not into)]
    met, lacking = None, _lacking(mixed)
    if lost is None and ledger.expected() is not None and moves_rows(name, args):
        lost = f"a part of the label is learned for the samples in their order, and {name} moves them."
    calls: list[Any] = []
    if lost is None:
        calls = [(_replace(args, _world(j)), _replace(kwargs, _world(j))) for j in range(k)]
    if lost is None and _is_by_sample(weights):
        met = reduced(func, name, calls, simplest(weights))
        if met is not None and met.requires_grad:
            return _make(met, met, (met,), None, lacking, label=False)
    if k > 1:
        func = calls_alike(func, name, mixed[0].own.device)
    own = _call(func, args, kwargs, _seen if leaves else _own)
    worlds: list[Any] = [own]
    if met is not None:
        worlds, weights = [met], None
    elif lost is None:
        try:
            if leaves or any(tensor.own is not tensor.worlds[0] for tensor in mixed):
                worlds = [_call(func, args, kwargs, _world(0))]
            worlds += [_call(func, args, kwargs, _world(j)) for j in range(1, k)]
        except Exception as error:  # whatever it was, the own labels got through
            lost = f"{name} ran on the own labels, but not on their partners' ({error}). {BY_CRITERION}"
    if lost is None and isinstance(own, Tensor) and own.requires_grad:
        lost = lacking
    by_row = _is_by_sample(weights)
    unfollowed = f"a lam per sample cannot be followed through {name}. {_BY_BATCH}"
    if lost is None and by_row:
        operands = [tensor for tensor in mixed if len(tensor.worlds) > 1]
        agree, picked = name not in INDEXING and name not in JOINING, isinstance(weights, Picked)
        weights = follow_rows(
            func,
            name,
            calls,
            [tensor.worlds for tensor in operands],
            [weights if agree or (t is into and not picked) else t.weights for t in operands],
            worlds if into is None else into.worlds,
        )
        if weights is None and into is None and _are_alike(worlds):
            worlds = worlds[:1]
        elif weights is None and into is None:
            lost = unfollowed
    if lost is None and into is not None and by_sample and len(into.worlds) > 1:
        in_place = by_row and weights is not None and _has_rows_of_base(into)
        if not in_place or any(w is not None and not _equal(w, weights) for w in (known, before)):
            others = [(t.worlds, t.weights) for t in mixed if t is not into and len(t.worlds) > 1]
            weights = _write_rows(into, known, before, partial(follow_writes, name, calls), others)
            lost = unfollowed if weights is None else None
    label = all(tensor.label for tensor in mixed) and not leaves
    if into is not None:
        _close(into, weights, lost, label)
        return into if isinstance(own, Tensor) else own
    if lost is not None:
        worlds, weights = [own], None
    return _join(name, own, worlds, weights, lost, label)


def _call(
    func: Callable[..., Any], args: Any, kwargs: dict[str, Any], view: Callable[[MixedTensor], Tensor]
) -> Any:
    """Call a function with another tensor in the place of each mixed one."""
    return func(*_replace(args, view), **_replace(kwargs, view))


def _opened(into: Tensor, name: str, k: int, weights: Weights | None) -> MixedTensor:
    """Return a tensor that labels are about to be written into, after it came to live in every world."""
    plain, views = (_shared_base(into), 1 + k) if isinstance(into, MixedTensor) else (into, 0)
    if plain is not None:
        if torch.compiler.is_dynamo_compiling():
            torch._dynamo.graph_break()  # a traced tensor cannot become another one
        if _has_other_readers(plain, views):
            ledger.note_leak(f"{name}, which wrote them into memory that another tensor or array shares")
    return _adopt(into, k, weights)


def _close(into: MixedTensor, weights: Weights | None, lost: str | None, label: bool) -> None:
    """Note what a tensor is after labels were written into it."""
    into.weights, into.label = weights, label
    if lost is not None:
        if torch.compiler.is_dynamo_compiling():
            torch._dynamo.graph_break()  # a traced tensor does not know who shares its memory
        for part in _sharing(into):
            part.worlds, part.weights, part.lost = (part.own,), None, lost


def name_of(func: Callable[..., Any]) -> str:
    """Return the name of a function, or of the property that it gets.

    Args:
        func: What ``__torch_function__`` was asked for.
    """
    name: str = getattr(func, "__name__", type(func).__name__)  # a traced module has none
    return str(func.__self__.__name__) if name == "__get__" else name  # type: ignore[attr-defined]


name_of._dynamo_marked_constant = True  # type: ignore[attr-defined]  # torch 2.14 cannot trace its strings


def _refuse_inside_of_transforms(name: str) -> None:
    """Refuse to compute with labels where nothing that comes of it can live in several worlds."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise MixedLossError(
            f"{name} reads mixed labels inside of torch.func or vmap, which did not get them as an argument."
            " Hand them over as one, or use torch.autograd."
        )
    # A checkpoint that runs a part of the step again records gradients there, a hook does not; and a module
    # that is saved meanwhile detaches its buffers.
    if name != "detach" and torch._C._current_graph_task_id() != -1 and not torch.is_grad_enabled():
        raise MixedLossError(
            f"{name} reads mixed labels during the backward pass, where a gradient cannot be mixed. Compute"
            " what the hook or the custom function needs in the forward pass, or name the loss by"
            " criterion='...'."
        )


def _join(name: str, own: Any, worlds: list[Any], weights: Any, lost: str | None, label: bool) -> Any:
    """Put together what a function returned in each world."""
    if weights is PLAIN:
        return own
    if isinstance(own, Tensor):
        return _make(_face(own), own, tuple(worlds), weights, lost, label=label)
    if isinstance(own, (list, tuple)) and any(isinstance(item, Tensor) for item in own):
        if any(len(world) != len(own) for world in worlds):
            worlds, lost = (
                [own],
                f"{name} returns {len(own)} tensors for the own labels, but not for their partners'",
            )
        each = weights if isinstance(weights, list) else [weights] * len(own)
        items = [_join(name, own[i], [w[i] for w in worlds], each[i], lost, label) for i in range(len(own))]
        return type(own)(*items) if hasattr(own, "_fields") else type(own)(items)
    if name in _JUDGING and label and any(world != own for world in worlds):
        ledger.note_leak(name)
    return own


def _met_in_sum(args: Any, into: Tensor | None) -> Any:
    """Let the worlds meet where single numbers of two samples are added: that reduces the batch."""

    def met(tensor: MixedTensor) -> MixedTensor:
        if tensor.lost is not None or tensor.own.dim() > 0 or isinstance(tensor.weights, Picked):
            return tensor
        met = blend(tensor.worlds, tensor.weights)
        own = met if met.requires_grad else tensor.own
        if tensor is into:
            tensor.own, tensor.worlds, tensor.weights = own, (met,), None
            return tensor
        return _make(own, own, (met,), None, None, label=tensor.label)

    return _replace(args, met)


def _meet(mixed: list[MixedTensor], name: str, written: Tensor | None = None) -> tuple[Any, str | None]:
    """Return the weights that the arguments share, and why the result is lost, if it is."""
    weights = None
    apart = ledger.differs_by_sample()
    for tensor in mixed:
        if (lost := tensor.lost or _left_dispatch(tensor)) is not None:
            return None, lost
        if tensor is written and apart and len(mixed) > 1:  # rows of its own
            continue
        if weights is None:
            weights = tensor.weights
        elif tensor.weights is None or _equal(tensor.weights, weights):
            continue
        elif name in JOINING:
            weights = weights.view(-1, weights.size(-1)) if isinstance(weights, Tensor) else weights
        elif name in INDEXING and (
            isinstance(tensor.weights, Picked) or (name == "__getitem__" and _is_by_sample(weights))
        ):
            continue
        elif (shared := agreed(weights, tensor.weights)) is not None:
            weights = shared
        else:
            return None, f"labels of different samples, or of two mixes, meet in {name}. {_BY_BATCH}"
    weights = _weights(written) if weights is None and written is not None else weights
    one = weights if name in MOVING or name in INDEXING else simplest(weights)
    return one if isinstance(one, Tensor) and one.dim() == 1 else weights, None


def _adopt(into: Tensor, k: int, weights: Weights | None) -> MixedTensor:
    """Let a tensor that labels are written into live in k worlds from now on."""
    if isinstance(into, MixedTensor) and (shared := _shared_base(into)) is not None:
        bases = _adopt(shared, k, weights).worlds
        into.worlds = tuple(map(partial(_same_view, shared), into.worlds, bases))
        into.own = into.worlds[0]
    elif not isinstance(into, MixedTensor):
        home, base = type(into), into._base
        if base is None:  # not a view of itself, for which a compiler that meets it later would take it
            with torch.enable_grad():  # what is edited without gradients keeps those that it has
                own = into.detach() if into.is_leaf else into.clone()
                worlds = (own, *(own.clone() for _ in range(1, k)))
        else:  # a view: its worlds are views of the base's
            worlds = tuple(_same_view(base, into, world) for world in _adopt(base, k, weights).worlds)
        into.__class__ = MixedTensor
        assert isinstance(into, MixedTensor)
        into.own, into.worlds, into.weights, into.lost, into.label = worlds[0], worlds, weights, None, True
        ledger.remember(into, home)
    elif len(into.worlds) < k:
        into.worlds += tuple(into.worlds[0].clone() for _ in range(len(into.worlds), k))
        into.weights = weights
    return into


def _write_rows(
    into: MixedTensor,
    known: Weights | None,
    before: Weights | None,
    follow: Callable[..., Scattered | None],
    others: list[tuple[tuple[Tensor, ...], Weights | None]],
) -> Weights | None:
    """Return the weights of a tensor that rows were written into, and note them for all of its memory.

    Args:
        into: The tensor.
        known: The weights of its memory before.
        before: Its own weights before.
        follow: `follow_writes` of the call.
        others: The other arguments that have rows, in each world, with their weights.
    """
    home = _home(into)
    if not isinstance(home, MixedTensor) or any(w.stride() != home.worlds[0].stride() for w in home.worlds):
        return None
    numbers = torch.empty_strided(home.own.size(), home.own.stride(), dtype=torch.long)
    numbers.copy_(torch.arange(numbers.numel()).view(numbers.size()))

    def places(part: MixedTensor) -> list[Tensor]:
        return list(map(_same_view, home.worlds, part.worlds, [numbers] * len(part.worlds)))

    memory = follow((home.worlds[0], known), (into.worlds[0], before), places(into), others)
    if memory is None:
        return None
    for part in _sharing(into):
        each = [Scattered(memory.weights, memory.rows[place]) for place in places(part)]
        if all(torch.equal(one.rows, each[0].rows) for one in each):
            part.weights = each[0] if bool((each[0].rows < 0).any()) else simplest(each[0])
        elif any(agreed(one, part.weights) is None for one in each):  # labels have looked it up
            return None
    return into.weights


def _home(tensor: Tensor) -> Tensor:
    """Return the tensor whose memory another one is in: itself, or what it is a view of."""
    base = (tensor.worlds[0] if isinstance(tensor, MixedTensor) else tensor)._base
    if base is None or isinstance(base, MixedTensor):
        return tensor if base is None else base
    mixed = [other for other, _ in ledger.living() if isinstance(other, MixedTensor)]
    return next((other for other in mixed if other.worlds[0] is base), base)


def _weights(tensor: Tensor) -> Weights | None:
    return tensor.weights if isinstance(tensor, MixedTensor) else None


def _shared_base(tensor: MixedTensor) -> Tensor | None:
    """Return the plain tensor that every world is a view of, such as the table in ``table[y[0]]``."""
    if torch.compiler.is_dynamo_compiling():
        return None
    base = tensor.worlds[0]._base
    if len(tensor.worlds) == 1:
        shared = tensor.lost is not None and _home(tensor) is base  # no mixed tensor's
    else:
        shared = all(world._base is base for world in tensor.worlds[1:])
    return base if shared and not isinstance(base, MixedTensor) else None


def _sharing(tensor: MixedTensor) -> list[MixedTensor]:
    """Return every mixed tensor in the same memory: itself, what it is a view of, and other views."""
    memory = tensor.own.untyped_storage().data_ptr()
    mixed = [other for other, _ in ledger.living() if isinstance(other, MixedTensor)]
    return [other for other in mixed if other is tensor or other.own.untyped_storage().data_ptr() == memory]


def _same_view(base: Tensor, view: Tensor, other: Tensor) -> Tensor:
    """Return the view of another tensor that a view is of its base."""
    offset = view.storage_offset() - base.storage_offset()
    return other.as_strided(view.size(), view.stride(), other.storage_offset() + offset)


def _has_other_readers(into: Tensor, views: int) -> bool:
    """Tell whether a plain tensor's memory is known to someone beside it and the tensor it is a view of.

    They would read the own labels there as plain numbers. So many views of it are our own.
    """
    if type(into) is not Tensor or into.layout is not torch.strided or isinstance(into._base, MixedTensor):
        return False
    storage = into.untyped_storage()  # itself one user more
    users: int = torch._C._storage_Use_Count(storage._cdata)
    owned = storage.resizable() or storage.is_shared()  # otherwise by an array
    return users > views + (2 if into._base is None else 3) or not owned


def _make(
    face: Tensor,
    own: Tensor,
    worlds: tuple[Tensor, ...],
    weights: Tensor | Scattered | None,
    lost: str | None,
    *,
    label: bool,
) -> MixedTensor:
    """Make a mixed tensor whose face is what is read where torch does not dispatch."""
    if own.layout is not torch.strided:
        raise MixedLossError(
            f"Mixed labels became a tensor of layout {own.layout}, which cannot live in several worlds. Use a"
            " dense one, such as F.one_hot(y)."
        )
    tensor = face.as_subclass(MixedTensor)
    tensor.own, tensor.worlds, tensor.weights, tensor.lost, tensor.label = own, worlds, weights, lost, label
    ledger.remember(tensor, Tensor)
    return tensor


def _face(own: Tensor) -> Tensor:
    """Return what is read where torch does not dispatch: the own value.

    Inside of a compiled function that is what stands in a tuple or is written; there it finds values that
    no index and no loss survives.
    """
    if own.requires_grad or own.dtype == torch.bool or not torch.compiler.is_dynamo_compiling():
        return own
    return torch.full_like(own, torch.nan if own.is_floating_point() else torch.iinfo(own.dtype).min)


def _written(name: str, args: Any, kwargs: dict[str, Any]) -> Tensor | None:
    """Return the tensor that a function writes into, if it does."""
    out = kwargs.get("out")
    if name in _ASSIGNING or (name.endswith("_") and not name.endswith("__")):
        out = args[0]
    return out if isinstance(out, Tensor) else None


def _find(arguments: Any) -> list[MixedTensor]:
    """Return every mixed tensor among arguments."""
    if isinstance(arguments, MixedTensor):
        return [arguments]
    if isinstance(arguments, dict):
        arguments = list(arguments.values())
    if isinstance(arguments, (list, tuple)):
        return [tensor for argument in arguments for tensor in _find(argument)]
    return []


def _replace(arguments: Any, view: Callable[[MixedTensor], Tensor]) -> Any:
    """Return arguments with another tensor in the place of each mixed one."""
    if isinstance(arguments, MixedTensor):
        return view(arguments)
    if type(arguments) in (list, tuple):
        return type(arguments)([_replace(argument, view) for argument in arguments])
    if type(arguments) is dict:
        return {key: _replace(argument, view) for key, argument in arguments.items()}
    return arguments


def _world(j: int) -> Callable[[MixedTensor], Tensor]:
    return lambda tensor: tensor.worlds[j if len(tensor.worlds) > 1 else 0]


def _own(tensor: MixedTensor) -> Tensor:
    return tensor.own


def _seen(tensor: MixedTensor) -> Tensor:
    """Return what a reader outside is shown: of a loss the mixture's, of all else the own value."""
    if not _is_loss(tensor) or isinstance(tensor.weights, Picked):
        return tensor.own
    return blend(tensor.worlds, tensor.weights)


def _is_loss(tensor: MixedTensor) -> bool:
    world = tensor.worlds[0]
    return world.requires_grad and world.numel() == 1 and tensor.lost is None and not _is_picked(world)


def _is_picked(number: Tensor) -> bool:
    """Tell whether a single number was picked out of many, such as the probability of one label."""
    node = None if torch.compiler.is_dynamo_compiling() else number.grad_fn
    while node is not None:
        operation = node.name().removesuffix("Backward0")
        parents = [parent for parent, _ in node.next_functions if parent is not None]
        if operation in _PICKING or operation not in _OF_ONE or len(parents) != 1:
            return operation in _PICKING
        (node,) = parents
    return False


def _left_dispatch(tensor: MixedTensor) -> str | None:
    """Say so where a value has a gradient that its worlds know nothing of, or a compiled graph lost them."""
    for world in tensor.worlds:
        if isinstance(world, MixedTensor):
            return world.lost
    if tensor.requires_grad and not tensor.worlds[0].requires_grad:
        return f"a custom autograd function computed with the own labels only. {BY_CRITERION}"
    return None


def _has_rows(value: Any, rows: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.size(0) % rows == 0


def _has_rows_of_base(view: Tensor) -> bool:
    """Tell whether the leading entries of a view lie in those of its base."""
    base = view._base
    if base is None:
        return True
    return (view.shape[:1], view.stride()[:1]) == (base.shape[:1], base.stride()[:1])


def _is_by_sample(weights: Weights | None) -> bool:
    return weights is not None and (not isinstance(weights, Tensor) or weights.dim() == 2)


def _are_alike(worlds: list[Any]) -> bool:
    """Tell whether a function answered the same in every world, such as a check that all labels are valid.

    What has a gradient may have another one in each, though its values are alike.
    """
    leaves = [tree_leaves(world) for world in worlds]
    return all(
        len(other) == len(leaves[0])
        and all(
            isinstance(a, Tensor) and not a.requires_grad and _equal(a, b)
            for a, b in zip(leaves[0], other, strict=True)
        )
        for other in leaves[1:]
    )


def _equal(a: Weights | None, b: Weights | None) -> bool:
    if isinstance(a, Picked) and isinstance(b, Picked):
        return all(map(_equal, a.tables, b.tables))
    if a is b or not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return a is b
    return alike(a, b)
