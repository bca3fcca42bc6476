"""The tasks: losses and metrics by other means, and training, unmodified, under a mixing callback."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_msda import MSDA, CutMix, FMix, MixUp, RandomMix
from lightning_msda.experiments.models import (
    BERT,
    BiLSTM,
    PreActResNet18,
    SideBySide,
    SmallCNN,
    TextCNN,
    VoxelPointNet,
)
from lightning_msda.experiments.tasks import Classification, Graphemes, LabelNoise, MultilabelClassification
from tests.training import make_trainer


class Given(nn.Module):
    """A network whose inputs are its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


def batches(*tensors: Tensor, batch_size: int = 7) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*tensors), batch_size=batch_size)


def evaluated(task: LightningModule, *loaders: DataLoader[Any]) -> dict[str, float]:
    """Return what testing logs."""
    results = make_trainer().test(task, list(loaders), verbose=False)
    return {name: float(value) for result in results for name, value in result.items()}


def trained(
    task: LightningModule,
    method: MSDA | None,
    loader: DataLoader[Any],
    checkpoint: str | None = None,
    **options: Any,
) -> dict[str, float]:
    """Train for an epoch, and save; return what that logs, after all parameters have moved."""
    before = {name: value.detach().clone() for name, value in task.named_parameters()}
    task.configure_optimizers = lambda: torch.optim.SGD(task.parameters(), lr=0.01)  # type: ignore[method-assign]
    trainer = make_trainer(*([method] if method else []), **options)
    trainer.fit(task, loader)
    if checkpoint is not None:
        trainer.save_checkpoint(checkpoint)
    assert method is None or method.last_mix is not None
    moved = [name for name, value in task.named_parameters() if not torch.equal(before[name], value)]
    assert moved and all(value.isfinite().all() for value in task.parameters())
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


# --- metrics ------------------------------------------------------------------------------------------------


def test_classification_logs_accuracies_and_the_loss() -> None:
    logits, y = torch.randn(50, 8), torch.randint(8, (50,))
    logged = evaluated(Classification(Given(), 8, top_k=5), batches(logits, y))
    ranks = (logits > logits.gather(1, y[:, None])).sum(1)  # how many classes are before the label
    assert logged == pytest.approx(
        {
            "test/acc": float((ranks < 1).double().mean()),
            "test/acc_top5": float((ranks < 5).double().mean()),
            "test/loss": float(F.cross_entropy(logits, y)),
        }
    )
    assert set(evaluated(Classification(Given(), 8), batches(logits, y))) == {"test/acc", "test/loss"}


@pytest.mark.parametrize("labels", [1, 4])
def test_multilabel_logs_the_area_under_the_curve(labels: int) -> None:
    y = (torch.rand(60, labels) < 0.3).int()
    logits = torch.randn(60, labels) + y
    logged = evaluated(MultilabelClassification(Given(), labels), batches(logits, y))
    areas = []  # the share of pairs of a hit and a miss that are in order
    for column, truth in zip(logits.T, y.T, strict=True):
        hits, misses = column[truth == 1], column[truth == 0]
        areas.append((hits[:, None] > misses).double().mean())
    assert logged["test/auroc"] == pytest.approx(float(torch.stack(areas).mean()))
    entropy = -(y * F.logsigmoid(logits) + (1 - y) * F.logsigmoid(-logits))
    assert logged["test/loss"] == pytest.approx(float(entropy.mean()), rel=1e-5)


def test_the_area_under_the_curve_is_that_of_scikit_learn() -> None:
    measures = pytest.importorskip("sklearn.metrics")
    y = (torch.rand(60, 6) < 0.3).int()
    logits = torch.randn(60, 6) + y
    logged = evaluated(MultilabelClassification(Given(), 6), batches(logits, y))
    assert logged["test/auroc"] == pytest.approx(measures.roc_auc_score(y.numpy(), logits.sigmoid().numpy()))


