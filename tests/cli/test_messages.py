"""Every mistake on the command line is answered by one line, with the nearest right name."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_msda.cli import main
from lightning_msda.cli.messages import explain, nearest
from tests.tools import workplace as workplace

BASE = ["fit", "--config", "digits/cnn"]
MIXUP = [*BASE, "--msda", "MixUp"]
RANDOM = [*BASE, "--msda", "RandomMix"]


def refusal(capsys: pytest.CaptureFixture[str], args: list[str]) -> str:
    """Run the command line, and return the one line with which it refuses."""
    with pytest.raises(SystemExit) as exit_:
        main(args)
    captured = capsys.readouterr()
    assert exit_.value.code == 2
    (line,) = captured.err.splitlines()
    assert line.startswith("lightning-msda: ")
    assert captured.out == ""
    return line.removeprefix("lightning-msda: ")


# What is written, what was meant, and the name of it that the answer must contain.
MISSPELT: dict[str, tuple[list[str], str]] = {
    "verb": (["fti", "--config", "digits/cnn"], "'fit'"),
    "own verb": (["previw", "--config", "digits/cnn"], "'preview'"),
    "recipe": (["fit", "--config", "digit/cnn"], "'digits/cnn'"),
    "recipe of a method": ([*BASE, "--config=msda/fmx"], "'msda/fmix'"),
    "recipe with its folder": ([*BASE, "-c", "recipes/msda/cutmx.yaml"], "'msda/cutmix'"),
    "recipe to show": (["recipes", "msda/mixupp"], "'msda/mixup'"),
    "recipe to preview": (["preview", "--config", "digits/cn", "--msda", "FMix"], "'digits/cnn'"),
    "policy": (["compare", "--config", "digits/cnn", "--policies", "none", "fmx"], "'msda/fmix'"),
    "recipe to compare on": (["compare", "--config", "digits/cn", "--policies", "none"], "'digits/cnn'"),
    "method": ([*BASE, "--msda", "MixUpp"], "'MixUp'"),
    "method with another case": ([*BASE, "--msda=cutmix"], "'CutMix'"),
    "method to preview": (["preview", "--config", "digits/cnn", "--msda", "FMx"], "'FMix'"),
    "method in the callbacks": ([*BASE, "--trainer.callbacks", "ResizMix"], "'ResizeMix'"),
    "monitor": ([*BASE, "--trainer.callbacks", "MixMonitr"], "'MixMonitor'"),
    "candidate": ([*RANDOM, "--msda.candidates+=CutMixx"], "'CutMix'"),
    "argument of a candidate": (
        [*RANDOM, "--msda.candidates+=CutMix", "--msda.candidates.alhpa=1"],
        "'alpha'",
    ),
    "argument of a method": ([*MIXUP, "--msda.alhpa", "0.2"], "'alpha'"),
    "common argument of a method": ([*MIXUP, "--msda.per_smaple", "true"], "'per_sample'"),
    "argument of RandomMix": ([*RANDOM, "--msda.weigths", "[1, 1, 1, 1]"], "'weights'"),
    "argument of the trainer": ([*BASE, "--trainer.max_epoch", "1"], "'trainer.max_epochs'"),
    "trainer": ([*BASE, "--trainr.max_epochs", "1"], "'trainer.max_epochs'"),
    "argument of the data": ([*BASE, "--data.batch_sise", "8"], "'batch_size'"),
    "data": ([*BASE, "--data", "DigitData"], "'DigitsData'"),
    "argument of the model": ([*BASE, "--model.num_clases", "3"], "'num_classes'"),
    "argument of the network": ([*BASE, "--model.network.widht", "3"], "'width'"),
    "network": ([*BASE, "--model.network", "SmallCN"], "'SmallCNN'"),
    "model": ([*BASE, "--model", "Clasification"], "'Classification'"),
    "option": ([*BASE, "--confg", "msda/fmix"], "'config'"),
    "argument of the optimizer": ([*BASE, "--optimizer.wieght_decay", "1"], "'weight_decay'"),
    "short argument of the optimizer": ([*BASE, "--optimizer.lrr", "1"], "'lr'"),
    "optimizer": ([*BASE, "--optimizer", "AdmW"], "'AdamW'"),
    "option of preview": (
        ["preview", "--config", "digits/cnn", "--msda", "FMix", "--sampels", "3"],
        "'samples'",
    ),
    "option of compare": (["compare", "--config", "digits/cnn", "--polices", "none"], "policies"),
}


@pytest.mark.parametrize("case", MISSPELT)
def test_a_misspelt_name_is_answered_by_the_nearest_right_one(
    case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    args, right = MISSPELT[case]
    assert right in refusal(capsys, args)


# The same in a YAML file on top of the base recipe.
IN_YAML = {
    "group": ("mdsa: {class_path: MixUp}", "'msda'"),
    "argument of the trainer": ("trainer: {max_epoch: 1}", "'trainer.max_epochs'"),
    "method": ("msda: {class_path: MixUpp}", "'MixUp'"),
    "argument of a method": ("msda: {class_path: MixUp, init_args: {alhpa: 1.0}}", "'alpha'"),
    "init_args": ("msda: {class_path: MixUp, init_arg: {alpha: 1.0}}", "'init_args'"),
    "candidate": (
        "msda: {class_path: RandomMix, init_args: {candidates: [{class_path: FMx}]}}",
        "'FMix'",
    ),
    "argument of a candidate": (
        "msda: {class_path: RandomMix, init_args: {candidates: [{class_path: FMix, init_args: {decay: 1}}]}}",
        "'decay_power'",
    ),
}


@pytest.mark.parametrize("case", IN_YAML)
def test_a_name_misspelt_in_a_file_is_answered_alike(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    text, right = IN_YAML[case]
    Path("mine.yaml").write_text(text)
    assert right in refusal(capsys, [*BASE, "--config", "mine.yaml"])


# What is written, and what the answer must contain: the argument, what was given and what is taken.
WRONG: dict[str, tuple[list[str], list[str]]] = {
    "word for a number": ([*MIXUP, "--msda.prob", "high"], ["prob", "high", "float"]),
    "word for a truth value": ([*MIXUP, "--msda.per_sample", "maybe"], ["per_sample", "'maybe'", "bool"]),
    "word for a whole number": ([*BASE, "--trainer.max_epochs", "many"], ["max_epochs", "many", "int"]),
    "word for a size": ([*BASE, "--data.batch_size", "few"], ["batch_size", "'few'", "int"]),
    "word for a seed": ([*BASE, "--seed_everything", "x"], ["seed_everything", "'x'", "int"]),
    "unknown choice": ([*RANDOM, "--msda.order", "sorted"], ["order", "sorted", "random", "cycle"]),
    "alpha": ([*MIXUP, "--msda.alpha", "-1"], ["alpha=-1", "above 0"]),
    "prob": ([*MIXUP, "--msda.prob", "2"], ["prob=2", "from 0 to 1"]),
    "weights": ([*RANDOM, "--msda.weights", "[1, 2]"], ["weights=[1.0, 2.0]", "4 numbers"]),
    "side": ([*BASE, "--msda", "ResizeMix", "--msda.side", "[0.8, 0.1]"], ["side=(0.8, 0.1)", "smaller"]),
    "decay_power": ([*BASE, "--msda", "FMix", "--msda.decay_power", "0"], ["decay_power=0", "above 0"]),
    "stop_epoch": ([*MIXUP, "--msda.stop_epoch", "0"], ["stop_epoch=0", "start_epoch=0"]),
    "candidate's": (
        [*RANDOM, "--msda.candidates+=MixUp", "--msda.candidates.alpha=-1"],
        ["alpha=-1", "above 0"],
    ),
    "candidate's own seed": (
        [*RANDOM, "--msda.candidates+=MixUp", "--msda.candidates.seed=1"],
        ["seed=1", "RandomMix(seed="],
    ),
    "batch_size": ([*BASE, "--data.batch_size", "0"], ["batch_size=0", "from 1"]),
    "train_size": ([*BASE, "--data.train_size", "2000"], ["train_size=2000", "1097"]),
    "monitor": (
        [*BASE, "--trainer.callbacks", "lightning_msda.monitor.MixMonitor", "--trainer.callbacks.images=0"],
        ["images=0", "from 1"],
    ),
    "arguments before the method": (
        [*BASE, "--msda.alpha", "1", "--msda", "MixUp"],
        ["--msda MixUp --msda.alpha"],
    ),
    "arguments without a method": ([*BASE, "--msda.alpha", "1"], ["--msda MixUp --msda.alpha"]),
    "method without a name": ([*BASE, "--msda"], ["--msda", "argument"]),
    "no model": (["fit"], ["model"]),
    "no method to draw": (["preview", "--config", "digits/cnn"], ["no method", "--msda FMix"]),
    "metric that is no share": (
        ["compare", "--config", "digits/cnn", "--policies", "none", "--seeds", "0", "--metric", "test/loss"],
        ["test/loss is ", "share in [0, 1]", "--metric"],
    ),
    "no policies": (["compare", "--config", "digits/cnn"], ["--policies"]),
    "word for seeds": (
        ["compare", "--config", "digits/cnn", "--policies", "none", "--seeds", "a"],
        ["--seeds", "'a'"],
    ),
    "word for samples": (
        ["preview", "--config", "digits/cnn", "--msda", "FMix", "--samples", "three"],
        ["--samples", "'three'"],
    ),
    "no samples": (
        ["preview", "--config", "digits/cnn", "--msda", "FMix", "--samples", "0"],
        ["samples"],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_value_is_answered_by_what_it_must_be(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    args, words = WRONG[case]
    line = refusal(capsys, args)
    assert [word for word in words if word not in line] == []


@pytest.mark.parametrize("text", ["msda: [1, 2", "- a\n- list", "word"], ids=["broken", "list", "word"])
def test_a_file_that_is_no_recipe_is_named(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text(text)
    assert "mine.yaml" in refusal(capsys, [*BASE, "--config", "mine.yaml"])


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n"], ids=["nothing", "comment"])
def test_an_empty_file_changes_nothing(text: str) -> None:
    Path("mine.yaml").write_text(text)
    main(
        [*BASE, "--config", "mine.yaml", "--trainer.fast_dev_run=true", "--trainer.enable_progress_bar=false"]
    )


@pytest.mark.parametrize("case", ["method", "policy", "recipe to compare on", "recipe to preview"])
def test_a_refusal_leaves_nothing_behind(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    refusal(capsys, MISSPELT[case][0])
    assert list(Path().iterdir()) == []


def test_nothing_else_is_said_beside_the_one_line(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    refusal(capsys, WRONG["alpha"][0])
    assert caplog.messages == []  # Lightning's loggers write to the standard error


def test_a_method_that_is_none_of_the_packages_can_be_misspelt_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = refusal(capsys, [*BASE, "--msda", "mine.MixThem"])
    assert "mine.MixThem" in line


def test_the_nearest_name_disregards_case_and_leaves_the_far_ones_out() -> None:
    assert nearest("RANDOMIX", ["MixUp", "RandomMix"]) == " Did you mean 'RandomMix'?"
    assert nearest("xyz", ["MixUp", "RandomMix"]) == ""


def test_a_message_that_is_not_known_stays_one_line() -> None:
    assert explain("Something\n  else\nfailed", []) == "Something else failed"
