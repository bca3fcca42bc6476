"""Accuracy against the mixture, held against a loop over the samples."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import override

from lightning_msda import CutMix, MixedTensor, Mixture, MixUp, RandomMix
from lightning_msda.callback import MSDA
from lightning_msda.metrics import MixedAccuracy
from lightning_msda.targets import mix_target
from tests.tools import Classifier, pairs, train
from tests.tools import released as released

N, K = 40, 6
LOGITS = torch.randn(N, K, generator=torch.Generator().manual_seed(1))
CLASSES = torch.randint(0, K, (N,), generator=torch.Generator().manual_seed(2))
LAMS = torch.rand(N, generator=torch.Generator().manual_seed(3)).tolist()


def shares(lam: float | Sequence[float]) -> list[float]:
    return [lam] * N if isinstance(lam, float) else list(lam)


def hit(scores: Tensor, label: Tensor, top_k: int) -> bool:
    """Tell whether fewer than ``top_k`` classes have a larger score than the label's."""
    return int((scores > scores[label]).sum()) < top_k


def by_loop(logits: Tensor, own: Tensor, partner: Tensor, lams: Sequence[float], top_k: int = 1) -> float:
    total = 0.0
    for i, lam in enumerate(lams):
        total += lam * hit(logits[i], own[i], top_k) + (1 - lam) * hit(logits[i], partner[i], top_k)
    return total / len(lams)


def mixed(lam: float | Sequence[float], labels: Tensor = CLASSES) -> Tensor:
    return mix_target(labels, pairs(lam, torch.rand(len(labels), 2), torch.float32))


@pytest.mark.parametrize("top_k", [1, 2, K])
@pytest.mark.parametrize("lam", [0.3, 1.0, 0.0, LAMS], ids=["0.3", "1", "0", "by sample"])
def test_each_source_counts_by_its_weight(lam: float | Sequence[float], top_k: int) -> None:
    metric = MixedAccuracy(top_k)
    metric.update(LOGITS, mixed(lam))
    wanted = by_loop(LOGITS, CLASSES, CLASSES.roll(-1), shares(lam), top_k)
    torch.testing.assert_close(metric.compute(), torch.tensor(wanted))


@pytest.mark.parametrize("top_k", [1, 3])
def test_on_plain_labels_it_is_the_plain_accuracy(top_k: int) -> None:
    wanted = MulticlassAccuracy(K, average="micro", top_k=top_k)(LOGITS, CLASSES)
    torch.testing.assert_close(MixedAccuracy(top_k)(LOGITS, CLASSES), wanted)


def test_predictions_may_be_classes_or_probabilities() -> None:
    wanted = MixedAccuracy()(LOGITS, mixed(0.3))
    assert MixedAccuracy()(LOGITS.argmax(1), mixed(0.3)) == wanted
    assert MixedAccuracy()(LOGITS.softmax(1), mixed(0.3)) == wanted


def test_three_sources_count_by_their_weights() -> None:
    weights = torch.tensor([[0.5, 0.3, 0.2]]).expand(N, 3)
    partners = torch.stack([torch.arange(N).roll(-1), torch.arange(N).roll(-2)], 1)
    metric = MixedAccuracy()
    metric.update(LOGITS, mix_target(CLASSES, Mixture(torch.rand(N, 2), partners, weights)))
    wanted = 0.0
    for share, labels in zip((0.5, 0.3, 0.2), (CLASSES, CLASSES.roll(-1), CLASSES.roll(-2)), strict=True):
        wanted += share * sum(hit(LOGITS[i], labels[i], 1) for i in range(N)) / N
    torch.testing.assert_close(metric.compute(), torch.tensor(wanted))


def test_two_updates_are_one_of_both_batches() -> None:
    metric = MixedAccuracy()
    metric.update(LOGITS[:30], mixed(LAMS[:30], CLASSES[:30]))
    metric.update(LOGITS[30:], mixed(0.25, CLASSES[30:]))
    first = by_loop(LOGITS[:30], CLASSES[:30], CLASSES[:30].roll(-1), LAMS[:30])
    second = by_loop(LOGITS[30:], CLASSES[30:], CLASSES[30:].roll(-1), [0.25] * 10)
    torch.testing.assert_close(metric.compute(), torch.tensor((30 * first + 10 * second) / 40))