def test_graphemes_are_right_where_all_parts_are() -> None:
    sizes = {"root": 168, "vowel": 11, "consonant": 7}
    y = torch.stack([torch.randint(size, (40,)) for size in sizes.values()], 1)
    logits = [torch.randn(40, size) for size in sizes.values()]
    for part, column in zip(logits, y.T, strict=True):
        part[torch.arange(40), column] += 2
    logged = evaluated(Graphemes(Given()), batches(torch.cat(logits, 1), y))
    right = [part.argmax(1) == column for part, column in zip(logits, y.T, strict=True)]
    wanted = {f"test/acc_{name}": float(r.double().mean()) for name, r in zip(sizes, right, strict=True)}
    wanted["test/acc"] = float((right[0] & right[1] & right[2]).double().mean())
    wanted["test/loss"] = sum(
        float(F.cross_entropy(part, column)) for part, column in zip(logits, y.T, strict=True)
    )
    assert logged == pytest.approx(wanted)
    assert len(set(logged.values())) == 5  # none of them by chance another's


def test_label_noise_tells_errors_on_real_and_on_corrupted_labels() -> None:
    x, y_true = torch.randn(60, 5), torch.randint(5, (60,))
    y = torch.where(torch.rand(60) < 0.4, (y_true + 1) % 5, y_true)
    unseen, labels = torch.randn(20, 5), torch.randint(5, (20,))
    logged = evaluated(LabelNoise(Given(), 5), batches(unseen, labels), batches(x, y, y_true))
    wrong, real = (x.argmax(1) != y).double(), y == y_true
    assert logged == pytest.approx(
        {
            "test/error_real": float(wrong[real].mean()),
            "test/error_corrupted": float(wrong[~real].mean()),
            "test/acc": float((unseen.argmax(1) == labels).double().mean()),
            "test/loss": float(F.cross_entropy(unseen, labels)),
        }
    )


def test_label_noise_tells_the_errors_of_training_too() -> None:
    x, y_true = torch.randn(30, 5), torch.randint(5, (30,))
    y = torch.where(torch.rand(30) < 0.4, (y_true + 1) % 5, y_true)
    logged = trained(LabelNoise(Given(), 5), None, batches(x, y, y_true))
    wrong, real = (x.argmax(1) != y).double(), y == y_true  # a positive scale does not change the largest
    assert logged["train/error_real"] == pytest.approx(float(wrong[real].mean()))
    assert logged["train/error_corrupted"] == pytest.approx(float(wrong[~real].mean()))


# --- training under a mixing callback -----------------------------------------------------------------------

IMAGES = torch.rand(8, 3, 16, 16)
TEXTS = torch.randint(1, 20, (8, 6))
Y = torch.arange(8) % 4

