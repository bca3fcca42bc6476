"""The bundled recipes: each says what it is, runs as it stands, and is found and layered by name."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_msda import MSDA
from lightning_msda.cli import main, recipes
from lightning_msda.cli.app import App
from lightning_msda.cli.recipes import find_recipe, recipe_names, recipes_folder
from tests.tools import QUIET
from tests.tools import workplace as workplace

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
FILES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.yaml"))
NAMES = [file.removesuffix(".yaml") for file in FILES if not file.endswith(".sweep.yaml")]
CONTENTS: dict[str, dict[str, Any]] = {
    name: yaml.safe_load((FOLDER / f"{name}.yaml").read_text()) for name in NAMES
}
METHODS = [name for name in NAMES if name.startswith("msda/")]
CITATION = r"\((arXiv:\d{4}\.\d{5}|openreview\.net/forum\?id=\w+).*\)"
SMOKE = [*QUIET, "--trainer.fast_dev_run=true", "--trainer.accelerator=cpu", "--trainer.devices=1"]

every_recipe = pytest.mark.parametrize("name", NAMES)


def header(name: str) -> list[str]:
    return (FOLDER / f"{name}.yaml").read_text().splitlines()[:4]


def test_there_are_recipes_of_every_kind() -> None:
    assert {"digits/cnn", "log/wandb", "msda/mixup", "msda/randommix"} <= set(NAMES)
    assert len(METHODS) >= 6
    assert len(NAMES) > 60


@every_recipe
def test_a_recipe_says_what_it_is(name: str) -> None:
    first = header(name)[0]
    assert re.fullmatch(r"# \S.*\.", first)
    if not name.startswith(("digits/", "log/")):
        assert re.search(r"\. Differs from the paper in: \S", first)
        assert name == "msda/none" or re.search(CITATION, first)


@every_recipe
def test_a_recipe_says_how_it_is_run(name: str) -> None:
    second = header(name)[1]
    assert re.match(r"# Run:    (WANDB_MODE=offline )?lightning-msda (fit|test) --config ", second)
    words = shlex.split(second)
    configs = [words[i + 1] for i, word in enumerate(words) if word == "--config"]
    assert name in configs
    assert set(configs) <= set(NAMES)


@every_recipe
def test_a_recipe_says_how_it_is_logged_and_tried_out(name: str) -> None:
    third = header(name)[2]
    assert re.match(r"# W&B:    (add --config log/wandb|this is it) +Smoke: add --trainer\.\S+ \S+$", third)


@every_recipe
def test_a_recipe_says_what_to_expect(name: str) -> None:
    assert re.match(r"# Expect: \S", header(name)[3])
    assert not (FOLDER / f"{name}.yaml").read_text().splitlines()[4].startswith("#")


@pytest.mark.parametrize("name", [name for name in NAMES if "msda" in CONTENTS[name]])
def test_a_method_recipe_holds_the_method_alone(name: str) -> None:
    assert list(CONTENTS[name]) == ["msda"]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_recipe_runs(name: str) -> None:
    main(["fit", "--config", "digits/cnn", "--config", name, *SMOKE])


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("log/")])
def test_a_logger_runs_on_top(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    main(["fit", "--config", "digits/cnn", "--config", "msda/randommix", "--config", name, *SMOKE])


def method_of(*args: str) -> MSDA | None:
    """Return the method that a command line makes."""
    app = App(["--config", "digits/cnn", *args], run=False)
    callbacks: list[Any] = app.trainer.callbacks  # type: ignore[attr-defined]
    methods = [callback for callback in callbacks if isinstance(callback, MSDA)]
    assert len(methods) <= 1
    return methods[0] if methods else None


def described(method: MSDA | None) -> Any:
    """Return the class of a method and its arguments."""
    if method is None:
        return None
    arguments = {key: value for key, value in vars(method).items() if not key.startswith(("_", "last_"))}
    if "candidates" in arguments:
        arguments["candidates"] = [described(candidate) for candidate in arguments["candidates"]]
    return type(method).__name__, arguments


@pytest.mark.parametrize("name", [name for name in METHODS if CONTENTS[name]["msda"]])
def test_a_method_recipe_makes_what_it_says(name: str) -> None:
    given = CONTENTS[name]["msda"]

    def check(method: Any, wanted: dict[str, Any]) -> None:
        assert type(method).__name__ == wanted["class_path"]
        for key, value in wanted.get("init_args", {}).items():
            if key == "candidates":
                for candidate, inner in zip(method.candidates, value, strict=True):
                    check(candidate, inner)
            else:
                made = getattr(method, key)
                assert (list(made) if isinstance(made, tuple) else made) == value

    check(method_of("--config", name), given)


def test_recipes_are_listed_with_their_first_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    main(["recipes"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == NAMES == recipe_names()
    for line, name in zip(lines, NAMES, strict=True):
        assert header(name)[0].startswith(f"# {line.removeprefix(name).strip()}.")


@every_recipe
def test_a_recipe_is_shown_as_it_is(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["recipes", name])
    assert capsys.readouterr().out == (FOLDER / f"{name}.yaml").read_text()


def test_several_recipes_are_shown_one_after_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    main(["recipes", "msda/fmix", "msda/mixup"])
    texts = [(FOLDER / f"msda/{name}.yaml").read_text() for name in ("fmix", "mixup")]
    assert capsys.readouterr().out == "".join(texts)


@pytest.mark.parametrize(
    "spelling", ["msda/fmix", "msda/fmix.yaml", "recipes/msda/fmix.yaml", "recipes/msda/fmix"]
)
def test_recipes_are_found_from_any_directory(
    spelling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "somewhere" / "else").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "somewhere" / "else")
    assert find_recipe(spelling).resolve() == FOLDER / "msda" / "fmix.yaml"
    assert type(method_of("--config", spelling)).__name__ == "FMix"
    assert type(method_of(f"--config={spelling}")).__name__ == "FMix"
    assert type(method_of("-c", spelling)).__name__ == "FMix"


def test_a_file_comes_before_a_recipe_of_its_name() -> None:
    Path("msda").mkdir()
    Path("msda/fmix").write_text("msda: {class_path: MixUp}")
    assert type(method_of("--config", "msda/fmix")).__name__ == "MixUp"


def test_an_installed_package_has_its_recipes_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert recipes_folder() == FOLDER
    inside = tmp_path / "lightning_msda" / "recipes" / "msda"
    inside.mkdir(parents=True)
    (inside / "own.yaml").write_text("# Own. Recipe.\n")
    monkeypatch.setattr(recipes, "__file__", str(tmp_path / "lightning_msda" / "cli" / "recipes.py"))
    assert recipe_names() == ["msda/own"]
    assert recipes.summary("msda/own") == "Own"


# A layered method, and one that is layered over it, each as a file or as arguments.
MINE = "msda: {class_path: MixUp, init_args: {alpha: 0.3, prob: 0.5}}"
LATER = {
    "recipe": ["--config", "msda/cutmix"],
    "class_path in a file": ["--config", "cutmix.yaml"],
    "name in a file": ["--config", "short.yaml"],
    "argument": ["--msda", "CutMix"],
    "argument with =": ["--msda=CutMix"],
    "its class_path": ["--msda.class_path", "CutMix"],
    "its full name": ["--msda", "lightning_msda.CutMix"],
}


@pytest.fixture
def mine() -> list[str]:
    Path("mine.yaml").write_text(MINE)
    Path("cutmix.yaml").write_text("msda: {class_path: CutMix}")
    Path("short.yaml").write_text("msda: CutMix")
    return ["--config", "mine.yaml"]


@pytest.mark.parametrize("case", LATER)
def test_a_later_method_replaces_an_earlier_one_whole(case: str, mine: list[str]) -> None:
    assert described(method_of(*mine, *LATER[case])) == described(method_of("--msda", "CutMix"))


@pytest.mark.parametrize("case", LATER)
def test_a_recipe_replaces_an_earlier_method_whole(case: str, mine: list[str]) -> None:
    assert described(method_of(*LATER[case], *mine)) == described(method_of(*mine))


def test_arguments_replace_earlier_arguments_of_another_method() -> None:
    args = ["--msda", "MixUp", "--msda.alpha", "0.3", "--msda.prob", "0.5", "--msda", "CutMix"]
    assert described(method_of(*args)) == described(method_of("--msda", "CutMix"))


def test_the_later_method_keeps_its_own_arguments(mine: list[str]) -> None:
    method: Any = method_of(*mine, "--msda", "FMix", "--msda.decay_power", "2.0", "--msda.prob", "0.25")
    assert (type(method).__name__, method.alpha, method.decay_power, method.prob) == ("FMix", 1.0, 2.0, 0.25)


def test_of_three_methods_the_last_is_left(mine: list[str]) -> None:
    wanted = described(method_of("--config", "msda/fmix"))
    assert described(method_of(*mine, "--config", "msda/randommix", "--config", "msda/fmix")) == wanted


def test_the_same_method_is_layered_argument_by_argument(mine: list[str]) -> None:
    Path("more.yaml").write_text("msda: {init_args: {alpha: 0.7}}")
    for later in (
        ["--msda.alpha", "0.7"],
        ["--config", "more.yaml"],
        ["--msda", "MixUp", "--msda.alpha", "0.7"],
    ):
        method: Any = method_of(*mine, *later)
        assert (type(method).__name__, method.alpha, method.prob) == ("MixUp", 0.7, 0.5)


@pytest.mark.parametrize("later", [["--msda", "null"], ["--msda=null"], ["--config", "none.yaml"]])
def test_a_later_null_leaves_no_method(later: list[str], mine: list[str]) -> None:
    Path("none.yaml").write_text("msda: null")
    assert method_of(*mine, *later) is None


def test_what_else_is_in_a_replaced_methods_file_counts(mine: list[str]) -> None:
    Path("mine.yaml").write_text(f"{MINE}\ntrainer: {{max_epochs: 7}}")
    app = App(["--config", "digits/cnn", *mine, "--msda", "CutMix"], run=False)
    assert app.trainer.max_epochs == 7


def test_a_methods_file_is_not_written_to(mine: list[str]) -> None:
    method_of(*mine, "--msda", "CutMix")
    assert Path("mine.yaml").read_text() == MINE


def test_the_printed_configuration_is_the_one_that_runs(
    mine: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "--config", "digits/cnn", *mine, "--msda", "CutMix", "--print_config"])
    assert exit_.value.code in (0, None)
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["msda"]["class_path"].endswith("CutMix")
    assert printed["msda"]["init_args"]["alpha"] == 1.0
    assert printed["msda"]["init_args"].get("prob", 1.0) == 1.0


@pytest.mark.parametrize("given", ["false", "False"])
def test_inputs_alone_are_mixed_by_a_word_on_the_command_line(given: str) -> None:
    method: Any = method_of("--msda", "MixUp", f"--msda.target_key={given}")
    assert method.target_key is False


def test_the_command_of_the_demo_is_one_that_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    makefile = (FOLDER.parent / "Makefile").read_text()
    (recipes_,) = re.findall(r"^RECIPES := (.*)$", makefile, re.MULTILINE)
    (command,) = re.findall(r"lightning-msda (compare .*?)\n\n", makefile, re.DOTALL)
    words = command.replace("\\\n", " ").replace("$(RECIPES)", recipes_).split()
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    words[words.index("--seeds") + 1 : words.index("--out")] = ["0"]
    main([*words, "--trainer.max_epochs", "1"])
    assert {path.name for path in Path("demo").iterdir()} >= {"table.csv", "plot.png", "mixes.png", "wandb"}
    assert len((Path("demo") / "runs.csv").read_text().splitlines()) == 1 + len(recipes_.split())
