"""Manifold Mixup: which layers are drawn, and the two-term formula there."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from lightning.pytorch import Callback, LightningModule, seed_everything
from torch import Tensor, nn

from lightning_msda import ManifoldMixup, MixUp, PatchUp, RandomMix, Step
from lightning_msda.drawn_layer import find_stages
from tests.training import loader, make_trainer


class Net(LightningModule):
    """Three numbered stages and a head, in double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Tanh()) for _ in range(3)
        )
        self.head = nn.Linear(4, 5)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.stem(x))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Watch(Callback):
    """Holds every step against the formula, mixed at the layer where the features are seen to be mixed."""

    def __init__(self, method: Any) -> None:
        self.method = method
        self.places: list[str] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.before = {name: value.clone() for name, value in pl_module.state_dict().items()}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        x, y = batch
        mix = self.method.last_mix
        partner, lam = mix.partner, mix.lam[0]
        if lam == 1 or torch.equal(partner, torch.arange(len(y))):
            return  # all places are alike
        mask = lam if mix.mask is None else mix.mask.to(x.dtype)
        found = []
        for place in ("input", "layer1", "layer2", "layer3"):
            twin = Net()
            twin.load_state_dict(self.before)

            def mixed(features: Tensor) -> Tensor:
                both: Tensor = mask * features + (1 - mask) * features[partner]
                return both

            if place != "input":
                getattr(twin, place).register_forward_hook(lambda m, a, out: mixed(out))
            try:
                logits = twin(mixed(x) if place == "input" else x)
            except RuntimeError:  # a mask of another layer's shape
                continue
            loss = lam * F.cross_entropy(logits, y) + (1 - lam) * F.cross_entropy(logits, y[partner])
            loss.backward()
            wanted = torch.cat([p.grad.flatten() for p in twin.parameters() if p.grad is not None])
            actual = torch.cat([p.grad.flatten() for p in pl_module.parameters()])
            if torch.allclose(actual, wanted, rtol=1e-8, atol=1e-12):
                torch.testing.assert_close(outputs["loss"], loss.detach(), rtol=1e-10, atol=0)
                found.append(place)
        assert len(found) == 1, found
        self.places += found


def train(method: Any) -> list[str]:
    seed_everything(0)
    x, y = torch.rand(60, 3, 6, 6, dtype=torch.float64), torch.arange(60) % 5
    watch = Watch(method)
    make_trainer(method, watch, inference_mode=True).fit(Net(), loader(x, y, batch_size=6))
    return watch.places


@pytest.mark.parametrize("kind", [ManifoldMixup, PatchUp])
@pytest.mark.parametrize(
    ("layers", "wanted"),
    [
        (None, {"input", "layer1", "layer2"}),
        (["layer3"], {"layer3"}),
        (["input"], {"input"}),
        (["layer1", "layer3"], {"layer1", "layer3"}),
    ],
)
def test_every_batch_is_mixed_at_one_of_the_layers(kind: Any, layers: Any, wanted: set[str]) -> None:
    options = {"block_size": 3, "gamma": 0.5} if kind is PatchUp else {}
    assert set(train(kind(layers, seed=1, **options))) == wanted


def test_layers_are_drawn_alike_and_alike_on_every_process() -> None:
    method = ManifoldMixup(["input", "layer1", "layer2"])
    steps = [Step(seed=0, ordinal=i) for i in range(900)]
    places = [method.choose(step, step.policy()) for step in steps]
    counts = Counter(place.at for place in places if place is not None)
    assert set(counts) == {None, "layer1", "layer2"}
    assert all(abs(count - 300) < 5 * 200**0.5 for count in counts.values())
    others = [method.choose(step, Step(0, step.ordinal, rank=3).policy()) for step in steps]
    assert [p.at for p in places if p] == [p.at for p in others if p]


def test_a_candidate_of_randommix_draws_its_layers_too() -> None:
    method = RandomMix([MixUp(), ManifoldMixup(alpha=1.0)], weights=[0, 1], seed=2)
    assert set(train(method)) == {"input", "layer1", "layer2"}


def test_stages_are_found_anew_for_another_module() -> None:
    method = ManifoldMixup(seed=1)
    train(method)

    class Renamed(Net):
        def __init__(self) -> None:
            super().__init__()
            self.stages = nn.ModuleList([self.layer1, self.layer2])
            del self.layer1, self.layer2, self.layer3

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.stages[1](self.stages[0](self.stem(x))).mean((2, 3)))
            return logits

    x, y = torch.rand(12, 3, 6, 6, dtype=torch.float64), torch.arange(12) % 5
    make_trainer(method).fit(Renamed(), loader(x, y, batch_size=6))
    assert [member.at for member in method.members()] == [None, None, "stages.0", "stages.1"]


@pytest.mark.parametrize(
    ("make", "stages"),
    [
        (torchvision.models.resnet18, ["layer1", "layer2", "layer3", "layer4"]),
        (torchvision.models.densenet121, [f"features.denseblock{i}" for i in (1, 2, 3, 4)]),
        (
            lambda: nn.ModuleDict({"model": torchvision.models.resnet18()}),
            [f"model.layer{i}" for i in (1, 2, 3, 4)],
        ),
    ],
)
def test_stages_of_known_networks(make: Any, stages: list[str]) -> None:
    assert find_stages(make()) == stages


def test_a_network_without_stages_is_told_to_name_them() -> None:
    with pytest.raises(ValueError, match=r"no sub-modules that are numbered as stages.*layers="):
        find_stages(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"at": "layer1"}, r"at='layer1' names one layer.*layers=\['layer1'\]"),
        ({"layers": []}, "layers=\\[\\] must be a list of at least one name"),
        ({"layers": "layer1"}, "layers='layer1' must be a list"),
        ({"dims": [2]}, r"dims=\[2\] has no meaning"),
    ],
)
@pytest.mark.parametrize("kind", [ManifoldMixup, PatchUp])
def test_wrong_arguments_are_refused(kind: Any, arguments: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        kind(**arguments)


def test_alpha_must_be_positive() -> None:
    with pytest.raises(ValueError, match="alpha"):
        ManifoldMixup(alpha=0.0)


def test_an_unknown_layer_is_refused_before_training() -> None:
    with pytest.raises(ValueError, match="at='layer9' is no layer of Net. Near it are"):
        train(ManifoldMixup(["layer9"]))
