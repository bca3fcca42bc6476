"""Draws the pictures of the documentation: ``python docs/draw.py``."""

from __future__ import annotations

from pathlib import Path

import torch
from sklearn.datasets import load_sample_images
from torch.nn.functional import interpolate

from lightning_msda import (
    BCMix,
    CoMixup,
    CutMix,
    Cutout,
    FMix,
    LaMix,
    MixUp,
    PatchUp,
    PuzzleMix,
    ResizeMix,
    SaliencyMix,
    SamplePairing,
    Step,
)
from lightning_msda.pictures import Cell, Display, draw_grid

IMAGES = Path(__file__).parent / "images"
SIDE, COLUMNS = 152, 7


def photos() -> torch.Tensor:
    """Return the two photographs that scikit-learn ships, cut to squares, in [0, 1]."""
    squares = []
    for photo in load_sample_images().images:
        x = torch.tensor(photo).permute(2, 0, 1)[None].float() / 255
        left = (x.size(3) - x.size(2)) // 2
        squares.append(interpolate(x[..., left : left + x.size(2)], SIDE, mode="bilinear", antialias=True))
    return torch.cat(squares).flip(0)


def draw_methods() -> None:
    """Draw two photographs and what each method makes of them."""
    x = photos()
    display = Display(mean=(0.0,) * 3, std=(1.0,) * 3, classes=())
    puzzle = PuzzleMix(block_num=8, transport=False)  # by spectral residuals: there is no module to ask
    methods = [MixUp(), CutMix(), ResizeMix(), FMix(), SaliencyMix(), puzzle, CoMixup(block_num=8)]
    methods += [
        BCMix(),
        SamplePairing(),
        LaMix(),
        PatchUp(["input"], block_size=31),
        Cutout(length=SIDE // 2),
    ]
    cells = [Cell(x[0], "own: flower"), Cell(x[1], "partner: temple")]
    for method in methods:
        mix = method.mix(x, PairedStep(seed=3, ordinal=18))
        cells.append(Cell(display.image(mix.inputs[0]), f"{type(method).__name__}  lam {mix.lam[0]:.2f}"))
    rows = [cells[i : i + COLUMNS] for i in range(0, len(cells), COLUMNS)]
    draw_grid(rows, [""] * len(rows)).save(IMAGES / "methods.jpg", quality=88)


class PairedStep(Step):
    """A step at which two samples are each other's partners."""

    def partners(self, n: int) -> torch.Tensor:
        """Return the other one."""
        return torch.arange(n).flip(0)


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    draw_methods()
