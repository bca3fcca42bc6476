"""Partners by the labels: their classes, their laws, and that nobody waits for the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_msda import MSDA, CutMix, MixUp, RandomMix, ResizeMix
from lightning_msda.pairing import Pairing, pair_up
from tests.training import Classifier, basis, loader, make_trainer

BY_CLASS: list[Pairing] = ["other_class", "same_class", "balanced"]


def drawn(labels: Tensor, pair: Pairing, times: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.stack([pair_up(labels, pair, generator) for _ in range(times)])


def is_permutation(partners: Tensor) -> bool:
    return torch.equal(partners.sort(1).values, torch.arange(partners.size(1)).expand_as(partners))


@pytest.mark.parametrize("seed", range(20))
def test_other_class_pairs_no_sample_with_its_own(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 7, (30,), generator=generator)
    labels[:15] = seed % 7 if seed < 7 else labels[:15]  # up to half of the batch in one class
    if int(labels.bincount().max()) > 15:
        labels[15:][labels[15:] == seed % 7] = (seed + 1) % 7
    partners = drawn(labels, "other_class", 20)
    assert is_permutation(partners)
    assert (labels[partners] != labels).all()


def test_other_class_pairs_as_many_as_can_be() -> None:
    labels = torch.tensor([0] * 7 + [1, 2, 2])
    partners = drawn(labels, "other_class", 50)
    assert is_permutation(partners)
    assert ((labels[partners] != labels).sum(1) == 6).all()  # three of the others, and three with them


def test_other_class_has_no_favourites() -> None:
    labels = torch.arange(5).repeat_interleave(4)
    partners = drawn(labels, "other_class", 4000)
    counts = torch.zeros(20, 20).index_put_(
        (torch.arange(20).expand_as(partners), partners), torch.tensor(1.0), accumulate=True
    )
    wanted = 4000 / 16  # of the 16 samples of other classes
    others = counts[labels[:, None] != labels]
    assert float((others - wanted).abs().max()) < 5 * wanted**0.5


def test_same_class_pairs_within_classes() -> None:
    labels = torch.tensor([3, 3, 3, 1, 1, 9])
    partners = drawn(labels, "same_class", 300)
    assert is_permutation(partners)
    assert (labels[partners] == labels).all()
    fixed = partners == torch.arange(6)
    assert fixed[:, 5].all() and not fixed[:, :5].any()
    shares = (partners[:, 0] == 1).float().mean()  # one of the two others
    assert abs(float(shares) - 0.5) < 5 * (0.25 / 300) ** 0.5


def test_balanced_draws_classes_alike() -> None:
    labels = torch.tensor([0] * 16 + [1] * 3 + [2])
    partners = drawn(labels, "balanced", 500).flatten()
    counts = labels[partners].bincount(minlength=3).double()
    wanted = len(partners) / 3
    assert float((counts - wanted).abs().max()) < 5 * wanted**0.5
    of_one = partners[labels[partners] == 1].bincount(minlength=20)[16:19].double()
    assert float((of_one - of_one.mean()).abs().max()) < 5 * float(of_one.mean()) ** 0.5


def test_near_is_a_gaussian_kernel_of_half_a_standard_deviation() -> None:
    labels = torch.tensor([0.0, 1.0, 1.5, 4.0])
    partners = drawn(labels, "near", 6000)
    squares = (labels[:, None] - labels).square()
    kernel = torch.exp(-squares / (2 * 0.25 * labels.var(unbiased=False))).fill_diagonal_(0)
    wanted = kernel / kernel.sum(1, keepdim=True)
    for i in range(4):
        shares = partners[:, i].bincount(minlength=4) / 6000
        assert float((shares - wanted[i]).abs().max()) < 5 * (0.25 / 6000) ** 0.5


@pytest.mark.parametrize("labels", [torch.zeros(5), torch.full((5, 2), 3.0)])
def test_near_pairs_labels_that_are_all_alike(labels: Tensor) -> None:
    partners = drawn(labels, "near", 50)
    assert (partners != torch.arange(5)).all()


def test_scores_are_classes_by_the_largest() -> None:
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    scores = torch.nn.functional.one_hot(labels).float() + 0.1
    for pair in BY_CLASS:
        assert torch.equal(drawn(scores, pair, 5), drawn(labels, pair, 5))
        assert torch.equal(drawn(labels[:, None], pair, 5), drawn(labels, pair, 5))


@pytest.mark.parametrize("labels", [torch.rand(4), torch.zeros(4, 3, dtype=torch.long), torch.rand(4, 1)])
def test_what_is_no_class_is_refused(labels: Tensor) -> None:
    with pytest.raises(ValueError, match=r"are no classes to pair by.*target_key.*pair='near'"):
        pair_up(labels, "balanced")


class NoReading(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses what waits for a device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("pair", ["any", *BY_CLASS, "near"])
def test_nobody_waits_for_the_device(pair: Pairing) -> None:
    with NoReading():  # type: ignore[no-untyped-call]
        pair_up(torch.tensor([0, 1, 1, 2]), pair, torch.Generator().manual_seed(0))
    with pytest.raises(AssertionError), NoReading():  # type: ignore[no-untyped-call]
        torch.ones(1).item()


@pytest.mark.parametrize("pair", BY_CLASS)
@pytest.mark.parametrize(
    "make",
    [
        lambda pair: MixUp(pair=pair),
        lambda pair: CutMix(pair=pair, per_sample=True),
        lambda pair: ResizeMix(pair=pair),
        lambda pair: MixUp(pair=pair, at="linear"),
        lambda pair: RandomMix([MixUp(pair=pair), CutMix(pair=pair)]),
    ],
)
def test_every_method_pairs_so_in_training(make: Any, pair: Pairing) -> None:
    method: MSDA = make(pair)
    labels, seen = torch.tensor([0, 0, 0, 1, 1, 2]), []

    class Look(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            assert method.last_mix is not None
            seen.append(labels[method.last_mix.partner])

    data = loader(basis(6, 8, 9).repeat(8, 1, 1, 1), labels.repeat(8), batch_size=6)
    make_trainer(Look(), method).fit(Classifier(6 * 8 * 9, 6), data)
    found = torch.stack(seen)
    if pair == "other_class":
        assert (found != labels).all()
    elif pair == "same_class":
        assert (found == labels).all()
    else:
        assert set(found.flatten().tolist()) == {0, 1, 2}


def test_pairs_by_labels_need_labels() -> None:
    trainer = make_trainer(MixUp(pair="balanced", target_key=False))
    with pytest.raises(ValueError, match="pair='balanced' goes by the labels, and target_key names none"):
        trainer.fit(Classifier(6 * 8 * 9, 6), loader(basis(6, 8, 9), torch.arange(6), batch_size=6))


def test_an_unknown_pairing_is_refused() -> None:
    with pytest.raises(ValueError, match="pair='both' is unknown: it must be one of any, other_class"):
        MixUp(pair="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pair='near' is for each candidate to say"):
        RandomMix(pair="near")
