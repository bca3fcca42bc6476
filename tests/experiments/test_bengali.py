"""Bengali.AI: parquet tables and labels written here as the challenge has them."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from lightning_msda.experiments.data import BengaliData
from lightning_msda.experiments.data.bengali import cropped
from tests.experiments.tools import made, refuse, whole
from tests.tools import workplace as workplace

HEIGHT, WIDTH, PER_FILE = 30, 40, 6  # the published pages are larger: a column for each of 32,332 pixels
COUNTS = {"grapheme_root": 168, "vowel_diacritic": 11, "consonant_diacritic": 7}


class SmallPages(BengaliData):
    height, width = HEIGHT, WIDTH


def page(number: int, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    """Return a white page with a dark box, which says by its place and grey who it is."""
    image = torch.full((height, width), 253, dtype=torch.uint8)
    image[2 + number // 3 : 12 + number // 2, 5 : 20 + number // 2] = 9 * number
    return image


def label(number: int, part: str) -> int:
    return (7 * number + len(part)) % COUNTS[part]


def write_bengali(folder: Path, height: int = HEIGHT, width: int = WIDTH) -> Path:
    """Write four tables of six images, a column for each pixel, and the labels in another order."""
    import pyarrow as pa
    from pyarrow import parquet

    folder.mkdir()
    for i in range(4):
        numbers = range(PER_FILE * i, PER_FILE * (i + 1))
        pixels = torch.stack([page(number, height, width).flatten() for number in numbers])
        columns = {"image_id": pa.array([f"Train_{number}" for number in numbers])}
        columns |= {str(j): pa.array(column, pa.uint8()) for j, column in enumerate(pixels.T.tolist())}
        parquet.write_table(pa.table(columns), folder / f"train_image_data_{i}.parquet", row_group_size=4)
    with (folder / "train.csv").open("w", newline="", encoding="utf8") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", *COUNTS, "grapheme"])
        for number in reversed(range(4 * PER_FILE)):
            writer.writerow([f"Train_{number}", *(label(number, part) for part in COUNTS), "ক্ট্রো"])
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bengali(tmp_path_factory.mktemp("data") / "bengaliai-cv19")


def bengali(folder: Path, **arguments: Any) -> Any:
    return SmallPages(root=str(folder.parent), workers=0, batch_size=8, **arguments)


def check_graphemes(data: Any) -> None:
    both = [*data.train.dataset]
    assert len(both) == 24
    for number, (x, y) in enumerate(both):
        assert x.shape == (1, 64, 64)
        grey = (x * data.std[0] + data.mean[0]) * 255
        assert float((grey - (255 - 9 * number)).abs().max()) < 0.01  # nothing is left but the box
        assert int(y) == label(number, "grapheme_root")
    assert len(data.classes) == 168


def test_graphemes_are_cropped_resized_light_on_dark_and_standardised(published: Path) -> None:
    check_graphemes(made(bengali(published)))


@pytest.mark.slow
def test_pages_of_the_published_size_are_read(tmp_path: Path) -> None:
    write_bengali(tmp_path / "bengaliai-cv19", 137, 236)
    check_graphemes(made(BengaliData(root=str(tmp_path), workers=0)))


def test_the_box_is_the_ink_as_pillow_would_crop_and_resize_it() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.zeros(1, 137, 236, dtype=torch.uint8)
    image[:, 20:100, 50:180] = torch.randint(6, 256, (1, 80, 130), dtype=torch.uint8, generator=generator)
    image[:, :, 0] = 5  # not ink
    box = Image.frombytes("L", (236, 137), bytes(image.flatten().tolist())).crop((50, 20, 180, 100))
    expected = torch.tensor(list(box.resize((64, 64), Image.Resampling.BILINEAR).tobytes())).view(1, 64, 64)
    assert int((cropped(image).int() - expected).abs().max()) <= 1
    assert cropped(torch.zeros(1, 9, 9, dtype=torch.uint8)).tolist() == torch.zeros(1, 64, 64).int().tolist()


def test_the_five_folds_part_the_images_and_are_the_same_for_all_parts(published: Path) -> None:
    held_out = []
    for fold in range(5):
        data = made(bengali(published, fold=fold))
        train, test = set(data.train.indices), set(data.test.indices)
        assert train | test == set(range(24)) and not train & test
        assert len(test) in (4, 5)
        other = made(bengali(published, fold=fold, part="vowel_diacritic"))
        assert other.test.indices == data.test.indices
        held_out += sorted(test)
    assert sorted(held_out) == list(range(24))


@pytest.mark.parametrize("part", list(COUNTS))
def test_each_part_of_the_grapheme_is_a_task(published: Path, part: str) -> None:
    data = made(bengali(published, part=part))
    _, y = whole(data.test_dataloader())
    assert y.tolist() == [label(number, part) for number in data.test.indices]
    assert len(data.classes) == COUNTS[part]
    small = made(bengali(published, part=part, train_size=5))
    assert len(small.train) == 5


def test_all_parts_of_the_grapheme_are_told_at_once(published: Path) -> None:
    data = made(bengali(published, part="all"))
    _, y = whole(data.test_dataloader())
    assert y.tolist() == [[label(number, part) for part in COUNTS] for number in data.test.indices]
    assert len(made(bengali(published, part="all", train_size=5)).train) == 5


def test_tables_are_read_once(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(bengali(published))
    monkeypatch.setattr("pyarrow.parquet.ParquetFile", refuse)
    assert len(made(bengali(published, fold=3)).train) == 19


def test_a_damaged_table_is_named(published: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bengaliai-cv19"
    folder.mkdir()
    for file in published.glob("train*"):
        (folder / file.name).write_bytes(file.read_bytes())
    path = folder / "train_image_data_2.parquet"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match=f"{path} is damaged"):
        bengali(folder).prepare_data()
    path.write_bytes((published / path.name).read_bytes())
    rows = (folder / "train.csv").read_text().splitlines()
    (folder / "train.csv").write_text("\n".join(row for row in rows if not row.startswith("Train_7,")))
    with pytest.raises(ValueError, match="train.csv is damaged: it has no row for Train_7"):
        bengali(folder).prepare_data()


def test_graphemes_that_are_missing_say_what_to_fetch() -> None:
    with pytest.raises(FileNotFoundError, match="fetch bengaliai-cv19.zip from https://www.kaggle.com"):
        BengaliData().prepare_data()


def test_graphemes_without_pyarrow_say_how_to_get_it(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bengaliai-cv19"
    folder.mkdir()
    for i in range(4):
        (folder / f"train_image_data_{i}.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ModuleNotFoundError, match=r"pyarrow: pip install 'lightning-msda\[experiments\]'"):
        bengali(folder).prepare_data()


@pytest.mark.parametrize("arguments", [{"fold": 5}, {"fold": -1}, {"part": "root"}])
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any]) -> None:
    ((name, value),) = arguments.items()
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        BengaliData(**arguments)