RUNS: dict[str, tuple[Callable[[], LightningModule], Callable[[], MSDA], Sequence[Tensor]]] = {
    "images": (
        lambda: Classification(PreActResNet18(4, 3, 2), 4, top_k=2),
        RandomMix,
        (IMAGES, Y),
    ),
    "label noise": (
        lambda: LabelNoise(SmallCNN(4, 3, 2), 4),
        lambda: MixUp(alpha=8.0, input_key=0, target_key=1),
        (IMAGES, Y, Y.flip(0)),
    ),
    "graphemes": (lambda: Graphemes(SmallCNN(186, 3, 2)), CutMix, (IMAGES, torch.stack([Y, Y, Y], 1))),
    "the root of a grapheme, a lam for each sample": (
        lambda: Graphemes(SmallCNN(168, 3, 2), ["root"]),
        lambda: FMix(per_sample=True),
        (IMAGES, torch.stack([Y, Y, Y], 1)),
    ),
    "voxels": (
        lambda: Classification(VoxelPointNet(4, points=20, width=32), 4),
        FMix,
        ((torch.rand(8, 1, 6, 6, 6) < 0.3).float(), Y),
    ),
    "several labels, words": (
        lambda: MultilabelClassification(TextCNN(3, tokens=20, size=4, width=4), 3),
        lambda: MixUp(at="network.embedding"),
        (TEXTS, (torch.rand(8, 3) < 0.5).int()),
    ),
    "one label, words": (
        lambda: MultilabelClassification(BiLSTM(1, tokens=20, size=4, width=4), 1),
        lambda: FMix(at="network.embedding", dims=[1]),
        (TEXTS, (torch.rand(8, 1) < 0.5).float()),
    ),
    "words": (
        lambda: Classification(BiLSTM(4, tokens=20, size=4, width=4), 4),
        lambda: MixUp(at="network.embedding"),
        (TEXTS, Y),
    ),
    "tokens": (
        lambda: MultilabelClassification(BERT(3, tokens=20, layers=1, heads=1, width=8), 3),
        lambda: FMix(dims=[1]),
        (TEXTS, (torch.rand(8, 3) < 0.5).int()),
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_task_trains_unmodified(name: str) -> None:
    make, method, data = RUNS[name]
    if name == "tokens":
        pytest.importorskip("transformers")
    logged = trained(make(), method(), batches(*data, batch_size=4))
    assert logged["train/loss"] > 0


@pytest.mark.parametrize("name", ["graphemes", "label noise", "several labels, words"])
def test_the_loss_is_that_of_the_mixture(name: str) -> None:
    """Of the whole task, with the papers' formula written out: own and partners' labels, lam and 1 - lam."""
    make, make_method, data = RUNS[name]
    task, method, seen = make(), make_method(), []
    task.network.register_forward_hook(  # type: ignore[union-attr]
        lambda module, args, output: seen.append(output.detach())
    )
    logged = trained(task, method, batches(*data, batch_size=8))
    mix = method.last_mix
    assert mix is not None
    y = data[1]

    def loss(labels: Tensor) -> Tensor:
        if name == "graphemes":
            parts = zip(seen[0].split([168, 11, 7], 1), labels.T, strict=True)
            return torch.stack([F.cross_entropy(part, column) for part, column in parts]).sum()
        if name == "label noise":
            return F.cross_entropy(seen[0], labels)
        return F.binary_cross_entropy_with_logits(seen[0], labels.float())

    lam = float(mix.lam[0])
    wanted = lam * loss(y) + (1 - lam) * loss(y[mix.partner])
    assert logged["train/loss"] == pytest.approx(float(wanted), rel=1e-5)


def test_labels_are_smoothed_in_training_alone() -> None:
    logits, y = torch.randn(6, 5), torch.arange(6) % 5
    task = Classification(Given(), 5, label_smoothing=0.3)
    assert evaluated(task, batches(logits, y))["test/loss"] == pytest.approx(
        float(F.cross_entropy(logits, y))
    )
    smooth = 0.7 * F.one_hot(y, 5) + 0.3 / 5
    wanted = -(smooth * logits.log_softmax(1)).sum(1).mean()
    assert trained(task, None, batches(logits, y))["train/loss"] == pytest.approx(float(wanted))


class Read(LightningDataModule):
    """A data module with what it is given in addition."""

    def __init__(self, *tensors: Tensor, **more: Any) -> None:
        super().__init__()
        vars(self).update(more)
        self.tensors = tensors

    def train_dataloader(self) -> DataLoader[Any]:
        return batches(*self.tensors)

    val_dataloader = test_dataloader = train_dataloader


def test_of_known_classes_testing_compares_the_logits_of_these_alone() -> None:
    logits, y = torch.randn(40, 8), torch.randint(3, (40,))
    data = Read(logits, y + 2, known=[2, 3, 4])
    (logged,) = make_trainer().test(Classification(Given(), 8), data, verbose=False)
    among = logits[:, 2:5]
    assert logged["test/acc"] == pytest.approx(float((among.argmax(1) == y).double().mean()))
    assert logged["test/loss"] == pytest.approx(float(F.cross_entropy(among, y)))
    (logged,) = make_trainer().validate(Classification(Given(), 8), data, verbose=False)
    assert logged["val/loss"] == pytest.approx(float(F.cross_entropy(logits, y + 2)))


@pytest.mark.parametrize("kind", [Classification, MultilabelClassification])
def test_the_embedding_has_the_data_modules_word_vectors(kind: Callable[..., LightningModule]) -> None:
    vectors = torch.tensor([[0.0, 0.0], [1.0, 2.0], [0.0, 0.0], [3.0, -4.0]])
    task: Any = kind(TextCNN(4, tokens=6, size=2, width=4), 4)
    y = Y if kind is Classification else F.one_hot(Y, 4).float()
    task.configure_optimizers = lambda: torch.optim.SGD(task.parameters(), lr=0.0)
    make_trainer(max_steps=1).fit(task, datamodule=Read(TEXTS % 4, y, vectors=vectors))
    rows = task.network.embedding.weight
    assert torch.equal(rows[[0, 1, 3]], vectors[[0, 1, 3]])
    assert bool((rows[[2, 4, 5]] != 0).all())
    task.network = TextCNN(4, tokens=3, size=2)
    with pytest.raises(ValueError, match=r"\(4, 2\), .* embedding is \(3, 2\): write size=2 and tokens=4"):
        make_trainer(max_steps=1).fit(task, datamodule=Read(TEXTS, y, vectors=vectors))


def test_several_labels_come_in_dicts_as_in_pairs() -> None:
    logits, y = torch.randn(20, 3), (torch.rand(20, 3) < 0.5).int()
    pairs = evaluated(MultilabelClassification(Given(), 3), batches(logits, y))
    dicts: Any = DataLoader([{"input_ids": logits, "labels": y}], batch_size=None)  # type: ignore[arg-type]
    assert evaluated(MultilabelClassification(Given(), 3), dicts) == pytest.approx(pairs)


# --- three models of a grapheme's parts, tested as one ------------------------------------------------------


def test_models_that_were_trained_apart_are_tested_together(tmp_path: Path) -> None:
    sizes = {"root": 168, "vowel": 11, "consonant": 7}
    x = torch.rand(12, 1, 8, 8)
    y = torch.stack([torch.randint(size, (12,)) for size in sizes.values()], 1)
    checkpoints, logits = [], []
    for part, size in sizes.items():
        task = Graphemes(SmallCNN(size, 1, 2), [part])
        checkpoints.append(str(tmp_path / f"{part}.ckpt"))
        trained(task, CutMix(), batches(x, y), checkpoint=checkpoints[-1], logger=CSVLogger(tmp_path))
        logits.append(task.eval().network(x).detach())
    for part, own in zip(logits, y.T, strict=True):  # labels that some of the models tell
        own[:8] = part.argmax(1)[:8]
    y[6:, 0] = (y[6:, 0] + 1) % 168
    together = SideBySide([SmallCNN(size, 1, 2) for size in sizes.values()], checkpoints)
    torch.testing.assert_close(together.eval()(x), torch.cat(logits, 1))
    logged = evaluated(Graphemes(together), batches(x, y))
    right = torch.stack([part.argmax(1) for part in logits], 1) == y
    assert logged["test/acc"] == pytest.approx(float(right.all(1).double().mean()))
    assert logged["test/acc"] >= 0.5
    predicted = make_trainer().predict(Graphemes(together), batches(x, y))
    assert predicted is not None
    assert torch.equal(torch.cat([torch.as_tensor(batch) for batch in predicted]) == y, right)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Classification(Given(), 4, top_k=5), "top_k=5 is out of range: it must be from 2 to the 4"),
        (lambda: Classification(Given(), 4, label_smoothing=-0.1), "label_smoothing=-0.1 is out of range"),
        (lambda: Graphemes(Given(), []), r"parts=\[\] must be a list of some of \['root', 'vowel'"),
        (lambda: Graphemes(Given(), "root"), "parts='root' must be a list"),
        (lambda: Graphemes(Given(), ["stem"]), r"parts=\['stem'\] must be"),
        (
            lambda: Graphemes(Given())(torch.rand(2, 10)),
            "returns 10 logits, and the parts .* have 186",
        ),
    ],
)
def test_what_makes_no_task_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
