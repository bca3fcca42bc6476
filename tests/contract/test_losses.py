"""Losses that modules compute, each trained through.

Their labels are classes unless a row says otherwise. With one lam the formula is that of the papers; with a
lam for each sample a loss has the form of a mean over samples, of a mean with the joint normaliser, or of
the soft labels. Where it has no form by sample it is refused.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple, cast

import pytest
import torch
import torch.nn.functional as F
import torchmetrics
import torchvision
from lightning.fabric import Fabric
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from lightning_msda import MSDA, CutMix, MixedLossError, Mixture, MixUp
from lightning_msda.functional import cutmix, mixed_loss, mixup
from tests import losses as cases
from tests.contract import oracle
from tests.contract.oracle import Terms, classes, classes_by_sample, row, trains, values

N, K, T, E = 6, 5, 3, 4
WEIGHT = torch.linspace(0.5, 2, K, dtype=torch.float64)
DISTANCES = (torch.arange(K)[:, None] - torch.arange(K)).abs().double()
NO_FORM = "no form by sample"

Function = Callable[[Tensor, Any], Any]
Formula = Callable[[Mixture, Any], Terms]
BY_SAMPLE = pytest.mark.parametrize("per_sample", [False, True])


class Classifier(LightningModule):
    """A linear layer under a loss of its outputs and labels."""

    def __init__(self, loss: Function, out: int = K, features: int = 3 * 4 * 4) -> None:
        super().__init__()
        self.linear = nn.Linear(features, out, dtype=torch.float64)
        self.loss = loss

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        return self.loss(self.linear(x.flatten(1)), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def some_classes() -> Tensor:
    return torch.randint(0, K, (N,))


def batches(labels: Callable[[], Any] = some_classes) -> list[tuple[Tensor, Any]]:
    """Return three batches of images and labels."""
    drawn = [labels() for _ in range(3)]
    return [(torch.rand(len(tree_leaves(y)[0]), 3, 4, 4, dtype=torch.float64), y) for y in drawn]


class Loss(NamedTuple):
    """A loss, its formula by sample, the labels that it takes, and its formula with one lam.

    Where `by_sample` is None it is `refused` by sample; if that is None too, there is no formula to tell.
    """

    function: Function
    by_sample: Formula | None = classes_by_sample
    labels: Callable[[], Any] = some_classes
    formula: Formula = classes
    out: int = K
    arguments: dict[str, Any] = {}  # noqa: RUF012
    rtol: float = 1e-10
    refused: str | None = NO_FORM

    def train(self, kind: Callable[..., MSDA], *, per_sample: bool) -> None:
        """Train through it, and check that the data set is as it was."""
        data = batches(self.labels)
        before = copy.deepcopy(data)
        trains(
            lambda: Classifier(copy.deepcopy(self.function), self.out),
            data,
            kind(per_sample=per_sample, **self.arguments),
            terms=_of_copies((per_sample and self.by_sample) or self.formula),
            rtol=self.rtol,
        )
        assert all(map(torch.equal, tree_leaves(data), tree_leaves(before)))


def _of_copies(formula: Formula) -> Formula:
    """Return a formula whose labels may be edited in place."""
    return lambda mix, y: [(share, tree_map(Tensor.clone, labels)) for share, labels in formula(mix, y)]


cells = partial(oracle.cells, "Losses")


def check(
    make: Callable[[], LightningModule],
    per_sample: bool,
    by_sample: Formula = classes_by_sample,
    **arguments: Any,
) -> None:
    """Train a module of classes by either formula."""
    method = MixUp(per_sample=per_sample, **arguments)
    trains(make, batches(), method, terms=by_sample if per_sample else classes)


def joint(weight: Tensor | None = None, ignored: int = -100) -> Formula:
    """Return the formula by sample of a mean that divides by the weights of the labels that count."""
    return oracle.joint(partial(_count, weight=weight, ignored=ignored))


def _count(y: Tensor, weight: Tensor | None, ignored: int) -> Tensor:
    valid = y != ignored
    return valid.double().sum() if weight is None else (weight[y * valid] * valid).sum()


def test_the_joint_terms_are_the_equation() -> None:
    own, z = some_classes(), torch.randn(N, K, dtype=torch.float64)
    mix = mixup(
        torch.rand(N, 2, dtype=torch.float64), per_sample=True, generator=torch.Generator().manual_seed(1)
    )
    lam, partner = mix.lam, own[mix.partner]
    counts = WEIGHT.clone()
    counts[2] = 0
    pairs = [(lam * counts[own], own), ((1 - lam) * counts[partner], partner)]
    losses = torch.stack([(share * F.cross_entropy(z, y, reduction="none")).sum() for share, y in pairs])
    wanted = losses.sum() / torch.stack([share.sum() for share, _ in pairs]).sum()
    terms = joint(WEIGHT, ignored=2)(mix, own)
    means = [share * F.cross_entropy(z, y, weight=WEIGHT, ignore_index=2) for share, y in terms]
    torch.testing.assert_close(torch.stack(means).sum(), wanted, rtol=1e-10, atol=0)


def own_and_partner(mix: Mixture, y: Tensor) -> Terms:
    """Return the one term of a loss that `states` its formula."""
    return [(1.0, (y, y[mix.partner], mix.lam))]


def states(loss: Function, formula: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> Function:
    """Return a loss that is its formula where it gets own labels, partners' labels and lam."""
    return lambda z, y: formula(z, *y) if isinstance(y, tuple) else loss(z, y)


# --- Cross-entropy and its arguments ---

SHAPES: dict[str, tuple[int, ...]] = {"(N, C)": (), "(N, C, T)": (T,), "(N, C, H, W)": (2, 2)}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "": {},
    "class weight": {"weight": WEIGHT},
    "ignore_index": {"ignore_index": 2},
    "label_smoothing": {"label_smoothing": 0.1},
    "class weight and ignore_index": {"weight": WEIGHT, "ignore_index": 2},
    "class weight, ignore_index and label_smoothing": {
        "weight": WEIGHT,
        "ignore_index": 2,
        "label_smoothing": 0.1,
    },
}
ENTROPIES = [
    (function, shape, arguments, reduction)
    for function in ("cross_entropy", "nll_loss")
    for shape in SHAPES
    for arguments in ARGUMENTS
    for reduction in ("mean", "sum", "none")
    if function == "cross_entropy" or "label_smoothing" not in arguments
]


def entropies(*, per_sample: bool) -> list[Any]:
    """Return every combination, a row for each of its parts."""
    cells = []
    for function, shape, arguments, reduction in ENTROPIES:
        parts = [f"logits {shape}", arguments, f'reduction="{reduction}"']
        marks = [row("Losses", f"{function}, {part}", per_sample=per_sample) for part in parts if part]
        cells.append(pytest.param(function, shape, arguments, reduction, per_sample, marks=marks))
    return cells


@pytest.mark.parametrize(
    ("function", "shape", "arguments", "reduction", "per_sample"),
    [*entropies(per_sample=False), *entropies(per_sample=True)],
)
def test_cross_entropy(function: str, shape: str, arguments: str, reduction: str, per_sample: bool) -> None:
    sizes, options = SHAPES[shape], ARGUMENTS[arguments]
    entries = torch.Size(sizes).numel()

    def loss(z: Tensor, y: Tensor) -> Tensor:
        scores = z.view(N, K, *sizes)
        scores = scores.log_softmax(1) if function == "nll_loss" else scores
        value: Tensor = getattr(F, function)(scores, y, reduction=reduction, **options)
        return value.mean()

    normalised = joint(options.get("weight"), options.get("ignore_index", -100))
    by_sample = normalised if reduction == "mean" else classes_by_sample
    labels = Loss(loss, by_sample, lambda: torch.randint(0, K, (N, *sizes)), out=K * entries)
    labels.train(MixUp, per_sample=per_sample)


