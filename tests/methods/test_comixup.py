"""Co-Mixup: whose pixels a mix shows, what its labels weigh, and how images are shared out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_msda import CoMixup, Mixture, MixUp, PuzzleMix, RandomMix
from lightning_msda.functional import comixup, puzzlemix
from lightning_msda.methods.comixup import compatibility
from lightning_msda.targets import mix_target
from tests.contract.oracle import trains
from tests.helpers import (
    BAD_ALPHAS,
    assert_layout_does_not_matter,
    assert_same_mix,
    neighbours,
    seeded,
)
from tests.training import basis, make_trainer


def images(n: int = 7, channels: int = 3, height: int = 16, width: int = 16, seed: int = 1) -> dict[str, Any]:
    generator = seeded(seed)
    saliency = torch.rand(n, height, width, generator=generator) ** 3
    return {"x": torch.rand(n, channels, height, width, generator=generator), "saliency": saliency}


def weights_of_all(mix: Mixture) -> Tensor:
    """Return the weight of each sample in each mix, shape ``(N, N)``."""
    n = len(mix.inputs)
    sources = torch.cat([torch.arange(n)[:, None], mix.partners], 1)
    return torch.zeros(n, n, dtype=mix.weights.dtype).scatter_add_(1, sources, mix.weights)


@pytest.mark.parametrize("block_num", [1, 3, 4, None])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 23), (9, 30), (3, 5)])
@pytest.mark.parametrize("channels", [1, 4])
def test_each_block_shows_the_same_block_of_one_sample_or_of_two_half_and_half(
    channels: int, height: int, width: int, block_num: int | None
) -> None:
    n = 6
    saliency = images(n, 1, height, width)["saliency"]
    # Sample i is 2^i: a mix of one or two in halves says which.
    x = (2.0 ** torch.arange(n)).view(n, 1, 1, 1).expand(n, channels, height, width)
    place = torch.rand(channels, height, width, generator=seeded(3)) / 64
    mix = comixup(x + place, saliency=saliency, block_num=block_num, generator=seeded(4))
    values = mix.inputs - place  # as every image has this at the same place, the mix has it there
    halves = {(2.0**i + 2.0**j) / 2: (i, j) for i in range(n) for j in range(i, n)}
    measured = torch.zeros(n, n)
    for i in range(n):
        for y in range(height):
            for z in range(width):
                near = min(halves, key=lambda value: abs(value - float(values[i, 0, y, z])))
                assert torch.allclose(values[i, :, y, z], torch.tensor(near), atol=1e-4)
                for j in halves[near]:
                    measured[i, j] += 0.5 / (height * width)
    assert torch.allclose(weights_of_all(mix), measured, atol=1e-5)
    assert int((measured > 0).sum(1).max()) <= 3
    if block_num == 3 and height == 9:  # blocks of 3 by 10 pixels
        blocks = values.view(n, channels, 3, 3, 3, 10)
        assert torch.allclose(blocks.amax((3, 5)), blocks.amin((3, 5)), atol=1e-4)


@pytest.mark.parametrize("sources", [1, 2, 3, 9])
@pytest.mark.parametrize("n", [1, 2, 5, 20, 23])
def test_shares_sum_to_one_and_are_those_of_the_pixels(n: int, sources: int) -> None:
    x, saliency = basis(n, 12, 20), images(n, 1, 12, 20)["saliency"]
    mix = comixup(x, saliency=saliency, sources=sources, part=10, generator=seeded())
    k = 1 + min(sources, -(-n // -(-n // 10)))
    assert mix.weights.shape == (n, k) and mix.partners.shape == (n, k - 1)
    assert torch.allclose(mix.weights.sum(1), torch.ones(n))
    assert torch.allclose(weights_of_all(mix), mix.inputs.mean((2, 3)), atol=1e-6)
    assert mix.mask is not None and mix.mask.shape == (n, 1, 12, 20)
    assert torch.allclose(mix.mask.mean((1, 2, 3)), mix.lam)
    assert torch.equal(mix.mask[:, 0], mix.inputs[torch.arange(n), torch.arange(n)])
    assert bool((mix.weights[:, 1:].diff(dim=1) <= 0).all())  # the first partner has most
    assert (mix.dims, mix.per_sample) == ((), n > 1)


@pytest.mark.parametrize(
    ("n", "part", "sizes"),
    [(7, 20, [7]), (41, 20, [13, 14, 14]), (5, 2, [1, 2, 2]), (4, 1, [1, 1, 1, 1]), (40, 20, [20, 20])],
)
def test_parts_are_as_few_as_can_be_and_differ_by_one(n: int, part: int, sizes: list[int]) -> None:
    x, saliency = basis(n, 8, 8), images(n, 1, 8, 8)["saliency"]
    shown = comixup(x, saliency=saliency, part=part, generator=seeded()).inputs.sum((2, 3)) > 0
    first = 0
    for size in sizes:
        inside = slice(first, first + size)
        assert not bool(shown[inside, :first].any()) and not bool(shown[inside, first + size :].any())
        first += size
    if 1 in sizes:
        alone = first - 1 if sizes[-1] == 1 else 0
        assert torch.equal(shown[alone], torch.arange(n) == alone)


def test_a_mix_stands_in_the_place_of_an_image_that_it_shows_much_of() -> None:
    batch = images(20)
    weights = weights_of_all(comixup(**batch, generator=seeded()))
    others = (weights.sum() - weights.trace()) / (20 * 19)
    assert float(weights.diagonal().mean()) > 5 * float(others)
    assert float((weights.diagonal() > 0).double().mean()) > 0.8
    assert int(weights.argmax()) % 21 == 0  # the largest share of all is an own one


def test_more_saliency_is_shown_than_in_pairs() -> None:
    share = torch.rand(20, 4, 4, generator=seeded(2)).log().neg() ** 4  # few blocks have it
    share = (share / share.sum((1, 2), keepdim=True) / 16).repeat_interleave(4, 1).repeat_interleave(4, 2)
    maps: dict[str, Any] = {"x": share[:, None], "saliency": share}
    jointly = comixup(**maps, generator=seeded())
    pairs = puzzlemix(**maps, block_num=4, transport=False, generator=seeded())
    seen = [float(mix.inputs.sum((1, 2, 3)).mean()) for mix in (jointly, pairs)]
    assert seen[0] > seen[1] > 1
    assert bool((weights_of_all(jointly).sum(0) > 0).all())


def test_without_gamma_all_mixes_are_alike_and_with_it_each_image_is_seen() -> None:
    batch = images(12)
    alike = comixup(**batch, gamma=0.0, beta=0.0, sources=12, generator=seeded())
    assert all(torch.allclose(row, alike.inputs[0]) for row in alike.inputs[1:])
    free = weights_of_all(alike).sum(0)
    used = weights_of_all(comixup(**batch, generator=seeded())).sum(0)
    assert float(used.max()) < float(free.max())
    assert bool((free == 0).any()) and bool((used > 0).all())


def test_flat_saliency_shows_the_images_that_are_wanted_whole() -> None:
    # Without a penalty every block wants the likeliest image; with it images take turns.
    x, saliency = basis(6, 8, 8), torch.ones(6, 8, 8)
    free = comixup(x, saliency=saliency, gamma=0.0, eta=1.0, generator=seeded()).inputs.mean((2, 3))
    assert bool((free == free[0]).all()) and sorted(free[0].tolist()) == [0, 0, 0, 0, 0, 1]
    spread = comixup(x, saliency=saliency, eta=1.0, generator=seeded())
    assert len({int(row.argmax()) for row in spread.inputs.mean((2, 3))}) > 1


@pytest.mark.parametrize("scale", [0.25, 4.0])
def test_the_unit_of_saliency_does_not_matter(scale: float) -> None:
    batch = images()
    mix = comixup(**batch, generator=seeded())
    assert_same_mix(comixup(batch["x"], saliency=scale * batch["saliency"], generator=seeded()), mix)
    none = [comixup(batch["x"], saliency=torch.full((7, 16, 16), s), generator=seeded()) for s in (0.0, 3.0)]
    assert_same_mix(*none)


def test_compatibility_is_the_distance_of_salient_places_with_mean_row_sum_one() -> None:
    saliency = 1e-3 * torch.rand(7, 20, 30, generator=seeded())
    spots = [
        (0, 0),
        (4, 9),
        (12, 3),
        (8, 22),
        (0, 15),
        (12, 22),
        (12, 22),
    ]  # corners of windows of 8x8 pixels
    for i, (y, x) in enumerate(spots):
        saliency[i, y : y + 8, x : x + 8] = 1.0
    places, real = (
        torch.tensor([[0, 1, 2, 3], [4, 5, 6, 6]]),
        torch.tensor([[True] * 4, [True] * 3 + [False]]),
    )
    near = compatibility(saliency, places, real, omega=0.3)
    for part, members in enumerate([[0, 1, 2, 3], [4, 5, 6]]):
        n = len(members)
        apart = [
            [sum(abs(a - b) for a, b in zip(spots[i], spots[j], strict=True)) for j in members]
            for i in members
        ]
        total = sum(map(sum, apart))
        for i in range(n):
            for j in range(n):
                wanted = 0.7 * (i == j) + 0.3 * apart[i][j] * n / total
                assert float(near[part, i, j]) == pytest.approx(wanted, abs=1e-6)
    assert not bool(near[1, :3, 3].any())
    one = torch.arange(7)[None], torch.ones(1, 7).bool()
    assert torch.allclose(compatibility(torch.ones(7, 5, 6), *one, omega=0.3)[0], 0.7 * torch.eye(7))


def test_draws_come_from_the_generator_alone() -> None:
    batch, state = images(), torch.get_rng_state()
    mixes = [comixup(**batch, generator=seeded(3)) for _ in range(2)]
    assert_same_mix(*mixes)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(comixup(**batch, generator=seeded(4)).inputs, mixes[0].inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_inputs_of_any_precision_keep_it(dtype: torch.dtype) -> None:
    batch = images()
    mix = comixup(batch["x"].to(dtype), saliency=batch["saliency"].to(dtype), generator=seeded())
    assert mix.inputs.dtype == dtype and bool(mix.inputs.isfinite().all())
    assert mix.weights.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_inputs_may_lie_in_memory_as_they_like() -> None:
    batch = images(4, 3, 8, 12)
    assert_layout_does_not_matter(
        lambda x: comixup(x, saliency=batch["saliency"], generator=seeded()), batch["x"]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": -1.0}, r"beta=-1\.0 is out of range"),
        ({"gamma": math.nan}, "gamma=nan is out of range"),
        ({"eta": math.inf}, "eta=inf is out of range"),
        ({"tau": -0.1}, r"tau=-0\.1 is out of range"),
        ({"omega": 1.5}, r"omega=1\.5 is out of range: it must be a number from 0 to 1"),
        ({"threshold": "firm"}, "threshold='firm' is unknown: it must be 'hard' or 'soft'"),
        ({"part": 0}, "part=0 is out of range: it must be a whole number from 1"),
        ({"sources": 2.5}, r"sources=2\.5 is out of range"),
        ({"sweeps": True}, "sweeps=True is out of range"),
        ({"block_num": 0}, "block_num=0 is out of range: images of 16 by 16 pixels have from 1 to 16"),
        ({"x": torch.zeros(7, 3, 16)}, r"Inputs of shape \(7, 3, 16\) are no images: Co-Mixup takes"),
        ({"x": torch.zeros(7, 3, 16, 16).byte()}, r"half and half, which torch.uint8 cannot"),
        ({"saliency": torch.zeros(7, 8, 8)}, r"saliency of shape \(7, 8, 8\) and torch.float32 does not fit"),
        *[({"alpha": alpha}, message) for alpha, message in BAD_ALPHAS if not isinstance(alpha, dict)],
    ],
)
def test_what_is_out_of_range_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        comixup(**(images() | arguments))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"at": "conv"}, "at='conv' has no meaning for CoMixup"),
        ({"dims": [2]}, r"dims=\[2\] has no meaning for CoMixup"),
        ({"pair": "near"}, "pair='near' has no meaning for CoMixup"),
        ({"saliency_stride": 0}, "saliency_stride=0 must be a whole number from 1"),
        ({"part": 0}, "part=0"),
        ({"alpha": 0.0}, "alpha"),
    ],
)
def test_wrong_arguments_of_the_callback_are_refused(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        CoMixup(**arguments)


def test_what_lies_beside_the_pixels_is_refused() -> None:
    batch = images(4)
    mixes = [
        comixup(**batch, generator=seeded()),
        puzzlemix(**batch, partner=neighbours(4), generator=seeded()),
    ]
    for mix in mixes:
        for target in (torch.zeros(4, 16, 16).long(), torch.zeros(4, 1, 16, 16)):
            with pytest.raises(ValueError, match="labels for the positions of inputs .* cannot follow"):
                mix_target(target, mix)
        with pytest.raises(ValueError, match="does not fit"):
            mix.follow(torch.zeros(4, 1, 16, 16))


# --- In training ---


class Small(LightningModule):
    """A small network with statistics, in double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 16, 5)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        features = F.adaptive_avg_pool2d(torch.tanh(self.norm(self.conv(x))), 4)
        scores: Tensor = self.head(features.flatten(1))
        return scores

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        self.log("loss", loss := F.cross_entropy(self(x), y))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def data(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    return [(torch.rand(n, 3, 12, 8, dtype=torch.float64), torch.randint(0, 5, (n,))) for n in sizes]


def shared(mix: Mixture, y: Tensor) -> list[tuple[Any, Any]]:
    """Return the formula ``mean_i sum_j weight_ij l(y_j)``, as probabilities of the classes."""
    hot = F.one_hot(y, 5).double()
    return [(1.0, weights_of_all(mix).double() @ hot)]


def test_a_module_is_trained_on_the_labels_of_all_sources() -> None:
    torch.manual_seed(0)
    trains(Small, data(6, 6, 5), CoMixup(part=4, seed=3), terms=shared)
    assert CoMixup().lam_by_sample


def test_a_candidate_of_randommix_shares_too() -> None:
    torch.manual_seed(0)
    trains(
        Small,
        data(6, 6, 6),
        RandomMix([CoMixup(), MixUp(per_sample=True), PuzzleMix()]),
        terms=shared,
        max_epochs=2,
    )


def test_a_sample_alone_stays_as_it_is() -> None:
    method = CoMixup(seed=1)
    loaded: Any = DataLoader(data(4, 1), batch_size=None, collate_fn=lambda batch: batch)  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="one sample"):
        make_trainer(method).fit(Small(), loaded)
    assert method.last_mix is None


def test_it_says_what_it_needs() -> None:
    loaded: Any = DataLoader(data(4), batch_size=None, collate_fn=lambda batch: batch)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="CoMixup computes a loss to see what is salient.*target_key"):
        make_trainer(CoMixup(target_key=False)).fit(Small(), loaded)
