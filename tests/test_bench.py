"""The bookkeeping of ``make bench``: trials, ratios, intervals, the table and its page. Nothing is timed."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
import torch
from PIL import Image

from docs.bench import Row, bootstrap, interleaved, main, page, plot, ratio_row, section, table

MET = Row("MixUp", "a peer", 1.0, 0.8, (0.7, 0.9), notes="ours 8 ms")
NONE = Row("packages", "none", 0.0, 0.0, (0.0, 0.0), "packages")
MISSED = Row("import", "another", 0.1, 0.25, (0.2, 0.3), "s")


def test_trials_are_interleaved_in_turn_and_after_an_untimed_call() -> None:
    now, order = 0.0, []

    def work(name: str, seconds: float) -> None:
        nonlocal now
        order.append(name)
        now += seconds

    times = interleaved({"a": lambda: work("a", 2.0), "b": lambda: work("b", 3.0)}, 2, lambda: now)
    assert order == ["a", "a", "b", "b", "b", "b", "a", "a"]
    assert times == {"a": [2.0, 2.0], "b": [3.0, 3.0]}


def test_a_ratio_is_held_against_the_fastest_trial_by_trial() -> None:
    times = {"ours": [1.0, 4.0, 3.0], "slow": [9.0, 9.0, 9.0], "fast": [2.0, 2.0, 2.0], "else": [0.1] * 3}
    row = ratio_row("MixUp", "ours", {"slow": "the slow one", "fast": "the fast one"}, 1.5, times)
    assert (row.against, row.measured, row.target, row.met) == ("the fast one", 1.5, 1.5, True)
    assert row.interval[0] <= row.measured <= row.interval[1]
    assert row.notes == "ours 3e+03 ms, the slow one 9e+03 ms, the fast one 2e+03 ms"


def test_the_bootstrap_interval_covers_the_median_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(1)
    covered = 0
    for _ in range(300):
        low, high = bootstrap(torch.randn(25, dtype=torch.float64, generator=generator).tolist(), draws=300)
        covered += low <= 0 <= high
    assert 0.88 < covered / 300 < 0.99
    assert bootstrap([2.0, 2.0, 2.0]) == (2.0, 2.0)


def test_the_median_lies_inside_of_its_interval() -> None:
    values = torch.rand(31, generator=torch.Generator().manual_seed(2)).tolist()
    low, high = bootstrap(values)
    assert min(values) < low < statistics.median(values) < high < max(values)


def test_the_table_shows_what_was_met_and_what_was_missed() -> None:
    _, _, met, missed = table([MET, MISSED]).splitlines()
    assert met == "| MixUp | a peer | ≤ 1.000x | 0.800x | 0.700x – 0.900x | 🟢 yes | ours 8 ms |"
    assert missed == "| import | another | ≤ 0.100 s | 0.250 s | 0.200 s – 0.300 s | 🔴 no |  |"


def test_a_section_is_written_anew_and_the_other_one_kept() -> None:
    first = page(None, "cpu", section("cpu", [MET], ["a Tuesday"]))
    assert "1 of 1 targets were met." in first
    assert first.index("## On a CPU") < first.index("- a Tuesday") < first.index("## On a GPU")
    assert first.endswith("Not measured yet.\n")
    second = page(first, "gpu", section("gpu", [MISSED], ["a Friday"]))
    assert "- a Tuesday" in second
    assert "- a Friday" in second
    assert "Not measured yet" not in second
    third = page(second, "cpu", section("cpu", [MISSED, MET], ["a Sunday"]))
    assert "1 of 2 targets were met." in third
    assert "a Tuesday" not in third
    assert "- a Friday" in third
    assert page(third, "cpu", section("cpu", [MISSED, MET], ["a Sunday"])) == third


def test_the_plot_is_a_picture_with_a_line_for_each_row(tmp_path: Path) -> None:
    sizes = []
    for rows in ([MET], [MET, MISSED, NONE] * 5):
        plot(rows, tmp_path / "plot.png")
        with Image.open(tmp_path / "plot.png") as picture:
            sizes.append(picture.size)
    assert sizes[0][0] == sizes[1][0]
    assert sizes[0][1] < sizes[1][1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU would be measured")
def test_without_a_gpu_a_sentence_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["bench.py", "--gpu"])
    assert main() == 2
    assert "There is no CUDA device" in capsys.readouterr().out
