"""Where worlds meet: the weighted sum over the sources, and reductions over the batch with it.

Weights have shape ``(k,)`` for one lam per batch and ``(rows, k)`` for one per sample; a value's leading
dimension holds a whole number of entries for each row, in order (labels ``(N, T)`` flattened to ``(N * T,)``
keep their ``N`` rows).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import _reduction

__all__ = [
    "LOSSES",
    "Picked",
    "Scattered",
    "Weights",
    "blend",
    "einsum_indices",
    "misses_rows",
    "nll_of_any",
    "per_entry",
    "reduced",
    "total_of",
]


def nll_of_any(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Return `nll_loss`, whose target may also be probabilities.

    Args:
        input: Log-probabilities, shape ``(N, K)``.
        target: Classes ``(N,)``, or probabilities ``(N, K)``.
        reduction: ``none``, ``sum`` or ``mean``.
    """
    if not target.is_floating_point():
        return F.nll_loss(input, target, reduction=reduction)
    losses = -(target * input).sum(1)
    return losses if reduction == "none" else losses.sum() if reduction == "sum" else losses.mean()


# Functions with a reduction of their own, and the names of their parameters.
LOSSES: dict[Callable[..., Any], tuple[str, ...]] = {
    loss: tuple(inspect.signature(loss).parameters)
    for loss in (
        F.cross_entropy,
        F.nll_loss,
        nll_of_any,
        F.binary_cross_entropy,
        F.binary_cross_entropy_with_logits,
        F.kl_div,
        F.mse_loss,
        F.l1_loss,
        F.smooth_l1_loss,
        F.huber_loss,
        F.multi_margin_loss,
        F.multilabel_margin_loss,
        F.multilabel_soft_margin_loss,
        F.soft_margin_loss,
        F.hinge_embedding_loss,
        F.margin_ranking_loss,
        F.cosine_embedding_loss,
        F.poisson_nll_loss,
        F.gaussian_nll_loss,
        F.ctc_loss,
    )
}


_NORMS = ("norm", "linalg_norm", "linalg_vector_norm")


class Scattered(NamedTuple):
    """Weights of a value whose rows do not lie along its leading dimension, such as transposed labels.

    Attributes:
        weights: Weights of the rows, shape ``(rows, k)``; any in the last one.
        rows: The row that each entry belongs to, int64 on the CPU, shaped like the value; -1, which is the
            last one, where it is alike in all worlds.
    """

    weights: Tensor
    rows: Tensor


class Picked(NamedTuple):
    """Weights of a value whose rows were picked by labels, and so are others in each world.

    Attributes:
        tables: Weights of the rows in each world, shape ``(rows of that world, 1)``.
    """

    tables: tuple[Tensor, ...]


Weights = Tensor | Scattered | Picked


def blend(worlds: Sequence[Tensor], weights: Tensor | Scattered | None) -> Tensor:
    """Return the weighted sum over the worlds; a world of weight 0 is left out, whatever it holds.

    Args:
        worlds: A value in each world.
        weights: Weights, shape ``(k,)`` or ``(rows, k)``, or `Scattered` over the value; None where the
            worlds have met already.
    """
    if weights is None:
        return worlds[0]
    like = worlds[0]
    dtype = like.dtype if like.is_floating_point() else torch.get_default_dtype()
    if isinstance(weights, Tensor) and like.dim() == 0:  # a loss: few operations, and few nodes
        row = weights.to(dtype).reshape(-1)
        return torch.where(row == 0, 0.0, row * torch.stack(list(worlds))).sum()
    if isinstance(weights, Scattered):
        shares = weights.weights[weights.rows.to(like.device)].to(dtype).unbind(-1)
    elif weights.dim() == 1:
        shares = weights.to(dtype).reshape(-1).unbind()
    else:
        shape = (-1, *[1] * (like.dim() - 1))
        shares = tuple(share.view(shape) for share in per_entry(weights.to(dtype), like).unbind(1))
    total = torch.where(shares[0] == 0, 0.0, shares[0] * worlds[0])
    for share, world in zip(shares[1:], worlds[1:], strict=True):
        total = total + torch.where(share == 0, 0.0, share * world)
    return total


