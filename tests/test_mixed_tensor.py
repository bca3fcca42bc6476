"""Labels in several worlds: every loss is the mixture's, every metric sees the own labels."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lightning_msda import MixedLossError, MixedTensor, ledger
from lightning_msda.boundaries import watched
from lightning_msda.mixed_tensor import in_every_world, release, settle
from tests.losses import CASES, WEIGHT, K, N, logits, losses_of, mixtures_loss

OWN = torch.randint(0, K, (N,), generator=torch.Generator().manual_seed(2))
# Not a permutation of the own labels: sums over the batch differ between the worlds.
PARTNER = torch.randint(0, K, (N,), generator=torch.Generator().manual_seed(5))
assert int((OWN == 0).sum()) != int((PARTNER == 0).sum())
LAM = torch.rand(N, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


@pytest.fixture(autouse=True)
def _released() -> Iterator[None]:
    yield
    release()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(N, 8, dtype=torch.float64).requires_grad_()


def batchwide(lam: float = 0.3, own: Tensor = OWN, partner: Tensor = PARTNER) -> MixedTensor:
    weights = torch.tensor([lam, 1 - lam], dtype=torch.float64)
    return MixedTensor((own.clone(), partner.clone()), weights)


def by_sample(own: Tensor = OWN, partner: Tensor = PARTNER) -> MixedTensor:
    return MixedTensor((own.clone(), partner.clone()), torch.stack([LAM, 1 - LAM], 1))


def assert_same(loss: Tensor, wanted: Tensor, x: Tensor) -> None:
    """Compare two losses and their gradients with respect to the features."""
    torch.testing.assert_close(loss, wanted, rtol=1e-10, atol=0)
    gradients = [torch.autograd.grad(value, x, retain_graph=True)[0] for value in (loss, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_with_one_lam_a_loss_is_the_two_term_formula(name: str, x: Tensor) -> None:
    wanted = mixtures_loss(CASES[name], x, OWN, PARTNER, 0.3)
    assert_same(settle(CASES[name].loss(x, batchwide())), wanted, x)


@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if case.by_sample in ("mean", "joint")]
)
def test_with_lam_by_sample_each_samples_loss_has_its_own(name: str, x: Tensor) -> None:
    wanted = mixtures_loss(CASES[name], x, OWN, PARTNER, LAM)
    assert_same(settle(CASES[name].loss(x, by_sample())), wanted, x)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.by_sample == "refused"])
def test_with_lam_by_sample_a_loss_without_samples_is_refused(name: str, x: Tensor) -> None:
    with pytest.raises(MixedLossError, match="per_sample=False|different samples"):
        settle(CASES[name].loss(x, by_sample()))


def test_with_lam_by_sample_dice_has_soft_labels(x: Tensor) -> None:
    soft = LAM[:, None] * F.one_hot(OWN, K) + (1 - LAM[:, None]) * F.one_hot(PARTNER, K)
    p = F.softmax(logits(x), 1)
    wanted = 1 - (2 * (p * soft).sum(0) / (p.sum(0) + soft.sum(0))).mean()
    assert_same(settle(CASES["Dice"].loss(x, by_sample())), wanted, x)


def test_with_lam_by_sample_a_function_of_the_mean_is_that_of_the_mixtures_mean(x: Tensor) -> None:
    wanted = (LAM * losses_of(x, OWN) + (1 - LAM) * losses_of(x, PARTNER)).mean().sqrt()
    assert_same(settle(CASES["sqrt of the mean"].loss(x, by_sample())), wanted, x)


LOSS_ARGUMENTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "weight": {"weight": WEIGHT},
    "ignore_index": {"ignore_index": 2},
    "smoothing": {"label_smoothing": 0.2},
    "all": {"weight": WEIGHT, "ignore_index": 2, "label_smoothing": 0.2},
}


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)], ids=["(N, C)", "(N, C, T)", "(N, C, H, W)"])
@pytest.mark.parametrize("arguments", LOSS_ARGUMENTS)
@pytest.mark.parametrize("lam", ["batch", "sample"])
def test_cross_entropy_has_every_argument_and_reduction(
    lam: str, arguments: str, shape: tuple[int, ...], reduction: str
) -> None:
    scores = torch.randn(N, K, *shape, dtype=torch.float64).requires_grad_()
    own, partner = torch.randint(0, K, (2, N, *shape)).unbind()
    options = LOSS_ARGUMENTS[arguments]
    y = batchwide(own=own, partner=partner) if lam == "batch" else by_sample(own, partner)
    got = F.cross_entropy(scores, y, reduction=reduction, **options)
    share = torch.full((N,), 0.3, dtype=torch.float64) if lam == "batch" else LAM
    share = share.view(-1, *[1] * len(shape))
    weight = options.get("weight", torch.ones(K, dtype=torch.float64)).clone()
    weight[options.get("ignore_index", [])] = 0
    losses = [F.cross_entropy(scores, labels, reduction="none", **options) for labels in (own, partner)]
    counts = [weight[labels] for labels in (own, partner)]
    wanted = share * losses[0] + (1 - share) * losses[1]
    if reduction == "sum":
        wanted = wanted.sum()
    elif reduction == "mean" and lam == "batch":  # the papers' formula, each mean by itself
        wanted = 0.3 * losses[0].sum() / counts[0].sum() + 0.7 * losses[1].sum() / counts[1].sum()
    elif reduction == "mean":
        wanted = wanted.sum() / (share * counts[0] + (1 - share) * counts[1]).sum()
    elif lam == "sample":
        got, wanted = got.sum(), wanted.sum()
    assert_same(settle(got).sum(), wanted.sum(), scores)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("lam", ["batch", "sample"])
def test_bce_of_integer_labels_has_weights_and_reductions(lam: str, reduction: str) -> None:
    scores = torch.randn(N, K, dtype=torch.float64).requires_grad_()
    own, partner = torch.randint(0, 2, (2, N, K)).unbind()
    y = batchwide(own=own, partner=partner) if lam == "batch" else by_sample(own, partner)
    options: dict[str, Any] = {"weight": WEIGHT, "pos_weight": WEIGHT.flip(0)}
    got = F.binary_cross_entropy_with_logits(scores, y.double(), reduction=reduction, **options)
    share = (torch.full((N,), 0.3, dtype=torch.float64) if lam == "batch" else LAM)[:, None]
    soft = share * own + (1 - share) * partner  # it is linear in the target
    assert_same(
        settle(got), F.binary_cross_entropy_with_logits(scores, soft, reduction=reduction, **options), scores
    )


def test_positional_arguments_and_the_old_names_of_reductions_are_understood(x: Tensor) -> None:
    wanted = (LAM * losses_of(x, OWN) + (1 - LAM) * losses_of(x, PARTNER)).sum()
    with pytest.warns(UserWarning, match="size_average"):
        loss = F.cross_entropy(logits(x), by_sample(), None, False)
    assert_same(settle(loss), wanted, x)


def test_labels_flattened_from_tokens_keep_their_samples() -> None:
    scores = torch.randn(N, 3, K, dtype=torch.float64).requires_grad_()
    own, partner = torch.randint(0, K, (2, N, 3)).unbind()
    own[0, 0] = partner[1] = -100
    loss = settle(F.cross_entropy(scores.view(-1, K), by_sample(own, partner).view(-1)))
    total, count = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for i in range(N):
        for labels, share in ((own, LAM[i]), (partner, 1 - LAM[i])):
            total = total + share * F.cross_entropy(scores[i], labels[i], reduction="sum")
            count = count + share * (labels[i] != -100).sum()
    assert_same(loss, total / count, scores)


def test_a_scripted_function_is_called_in_every_world(x: Tensor) -> None:
    with pytest.warns(FutureWarning, match="script"):
        scripted: Any = torch.jit.script(_scripted)
    wanted = 0.3 * _scripted(logits(x), OWN) + 0.7 * _scripted(logits(x), PARTNER)
    with watched():
        loss = scripted(logits(x), batchwide())
    assert_same(settle(loss), wanted, x)


def _scripted(scores: Tensor, y: Tensor) -> Tensor:
    return -torch.log_softmax(scores, 1).gather(1, y[:, None]).mean()


def test_more_than_two_sources_have_a_world_each(x: Tensor) -> None:
    labels = [torch.randint(0, K, (N,)) for _ in range(3)]
    weights = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    for name, case in CASES.items():
        y = MixedTensor(tuple(label.clone() for label in labels), weights)
        wanted = sum(w * case.loss(x, label.clone()) for w, label in zip(weights, labels, strict=True))
        assert isinstance(wanted, Tensor), name
        assert_same(settle(case.loss(x, y)), wanted, x)
        release()


def test_a_world_may_hold_a_learned_soft_label(x: Tensor) -> None:
    head = torch.randn(8, K, dtype=torch.float64)
    soft = (x @ head).softmax(1)
    y = MixedTensor((OWN.clone(), PARTNER.clone(), soft), torch.tensor([0.4, 0.1, 0.5], dtype=torch.float64))
    mixed = 0.4 * F.one_hot(OWN, K).double() + 0.1 * F.one_hot(PARTNER, K).double() + 0.5 * soft
    assert_same(settle(F.cross_entropy(logits(x), y)), F.cross_entropy(logits(x), mixed), x)
    with pytest.raises(MixedLossError, match="ran on the own labels, but not on their partners'"):
        settle(CASES["gather"].loss(x, y))


def test_a_world_of_weight_0_is_left_out_whatever_its_loss_is() -> None:
    p = torch.tensor([0.0, 1.0], dtype=torch.float64).requires_grad_()
    for own, partner, lam in ((1, 0, 1.0), (0, 1, 0.0)):
        y = batchwide(lam, torch.tensor([own]), torch.tensor([partner]))
        assert settle(-p.log()[y].mean()).item() == 0.0


LABEL_METRICS = {
    "accuracy": torchmetrics.classification.MulticlassAccuracy(K),
    "micro accuracy": torchmetrics.classification.MulticlassAccuracy(K, average="micro"),
    "top 2": torchmetrics.classification.MulticlassAccuracy(K, top_k=2),
    "f1": torchmetrics.classification.MulticlassF1Score(K),
    "precision": torchmetrics.classification.MulticlassPrecision(K, average="weighted"),
    "confusion": torchmetrics.classification.MulticlassConfusionMatrix(K),
    "auroc": torchmetrics.classification.MulticlassAUROC(K),
    "auroc, binned": torchmetrics.classification.MulticlassAUROC(K, thresholds=5),
    "calibration": torchmetrics.classification.MulticlassCalibrationError(K),
    "cohen": torchmetrics.classification.MulticlassCohenKappa(K),
    "collection": torchmetrics.MetricCollection(
        [torchmetrics.classification.MulticlassRecall(K), torchmetrics.classification.MulticlassF1Score(K)]
    ),
}


@pytest.mark.parametrize("name", LABEL_METRICS)
@pytest.mark.parametrize("make", [batchwide, by_sample], ids=["batch", "sample"])
def test_metrics_see_own_labels_and_keep_plain_states(
    name: str, make: Callable[[], MixedTensor], x: Tensor
) -> None:
    mixed: Any = copy.deepcopy(LABEL_METRICS[name])
    plain: Any = copy.deepcopy(LABEL_METRICS[name])
    for _ in range(2):
        scores = logits(x) + torch.randn(N, K)
        seen, wanted = mixed(scores, make()), plain(scores, OWN)
        torch.testing.assert_close(_plain(seen), wanted)
        release()
    torch.testing.assert_close(mixed.compute(), plain.compute())
    metrics = mixed.values() if isinstance(mixed, torchmetrics.MetricCollection) else [mixed]
    for metric in metrics:
        for state in metric.metric_state.values():
            assert all(type(part) is Tensor for part in (state if isinstance(state, list) else [state]))


def _plain(value: Any) -> Any:
    """Return metrics' values as a logger stores them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return torch.tensor(value.tolist(), dtype=value.dtype)


