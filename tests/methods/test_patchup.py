"""PatchUp: what blocks cover, what is inside of them, and the label's share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Generator, Tensor

from lightning_msda import PatchUp
from lightning_msda.functional import patchup


def features(*spatial: int, n: int = 4, channels: int = 3) -> Tensor:
    return torch.rand(n, channels, *spatial, dtype=torch.float64)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("mode", ["soft", "hard"])
@pytest.mark.parametrize("spatial", [(12,), (9, 12), (7, 8, 9)])
def test_the_mix_is_its_mask_and_lam_its_mean(spatial: tuple[int, ...], mode: Any, per_sample: bool) -> None:
    x = features(*spatial)
    mix = patchup(x, mode=mode, block_size=3, per_sample=per_sample, generator=Generator().manual_seed(1))
    assert mix.mask is not None
    mask = mix.mask.to(x.dtype)
    assert mask.shape == (len(x) if per_sample else 1, *x.shape[1:])
    torch.testing.assert_close(mix.inputs, mask * x + (1 - mask) * x[mix.partner], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(mix.lam, mask.flatten(1).mean(1).expand(len(x)))
    assert (mix.mask.dtype == torch.bool) == (mode == "hard")
    assert mix.per_sample == per_sample
    if mode == "soft":
        for row in mask:
            inside = row[row < 1].unique()
            assert len(inside) == 1  # one lam in all blocks


def uncovered(side: int, size: int, gamma: float) -> float:
    """Return the expected share that no block covers: no seed within reach of a position."""
    chance = gamma * side**2 / (size**2 * (side - size + 1) ** 2)
    reach = F.conv2d(torch.ones(1, 1, side, side), torch.ones(1, 1, size, size), padding=size // 2)
    return float(((1 - chance) ** reach.double()).mean())


@pytest.mark.parametrize(("side", "size", "gamma"), [(8, 3, 0.5), (16, 7, 0.75), (5, 1, 0.4), (9, 5, 1.0)])
def test_blocks_leave_the_share_of_dropblock(side: int, size: int, gamma: float) -> None:
    x = torch.zeros(2, 20, side, side)
    shares = torch.stack(
        [
            patchup(
                x, mode="hard", gamma=gamma, block_size=size, generator=Generator().manual_seed(seed)
            ).lam[0]
            for seed in range(120)
        ]
    ).double()
    error = float(shares.std()) / 120**0.5
    assert abs(float(shares.mean()) - uncovered(side, size, gamma)) < 5 * error


def test_blocks_are_whole_and_differ_by_channel() -> None:
    x, generator = torch.zeros(2, 8, 15, 15), Generator().manual_seed(2)
    mix = patchup(x, mode="hard", gamma=0.1, block_size=5, generator=generator)
    assert mix.mask is not None
    holes = (~mix.mask[0]).float()
    assert len({tuple(hole.flatten().tolist()) for hole in holes}) > 4
    # Opening by a block, where it fits whole, gives back every hole away from the border.
    eroded = -F.max_pool2d(-F.pad(holes, (4, 4, 4, 4), value=1.0), 5, stride=1)
    opened = F.max_pool2d(eroded, 5, stride=1)
    assert torch.equal(opened, holes)


def test_lam_inside_of_soft_blocks_is_beta() -> None:
    x = torch.zeros(2, 1, 6, 6)
    lams = []
    for seed in range(400):
        mask = patchup(x, gamma=1.0, block_size=3, generator=Generator().manual_seed(seed)).mask
        assert mask is not None
        if bool((mask < 1).any()):
            lams.append(float(mask.min()))
    assert stats.kstest(lams, stats.beta(2, 2).cdf).pvalue > 1e-3


def test_small_features_have_smaller_blocks() -> None:
    mix = patchup(features(4, 4), block_size=7, generator=Generator().manual_seed(0))
    assert mix.mask is not None and mix.mask.shape[2:] == (4, 4)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"mode": "firm"}, "mode='firm' is unknown"),
        ({"gamma": 0.0}, "gamma=0.0 is out of range"),
        ({"gamma": 1.5}, "gamma=1.5 is out of range"),
        ({"block_size": 4}, "block_size=4 must be an odd"),
        ({"alpha": -1.0}, "alpha"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        patchup(features(6, 6), **arguments)
    with pytest.raises(ValueError, match=sentence):
        PatchUp(**arguments)


def test_integers_are_taken_hard_only() -> None:
    x = torch.randint(0, 9, (4, 3, 6, 6))
    with pytest.raises(ValueError, match=r"PatchUp\(mode='soft'\) interpolates"):
        patchup(x)
    assert patchup(x, mode="hard", block_size=3).inputs.dtype == torch.int64


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 4, 4, 4, 4)])
def test_features_of_other_dimensions_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(N, C, \*spatial\)"):
        patchup(torch.zeros(shape))
