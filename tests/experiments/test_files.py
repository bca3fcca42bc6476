"""What is fetched, missing, kept; and the choices of samples that all data modules make."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_msda.experiments import data
from lightning_msda.experiments.data.base import DataModule
from lightning_msda.experiments.data.files import Source, kept
from lightning_msda.experiments.data.subsets import balanced_subset, folds
from tests.experiments.tools import unplugged
from tests.tools import workplace as workplace

OPEN = Source(
    name="Open", folder="open", fetch_by_hand="open.zip from page", urls=("there/open.zip", "there/a.txt")
)
CLOSED = Source(name="Closed", folder="closed", fetch_by_hand="closed.zip from page")


def test_archives_and_files_are_fetched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def archive(url: str, root: str, extract_root: str, md5: str | None) -> None:
        asked.append(url)
        inside = Path(extract_root, "open")
        inside.mkdir(parents=True)
        (inside / "b.txt").touch()

    def file(url: str, root: str) -> None:
        asked.append(url)

    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", archive)
    monkeypatch.setattr("torchvision.datasets.utils.download_url", file)
    OPEN.fetch("data")
    OPEN.fetch("data")
    assert asked == list(OPEN.urls)
    assert [str(path) for path in sorted(Path().rglob("*"))] == ["data", "data/open", "data/open/b.txt"]


def test_half_an_archive_leaves_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(url: str, root: str, extract_root: str, md5: str | None) -> None:
        Path(extract_root, "open").mkdir(parents=True)
        unplugged()

    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", broken)
    sentence = (
        r"data/open is missing and could not be downloaded \(no network\). For Open, fetch open.zip from page"
    )
    with pytest.raises(FileNotFoundError, match=sentence):
        OPEN.fetch("data")
    assert list(Path("data").iterdir()) == []


def test_what_needs_an_account_is_not_asked_for() -> None:
    sentence = (
        "data/closed is missing. For Closed, fetch closed.zip from page, and unpack it so that data/closed"
    )
    with pytest.raises(FileNotFoundError, match=sentence):
        CLOSED.fetch("data")


def test_what_is_kept_is_made_anew_when_a_file_changes() -> None:
    file, made = Path("a"), []
    file.write_text("first")

    def make() -> dict[str, Any]:
        made.append(file.read_text())
        return {"values": torch.arange(3), "names": ["x"]}

    for content in ("first", "first", "another", "another"):
        if file.read_text() != content:
            file.write_text(content)
        found = kept("name", Path(), [file], make)
        assert found["values"].tolist() == [0, 1, 2] and found["names"] == ["x"]
    assert made == ["first", "another"]
    kept("other", Path(), [file], make)
    assert len(made) == 3


def test_where_nothing_can_be_written_it_is_made_each_time() -> None:
    Path(".lightning_msda").touch()  # in place of the folder
    made: list[int] = []

    def make() -> dict[str, Any]:
        made.append(1)
        return {}

    for _ in range(2):
        kept("name", Path(), [], make)
    assert len(made) == 2


def test_chosen_samples_are_of_even_classes_and_contain_smaller_choices() -> None:
    targets = torch.tensor([0] * 50 + [1] * 30 + [2] * 4)[torch.randperm(84)]
    for size in (1, 2, 3, 7, 12, 20, 60, 84):
        chosen = balanced_subset(targets, size)
        assert len(set(chosen)) == size
        counts = Counter(targets[chosen].tolist())
        rest = min(max(counts.values()), size)
        assert all(counts[k] >= min(rest - 1, available) for k, available in ((0, 50), (1, 30), (2, 4)))
        assert chosen == balanced_subset(targets, 84)[:size]
    assert Counter(targets[balanced_subset(targets, 12)].tolist()) == {0: 4, 1: 4, 2: 4}


def test_samples_of_several_labels_are_chosen_at_random() -> None:
    chosen = balanced_subset(torch.zeros(1000, 6), 500)
    assert len(set(chosen)) == 500
    assert sum(i < 500 for i in chosen) == pytest.approx(250, abs=50)


def test_choosing_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    balanced_subset(torch.arange(9), 4)
    folds(9, 3)
    assert torch.equal(torch.get_rng_state(), state)


def test_folds_part_all_samples() -> None:
    parts = folds(23, 5)
    assert sorted(len(part) for part in parts) == [4, 4, 5, 5, 5]
    assert sorted(i for part in parts for i in part) == list(range(23))


@pytest.mark.parametrize("name", [name for name in data.__all__ if name.endswith("Data")])
def test_each_data_module_can_be_made_without_arguments_and_drawn(name: str) -> None:
    module = getattr(data, name)()
    assert isinstance(module, DataModule)
    assert len(module.mean) == len(module.std) in (1, 3)
    for argument in ("batch_size", "train_size"):
        with pytest.raises(ValueError, match=f"{argument}=0"):
            type(module)(**{argument: 0})