def test_it_is_the_own_labels_to_everyone() -> None:
    y = batchwide()
    assert repr(y) == repr(OWN)
    assert y.shape == OWN.shape and y.dtype == OWN.dtype and len(y) == N
    assert y.tolist() == OWN.tolist() and int(y[3]) == int(OWN[3])
    assert [int(label) for label in y] == OWN.tolist()
    assert f"{y[0]:d}" == f"{int(OWN[0])}"
    assert bool((y == OWN).all()) and (y.numpy() == OWN.numpy()).all()
    assert torch.equal(pickle.loads(pickle.dumps(y)), OWN)
    assert torch.equal(copy.deepcopy(y).own, OWN)


def test_a_loss_is_logged_as_the_mixtures(x: Tensor) -> None:
    loss = F.cross_entropy(logits(x), batchwide())
    own, partner = (F.cross_entropy(logits(x), y).item() for y in (OWN, PARTNER))
    wanted = 0.3 * own + 0.7 * partner
    with torch.no_grad():
        running = 0.5 * loss
    leavings = [
        loss.item(),
        loss.tolist(),
        float(loss.detach()),
        loss.detach().item(),
        float(f"{loss:.12f}"),
        loss.data.item(),
        2 * running.item(),
    ]
    assert leavings == pytest.approx([wanted] * len(leavings), rel=1e-10)


