"""Pictures of mixes: grids of images with captions, drawn with Pillow, which torchvision brings along."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from lightning_msda.mixture import Mixture

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Cell", "Display", "draw_grid", "mixed_cell", "mixed_cells", "steps_of_mix"]

_SIDE = 112  # pixels of an image's longer side, at least
_GAP = 8
_LINE = 16


class Cell(NamedTuple):
    """An image ``(C, H, W)`` in [0, 1] with 1 or 3 channels, and what is written below it."""

    image: Tensor
    caption: str = ""


class Display(NamedTuple):
    """How inputs and labels are shown.

    Attributes:
        mean: What was subtracted from each channel; empty: every picture is stretched to [0, 1].
        std: What each channel was divided by.
        classes: Names of the classes; empty: their numbers.
    """

    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    classes: Sequence[str] = ()

    @classmethod
    def of(cls, data: Any) -> Display:
        """Take what a data module knows of itself: its ``mean``, ``std`` and ``classes``, if it has them.

        Args:
            data: A `LightningDataModule`, or anything else.
        """
        return cls(*(getattr(data, name, ()) for name in cls._fields))

    def image(self, x: Tensor) -> Tensor:
        """Return an input as an image.

        Args:
            x: Shape ``(C, H, W)``; of other than 1 or 3 channels the first is shown.
        """
        x = x.detach().float().cpu()
        if self.mean:
            x = x * torch.tensor(self.std)[:, None, None] + torch.tensor(self.mean)[:, None, None]
        else:
            x = (x - x.amin()) / (x.amax() - x.amin()).clamp(min=1e-6)
        return x if x.size(0) in (1, 3) else x[:1]

    def label(self, y: Tensor) -> str:
        """Return the name of a label, or an empty string if it is no class.

        Args:
            y: The label of one sample.
        """
        if y.dim() > 0 or y.is_floating_point():
            return ""
        return str(self.classes[int(y)]) if self.classes else str(int(y))


def mixed_cells(mixture: Mixture, labels: Tensor | None, display: Display, count: int) -> list[Cell]:
    """Return the first samples of a mix, captioned with lam and the labels of both sources.

    Args:
        mixture: A mix of images, inputs ``(N, C, H, W)``.
        labels: Labels of the batch before it was mixed, shape ``(N, ...)``; None: there are none.
        display: How to show them.
        count: How many samples, at most.
    """
    return [mixed_cell(mixture, labels, display, i) for i in range(min(count, len(mixture.inputs)))]


def mixed_cell(mixture: Mixture, labels: Tensor | None, display: Display, i: int) -> Cell:
    """Return one sample of a mix, captioned with lam and the labels that have a weight.

    Args:
        mixture: As in `mixed_cells`.
        labels: As in `mixed_cells`.
        display: How to show it.
        i: Which sample.
    """
    weights = mixture.weights[i].tolist()
    caption = f"lam {weights[0]:.2f}"
    if labels is not None and (own := display.label(labels[i])):
        others = zip(mixture.partners[i].tolist(), weights[1:], strict=True)
        shown = [display.label(labels[partner]) for partner, weight in others if weight > 0]
        shown += ["learned"] if sum(weights) < 0.999 else []
        caption += "  " + " + ".join([own, *shown])
    return Cell(display.image(mixture.inputs[i]), caption)


def steps_of_mix(x: Tensor, mixture: Mixture, labels: Tensor | None, display: Display, i: int) -> list[Cell]:
    """Return how one sample was mixed: own, partner, mask and the mix.

    Args:
        x: The inputs before they were mixed, shape ``(N, C, H, W)``.
        mixture: Their mix.
        labels: As in `mixed_cells`.
        display: How to show them.
        i: Which sample.
    """
    partner = int(mixture.partner[i])
    names = ["" if labels is None else display.label(labels[j]) for j in (i, partner)]
    if mixture.mask is None:
        mask = mixture.lam[i].float().cpu().expand(1, *x.shape[2:])
    else:
        mask = mixture.mask.expand(len(x), *mixture.mask.shape[1:])[i].float().cpu().expand(1, *x.shape[2:])
    sources = [Cell(display.image(x[j]), name) for j, name in zip((i, partner), names, strict=True)]
    return [*sources, Cell(mask), mixed_cell(mixture, labels, display, i)]


def draw_grid(rows: Sequence[Sequence[Cell]], titles: Sequence[str], headers: Sequence[str] = ()) -> Image:
    """Draw rows of images with captions.

    Args:
        rows: The cells, row by row, all images of one size.
        titles: What is written to the left of each row.
        headers: What is written above each column.

    Returns:
        The picture, a `PIL.Image.Image`.
    """
    from PIL import Image, ImageDraw, ImageFont

    small, large = ImageFont.load_default(size=12), ImageFont.load_default(size=13)
    height, width = rows[0][0].image.shape[-2:]
    scale = max(1, -(-_SIDE // max(height, width)))
    captions = [cell.caption for row in rows for cell in row] + list(headers)
    pitch_x = _GAP + max([width * scale, *(int(small.getlength(caption)) for caption in captions)])
    pitch_y = _GAP + height * scale + _LINE
    left = 2 * _GAP + max(int(large.getlength(title)) for title in titles)
    top = _GAP + (_LINE if headers else 0)
    size = left + max(len(row) for row in rows) * pitch_x, top + len(rows) * pitch_y
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for column, header in enumerate(headers):
        draw.text((left + column * pitch_x, _GAP // 2), header, "black", large)
    for line, (row, title) in enumerate(zip(rows, titles, strict=True)):
        y = top + line * pitch_y
        draw.text((_GAP, y + height * scale // 2 - _LINE // 2), title, "black", large)
        for column, cell in enumerate(row):
            x = left + column * pitch_x
            pixels = (cell.image.expand(3, -1, -1).clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
            image = Image.fromarray(pixels.contiguous().numpy())
            picture.paste(image.resize((width * scale, height * scale), Image.Resampling.NEAREST), (x, y))
            draw.rectangle((x, y, x + width * scale - 1, y + height * scale - 1), outline="lightgray")
            draw.text((x, y + height * scale + 1), cell.caption, "black", small)
    return picture
