"""Tiny-ImageNet, ImageNet and ImageNet-A: folders of images in the layout of their archives."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from lightning_msda.experiments.data import ImageNetAData, ImageNetData, TinyImageNetData
from tests.experiments.tools import crops_of, made, standardised, unplugged, whole
from tests.tools import workplace as workplace

WNIDS = ["n01443537", "n01629819", "n01641577", "n02056570"]
COLOURS = [(250, 20, 20), (20, 250, 20), (20, 20, 250), (200, 200, 20)]


def save(
    path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (64, 64), mode: str = "RGB"
) -> None:
    """Write a JPEG file of one colour, whatever its ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path, "JPEG", quality=95)


def pixels(path: Path) -> Tensor:
    with Image.open(path) as image:
        return torch.tensor(list(image.convert("RGB").tobytes())).view(64, 64, 3).movedim(2, 0) / 255


def colour_of(x: Tensor, data: Any) -> list[int]:
    """Return whose colour a standardised image is nearest to."""
    mean, std = torch.tensor(data.mean), torch.tensor(data.std)
    shown = x.mean((2, 3)) * std + mean
    known = torch.tensor(COLOURS) / 255
    return torch.cdist(shown, known).argmin(1).tolist()


def write_tiny_imagenet(root: Path) -> Path:
    """Write Tiny-ImageNet: lists, boxes, three training images of each class, and validation images."""
    folder = root / "tiny-imagenet-200"
    for wnid, colour in zip(WNIDS, COLOURS, strict=True):
        for i in range(3):
            save(folder / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", colour)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t63\t63\n")
    rows = []
    for i, k in enumerate([2, 0, 3, 1, 2]):
        save(folder / "val" / "images" / f"val_{i}.JPEG", COLOURS[k])
        rows.append(f"val_{i}.JPEG\t{WNIDS[k]}\t0\t0\t62\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(rows))
    (folder / "wnids.txt").write_text("\n".join(reversed(WNIDS)))
    words = {wnid: f"name of {wnid}, another name" for wnid in [*WNIDS, "n99999999"]}
    (folder / "words.txt").write_text("".join(f"{key}\t{value}\n" for key, value in words.items()))
    return folder


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_imagenet(tmp_path)


def tiny_data(folder: Path, **arguments: Any) -> Any:
    return TinyImageNetData(root=str(folder.parent), workers=0, batch_size=4, **arguments)


def test_tiny_imagenet_is_read_with_the_classes_of_its_lists(tiny: Path) -> None:
    data = made(tiny_data(tiny))
    x, y = whole(data.test_dataloader())
    assert y.tolist() == [2, 0, 3, 1, 2] == colour_of(x, data)
    torch.testing.assert_close(x[0], standardised(pixels(tiny / "val/images/val_0.JPEG"), data))
    x, y = whole(data.train_dataloader())
    assert colour_of(x, data) == y.tolist()
    assert sorted(y.tolist()) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert x.shape == (12, 3, 64, 64)
    assert data.classes == tuple(f"name of {wnid}" for wnid in WNIDS)


def test_tiny_imagenets_training_images_are_cropped_and_mirrored(tiny: Path) -> None:
    path = tiny / "train" / WNIDS[0] / "images" / f"{WNIDS[0]}_0.JPEG"
    noise = torch.randint(0, 256, (64 * 64 * 3,), generator=torch.Generator().manual_seed(0))
    Image.frombytes("RGB", (64, 64), bytes(noise.tolist())).save(path, "JPEG")
    data = made(tiny_data(tiny))
    found = [crops_of(data.train[0][0], pixels(path), data) for _ in range(20)]
    assert all(len(places) == 1 for places in found)
    assert {places[0][0] for places in found} == {True, False}
    assert len({places[0][1:] for places in found}) > 10
    plain = made(tiny_data(tiny, augment=False))
    torch.testing.assert_close(plain.train[0][0], standardised(pixels(path), data))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_shortened_image_is_named_before_training(tiny: Path, share: float) -> None:
    made(tiny_data(tiny))  # the result of the first look is kept, and found to be out of date
    path = tiny / "val" / "images" / "val_3.JPEG"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=f"{path} is damaged: .* Delete it and fetch it again"):
        tiny_data(tiny).prepare_data()