# --- Losses by name: those of tests/losses.py in the words of their users, and others ---

SPOKEN = {
    "cross_entropy": "cross_entropy",
    "class weights": "cross_entropy, class weight",
    "ignore_index": "cross_entropy, ignore_index",
    "label smoothing": "cross_entropy, label_smoothing",
    "module": "nn.CrossEntropyLoss, class weight",
    "sum / N": "cross_entropy, summed and divided by len(y)",
    "unreduced, mean": 'cross_entropy, reduction="none"',
    "unreduced, sum(0)": "cross_entropy, unreduced and summed by sum(0)",
    "nll_loss": "nll_loss",
    "multi_margin_loss": "multi_margin_loss",
    "gather": "log-likelihood by gather",
    "index": "log-likelihood by [arange(N), y]",
    "eye[y]": "log-likelihood by eye(C)[y]",
    "setitem": "log-likelihood by hot[arange(N), y] = 1",
    "written into a view": "log-likelihood by hot.view(-1)[arange(N) * C + y] = 1",
    "loop": "log-likelihood by a loop over the labels",
    "arange": "log-likelihood by y[:, None] == arange(C)",
    "one_hot and BCE": "binary_cross_entropy_with_logits of one_hot",
    "one_hot and MSE": "mse_loss of one_hot",
    "focal": "focal loss",
    "focal, detached": "focal loss, its factor detached",
    "focal with alpha[y]": "focal loss, alpha[y]",
    "weights by index": "class weights by weight[y], divided by their sum",
    "where(y == 2)": "samples weighed by where(y == 2, ...)",
    "center loss": "center loss",
    "margin by one_hot": "margin in the step, one_hot",
    "ArcFace, in place": "margin in the step, scatter_",
    "ArcFace, by index": "margin in the step, cosine[arange(N), y] -= m",
    "labels edited in place": "labels edited in place",
    "halves": "a loss for each half of the batch",
    "only the misclassified": "the misclassified samples alone",
    "SupCon": "SupCon",
    "Dice": "Dice over the batch",
    "sqrt of the mean": "square root of the mean",
    "over its own detached value": "a loss over its own detached value",
    "hardest half": "the hardest samples by topk",
    "auxiliary head": "an auxiliary head",
}


def soft_dice(x: Tensor, own: Tensor, partner: Tensor, lam: Tensor) -> Tensor:
    hot = lam[:, None] * F.one_hot(own, cases.K) + (1 - lam[:, None]) * F.one_hot(partner, cases.K)
    p = cases.logits(x).softmax(1)
    return 1 - (2 * (p * hot).sum(0) / (p.sum(0) + hot.sum(0))).mean()


def mixed_mean(x: Tensor, own: Tensor, partner: Tensor, lam: Tensor) -> Tensor:
    return (lam * cases.losses_of(x, own) + (1 - lam) * cases.losses_of(x, partner)).mean()


SOFT: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "Dice": soft_dice,
    "sqrt of the mean": lambda *of: mixed_mean(*of).sqrt(),
    "over its own detached value": lambda *of: mixed_mean(*of) / mixed_mean(*of).detach(),
}


def of_case(name: str) -> Loss:
    loss, by_sample, counts = cases.CASES[name]
    formulas = {"mean": classes_by_sample, "joint": joint(counts), "soft": own_and_partner, "refused": None}
    return Loss(
        states(loss, SOFT[name]) if name in SOFT else loss,
        formulas[by_sample],
        lambda: torch.randint(0, cases.K, (cases.N,)),
        out=cases.E,
    )


def hot(y: Tensor) -> Tensor:
    return F.one_hot(y, K).double()


def signs(y: Tensor) -> Tensor:
    return 2.0 * y.double() - 1


def multi_hot() -> Tensor:
    return torch.randint(0, 2, (N, K))


def binary() -> Tensor:
    return torch.randint(0, 2, (N,))


def soft() -> Tensor:
    return torch.rand(N, K, dtype=torch.float64).softmax(1)


def ranked() -> Tensor:
    """Return labels of multilabel_margin_loss: two classes for each sample, then -1."""
    return torch.stack([torch.randperm(K) for _ in range(N)]).where(torch.arange(K) < 2, -1)


def transcripts() -> tuple[Tensor, Tensor]:
    return torch.randint(1, K, (N, T)), torch.randint(1, T + 1, (N,))


def unreduced(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, y, reduction="none")


def twice(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, y) + 0.5 * F.cross_entropy(2 * z, y)


def stacked(z: Tensor, y: Tensor) -> Tensor:
    return torch.stack([F.cross_entropy(scale * z, y) for scale in (0.5, 1.0, 2.0)]).mean()


def smoothed(z: Tensor, y: Tensor) -> Tensor:
    target = torch.full_like(z, 0.1 / (K - 1)).scatter_(1, y.unsqueeze(1), 0.9)
    return torch.sum(-target * z.log_softmax(-1), dim=-1).mean()


def symmetric(z: Tensor, y: Tensor) -> Tensor:
    reverse = -(z.softmax(1) * hot(y).clamp(min=1e-4).log()).sum(1)
    return unreduced(z, y).mean() + 0.1 * reverse.mean()


def poly(z: Tensor, y: Tensor) -> Tensor:
    return (unreduced(z, y) + 2.0 * (1 - torch.sum(hot(y) * z.softmax(1), -1))).mean()


def generalised(z: Tensor, y: Tensor) -> Tensor:
    return ((1 - z.softmax(1)[range(N), y] ** 0.7) / 0.7).mean()


def focal(z: Tensor, y: Tensor) -> Tensor:
    loss = F.binary_cross_entropy_with_logits(z, y.double(), reduction="none")
    return (0.25 * (1 - torch.exp(-loss)) ** 2 * loss).mean()