def test_backward_and_autograd_grad_take_the_mixtures_loss(x: Tensor) -> None:
    def loss() -> Tensor:
        return F.cross_entropy(logits(x), batchwide()).sqrt()

    (wanted,) = torch.autograd.grad(settle(loss()), x)
    torch.testing.assert_close(torch.autograd.grad(loss(), x)[0], wanted)
    loss().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(x.grad, wanted)
    x.grad = None
    torch.autograd.backward(loss())
    torch.testing.assert_close(x.grad, wanted)


def test_labels_may_go_through_a_checkpoint(x: Tensor) -> None:
    def loss(scores: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(scores - 0.3 * F.one_hot(y, K), y)

    wanted = 0.3 * loss(logits(x), OWN) + 0.7 * loss(logits(x), PARTNER)
    recomputed = checkpoint(loss, logits(x), batchwide(), use_reentrant=False)
    assert_same(settle(recomputed), wanted, x)


def test_what_is_kept_of_mixed_labels_is_plain_after_release(x: Tensor) -> None:
    y, total = batchwide(), torch.zeros(K, dtype=torch.int64)
    kept = [y, y.view(4, 4), F.one_hot(y, K), F.cross_entropy(logits(x), y).detach()]
    total += F.one_hot(y, K).sum(0)
    parameter = torch.nn.Parameter(torch.zeros(N, dtype=torch.float64))
    with torch.no_grad():
        parameter.copy_(y)
    release()
    assert all(type(tensor) is Tensor and not vars(tensor) for tensor in [*kept, total])
    assert type(parameter) is torch.nn.Parameter
    assert torch.equal(kept[0], OWN) and torch.equal(parameter.detach(), OWN.double())
    assert torch.equal(total, torch.bincount(OWN, minlength=K))
    assert not ledger.living()


class Margin(torch.autograd.Function):
    """A margin on the labels' logits, written without autograd."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, y: Tensor) -> Tensor:
        return scores - 0.3 * F.one_hot(y, K).to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class Mirror(torch.autograd.Function):
    """Flips labels, written without autograd."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return y.flip(0)


def numpy_margin(scores: Tensor, y: Tensor) -> Tensor:
    hot = torch.from_numpy((y.numpy()[:, None] == torch.arange(K).numpy()) * 0.3)
    return F.cross_entropy(scores - hot, y)


def counted_in_python(scores: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(scores, y, reduction="sum") / (y != 0).sum().item()


def indexed_by_python(scores: Tensor, y: Tensor) -> Tensor:
    first = scores.log_softmax(1)[0, int(y[0])]
    return F.cross_entropy(scores, y) - first


def counted_by_shape(scores: Tensor, y: Tensor) -> Tensor:
    kept = y != 0
    return F.cross_entropy(scores[kept], y[kept], reduction="sum") / len(y[kept])


def branched(scores: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(scores, y) * (2.0 if y[0] == OWN[0] else 1.0)


def in_inference(scores: Tensor, y: Tensor) -> Tensor:
    with torch.inference_mode():
        weight = y.double().mean().item()
    return F.cross_entropy(scores, y) * weight


def metric_learning(scores: Tensor, y: Tensor) -> Tensor:
    loss = scores.new_zeros(())
    for i, alike in enumerate((y[:, None] == y[None]) & ~torch.eye(N, dtype=torch.bool)):
        loss = loss + (
            (scores[i] - scores[alike]).square().mean() if alike.sum() > 3 else scores[i].square().sum()
        )
    return loss


def counted_where_known(scores: Tensor, y: Tensor) -> Tensor:
    counted = (scores.detach()[:, 0] > 0) & (y > 0)
    losses = F.cross_entropy(scores, y, reduction="none")
    return (losses * counted).sum() / max(1, counted.sum().item())


def weighed_by_accuracy(scores: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(scores, y) * (1 - (scores.argmax(1) == y).double().mean().item())


def read_by_an_earlier_view(scores: Tensor, y: Tensor) -> Tensor:
    hot = torch.zeros(N, K, dtype=scores.dtype)
    flat = hot.view(-1)
    hot.scatter_(1, y[:, None], 1)
    return F.cross_entropy(scores, y) - (flat * scores.view(-1)).mean()


def read_through_data(scores: Tensor, y: Tensor) -> Tensor:
    hot = torch.zeros(N, K, dtype=scores.dtype)
    hot.data[torch.arange(N), y] = 1
    return F.cross_entropy(scores, y) - (hot * scores).mean()


def read_by_an_array(scores: Tensor, y: Tensor) -> Tensor:
    array = torch.zeros(N, K, dtype=scores.dtype).numpy()
    torch.from_numpy(array).scatter_(1, y[:, None], 1)
    return F.cross_entropy(scores, y) - (torch.from_numpy(array.copy()) * scores).mean()


def filled_by_lost_labels(scores: Tensor, y: Tensor) -> Tensor:
    hot = torch.zeros(N, K, dtype=scores.dtype)
    for i, label in enumerate(Mirror.apply(y)):
        hot[i, label].fill_(1)
    return F.cross_entropy(scores, y) - (hot * scores).mean()


LEAVING = {
    "lost labels that fill a table": (filled_by_lost_labels, "Mirror"),
    "an earlier view": (read_by_an_earlier_view, "shares"),
    "the data": (read_through_data, "shares"),
    "an array": (read_by_an_array, "shares"),
    "pairs of a class": (metric_learning, "__bool__"),
    "a number of samples": (counted_where_known, "item"),
    "an accuracy": (weighed_by_accuracy, "item"),
    "a number in inference": (in_inference, "item"),
    "numpy": (numpy_margin, "numpy"),
    "a number": (counted_in_python, "item"),
    "an index": (indexed_by_python, "__int__"),
    "a length": (counted_by_shape, "__len__"),
    "a branch": (branched, "__bool__"),
    "a custom function": (lambda s, y: F.cross_entropy(Margin.apply(s, y), y), "Margin"),
    "a list": (lambda s, y: F.cross_entropy(s[: max(y.tolist())], y[: max(y.tolist())]), "tolist"),
}


@pytest.mark.parametrize("name", LEAVING)
@pytest.mark.parametrize("make", [batchwide, by_sample], ids=["batch", "sample"])
def test_a_loss_with_labels_that_left_torch_is_refused(
    name: str, make: Callable[[], MixedTensor], x: Tensor
) -> None:
    loss, where = LEAVING[name]
    with watched(), pytest.raises(MixedLossError, match=f"{where}.*criterion=|per_sample=False"):
        settle(loss(logits(x), make()))


UNASKED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "tensor": lambda s, y: F.cross_entropy(s, torch.tensor(y)),
    "asarray": lambda s, y: F.cross_entropy(s, torch.asarray(y, copy=True)),
    "vmap": lambda s, y: torch.vmap(lambda one, label: -one.log_softmax(0)[label])(s, y).mean(),
    "full": lambda s, y: (s[0] - torch.full((K,), y[0])).square().mean(),  # type: ignore[call-overload]
    "full_like": lambda s, y: (s[0] - torch.full_like(s[0], y[0])).square().mean(),  # type: ignore[arg-type]
    "new_full": lambda s, y: (s[0] - s.new_full((K,), y[0])).square().mean(),  # type: ignore[arg-type]
    "new_tensor": lambda s, y: F.cross_entropy(s, s.new_tensor(y).long()),
    "keywords": lambda s, y: -torch.gather(input=s.log_softmax(1), dim=1, index=y[:, None]).mean(),
}


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning")
@pytest.mark.parametrize("name", UNASKED)
def test_where_torch_does_not_ask_labels_a_loss_is_mixed_as_well(name: str, x: Tensor) -> None:
    loss = UNASKED[name]
    wanted = 0.3 * loss(logits(x), OWN) + 0.7 * loss(logits(x), PARTNER)
    with watched():
        assert_same(
            settle(F.cross_entropy(logits(x), batchwide()) * 0 + loss(logits(x), batchwide())), wanted, x
        )


def test_a_loss_may_be_read_before_another_is_made(x: Tensor) -> None:
    y = batchwide()
    loss = F.cross_entropy(logits(x), y)
    assert loss.detach().item() > 0
    own, partner = (
        F.cross_entropy(logits(x), labels) + F.cross_entropy(2 * logits(x), labels)
        for labels in (OWN, PARTNER)
    )
    assert_same(settle(loss + F.cross_entropy(2 * logits(x), y)), 0.3 * own + 0.7 * partner, x)


def test_a_metric_is_computed_once_and_is_no_part_of_a_loss(x: Tensor) -> None:
    metric: Any = torchmetrics.AUROC(task="multiclass", num_classes=K)
    with watched():
        loss = F.cross_entropy(logits(x), batchwide())
        value = metric(logits(x).softmax(1), batchwide())
        torch.testing.assert_close(_plain(value), metric(logits(x).softmax(1), OWN))
        assert all(type(part) is Tensor for part in metric.target)
        settle(loss)
        with pytest.raises(MixedLossError, match="MulticlassAUROC sees own labels only"):
            settle(loss * (1 - value))


def test_what_leaves_after_the_loss_was_made_is_no_part_of_it(x: Tensor) -> None:
    y = batchwide()
    loss = F.cross_entropy(logits(x), y)
    assert y.numpy().sum() == int(OWN.sum())
    wanted = 0.3 * F.cross_entropy(logits(x), OWN) + 0.7 * F.cross_entropy(logits(x), PARTNER)
    assert_same(settle(loss), wanted, x)


def test_what_reads_the_same_for_partners_may_leave_before_the_loss(x: Tensor) -> None:
    y = batchwide(partner=OWN.flip(0))
    share = (y == 0).double().mean().item()  # of a permutation it is the same
    assert int(y.max()) < K and len(torch.unique(y)) == len(torch.unique(OWN))
    loss = F.cross_entropy(logits(x), y) * share
    wanted = 0.3 * F.cross_entropy(logits(x), OWN) + 0.7 * F.cross_entropy(logits(x), OWN.flip(0))
    assert_same(settle(loss), wanted * (OWN == 0).double().mean(), x)


def test_an_accuracy_may_be_read_after_the_loss_but_not_before(x: Tensor) -> None:
    y = batchwide()
    loss = F.cross_entropy(logits(x), y)
    accuracy = (logits(x).argmax(1) == y).double().mean().item()
    assert accuracy == (logits(x).argmax(1) == OWN).double().mean().item()
    settle(loss)
    with pytest.raises(MixedLossError, match="left torch through item.*after the loss"):
        settle(F.cross_entropy(logits(x), y) * (1 - accuracy))


def test_labels_of_two_mixes_do_not_meet(x: Tensor) -> None:
    with pytest.raises(MixedLossError, match="two mixes"):
        settle((losses_of(x, batchwide(0.3)) * losses_of(x, batchwide(0.6))).mean())


def test_a_lam_by_sample_needs_a_reduction(x: Tensor) -> None:
    with pytest.raises(MixedLossError, match="never reduced|not reduced"):
        settle(losses_of(x, by_sample()))


def test_moved_rows_take_their_lam_along(x: Tensor) -> None:
    order = torch.randperm(N)
    shares = torch.stack([LAM * losses_of(x, OWN), (1 - LAM) * losses_of(x, PARTNER)]).sum(0)
    moves: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
        "permuted": (lambda y: losses_of(x[order], y[order]).mean(), shares.mean()),
        "sliced": (lambda y: F.cross_entropy(logits(x[3:9]), y[3:9]), shares[3:9].mean()),
        "masked": (lambda y: losses_of(x, y)[order < 8].mean(), shares[order < 8].mean()),
        "split": (_in_parts(x), shares.sum()),
        "doubled": (lambda y: F.cross_entropy(logits(torch.cat([x, 2 * x])), torch.cat([y, y])), _doubled(x)),
        "one": (lambda y: F.cross_entropy(logits(x[4:5]), y[4].view(1)), shares[4]),
        "scattered": (
            lambda y: torch.zeros(N, K).double().scatter(1, y[:, None], losses_of(x, y)[:, None])[::2].sum(),
            shares[::2].sum(),
        ),
        "flipped": (
            lambda y: (losses_of(x, y).flip(0) * torch.arange(N)).mean(),
            (shares.flip(0) * torch.arange(N)).mean(),
        ),
        "rolled": (
            lambda y: (losses_of(x, y).roll(1) * torch.arange(N)).mean(),
            (shares.roll(1) * torch.arange(N)).mean(),
        ),
        "transposed": (
            lambda y: losses_of(x, y).view(4, 4).t().reshape(-1)[:8].mean(),
            shares.view(4, 4).t().reshape(-1)[:8].mean(),
        ),
        "heads": (lambda y: F.cross_entropy(logits(x), torch.stack([y, y], 1)[:, 1]), shares.mean()),
    }
    for name, (loss, wanted) in moves.items():
        assert_same(settle(loss(by_sample())), wanted, x)
        release()
        assert name


def _in_parts(x: Tensor) -> Callable[[Tensor], Tensor]:
    def loss(y: Tensor) -> Tensor:
        parts = zip(torch.split(x, 5), torch.split(y, 5), strict=True)
        return torch.stack([losses_of(features, labels).sum() for features, labels in parts]).sum()

    return loss


def _doubled(x: Tensor) -> Tensor:
    losses = [LAM * losses_of(s * x, OWN) + (1 - LAM) * losses_of(s * x, PARTNER) for s in (1, 2)]
    return torch.cat(losses).mean()


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, y: losses_of(x, y).sort().values[:4].mean(),
        lambda x, y: (losses_of(x, y) @ torch.rand(N, N, dtype=torch.float64)).mean(),
        lambda x, y: losses_of(x, y).cumsum(0).mean(),
        lambda x, y: torch.zeros(K, dtype=torch.float64).index_add(0, y, losses_of(x, y)).mean(),
    ],
)
def test_a_lam_that_cannot_be_followed_is_refused_rather_than_guessed(
    loss: Callable[[Tensor, Tensor], Tensor], x: Tensor
) -> None:
    with pytest.raises(MixedLossError, match="cannot be followed|ran on the own labels"):
        settle(loss(x, by_sample()))