def test_forward_returns_the_batchs_value_and_keeps_the_sum() -> None:
    metric = MixedAccuracy()
    first = metric(LOGITS[:30], mixed(0.3, CLASSES[:30]))
    second = metric(LOGITS[30:], mixed(0.9, CLASSES[30:]))
    wanted = [
        by_loop(LOGITS[:30], CLASSES[:30], CLASSES[:30].roll(-1), [0.3] * 30),
        by_loop(LOGITS[30:], CLASSES[30:], CLASSES[30:].roll(-1), [0.9] * 10),
    ]
    torch.testing.assert_close(torch.stack([first, second]), torch.tensor(wanted))
    torch.testing.assert_close(metric.compute(), torch.tensor((30 * wanted[0] + 10 * wanted[1]) / 40))


def test_reset_forgets_all() -> None:
    metric = MixedAccuracy()
    metric.update(LOGITS, mixed(0.3))
    metric.reset()
    metric.update(LOGITS[:1], LOGITS[:1].argmax(1))
    assert metric.compute() == 1.0


def test_it_survives_pickling_and_copying_between_updates() -> None:
    metric = MixedAccuracy(top_k=2)
    metric.update(LOGITS, mixed(0.3))
    wanted = metric.compute()
    for twin in (pickle.loads(pickle.dumps(metric)), copy.deepcopy(metric), metric.clone()):
        assert twin.top_k == 2
        assert twin.compute() == wanted
        twin.update(LOGITS, CLASSES)
    assert metric.compute() == wanted


def test_its_states_are_plain_and_need_no_gradient() -> None:
    metric = MixedAccuracy()
    metric(LOGITS.clone().requires_grad_(), mixed(0.3))
    states = [metric.correct, metric.total]
    assert [type(state) for state in states] == [Tensor, Tensor]
    assert not any(state.requires_grad for state in states)


def test_it_works_in_a_collection() -> None:
    collection = MetricCollection({"top1": MixedAccuracy(), "top2": MixedAccuracy(top_k=2)})
    scores = collection(LOGITS, mixed(LAMS))
    for name, top_k in (("top1", 1), ("top2", 2)):
        wanted = by_loop(LOGITS, CLASSES, CLASSES.roll(-1), LAMS, top_k)
        torch.testing.assert_close(scores[name], torch.tensor(wanted))


@pytest.mark.parametrize("top_k", [0, -1])
def test_top_k_below_1_is_refused(top_k: int) -> None:
    with pytest.raises(ValueError, match=f"top_k={top_k} is out of range.*from 1"):
        MixedAccuracy(top_k)


def test_labels_of_pixels_are_counted_by_pixel_or_refused() -> None:
    logits, labels = torch.randn(3, K, 4, 4), torch.randint(0, K, (3, 4, 4))
    metric = MixedAccuracy()
    try:
        metric.update(logits, labels)
    except ValueError as refusal:
        assert "(N,)" in str(refusal) or "(3, 4, 4)" in str(refusal)  # noqa: PT017
    else:
        torch.testing.assert_close(metric.compute(), (logits.argmax(1) == labels).float().mean())


class Scored(Classifier):
    """Logs the metric in the training step, and remembers what it scored."""

    def __init__(self) -> None:
        super().__init__()
        self.accuracy = MixedAccuracy()
        self.seen: list[tuple[Tensor, Tensor]] = []

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        logits = self.linear(x.flatten(1))
        self.accuracy(logits, y)
        self.log("train/mixed_acc", self.accuracy, on_step=False, on_epoch=True)
        self.seen.append((logits.detach(), y))
        return F.cross_entropy(logits, y)

    @override
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        method: Any = next(c for c in self.trainer.callbacks if isinstance(c, MSDA))  # type: ignore[attr-defined]
        mix = method.last_mix or Mixture.untouched(batch[0])
        logits, own = self.seen[-1][0], batch[1]
        self.seen[-1] = logits, torch.tensor(by_loop(logits, own, own[mix.partner], mix.lam.tolist()))


@pytest.mark.parametrize(
    "method",
    [MixUp(per_sample=True), CutMix(), RandomMix(prob=0.6)],
    ids=lambda method: type(method).__name__,
)
def test_under_a_trainer_it_scores_the_batches_as_they_were_mixed(method: MSDA) -> None:
    module = Scored()
    trainer = train([method], module=module, batches=6)
    wanted = torch.stack([score for _, score in module.seen]).mean()
    torch.testing.assert_close(trainer.callback_metrics["train/mixed_acc"], wanted)
    assert not any(isinstance(state, MixedTensor) for state in vars(module.accuracy).values())
