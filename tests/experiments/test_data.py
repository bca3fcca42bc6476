"""The data modules: what they hand out is what was in the files, split and standardised as they say."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor
from torch.utils.data import default_collate

from lightning_msda import CutMix
from lightning_msda.experiments.data import CIFAR10Data, CIFAR100Data, DigitsData
from lightning_msda.experiments.models import SmallCNN
from lightning_msda.experiments.tasks import Classification
from tests.experiments.tools import crops_of, made, random_images, refuse, standardised, unplugged, whole
from tests.tools import workplace as workplace
from tests.tools import write_cifar


def splits(data: Any) -> list[tuple[Tensor, Tensor]]:
    loaders = data.train_dataloader(), data.val_dataloader(), data.test_dataloader()
    return [whole(loader) for loader in loaders]


def test_the_digits_splits_are_disjoint_and_cover_all_scans() -> None:
    from sklearn.datasets import load_digits

    parts = splits(made(DigitsData()))
    assert [len(labels) for _, labels in parts] == [1097, 200, 500]
    scans, labels = load_digits(return_X_y=True)
    given = Counter((*map(int, scan), int(label)) for scan, label in zip(scans, labels, strict=True))
    found: Counter[tuple[int, ...]] = Counter()
    for x, y in parts:
        grey = ((x * DigitsData.std[0] + DigitsData.mean[0]) * 16).round().int().flatten(1)
        found.update((*scan, label) for scan, label in zip(grey.tolist(), y.tolist(), strict=True))
    assert found == given
    assert found.total() == 1797


def test_the_digits_are_images_of_one_channel_and_standardised() -> None:
    x = torch.cat([x for x, _ in splits(made(DigitsData()))])
    assert x.shape == (1797, 1, 8, 8)
    assert x.dtype == torch.float32
    assert float(x.mean()) == pytest.approx(0, abs=0.01)
    assert float(x.std()) == pytest.approx(1, abs=0.01)


def test_the_digits_labels_are_the_numbers_of_their_classes() -> None:
    for _, y in splits(made(DigitsData())):
        assert y.dtype == torch.int64
        assert sorted(set(y.tolist())) == list(range(10))
    assert DigitsData.classes == tuple("0123456789")


def test_the_digits_splits_are_the_same_for_every_seed() -> None:
    seed_everything(1, verbose=False)
    first = made(DigitsData(batch_size=2000))
    seed_everything(2, verbose=False)
    second = made(DigitsData(batch_size=2000))
    for part in ("train", "val", "test"):
        for a, b in zip(getattr(first, part).tensors, getattr(second, part).tensors, strict=True):
            assert torch.equal(a, b)


def test_setting_up_the_digits_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    made(DigitsData())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_smaller_training_set_is_the_beginning_of_the_whole() -> None:
    small, large = made(DigitsData(train_size=100)), made(DigitsData())
    for a, b in zip(default_collate(list(small.train)), large.train.tensors, strict=True):
        assert torch.equal(a, b[:100])
    assert torch.equal(small.test.tensors[0], large.test.tensors[0])
    assert torch.equal(small.val.tensors[0], large.val.tensors[0])


def test_training_digits_are_shuffled_and_others_are_not() -> None:
    data = made(DigitsData(batch_size=1097))
    x, y = next(iter(data.train_dataloader()))
    assert not torch.equal(x, data.train.tensors[0])
    assert sorted(y.tolist()) == sorted(data.train.tensors[1].tolist())
    for part, loader in (("val", data.val_dataloader()), ("test", data.predict_dataloader())):
        assert torch.equal(whole(loader)[0], getattr(data, part).tensors[0])


def test_batches_of_digits_have_the_size_that_was_asked_for() -> None:
    data = made(DigitsData(batch_size=60, train_size=100))
    assert [len(y) for _, y in data.train_dataloader()] == [60, 40]


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (DigitsData, {"batch_size": 0}),
        (DigitsData, {"train_size": 0}),
        (CIFAR10Data, {"batch_size": 0}),
        (CIFAR10Data, {"workers": -1}),
        (CIFAR100Data, {"batch_size": -3}),
        (CIFAR10Data, {"train_size": 0}),
        (DigitsData, {"train_size": 1098}),
        (CIFAR10Data, {"label_noise": 1.5}),
    ],
)
def test_arguments_out_of_range_are_refused(kind: type, arguments: dict[str, float]) -> None:
    ((name, value),) = arguments.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        kind(**arguments)


class Tiny:
    """CIFAR in small: 25 training and 6 test images, in files of the original format."""

    def __init__(self, kind: type[CIFAR10Data], root: Path) -> None:
        classes = 100 if kind is CIFAR100Data else 10
        sizes = {"train": 25, "test": 6}
        generator = torch.Generator().manual_seed(1)
        self.images = {stage: random_images(n, 3, 32, seed=n) for stage, n in sizes.items()}
        self.labels = {
            stage: torch.randint(0, classes, (n,), generator=generator).tolist() for stage, n in sizes.items()
        }
        dataset = write_cifar(root, kind.dataset, self.images, self.labels)
        self.kind: Any = type(f"Tiny{kind.__name__}", (kind,), {"dataset": dataset})
        self.root = str(root)
        self.files = len(dataset.train_list)

    def data(self, **arguments: Any) -> Any:
        return made(self.kind(**{"root": self.root, "workers": 0, "batch_size": 4, **arguments}))

    def in_files(self, stage: str) -> tuple[Tensor, Tensor]:
        """Return images in [0, 1] and labels in the order of the files."""
        order = [i for first in range(self.files) for i in range(first, 25, self.files)]
        order = order if stage == "train" else list(range(6))
        return self.images[stage][order] / 255, torch.tensor(self.labels[stage])[order]


@pytest.fixture(params=[CIFAR10Data, CIFAR100Data])
def tiny(request: pytest.FixtureRequest, tmp_path: Path) -> Tiny:
    return Tiny(request.param, tmp_path / "data")


def test_cifars_test_images_are_standardised_and_in_order(tiny: Tiny) -> None:
    data = tiny.data()
    images, labels = tiny.in_files("test")
    for loader in (data.test_dataloader(), data.val_dataloader(), data.predict_dataloader()):
        x, y = whole(loader)
        torch.testing.assert_close(x, standardised(images, data))
        assert torch.equal(y, labels)
        assert [len(batch[1]) for batch in loader] == [4, 2]


def test_cifars_training_images_are_crops_of_padded_images_some_of_them_mirrored(tiny: Tiny) -> None:
    data = tiny.data()
    images, labels = tiny.in_files("train")
    mirrored, places = 0, set()
    for i in range(25):
        x, y = data.train[i]
        assert y == labels[i]
        ((flip, top, left),) = crops_of(x, images[i], data)
        mirrored += flip
        places.add((top, left))
    assert 0 < mirrored < 25
    assert len(places) > 10


def test_cifars_training_images_are_whole_without_augmentation(tiny: Tiny) -> None:
    data = tiny.data(augment=False)
    images, _ = tiny.in_files("train")
    for i in range(25):
        torch.testing.assert_close(data.train[i][0], standardised(images[i], data))


def test_cifars_training_images_are_shuffled_and_all_of_them_are_seen(tiny: Tiny) -> None:
    data = tiny.data()
    _, labels = tiny.in_files("train")
    epochs = [whole(data.train_dataloader())[1].tolist() for _ in range(2)]
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(labels.tolist())


def test_cifars_classes_are_those_of_its_files(tiny: Tiny) -> None:
    data = tiny.data()
    assert data.classes[3] == "class 3"
    assert len(data.classes) == (100 if issubclass(tiny.kind, CIFAR100Data) else 10)
    assert len(data.mean) == len(data.std) == 3


def test_cifar_that_is_there_is_not_downloaded_again(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refuse)
    tiny.kind(root=tiny.root).prepare_data()
    with pytest.raises(AssertionError, match="a download"):
        tiny.kind(root="elsewhere").prepare_data()


def test_damaged_cifar_is_named_and_not_downloaded(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refuse)
    data = tiny.kind(root=tiny.root, workers=0)
    path = Path(tiny.root) / data.dataset.base_folder / data.dataset.test_list[0][0]
    path.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=f"{path} is damaged: its MD5 sum is not the published one"):
        data.prepare_data()


def test_cifar_without_a_network_says_what_to_fetch(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", unplugged)
    with pytest.raises(FileNotFoundError, match="is not in .*/elsewhere .*no network.*cs.toronto.edu"):
        tiny.kind(root="elsewhere").prepare_data()


def test_fewer_training_images_are_of_even_classes_and_none_is_new(tiny: Tiny) -> None:
    labels = tiny.in_files("train")[1]
    counts = Counter(labels.tolist())
    data = tiny.data(train_size=8)
    chosen = [y for _, y in data.train]
    assert len(chosen) == 8
    most = max(Counter(chosen).values())
    assert all(n <= counts[y] and n >= min(most - 1, counts[y]) for y, n in Counter(chosen).items())
    assert len(data.test) == 6
    assert data.train.indices == tiny.data(train_size=8).train.indices
    assert data.train.indices == tiny.data(train_size=12).train.indices[:8]


def test_more_images_than_there_are_cannot_be_trained_on(tiny: Tiny) -> None:
    with pytest.raises(ValueError, match="train_size=26 is out of range: there are 25 training samples"):
        tiny.data(train_size=26)


def test_noisy_labels_keep_the_true_ones(tiny: Tiny) -> None:
    data = tiny.data(label_noise=0.4, augment=False)
    images, labels = tiny.in_files("train")
    train = data.train
    assert int(train.corrupted.sum()) == 10
    assert torch.equal(train.true_targets, labels)
    assert torch.equal(train.targets[~train.corrupted], labels[~train.corrupted])
    assert not torch.equal(train.targets, labels)
    assert [y for _, y in train] == train.targets.tolist()
    torch.testing.assert_close(train[3][0], standardised(images[3], data))
    assert torch.equal(train.targets, tiny.data(label_noise=0.4).train.targets)
    assert torch.equal(whole(data.test_dataloader())[1], tiny.in_files("test")[1])


def test_true_labels_come_third_and_the_training_set_as_it_is_comes_second(tiny: Tiny) -> None:
    data = tiny.data(label_noise=0.4, true_labels=True)
    images, labels = tiny.in_files("train")
    noisy = tiny.data(label_noise=0.4).train.targets
    assert [(y, y_true) for _, y, y_true in data.train] == list(
        zip(noisy.tolist(), labels.tolist(), strict=True)
    )
    for loaders in (data.val_dataloader(), data.test_dataloader()):
        test, train = loaders
        assert torch.equal(whole(test)[1], tiny.in_files("test")[1])
        x, y, y_true = (torch.cat(column) for column in zip(*train, strict=True))
        torch.testing.assert_close(x, standardised(images, data))
        assert torch.equal(y, noisy) and torch.equal(y_true, labels)
    assert torch.equal(whole(data.predict_dataloader())[1], tiny.in_files("test")[1])
    fewer = tiny.data(train_size=8, true_labels=True)
    (_, train) = fewer.val_dataloader()
    y, y_true = (torch.cat(column) for column in list(zip(*train, strict=True))[1:])
    assert torch.equal(y, y_true) and torch.equal(y, labels[fewer.train.indices])


def test_cifar_trains_and_is_mixed(tiny: Tiny) -> None:
    data = tiny.data()

    class Trained(Classification):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    method = CutMix(seed=0)
    trainer = Trainer(
        fast_dev_run=True,
        accelerator="cpu",
        callbacks=[method],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Trained(SmallCNN(100, 3, 2), 100), datamodule=data)
    assert method.last_mix is not None
    assert method.last_mix.inputs.shape == (4, 3, 32, 32)
