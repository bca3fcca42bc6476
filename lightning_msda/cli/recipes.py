"""The bundled recipes: small YAML files that compose, found by name from any directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lightning_msda.cli.messages import UsageError, nearest

__all__ = ["find_recipe", "read_recipe", "recipe_names", "recipes_folder", "show_recipes", "summary"]


def recipes_folder() -> Path:
    """Return the folder of the recipes: in the package when installed, at the top level in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def recipe_names() -> list[str]:
    """Return the names of all recipes, such as ``msda/fmix``; sweeps of Weights & Biases are none."""
    folder = recipes_folder()
    names = (path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
    return sorted(name for name in names if not name.endswith(".sweep"))


def find_recipe(name: str) -> Path:
    """Return the file of a recipe.

    Args:
        name: A file, or the name of a bundled recipe, with or without its suffix and ``recipes/``.

    Raises:
        UsageError: If there is neither, with the nearest name.
    """
    if Path(name).is_file():
        return Path(name)
    short = name.removeprefix("recipes/").removesuffix(".yaml")
    path = recipes_folder() / f"{short}.yaml"
    if path.is_file():
        return path
    raise UsageError(
        f"There is no recipe or file {name!r}.{nearest(short, recipe_names())} 'lightning-msda recipes' lists"
        " all of them."
    )


def read_recipe(path: Path) -> dict[str, Any]:
    """Return what a recipe says.

    Args:
        path: Its file.

    Raises:
        UsageError: If that is no YAML mapping.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is no YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict | None):
        raise UsageError(
            f"{path} holds a {type(content).__name__}, not what a recipe is made of, 'group: {{...}}'."
        )
    return content or {}


def summary(name: str) -> str:
    """Return the first sentence of a recipe.

    Args:
        name: Its name.
    """
    first = find_recipe(name).read_text().splitlines()[0]
    return first.removeprefix("#").strip().partition(". ")[0].removesuffix(".")


def show_recipes(args: list[str]) -> None:
    """List all recipes, or show the named ones.

    Args:
        args: Names of recipes.
    """
    for name in args:
        print(find_recipe(name).read_text(), end="")
    if not args:
        names = recipe_names()
        for name in names:
            print(f"{name:{max(map(len, names))}}  {summary(name)}")
