"""MNIST, Fashion-MNIST and SVHN: read from files that are written here in their original formats."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_msda.experiments.data import FashionMNISTData, MNISTData, SVHNData
from tests.experiments.tools import (
    crops_of,
    made,
    random_images,
    real,
    refuse,
    standardised,
    unplugged,
    whole,
)
from tests.tools import workplace as workplace

NAMES = {"train": "train", "test": "t10k"}


def idx(values: Tensor) -> bytes:
    """Return the content of an idx file: two zeros, the type of bytes, the dimensions, the values."""
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    return bytes([0, 0, 8, values.dim()]) + sizes + bytes(values.flatten().tolist())


class TinyMNIST:
    """30 training and 7 test images, in compressed idx files as their authors publish them."""

    def __init__(self, kind: type[MNISTData], root: Path) -> None:
        self.root = root
        self.images = {"train": random_images(30, 1, 28), "test": random_images(7, 1, 28, seed=2)}
        self.labels = {"train": torch.arange(30) % 10, "test": torch.arange(7)}
        self.raw = root / kind.dataset.__name__ / "raw"
        self.raw.mkdir(parents=True)
        resources = []
        for part in ("train", "test"):
            contents = {"images-idx3": self.images[part][:, 0], "labels-idx1": self.labels[part]}
            for what, values in contents.items():
                content = gzip.compress(idx(values))
                name = f"{NAMES[part]}-{what}-ubyte.gz"
                (self.raw / name).write_bytes(content)
                resources.append((name, hashlib.md5(content).hexdigest()))
        dataset = type(kind.dataset.__name__, (kind.dataset,), {"resources": resources, "mirrors": [""]})
        self.kind: Any = type(f"Tiny{kind.__name__}", (kind,), {"dataset": dataset})

    def data(self, **arguments: Any) -> Any:
        return self.kind(root=str(self.root), workers=0, batch_size=4, **arguments)


@pytest.fixture(params=[MNISTData, FashionMNISTData])
def mnist(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyMNIST:
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    return TinyMNIST(request.param, tmp_path / "data")


def test_mnists_test_images_are_standardised_and_in_order(mnist: TinyMNIST) -> None:
    data = made(mnist.data())
    for loader in (data.test_dataloader(), data.val_dataloader(), data.predict_dataloader()):
        x, y = whole(loader)
        torch.testing.assert_close(x, standardised(mnist.images["test"] / 255, data))
        assert torch.equal(y, mnist.labels["test"])
    assert len(data.classes) == 10


def test_digits_are_cropped_and_clothes_mirrored_as_well(mnist: TinyMNIST) -> None:
    data = made(mnist.data())
    mirrored = 0
    for i in range(30):
        ((flip, _, _),) = crops_of(data.train[i][0], mnist.images["train"][i] / 255, data)
        mirrored += flip
    assert (0 < mirrored < 30) == isinstance(data, FashionMNISTData)
    assert mirrored < 30


def test_mnist_is_resized_where_that_is_asked_for(mnist: TinyMNIST) -> None:
    data = made(mnist.data(size=32))
    x, _ = whole(data.test_dataloader())
    assert x.shape == (7, 1, 32, 32)
    assert whole(data.train_dataloader())[0].shape == (30, 1, 32, 32)
    means = mnist.images["test"].float().mean((1, 2, 3)) / 255
    torch.testing.assert_close((x * data.std[0] + data.mean[0]).mean((1, 2, 3)), means, atol=0.01, rtol=0)


def test_a_shortened_file_of_mnist_is_named(mnist: TinyMNIST) -> None:
    made(mnist.data())
    path = mnist.raw / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{path} is damaged: it has 23436 of 23536 bytes"):
        mnist.data().prepare_data()
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match=f"{path} is damaged: it does not begin as an idx file"):
        mnist.data().prepare_data()


def test_mnist_without_a_network_says_what_to_fetch(
    mnist: TinyMNIST, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", unplugged)
    monkeypatch.setattr("urllib.request.urlopen", unplugged)
    with pytest.raises(FileNotFoundError, match="could not be downloaded .* Fetch it from http"):
        mnist.kind(root="elsewhere").prepare_data()


class TinySVHN:
    """20 training and 5 test images in MATLAB files, by height, width, channel, image; 0 has label 10."""

    def __init__(self, root: Path) -> None:
        from scipy.io import savemat

        root.mkdir()
        self.root = root
        self.images = {"train": random_images(20, 3, 32), "test": random_images(5, 3, 32, seed=2)}
        self.digits = {"train": torch.arange(20) % 10, "test": torch.arange(5)}
        listed = {}
        for part in ("train", "test"):
            path = root / f"{part}_32x32.mat"
            labels = torch.where(self.digits[part] == 0, 10, self.digits[part])
            pixels = self.images[part].permute(2, 3, 1, 0)
            savemat(path, {"X": pixels.numpy(), "y": labels[:, None].byte().numpy()})
            listed[part] = ["", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
        dataset = type("SVHN", (SVHNData.dataset,), {"split_list": listed})
        self.kind: Any = type("TinySVHNData", (SVHNData,), {"dataset": dataset})

    def data(self, **arguments: Any) -> Any:
        return self.kind(root=str(self.root), workers=0, batch_size=4, **arguments)


@pytest.fixture
def svhn(tmp_path: Path) -> TinySVHN:
    return TinySVHN(tmp_path / "svhn")


def test_svhns_test_images_are_standardised_and_zero_is_class_zero(svhn: TinySVHN) -> None:
    data = made(svhn.data())
    x, y = whole(data.test_dataloader())
    torch.testing.assert_close(x, standardised(svhn.images["test"] / 255, data))
    assert torch.equal(y, svhn.digits["test"])
    assert data.classes == tuple("0123456789")


def test_house_numbers_are_cropped_and_not_mirrored(svhn: TinySVHN) -> None:
    data = made(svhn.data())
    tops = set()
    for i in [*range(20)] * 10:
        x, y = data.train[i]
        assert y == i % 10
        ((flip, top, _),) = crops_of(x, svhn.images["train"][i] / 255, data)
        assert not flip
        tops.add(top)
    assert tops == set(range(9))


def test_fewer_house_numbers_are_of_even_classes(svhn: TinySVHN) -> None:
    data = made(svhn.data(train_size=10))
    assert sorted(y for _, y in data.train) == list(range(10))


def test_a_damaged_file_of_svhn_is_named(svhn: TinySVHN) -> None:
    path = svhn.root / "test_32x32.mat"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=f"{path} is damaged"):
        svhn.data().prepare_data()


def test_svhn_without_scipy_says_how_to_get_it(svhn: TinySVHN, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "scipy.io", None)
    with pytest.raises(ModuleNotFoundError, match=r"SVHNData needs scipy: pip install 'lightning-msda\[exp"):
        made(svhn.data())


def test_sizes_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="size=0 is out of range"):
        MNISTData(size=0)


def test_the_real_fashion_mnist_is_read(tmp_path: Path) -> None:
    x_train, _, x_test, y_test, _ = real("fashion_mnist")()
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name, values in {
        "train-images-idx3": x_train[:500],
        "train-labels-idx1": real("fashion_mnist")()[1][:500],
        "t10k-images-idx3": x_test[:500],
        "t10k-labels-idx1": y_test[:500],
    }.items():
        (raw / f"{name}-ubyte").write_bytes(idx(torch.as_tensor(values)))
    data = made(FashionMNISTData(root=str(tmp_path), workers=0))
    x, y = whole(data.test_dataloader())
    torch.testing.assert_close(x[:, 0], (torch.tensor(x_test[:500]) / 255 - data.mean[0]) / data.std[0])
    assert y.tolist() == y_test[:500].tolist()
    assert abs(float(x.mean())) < 0.05 and abs(float(x.std()) - 1) < 0.05
    assert data.classes[9] == "Ankle boot"
