"""docs/contract.md, generated from the rows that the tests are marked with."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/contract.md"
SECTIONS = [
    "Losses",
    "Targets",
    "Inputs and batches",
    "At a hidden layer",
    "Trainer",
    "On a GPU",
    "Faults",
    "Modules of others",
]
_INTRODUCTION = """\
# Contract

What works with what, generated from the marks of the tests by `make contract`; the tests must pass, and
those under "On a GPU" run where there is one. A row trains an unmodified module through a real Trainer, and
the loss and every gradient are held against the explicit formula: to 1e-10 in double, 1e-5 in single and
1e-2 in half precision. ("Faults" are no training: there everything must be put back.) The columns are one
`lam` for the batch, the default, and one for each sample (`per_sample=True`); where the second is empty it
was not tried. What is refused stops training with a sentence before a gradient is used.
"""


def written(items: Iterable[pytest.Item]) -> str:
    """Return the page for collected tests."""
    cells: dict[str, dict[str, dict[bool, set[str | None]]]] = {section: {} for section in SECTIONS}
    for item in items:
        for mark in item.iter_markers("row"):
            section, name = mark.args
            cells[section].setdefault(name, {}).setdefault(mark.kwargs["per_sample"], set()).add(
                mark.kwargs["refused"]
            )
    trained = refused = 0
    text = ""
    for section, rows in cells.items():
        if not rows:
            continue
        text += f"\n## {section}\n\n| | one `lam` | one for each sample |\n| --- | --- | --- |\n"
        for name in sorted(rows, key=str.lower):
            shown = []
            for per_sample in (False, True):
                outcomes = rows[name].get(per_sample, set())
                assert len(outcomes) <= 1, f"{name}: both trained and refused, {outcomes}"
                for outcome in outcomes:
                    trained, refused = trained + (outcome is None), refused + (outcome is not None)
                shown.append("".join("trains" if o is None else f"refused: {o}" for o in outcomes))
            text += f"| {name} | {' | '.join(shown)} |\n"
    return f"{_INTRODUCTION}\n{trained} cells train, {refused} are refused.\n{text}"
