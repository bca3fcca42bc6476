"""The commands of docs/recipes.md and the sweep files, as they resolve, against the papers' settings."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typing_extensions import override

from lightning_msda.cli.app import App, with_recipes
from lightning_msda.cli.messages import UsageError
from lightning_msda.cli.recipes import find_recipe, read_recipe, recipe_names, recipes_folder
from tests.cli.papers import METHODS, SETTINGS, SWEEPS
from tests.tools import workplace as workplace

PAGE = Path(__file__).resolve().parents[2] / "docs" / "recipes.md"
Cell = tuple[str, str]


def commands() -> Iterator[tuple[Cell, str]]:
    """Yield the paper, the place and the command of each row of the page."""
    paper = ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            paper = line.removeprefix("## ")
        elif row := re.fullmatch(r"\| (.*) \| `(.*)` \|", line):
            yield (paper, row[1]), row[2]


COMMANDS = dict(commands())
TRAININGS = {cell: command for cell, command in COMMANDS.items() if command.startswith("lightning-msda ")}
SWEEP_FILES = sorted(
    path.relative_to(recipes_folder()).as_posix().removesuffix(".sweep.yaml")
    for path in recipes_folder().rglob("*.sweep.yaml")
)


def options(command: str) -> list[list[str]]:
    """Split a command into texts and what braces leave to choose."""
    parts = re.split(r"\{(.*?)\}", command)
    return [part.split(",") if i % 2 else [part] for i, part in enumerate(parts)]


def choices(command: str) -> list[list[str]]:
    """Return the words of a command, for all choices."""
    return [shlex.split("".join(chosen))[1:] for chosen in itertools.product(*options(command))]


def a_few(command: str) -> list[list[str]]:
    """Return the words of a command, for so many choices that all that is in braces is in one of them."""
    given = options(command)
    most = max(map(len, given))
    return [shlex.split("".join(of[i % len(of)] for of in given))[1:] for i in range(most)]


def run_line(name: str) -> list[str]:
    """Return the words of the line that runs a recipe."""
    return shlex.split(find_recipe(name).read_text().splitlines()[1].partition("lightning-msda ")[2])


class Parsing(App):
    """The command line without anything that it makes."""

    @override
    def instantiate_classes(self) -> None:
        pass


@pytest.fixture(scope="module")
def parser() -> Any:
    return Parsing(["--config", "digits/cnn"], run=False).parser


def resolved(parser: Any, words: list[str]) -> dict[str, Any]:
    """Return what a command says, under the names of the papers' settings."""
    config = parser.parse_args(with_recipes(words)).as_dict()[words[0]]
    trainer, data, model = config["trainer"], config["data"], config["model"]
    network, optimizer, scheduler = model["init_args"]["network"], config["optimizer"], config["lr_scheduler"]
    schedule = scheduler["init_args"]
    if name_of(scheduler) == "CosineAnnealingLR":
        assert schedule["T_max"] == trainer["max_epochs"] and schedule["eta_min"] == 0
    else:
        assert schedule["gamma"] == 0.1
    devices = trainer["devices"] if isinstance(trainer["devices"], int) else 1
    assert devices == 1 or trainer["strategy"] == "ddp"
    classes = network["init_args"].get("num_classes")
    assert model["init_args"].get("num_classes", model["init_args"].get("num_labels")) in (None, classes)
    return {
        **model["init_args"],
        **network["init_args"],
        **data["init_args"],
        **optimizer["init_args"],
        **(mixing(config) or {}),
        "optimizer": name_of(optimizer),
        "decay": optimizer["init_args"]["weight_decay"],
        "epochs": trainer["max_epochs"],
        "schedule": schedule.get("milestones", "cosine"),
        "batch": data["init_args"]["batch_size"] * devices,
        "devices": devices,
        "data": name_of(data),
        "task": name_of(model),
        "network": name_of(network),
        "classes": classes,
        "method": name_of(config["msda"]) if config["msda"] else None,
    }


def mixing(config: dict[str, Any]) -> dict[str, Any] | None:
    """Return the mixing method of a configuration, under the names of `METHODS`."""
    if config["msda"] is None:
        return None
    found = {"class": name_of(config["msda"]), **config["msda"]["init_args"]}
    candidates = found.get("candidates", [])
    found["alphas"] = [c["init_args"]["alpha"] for c in candidates if "alpha" in c["init_args"]]
    found["candidates"] = [name_of(candidate) for candidate in candidates]
    if isinstance(base := found.get("base"), dict):
        found |= {"base.class": name_of(base), "base.t_size": base["init_args"]["t_size"]}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}


def name_of(made: dict[str, Any]) -> str:
    return str(made["class_path"]).rpartition(".")[2]