def per_entry(weights: Tensor, like: Tensor) -> Tensor:
    """Repeat the rows of weights ``(rows, k)`` so that there is one for each leading entry of a value."""
    repeats = like.size(0) // max(len(weights), 1)
    return weights if repeats == 1 else weights.repeat_interleave(repeats, 0)


def reduced(
    func: Callable[..., Any],
    name: str,
    calls: Sequence[tuple[Any, Mapping[str, Any]]],
    weights: Weights,
) -> Tensor | None:
    """Return a reduction over the rows, made where the worlds meet, or None if this call makes none.

    A ``mean`` divides by what the mixture contains: with class weights ``w``, 0 for ignored labels,
    ``sum_i [lam_i w(a_i) l(a_i) + (1 - lam_i) w(b_i) l(b_i)] / sum_i [lam_i w(a_i) + (1 - lam_i) w(b_i)]``.

    Args:
        func: The function that is called.
        name: Its name.
        calls: Its positional and keyword arguments in each world.
        weights: Weights, shape ``(rows, k)``, or `Scattered` or `Picked`.
    """
    if func in LOSSES:
        names = LOSSES[func]
        return _reduced_loss(
            func, [{**dict(zip(names, args, strict=False)), **kwargs} for args, kwargs in calls], weights
        )
    if name == "dot" and isinstance(weights, Tensor):
        return blend([torch.mul(*args) for args, _ in calls], weights).sum()
    if name == "einsum" and isinstance(weights, Tensor):
        return _reduced_einsum(calls, weights)
    if name in _NORMS and (sums := _as_sums(calls)) is not None:
        func, name, calls = torch.sum, "sum", sums
    args, kwargs = calls[0]
    dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if name not in ("sum", "mean") or misses_rows(dims, args[0].dim()):
        return None
    worlds = [args[0] for args, _ in calls]
    if isinstance(weights, Picked):
        return _reduced_picks(name, worlds, args[1:], kwargs, weights)
    if any(world.shape != worlds[0].shape for world in worlds):
        return None
    if isinstance(weights, Scattered) and (dims is not None or weights.rows.shape != worlds[0].shape):
        return None
    counts = not worlds[0].is_floating_point()
    exact = (weights.weights if isinstance(weights, Scattered) else weights).dtype
    mixed = blend([world.to(exact) for world in worlds] if counts else worlds, weights)
    total: Tensor = func(mixed, *args[1:], **kwargs)
    # A single count keeps the precision of the weights, since it promotes nothing.
    return total.to(torch.get_default_dtype()) if counts and total.dim() > 0 else total


def _as_sums(calls: Sequence[tuple[Any, Mapping[str, Any]]]) -> list[tuple[Any, Mapping[str, Any]]] | None:
    """Return the calls of ``sum`` that are those of a norm, if it is a sum of absolute values."""
    sums: list[tuple[Any, Mapping[str, Any]]] = []
    for (value, *rest), options in calls:
        named = {**dict(zip(("order", "dim", "keepdim"), rest, strict=False)), **options}
        order = named.pop("order", named.pop("ord", named.pop("p", None)))
        if order != 1 or named.keys() - {"dim", "keepdim"}:
            return None
        sums.append(((value.abs(),), {key: named[key] for key in named if named[key] is not None}))
    return sums


def _reduced_picks(
    name: str, worlds: Sequence[Tensor], rest: Any, kwargs: Mapping[str, Any], weights: Picked
) -> Tensor | None:
    """Return a sum over what was picked in each world, or a mean by what that weighs."""
    if any(world.shape[1:] != worlds[0].shape[1:] for world in worlds):
        return None

    def total(values: Sequence[Tensor]) -> Tensor:
        sums = [
            torch.sum(blend([value], table), *rest, **kwargs)
            for value, table in zip(values, weights.tables, strict=True)
        ]
        return torch.stack(sums).sum(0)

    return total(worlds) if name == "sum" else total(worlds) / total([torch.ones_like(w) for w in worlds])


