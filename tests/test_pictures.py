"""Pictures of mixes, held against the layout's definition and the inputs' pixels."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from PIL.Image import Image
from torch import Generator, Tensor

from lightning_msda import Mixture
from lightning_msda.functional import cutmix, fmix, mixup, resizemix
from lightning_msda.pictures import Cell, Display, draw_grid, mixed_cells, steps_of_mix
from tests.tools import grid_size, pairs

WHITE = (255, 255, 255)


def pixels(picture: Image) -> Tensor:
    """Return a picture as a tensor of bytes, shape ``(H, W, 3)``."""
    width, height = picture.size
    return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(height, width, 3)


def bytes_of(image: Tensor) -> Tensor:
    return (image.expand(3, -1, -1) * 255).round().to(torch.uint8).permute(1, 2, 0)


def scaled(image: Tensor, scale: int) -> Tensor:
    """Repeat every pixel, and leave out the frame of one pixel that is drawn over."""
    large = bytes_of(image).repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    return large[1:-1, 1:-1]


@pytest.mark.parametrize("size", [(8, 8), (9, 5), (32, 32), (112, 60), (120, 130)], ids=str)
@pytest.mark.parametrize("headers", [(), ("own", "partner", "a header that is wider than its image")])
def test_a_grids_size_follows_from_its_definition(size: tuple[int, int], headers: tuple[str, ...]) -> None:
    rows = [[Cell(torch.rand(1, *size), "lam 0.50")] * 3, [Cell(torch.rand(3, *size))] * 2]
    titles = ["MixUp", "a longer title"]
    wanted = grid_size(2, 3, size, titles=titles, captions=["lam 0.50"], headers=headers)
    assert draw_grid(rows, titles, headers).size == wanted


def test_a_grid_of_known_numbers() -> None:
    picture = draw_grid([[Cell(torch.rand(1, 8, 8))] * 3] * 2, ["", ""])
    assert picture.size == (16 + 3 * (8 + 112), 8 + 2 * (8 + 112 + 16))
    assert picture.mode == "RGB"


def test_a_wide_caption_pushes_the_cells_apart() -> None:
    caption = "a caption that does not fit below its image"
    narrow = draw_grid([[Cell(torch.rand(1, 8, 8))] * 2], [""])
    wide = draw_grid([[Cell(torch.rand(1, 8, 8)), Cell(torch.rand(1, 8, 8), caption)]], [""])
    assert wide.size == grid_size(1, 2, (8, 8), titles=[""], captions=[caption])
    assert wide.size[0] > narrow.size[0]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("size", "scale"), [((8, 8), 14), ((9, 5), 13), ((32, 32), 4), ((120, 130), 1)])
@pytest.mark.parametrize("headers", [(), ("one", "two", "three")])
def test_every_image_is_drawn_at_its_place_pixel_by_pixel(
    channels: int, size: tuple[int, int], scale: int, headers: tuple[str, ...]
) -> None:
    rows = [[Cell(torch.rand(channels, *size), f"{i} {j}") for j in range(3)] for i in range(2)]
    drawn = pixels(draw_grid(rows, ["first", "second"], headers))
    height, width = size[0] * scale, size[1] * scale
    left = grid_size(2, 0, size, titles=["first", "second"])[0]
    top = 24 if headers else 8
    pitch = grid_size(2, 1, size, titles=[""], captions=["0 0"], headers=headers)[0] - 16
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            y, x = top + i * (8 + height + 16), left + j * pitch
            inside = drawn[y + 1 : y + height - 1, x + 1 : x + width - 1]
            assert torch.equal(inside, scaled(cell.image, scale))


def test_values_outside_of_0_and_1_are_cut_off() -> None:
    image = torch.full((1, 8, 8), 0.5)
    image[0, :4], image[0, 4:] = -1.0, 2.0
    drawn = pixels(draw_grid([[Cell(image)]], [""]))
    assert tuple(drawn[8 + 20, 16 + 20].tolist()) == (0, 0, 0)
    assert tuple(drawn[8 + 90, 16 + 20].tolist()) == WHITE


def test_captions_stand_below_their_images() -> None:
    image = torch.rand(1, 8, 8)
    first, second, none = (
        pixels(draw_grid([[Cell(image, caption)]], [""])) for caption in ("lam 0.25", "lam 0.75", "")
    )
    for other in (second, none):
        rows = (first != other).any(2).any(1).nonzero().flatten().tolist()
        assert rows
        assert min(rows) >= 8 + 112
    assert (none[8 + 112 :] == 255).all()


def test_titles_stand_left_of_their_rows() -> None:
    rows = [[Cell(torch.ones(1, 8, 8))], [Cell(torch.ones(1, 8, 8))]]
    both, first = (pixels(draw_grid(rows, titles)) for titles in (["MixUp", "MixUp"], ["MixUp", ""]))
    left = grid_size(1, 0, (8, 8), titles=["MixUp"])[0]
    changed = (both != first).any(2).nonzero()
    assert len(changed) > 0
    assert int(changed[:, 1].max()) < left
    assert int(changed[:, 0].min()) >= 8 + 136
    assert int(changed[:, 0].max()) < 8 + 136 + 112


def test_headers_stand_above_their_columns() -> None:
    rows = [[Cell(torch.ones(1, 8, 8))] * 2]
    both, first = (pixels(draw_grid(rows, [""], headers)) for headers in (["own", "mix"], ["own", ""]))
    changed = (both != first).any(2).nonzero()
    assert len(changed) > 0
    assert int(changed[:, 0].max()) < 24
    assert int(changed[:, 1].min()) >= 16 + 120


def test_a_normalised_image_is_shown_as_it_was() -> None:
    image = torch.rand(3, 8, 8)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    x = torch.stack([(image[c] - mean[c]) / std[c] for c in range(3)])
    torch.testing.assert_close(Display(mean, std).image(x), image)


def test_without_mean_and_std_an_image_is_stretched() -> None:
    x = torch.randn(1, 8, 8) * 7 + 3
    shown = Display().image(x)
    torch.testing.assert_close(shown, (x - x.min()) / (x.max() - x.min()))
    assert float(shown.min()) == 0.0
    assert float(shown.max()) == pytest.approx(1.0)


def test_an_image_of_one_value_is_shown_too() -> None:
    assert torch.equal(Display().image(torch.full((1, 8, 8), 5.0)), torch.zeros(1, 8, 8))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.uint8])
def test_images_of_any_dtype_are_shown(dtype: torch.dtype) -> None:
    x = (torch.arange(64).view(1, 8, 8) * 2).to(dtype)
    torch.testing.assert_close(Display().image(x), torch.arange(64).view(1, 8, 8) / 63)


@pytest.mark.parametrize("channels", [2, 4, 7])
def test_of_other_channels_the_first_is_shown(channels: int) -> None:
    x = torch.rand(channels, 8, 8)
    assert torch.equal(Display([0.0] * channels, [1.0] * channels).image(x), x[:1])


def test_the_input_is_not_written_to() -> None:
    x = torch.rand(3, 8, 8, requires_grad=True)
    before = x.detach().clone()
    assert not Display((0.5,) * 3, (0.2,) * 3).image(x).requires_grad
    assert torch.equal(x.detach(), before)


def test_data_that_know_themselves_say_how_they_are_shown() -> None:
    data = SimpleNamespace(mean=(0.5,), std=(0.2,), classes=("cat", "dog"))
    assert Display.of(data) == Display((0.5,), (0.2,), ("cat", "dog"))
    assert Display.of(SimpleNamespace()) == Display.of(None) == Display()


def test_labels_have_the_names_of_their_classes() -> None:
    assert Display(classes=("cat", "dog")).label(torch.tensor(1)) == "dog"
    assert Display().label(torch.tensor(1)) == "1"


@pytest.mark.parametrize("label", [torch.tensor(0.5), torch.tensor([0, 1]), torch.zeros(8, 8)], ids=str)
def test_what_is_no_class_has_no_name(label: Tensor) -> None:
    assert Display(classes=("cat", "dog")).label(label) == ""


def test_all_labels_with_a_weight_stand_in_the_caption() -> None:
    weights = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.0, 1.0, 0.0, 0.0]])
    mix = Mixture(torch.rand(2, 1, 4, 4), torch.tensor([[1, 0, 1], [0, 1, 1]]), weights, per_sample=True)
    cells = mixed_cells(mix, torch.tensor([7, 3]), Display(), 2)
    assert [cell.caption for cell in cells] == ["lam 0.50  7 + 3 + 7", "lam 0.00  3 + 7"]


def test_mixed_samples_are_captioned_with_lam_and_the_labels_that_count() -> None:
    x, labels = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 1, 0])
    mix = pairs([0.25, 1.0, 0.5, 0.125], x)
    cells = mixed_cells(mix, labels, Display((0.0,), (1.0,), ("cat", "dog")), 3)
    assert [cell.caption for cell in cells] == [
        "lam 0.25  cat + dog",
        "lam 1.00  dog",
        "lam 0.50  dog + cat",
    ]
    for cell, image in zip(cells, mix.inputs, strict=False):
        assert torch.equal(cell.image, image)


def test_no_more_samples_are_shown_than_there_are() -> None:
    x = torch.rand(4, 1, 8, 8)
    assert len(mixed_cells(pairs(0.5, x), None, Display(), 9)) == 4


@pytest.mark.parametrize("labels", [None, torch.rand(4), torch.rand(4, 3)], ids=["none", "values", "soft"])
def test_without_classes_the_caption_is_lam_alone(labels: Tensor | None) -> None:
    cells = mixed_cells(pairs(0.5, torch.rand(4, 1, 8, 8)), labels, Display(), 2)
    assert [cell.caption for cell in cells] == ["lam 0.50", "lam 0.50"]


def test_the_steps_of_an_interpolation() -> None:
    x, labels = torch.rand(4, 3, 8, 8), torch.tensor([3, 2, 1, 0])
    mix = mixup(x, generator=Generator().manual_seed(1))
    display = Display((0.0,) * 3, (1.0,) * 3)
    own, partner, share, mixed = steps_of_mix(x, mix, labels, display, 2)
    other = int(mix.partner[2])
    assert torch.equal(own.image, x[2])
    assert torch.equal(partner.image, x[other])
    torch.testing.assert_close(share.image, torch.full((1, 8, 8), float(mix.lam[2])))
    assert torch.equal(mixed.image, mix.inputs[2])
    captions = [cell.caption for cell in (own, partner, share, mixed)]
    assert captions == ["1", str(3 - other), "", f"lam {float(mix.lam[2]):.2f}  1 + {3 - other}"]


@pytest.mark.parametrize("method", [cutmix, fmix, resizemix])
@pytest.mark.parametrize("per_sample", [False, True])
def test_the_steps_of_a_mask_show_the_own_share(method: object, per_sample: bool) -> None:
    x = torch.rand(4, 1, 8, 6)
    mix = method(x, per_sample=per_sample, generator=Generator().manual_seed(2))  # type: ignore[operator]
    for i in range(4):
        own, partner, share, mixed = steps_of_mix(x, mix, None, Display((0.0,), (1.0,)), i)
        assert share.image.shape == (1, 8, 6)
        assert torch.equal(torch.where(share.image == 1, own.image, mixed.image), mixed.image)
        if method is not resizemix:
            assert torch.equal(torch.where(share.image == 1, own.image, partner.image), mixed.image)
        assert float(share.image.mean()) == pytest.approx(float(mix.lam[i]))


def test_the_share_of_a_mask_along_tokens_fills_the_picture() -> None:
    x = torch.rand(4, 1, 8, 6)
    mix = cutmix(x, dims=[3], generator=Generator().manual_seed(2))
    share = steps_of_mix(x, mix, None, Display(), 0)[2].image
    assert share.shape == (1, 8, 6)
    assert torch.equal(share, share[:, :1].expand(1, 8, 6))


def test_steps_can_be_drawn() -> None:
    x = torch.rand(4, 3, 8, 8)
    mix = fmix(x, generator=Generator().manual_seed(2))
    cells = steps_of_mix(x, mix, torch.arange(4), Display(), 1)
    titles, headers = ["FMix"], ["own", "partner", "own share", "mix"]
    picture = draw_grid([cells], titles, headers)
    captions = [cell.caption for cell in cells]
    assert picture.size == grid_size(1, 4, (8, 8), titles=titles, captions=captions, headers=headers)