@pytest.mark.parametrize("by_row", [True, False])
def test_a_loss_that_leaves_torch_is_called_once_for_each_source(by_row: bool, x: Tensor) -> None:
    def loss(scores: Tensor, y: Tensor) -> Tensor:
        assert type(y) is Tensor
        return F.cross_entropy(
            scores, torch.from_numpy(y.numpy() % K), reduction="none" if by_row else "mean"
        )

    called = in_every_world(loss, "the criterion", by_row=True)
    wanted = 0.3 * loss(logits(x), OWN).mean() + 0.7 * loss(logits(x), PARTNER).mean()
    assert_same(settle(called(logits(x), batchwide()).mean()), wanted, x)
    assert_same(called(logits(x), OWN).mean(), loss(logits(x), OWN).mean(), x)
    if by_row:
        wanted = (LAM * loss(logits(x), OWN) + (1 - LAM) * loss(logits(x), PARTNER)).mean()
        assert_same(settle(called(logits(x), by_sample()).mean()), wanted, x)
    else:
        with pytest.raises(MixedLossError, match="the criterion reduces over the batch itself"):
            settle(called(logits(x), by_sample()))


def test_calls_are_torchs_own_again_after_they_were_watched() -> None:
    def calls() -> list[Any]:
        return [
            torch.autograd.Function.apply,
            vars(torch._C.ScriptFunction)["__call__"],
            torch.distributed.all_gather,
        ]

    before = calls()
    with pytest.raises(ZeroDivisionError), watched():
        assert all(a != b for a, b in zip(calls(), before, strict=True))
        raise ZeroDivisionError
    assert calls() == before
