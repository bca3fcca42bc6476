"""Comparisons in small: fair trainings, and files and a table that say the same; previews; the report."""

from __future__ import annotations

import logging
import os
import re
import statistics
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lightning.pytorch import LightningDataModule
from PIL import Image
from torch.utils.data import DataLoader

from lightning_msda.cli import main
from lightning_msda.cli.report import Result, Row, format_table, plot, summarise, write_csv
from tests.tools import Recorder, Training, grid_size, read_csv, read_picture, working_in
from tests.tools import workplace as workplace
from tests.wandb_file import offline as offline
from tests.wandb_file import read_runs

POLICIES = ["none", "mixup", "fmix"]
TITLES = ["no mixing", "MixUp", "FMix"]
SMALL = ["--config", "digits/cnn", "--trainer.max_epochs", "2", "--data.train_size", "128"]
RECORDED = "--trainer.callbacks+=tests.tools.Recorder"


class Comparison(NamedTuple):
    """What a comparison left."""

    folder: Path
    printed: str
    trainings: list[Training]
    surroundings: list[object]


def surroundings() -> object:
    """Return what a comparison must leave alone."""
    variables = {key: value for key, value in os.environ.items() if key.startswith("WANDB_")}
    levels = [logging.getLogger(f"lightning.{name}").level for name in ("pytorch", "fabric")]
    return variables, levels, list(warnings.filters)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Comparison]:
    """Compare three policies with two seeds, once for all tests."""
    capture = pytest.MonkeyPatch()
    with working_in(tmp_path_factory.mktemp("comparison")) as folder:
        lines: list[str] = []
        capture.setattr("builtins.print", lambda *args, **_: lines.append(" ".join(map(str, args))))
        Recorder.trainings.clear()
        found = [surroundings()]
        try:
            main(["compare", "--policies", *POLICIES, "--seeds", "3", "5", "--out", "out", *SMALL, RECORDED])
        finally:
            capture.undo()
        found.append(surroundings())
        trainings = [training for training in Recorder.trainings if not training.short]
        yield Comparison(folder / "out", "\n".join(lines), trainings, found)