def test_images_are_looked_at_once(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tiny_data(tiny))
    monkeypatch.setattr("lightning_msda.experiments.data.files._fault", unplugged)
    tiny_data(tiny).prepare_data()
    path = tiny / "val" / "images" / "val_3.JPEG"
    os.utime(path, ns=(0, 0))
    with pytest.raises(OSError, match="no network"):
        tiny_data(tiny).prepare_data()


def test_whole_images_with_odd_ends_or_of_other_formats_are_no_damaged_ones(tiny: Path) -> None:
    images = tiny / "val" / "images"
    path = images / "val_0.JPEG"
    path.write_bytes(path.read_bytes() + b"\0" * 100)
    Image.new("RGB", (64, 64), COLOURS[0]).save(images / "val_1.JPEG", "PNG")
    Image.new("RGB", (64, 64), COLOURS[3]).save(images / "val_2.JPEG", "GIF")
    save(images / "val_3.JPEG", COLOURS[1], mode="CMYK")
    data = made(tiny_data(tiny))
    x, _ = whole(data.test_dataloader())
    assert colour_of(x, data)[:3] == [2, 0, 3]


def test_an_image_that_is_damaged_inside_is_named_when_it_is_read(tiny: Path) -> None:
    path = tiny / "val" / "images" / "val_0.JPEG"
    data = made(tiny_data(tiny))
    content = path.read_bytes()
    path.write_bytes(content[:30] + b"\0" * (len(content) - 60) + content[-30:])
    tiny_data(tiny).prepare_data()  # the ends are whole
    with pytest.raises(ValueError, match=f"{path} is damaged"):
        data.test[0]


def test_a_set_that_is_missing_says_what_to_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", unplugged)
    with pytest.raises(FileNotFoundError, match="tiny-imagenet-200 is missing and could not be downloaded"):
        TinyImageNetData().prepare_data()
    assert not Path("data").exists()
    sentence = (
        "data/imagenet/train is missing. For ImageNet, fetch ILSVRC2012_img_train.tar .* data/imagenet exists"
    )
    with pytest.raises(FileNotFoundError, match=sentence):
        ImageNetData().prepare_data()


def test_a_file_that_a_list_names_must_be_there(tiny: Path) -> None:
    (tiny / "val" / "images" / "val_1.JPEG").unlink()
    with pytest.raises(FileNotFoundError, match="val_1.JPEG is missing. For Tiny-ImageNet, fetch"):
        tiny_data(tiny).prepare_data()


def write_imagenet(root: Path) -> Path:
    """Write ImageNet with its validation images beside each other, and the development kit."""
    import numpy as np
    from scipy.io import savemat

    folder = root / "imagenet"
    for wnid, colour in zip(WNIDS, COLOURS, strict=True):
        for i in range(2):
            save(folder / "train" / wnid / f"{wnid}_{i}.JPEG", colour, (300 + 40 * i, 260))
    numbers = {wnid: number for number, wnid in enumerate(["n00000000", WNIDS[3], *WNIDS[:3]], 1)}
    shown = [1, 3, 0]
    for i, k in enumerate(shown, 1):
        save(folder / "val" / f"ILSVRC2012_val_{i:08d}.JPEG", COLOURS[k], (500, 375))
    kit = folder / "ILSVRC2012_devkit_t12" / "data"
    kit.mkdir(parents=True)
    truth = "".join(f"{numbers[WNIDS[k]]}\n" for k in shown)
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)
    synsets = np.zeros((len(numbers), 1), dtype=[("ILSVRC2012_ID", object), ("WNID", object)])
    for row, (wnid, number) in enumerate(numbers.items()):
        synsets[row, 0] = (np.array([[number]]), wnid)
    savemat(kit / "meta.mat", {"synsets": synsets})
    return folder


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    return write_imagenet(tmp_path)


def imagenet_data(folder: Path, **arguments: Any) -> Any:
    return ImageNetData(root=str(folder.parent), workers=0, batch_size=4, **arguments)