def ordinal(z: Tensor, y: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(z[:, 1:], (y.unsqueeze(1) > torch.arange(K - 1)).double())


def earth_movers(z: Tensor, y: Tensor) -> Tensor:
    return (z.softmax(1).cumsum(1) - hot(y).cumsum(dim=1)).square().mean()


def hinge(z: Tensor, y: Tensor) -> Tensor:
    return ((z - z.gather(1, y[:, None]) + 1).clamp(min=0) * (1 - F.one_hot(y, K))).sum() / N


def weighed(z: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        weight = 1 - z.softmax(1).gather(1, y[:, None]).squeeze(1)
    return (weight * unreduced(z, y)).mean()


def regularised(z: Tensor, y: Tensor) -> Tensor:
    spread = z.mean().exp()
    return F.cross_entropy(z, y) / spread + spread.log() + 1e-2 * z.square().mean()


def over_known(z: Tensor, y: Tensor) -> Tensor:
    known = y != 2
    return (unreduced(z, y) * known).sum() / known.sum()


def mixed_again(z: Tensor, y: Tensor) -> Tensor:
    order = torch.arange(N).roll(1)
    return 0.8 * F.cross_entropy(z, y) + 0.2 * F.cross_entropy(z, y[order])


def balanced(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, y, weight=1 / (1 + torch.bincount(y, minlength=K)).double())


def batch_hard(z: Tensor, y: Tensor) -> Tensor:
    distances, same = torch.cdist(z, z), y.unsqueeze(0) == y.unsqueeze(1)
    farthest, nearest = (distances * same).max(1).values, distances.masked_fill(same, 1e3).min(1).values
    return F.softplus(farthest - nearest).mean()


def contrastive(z: Tensor, y: Tensor) -> Tensor:
    distances, same = torch.cdist(z, z), torch.eq(y.view(-1, 1), y.view(1, -1)).double()
    return (same * distances.square() + (1 - same) * F.relu(1 - distances).square()).mean()


def prototypes(z: Tensor, y: Tensor) -> Tensor:
    sums = torch.zeros(K, K, dtype=z.dtype).index_add(0, y, z)
    return F.cross_entropy(-torch.cdist(z, sums / (1 + torch.bincount(y, minlength=K))[:, None]), y)


def lovasz(z: Tensor, y: Tensor) -> Tensor:
    losses = []
    for c in range(K):
        wanted = (y == c).double()
        errors, order = torch.sort((wanted - z.softmax(1)[:, c]).abs(), 0, descending=True)
        wanted = wanted[order]
        jaccard = 1 - (wanted.sum() - wanted.cumsum(0)) / (wanted.sum() + (1 - wanted).cumsum(0))
        jaccard[1:] = jaccard[1:] - jaccard[:-1]
        losses.append(torch.dot(errors, jaccard))
    return torch.stack(losses).mean()


def flooded(z: Tensor, y: Tensor) -> Tensor:
    return (F.cross_entropy(z, y) - 0.5).abs() + 0.5


def flooded_mixture(z: Tensor, own: Tensor, partner: Tensor, lam: Tensor) -> Tensor:
    return ((lam * unreduced(z, own) + (1 - lam) * unreduced(z, partner)).mean() - 0.5).abs() + 0.5


def ctc(z: Tensor, y: tuple[Tensor, Tensor], reduction: str) -> Tensor:
    scores = z.view(N, 2 * T, K).permute(1, 0, 2).log_softmax(2)
    return F.ctc_loss(scores, y[0], torch.full((N,), 2 * T), y[1], reduction=reduction).mean()


def left_out_by_nonzero(z: Tensor, y: Tensor) -> Tensor:
    known = (y != 2).nonzero().squeeze(1)
    return F.cross_entropy(z[known], y.index_select(0, known))


def margins_in_turn(z: Tensor, y: Tensor) -> Tensor:
    cosine = z.tanh() * 1
    for i in range(len(y)):
        cosine[i, y[i]] -= 0.3
    return F.cross_entropy(4 * cosine, y)


def some_margins_in_turn(z: Tensor, y: Tensor) -> Tensor:
    cosine = z.tanh() * 1
    for i in range(len(y) // 2):
        cosine[i, y[i]] = 0.5 * cosine[i, y[i]] - 0.1
    return F.cross_entropy(4 * cosine, y)


def scaled_in_turn(z: Tensor, y: Tensor) -> Tensor:
    cosine = z.tanh() * 1
    for i, y_i in enumerate(y):
        cosine[i, y_i] *= 0.7
    return F.cross_entropy(4 * cosine, y)


def margins_on_margins(z: Tensor, y: Tensor) -> Tensor:
    cosine = z.tanh() * 1
    cosine[torch.arange(N), y] -= 0.1
    for i in range(len(y)):
        cosine[i, y[i]] -= 0.2
        cosine[i, y[i]] *= 0.7
    return F.cross_entropy(4 * cosine, y)


def by_columns(z: Tensor, y: Tensor) -> Tensor:
    hot = torch.zeros(K, N, dtype=z.dtype)
    hot[y, torch.arange(N)] = 1
    return -(hot.t() * z.log_softmax(1)).sum(1).mean()


def flattened(write: Callable[[Tensor, Tensor], Any]) -> Function:
    """Return a log-likelihood by one-hot labels that are written where they are flattened."""

    def loss(z: Tensor, y: Tensor) -> Tensor:
        hot = torch.zeros_like(z)
        made = write(hot.view(-1), torch.arange(N) * K + y)
        hot = hot if made is None else made.view(N, K)
        return -(hot * z.log_softmax(1)).sum(1).mean()

    return loss


def written_and_kept(flat: Tensor, places: Tensor) -> None:
    flat.index_add_(0, places, torch.ones(N, dtype=flat.dtype))


def filled_in_turn(z: Tensor, y: Tensor) -> Tensor:
    hot = torch.zeros_like(z)
    for i, y_i in enumerate(y):
        hot[i, y_i].fill_(1)
    return -(hot * z.log_softmax(1)).sum(1).mean()


def moving_prototypes(z: Tensor, y: Tensor) -> Tensor:
    centres = torch.eye(K, dtype=z.dtype)
    with torch.no_grad():
        for z_i, y_i in zip(z, y, strict=True):
            centres[y_i].mul_(0.9).add_(0.1 * z_i)
    return F.cross_entropy(z @ centres.t(), y)


def view_of_logits(z: Tensor, y: Tensor) -> Tensor:
    wanted = (y > 0).to(z.dtype)
    shifted = (1 * z).view_as(wanted)
    shifted -= 0.3 + shifted.detach().mean()
    return F.binary_cross_entropy_with_logits(shifted, wanted)


def put(z: Tensor, y: Tensor) -> Tensor:
    one = torch.ones((), dtype=z.dtype)
    return torch.zeros_like(z).index_put_((torch.arange(len(y)), y), one)


def one_by_one(z: Tensor, y: Tensor) -> Tensor:
    total: Tensor = torch.zeros((), dtype=z.dtype)
    for i in range(len(y)):
        entropy = F.cross_entropy(z[i : i + 1], y[i : i + 1])
        total = total + (1 - torch.exp(-entropy)) ** 2 * entropy
    return total / len(y)


def bce(z: Tensor, y: Tensor, **options: Any) -> Tensor:
    return F.binary_cross_entropy_with_logits(z, y.double(), **options).mean()


def focal_of_torchvision(reduction: str) -> Function:
    return lambda z, y: torchvision.ops.sigmoid_focal_loss(z, hot(y), reduction=reduction).mean()


def divergence(reduction: str) -> Function:
    return lambda z, y: F.kl_div(z.log_softmax(1), y, reduction=reduction).sum()


def of_integers(function: Callable[..., Tensor]) -> Function:
    return lambda z, y: function(z.squeeze(1), y.double())


def log_likelihood(z: Tensor) -> Tensor:
    return z.log_softmax(1)


LOSSES: dict[str, Loss] = {
    **{SPOKEN[name]: of_case(name) for name in cases.CASES},
    "a loss called twice in a step": Loss(twice),
    "losses in torch.stack": Loss(stacked),
    "losses in sum()": Loss(lambda z, y: sum(F.cross_entropy(scale * z, y) for scale in (1.0, 2.0))),
    "a loss with terms that read no labels": Loss(regularised),
    "multi_margin_loss, weight": Loss(lambda z, y: F.multi_margin_loss(z, y, p=2, margin=0.5, weight=WEIGHT)),
    'multi_margin_loss, reduction="sum"': Loss(lambda z, y: F.multi_margin_loss(z, y, reduction="sum")),
    "multilabel_margin_loss": Loss(F.multilabel_margin_loss, labels=ranked),
    "multilabel_soft_margin_loss": Loss(
        lambda z, y: F.multilabel_soft_margin_loss(z, y.double(), weight=WEIGHT), labels=multi_hot
    ),
    "soft_margin_loss": Loss(lambda z, y: F.soft_margin_loss(z, signs(y)), labels=multi_hot),
    "hinge_embedding_loss": Loss(lambda z, y: F.hinge_embedding_loss(z, signs(y)), labels=multi_hot),
    "margin_ranking_loss": Loss(
        lambda z, y: F.margin_ranking_loss(z[:, 0], z[:, 1], signs(y)), labels=binary
    ),
    "cosine_embedding_loss": Loss(
        lambda z, y: F.cosine_embedding_loss(z[:, :2], z[:, 2:4], signs(y)), labels=binary
    ),
    "poisson_nll_loss": Loss(lambda z, y: F.poisson_nll_loss(z[:, 0], y.double())),
    "binary_cross_entropy": Loss(
        lambda z, y: F.binary_cross_entropy(z.sigmoid(), y.double()), labels=multi_hot
    ),
    "binary_cross_entropy, weight": Loss(
        lambda z, y: F.binary_cross_entropy(z.sigmoid(), y.double(), weight=WEIGHT), labels=multi_hot
    ),
    "binary_cross_entropy of one logit": Loss(
        lambda z, y: F.binary_cross_entropy(z.sigmoid(), y.unsqueeze(1).double()), labels=binary, out=1
    ),
    "binary_cross_entropy_with_logits": Loss(bce, labels=multi_hot),
    "binary_cross_entropy_with_logits, pos_weight": Loss(
        lambda z, y: bce(z, y, pos_weight=WEIGHT), labels=multi_hot
    ),
    'binary_cross_entropy_with_logits, reduction="sum"': Loss(
        lambda z, y: bce(z, y, weight=WEIGHT, reduction="sum"), labels=multi_hot
    ),
    'binary_cross_entropy_with_logits, reduction="none"': Loss(
        lambda z, y: bce(z, y, pos_weight=WEIGHT, reduction="none"), labels=multi_hot
    ),
    "binary_cross_entropy_with_logits of floats": Loss(
        lambda z, y: bce(z, y, pos_weight=WEIGHT), values, soft, values
    ),
    "nn.BCEWithLogitsLoss, pos_weight": Loss(
        lambda z, y: nn.BCEWithLogitsLoss(pos_weight=WEIGHT)(z, y.double()), labels=multi_hot
    ),
    "focal loss of multi-hot labels": Loss(focal, labels=multi_hot),
    **{
        f'torchvision.ops.sigmoid_focal_loss, reduction="{reduction}"': Loss(focal_of_torchvision(reduction))
        for reduction in ("mean", "sum", "none")
    },
    **{
        f'kl_div of soft targets, reduction="{reduction}"': Loss(divergence(reduction), values, soft, values)
        for reduction in ("batchmean", "sum", "none")
    },
    "kl_div of soft targets, log_target": Loss(
        lambda z, y: F.kl_div(log_likelihood(z), y, reduction="batchmean", log_target=True),
        values,
        lambda: soft().log(),
        values,
    ),
    'kl_div of soft targets, target="class"': Loss(
        lambda z, y: F.kl_div(log_likelihood(z), y, reduction="batchmean"),
        labels=soft,
        arguments={"target": "class"},
    ),
    "kl_div of one_hot": Loss(lambda z, y: F.kl_div(log_likelihood(z), hot(y), reduction="batchmean")),
    "cross_entropy of soft targets": Loss(F.cross_entropy, values, soft, values),
    'cross_entropy of soft targets, target="class"': Loss(
        F.cross_entropy, labels=soft, arguments={"target": "class"}
    ),
    "cross_entropy of one_hot": Loss(lambda z, y: F.cross_entropy(z, hot(y))),
    **{
        f"{function.__name__} of floats": Loss(function, values, soft, values)
        for function in (F.mse_loss, F.l1_loss, F.huber_loss, F.smooth_l1_loss)
    },
    **{
        f"{function.__name__} of integers": Loss(of_integers(function), out=1)
        for function in (F.mse_loss, F.l1_loss, F.huber_loss, F.smooth_l1_loss)
    },
    "gaussian_nll_loss": Loss(lambda z, y: F.gaussian_nll_loss(z, y, z.square() + 0.1), values, soft, values),
    "quantile loss": Loss(
        lambda z, y: torch.maximum(0.9 * (y - z), -0.1 * (y - z)).mean(), values, soft, values
    ),
    "label smoothing by full_like and scatter_": Loss(smoothed),
    "symmetric cross-entropy": Loss(symmetric),
    "poly loss": Loss(poly),
    "generalised cross-entropy by [range(N), y]": Loss(generalised),
    "MAE of probabilities": Loss(lambda z, y: (z.softmax(1) - hot(y)).abs().sum(1).mean()),
    "hinge loss by gather": Loss(hinge),
    "cosine_similarity to one_hot": Loss(lambda z, y: (1 - F.cosine_similarity(z, hot(y), dim=1)).mean()),
    "ordinal levels by y > arange(C - 1)": Loss(ordinal),
    "earth mover's distance by cumsum": Loss(earth_movers),
    "expected cost by matrix[y]": Loss(lambda z, y: (z.softmax(1) * DISTANCES[y]).sum(1).mean()),
    "distance to an embedding of the label": Loss(
        lambda z, y: (z - F.embedding(y, DISTANCES)).square().mean()
    ),
    "dropout of an embedding of the label": Loss(
        lambda z, y: (z - F.dropout(F.embedding(y, DISTANCES), 0.3)).square().mean()
    ),
    "samples weighed under no_grad": Loss(weighed),
    "a sum divided by a mask's sum": Loss(over_known, joint(ignored=2)),
    "samples left out by z[y != 2]": Loss(
        lambda z, y: F.cross_entropy(z[y != 2], y[y != 2]), joint(ignored=2)
    ),
    "samples left out by z[y != 2], class weight": Loss(
        lambda z, y: F.cross_entropy(z[y != 2], y[y != 2], weight=WEIGHT), joint(WEIGHT, ignored=2)
    ),
    "samples left out by masked_select": Loss(
        lambda z, y: unreduced(z, y).masked_select(y != 2).mean(), joint(ignored=2)
    ),
    "samples left out by nonzero": Loss(left_out_by_nonzero, joint(ignored=2)),
    "samples left out by where": Loss(
        lambda z, y: unreduced(z[torch.where(y != 2)[0]], y[y != 2]).mean(), joint(ignored=2)
    ),
    "classes in turn by losses[y == c]": Loss(
        lambda z, y: torch.stack([unreduced(z, y)[y == c].sum() for c in range(K)]).sum() / N
    ),
    "classes in turn by z[y == c]": Loss(
        lambda z, y: sum((z[y == c] - c).pow(2).mean(1).sum() for c in range(K)) / N
    ),
    "margins in turn by cosine[i, y[i]] -= m": Loss(margins_in_turn),
    "margins in turn by cosine[i, y[i]] = m, of some samples": Loss(some_margins_in_turn),
    "margins in turn by cosine[i, y_i] *= s": Loss(scaled_in_turn),
    "margins in turn on margins": Loss(margins_on_margins),
    "log-likelihood by hot[i, y[i]].fill_(1)": Loss(filled_in_turn),
    "log-likelihood by hot.view(-1).scatter_(0, arange(N) * C + y, 1)": Loss(
        flattened(lambda flat, places: flat.scatter_(0, places, 1))
    ),
    "log-likelihood by flat.scatter(0, arange(N) * C + y, 1)": Loss(
        flattened(lambda flat, places: flat.scatter(0, places, 1))
    ),
    "log-likelihood by flat.index_fill_(0, arange(N) * C + y, 1)": Loss(
        flattened(lambda flat, places: flat.clone().index_fill_(0, places, 1))
    ),
    "log-likelihood by flat.index_add_(0, arange(N) * C + y, ones)": Loss(flattened(written_and_kept)),
    "log-likelihood by hot[y, arange(N)] = 1, transposed": Loss(by_columns),
    "prototypes updated in turn by centres[y_i].mul_().add_()": Loss(moving_prototypes, None),
    "a view of the logits like the labels, edited in place": Loss(view_of_logits, labels=binary, out=1),
    "samples in turn": Loss(one_by_one),
    "samples in turn, stacked": Loss(
        lambda z, y: torch.stack([-z_i.log_softmax(0)[y_i] for z_i, y_i in zip(z, y, strict=True)]).mean()
    ),
    "classes in turn by (losses * (y == c))": Loss(
        lambda z, y: torch.stack([(unreduced(z, y) * (y == c)).sum() for c in range(K)]).sum() / N
    ),
    "labels that the module mixes too": Loss(mixed_again),
    "torch.distributions.Categorical": Loss(
        lambda z, y: -torch.distributions.Categorical(logits=z).log_prob(y).mean()  # type: ignore[no-untyped-call]
    ),
    "einsum": Loss(lambda z, y: -torch.einsum("nk,nk->n", log_likelihood(z), hot(y)).mean()),
    "einsum over the batch": Loss(lambda z, y: -torch.einsum("nk,nk->", log_likelihood(z), hot(y)) / N),
    "torch.dot": Loss(lambda z, y: torch.dot(WEIGHT[y], unreduced(z, y)) / N),
    "torch.bmm": Loss(lambda z, y: -torch.bmm(log_likelihood(z)[:, None], hot(y)[:, :, None]).mean()),
    "take": Loss(lambda z, y: -log_likelihood(z).take(torch.arange(len(y)) * K + y).mean()),
    "index_put_": Loss(lambda z, y: -(log_likelihood(z) * put(z, y)).sum(1).mean()),
    "take_along_dim": Loss(lambda z, y: -torch.take_along_dim(log_likelihood(z), y[:, None], 1).mean()),
    **{
        f'ctc_loss, reduction="{reduction}"': Loss(
            partial(ctc, reduction=reduction), labels=transcripts, out=2 * T * K
        )
        for reduction in ("mean", "sum", "none")
    },
    "flooding": Loss(states(flooded, flooded_mixture), own_and_partner),
    "class weights by bincount of the batch": Loss(balanced, None, refused=None),
    "batch-hard triplets": Loss(batch_hard, None),
    "contrastive pairs": Loss(contrastive, None),
    "prototypes of the batch": Loss(prototypes, None),
    "Lovász": Loss(lovasz, None),
}
FORMLESS = [name for name, loss in LOSSES.items() if loss.by_sample is None and loss.refused is not None]


@pytest.mark.parametrize("name", [pytest.param(name, marks=row("Losses", name)) for name in LOSSES])
def test_one_lam(name: str) -> None:
    LOSSES[name].train(CutMix, per_sample=False)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=row("Losses", name, per_sample=True))
        for name in LOSSES
        if LOSSES[name].by_sample is not None
    ],
)
def test_a_lam_for_each_sample(name: str) -> None:
    LOSSES[name].train(MixUp, per_sample=True)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=row("Losses", name, per_sample=True, refused=LOSSES[name].refused))
        for name in FORMLESS
    ],
)
def test_a_lam_for_each_sample_is_refused(name: str) -> None:
    with pytest.raises(MixedLossError, match=r"(lam per sample|different samples).*per_sample=False"):
        LOSSES[name].train(MixUp, per_sample=True)