def cells(table: str) -> list[list[str]]:
    """Return the cells of a table in Markdown, without its line of dashes."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in [lines[0], *lines[2:]]]


def test_a_comparison_leaves_its_files(comparison: Comparison) -> None:
    names = sorted(path.name for path in comparison.folder.iterdir())
    assert names == ["mixes.png", "plot.png", "runs.csv", "table.csv", "table.md"]
    for name in ("table.csv", "runs.csv", "plot.png", "mixes.png"):
        assert f"out/{name}" in comparison.printed


def test_every_policy_was_trained_with_every_seed(comparison: Comparison) -> None:
    runs = read_csv(comparison.folder / "runs.csv")
    assert [(run["seed"], run["policy"]) for run in runs] == [(s, t) for s in ("3", "5") for t in TITLES]
    assert [training.seed for training in comparison.trainings] == ["3"] * 3 + ["5"] * 3
    for run in runs:
        assert float(run["score"]) * 500 == pytest.approx(round(float(run["score"]) * 500), abs=1e-3)
        assert float(run["seconds"]) > 0
        assert run["folder"] == ""


def test_each_training_was_mixed_by_its_policy(comparison: Comparison) -> None:
    for first in (0, 3):
        none, mixup, fmix = comparison.trainings[first : first + 3]
        assert none.methods == []
        assert mixup.methods == ["MixUp"] * 4
        assert fmix.methods == ["FMix"] * 4


def test_trainings_of_one_seed_see_the_same_data_in_the_same_order(comparison: Comparison) -> None:
    for first in (0, 3):
        same = comparison.trainings[first : first + 3]
        assert [len(training.batches) for training in same] == [4, 4, 4]
        for batches in zip(*(training.batches for training in same), strict=True):
            assert torch.equal(batches[0], batches[1])
            assert torch.equal(batches[0], batches[2])
    assert not torch.equal(comparison.trainings[0].batches[0], comparison.trainings[3].batches[0])
    assert not torch.equal(comparison.trainings[0].batches[0], comparison.trainings[0].batches[2])


def test_trainings_of_one_seed_start_from_the_same_weights(comparison: Comparison) -> None:
    for first in (0, 3):
        none, mixup, fmix = (training.weights for training in comparison.trainings[first : first + 3])
        assert torch.equal(none, mixup)
        assert torch.equal(none, fmix)
    assert not torch.equal(comparison.trainings[0].weights, comparison.trainings[3].weights)


def test_means_and_deviations_are_those_of_the_runs(comparison: Comparison) -> None:
    rows, runs = (read_csv(comparison.folder / name) for name in ("table.csv", "runs.csv"))
    assert [row["policy"] for row in rows] == TITLES
    scores = {t: [100 * float(run["score"]) for run in runs if run["policy"] == t] for t in TITLES}
    seconds = {t: [float(run["seconds"]) for run in runs if run["policy"] == t] for t in TITLES}
    for row in rows:
        own, first = scores[row["policy"]], scores["no mixing"]
        assert float(row["mean"]) == pytest.approx(statistics.mean(own))
        assert float(row["std"]) == pytest.approx(statistics.stdev(own))
        assert float(row["gain"]) == pytest.approx(statistics.mean(own) - statistics.mean(first))
        times = statistics.median(seconds[row["policy"]]) / statistics.median(seconds["no mixing"])
        assert float(row["time"]) == pytest.approx(times)


def test_the_printed_table_says_what_the_files_say(comparison: Comparison) -> None:
    assert (comparison.folder / "table.md").read_text().strip() in comparison.printed
    header, *rows = cells(comparison.printed)
    assert header[:2] == ["policy", "test/acc (%)"]
    for cell, row in zip(rows, read_csv(comparison.folder / "table.csv"), strict=True):
        first = row["policy"] == "no mixing"
        assert cell == [
            row["policy"],
            f"{float(row['mean']):.2f} ± {float(row['std']):.2f}",
            "" if first else f"{float(row['gain']):+.2f}",
            row["verdict"],
            f"{float(row['time']):.2f}x",
        ]


def test_every_training_is_reported_when_it_is_done(comparison: Comparison) -> None:
    lines = re.findall(r"\[(\d)/6\] seed (\d)  (.+?) +test/acc +([\d.]+) %", comparison.printed)
    runs = read_csv(comparison.folder / "runs.csv")
    wanted = [
        (str(i), run["seed"], run["policy"], f"{100 * float(run['score']):.2f}")
        for i, run in enumerate(runs, 1)
    ]
    assert lines == wanted


def test_the_picture_of_mixes_has_a_row_for_each_policy(comparison: Comparison) -> None:
    size = grid_size(3, 8, (8, 8), titles=TITLES, captions=["lam 0.00  0 + 0"])
    assert read_picture(comparison.folder / "mixes.png").size == size
    with Image.open(comparison.folder / "plot.png") as plotted:
        assert plotted.format == "PNG"


def refused(capsys: pytest.CaptureFixture[str], args: list[str]) -> str:
    with pytest.raises(SystemExit) as exit_:
        main(["compare", *SMALL, *args])
    assert exit_.value.code == 2
    return capsys.readouterr().err


def test_a_metric_that_is_not_logged_is_refused_before_the_trainings(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Recorder.trainings.clear()
    message = refused(capsys, ["--policies", "none", "mixup", "--metric", "test/ac", RECORDED])
    assert "'test/ac'" in message
    assert "test/acc" in message
    assert [training.short for training in Recorder.trainings] == [True]


def test_a_method_of_ones_own_is_a_policy_too() -> None:
    Path("mine.yaml").write_text(
        "# Mine (2026). It is new.\nmsda: {class_path: MixUp, init_args: {alpha: 0.1}}\n"
    )
    main(["compare", *SMALL, "--policies", "mine.yaml", "msda/cutmix", "--seeds", "1", "--out", "out"])
    rows = read_csv(Path("out/table.csv"))
    assert [row["policy"] for row in rows] == ["Mine", "CutMix"]
    assert [float(row["std"]) for row in rows] == [0.0, 0.0]
    assert float(rows[0]["time"]) == 1.0


def test_policies_of_one_title_are_both_trained_or_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for i, alpha in enumerate((0.1, 1.0)):
        Path(f"mine{i}.yaml").write_text(
            f"# Mine.\nmsda: {{class_path: MixUp, init_args: {{alpha: {alpha}}}}}\n"
        )
    args = ["--policies", "mine0.yaml", "mine1.yaml", "--seeds", "1", "--out", "out"]
    try:
        main(["compare", *SMALL, *args])
    except SystemExit as exit_:
        assert exit_.code == 2  # noqa: PT017
        assert "Mine" in capsys.readouterr().err
    else:
        assert len(read_csv(Path("out/table.csv"))) == 2


def test_a_comparison_leaves_variables_filters_and_levels_as_they_were(comparison: Comparison) -> None:
    before, after = comparison.surroundings
    assert before == after


@pytest.mark.usefixtures("offline")
def test_runs_are_named_grouped_and_tagged(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("runs").resolve()
    log = ["--config", "log/wandb", f"--trainer.logger.save_dir={folder}"]
    policies = ["--policies", "none", "mixup", "--seeds", "7", "--out", "digits"]
    main(["compare", *SMALL, *log, *policies, "--trainer.max_epochs=1"])
    printed = capsys.readouterr().out
    runs = read_runs(folder)
    assert [run.name for run in runs] == ["no mixing, seed 7", "MixUp, seed 7"]
    assert [run.group for run in runs] == ["digits", "digits"]
    assert [run.tags for run in runs] == [["no mixing"], ["MixUp"]]
    assert [run.config["msda"] and run.config["msda"]["class_path"] for run in runs] == [
        None,
        "lightning_msda.MixUp",
    ]
    assert [run.config["seed_everything"] for run in runs] == [7, 7]
    for run, row in zip(runs, read_csv(Path("digits/runs.csv")), strict=True):
        assert run.logged("test/acc")[-1][1] == pytest.approx(float(row["score"]))
        assert Path(row["folder"]).name == run.folder.name
        assert run.folder.name in printed


@pytest.mark.parametrize(
    ("args", "titles"),
    [
        (["--msda", "CutMix"], ["CutMix"]),
        (["--msda", "FMix", "--samples", "2"], ["FMix"]),
        (["--config", "msda/randommix", "--samples=1"], ["MixUp", "CutMix", "ResizeMix", "FMix"]),
        (["--trainer.callbacks", "lightning_msda.MixUp", "--samples=1"], ["MixUp"]),
    ],
    ids=["one method", "two samples", "four methods", "plain callback"],
)
def test_a_preview_has_a_row_for_each_method_and_sample(
    args: list[str], titles: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["preview", "--config", "digits/cnn", *args, "--out", "deep/down/mixes.png"])
    samples = next((int(arg[-1]) for arg in args if arg[-1].isdigit()), 3)
    headers = ["own", "partner", "own share", "mix"]
    captions = ["lam 0.00  0 + 0"]
    rows = samples * len(titles)
    size = grid_size(rows, 4, (8, 8), titles=titles, captions=captions, headers=headers)
    with Image.open("deep/down/mixes.png") as picture:
        assert picture.format == "PNG"
        assert picture.size == size
    printed = capsys.readouterr().out
    assert printed == f"deep/down/mixes.png: {rows} mixes of {', '.join(titles)}\n"
    assert [path.name for path in Path().iterdir()] == ["deep"]


def test_two_previews_are_the_same() -> None:
    for name in ("a.png", "b.png"):
        main(["preview", "--config", "digits/cnn", "--msda", "CutMix", "--out", name])
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_what_a_training_saved_can_be_previewed() -> None:
    main(["fit", *SMALL, "--msda", "CutMix", "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"])
    main(["preview", "--config", "lightning_logs/version_0/config.yaml", "--out", "mixes.png"])
    assert Path("mixes.png").is_file()


def results(scores: dict[str, list[float]], seconds: dict[str, list[float]] | None = None) -> list[Result]:
    """Return trainings in the order in which they are made, seed by seed."""
    return [
        Result(policy, seed, values[seed], seconds[policy][seed] if seconds else 1.0, "")
        for seed in range(len(next(iter(scores.values()))))
        for policy, values in scores.items()
    ]


def test_a_summary_has_means_deviations_and_gains_in_percent() -> None:
    rows = summarise(results({"none": [0.80, 0.90], "mine": [0.86, 0.92]}))
    assert [row.policy for row in rows] == ["none", "mine"]
    assert [row.mean for row in rows] == pytest.approx([85.0, 89.0])
    assert [row.std for row in rows] == pytest.approx(
        [50**0.5, 18**0.5]
    )  # of two values: difference / sqrt(2)
    assert [row.gain for row in rows] == pytest.approx([0.0, 4.0])


@pytest.mark.parametrize(
    ("scores", "verdict"),
    [
        ([0.84, 0.92], "helps"),  # gains 4 and 2: 3 against sqrt(2)
        ([0.85, 0.90], "within the spread"),  # gains 5 and 0: 2.5 against 5 / sqrt(2)
        ([0.80, 0.90], "does not help"),
        ([0.79, 0.91], "does not help"),
        ([0.70, 0.80], "does not help"),
    ],
    ids=str,
)
def test_a_gain_is_held_against_its_own_spread(scores: list[float], verdict: str) -> None:
    first, second = summarise(results({"none": [0.80, 0.90], "mine": scores}))
    assert first.verdict == ""
    assert second.verdict == verdict


def test_times_are_medians_against_the_first_policys() -> None:
    seconds = {"none": [2.0, 4.0, 90.0], "mine": [1.0, 6.0, 7.0]}
    rows = summarise(results({"none": [0.5] * 3, "mine": [0.5] * 3}, seconds))
    assert [row.time for row in rows] == pytest.approx([1.0, 1.5])


def test_a_single_seed_has_no_deviation() -> None:
    rows = summarise(results({"none": [0.5], "mine": [0.4]}))
    assert [row.std for row in rows] == [0.0, 0.0]


def test_the_gain_of_a_single_seed_is_not_called_a_help() -> None:
    rows = summarise(results({"none": [0.500], "mine": [0.501]}))
    assert rows[1].verdict != "helps"


def test_a_table_is_markdown_with_columns_of_one_width() -> None:
    rows = [
        Row("none", 85.0, 7.0711, 0.0, "", 1.0),
        Row("a longer name", 8.5, 0.004, -76.5, "does not help", 1.26),
    ]
    lines = format_table(rows, "test/acc").splitlines()
    assert len({len(line) for line in lines}) == 1
    assert set(lines[1]) == {"|", "-", " "}
    assert cells("\n".join(lines)) == [
        ["policy", "test/acc (%)", "against none", "", "time against none"],
        ["none", "85.00 ± 7.07", "", "", "1.00x"],
        ["a longer name", "8.50 ± 0.00", "-76.50", "does not help", "1.26x"],
    ]


def test_a_csv_has_every_digit_of_every_field() -> None:
    made = results({"a policy, with a comma": [1 / 3, 0.1]})
    write_csv(Path("runs.csv"), made)
    rows = read_csv(Path("runs.csv"))
    again = [
        Result(r["policy"], int(r["seed"]), float(r["score"]), float(r["seconds"]), r["folder"]) for r in rows
    ]
    assert again == made


@pytest.mark.parametrize("policies", [1, 2, 9])
def test_a_plot_grows_with_its_policies(policies: int) -> None:
    made = results({f"policy {i}": [0.5, 0.6, 0.7] for i in range(policies)})
    plot(Path("plot.png"), made, summarise(made), "test/acc")
    with Image.open("plot.png") as picture:
        assert picture.size == (7 * 150, round((0.5 * policies + 1.4) * 150))


class NamedData(LightningDataModule):
    """Batches that are not laid out as usual."""

    def train_dataloader(self) -> Any:
        x, y = torch.rand(12, 1, 8, 8), torch.arange(12)
        return DataLoader([{"scan": a, "digit": b} for a, b in zip(x, y, strict=True)], batch_size=6)  # type: ignore[arg-type]


@pytest.mark.parametrize("target", ["digit", "false"])
def test_a_preview_reads_batches_as_the_method_does(target: str) -> None:
    keys = ["--msda.input_key=scan", f"--msda.target_key={target}"]
    data = ["--data", "tests.cli.test_compare.NamedData"]
    main(["preview", "--config", "digits/cnn", "--data=null", *data, "--msda", "CutMix", *keys])
    assert Path("mixes.png").is_file()
