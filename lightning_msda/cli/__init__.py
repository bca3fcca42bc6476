"""The command line ``lightning-msda``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]

_TRAINER_VERBS = ("fit", "validate", "test", "predict")
_OWN_VERBS = ("recipes", "preview", "compare")
_USAGE = """\
usage: lightning-msda VERB ...

  fit, validate, test, predict   LightningCLI: lightning-msda fit --config digits/cnn --config msda/fmix
  recipes                        list the bundled recipes, or show one: lightning-msda recipes msda/fmix
  preview                        draw what a method does to the data
  compare                        train several policies with several seeds: a table, a plot and a CSV

lightning-msda VERB --help says more; lightning-msda fit --msda.help FMix explains a method's arguments."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: What follows the command's name; None: what the process was called with.

    Raises:
        SystemExit: With code 2 and one line on the standard error, if the arguments are wrong.
    """
    from lightning_msda.cli.messages import UsageError

    given = list(sys.argv[1:] if args is None else args)
    try:
        _run(given, None if args is None else given)
    except UsageError as error:
        print(f"lightning-msda: {error}", file=sys.stderr)
        sys.exit(2)


def _run(given: list[str], args: list[str] | None) -> None:
    verb = given[0] if given else "--help"
    if verb in _TRAINER_VERBS:
        from lightning_msda.cli.app import App

        App(args)
    elif verb == "recipes":
        from lightning_msda.cli.recipes import show_recipes

        show_recipes(given[1:])
    elif verb == "preview":
        from lightning_msda.cli.preview import preview

        preview(given[1:])
    elif verb == "compare":
        from lightning_msda.cli.compare import compare

        compare(given[1:])
    elif verb in ("-h", "--help"):
        print(_USAGE)
    elif verb == "--version":
        from lightning_msda import __version__

        print(f"lightning-msda {__version__}")
    else:
        from lightning_msda.cli.messages import UsageError, nearest

        raise UsageError(f"There is no verb {verb!r}.{nearest(verb, [*_TRAINER_VERBS, *_OWN_VERBS])}")