class Blank(Classifier):
    """Begins with scores that are all alike, so that its losses are the same in every world."""

    def __init__(self, loss: Function) -> None:
        super().__init__(loss)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)


@pytest.mark.parametrize(
    "loss",
    [
        lambda z, y: unreduced(z, y).topk(3).values.mean(),
        lambda z, y: unreduced(z, y).cumsum(0).mean(),
    ],
)
def test_losses_of_equal_values_are_not_taken_for_one_another(loss: Function) -> None:
    with pytest.raises(MixedLossError, match=r"lam per sample cannot be followed.*per_sample=False"):
        check(lambda: Blank(loss), per_sample=True)


class Counts(Classifier):
    """Counts what it has predicted for which label, entry by entry."""

    def __init__(self, before: bool) -> None:
        super().__init__(nn.CrossEntropyLoss())
        self.before = before
        self.register_buffer("confusion", torch.zeros(K, K))
        self.register_buffer("of_class", torch.zeros(K))

    def count(self, z: Tensor, y: Tensor) -> None:
        for label, predicted in zip(y, z.argmax(1), strict=True):
            self.confusion[label, predicted] += 1  # type: ignore[index, operator]
        for i in range(len(y)):
            self.of_class[y[i]] += 1  # type: ignore[index, operator]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        z = self.linear(x.flatten(1))
        if self.before:
            self.count(z, y)
        loss: Tensor = self.loss(z, y)
        if not self.before:
            self.count(z, y)
        return loss


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("per_sample", oracle.both("Losses", "a confusion matrix by matrix[y_i, p_i] += 1"))
def test_own_labels_are_counted_once(before: bool, per_sample: bool) -> None:
    torch.manual_seed(1)
    data = batches()
    module = trains(
        lambda: Counts(before),
        data,
        MixUp(per_sample=per_sample),
        terms=classes_by_sample if per_sample else classes,
    )
    wanted = torch.cat([y for _, y in data]).bincount(minlength=K)
    torch.testing.assert_close(module.of_class, wanted.float())
    torch.testing.assert_close(module.confusion.sum(1), wanted.float())  # type: ignore[operator]


