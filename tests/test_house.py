"""Imports run one way, and importing the package loads no more than it needs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lightning_msda"
# Each room may import those before it, and from its own folder.
ORDER = [
    "randomness schedule quiet",
    "ops",
    "pairing",
    "blending",
    "mixture",
    "ledger",
    "rows",
    "effects",
    "mixed_tensor",
    "mixed_value",
    "boundaries",
    "fields targets",
    "layer saliency",
    "second_head",
    "span",
    "callback",
    "drawn_layer by_saliency",
    "methods",
    "functional metrics pictures",
    "testing monitor",
    "__init__",
    "experiments",
    "cli",
    "__main__",
]
FLOOR = {room: floor for floor, rooms in enumerate(ORDER) for room in rooms.split()}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> list[str]:
    """Return the rooms of the package that a file imports when it runs."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE.name:
            parts = (node.module or "").split(".")[1:]
            found += [parts[0]] if parts else [alias.name for alias in node.names]
    return [name if name in FLOOR else "__init__" for name in found]


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    room = room_of(path)
    assert room in FLOOR
    wrong = [name for name in imports_of(path) if name != room and FLOOR[name] >= FLOOR[room]]
    assert wrong == []


def test_the_reference_modules_know_nothing_of_mixing() -> None:
    assert [p for p in (PACKAGE / "experiments").rglob("*.py") if set(imports_of(p)) - {"experiments"}] == []


# RandomMix has four of them for its default, two are MixUp and CutMix at some of their layers, and a form of
# LaMix shows what Puzzle Mix shows.
MADE_OF_OTHERS = ("randommix", "manifoldmixup", "patchup", "lamix")


def test_methods_do_not_know_each_other() -> None:
    for path in (PACKAGE / "methods").glob("*.py"):
        if path.stem not in ("__init__", *MADE_OF_OTHERS):
            assert "methods" not in imports_of(path)


def test_importing_the_package_loads_what_it_needs() -> None:
    code = "import sys, {0}; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    loaded = [
        set(subprocess.check_output([sys.executable, "-c", code.format(name)], text=True).split())
        for name in ("lightning_msda", "lightning.pytorch, torchmetrics")
    ]
    assert not {"wandb", "matplotlib", "torchvision"} & (loaded[0] - loaded[1])