def check(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert {key: found[key] for key in wanted} == wanted


def test_the_page_has_the_cells_whose_settings_are_known() -> None:
    assert len(TRAININGS) > 50
    assert list(TRAININGS) == list(SETTINGS)
    swept = {command for command in COMMANDS.values() if command not in TRAININGS.values()}
    assert swept == {f"wandb sweep recipes/{name}.sweep.yaml" for name in SWEEP_FILES}


def test_every_overlay_is_of_use_on_the_page() -> None:
    lines = [words for command in TRAININGS.values() for words in choices(command)]
    named = {after for words in lines for word, after in itertools.pairwise(words) if word == "--config"}
    own = [name for name in recipe_names() if not name.startswith(("digits/", "log/", "msda/"))]
    assert set(own) <= named
    assert {name for name in named if name in METHODS} == set(METHODS)


@pytest.mark.parametrize("cell", SETTINGS, ids=" ".join)
def test_a_cell_is_trained_as_in_its_paper(cell: Cell, parser: Any) -> None:
    for words in a_few(TRAININGS[cell]):
        check(resolved(parser, words), SETTINGS[cell])


@pytest.mark.slow
@pytest.mark.parametrize("cell", SETTINGS, ids=" ".join)
def test_all_choices_of_a_cell_are_trained_as_in_its_paper(cell: Cell, parser: Any) -> None:
    for words in choices(TRAININGS[cell]):
        check(resolved(parser, words), SETTINGS[cell])


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_the_papers_arguments(name: str, parser: Any) -> None:
    words = with_recipes(["fit", "--config", "digits/cnn", "--config", name])
    found, wanted = mixing(parser.parse_args(words).as_dict()["fit"]), METHODS[name]
    if wanted is None or found is None:
        assert found is wanted
    else:
        check(found, wanted)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_parsed_by_its_line(name: str, parser: Any) -> None:
    words = run_line(name)
    assert name in words
    parser.parse_args(with_recipes(words))


A_FEW = ("bengali/seresnext50", "mixup/cifar", "msda/randommix", "lamix/figure8", "log/wandb")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in A_FEW)) for n in recipe_names()]
)
def test_a_typo_in_a_recipe_is_refused(name: str, parser: Any) -> None:
    """Every group of a recipe, with one letter too many in its last key."""
    words = run_line(name)
    for group, inside in read_recipe(find_recipe(name)).items():
        wrong = {f"{group}x": inside}
        if isinstance(inside, dict):
            *others, last = inside
            wrong = {group: {**{key: inside[key] for key in others}, f"{last}x": inside[last]}}
        Path("wrong.yaml").write_text(yaml.safe_dump(wrong))
        with pytest.raises(UsageError):
            parser.parse_args(with_recipes([*words, "--config", "wrong.yaml"]))


def agents(sweep: dict[str, Any], *, every: bool) -> Iterator[list[str]]:
    """Yield the commands that an agent of Weights & Biases runs: ``${args}`` is ``--key=value`` for each."""
    values = [[(key, v) for v in of["values"]] for key, of in sweep["parameters"].items()]
    most = max(map(len, values))
    few = [tuple(of[i % len(of)] for of in values) for i in range(most)]
    for chosen in itertools.product(*values) if every else few:
        args = [f"--{key}={value}" for key, value in chosen]
        words = [word for part in sweep["command"] for word in (args if part == "${args}" else [part])]
        assert words[:2] == ["${env}", sweep["program"]] == ["${env}", "lightning-msda"]
        yield words[2:]


@pytest.mark.parametrize("name", SWEEP_FILES)
def test_a_sweep_is_read_by_agents_and_the_command_line(name: str, parser: Any) -> None:
    text = find_recipe(f"{name}.sweep").read_text()
    first, second, third, fourth = text.splitlines()[:4]
    assert re.match(
        r"# \S.*\((arXiv:\d{4}\.\d{5}|openreview\.net/).*\)\. Differs from the paper in: \S", first
    )
    assert second.startswith(f"# Run:    wandb sweep recipes/{name}.sweep.yaml")
    assert third.startswith("# W&B:") and fourth.startswith("# Expect: ")
    sweep = yaml.safe_load(text)
    assert sweep["method"] == "grid" and sweep["metric"] == {"name": "val/acc", "goal": "maximize"}
    settings, count = SWEEPS[name]
    runs = list(agents(sweep, every=True))
    assert len({tuple(word for word in words if "seed_everything" not in word) for words in runs}) == count
    for words in agents(sweep, every=False):
        found = resolved(parser, words)
        check(found, settings)
        for word in words:
            option, _, value = word.partition("=")
            if option.startswith(("--msda.", "--data.", "--model.")):
                assert found[option.rpartition(".")[2]] == yaml.safe_load(value)


def test_the_sweep_of_table_6_has_all_subsets_of_the_candidates() -> None:
    sweep = yaml.safe_load(find_recipe("randommix/table6.sweep").read_text())
    subsets = [tuple(weights) for weights in sweep["parameters"]["msda.weights"]["values"]]
    assert sorted(subsets) == sorted(set(itertools.product([0, 1], repeat=4)) - {(0, 0, 0, 0)})


def test_sweeps_are_no_recipes(parser: Any) -> None:
    assert len(SWEEP_FILES) == len(SWEEPS) == 6
    assert not [name for name in recipe_names() if "sweep" in name]