# --- Margin heads that take the labels ---


class Head(nn.Module):
    """Cosines of features and learned centres, with a margin where the label is."""

    def __init__(self, margin: Function) -> None:
        super().__init__()
        self.margin = margin
        self.centres = nn.Parameter(torch.randn(K, T, dtype=torch.float64))

    def forward(self, features: Tensor, y: Tensor) -> Tensor:
        cosine = F.linear(F.normalize(features), F.normalize(self.centres))
        logits: Tensor = 4 * self.margin(cosine.clamp(-1 + 1e-7, 1 - 1e-7), y)
        return logits


class Faces(Classifier):
    """Computes its logits from features and labels."""

    def __init__(self, margin: Function) -> None:
        super().__init__(nn.CrossEntropyLoss(), out=T)
        self.head = Head(margin)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        return self.loss(self.head(self.linear(x.flatten(1)), y), y)


def arcface_by_scatter(cosine: Tensor, y: Tensor) -> Tensor:
    phi = cosine * 0.9 - (1 - cosine**2).sqrt() * 0.4
    phi = torch.where(cosine > -0.9, phi, cosine - 0.2)
    hot = torch.zeros(cosine.size(), dtype=cosine.dtype, device=cosine.device)
    hot.scatter_(1, y.view(-1, 1).long(), 1)
    return (hot * phi) + ((1.0 - hot) * cosine)


