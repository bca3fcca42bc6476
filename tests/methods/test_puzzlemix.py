"""Puzzle Mix, against its energy in plain loops and the properties of its masks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from lightning_msda import MixUp, PuzzleMix, RandomMix, Step
from lightning_msda.methods.puzzlemix import adversarial_noise, puzzle_energy, puzzlemix
from lightning_msda.ops.labelling import label_grid
from lightning_msda.randomness import sample_beta, sample_partners
from lightning_msda.saliency import gradient_saliency
from tests.contract.oracle import classes_by_sample, trains
from tests.helpers import (
    BAD_ALPHAS,
    assert_frequencies,
    assert_layout_does_not_matter,
    assert_same_mix,
    constant_samples,
    neighbours,
    numbered,
    own_pixels,
    seeded,
)
from tests.training import in_a_fresh_process, loader, make_trainer


def images(n: int = 6, channels: int = 3, height: int = 16, width: int = 16, seed: int = 1) -> dict[str, Any]:
    generator = seeded(seed)
    saliency = torch.rand(n, height, width, generator=generator) ** 3
    return {"x": torch.rand(n, channels, height, width, generator=generator), "saliency": saliency}


def peaky(n: int, blocks: int, side: int, seed: int = 2) -> Tensor:
    """Return saliency that few blocks have."""
    small = torch.rand(n, 1, blocks, blocks, generator=seeded(seed)).log().neg() ** 4
    return small.repeat_interleave(side, 2).repeat_interleave(side, 3)[:, 0]


def choice_energy(
    x: Tensor,
    u: Tensor,
    partner: list[int],
    i: int,
    own: Tensor,
    b: int,
    beta: float,
    gamma: float,
    neigh: int,
) -> float:
    """Return the energy of a binary mask without its prior, from the images themselves."""
    side, total = x.size(2) // b, 0.0
    near = min(neigh, side)
    cells = torch.nn.functional.avg_pool2d(x, near)
    k = side // near
    for r in range(b):
        for c in range(b):
            total += float(u[partner[i], r, c] if own[r, c] else u[i, r, c])
            for dr, dc in ((1, 0), (0, 1)):
                if r + dr == b or c + dc == b:
                    continue
                first = cells[i if own[r, c] else partner[i]]
                second = cells[i if own[r + dr, c + dc] else partner[i]]
                if dr:
                    here, there = (
                        first[:, r * k + k - 1, c * k : c * k + k],
                        second[:, (r + 1) * k, c * k : c * k + k],
                    )
                else:
                    here, there = (
                        first[:, r * k : r * k + k, c * k + k - 1],
                        second[:, r * k : r * k + k, (c + 1) * k],
                    )
                smooth = beta / (b * 16)
                total += smooth * bool(own[r, c] != own[r + dr, c + dc])
                total += smooth * gamma * float((here - there).abs().mean())
    return total


@pytest.mark.parametrize(("blocks", "neigh"), [(2, 4), (4, 2), (4, 1), (8, 4)])
def test_the_energy_of_a_hard_mask_is_that_of_its_definition_up_to_a_constant(
    blocks: int, neigh: int
) -> None:
    batch = images(3)
    x, saliency, partner = batch["x"].double(), batch["saliency"].double(), torch.tensor([2, 0, 1])
    low, high = x.amin((0, 2, 3), keepdim=True), x.amax((0, 2, 3), keepdim=True)
    unary, down, right = puzzle_energy(
        x, saliency, partner, torch.zeros(2, dtype=torch.float64), blocks, 1.2, 0.5, 0.2, neigh
    )
    u = torch.nn.functional.avg_pool2d(saliency[:, None], 16 // blocks)[:, 0]
    u = u / u.sum((1, 2), keepdim=True)
    for i in range(3):
        gaps = []
        for seed in range(4):
            own = torch.rand(blocks, blocks, generator=seeded(seed)) < 0.5
            value = float(unary[i].gather(0, own.long()[None]).sum())
            value += float((down[i] * own.double().diff(dim=0).square()).sum())
            value += float((right[i] * own.double().diff(dim=1).square()).sum())
            wanted = choice_energy(
                (x - low) / (high - low), u, partner.tolist(), i, own, blocks, 1.2, 0.5, neigh
            )
            gaps.append(value - wanted)
        assert max(gaps) - min(gaps) < 1e-9


@pytest.mark.parametrize("labels", [2, 3, 4])
@pytest.mark.parametrize(("height", "width", "blocks"), [(16, 16, 4), (17, 23, 5), (9, 30, 9), (8, 8, 1)])
def test_without_transport_inputs_are_mixed_by_the_mask(
    labels: int, height: int, width: int, blocks: int
) -> None:
    batch = images(5, 2, height, width)
    mix = puzzlemix(**batch, labels=labels, block_num=blocks, transport=False, generator=seeded())
    draws = seeded()
    partner = sample_partners(5, draws)
    lam = float(sample_beta(1.0, 1, draws))
    prior = torch.tensor(
        [
            -math.log(math.comb(labels - 1, i) * lam**i * (1 - lam) ** (labels - 1 - i) + 1e-8)
            for i in range(labels)
        ]
    )
    chosen = label_grid(
        *puzzle_energy(batch["x"], batch["saliency"], partner, prior, blocks, 1.2, 0.5, 0.2, 4)
    )
    assert mix.mask is not None and mix.mask.shape == (5, 1, height, width)
    assert (mix.dims, mix.per_sample, mix.selects) == ((2, 3), True, labels == 2)
    for y in range(height):
        for z in range(width):
            block = chosen[:, y * blocks // height, z * blocks // width] / (labels - 1)
            assert torch.allclose(mix.mask[:, 0, y, z].float(), block)
    mask = mix.mask.float()
    assert torch.allclose(mix.inputs, mask * batch["x"] + (1 - mask) * batch["x"][partner], atol=1e-6)
    assert torch.allclose(mix.lam, mask.mean((1, 2, 3)))
    assert torch.equal(mix.partner, partner)


@pytest.mark.parametrize("transport", [False, True])
@pytest.mark.parametrize("labels", [2, 3])
def test_lam_is_the_share_of_the_mask_and_of_own_pixels(transport: bool, labels: int) -> None:
    x, saliency = constant_samples(6, 1, 12, 20), images(6, 1, 12, 20)["saliency"]
    mix = puzzlemix(x, saliency=saliency, labels=labels, block_num=4, transport=transport, generator=seeded())
    assert mix.mask is not None
    share = mix.mask.float().mean((1, 2, 3))
    assert torch.allclose(mix.lam, share)
    own, shown = torch.arange(6.0), mix.partner.float()
    assert torch.allclose(mix.inputs.mean((1, 2, 3)), share * own + (1 - share) * shown, atol=1e-5)
    if labels == 2:
        assert torch.allclose(
            own_pixels(mix)[mix.partner != torch.arange(6)].float(), share[mix.partner != torch.arange(6)]
        )


@pytest.mark.parametrize(
    ("height", "width", "t_size"), [(16, 16, None), (16, 16, 2), (17, 22, None), (13, 21, 3)]
)
def test_blocks_that_move_show_pixels_of_the_same_sample(height: int, width: int, t_size: int | None) -> None:
    x = numbered(4, 1, height, width).double()
    x = torch.arange(x.numel(), dtype=torch.float64).view_as(x)
    saliency = images(4, 1, height, width)["saliency"] ** 6
    mix = puzzlemix(
        x,
        saliency=saliency,
        labels=2,
        block_num=4,
        t_eps=0.01,
        t_size=t_size,
        partner=neighbours(4),
        generator=seeded(),
    )
    still = puzzlemix(
        x,
        saliency=saliency,
        labels=2,
        block_num=4,
        transport=False,
        partner=neighbours(4),
        generator=seeded(),
    )
    assert mix.mask is not None and still.mask is not None
    assert torch.equal(mix.mask, still.mask) and torch.equal(mix.lam, still.lam)
    sample = (mix.inputs // (height * width)).long()
    own = torch.arange(4).view(4, 1, 1, 1)
    assert torch.equal(sample, torch.where(mix.mask, own, neighbours(4).view(4, 1, 1, 1)))
    assert not torch.equal(mix.inputs, still.inputs)
    if (height, width) == (16, 16):  # equal blocks: no pixel is seen twice
        assert all(len(row.unique()) == height * width for row in mix.inputs)
    assert mix.dims == () and mix.aligned_dims(torch.zeros(4, height, width)) is None


def test_the_salient_block_is_seen_wherever_it_is() -> None:
    for seed in range(6):
        saliency = torch.full((8, 16, 16), 1e-4)
        spots = torch.randint(4, (8, 2), generator=seeded(seed)).tolist()
        x = torch.zeros(8, 1, 16, 16)
        for i, (r, c) in enumerate(spots):
            saliency[i, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4] = 1
            x[i, :, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4] = 1 + i
        mix = puzzlemix(
            x,
            saliency=saliency,
            labels=2,
            block_num=4,
            t_eps=0.2,
            partner=neighbours(8),
            generator=seeded(seed),
        )
        for i in range(8):
            if 0 < float(mix.lam[i]) < 1:
                for source in (i, int(mix.partner[i])):
                    assert int((mix.inputs[i] == 1 + source).sum()) == 16


@pytest.mark.parametrize("labels", [2, 3])
def test_flat_saliency_has_no_mask_but_whole_images(labels: int) -> None:
    # Neighbours want the same share, every block the likelier one.
    x, saliency = torch.zeros(4, 3, 16, 16), torch.ones(4, 16, 16)
    for seed in range(20):
        draws = seeded(seed)
        sample_partners(4, draws)
        lam = float(sample_beta(1.0, 1, draws))
        mix = puzzlemix(x, saliency=saliency, labels=labels, block_num=4, generator=seeded(seed))
        assert bool((mix.lam == mix.lam[0]).all())
        if labels == 2:
            assert float(mix.lam[0]) == float(lam > 0.5)


def test_no_saliency_at_all_is_flat() -> None:
    x = images()["x"]
    mixes = [puzzlemix(x, saliency=torch.full((6, 16, 16), s), generator=seeded()) for s in (0.0, 3.0)]
    assert_same_mix(*mixes)


def test_the_mean_lam_grows_with_the_one_that_is_drawn() -> None:
    x, found = torch.zeros(64, 1, 16, 16), []
    for seed in range(60):
        draws = seeded(seed)
        sample_partners(64, draws)
        lam = float(sample_beta(1.0, 1, draws))
        mix = puzzlemix(
            x, saliency=peaky(64, 4, 4, seed), block_num=4, transport=False, generator=seeded(seed)
        )
        found.append((lam, float(mix.lam.mean())))
    drawn, kept = (torch.tensor(values) for values in zip(*found, strict=True))
    assert float((drawn - kept).abs().mean()) < 0.08
    assert float(torch.corrcoef(torch.stack([drawn, kept]))[0, 1]) > 0.97


def test_own_and_partner_have_equal_rights() -> None:
    # Samples 0 and 1 are each other's partners: what one keeps, the other shows, if lam is 1/2.
    batch = images(2)
    for blocks in (2, 4):
        costs = puzzle_energy(
            batch["x"], batch["saliency"], torch.tensor([1, 0]), torch.zeros(3), blocks, 1.2, 0.5, 0.2, 4
        )
        chosen = label_grid(*costs)
        assert torch.equal(chosen[0], 2 - chosen[1])


def test_samples_in_another_order_are_mixed_alike() -> None:
    batch, order = images(), torch.randperm(6, generator=seeded(5))
    partner = neighbours(6)
    mix = puzzlemix(**batch, partner=partner, block_num=8, generator=seeded())
    again = puzzlemix(
        batch["x"][order],
        saliency=batch["saliency"][order],
        partner=order.argsort()[partner[order]],
        block_num=8,
        generator=seeded(),
    )
    assert torch.equal(again.inputs, mix.inputs[order])
    assert torch.equal(again.lam, mix.lam[order])


@pytest.mark.parametrize("scale", [0.25, 4.0])
def test_brightness_and_the_unit_of_saliency_do_not_matter(scale: float) -> None:
    batch = images()
    mix = puzzlemix(**batch, block_num=4, generator=seeded())
    other = puzzlemix(scale * batch["x"], saliency=scale * batch["saliency"], block_num=4, generator=seeded())
    assert mix.mask is not None and other.mask is not None
    assert torch.equal(mix.mask, other.mask)


def test_draws_come_from_the_generator_alone() -> None:
    batch, state = images(), torch.get_rng_state()
    mixes = [puzzlemix(**batch, generator=seeded(3)) for _ in range(2)]
    assert_same_mix(*mixes)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_number_of_blocks_is_drawn_and_clamped() -> None:
    saliency = torch.rand(2, 10, 40, generator=seeded()) ** 4
    x, seen = torch.zeros(2, 1, 10, 40), set()
    for seed in range(60):
        mask = puzzlemix(x, saliency=saliency, beta=0.0, generator=seeded(seed)).mask
        assert mask is not None
        seen.add(int((mask[0, 0].diff(dim=0) != 0).any(1).sum()))
    assert max(seen) in (7, 8, 9) and {0, 1} & seen


class NoLook(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses what would wait for a device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in (
            "_local_scalar_dense",
            "nonzero",
            "masked_select",
            "equal",
            "unique",
            "_unique2",
        ), name
        if name in ("index", "index_put", "index_put_"):
            assert all(at is None or at.dtype != torch.bool for at in args[1]), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("labels", [2, 3, 4])
@pytest.mark.parametrize("blocks", [2, 4, 16])
def test_nothing_looks_at_the_values_of_a_batch(labels: int, blocks: int) -> None:
    batch = images(3)
    with NoLook():  # type: ignore[no-untyped-call]
        puzzlemix(
            **batch, labels=labels, block_num=blocks, t_size=2, partner=neighbours(3), generator=seeded()
        )


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.bfloat16, torch.float64])
def test_inputs_of_any_dtype_are_selected_without_a_change_of_values(dtype: torch.dtype) -> None:
    x = numbered(4, 3, 9, 8, dtype=dtype)
    saliency = torch.rand(4, 9, 8, generator=seeded())
    mix = puzzlemix(
        x, saliency=saliency, labels=2, transport=False, partner=neighbours(4), generator=seeded()
    )
    assert mix.mask is not None and mix.inputs.dtype == dtype
    assert mix.lam.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(mix.inputs, torch.where(mix.mask, x, x[neighbours(4)]))


def test_inputs_may_lie_in_memory_as_they_like() -> None:
    batch = images(4, 3, 8, 12)
    assert_layout_does_not_matter(
        lambda x: puzzlemix(x, saliency=batch["saliency"], generator=seeded()), batch["x"]
    )


def test_a_batch_of_one_sample_is_itself() -> None:
    batch = images(1)
    assert torch.allclose(puzzlemix(**batch, transport=False, generator=seeded()).inputs, batch["x"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": 5}, "labels=5 is out of range: it must be 2, 3 or 4"),
        ({"beta": -1.0}, r"beta=-1\.0 is out of range"),
        ({"gamma": math.nan}, "gamma=nan is out of range"),
        ({"eta": math.inf}, "eta=inf is out of range"),
        ({"t_eps": -0.1}, r"t_eps=-0\.1 is out of range"),
        ({"block_num": 17}, "block_num=17 is out of range: images of 16 by 16 pixels have from 1 to 16"),
        ({"block_num": 0}, "block_num=0 is out of range"),
        ({"neigh_size": 0}, "neigh_size=0 is out of range"),
        ({"t_size": 0}, "t_size=0 is out of range"),
        ({"x": torch.zeros(6, 3, 16)}, r"Inputs of shape \(6, 3, 16\) are no images"),
        ({"x": torch.zeros(6, 3, 4, 4, 4)}, r"Inputs of shape \(6, 3, 4, 4, 4\) are no images"),
        ({"x": torch.zeros(6, 3, 16, 16).byte()}, r"labels=3 interpolates .* Set labels=2"),
        ({"saliency": torch.zeros(6, 8, 8)}, r"saliency of shape \(6, 8, 8\) and torch.float32 does not fit"),
        *[({"alpha": alpha}, message) for alpha, message in BAD_ALPHAS if not isinstance(alpha, dict)],
    ],
)
def test_what_is_out_of_range_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        puzzlemix(**(images() | arguments))


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

    def own(self, x: Tensor, y: Tensor) -> Tensor:
        return F.multi_margin_loss(self(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def data(n: int = 6) -> list[tuple[Tensor, Tensor]]:
    return [(torch.rand(n, 3, 12, 8, dtype=torch.float64), torch.randint(0, 5, (n,))) for _ in range(3)]


class Again(Callback):
    """Mixes every batch once more, by the saliency of a twin."""

    def __init__(self, method: PuzzleMix, loss: str | None) -> None:
        self.method = method
        self.loss = loss
        self.seen = 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        twin = Small()
        twin.load_state_dict(pl_module.state_dict())
        x, y = batch
        step = Step(3, trainer.global_step)
        wanted = puzzlemix(
            x,
            saliency=gradient_saliency(twin, x, y, loss=self.loss, stride=self.method.saliency_stride),
            t_size=2,
            partner=step.partners(len(x)),
            generator=step.generator(),
        )
        mix = self.method.last_mix
        assert mix is not None and torch.equal(mix.inputs, wanted.inputs) and torch.equal(mix.lam, wanted.lam)
        self.seen += 1


@pytest.mark.parametrize(("stride", "loss"), [(1, None), (2, None), (1, "own")])
def test_a_module_is_trained_on_the_mixture_by_its_own_saliency(stride: int, loss: str | None) -> None:
    torch.manual_seed(0)
    method = PuzzleMix(t_size=2, seed=3, saliency_stride=stride, saliency_loss=loss)
    again = Again(method, loss)
    batches = data()
    loaded: Any = DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)  # type: ignore[arg-type]
    make_trainer(method, again).fit(Small(), loaded)
    assert again.seen == 3
    trains(Small, batches, PuzzleMix(t_size=2, seed=3), terms=classes_by_sample)


def test_a_candidate_of_randommix_looks_too() -> None:
    torch.manual_seed(0)
    trains(
        Small, data(), RandomMix([PuzzleMix(), MixUp(per_sample=True)]), terms=classes_by_sample, max_epochs=2
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"at": "conv"}, "at='conv' has no meaning for PuzzleMix"),
        ({"dims": [2]}, r"dims=\[2\] has no meaning for PuzzleMix"),
        ({"saliency_stride": 0}, "saliency_stride=0 must be a whole number from 1"),
        ({"labels": 5}, "labels"),
        ({"alpha": 0.0}, "alpha"),
    ],
)
def test_wrong_arguments_of_the_callback_are_refused(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        PuzzleMix(**arguments)


def test_it_says_what_it_needs() -> None:
    loaded: Any = DataLoader(data(), batch_size=None, collate_fn=lambda batch: batch)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="PuzzleMix computes a loss to see what is salient.*target_key"):
        make_trainer(PuzzleMix(target_key=False)).fit(Small(), loaded)
    waves = [(torch.rand(6, 3, 12), torch.randint(0, 5, (6,)))]
    with pytest.raises(ValueError, match=r"PuzzleMix mixes images \(N, C, H, W\)"):
        make_trainer(PuzzleMix()).fit(Small(), DataLoader(waves, batch_size=None, collate_fn=lambda b: b))  # type: ignore[arg-type]


def test_adversarial_noise_steps_along_the_signs_and_keeps_its_size() -> None:
    start, gradient = torch.tensor([[-3.0, 0.0, 2.0, 2.0, 1.0]]), torch.tensor([[5.0, -1e-9, 3.0, -4.0, 0.0]])
    noise = adversarial_noise(start, gradient, torch.tensor(0.5), 8.0)  # steps of 5, no more than 4
    assert noise.tolist() == [[2.0, -4.0, 4.0, -3.0, 1.0]]


def test_own_images_and_partners_are_attacked_independently_with_their_chance() -> None:
    method, x = PuzzleMix(adv_p=0.3), torch.rand(2, 1, 4, 4)
    attacks = [method._attack(x, Step(0, i)) for i in range(3000)]
    flags = [(False, False) if a is None else (a.own, a.shown) for a in attacks]
    counts = [flags.count(pair) for pair in ((False, False), (True, False), (False, True), (True, True))]
    assert_frequencies(counts, [0.49, 0.21, 0.21, 0.09])
    shares = torch.tensor([attack.share for attack in attacks if attack is not None])
    assert_frequencies(torch.histc(shares, 5, 0, 1), [0.2] * 5)
    starts = torch.cat([attack.start.flatten() for attack in attacks if attack is not None])
    unit = float(x.max() - x.min()) / 255
    assert_frequencies(torch.histc(starts, 8, -10 * unit, 10 * unit), [0.125] * 8)


class Linear(LightningModule):
    """Its loss is convex in the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * 8 * 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.linear(F.interpolate(x, (8, 8)).flatten(1))
        return scores

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen = batch[0].detach().clone()
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.parametrize("stride", [1, 2])
def test_noise_raises_the_loss_of_the_images_that_have_it(stride: int) -> None:
    x, y = 3 * torch.randn(16, 2, 8, 8, generator=seeded()) + 1, torch.arange(16) % 3
    module = Linear()
    method = PuzzleMix(
        adv_p=1.0, adv_eps=20.0, transport=False, labels=2, block_num=2, saliency_stride=stride, seed=1
    )
    kept: list[tuple[Tensor, Any]] = []

    class Keep(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            kept.append((module.seen, method.last_mix))

    make_trainer(method, Keep(), max_epochs=12).fit(module, DataLoader([(x, y)], batch_size=None))  # type: ignore[arg-type]
    unit = (x.amax((0, 2, 3)) - x.amin((0, 2, 3))).view(1, 2, 1, 1) / 255
    sizes = []
    for seen, mix in kept:
        assert mix is not None
        clean = torch.where(mix.mask, x, x[mix.partner])
        noise = (seen - clean) / unit
        sizes.append(float(noise.abs().max()))
        assert sizes[-1] <= 20.001
        low, high = x.amin((0, 2, 3), keepdim=True), x.amax((0, 2, 3), keepdim=True)
        assert ((seen >= low - 1e-5) & (seen <= high + 1e-5)).all()
        alone = mix.lam == 1  # shows one image alone: its noise goes up the slope of its own loss
        if stride == 1 and alone.any() and sizes[-1] > 5:
            before, after = (F.cross_entropy(module(z[alone]), y[alone], reduction="none") for z in (x, seen))
            assert (after > before).float().mean() > 0.9
    assert max(sizes) > 15 and min(sizes) < 12  # a uniform share of 20


def test_the_noise_is_the_same_at_every_look() -> None:
    x = torch.randn(4, 3, 8, 8, generator=seeded())
    method, step = PuzzleMix(adv_p=1.0), Step(3, 5, gradient=torch.randn(4, 3, 8, 8, generator=seeded(1)))
    first, second = method.mix(x, step), method.mix(x, step)
    assert torch.equal(first.inputs, second.inputs)
    without = PuzzleMix().mix(x, step)
    assert torch.equal(without.lam, first.lam) and not torch.equal(without.inputs, first.inputs)


def test_without_a_gradient_there_is_no_noise() -> None:
    x = torch.randn(4, 3, 8, 8, generator=seeded())
    assert torch.equal(PuzzleMix(adv_p=1.0).mix(x, Step(3, 5)).inputs, PuzzleMix().mix(x, Step(3, 5)).inputs)


def test_the_clean_loss_stands_beside_the_mixtures() -> None:
    class Small(Linear):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            losses.append(super().training_step(batch, batch_idx))
            return losses[-1]

    losses: list[Tensor] = []
    x, y = torch.randn(6, 2, 8, 8, generator=seeded()), torch.arange(6) % 3
    totals: list[Tensor] = []

    class Keep(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *args: Any) -> None:
            totals.append(outputs["loss"])

    module, method = Small(), PuzzleMix(clean_lam=0.4, seed=1)
    make_trainer(method, Keep()).fit(module, DataLoader([(x, y)], batch_size=None))  # type: ignore[arg-type]
    mix = method.last_mix
    assert mix is not None and len(losses) == 2 and len(totals) == 1
    scores = module(mix.inputs)
    own, other = (F.cross_entropy(scores, labels, reduction="none") for labels in (y, y[mix.partner]))
    wanted = (mix.lam * own + (1 - mix.lam) * other).mean() + 0.4 * F.cross_entropy(module(x), y)
    torch.testing.assert_close(totals[0], wanted.detach())


def on_two_processes(folder: Path) -> None:
    """Train on two processes; keep what they mixed, what became of them, and how often they talked."""
    torch.manual_seed(0)
    module, method = Small(), PuzzleMix(t_size=2, seed=3, clean_lam=0.5)
    kept: list[Any] = []
    talks: list[int] = []

    class Keep(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            def average(group: Any, bucket: Any) -> Any:
                talks.append(bucket.index())
                return allreduce_hook(group, bucket)

            average.__annotations__.clear()  # torch has its own opinion of them
            trainer.strategy.model.register_comm_hook(None, average)

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, i: int) -> None:
            kept.append((batch, method.last_mix))

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            state = dict(module.named_parameters())
            torch.save((kept, state, talks), folder / f"{trainer.global_rank}.pt")

    trainer = make_trainer(method, Keep(), strategy="ddp_notebook", devices=2)
    x = torch.rand(24, 3, 12, 8, dtype=torch.float64, generator=seeded())
    trainer.fit(module, loader(x, torch.randint(0, 5, (24,), generator=seeded()), batch_size=4))


def test_two_processes_exchange_gradients_once_and_train_on_the_joint_batch(tmp_path: Path) -> None:
    in_a_fresh_process(on_two_processes, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1))
    assert first[2] == second[2] == [0, 0, 0]  # one bucket in each of three steps
    torch.manual_seed(0)
    twin = Small()
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    for ranks in zip(first[0], second[0], strict=True):
        losses = []
        for (x, y), mix in ranks:
            clean = F.cross_entropy(twin(x), y)
            scores = twin(mix.inputs)
            own, other = (F.cross_entropy(scores, z, reduction="none") for z in (y, y[mix.partner]))
            losses.append((mix.lam * own + (1 - mix.lam) * other).mean() + 0.5 * clean)
        assert not torch.equal(ranks[0][1].lam, ranks[1][1].lam)
        optimizer.zero_grad()
        torch.autograd.backward(torch.stack(losses).mean())
        optimizer.step()
    for rank in (first, second):
        torch.testing.assert_close(rank[1], dict(twin.named_parameters()), rtol=1e-10, atol=1e-12)
