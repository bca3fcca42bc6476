"""``lightning-msda compare``: several policies with several seeds on one base recipe."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lightning.pytorch.loggers import WandbLogger
from PIL.Image import Image
from typing_extensions import override

from lightning_msda.cli.app import App
from lightning_msda.cli.messages import UsageError, VerbParser
from lightning_msda.cli.preview import first_batch, leaves_of
from lightning_msda.cli.recipes import find_recipe, summary
from lightning_msda.cli.report import Result, format_table, plot, summarise, write_csv
from lightning_msda.pictures import Cell, Display, draw_grid, mixed_cell
from lightning_msda.quiet import quiet
from lightning_msda.randomness import Step

__all__ = ["compare"]

_QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


def compare(args: list[str]) -> None:
    """Train every policy with every seed; write a table, CSV files, a plot and a picture of the mixes.

    Trainings of one seed start from the same weights and see the data in the same order.

    Args:
        args: ``--policies``, ``--seeds``, ``--metric``, ``--out``, and what ``fit`` takes.

    Raises:
        UsageError: If a policy is unknown or the metric is not logged.
    """
    parser = VerbParser(
        prog="lightning-msda compare",
        description="Train several policies with several seeds on one recipe. Takes what fit takes as well.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--policies", nargs="+", required=True, help="recipes of methods, such as fmix; or none"
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds of the trainings (0 1 2)"
    )
    parser.add_argument(
        "--metric",
        default="test/acc",
        help="what is compared: a share in [0, 1] that the test logs, more being better (test/acc)",
    )
    parser.add_argument(
        "--out", default=Path("comparison"), type=Path, help="folder of the results (comparison)"
    )
    own, rest = parser.split(args)
    policies = _policies(own.policies)
    base = [*rest, *_QUIET]
    with quiet():
        picture = _draw_mixes(policies, base)
        own.out.mkdir(parents=True, exist_ok=True)
        picture.save(own.out / "mixes.png")
        results = list(_train_all(policies, own.seeds, base, own.metric, own.out.name))
    rows = summarise(results)
    write_csv(own.out / "table.csv", rows)
    write_csv(own.out / "runs.csv", results)
    plot(own.out / "plot.png", results, rows, own.metric)
    table = format_table(rows, own.metric)
    (own.out / "table.md").write_text(table + "\n")
    print(f"\n{len(own.seeds)} seeds, mean ± standard deviation over them:\n\n{table}\n")
    print(f"Table     {own.out / 'table.csv'} (each training: {own.out / 'runs.csv'})")
    print(f"Plot      {own.out / 'plot.png'}")
    print(f"Mixes     {own.out / 'mixes.png'}")
    folders = [result.folder for result in results if result.folder]
    if folders:
        print(f"W&B       {len(folders)} runs in {Path(folders[0]).parent}:")
        print("\n".join(f"          {Path(folder).name}" for folder in folders))


class Training(App):
    """A training of a comparison, whose W&B run, if there is one, bears its name.

    Args:
        args: As for `App`.
        title: Title of the policy.
        seed: Seed of the training.
        group: Name of the comparison.
    """

    def __init__(self, args: list[str], title: str, seed: int, group: str) -> None:
        self._title, self._seed, self._group = title, seed, group
        super().__init__([*args, f"--seed_everything={seed}"], run=False)

    @override
    def before_instantiate_classes(self) -> None:
        logger = self.config["fit"]["trainer"]["logger"]
        if str(getattr(logger, "class_path", "")).endswith("WandbLogger"):
            logger.init_args.name = f"{self._title}, seed {self._seed}"
            named = {"group": self._group, "tags": [self._title], "settings": {"silent": True}}
            logger.dict_kwargs = {**named, **logger.get("dict_kwargs", {})}


def _policies(names: Sequence[str]) -> dict[str, list[str]]:
    """Return the titles of policies with the arguments that name them."""
    policies: dict[str, list[str]] = {}
    for name in names:
        title, arguments = "no mixing", ["--msda=null"]
        if name != "none":
            path = find_recipe(name if "/" in name or Path(name).is_file() else f"msda/{name}")
            title, arguments = summary(str(path)).partition(" (")[0], [f"--config={path}"]
        if title in policies:
            raise UsageError(f"Two policies are called {title!r}, by the first lines of their recipes.")
        policies[title] = arguments
    return policies


def _train_all(
    policies: Mapping[str, list[str]], seeds: Sequence[int], base: list[str], metric: str, group: str
) -> Iterator[Result]:
    """Train every policy with every seed, and say how long the rest will take."""
    first = next(iter(policies.values()))
    _train("", 0, [*base, *first, "--trainer.fast_dev_run=true"], metric, group)  # what loads on first use
    runs, started = len(policies) * len(seeds), time.perf_counter()
    for done, (seed, (title, arguments)) in enumerate(itertools.product(seeds, policies.items()), 1):
        result = _train(title, seed, [*base, *arguments], metric, group)
        left = (time.perf_counter() - started) * (runs / done - 1)
        print(
            f"[{done:{len(str(runs))}}/{runs}] seed {seed}  {title:{max(map(len, policies))}}"
            f"  {metric} {100 * result.score:5.2f} %  {result.seconds:4.1f} s"
            f"  about {left // 60:.0f}:{left % 60:02.0f} left",
            flush=True,
        )
        yield result


def _train(title: str, seed: int, arguments: list[str], metric: str, group: str) -> Result:
    """Train and test once."""
    app = Training(arguments, title, seed, group)
    started = time.perf_counter()
    app.trainer.fit(app.model, datamodule=app.datamodule)
    seconds = time.perf_counter() - started
    (scores,) = app.trainer.test(app.model, datamodule=app.datamodule, verbose=False)
    if metric not in scores:
        raise UsageError(
            f"The test logs no {metric!r}, only {', '.join(scores)}. Name one of them by --metric."
        )
    if not 0 <= scores[metric] <= 1:
        raise UsageError(
            f"{metric} is {scores[metric]:.4g}, and what is compared must be a share in [0, 1] of which more"
            " is better, such as an accuracy. Name one by --metric."
        )
    folder = ""
    if isinstance(logger := app.trainer.logger, WandbLogger):
        folder = str(Path(logger.experiment.dir).parent)
        logger.experiment.finish()
    return Result(title, seed, float(scores[metric]), seconds, folder)


def _draw_mixes(policies: Mapping[str, Sequence[str]], base: Sequence[str]) -> Image:
    """Return a picture with a row of mixes for each policy."""
    rows = []
    for arguments in policies.values():
        app = App([*base, *arguments, "--trainer.logger=false"], run=False)
        x, labels = first_batch(app)
        display, methods = Display.of(app.datamodule), leaves_of(app)
        if methods:
            draws = range(min(8, len(x)))
            mixes = [methods[i % len(methods)].mix(x, Step(seed=0, ordinal=i)) for i in draws]
            rows.append([mixed_cell(mix, labels, display, i) for i, mix in enumerate(mixes)])
        else:
            names = [""] * len(x) if labels is None else [display.label(label) for label in labels]
            cells = [Cell(display.image(image), name) for image, name in zip(x, names, strict=True)]
            rows.append(cells[:8])
    return draw_grid(rows, list(policies))