def arcface_by_angle(cosine: Tensor, y: Tensor) -> Tensor:
    return torch.cos(torch.acos(cosine) + 0.3 * F.one_hot(y, K))


def arcface_of_known(cosine: Tensor, y: Tensor) -> Tensor:
    index = torch.where(y != -1)[0]
    margin = torch.zeros(index.size(0), K, dtype=cosine.dtype)
    margin.scatter_(1, y[index, None], 0.3)
    cosine = cosine.acos()
    cosine[index] += margin
    return cosine.cos()


def cosface_of_known(cosine: Tensor, y: Tensor) -> Tensor:
    index = torch.where(y != -1)[0]
    target = cosine[index, y[index].view(-1)]
    cosine[index, y[index].view(-1)] = target - 0.3
    return cosine


def cosface_by_gather(cosine: Tensor, y: Tensor) -> Tensor:
    return cosine.scatter(1, y.view(-1, 1), cosine.gather(1, y.view(-1, 1)) - 0.3)


def cosface_by_where(cosine: Tensor, y: Tensor) -> Tensor:
    return torch.where(F.one_hot(y, K).bool(), cosine - 0.3, cosine)


def cosface_by_index(cosine: Tensor, y: Tensor) -> Tensor:
    cosine = cosine.clone()
    cosine[torch.arange(len(y)), y] -= 0.3
    return cosine


def am_softmax(cosine: Tensor, y: Tensor) -> Tensor:
    return cosine - torch.zeros_like(cosine).scatter_(1, y.view(-1, 1).cpu(), 0.3)


def ldam(cosine: Tensor, y: Tensor) -> Tensor:
    index = torch.zeros_like(cosine, dtype=torch.uint8)
    index.scatter_(1, y.data.view(-1, 1), 1)
    margins = torch.matmul(WEIGHT[None, :], index.to(cosine.dtype).transpose(0, 1)).view(-1, 1)
    return torch.where(index.bool(), cosine - 0.1 * margins, cosine)


MARGINS: dict[str, Function] = {
    "ArcFace by scatter_ and where": arcface_by_scatter,
    "ArcFace by acos": arcface_by_angle,
    "ArcFace of the known labels": arcface_of_known,
    "CosFace by one_hot": lambda cosine, y: cosine - 0.3 * F.one_hot(y, K),
    "CosFace of the known labels": cosface_of_known,
    "CosFace by gather and scatter": cosface_by_gather,
    "CosFace by where": cosface_by_where,
    "CosFace by cosine[arange(N), y] -= m": cosface_by_index,
    "AM-softmax": am_softmax,
    "LDAM": ldam,
}


@pytest.mark.parametrize(("name", "per_sample"), cells(MARGINS, "head(features, y), "))
def test_margin_heads(name: str, per_sample: bool) -> None:
    check(lambda: Faces(MARGINS[name]), per_sample)


# --- Modules around a loss ---


class Logs(Classifier):
    """Logs the cross-entropy and the accuracy beside the loss that it trains on."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        z = self.linear(x.flatten(1))
        entropy = F.cross_entropy(z, y)
        self.log("entropy", entropy)
        self.log_dict({"accuracy": (z.argmax(1) == y).float().mean(), "entropy of parts": entropy.detach()})
        self.logged = entropy.item()
        loss = generalised_by_gather(z, y)
        self.log("loss", loss, on_epoch=True)
        return {"loss": loss, "logits": z.detach(), "labels": y, "entropy": entropy}


def generalised_by_gather(z: Tensor, y: Tensor) -> Tensor:
    return ((1 - z.softmax(1).gather(1, y[:, None]) ** 0.7) / 0.7).mean()


class Output(NamedTuple):
    """What a network returns that computes its loss itself."""

    loss: Tensor | None
    logits: Tensor


class Network(nn.Module):
    """Computes the loss where it is called with labels."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 4 * 4, K, dtype=torch.float64)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> Output:
        logits = self.linear(pixel_values.flatten(1))
        loss = None if labels is None else F.cross_entropy(logits.view(-1, K), labels.view(-1))
        return Output(loss, logits)


class Wraps(Classifier):
    """Leaves the loss to its network."""

    def __init__(self) -> None:
        super().__init__(lambda z, y: z)
        self.network = Network()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        return self.network(pixel_values=x, labels=y).loss + self.linear(x.flatten(1)).square().mean()


class Distils(Classifier):
    """A student of a frozen teacher that sees the same inputs."""

    def __init__(self) -> None:
        super().__init__(F.cross_entropy)
        self.teacher = nn.Linear(3 * 4 * 4, K, dtype=torch.float64).requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        z = self.linear(x.flatten(1))
        with torch.no_grad():
            taught = self.teacher(x.flatten(1))
        hint = F.kl_div((z / 2).log_softmax(1), (taught / 2).softmax(1), reduction="batchmean")
        return 0.3 * self.loss(z, y) + 0.7 * 4 * hint


class Decoder(Classifier):
    """Embeds labels, lets a layer read them beside the image, and names them again."""

    def __init__(self, layer: Callable[[], nn.Module], batch_first: bool) -> None:
        super().__init__(F.cross_entropy, out=T * K)
        self.layer = layer().double()
        self.embedding = nn.Embedding(K, E, dtype=torch.float64)
        self.memory = nn.Linear(K, E, dtype=torch.float64)
        self.scores = nn.Linear(E, K, dtype=torch.float64)
        self.batch_first = batch_first

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        memory = self.memory(self.linear(x.flatten(1)).view(N, T, K))
        tokens = torch.stack([y, (y + 1) % K, (2 * y) % K], 1)
        read = self.embedding(tokens.roll(1, 1)) + memory
        if not self.batch_first:
            read, memory = read.transpose(0, 1), memory.transpose(0, 1)
        read = self.read(read, memory)
        if not self.batch_first:
            read = read.transpose(0, 1)
        return self.loss(self.scores(read).reshape(-1, K), tokens.reshape(-1))

    def read(self, tokens: Tensor, memory: Tensor) -> Tensor:
        if isinstance(self.layer, nn.MultiheadAttention):
            return cast(Tensor, self.layer(tokens, memory, memory)[0])
        if isinstance(self.layer, nn.TransformerDecoderLayer):
            mask = nn.Transformer.generate_square_subsequent_mask(T, dtype=tokens.dtype)
            return cast(Tensor, self.layer(tokens, memory, tgt_mask=mask))
        if isinstance(self.layer, nn.LSTMCell):
            return torch.stack([self.layer(token)[0] for token in tokens.unbind(1)], 1)
        return cast(Tensor, self.layer(tokens)[0])


LAYERS: dict[str, Callable[..., nn.Module]] = {
    "nn.MultiheadAttention": lambda **options: nn.MultiheadAttention(E, 2, dropout=0.1, **options),
    "nn.LSTM": lambda **options: nn.LSTM(E, E, **options),
    "nn.GRU": lambda **options: nn.GRU(E, E, num_layers=2, dropout=0.1, **options),
    "nn.TransformerDecoderLayer": lambda **options: nn.TransformerDecoderLayer(E, 2, 8, **options),
}
DECODERS: dict[str, Callable[[], LightningModule]] = {
    "labels through nn.LSTMCell": lambda: Decoder(lambda: nn.LSTMCell(E, E), batch_first=True),
    **{
        f"labels through {name}, batch_first={first}": partial(
            Decoder, partial(layer, batch_first=first), first
        )
        for name, layer in LAYERS.items()
        for first in (True, False)
    },
}