def _reduced_einsum(calls: Sequence[tuple[Any, Mapping[str, Any]]], weights: Tensor) -> Tensor | None:
    """Return an einsum that sums over the rows, its operands' first index, made where the worlds meet."""
    terms, lead, kept = einsum_indices(calls[0][0][0])
    if lead is None or lead in kept:
        return None
    unreduced = [torch.einsum(f"{terms}->{lead}{kept}", *args[1:]) for args, _ in calls]
    return blend(unreduced, weights).sum(0)


def einsum_indices(equation: str) -> tuple[str, str | None, str]:
    """Return the operands' indices, the one that all of them have first or None, and the result's."""
    terms, arrow, kept = equation.replace(" ", "").partition("->")
    leads = {term[:1] for term in terms.split(",")}
    lead = leads.pop()
    return terms, lead if arrow and not leads and lead.isalpha() else None, kept


def misses_rows(dims: Any, ndim: int) -> bool:
    """Tell whether dimensions are named and the leading one is not among them."""
    named = dims if isinstance(dims, (tuple, list)) else (dims,)
    return len(named) > 0 and all(isinstance(dim, int) and dim % max(ndim, 1) != 0 for dim in named)


def _reduced_loss(
    func: Callable[..., Any], calls: Sequence[dict[str, Any]], weights: Weights
) -> Tensor | None:
    call = calls[0]
    reduction = call.get("reduction", "mean")
    if call.get("size_average") is not None or call.get("reduce") is not None:  # before torch 1.0
        reduction = _reduction.legacy_get_string(call.get("size_average"), call.get("reduce"))
    if reduction == "none":
        return None
    calls = [{k: v for k, v in call.items() if k not in ("size_average", "reduce")} for call in calls]
    losses = [func(**(call | {"reduction": "none"})) for call in calls]
    if isinstance(weights, Scattered) and weights.rows.shape != losses[0].shape:
        return None
    if func is F.ctc_loss and reduction == "mean":
        lengths = [torch.as_tensor(call["target_lengths"], device=losses[0].device) for call in calls]
        losses = [loss / length.clamp(min=1) for loss, length in zip(losses, lengths, strict=True)]
    if reduction == "mean" and func not in (F.cross_entropy, F.nll_loss) and not isinstance(weights, Picked):
        return blend(losses, weights).mean()
    total = total_of(losses, weights)
    if reduction == "sum":
        return total
    if reduction == "batchmean":
        counts = [loss.new_ones(len(loss)) for loss in losses]
    elif func in (F.cross_entropy, F.nll_loss):
        counts = [_counted(call, loss) for call, loss in zip(calls, losses, strict=True)]
    else:
        counts = [torch.ones_like(loss) for loss in losses]
    return total / total_of(counts, weights)


def total_of(worlds: Sequence[Tensor], weights: Weights | None) -> Tensor:
    """Return the sum of what the mixture contains, shape ``()``.

    Args:
        worlds: A value in each world.
        weights: As in `blend`, or `Picked`.
    """
    if isinstance(weights, Picked):
        return torch.stack([blend([w], t).sum() for w, t in zip(worlds, weights.tables, strict=True)]).sum()
    return blend(worlds, weights).sum()


def _counted(call: Mapping[str, Any], loss: Tensor) -> Tensor:
    """Return how much each label counts in the denominator of a mean."""
    target: Tensor = call["target"]
    weight: Tensor | None = call.get("weight")
    if target.is_floating_point():
        return torch.ones_like(loss)
    valid: Tensor = target != call.get("ignore_index", -100)
    if weight is None:
        return valid.to(loss.dtype)
    return torch.where(valid, weight[torch.where(valid, target, 0)], 0.0)