def test_imagenet_is_read_with_the_development_kits_labels(imagenet: Path) -> None:
    data = made(imagenet_data(imagenet))
    assert data.classes == tuple(WNIDS)
    x, y = whole(data.test_dataloader())
    assert x.shape == (3, 3, 224, 224)
    assert y.tolist() == [1, 3, 0] == colour_of(x, data)
    x, y = whole(data.train_dataloader())
    assert x.shape == (8, 3, 224, 224)
    assert colour_of(x, data) == y.tolist()


def test_imagenets_validation_images_may_be_in_folders_of_classes(imagenet: Path) -> None:
    for i, k in enumerate([1, 3, 0], 1):
        (imagenet / "val" / WNIDS[k]).mkdir()
        name = f"ILSVRC2012_val_{i:08d}.JPEG"
        (imagenet / "val" / name).rename(imagenet / "val" / WNIDS[k] / name)
    x, y = whole(made(imagenet_data(imagenet)).test_dataloader())
    assert y.tolist() == [0, 1, 3] == colour_of(x, ImageNetData)


def test_imagenets_test_images_are_the_middle_of_the_resized_image(imagenet: Path) -> None:
    image = Image.new("RGB", (512, 256), COLOURS[0])
    image.paste(COLOURS[1], (144, 16, 368, 240))  # just the middle square of 224
    path = imagenet / "val" / "ILSVRC2012_val_00000001.JPEG"
    image.save(path, "JPEG", quality=95)
    data = made(imagenet_data(imagenet))
    shown = data.test[0][0][None]
    assert colour_of(shown, data) == [1]
    assert float((shown - shown.mean((2, 3), keepdim=True))[..., 2:-2, 2:-2].abs().max()) < 0.1
    crops = torch.stack([made(imagenet_data(imagenet)).train[0][0] for _ in range(3)])
    assert crops.shape == (3, 3, 224, 224)


def test_an_incomplete_validation_set_is_refused(imagenet: Path) -> None:
    (imagenet / "val" / "ILSVRC2012_val_00000002.JPEG").unlink()
    with pytest.raises(ValueError, match="val has 2 images where the development kit knows 3"):
        imagenet_data(imagenet).prepare_data()


def test_a_shortened_image_of_imagenet_is_named(imagenet: Path) -> None:
    path = imagenet / "train" / WNIDS[2] / f"{WNIDS[2]}_1.JPEG"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=f"{path} is damaged"):
        imagenet_data(imagenet).prepare_data()


def write_imagenet_a(root: Path) -> Path:
    folder = root / "imagenet-a"
    for k in (3, 1):
        save(folder / WNIDS[k] / f"0.00_fox _ {k}_0.5.jpg", COLOURS[k], (300, 300))
    (folder / "README.txt").write_text("ImageNet-A")
    return folder


def test_imagenet_a_has_the_labels_of_imagenet(imagenet: Path) -> None:
    folder = write_imagenet_a(imagenet.parent)
    arguments: dict[str, Any] = {"root": str(imagenet.parent), "workers": 0}
    data = made(ImageNetAData(**arguments))
    x, y = whole(data.test_dataloader())
    assert y.tolist() == [1, 3] == colour_of(x, data) == data.known
    assert whole(data.val_dataloader())[1].tolist() == [1, 3, 0]
    save(folder / "n12345678" / "a.jpg", COLOURS[0])
    with pytest.raises(ValueError, match="imagenet-a has classes that ImageNet's train has not: n12345678"):
        made(ImageNetAData(**arguments))


def test_imagenet_a_that_is_missing_is_downloaded(imagenet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(url: str, root: str, extract_root: str, md5: str | None) -> None:
        asked.append(url)
        save(Path(extract_root) / "imagenet-a" / WNIDS[1] / "a.jpg", COLOURS[1])

    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", download)
    data = made(ImageNetAData(root=str(imagenet.parent), workers=0))
    assert [y for _, y in data.test] == [1]
    assert asked == ["https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar"]
    assert sorted(p.name for p in imagenet.parent.iterdir()) == ["imagenet", "imagenet-a"]
