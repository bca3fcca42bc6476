"""Training steps that a generator writes: the formula holds for each, or a clear sentence comes.

A step is put together of what users write: a batch of some structure, labels of some kind, an edit of these
labels, one of many spellings of a loss by entry, a factor, a reduction, what becomes of the loss after it,
and what is logged beside it. It is trained by a method with one lam or one for each sample, at the input or
at a layer. With one lam the formula is the step itself, run for each source. With one for each sample it is
written down here once and for all, in `Loss.mixed`, from the losses by entry.
"""

from __future__ import annotations

import functools
import logging
import operator
import re
import traceback
from collections import Counter, namedtuple
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader

import lightning_msda
from lightning_msda import MSDA, CutMix, FMix, MixedLossError, Mixture, MixUp, RandomMix, ResizeMix
from tests.contract.oracle import Terms, Witness, blended, classes
from tests.training import make_trainer

K, T, OUT = 4, 3, 12  # classes; tokens that no mask lines up with; outputs of the module
SIZES = {"image": (6, 6), "signal": (9,)}
WEIGHT = torch.linspace(0.5, 2, K, dtype=torch.float64)
EYE = torch.eye(K, dtype=torch.float64)
ORDER = torch.tensor([1, 3, 0, 2])

Entries = Callable[[Tensor, Any], Tensor]  # of scores (N, K, ...) and labels (N, ...): a loss for each entry
Edit = Callable[[Tensor], Tensor]
Factor = Callable[[Tensor, Tensor, Any], Tensor]  # of losses, scores and labels


# --- edits of labels ----------------------------------------------------------------------------------------


def edited_in_place(y: Tensor) -> Tensor:
    y[y == 2] = 1
    return y


def counted_down(y: Tensor) -> Tensor:
    y.sub_(1).remainder_(K)
    return y


def ignored_in_place(y: Tensor) -> Tensor:
    y[y == 2] = -100
    return y


EDITS: dict[str, Edit] = {
    "none": lambda y: y,
    "clone": lambda y: y.clone(),
    "long": lambda y: y.long(),
    "to": lambda y: y.to(torch.int64),
    "detach": lambda y: y.detach().contiguous(),
    "reshape": lambda y: y.reshape(y.shape),
    "unsqueeze": lambda y: y.unsqueeze(1).squeeze(1),
    "stack": lambda y: torch.stack([y, y], 1)[:, 0],
    "cat": lambda y: torch.cat([y[:1], y[1:]]),
    "float and back": lambda y: y.double().round().long(),
    "where": lambda y: torch.where(y == 2, 1, y),
    "masked_fill": lambda y: y.masked_fill(y == 3, 0),
    "clamp": lambda y: y.clamp(max=K - 2),
    "shift": lambda y: (y + 1) % K,
    "table": lambda y: ORDER[y],
    "argmax of one_hot": lambda y: F.one_hot(y, K).argmax(-1),
    "in place": edited_in_place,
    "in place, by methods": counted_down,
}
LEAKS: dict[str, Edit] = {
    "numpy": lambda y: torch.from_numpy(y.numpy()),
    "tolist": lambda y: torch.as_tensor(y.tolist()),
    "condition": lambda y: y.clamp(min=1) if (y == 3).any() else y,
}


# --- losses by entry: every spelling of one name computes the same ------------------------------------------


def added(values: Iterable[Tensor]) -> Tensor:
    """Return what Python's sum does, for the type checker."""
    return functools.reduce(operator.add, values, cast(Tensor, 0))


def likelihood(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, y, reduction="none")


def hot(z: Tensor, y: Tensor) -> Tensor:
    """Return one-hot labels laid out like the scores."""
    return F.one_hot(y, K).movedim(-1, 1).to(z.dtype)


def by_setitem(z: Tensor, y: Tensor) -> Tensor:
    chosen = torch.zeros(len(y), K, dtype=z.dtype)
    chosen[torch.arange(len(y)), y] = 1.0
    return -(chosen * z.log_softmax(1)).sum(1)


def by_margin(z: Tensor, y: Tensor) -> Tensor:
    """Return cross-entropy of scores from which nothing is subtracted, as a margin head writes it."""
    return F.cross_entropy(z - 0.0 * hot(z, y), y, reduction="none")


