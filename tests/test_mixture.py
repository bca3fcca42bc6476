"""A mix's weights, and what follows it: further inputs and dense labels, by the mask of the pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor

from lightning_msda import Mixture
from lightning_msda.functional import cutmix, fmix, mixup, resizemix
from tests.tools import pairs

N, H, W = 5, 9, 7
LAMS = [0.25, 1.0, 0.5, 0.0, 0.7]


def seeded(seed: int = 3) -> Generator:
    return Generator().manual_seed(seed)


# Each mask method twice with the same draws: whatever it is given, it is mixed alike.
METHODS: dict[str, Callable[[Tensor], Mixture]] = {
    "cutmix": lambda x: cutmix(x, generator=seeded()),
    "cutmix by sample": lambda x: cutmix(x, per_sample=True, generator=seeded()),
    "fmix": lambda x: fmix(x, generator=seeded()),
    "fmix by sample": lambda x: fmix(x, per_sample=True, generator=seeded()),
    "resizemix": lambda x: resizemix(x, side=(0.3, 0.9), generator=seeded()),
    "resizemix by sample": lambda x: resizemix(x, side=(0.3, 0.9), per_sample=True, generator=seeded()),
}


def test_lam_and_partner_are_the_first_columns() -> None:
    partners = torch.tensor([[1, 2], [2, 0], [0, 1]])
    weights = torch.tensor([[0.5, 0.3, 0.2]]).expand(3, 3)
    mix = Mixture(torch.rand(3, 2), partners, weights)
    assert torch.equal(mix.lam, torch.full((3,), 0.5))
    assert torch.equal(mix.partner, torch.tensor([1, 2, 0]))


def test_one_lam_is_that_of_every_sample() -> None:
    mix = Mixture.of_pairs(torch.rand(N, 2), torch.arange(N), torch.tensor([0.3]))
    assert torch.equal(mix.weights, torch.tensor([[0.3, 1 - 0.3]]).expand(N, 2))
    assert not mix.per_sample


def test_lams_by_sample_stay_with_their_samples() -> None:
    lam = torch.tensor(LAMS)
    mix = Mixture.of_pairs(torch.rand(N, 2), torch.arange(N), lam)
    assert torch.equal(mix.weights, torch.stack([lam, 1 - lam], 1))
    assert mix.per_sample


def test_a_single_sample_has_the_batchs_lam() -> None:
    assert not Mixture.of_pairs(torch.rand(1, 2), torch.tensor([0]), torch.tensor([0.3])).per_sample


def test_an_untouched_batch_has_lam_1_and_is_its_own_partner() -> None:
    x = torch.rand(N, 2)
    mix = Mixture.untouched(x)
    assert mix.inputs is x
    assert torch.equal(mix.lam, torch.ones(N))
    assert torch.equal(mix.partner, torch.arange(N))
    assert torch.equal(mix.weights.sum(1), torch.ones(N))


def test_a_pending_mix_has_no_weights_until_one_row_fills_all() -> None:
    mix, memory = Mixture.pending(torch.rand(N, 2), torch.arange(N), per_sample=False)
    assert mix.weights.isnan().all()
    memory.copy_(torch.tensor([[0.25, 0.75]]))
    assert torch.equal(mix.weights, torch.tensor([[0.25, 0.75]], dtype=torch.float64).expand(N, 2))
    assert not mix.per_sample


def test_a_pending_mix_by_sample_has_rows_of_its_own() -> None:
    mix, memory = Mixture.pending(torch.rand(N, 2), torch.arange(N), per_sample=True)
    assert mix.weights.isnan().all()
    memory.copy_(torch.tensor([LAMS, LAMS]).t())
    assert torch.equal(mix.lam, torch.tensor(LAMS).double())
    assert mix.per_sample


def test_a_mix_is_not_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Mixture.untouched(torch.rand(N, 2)).per_sample = True  # type: ignore[misc]


@pytest.mark.parametrize(
    ("mask", "dims", "shape", "aligned"),
    [
        ((1, 1, H, W), (2, 3), (N, H, W), (1, 2)),
        ((1, 1, H, W), (2, 3), (N, 4, H, W), (2, 3)),
        ((N, 1, H, W), (2, 3), (N, H, W), (1, 2)),
        ((1, 1, H, W), (2, 3), (N,), None),
        ((1, 1, H, W), (2, 3), (N, 4), None),
        ((1, 1, H, W), (2, 3), (N, H), None),
        ((1, 1, H, W), (2, 3), (N, W, H), None),
        ((1, 1, 1, W), (3,), (N, 2, 3, W), (3,)),
        ((1, 1, 1, W), (3,), (N, W), (1,)),
        ((1, 1, H, 1), (2,), (N, H), (1,)),
    ],
)
def test_a_mask_lines_up_with_tensors_that_have_its_sizes(
    mask: tuple[int, ...], dims: tuple[int, ...], shape: tuple[int, ...], aligned: tuple[int, ...] | None
) -> None:
    lam = torch.tensor([0.5])
    own = torch.zeros(mask, dtype=torch.bool)
    mix = Mixture.of_pairs(torch.rand(N, 3, H, W), torch.arange(N), lam, mask=own, dims=dims)
    assert mix.aligned_dims(torch.zeros(shape)) == aligned


def test_without_a_mask_nothing_lines_up() -> None:
    assert mixup(torch.rand(N, 3, H, W)).aligned_dims(torch.zeros(N, H, W)) is None


def test_a_mask_of_a_single_element_lines_up_with_no_labels() -> None:
    assert cutmix(torch.rand(N, 3, 1, 1)).aligned_dims(torch.zeros(N, 1, 1)) is None


@pytest.mark.parametrize("lam", [0.3, LAMS], ids=["one lam", "by sample"])
def test_where_samples_are_interpolated_further_inputs_are_too(lam: float | list[float]) -> None:
    other = torch.rand(N, 4, 3, dtype=torch.float64)
    followed = pairs(lam, torch.rand(N, 2)).follow(other)
    lams = [lam] * N if isinstance(lam, float) else lam
    for i in range(N):
        wanted = lams[i] * other[i] + (1 - lams[i]) * other[(i + 1) % N]
        torch.testing.assert_close(followed[i], wanted, rtol=1e-12, atol=0)


def test_a_further_input_keeps_its_dtype() -> None:
    other = torch.rand(N, 4, dtype=torch.float16)
    assert pairs(0.3, torch.rand(N, 2)).follow(other).dtype == torch.float16


def test_integers_cannot_follow_an_interpolation() -> None:
    with pytest.raises(ValueError, match=r"int64 of shape \(5, 4\).*CutMix or FMix.*input_key"):
        pairs(0.3, torch.rand(N, 2)).follow(torch.zeros(N, 4, dtype=torch.int64))


@pytest.mark.parametrize("method", METHODS)
def test_a_label_map_is_mixed_as_if_it_were_an_image_of_one_channel(method: str) -> None:
    labels = torch.randint(0, 9, (N, H, W))
    mix = METHODS[method](torch.rand(N, 3, H, W))
    assert 0 < float(mix.mask.float().mean()) < 1  # type: ignore[union-attr]
    wanted = METHODS[method](labels[:, None].float()).inputs[:, 0].long()
    assert torch.equal(mix.follow(labels), wanted)


@pytest.mark.parametrize("method", METHODS)
def test_a_second_image_of_other_channels_follows_the_first(method: str) -> None:
    other = torch.rand(N, 2, H, W, dtype=torch.float64)
    assert torch.equal(METHODS[method](torch.rand(N, 3, H, W)).follow(other), METHODS[method](other).inputs)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spatial", [(11,), (3, 5, 4)], ids=["signals", "volumes"])
def test_labels_of_signals_and_volumes_follow_too(method: str, spatial: tuple[int, ...]) -> None:
    labels = torch.randint(0, 9, (N, *spatial))
    mix = METHODS[method](torch.rand(N, 2, *spatial))
    assert torch.equal(mix.follow(labels), METHODS[method](labels[:, None].float()).inputs[:, 0].long())


@pytest.mark.parametrize("method", [name for name in METHODS if "resize" not in name])
def test_a_pixels_label_comes_from_where_the_pixel_comes_from(method: str) -> None:
    mix = METHODS[method](torch.rand(N, 3, H, W))
    assert mix.mask is not None
    mask = mix.mask.expand(N, 1, H, W)
    labels = torch.arange(N * H * W).view(N, H, W)
    followed = mix.follow(labels)
    for i, r, c in torch.cartesian_prod(torch.arange(N), torch.arange(H), torch.arange(W)).tolist():
        source = i if mask[i, 0, r, c] else int(mix.partner[i])
        assert followed[i, r, c] == labels[source, r, c]


@pytest.mark.parametrize("method", ["resizemix", "resizemix by sample"])
def test_a_patch_of_labels_is_the_partners_whole_map_resized(method: str) -> None:
    mix = METHODS[method](torch.rand(N, 3, H, W))
    assert mix.mask is not None
    labels = torch.arange(N * H * W).view(N, H, W)
    followed = mix.follow(labels)
    for i in range(N):
        inside = (~mix.mask[i, 0]).nonzero()
        (top, left), (bottom, right) = inside.amin(0).tolist(), (inside.amax(0) + 1).tolist()
        wanted = labels[i].clone()
        for r in range(top, bottom):
            for c in range(left, right):
                source = (r - top) * H // (bottom - top), (c - left) * W // (right - left)
                wanted[r, c] = labels[int(mix.partner[i])][source]
        assert torch.equal(followed[i], wanted)


def test_soft_labels_of_pixels_are_weighted_by_a_soft_mask() -> None:
    mix = fmix(torch.rand(N, 3, H, W), max_soft=0.3, generator=seeded())
    assert mix.mask is not None
    soft = torch.rand(N, 4, H, W, dtype=torch.float64)
    share = mix.mask.double()
    assert bool(((share > 0) & (share < 1)).any())
    wanted = share * soft + (1 - share) * soft[mix.partner]
    torch.testing.assert_close(mix.follow(soft), wanted, rtol=1e-12, atol=1e-15)


def test_tokens_and_their_attention_mask_share_one_mask() -> None:
    tokens, attention = torch.arange(N * 12).view(N, 12), torch.randint(0, 2, (N, 12))
    mix = cutmix(tokens, dims=[1], generator=seeded(1))
    wanted = torch.where(mix.mask.expand(N, 12), attention, attention[mix.partner])  # type: ignore[union-attr]
    assert 0 < float(mix.lam[0]) < 1
    assert torch.equal(mix.follow(attention), wanted)


def test_what_does_not_fit_the_mask_is_refused() -> None:
    mix = cutmix(torch.rand(N, 3, H, W))
    with pytest.raises(ValueError, match=r"\(5, 3, 9, 7\).*\(5, 4\).*input_key"):
        mix.follow(torch.rand(N, 4))


def test_three_sources_are_blended_by_their_weights() -> None:
    partners = torch.tensor([[1, 2], [2, 3], [3, 4], [4, 0], [0, 1]])
    weights = torch.rand(N, 3, dtype=torch.float64)
    weights = weights / weights.sum(1, keepdim=True)
    mix = Mixture(torch.rand(N, 2), partners, weights, per_sample=True)
    other = torch.rand(N, 4, dtype=torch.float64)
    sources = mix.sources(other)
    assert sources[0] is other
    assert torch.equal(sources[2], other[[2, 3, 4, 0, 1]])
    for i in range(N):
        wanted = sum(w * s[i] for w, s in zip(weights[i], sources, strict=True))
        torch.testing.assert_close(mix.follow(other)[i], wanted, rtol=1e-12, atol=0)


def test_a_source_of_weight_0_is_left_out_whatever_it_holds() -> None:
    other = torch.tensor([[1.0], [torch.inf], [torch.nan]])
    followed = pairs([1.0, 0.0, 0.0], torch.rand(3, 2)).follow(other)
    torch.testing.assert_close(followed, torch.tensor([[1.0], [torch.nan], [1.0]]), equal_nan=True)


@pytest.mark.parametrize("method", ["mixup", *METHODS])
def test_what_follows_is_neither_written_to_nor_returned(method: str) -> None:
    x, other = torch.rand(N, 3, H, W), torch.rand(N, 2, H, W)
    before = other.clone()
    mix = mixup(x, generator=seeded()) if method == "mixup" else METHODS[method](x)
    mix.follow(other).zero_()
    assert torch.equal(other, before)


def test_interpolated_samples_have_the_union_of_what_counts() -> None:
    counts = torch.tensor([[1, 1, 0], [1, 0, 0]])
    x = torch.rand(2, 3)
    mix = Mixture.of_pairs(x, torch.tensor([1, 0]), torch.tensor([0.4]))
    assert mix.follow(counts, marks=True).tolist() == [[1, 1, 0], [1, 1, 0]]
    assert mix.follow(counts.bool(), marks=True).tolist() == [[True, True, False], [True, True, False]]
    with pytest.raises(
        ValueError, match="torch.int64 of shape \\(2, 3\\) cannot follow.*'mask' in their names"
    ):
        mix.follow(counts)
