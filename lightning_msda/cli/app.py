"""LightningCLI with a group for the mixing method, and recipes by name."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import yaml
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import WandbLogger
from typing_extensions import override

from lightning_msda import MSDA, __version__, monitor
from lightning_msda.cli.messages import UsageError, explain, explain_failure
from lightning_msda.cli.recipes import find_recipe, read_recipe
from lightning_msda.experiments import data, models, tasks
from lightning_msda.quiet import quiet

__all__ = ["App", "with_recipes"]

NAMED = (data, models, monitor, tasks)  # imported, so that their classes are found by short names


class App(LightningCLI):
    """The command line: LightningCLI, the group ``msda`` and the bundled recipes.

    Args:
        args: What follows the command's name; None: what the process was called with.
        run: Whether to run the subcommand that comes first. Otherwise there is none, and classes are made as
            for ``fit``, no more.
    """

    def __init__(self, args: list[str] | None = None, *, run: bool = True) -> None:
        self._runs = run
        super().__init__(
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            parser_kwargs={"prog": "lightning-msda", "version": __version__},
            args=args if run else ["fit", *(args or [])],
        )

    @override
    def _set_seed(self) -> None:
        with quiet():
            super()._set_seed()

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        if self._runs:
            super()._run_subcommand(subcommand)

    @override
    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = Parser(**{"allow_abbrev": False, **kwargs})
        parser.add_argument(
            "-c",
            "--config",
            action=ActionConfigFile,
            help="A recipe by name, or a YAML file; several are merged in order.",
        )
        return parser

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(MSDA, "msda", subclass_mode=True, required=False)

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(with_recipes(sys.argv[1:] if args is None else args))

    @override
    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except Exception as error:
            if (reason := explain_failure(error)) is None:
                raise
            raise UsageError(reason) from error

    @override
    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        # Without a method the group is None, and LightningCLI would hand it to the trainer.
        return super()._instantiate_trainer(config, [callback for callback in callbacks if callback])


class Parser(LightningArgumentParser):
    """A parser that answers a mistake with one line."""

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        options = [action.dest for action in self._actions]
        for action in self._actions:
            if isinstance(action.choices, dict):  # the subcommands
                options += [option.dest for parser in action.choices.values() for option in parser._actions]
        raise UsageError(explain(message, options))


class SaveConfig(SaveConfigCallback):
    """Saves the resolved configuration, and gives it to Weights & Biases as the run's config."""

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Without a folder of the run's own, all runs would share one file.
        self.save_to_log_dir = bool(trainer.loggers) and not isinstance(trainer.loggers[0], WandbLogger)
        super().setup(trainer, pl_module, stage)

    @override
    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        dump = self.parser.dump(self.config, skip_none=False)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.config.update(yaml.safe_load(dump), allow_val_change=True)
                (Path(logger.experiment.dir) / "recipe.yaml").write_text(dump)


class Setting(NamedTuple):
    """One thing said on the command line.

    Attributes:
        words: What the parser gets.
        others: What is left of it without the mixing method.
        method: The method that it names, ``""`` where it only adds to one, None where it does neither.
    """

    words: list[str]
    others: list[str]
    method: str | None


def with_recipes(args: list[str]) -> list[str]:
    """Return arguments with recipes' names replaced by their files.

    Another method that is named later replaces an earlier one whole, with all its arguments: LightningCLI
    would keep those that both have.

    Args:
        args: What follows the command's name.

    Raises:
        UsageError: If there is no such recipe, or a file is none.
    """
    settings = list(_settings(args))
    current, first = None, 0
    for i, setting in enumerate(settings):
        if setting.method:
            first = first if current in (None, setting.method) else i
            current = setting.method
    return [w for i, setting in enumerate(settings) for w in (setting.others if i < first else setting.words)]


def _settings(args: list[str]) -> Iterator[Setting]:
    """Split arguments into what each of them says."""
    waiting = [*args]
    while waiting:
        word = waiting.pop(0)
        option, _, value = word.partition("=")
        group, _, part = option.partition(".")
        group = {"-c": "--config", "--msda+": "--msda"}.get(group, group)
        if group not in ("--config", "--msda") or (word == option and not waiting):
            yield Setting([word], [word], None)
            continue
        words = [word] if word != option else [word, waiting.pop(0)]
        value = value or words[-1]
        if group == "--config":
            path = find_recipe(value)
            content = read_recipe(path)
            others = {key: content[key] for key in content if key != "msda"}
            words = [f"--config={path}"] if content else []
            yield Setting(words, [f"--config={yaml.safe_dump(others)}"], _method(content))
        else:
            yield Setting(words, [], _method({"msda": value if part in ("", "class_path") else {}}))


def _method(content: dict[str, Any]) -> str | None:
    """Return the method that a recipe names, as in `Setting`."""
    if "msda" not in content:
        return None
    named = content["msda"]
    named = named.get("class_path", "") if isinstance(named, dict) else named
    return "null" if named is None else str(named).rpartition(".")[2]