class Measures(Classifier):
    """Measures its accuracy before it computes the loss."""

    def __init__(self, how: str) -> None:
        super().__init__(F.cross_entropy)
        self.accuracy = torchmetrics.classification.MulticlassAccuracy(K)
        self.confusion = torchmetrics.MetricCollection([torchmetrics.classification.MulticlassF1Score(K)])
        self.how = how

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        z = self.linear(x.flatten(1))
        if self.how == "called":
            self.log("accuracy", self.accuracy(z, y))
            self.log_dict(self.confusion(z, y))
        elif self.how == "updated":
            self.accuracy.update(z, y)
            self.log("accuracy", self.accuracy)
        else:
            accuracy = torchmetrics.functional.accuracy(z, y, task="multiclass", num_classes=K)
            self.log("accuracy", accuracy)
        return self.loss(z, y)


MODULES: dict[str, Callable[[], LightningModule]] = {
    "cross_entropy for logging beside a hand-written loss": lambda: Logs(F.cross_entropy),
    "a loss inside a sub-module, labels=": Wraps,
    "knowledge distillation, its teacher under no_grad": Distils,
    **DECODERS,
    "torchmetrics called before the loss": lambda: Measures("called"),
    "torchmetrics updated before the loss": lambda: Measures("updated"),
    "torchmetrics.functional before the loss": lambda: Measures("function"),
}


@pytest.mark.parametrize(("name", "per_sample"), cells(MODULES))
def test_modules(name: str, per_sample: bool) -> None:
    check(MODULES[name], per_sample)


@pytest.mark.parametrize(("name", "per_sample"), cells(["a compiled loss"]))
def test_a_compiled_loss(name: str, per_sample: bool) -> None:
    def loss(z: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(z - 0.3 * F.one_hot(y, K), y, WEIGHT)

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    check(lambda: Classifier(compiled), per_sample, joint(WEIGHT))


@pytest.mark.parametrize(("name", "per_sample"), cells(["cross_entropy of float32"]))
def test_single_precision(name: str, per_sample: bool) -> None:
    data = [(x.float(), y) for x, y in batches()]
    terms = classes_by_sample if per_sample else classes
    trains(
        lambda: Classifier(F.cross_entropy).float(),
        data,
        MixUp(per_sample=per_sample),
        terms=terms,
        rtol=1e-5,
    )


# --- A criterion that keeps something, or draws ---


class Moving(nn.Module):
    """Weighs losses by their running mean; keeps buffers, a number and a list."""

    mean: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(1.0, dtype=torch.float64))
        self.register_buffer("count", torch.tensor(0.0, dtype=torch.float64))
        self.number = 1.0
        self.recent = [1.0]

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self.number, *self.recent], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        self.number, *self.recent = state.tolist()

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        losses = unreduced(z, y)
        self.mean = 0.9 * self.mean + 0.1 * losses.detach().mean()
        self.count += 1
        self.number = 0.9 * self.number + 0.1 * self.recent[-1]
        self.recent.append(self.number + 0.1)
        scale = self.mean + self.number + self.recent[-1]
        mean: Tensor = (losses * (losses.detach() / scale).tanh()).mean()
        return mean / self.count


class Noisy(nn.Module):
    """Draws, and normalises by running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(K, dtype=torch.float64)
        self.dropout = nn.Dropout(0.5)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.dropout(self.norm(z)), y)


CHANGING: dict[str, Callable[[], nn.Module]] = {"keeps something": Moving, "draws and normalises": Noisy}


class Keeper(Classifier):
    """Trains on a loss that changes, and draws after it."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return loss + 0.1 * F.dropout(self.linear.weight).square().mean()


@pytest.mark.parametrize(
    ("name", "named"),
    [
        pytest.param(
            name,
            named,
            marks=row("Losses", f"criterion= of a loss that {name}" if named else f"a loss that {name}"),
        )
        for name in CHANGING
        for named in (False, True)
    ],
)
def test_a_loss_that_changes_does_so_once(name: str, named: bool) -> None:
    module = trains(lambda: Keeper(CHANGING[name]()), batches(), MixUp(criterion="loss" if named else None))
    if name == "keeps something":
        assert float(module.loss.count) == 3  # type: ignore[union-attr, arg-type]
        assert len(module.loss.recent) == 4  # type: ignore[union-attr, arg-type]


# --- Losses that leave torch's dispatch ---