def bits(z: Tensor, y: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(z, y.to(z), reduction="none")


def softly(z: Tensor, y: Tensor) -> Tensor:
    return -(y * z.log_softmax(1)).sum(1)


def squares(z: Tensor, y: Tensor) -> Tensor:
    return (z[:, 0] - y.to(z).view(len(y))).square()


CLASSES: dict[str, Entries] = {
    "cross_entropy": likelihood,
    "CrossEntropyLoss": lambda z, y: nn.CrossEntropyLoss(reduction="none")(z, y),
    "nll_loss": lambda z, y: F.nll_loss(F.log_softmax(z, dim=1), y, reduction="none"),
    "cross_entropy of one_hot": lambda z, y: F.cross_entropy(z, hot(z, y), reduction="none"),
    "gather": lambda z, y: -z.log_softmax(1).gather(1, y.unsqueeze(1)).squeeze(1),
    "gather by keywords": lambda z, y: (
        -torch.gather(input=z.log_softmax(1), dim=1, index=y[:, None]).squeeze(dim=1)
    ),
    "logsumexp": lambda z, y: z.logsumexp(1) - z.gather(1, y.unsqueeze(1))[:, 0],
    "take_along_dim": lambda z, y: -torch.take_along_dim(z.log_softmax(1), y.unsqueeze(1), 1).squeeze(1),
    "one_hot": lambda z, y: -(hot(z, y) * z.log_softmax(1)).sum(dim=1),
    "eye": lambda z, y: -(EYE.to(z)[y] * z.movedim(1, -1).log_softmax(-1)).sum(-1),
    "embedding": lambda z, y: -(F.embedding(y, EYE.to(z)) * z.movedim(1, -1).log_softmax(-1)).sum(-1),
    "equal": lambda z, y: (
        -((y.unsqueeze(1) == torch.arange(K).view(1, K, *[1] * (y.dim() - 1))) * z.log_softmax(1)).sum(1)
    ),
    "scatter": lambda z, y: -(torch.zeros_like(z).scatter_(1, y.unsqueeze(1), 1.0) * z.log_softmax(1)).sum(1),
    "where by class": lambda z, y: added(torch.where(y == c, -z.log_softmax(1)[:, c], 0.0) for c in range(K)),
    "margin": by_margin,
}
FLAT: dict[str, Entries] = {  # of labels (N,) alone
    "index": lambda z, y: -z.log_softmax(1)[torch.arange(len(y)), y],
    "index by range": lambda z, y: -z.log_softmax(1)[range(len(y)), y],
    "setitem": by_setitem,
    "einsum": lambda z, y: -torch.einsum("nk,nk->n", z.log_softmax(1), hot(z, y)),
    "bmm": lambda z, y: -torch.bmm(z.log_softmax(1)[:, None], hot(z, y)[:, :, None])[:, 0, 0],
    "distribution": lambda z, y: -torch.distributions.Categorical(logits=z).log_prob(y),  # type: ignore[no-untyped-call]
    "boolean mask": lambda z, y: -z.log_softmax(1)[F.one_hot(y, K).bool()],
}
HEADS: dict[str, Entries] = {  # of labels (N, 2)
    "columns": lambda z, y: likelihood(z[:, :K], y[:, 0]) + likelihood(z[:, K:], y[:, 1]),
    "unbind": lambda z, y: added(map(likelihood, z.chunk(2, 1), y.unbind(1))),
    "split": lambda z, y: added(
        likelihood(s, t.squeeze(1)) for s, t in zip(z.chunk(2, 1), torch.split(y, 1, dim=1), strict=True)
    ),
    "select": lambda z, y: likelihood(z[:, :K], y.select(1, 0)) + likelihood(z[:, K:], y[..., 1]),
    "stack": lambda z, y: torch.stack(
        [likelihood(s, y[:, h]) for h, s in enumerate(z.chunk(2, 1))], dim=1
    ).sum(1),
    "view": lambda z, y: likelihood(z.reshape(-1, K), y.reshape(-1)).view(-1, 2).sum(1),
    "transpose": lambda z, y: added(map(likelihood, z.chunk(2, 1), y.t())),
}


def listed(y: dict[str, Tensor] | list[Tensor]) -> list[Tensor]:
    return list(y.values()) if isinstance(y, dict) else y


NESTED: dict[str, Entries] = {  # of a dictionary or a list of labels (N,)
    "cross_entropy": lambda z, y: added(map(likelihood, z.chunk(2, 1), listed(y))),
    "stack of labels": lambda z, y: likelihood(
        z.view(-1, 2, K).movedim(1, -1), torch.stack(listed(y), 1)
    ).sum(1),
    "stack of losses": lambda z, y: torch.stack(list(map(likelihood, z.chunk(2, 1), listed(y)))).sum(0),
    "cat of labels": lambda z, y: (
        likelihood(torch.cat(z.chunk(2, 1)), torch.cat(listed(y))).view(2, -1).sum(0)
    ),
}
BITS: dict[str, Entries] = {  # of labels (N, K) of 0 and 1
    "binary_cross_entropy_with_logits": bits,
    "binary_cross_entropy": lambda z, y: F.binary_cross_entropy(z.sigmoid(), y.to(z.dtype), reduction="none"),
    "logsigmoid": lambda z, y: -(y * F.logsigmoid(z) + (1 - y) * F.logsigmoid(-z)),
    "softplus": lambda z, y: F.softplus(z) - z * y.type_as(z),
    "signs": lambda z, y: F.soft_margin_loss(z, 2.0 * y.to(z) - 1, reduction="none"),
    "log1p": lambda z, y: torch.log1p(torch.exp(-(y * 2 - 1) * z)),
}
THRESHOLDS: dict[str, Entries] = {  # the same, which asks whether a label is 1
    "where": lambda z, y: torch.where(y == 1, F.softplus(-z), F.softplus(z)),
    "bool": lambda z, y: F.softplus(torch.where(y.bool(), -z, z)),
    "masks": lambda z, y: y.eq(1) * F.softplus(-z) + y.eq(0) * F.softplus(z),
}
SOFT: dict[str, Entries] = {  # of distributions (N, K)
    "cross_entropy": lambda z, y: F.cross_entropy(z, y, reduction="none"),
    "product": softly,
    "einsum": lambda z, y: -torch.einsum("nk,nk->n", y, z.log_softmax(1)),
}
NUMBERS: dict[str, Entries] = {  # of quantities (N,) or (N, 1)
    "square": squares,
    "mse_loss": lambda z, y: F.mse_loss(z[:, 0], y.view(-1).to(z.dtype), reduction="none"),
    "mse_loss of columns": lambda z, y: F.mse_loss(z[:, :1], y.view(-1, 1).to(z), reduction="none")[:, 0],
    "pow": lambda z, y: (y.reshape(len(y)) - z[:, 0]) ** 2,
}


def without_gradient(e: Tensor, z: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return (1 - torch.exp(-e)) ** 2


CLASS_FACTORS: dict[str, Factor] = {
    "none": lambda e, z, y: torch.ones_like(e),
    "focal": lambda e, z, y: (1 - torch.exp(-e)) ** 2,
    "focal, detached": lambda e, z, y: (1 - (-e).exp()).square().detach(),
    "focal, without gradient": without_gradient,
    "weight[y]": lambda e, z, y: WEIGHT.to(z)[y],
    "index_select": lambda e, z, y: WEIGHT.to(z).index_select(0, y.flatten()).view_as(y),
    "embedding": lambda e, z, y: F.embedding(y, WEIGHT.to(z)[:, None]).squeeze(-1),
    "where": lambda e, z, y: torch.where(y == 2, 3.0, 1.0).to(z.dtype),
    "mask": lambda e, z, y: (y != 2).to(z),
    "boolean mask": lambda e, z, y: y != 2,
    "arithmetic": lambda e, z, y: 1 + y.to(z) / K,
    "misclassified": lambda e, z, y: 1 + (z.argmax(1) != y).to(z),
    "by score": lambda e, z, y: z.softmax(1).amax(1),
}
BIT_FACTORS: dict[str, Factor] = {
    "none": lambda e, z, y: torch.ones_like(e),
    "focal": lambda e, z, y: (1 - torch.exp(-e)) ** 2,
    "weight": lambda e, z, y: WEIGHT.to(z).expand_as(e),
    "pos_weight": lambda e, z, y: y * WEIGHT.to(z) + (1 - y),
    "sigmoid": lambda e, z, y: (z.sigmoid() - y).abs().detach() ** 2,
}
BOOL_FACTORS = {name: BIT_FACTORS[name] for name in ("none", "focal", "weight")}
PLAIN_FACTORS: dict[str, Factor] = {
    "none": lambda e, z, y: torch.ones_like(e),
    "root": lambda e, z, y: (e + 1).rsqrt(),
    "detached": lambda e, z, y: 1 / (1 + e.detach()),
}


# --- reductions, and what becomes of a loss -----------------------------------------------------------------


class Reduction(NamedTuple):
    """How losses and their factors become a number.

    Attributes:
        written: The number, of the losses ``e`` and the factors ``w`` of all entries, and of the labels.
        divisor: What the sum of ``e * w`` is divided by: "entries", "samples", "factors" or "nothing".
    """

    written: Callable[[Tensor, Tensor, Any], Tensor]
    divisor: str


REDUCTIONS: dict[str, Reduction] = {
    "mean": Reduction(lambda e, w, y: (e * w).mean(), "entries"),
    "torch.mean": Reduction(lambda e, w, y: torch.mean(w * e), "entries"),
    "mean of means": Reduction(lambda e, w, y: (w * e).view(len(e), -1).mean(1).mean(), "entries"),
    "mean by dimension": Reduction(lambda e, w, y: (w * e).mean(dim=0).mean(), "entries"),
    "mean of all dimensions": Reduction(lambda e, w, y: (w * e).mean(dim=tuple(range(e.dim()))), "entries"),
    "flattened": Reduction(lambda e, w, y: (w * e).view(-1).mean(), "entries"),
    "divided by numel": Reduction(lambda e, w, y: (w * e).sum() / e.numel(), "entries"),
    "sum": Reduction(lambda e, w, y: torch.sum(e * w), "nothing"),
    "sum by keywords": Reduction(
        lambda e, w, y: torch.sum(input=(e * w).view(len(e), -1), dim=(0, 1)), "nothing"
    ),
    "sum of sums": Reduction(lambda e, w, y: (e * w).view(len(e), -1).sum(1).sum(0), "nothing"),
    "divided by len": Reduction(lambda e, w, y: e.mul(w).sum() / len(e), "samples"),
    "mean of sums": Reduction(lambda e, w, y: (e * w).view(len(e), -1).sum(-1).mean(), "samples"),
    "in place": Reduction(lambda e, w, y: (e.clone().mul_(w)).sum().div_(len(e)), "samples"),
    "halves": Reduction(lambda e, w, y: ((e * w)[:1].sum() + (e * w)[1:].sum()) / len(e), "samples"),
    "by factors": Reduction(lambda e, w, y: (e * w).sum() / w.sum(), "factors"),
    "by factors, torch.div": Reduction(lambda e, w, y: torch.div(torch.sum(w * e), torch.sum(w)), "factors"),
}
ROUGH: dict[str, Reduction] = {  # which a lam by sample may not get through
    "python's sum": Reduction(lambda e, w, y: added((e * w).flatten()) / len(e), "samples"),
    "dot": Reduction(lambda e, w, y: torch.dot(e.flatten(), w.to(e).flatten()) / len(e), "samples"),
    "stack": Reduction(lambda e, w, y: torch.stack([row.sum() for row in e * w]).mean(), "samples"),
}
CLASS_REDUCTIONS: dict[str, Reduction] = {
    "class by class": Reduction(
        lambda e, w, y: added((e * w)[y == c].sum() for c in range(K)) / e.numel(), "entries"
    ),
    "class by class, masked": Reduction(
        lambda e, w, y: torch.stack([(e * w * (y == c)).sum() for c in range(K)]).sum() / len(e), "samples"
    ),
    "class by class, index_add": Reduction(
        lambda e, w, y: torch.zeros(K, dtype=e.dtype).index_add(0, y.flatten(), (e * w).flatten()).sum(),
        "nothing",
    ),
}


AFTER: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # of the loss and the scores
    "nothing": lambda loss, z: loss,
    "scaled": lambda loss, z: 0.5 * loss,
    "negated twice": lambda loss, z: -(-1 * loss),
    "clone": lambda loss, z: loss.clone().view(()),
    "regularised": lambda loss, z: loss + 1e-2 * z.square().mean(),
    "in torch.stack": lambda loss, z: torch.stack([loss, 2 * loss, z.mean()]).mean(),
    "in sum()": lambda loss, z: added([loss, loss, z.square().sum()]) / 2,
    "root": lambda loss, z: (loss + 1e-3).sqrt(),
    "log": lambda loss, z: torch.log1p(loss),
    "flooded": lambda loss, z: (loss - 0.7).abs() + 0.7,
    "over itself": lambda loss, z: loss / (1 + loss.detach()),
    "uncertainty": lambda loss, z: torch.exp(-z.mean()) * loss + z.mean(),
}


class Blend(NamedTuple):
    """Labels of both sources and lam, for the formula with a lam for each sample."""

    own: Any
    partner: Any
    lam: Tensor


class Loss(NamedTuple):
    """A loss as it is written, and what its formula is made of.

    Attributes:
        edit: What is done to the labels first.
        written: The loss of scores and labels, as the module computes it.
        entries: The loss of each entry, with all that it is multiplied by.
        counts: How much each entry counts in a divisor by "factors".
        divisor: What the sum of the entries is divided by, as in `Reduction`.
        after: What becomes of it.
    """

    edit: Edit
    written: Callable[[Tensor, Any], Tensor]
    entries: Entries
    counts: Entries
    divisor: str
    after: Callable[[Tensor, Tensor], Tensor]

    def of(self, z: Tensor, y: Any) -> Tensor:
        """Return the loss of the module, of labels of any kind."""
        return self.after(self.written(z, tree_map(self.edit, y)), z)

    def mixed(self, z: Tensor, y: Blend) -> Tensor:
        """Return ``after(sum_i [lam_i w(a_i) l(a_i) + (1 - lam_i) w(b_i) l(b_i)] / divisor)``.

        The divisor is the number of entries or of samples, or ``sum_i [lam_i w(a_i) + (1 - lam_i) w(b_i)]``.
        """
        own, partner = (tree_map(lambda t: self.edit(t.clone()), labels) for labels in (y.own, y.partner))

        def blend(function: Entries) -> Tensor:
            a, b = function(z, own), function(z, partner)
            lam = y.lam.to(z.dtype).view(-1, *[1] * (a.dim() - 1))
            return lam * a + (1 - lam) * b

        entries, counts = blend(self.entries), blend(self.counts).sum()
        divisors: dict[str, Any] = {
            "entries": entries.numel(),
            "samples": len(entries),
            "factors": counts,
            "nothing": 1,
        }
        return self.after(entries.sum() / divisors[self.divisor], z)


def composed(spelling: Entries, same: Entries, factor: Factor, reduction: Reduction) -> dict[str, Any]:
    """Return a loss that is written from entries on."""

    def written(z: Tensor, y: Any) -> Tensor:
        losses = spelling(z, y)
        return reduction.written(losses, factor(losses, z, y), y)

    def counts(z: Tensor, y: Any) -> Tensor:
        return factor(same(z, y), z, y)

    return {
        "written": written,
        "entries": lambda z, y: same(z, y) * counts(z, y),
        "counts": counts,
        "divisor": reduction.divisor,
    }


class Builtin(NamedTuple):
    """A loss of torch's, of scores, labels and ``reduction=``, and how much each entry counts in its mean."""

    call: Callable[..., Tensor]
    counts: Entries = lambda z, y: torch.ones_like(z)


def like(value: Any, z: Tensor) -> Any:
    return value.to(z) if isinstance(value, Tensor) else value


def entropy(function: Callable[..., Tensor] = F.cross_entropy, **options: Any) -> Builtin:
    weight, ignored = options.get("weight", torch.ones_like(WEIGHT)), options.get("ignore_index", -100)
    return Builtin(
        lambda z, y, **rest: function(z, y, **tree_map(lambda t: like(t, z), options), **rest),
        lambda z, y: weight.to(z)[y.where(y != ignored, 0)] * (y != ignored),
    )


def log_entropy(z: Tensor, y: Tensor, **options: Any) -> Tensor:
    return F.nll_loss(z.log_softmax(1), y, **options)


def criterion(z: Tensor, y: Tensor, **options: Any) -> Tensor:
    return cast(Tensor, nn.CrossEntropyLoss(**options)(z, y))


def divergence(z: Tensor, y: Tensor, reduction: str) -> Tensor:
    reduction = "batchmean" if reduction == "mean" else reduction
    return F.kl_div(z.log_softmax(1), y, reduction=reduction)


WHOLE: dict[str, Builtin] = {
    "cross_entropy()": entropy(),
    "cross_entropy(weight)": entropy(weight=WEIGHT),
    "cross_entropy(label_smoothing)": entropy(label_smoothing=0.1),
    "cross_entropy(weight, label_smoothing)": entropy(weight=WEIGHT, label_smoothing=0.2),
    "CrossEntropyLoss(weight)": entropy(criterion, weight=WEIGHT),
    "nll_loss()": entropy(log_entropy),
    "nll_loss(weight)": entropy(log_entropy, weight=WEIGHT),
}
WHOLE_BITS: dict[str, Builtin] = {
    "binary_cross_entropy_with_logits(weight)": Builtin(
        lambda z, y, **rest: F.binary_cross_entropy_with_logits(z, y.to(z), WEIGHT.to(z), **rest)
    ),
    "binary_cross_entropy_with_logits(pos_weight)": Builtin(
        lambda z, y, **rest: F.binary_cross_entropy_with_logits(z, y.to(z), pos_weight=WEIGHT.to(z), **rest)
    ),
    "BCELoss()": Builtin(lambda z, y, **rest: nn.BCELoss(**rest)(z.sigmoid(), y.to(z))),
    "soft_margin_loss()": Builtin(lambda z, y, **rest: F.soft_margin_loss(z, 2.0 * y - 1, **rest)),
}
WHOLE_SOFT: dict[str, Builtin] = {
    "cross_entropy()": Builtin(F.cross_entropy, lambda z, y: torch.ones_like(z[:, 0])),
    "kl_div()": Builtin(divergence, lambda z, y: torch.ones_like(z[:, 0])),
    "binary_cross_entropy_with_logits()": Builtin(F.binary_cross_entropy_with_logits),
}
WHOLE_NUMBERS: dict[str, Builtin] = {
    f"{function.__name__}()": Builtin(
        lambda z, y, function=function, **rest: function(z[:, 0], y.view(-1).to(z), **rest),
        lambda z, y: torch.ones_like(z[:, 0]),
    )
    for function in (F.mse_loss, F.l1_loss, F.huber_loss, F.smooth_l1_loss)
}
IGNORING: dict[str, Edit] = {  # edits that these losses alone allow
    "ignored in place": ignored_in_place,
    "ignored": lambda y: torch.where(y == 2, -100, y),
    "ignored by masked_fill_": lambda y: y.clone().masked_fill_(y == 2, -100),
}
ARGUMENTS = {"mean": "factors", "sum": "nothing", "none": "entries"}  # reduction=, and the divisor


def whole(builtin: Builtin, reduction: str) -> dict[str, Any]:
    """Return a loss that reduces itself, or that is reduced by mean() where it does not."""

    def written(z: Tensor, y: Any) -> Tensor:
        loss = builtin.call(z, y, reduction=reduction)
        return loss.mean() if reduction == "none" else loss

    return {
        "written": written,
        "entries": lambda z, y: builtin.call(z, y, reduction="none"),
        "counts": builtin.counts,
        "divisor": ARGUMENTS[reduction],
    }


# --- labels, batches, methods -------------------------------------------------------------------------------


class Target(NamedTuple):
    """Labels of a kind, what of the outputs stands before them, and the losses that are made of them."""

    draw: Callable[[int], Any]
    scores: Callable[[Tensor], Tensor]
    spellings: dict[str, Entries]
    same: Entries
    factors: dict[str, Factor]
    edits: dict[str, Edit]
    whole: dict[str, Builtin] = {}  # noqa: RUF012
    inputs: str = "image"
    values: bool = False  # mixed themselves, where they are mixed at the input
    arguments: dict[str, Any] = {}  # noqa: RUF012
    rtol: float = 1e-10

    @property
    def mixed(self) -> bool:
        """Whether labels are mixed at all, and so no step writes into those of the data set."""
        return "target_key" not in self.arguments


def pooled(out: int) -> Callable[[Tensor], Tensor]:
    return lambda z: 3 * z[:, :out].flatten(2).mean(2)


def drawn(*sizes: int, high: int = K, dtype: torch.dtype = torch.int64) -> Callable[[int], Tensor]:
    """Return a function that draws integer labels, 0 and 1 first: so a mean is never one of nothing."""

    def draw(n: int) -> Tensor:
        y = torch.randint(0, high, (n, *sizes), dtype=dtype)
        y[0], y[1] = 0, 1
        return y

    return draw


def by_class(
    draw: Callable[[int], Tensor],
    scores: Callable[[Tensor], Tensor] | None = None,
    spellings: dict[str, Entries] | None = None,
    first: Edit = lambda y: y,
    **rest: Any,
) -> Target:
    """Return a target of classes, whose labels are usually edited by `first`, without which nothing works."""
    edits: dict[str, Edit] = {
        name: lambda y, edit=edit: edit(first(y))  # type: ignore[misc]
        for name, edit in (EDITS | LEAKS | IGNORING).items()
    }
    spellings = CLASSES | FLAT if spellings is None else spellings
    return Target(draw, scores or pooled(K), spellings, likelihood, CLASS_FACTORS, edits, WHOLE, **rest)


def by_head(draw: Callable[[int], Any], spellings: dict[str, Entries]) -> Target:
    same = next(iter(spellings.values()))
    return Target(draw, pooled(2 * K), spellings, same, PLAIN_FACTORS, EDITS)


def by_bit(
    draw: Callable[[int], Tensor],
    spellings: dict[str, Entries],
    factors: dict[str, Factor] = BIT_FACTORS,
    **rest: Any,
) -> Target:
    return Target(draw, pooled(K), spellings, bits, factors, NO_EDIT, WHOLE_BITS, **rest)


def by_number(draw: Callable[[int], Tensor], **rest: Any) -> Target:
    return Target(draw, pooled(1), NUMBERS, squares, PLAIN_FACTORS, NO_EDIT, WHOLE_NUMBERS, **rest)


def floats(draw: Callable[[int], Tensor]) -> Callable[[int], Tensor]:
    return lambda n: draw(n).double()


NO_EDIT = {"none": EDITS["none"], "clone": EDITS["clone"]}
TARGETS: dict[str, Target] = {
    "(N,)": by_class(drawn()),
    "(N,) int32": by_class(drawn(dtype=torch.int32), first=lambda y: y.long()),
    "(N,) uint8": by_class(drawn(dtype=torch.uint8), first=lambda y: y.to(torch.long)),
    "(N,) left alone": by_class(drawn(), arguments={"target_key": False}),
    "(N, 1)": by_class(drawn(1), first=lambda y: y.squeeze(1)),
    "(N, 1) flattened": by_class(drawn(1), first=lambda y: y.view(-1)),
    "(N, T)": by_class(drawn(T), lambda z: pooled(K * T)(z).view(-1, K, T), CLASSES),
    "(N, L)": by_class(drawn(9), lambda z: z[:, :K], CLASSES, inputs="signal"),
    "(N, H, W)": by_class(drawn(6, 6), lambda z: z[:, :K], CLASSES),
    "(N, heads)": by_head(drawn(2), HEADS),
    "dict of heads": by_head(lambda n: {"colour": drawn()(n), "shape": drawn()(n)}, NESTED),
    "list of heads": by_head(lambda n: [drawn()(n), drawn()(n)], NESTED),
    "multi-hot integers": by_bit(drawn(K, high=2), BITS | THRESHOLDS),
    "multi-hot booleans": by_bit(
        lambda n: drawn(K, high=2)(n).bool(),
        {name: (BITS | THRESHOLDS)[name] for name in ("binary_cross_entropy", "softplus", "where", "bool")},
        factors=BOOL_FACTORS,
    ),
    "multi-hot floats": by_bit(floats(drawn(K, high=2)), BITS, values=True),
    "multi-hot floats as classes": by_bit(
        floats(drawn(K, high=2)), BITS | THRESHOLDS, arguments={"target": "class"}
    ),
    "distributions": Target(
        lambda n: torch.rand(n, K, dtype=torch.float64).softmax(1),
        pooled(K),
        SOFT,
        softly,
        PLAIN_FACTORS,
        NO_EDIT,
        WHOLE_SOFT,
        values=True,
    ),
    "numbers": by_number(lambda n: torch.randn(n, dtype=torch.float64), values=True),
    "numbers (N, 1)": by_number(lambda n: torch.randn(n, 1, dtype=torch.float64), values=True),
    "counts": by_number(drawn(high=9)),
    "counts as values": by_number(  # mixed integers are in single precision
        drawn(high=9), values=True, arguments={"target": "value"}, rtol=1e-5
    ),
}

Pair = namedtuple("Pair", ["inputs", "targets"])


@dataclass
class Sample:
    image: Tensor
    label: Any
    name: str = "a"


class Structure(NamedTuple):
    """A batch, how the step takes it apart, and the keys that it needs."""

    collate: Callable[[Any, Any], Any]
    parts: Callable[[Any], tuple[Any, Any]]
    keys: dict[str, Any] = {}  # noqa: RUF012


STRUCTURES: dict[str, Structure] = {
    "tuple": Structure(lambda x, y: (x, y), lambda b: b),
    "list": Structure(lambda x, y: [x, y], lambda b: (b[0], b[1])),
    "triple": Structure(
        lambda x, y: (x, "names", y), lambda b: (b[0], b[-1]), {"input_key": 0, "target_key": 2}
    ),
    "named tuple": Structure(lambda x, y: Pair(x, y), lambda b: (b.inputs, b.targets)),
    "dict": Structure(lambda x, y: {"image": x, "label": y}, lambda b: (b["image"], b["label"])),
    "dict with more": Structure(
        lambda x, y: {"id": ["a"] * len(x), "pixel_values": x, "labels": y, "area": torch.ones(len(x))},
        lambda b: (b["pixel_values"], b["labels"]),
    ),
    "nested dict": Structure(
        lambda x, y: {"data": {"photo": x}, "truth": {"of": y}},
        lambda b: (b["data"]["photo"], b["truth"]["of"]),
        {"input_key": "data.photo", "target_key": "truth.of"},
    ),
    "pair of dicts": Structure(lambda x, y: ({"x": x}, {"y": y}), lambda b: (b[0]["x"], b[1]["y"])),
    "dataclass": Structure(lambda x, y: Sample(x, y), lambda b: (b.image, b.label)),
    "object": Structure(lambda x, y: SimpleNamespace(x=x, y=y), lambda b: (b.x, b.y)),
}

METHODS: dict[str, Callable[..., MSDA]] = {
    "MixUp": MixUp,
    "CutMix": CutMix,
    "FMix": FMix,
    "FMix, soft": functools.partial(FMix, max_soft=0.3),
    "ResizeMix": ResizeMix,
}
AT_A_LAYER = ("MixUp", "CutMix", "FMix")  # the oracle cuts features by hard masks of one scale


@dataclass(frozen=True)
class Example:
    """A training step and a method, by the names of their parts."""

    target: str
    edit: str
    spelling: str
    factor: str
    reduction: str
    after: str
    metric: str
    total: str
    structure: str
    method: str
    per_sample: bool = False
    at: bool = False
    criterion: bool = False
    single: bool = False
    prob: float = 1.0
    n: int = 4
    seed: int = 0

    @property
    def dtype(self) -> torch.dtype:
        """The precision of inputs, weights and labels that are values."""
        return torch.float32 if self.single else torch.float64

    @property
    def rtol(self) -> float:
        """The largest relative error."""
        return max(1e-5 if self.single else 1e-10, TARGETS[self.target].rtol)

    def loss(self) -> Loss:
        """Return the loss."""
        target = TARGETS[self.target]
        if self.spelling in target.whole:
            parts = whole(target.whole[self.spelling], self.reduction)
        else:
            parts = composed(
                target.spellings[self.spelling],
                target.same,
                target.factors[self.factor],
                (REDUCTIONS | ROUGH | CLASS_REDUCTIONS)[self.reduction],
            )
        return Loss(target.edits[self.edit], after=AFTER[self.after], **parts)

    def build(self) -> MSDA:
        """Return the method."""
        target = TARGETS[self.target]
        own: dict[str, Any] = {"per_sample": self.per_sample}
        if self.at:
            own["at"] = "stem"
        common: dict[str, Any] = {
            "prob": self.prob,
            "seed": self.seed,
            **STRUCTURES[self.structure].keys,
            **target.arguments,
        }
        if self.criterion:
            common["criterion"] = "compute"
        if self.method == "RandomMix":
            names = AT_A_LAYER if self.at else METHODS
            lams = [self.per_sample, not self.per_sample] * len(names)
            return RandomMix(
                [
                    METHODS[name](**{**own, **self._dims(name), "per_sample": per_sample})
                    for name, per_sample in zip(names, lams, strict=False)
                ],
                **common,
            )
        return METHODS[self.method](**own, **self._dims(self.method), **common)

    def _dims(self, method: str) -> dict[str, Any]:
        """Return the dimensions of a mask that features of a signal leave open."""
        named = self.at and TARGETS[self.target].inputs == "signal" and method != "MixUp"
        return {"dims": [2]} if named else {}


@st.composite
def examples(draw: st.DrawFn) -> Example:
    def one(*choices: Iterable[str]) -> str:
        # Hypothesis copies choices from one place to another where both have the same; no two have here.
        return draw(st.sampled_from([name for names in choices for name in names]))

    name = one(TARGETS)
    target = TARGETS[name]
    is_whole = bool(target.whole) and one(["by entry", "whole"]) == "whole"
    edits = [e for e in target.edits if e not in LEAKS and (is_whole or e not in IGNORING)]
    by_class = CLASS_REDUCTIONS if target.whole is WHOLE else ()
    leak = [e for e in [one(LEAKS)] if e in target.edits]
    at = target.arguments.get("target") != "value" and draw(st.sampled_from([False, False, True]))
    per_sample = draw(st.booleans())
    return Example(
        target=name,
        edit=one(edits, edits, leak),
        spelling=one(target.whole if is_whole else target.spellings),
        factor="none" if is_whole else one(target.factors),
        reduction=one(ARGUMENTS) if is_whole else one(REDUCTIONS, [one(ROUGH)], by_class),
        after=one(AFTER),
        metric=one(METRICS),
        total=one(TOTALS),
        structure=one(STRUCTURES),
        method=one(AT_A_LAYER if at else METHODS, ["RandomMix"]),
        per_sample=per_sample,
        at=at,
        criterion=draw(st.sampled_from([False, False, False, False, True])) and not per_sample,
        single=draw(st.sampled_from([False, False, True])),
        prob=draw(st.sampled_from([1.0, 1.0, 1.0, 0.5])),
        n=draw(st.sampled_from([2, 3, 4, 5])),
        seed=draw(st.integers(0, 999)),
    )


# --- the step, its formula, and what came of it -------------------------------------------------------------


def correct(z: Tensor, y: Any) -> Tensor:
    """Return an accuracy, or what comes near to it where labels are no classes."""
    first = y if isinstance(y, Tensor) else listed(y)[0]
    return (z.flatten(1).argmax(1) == first.reshape(len(first), -1)[:, 0]).double().mean()


def added_in_place(step: Step, loss: Tensor) -> None:
    step.total += loss.detach()


def added_without_gradient(step: Step, loss: Tensor) -> None:
    with torch.no_grad():
        step.total.add_(loss)


def added_as_a_number(step: Step, loss: Tensor) -> None:
    step.total = step.total + loss.item()


def added_anew(step: Step, loss: Tensor) -> None:
    step.total = step.total + loss.detach().clone()


def kept(step: Step, loss: Tensor) -> None:
    step.losses.append(loss.detach())
    step.total = torch.stack(step.losses).sum()


METRICS = ["none", "before the loss", "after the loss", "after the loss, as a number"]
TOTALS: dict[str, Callable[[Step, Tensor], None]] = {
    "anew": added_anew,
    "in place": added_in_place,
    "without gradient": added_without_gradient,
    "as a number": added_as_a_number,
    "of a list": kept,
}


class Step(LightningModule):
    """A module whose step an example describes; labels that are a `Blend` are for its formula."""

    def __init__(self, example: Example) -> None:
        super().__init__()
        torch.manual_seed(example.seed)
        kind = nn.Conv2d if TARGETS[example.target].inputs == "image" else nn.Conv1d
        self.stem = kind(3, 5, 1, dtype=example.dtype)
        self.head = kind(5, OUT, 1, dtype=example.dtype)
        self.example = example
        self.loss = example.loss()
        self.total = torch.zeros((), dtype=example.dtype)
        self.losses: list[Tensor] = []
        self.minimised: list[Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = STRUCTURES[self.example.structure].parts(batch)
        z = TARGETS[self.example.target].scores(self.head(self.stem(x).tanh()))
        if isinstance(y, Blend):
            return self.loss.mixed(z, y)
        if self.example.metric == "before the loss":
            self.log("accuracy", correct(z, y), batch_size=len(x))
        loss = self.compute(z, y)
        if self.example.metric == "after the loss":
            self.log("accuracy", correct(z, y), batch_size=len(x))
        if self.example.metric == "after the loss, as a number":
            self.log("accuracy", correct(z, y).item(), batch_size=len(x))
        self.log("loss", loss, batch_size=len(x))
        TOTALS[self.example.total](self, loss)
        return {"loss": loss, "scores": z.detach()} if self.example.seed % 2 else loss

    def compute(self, z: Tensor, y: Any) -> Tensor:
        return self.loss.of(z, y)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.minimised.append(outputs["loss"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def formula(example: Example) -> Callable[[Mixture, Any], Terms]:
    """Return the terms of an example's formula."""

    def terms(mix: Mixture, y: Any) -> Terms:
        if not TARGETS[example.target].mixed:
            return [(1.0, y)]
        if TARGETS[example.target].values and not example.at:
            return [(1.0, blended(mix, tree_map(lambda t: t.to(example.dtype), y)))]
        if example.target in ("(N, L)", "(N, H, W)") and mix.mask is not None and not example.at:
            return [(1.0, followed(mix, y))]
        if mix.per_sample:
            return [(1.0, Blend(y, tree_map(lambda t: t[mix.partner], y), mix.lam))]
        return classes(mix, y)

    return terms


def followed(mix: Mixture, y: Tensor) -> Tensor:
    """Return labels of the pixels or positions that each sample shows."""
    assert mix.mask is not None
    shown = y[mix.partner]
    if mix.source is not None:
        for dim, source in enumerate(mix.source, start=1):
            index = source.view(len(y), *[-1 if d == dim else 1 for d in range(1, y.dim())])
            shown = shown.gather(dim, index.expand_as(shown))
    return torch.where(mix.mask.reshape(-1, *y.shape[1:]), y, shown)


def check(example: Example) -> str:
    """Train an example's step, hold it against its formula, and return what came of it.

    Returns:
        "mixed", "not mixed" where all batches stayed as they were, or "refused" with how its sentence begins.
    """
    target, structure = TARGETS[example.target], STRUCTURES[example.structure]
    torch.manual_seed(example.seed)
    sizes = (example.n, 3, *SIZES[target.inputs])

    def draw() -> Any:
        labels = target.draw(example.n)
        return tree_map(lambda t: t.to(example.dtype) if t.is_floating_point() else t, labels)

    data = [(torch.randn(sizes, dtype=torch.float64).to(example.dtype), draw()) for _ in range(2)]

    def collate(x: Any, y: Any) -> Any:
        return structure.collate(x, y if isinstance(y, Blend) else tree_map(torch.clone, y))

    batches: Any = [collate(x, y) for x, y in data]
    method, step = example.build(), Step(example)
    witness = Witness(
        method,
        lambda: Step(example),
        data,
        collate,
        formula(example),
        lambda mix, x: mix.inputs,
        "stem" if example.at else None,
        example.rtol,
    )
    trainer = make_trainer(method, witness)
    try:
        trainer.fit(step, DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch))
    except (MixedLossError, ValueError) as error:
        if not is_sentence_of_ours(error):
            raise
        return f"refused: {re.sub('[(].*?[)]', '(...)', str(error))[:80]}"
    assert_equal(step.total, torch.stack(step.minimised).sum(), rtol=example.rtol)
    assert_equal(trainer.callback_metrics["loss"], step.minimised[-1], rtol=1e-6)
    for batch, (_, y) in zip(batches, data, strict=True) if target.mixed else ():
        tree_map(assert_equal, structure.parts(batch)[1], y)
    return "mixed" if witness.mixed else "not mixed"


def is_sentence_of_ours(error: Exception) -> bool:
    source = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    ours = Path(lightning_msda.__file__).parent in source.parents
    return ours and re.fullmatch(r"[A-Z].{30,}[.)]", str(error), re.DOTALL) is not None


def assert_equal(actual: Tensor, wanted: Tensor, rtol: float = 0.0) -> None:
    assert type(actual) is Tensor
    torch.testing.assert_close(actual, wanted, rtol=rtol, atol=0, check_dtype=False)


@pytest.fixture(autouse=True)
def _silent_trainers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "level", logging.WARNING)


PLAIN = Example(
    target="(N,)",
    edit="none",
    spelling="cross_entropy",
    factor="none",
    reduction="mean",
    after="nothing",
    metric="none",
    total="anew",
    structure="tuple",
    method="MixUp",
)
BY_SAMPLE = replace(PLAIN, per_sample=True)
FOUND: dict[str, Example] = {  # counterexamples, each of which was trained wrongly or refused
    "losses added up in place": replace(PLAIN, total="in place"),
    "losses added up without gradient": replace(PLAIN, total="without gradient"),
    "a factor of the sum of two heads": replace(
        BY_SAMPLE, target="list of heads", spelling="stack of losses", factor="root"
    ),
    "labels of two heads in one stack": replace(
        BY_SAMPLE, target="list of heads", spelling="stack of labels"
    ),
    "labels of two heads in one row": replace(BY_SAMPLE, target="list of heads", spelling="cat of labels"),
    "cross_entropy of one_hot, unreduced": replace(BY_SAMPLE, spelling="cross_entropy of one_hot"),
    "a margin before cross_entropy, unreduced": replace(BY_SAMPLE, spelling="margin"),
    "a margin, some batches not mixed": replace(BY_SAMPLE, spelling="margin", prob=0.5, seed=2),
    "class weights by index_select": replace(BY_SAMPLE, factor="index_select"),
    "labels cast by type_as": replace(BY_SAMPLE, target="multi-hot integers", spelling="softplus"),
}


def fuzz(count: int, **settings: Any) -> Counter[str]:
    """Check examples and count what came of them."""
    outcomes: Counter[str] = Counter()

    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        **settings,
    )
    @hypothesis.given(examples())
    def run(example: Example) -> None:
        outcomes[check(example)] += 1

    run()
    return outcomes


def report(outcomes: Counter[str], record_property: Callable[[str, object], None]) -> None:
    """Record how many examples came to what, and hold the share of refusals."""
    total = outcomes.total()
    refused = sum(count for outcome, count in outcomes.items() if outcome.startswith("refused"))
    record_property("examples", total)
    record_property("mixed", outcomes["mixed"])
    record_property("refused", refused)
    table = "\n".join(f"{count:5} {outcome}" for outcome, count in outcomes.most_common())
    print(f"{total} examples, {refused} refused\n{table}")  # noqa: T201
    assert outcomes["mixed"] >= 0.7 * total, table
    assert refused <= 0.1 * total, table


def test_the_formula_holds_or_a_sentence_comes(record_property: Callable[[str, object], None]) -> None:
    report(fuzz(200, derandomize=True), record_property)


@pytest.mark.slow
def test_the_formula_holds_or_a_sentence_comes_at_length(
    record_property: Callable[[str, object], None],
) -> None:
    report(fuzz(2500), record_property)


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found(name: str) -> None:
    assert check(FOUND[name]) == "mixed"


@pytest.mark.parametrize("target", TARGETS)
def test_every_spelling_computes_the_same(target: str) -> None:
    kind = TARGETS[target]
    z, y = scored(kind)
    for name, spelling in kind.spellings.items():
        torch.testing.assert_close(spelling(z, y), kind.same(z, y), msg=name)


@pytest.mark.parametrize("target", TARGETS)
def test_the_formula_of_labels_that_are_not_mixed_is_the_loss(target: str) -> None:
    kind = TARGETS[target]
    z, y = scored(kind)
    factor = list(kind.factors.values())[-1]
    reductions = REDUCTIONS | ROUGH | (CLASS_REDUCTIONS if kind.whole is WHOLE else {})
    parts = [composed(kind.same, kind.same, factor, reduction) for reduction in reductions.values()]
    parts += [whole(builtin, reduction) for builtin in kind.whole.values() for reduction in ARGUMENTS]
    for part in parts:
        loss = Loss(EDITS["none"], after=AFTER["root"], **part)
        blend = Blend(y, y, torch.rand(5, dtype=torch.float64))
        torch.testing.assert_close(loss.mixed(z, blend), loss.of(z, y))


def scored(kind: Target) -> tuple[Tensor, Any]:
    """Return scores, and labels that only need a loss."""
    z = kind.scores(torch.randn(5, OUT, *SIZES[kind.inputs], dtype=torch.float64))
    return z, tree_map(kind.edits["none"], kind.draw(5))
