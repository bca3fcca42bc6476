"""The losses that labels meet in modules, each written as its users write it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

N, K, E = 16, 5, 8
WEIGHT = torch.linspace(0.5, 2, K, dtype=torch.float64)
CRITERION = torch.nn.CrossEntropyLoss(WEIGHT)
CENTERS = torch.randn(K, E, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Case(NamedTuple):
    """A loss of features ``(N, E)`` and labels ``(N,)``.

    `by_sample` says what becomes of it with a lam per sample: "mean" (over samples, each with its own
    lam), "joint" (a mean with the joint normaliser), "soft" (its soft-label form) or "refused".
    `counts` is how much each class counts in a joint normaliser.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    by_sample: str
    counts: Tensor = torch.ones(K, dtype=torch.float64)


def mixtures_loss(case: Case, x: Tensor, own: Tensor, partner: Tensor, lam: float | Tensor) -> Tensor:
    """Return the explicit formula, for one lam or for one by sample, shape ``(N,)``."""
    clean = case.loss(x, own.clone())
    if isinstance(lam, float):
        return lam * clean + (1 - lam) * case.loss(x, partner.clone())
    if case.by_sample == "joint":
        losses = [losses_of(x, labels) * case.counts[labels] for labels in (own, partner)]
        total = (lam * losses[0] + (1 - lam) * losses[1]).sum()
        return total / (lam * case.counts[own] + (1 - lam) * case.counts[partner]).sum()
    assert case.by_sample == "mean"
    wanted = clean
    for i in range(N):  # swapping one label changes the mean by that sample's term alone
        swapped = own.clone()
        swapped[i] = partner[i]
        wanted = wanted + (1 - lam[i]) * (case.loss(x, swapped) - clean)
    return wanted


def logits(x: Tensor) -> Tensor:
    return x @ CENTERS.t()


def cosines(x: Tensor) -> Tensor:
    return F.normalize(x) @ F.normalize(CENTERS).t()


def losses_of(x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits(x), y, reduction="none")


def arcface_in_place(x: Tensor, y: Tensor) -> Tensor:
    cosine = cosines(x)
    hot = torch.zeros(N, K, dtype=x.dtype)
    hot.scatter_(1, y.view(-1, 1).long(), 1)
    return F.cross_entropy(4 * (hot * (cosine - 0.3) + (1 - hot) * cosine), y)


def arcface_by_index(x: Tensor, y: Tensor) -> Tensor:
    cosine = cosines(x)
    cosine[torch.arange(N), y] -= 0.3
    return F.cross_entropy(4 * cosine, y)


def by_setitem(x: Tensor, y: Tensor) -> Tensor:
    hot = torch.zeros(N, K, dtype=x.dtype)
    hot[torch.arange(N), y] = 1.0
    return -(hot * F.log_softmax(logits(x), 1)).sum(1).mean()


def by_view(x: Tensor, y: Tensor) -> Tensor:
    hot = torch.zeros(N, K, dtype=x.dtype)
    hot.view(-1)[torch.arange(N) * K + y] = 1.0
    return -(hot * F.log_softmax(logits(x), 1)).sum(1).mean()


def by_loop(x: Tensor, y: Tensor) -> Tensor:
    scores = F.log_softmax(logits(x), 1)
    return -torch.stack([scores[i, label] for i, label in enumerate(y)]).mean()


def by_arange(x: Tensor, y: Tensor) -> Tensor:
    hot = (y[:, None] == torch.arange(K)).to(x.dtype)
    return -(hot * F.log_softmax(logits(x), 1)).sum(1).mean()


def supcon(x: Tensor, y: Tensor) -> Tensor:
    same = (y[:, None] == y[None]).to(x.dtype)
    scores = F.log_softmax(F.normalize(x) @ F.normalize(x).t() / 0.5, 1)
    return -((same * scores).sum(1) / same.sum(1)).mean()


def dice(x: Tensor, y: Tensor) -> Tensor:
    p, hot = F.softmax(logits(x), 1), F.one_hot(y, K).to(x.dtype)
    return 1 - (2 * (p * hot).sum(0) / (p.sum(0) + hot.sum(0))).mean()


def focal(x: Tensor, y: Tensor) -> Tensor:
    p = F.softmax(logits(x), 1).gather(1, y[:, None]).squeeze(1)
    return (-((1 - p) ** 2) * p.log()).mean()


def focal_detached(x: Tensor, y: Tensor) -> Tensor:
    loss = losses_of(x, y)
    return ((1 - (-loss).exp().detach()) ** 2 * loss).mean()


def center(x: Tensor, y: Tensor) -> Tensor:
    return (x - CENTERS[y]).square().sum(1).mean()