class Margin(torch.autograd.Function):
    """A margin at the label, written without autograd."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, y: Tensor) -> Tensor:
        return z - 0.3 * hot(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def through_numpy(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, torch.from_numpy((y.numpy() + 1) % K), reduction="none")


def through_python(z: Tensor, y: Tensor) -> Tensor:
    return torch.stack([-log_likelihood(z)[i, label] for i, label in enumerate(y.tolist())])


def through_a_function(z: Tensor, y: Tensor) -> Tensor:
    margin: Tensor = Margin.apply(z, y)
    return F.cross_entropy(margin, y, reduction="none")


def weights_through_python(z: Tensor, y: Tensor) -> Tensor:
    losses = unreduced(z, y)
    return torch.tensor([math.exp(-loss) for loss in losses.tolist()], dtype=z.dtype) * losses


def focal_in_python(z: Tensor, y: Tensor) -> Tensor:
    p = z.softmax(1)
    return torch.stack([-((1 - p[i, y[i]].item()) ** 2) * p[i, y[i]].log() for i in range(len(y))])


def weighed_in_python(z: Tensor, y: Tensor) -> Tensor:
    losses = unreduced(z, y)
    return torch.stack([loss * (1 + losses[i].item()) for i, loss in enumerate(losses)])


LEAVING: dict[str, tuple[Function, str]] = {
    "numpy": (through_numpy, "left torch through numpy"),
    "Python": (through_python, "left torch through tolist"),
    "numbers of unreduced losses": (weights_through_python, "left torch through tolist"),
    "the number of one probability": (focal_in_python, "left torch through item"),
    "the number of one loss": (weighed_in_python, "left torch through item"),
    "a custom autograd function": (through_a_function, "custom autograd function Margin"),
}


class Owner(Classifier):
    """Has a loss in every place, and calls it by one of its names."""

    def __init__(self, loss: Function, name: str) -> None:
        super().__init__(loss)
        self.parts = nn.ModuleDict({"loss": Called(loss)})
        self.criterion = Called(loss)
        self.name = name

    def compute_loss(self, z: Tensor, y: Tensor) -> Any:
        return self.loss(z, y)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        return attrgetter(self.name)(self)(self.linear(x.flatten(1)), y).mean()


class Called(nn.Module):
    """A loss as a module."""

    def __init__(self, loss: Function) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, z: Tensor, y: Tensor) -> Any:
        return self.loss(z, y)


PLACES = {
    "loss": "a function as an attribute",
    "criterion": "a module as an attribute",
    "compute_loss": "a method",
    "parts.loss": "a dotted path",
}


@pytest.mark.parametrize(
    ("name", "place", "per_sample"),
    [
        pytest.param(
            name,
            place,
            per_sample,
            marks=[
                row("Losses", f"criterion= of {PLACES[place]}", per_sample=per_sample),
                row("Losses", f"criterion= of a loss through {name}", per_sample=per_sample),
            ],
        )
        for name in LEAVING
        for place in PLACES
        for per_sample in (False, True)
    ],
)
def test_criterion_names_a_loss(name: str, place: str, per_sample: bool) -> None:
    check(lambda: Owner(LEAVING[name][0], place), per_sample, criterion=place)


def reduced(z: Tensor, y: Tensor) -> Tensor:
    return through_numpy(z, y).mean()


@pytest.mark.parametrize(
    "per_sample",
    [
        pytest.param(False, marks=row("Losses", "criterion= of a loss that reduces")),
        pytest.param(
            True,
            marks=row(
                "Losses", "criterion= of a loss that reduces", per_sample=True, refused="it reduces by itself"
            ),
        ),
    ],
)
def test_a_criterion_that_reduces_has_one_lam(per_sample: bool) -> None:
    if not per_sample:
        check(lambda: Owner(reduced, "loss"), per_sample, criterion="loss")
        return
    with pytest.raises(MixedLossError, match="the criterion reduces over the batch itself"):
        check(lambda: Owner(reduced, "loss"), per_sample, criterion="loss")


@pytest.mark.parametrize(
    ("name", "per_sample"),
    [
        pytest.param(
            name,
            per_sample,
            marks=row(
                "Losses", f"a loss through {name}", per_sample=per_sample, refused="criterion= is needed"
            ),
        )
        for name in LEAVING
        for per_sample in (False, True)
    ],
)
def test_without_criterion_a_loss_that_leaves_dispatch_is_refused(name: str, per_sample: bool) -> None:
    function, where = LEAVING[name]
    with pytest.raises(MixedLossError, match=f"{where}.*criterion="):
        check(lambda: Owner(function, "loss"), per_sample)


class Scripted(nn.Module):
    """A loss to be scripted or traced."""

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return by_gather(z, y)


def by_gather(z: Tensor, y: Tensor) -> Tensor:
    return -torch.log_softmax(z, 1).gather(1, y[:, None]).mean()


SCRIPTED: dict[str, Callable[[], Any]] = {
    "function": lambda: torch.jit.script(by_gather),
    "module": lambda: torch.jit.script(Scripted()),
    "trace": lambda: torch.jit.trace(Scripted(), (torch.rand(N, K), some_classes())),  # type: ignore[no-untyped-call]
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("kind", SCRIPTED)
@pytest.mark.parametrize(
    "per_sample",
    [
        pytest.param(False, marks=row("Losses", "a scripted loss")),
        pytest.param(
            True, marks=row("Losses", "a scripted loss", per_sample=True, refused="it reduces by itself")
        ),
    ],
)
def test_scripted_losses_have_one_lam(kind: str, per_sample: bool) -> None:
    scripted = SCRIPTED[kind]()
    if not per_sample:
        check(lambda: Classifier(lambda z, y: scripted(z, y)), per_sample)
        return
    with pytest.raises(MixedLossError, match="lam per sample cannot.*per_sample=False"):
        check(lambda: Classifier(lambda z, y: scripted(z, y)), per_sample)


# --- Without a Trainer ---


@pytest.mark.parametrize(
    ("kind", "per_sample"),
    [
        pytest.param(kind, per_sample, marks=row("Losses", f"mixed_loss in {kind}", per_sample=per_sample))
        for kind in ("a plain loop", "Fabric")
        for per_sample in (False, True)
    ],
)
def test_mixed_loss(kind: str, per_sample: bool) -> None:
    inner = nn.Linear(3 * 4 * 4, K, dtype=torch.float64)
    fabric = Fabric(accelerator="cpu", devices=1)
    model, optimizer = inner, torch.optim.SGD(inner.parameters(), lr=0.5)
    if kind == "Fabric":
        model, optimizer = fabric.setup(inner, optimizer)
    for i, (x, y) in enumerate(batches()):
        mix = cutmix(x, per_sample=per_sample, generator=torch.Generator().manual_seed(i))
        optimizer.zero_grad()
        z = model(mix.inputs.flatten(1))
        loss = mixed_loss(F.cross_entropy, z, y, mix)
        wanted = (mix.lam * unreduced(z, y) + (1 - mix.lam) * unreduced(z, y[mix.partner])).mean()
        gradient = torch.autograd.grad(wanted, inner.weight, retain_graph=True)[0]
        if kind == "Fabric":
            fabric.backward(loss)
        else:
            loss.backward()  # type: ignore[no-untyped-call]
        torch.testing.assert_close(loss, wanted, rtol=1e-10, atol=0)
        torch.testing.assert_close(inner.weight.grad, gradient, rtol=1e-10, atol=1e-14)
        optimizer.step()


# --- Ways on which torch does not ask the labels: the formula, or a sentence ---


def masked_by_a_function(z: Tensor, y: Tensor) -> Tensor:
    class Masked(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, z: Tensor) -> Tensor:
            return z.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            return gradients[0] * (1 - hot(y))

    return F.cross_entropy(Masked.apply(z), y)


def masked_by_a_hook(z: Tensor, y: Tensor) -> Tensor:
    z.register_hook(lambda gradient: gradient * (1 - hot(y)))  # type: ignore[no-untyped-call]
    return F.cross_entropy(z, y)


def sparse(z: Tensor, y: Tensor) -> Tensor:
    places, ones = torch.stack([torch.arange(N), y]), torch.ones(N).double()
    hot = torch.sparse_coo_tensor(places, ones, (N, K), check_invariants=True).to_dense()
    return -(hot * z).sum() / N


def of_scales(z: Tensor, y: Tensor) -> Tensor:
    losses: Tensor = torch.vmap(lambda scale: F.cross_entropy(scale * z, y))(torch.ones(2).double())
    return losses.mean()


UNASKED: dict[str, Function] = {
    "as_tensor of another dtype": lambda z, y: (z[:, 0] - torch.as_tensor(y, dtype=z.dtype)).square().mean(),
    "copy.copy": lambda z, y: F.cross_entropy(z, copy.copy(y)),
    "copy.deepcopy": lambda z, y: F.cross_entropy(z, copy.deepcopy(y)),
    "select(1, y[0])": lambda z, y: z.select(1, y[0]).mean(),
    "arange(y[0])": lambda z, y: z.mean() * torch.arange(y[0] + 2).sum(),
    "ones(y[0])": lambda z, y: z.mean() * torch.ones(y[0] + 1).sum(),
    "scalar_tensor": lambda z, y: z.mean() * torch.scalar_tensor(y[0]),
}
OUT_OF_REACH: dict[str, Function] = {
    "sparse_coo_tensor": sparse,
    "vmap around the labels": of_scales,
    "a hook on a gradient": masked_by_a_hook,
    "the backward of a custom autograd function": masked_by_a_function,
}


def beside_cross_entropy(function: Function) -> Callable[[], LightningModule]:
    return lambda: Classifier(lambda z, y: F.cross_entropy(z, y) + function(z, y))


@pytest.mark.parametrize(("name", "per_sample"), cells(UNASKED, "labels in "))
def test_what_torch_does_not_ask_the_labels_is_mixed(name: str, per_sample: bool) -> None:
    check(beside_cross_entropy(UNASKED[name]), per_sample)


@pytest.mark.parametrize(
    ("name", "per_sample"), cells(OUT_OF_REACH, "labels in ", refused="one world only lives there")
)
def test_where_labels_can_live_in_one_world_only_they_are_refused(name: str, per_sample: bool) -> None:
    with pytest.raises(
        MixedLossError, match=r"sparse_coo.*F\.one_hot|inside of torch.func|during the backward"
    ):
        check(beside_cross_entropy(OUT_OF_REACH[name]), per_sample)
