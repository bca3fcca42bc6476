"""``lightning-msda preview``: a picture of what a method does to the data."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from lightning_msda.callback import MSDA, find_method
from lightning_msda.cli.app import App
from lightning_msda.cli.messages import UsageError, VerbParser
from lightning_msda.fields import find_inputs, first_labels, get
from lightning_msda.pictures import Display, draw_grid, steps_of_mix
from lightning_msda.randomness import Step

__all__ = ["first_batch", "leaves_of", "preview"]


def preview(args: list[str]) -> None:
    """Draw how a recipe's method mixes the first training batch: own, partner, own share and mix.

    Args:
        args: ``--out``, ``--samples``, and what ``fit`` takes.

    Raises:
        UsageError: If there is no method or no image to draw.
    """
    parser = VerbParser(
        prog="lightning-msda preview",
        description="Draw how a method mixes the first training batch. Takes what fit takes as well.",
        allow_abbrev=False,
    )
    parser.add_argument("--out", default="mixes.png", type=Path, help="the picture (mixes.png)")
    parser.add_argument("--samples", default=3, type=int, help="samples of each method (3)")
    own, rest = parser.split(args)
    if own.samples < 1:
        raise UsageError(f"--samples {own.samples} is out of range: it must be a whole number from 1.")
    app = App(rest, run=False)
    methods = leaves_of(app)
    if not methods:
        raise UsageError("There is no method to draw. Name one: --config msda/fmix, or --msda FMix.")
    x, labels = first_batch(app)
    rows, titles = [], []
    for method in methods:
        for i in range(min(own.samples, len(x))):
            mixture = method.mix(x, Step(seed=0, ordinal=i))
            rows.append(steps_of_mix(x, mixture, labels, Display.of(app.datamodule), i))
            titles.append(type(method).__name__)
    own.out.parent.mkdir(parents=True, exist_ok=True)
    draw_grid(rows, titles, ["own", "partner", "own share", "mix"]).save(own.out)
    print(f"{own.out}: {len(rows)} mixes of {', '.join(dict.fromkeys(titles))}")


def leaves_of(app: App) -> list[MSDA]:
    """Return the methods that mix the input: the one that was named, or all that it chooses from.

    Args:
        app: The command line with its classes made.
    """
    method = find_method(app.trainer)
    return [leaf for leaf in method.leaves() if leaf.at is None] if method else []


def first_batch(app: App) -> tuple[Tensor, Tensor | None]:
    """Return the images of the first training batch and their labels, if the method takes any.

    Args:
        app: The command line with its classes made.

    Raises:
        UsageError: If there are no images.
    """
    if app.datamodule is None:
        raise UsageError("There is no data to draw. Name some: --config digits/cnn, or --data DigitsData.")
    app.datamodule.prepare_data()
    app.datamodule.setup("fit")
    batch = next(iter(app.datamodule.train_dataloader()))
    method = find_method(app.trainer)
    x = get(batch, find_inputs(batch, method.input_key if method else None)[0])
    if x.dim() != 4:
        raise UsageError(
            f"The inputs have shape {tuple(x.shape)}; only images (N, C, H, W) can be drawn so far."
        )
    return x, first_labels(batch, method.target_key if method else None)