def edited(x: Tensor, y: Tensor) -> Tensor:
    y[y == 3] = -100
    return F.cross_entropy(logits(x), y)


def halves(x: Tensor, y: Tensor) -> Tensor:
    half = N // 2
    return F.cross_entropy(logits(x[:half]), y[:half]) + F.cross_entropy(logits(x[half:]), y[half:])


def misclassified(x: Tensor, y: Tensor) -> Tensor:
    wrong = logits(x).argmax(1) != y
    return (wrong * losses_of(x, y)).mean()


def normalised(x: Tensor, y: Tensor) -> Tensor:
    loss = F.cross_entropy(logits(x), y)
    return loss / loss.detach()


def _without(ignored: int) -> Tensor:
    return (torch.arange(K) != ignored).double()


CASES = {
    "cross_entropy": Case(lambda x, y: F.cross_entropy(logits(x), y), "mean"),
    "class weights": Case(lambda x, y: F.cross_entropy(logits(x), y, weight=WEIGHT), "joint", WEIGHT),
    "ignore_index": Case(lambda x, y: F.cross_entropy(logits(x), y, ignore_index=2), "joint", _without(2)),
    "label smoothing": Case(lambda x, y: F.cross_entropy(logits(x), y, label_smoothing=0.1), "mean"),
    "module": Case(lambda x, y: CRITERION(logits(x), y), "joint", WEIGHT),
    "sum / N": Case(lambda x, y: F.cross_entropy(logits(x), y, reduction="sum") / len(y), "mean"),
    "unreduced, mean": Case(lambda x, y: losses_of(x, y).mean(), "mean"),
    "unreduced, sum(0)": Case(lambda x, y: losses_of(x, y).sum(0) / N, "mean"),
    "nll_loss": Case(lambda x, y: F.nll_loss(F.log_softmax(logits(x), 1), y), "mean"),
    "multi_margin_loss": Case(lambda x, y: F.multi_margin_loss(logits(x), y), "mean"),
    "gather": Case(lambda x, y: -F.log_softmax(logits(x), 1).gather(1, y[:, None]).mean(), "mean"),
    "index": Case(lambda x, y: -F.log_softmax(logits(x), 1)[torch.arange(N), y].mean(), "mean"),
    "eye[y]": Case(
        lambda x, y: -(torch.eye(K, dtype=x.dtype)[y] * F.log_softmax(logits(x), 1)).sum(1).mean(), "mean"
    ),
    "setitem": Case(by_setitem, "mean"),
    "written into a view": Case(by_view, "mean"),
    "loop": Case(by_loop, "mean"),
    "arange": Case(by_arange, "mean"),
    "one_hot and BCE": Case(
        lambda x, y: F.binary_cross_entropy_with_logits(logits(x), F.one_hot(y, K).to(x.dtype)), "mean"
    ),
    "one_hot and MSE": Case(lambda x, y: F.mse_loss(logits(x), F.one_hot(y, K).to(x.dtype)), "mean"),
    "focal": Case(focal, "mean"),
    "focal, detached": Case(focal_detached, "mean"),
    "focal with alpha[y]": Case(lambda x, y: (WEIGHT[y] * losses_of(x, y)).mean(), "mean"),
    "weights by index": Case(
        lambda x, y: (WEIGHT[y] * losses_of(x, y)).sum() / WEIGHT[y].sum(), "joint", WEIGHT
    ),
    "where(y == 2)": Case(lambda x, y: (losses_of(x, y) * torch.where(y == 2, 3.0, 1.0)).mean(), "mean"),
    "center loss": Case(center, "mean"),
    "margin by one_hot": Case(
        lambda x, y: F.cross_entropy(4 * (cosines(x) - 0.3 * F.one_hot(y, K)), y), "mean"
    ),
    "ArcFace, in place": Case(arcface_in_place, "mean"),
    "ArcFace, by index": Case(arcface_by_index, "mean"),
    "labels edited in place": Case(edited, "joint", _without(3)),
    "halves": Case(halves, "mean"),
    "only the misclassified": Case(misclassified, "mean"),
    "SupCon": Case(supcon, "refused"),
    "Dice": Case(dice, "soft"),
    "sqrt of the mean": Case(lambda x, y: losses_of(x, y).mean().sqrt(), "soft"),
    "over its own detached value": Case(normalised, "soft"),
    "hardest half": Case(lambda x, y: losses_of(x, y).topk(N // 2).values.mean(), "refused"),
    "auxiliary head": Case(
        lambda x, y: F.cross_entropy(logits(x), y) + 0.4 * F.cross_entropy(2 * logits(x), y), "mean"
    ),
}
