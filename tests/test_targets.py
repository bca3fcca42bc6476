"""How each kind of target is mixed: classes live in several worlds, values are mixed, maps follow."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from lightning_msda import MixedTensor, Mixture
from lightning_msda.functional import cutmix, fmix, mixup, resizemix
from lightning_msda.mixed_tensor import settle
from lightning_msda.mixed_value import MixedValue
from lightning_msda.targets import TargetKind, mix_target
from tests.tools import pairs
from tests.tools import released as released

N, K = 5, 4
X = torch.rand(N, 3, 8, 6, dtype=torch.float64)
LAMS = [0.25, 0.9, 0.5, 0.1, 0.7]
NEXT = [1, 2, 3, 4, 0]
CLASSES = torch.tensor([0, 3, 1, 1, 2])

BOTH = pytest.mark.parametrize("lam", [0.3, LAMS], ids=["one lam", "by sample"])


def by_sample(lam: float | Sequence[float]) -> list[float]:
    return [lam] * N if isinstance(lam, float) else list(lam)


def worlds(mixed: Tensor) -> list[Tensor]:
    assert isinstance(mixed, MixedTensor)
    return list(mixed.worlds)


@BOTH
@pytest.mark.parametrize("shape", [(N,), (N, 1), (N, K)], ids=str)
def test_values_are_mixed_by_lam(lam: float | Sequence[float], shape: tuple[int, ...]) -> None:
    target = torch.rand(shape, dtype=torch.float64)
    mixed = mix_target(target, pairs(lam, X))
    assert type(mixed) is MixedValue
    for i, share in enumerate(by_sample(lam)):
        wanted = share * target[i] + (1 - share) * target[NEXT[i]]
        torch.testing.assert_close(mixed[i], wanted, rtol=1e-12, atol=0)


@BOTH
def test_integers_that_are_quantities_are_mixed_as_values(lam: float | Sequence[float]) -> None:
    ages = torch.tensor([20, 31, 47, 5, 80])
    mixed = mix_target(ages, pairs(lam, X), "value")
    assert mixed.is_floating_point()
    wanted = [s * float(ages[i]) + (1 - s) * float(ages[NEXT[i]]) for i, s in enumerate(by_sample(lam))]
    torch.testing.assert_close(mixed, torch.tensor(wanted))


@pytest.mark.parametrize(
    "target",
    [
        CLASSES,
        CLASSES.int(),
        CLASSES[:, None],
        torch.stack([CLASSES, CLASSES.flip(0), 3 - CLASSES], 1),
        torch.rand(N, K) > 0.5,
    ],
    ids=["(N,)", "int32", "(N, 1)", "(N, heads)", "multi-hot"],
)
@BOTH
def test_classes_live_in_the_world_of_each_source(target: Tensor, lam: float | Sequence[float]) -> None:
    mixture = pairs(lam, X)
    mixed = mix_target(target, mixture)
    assert isinstance(mixed, MixedTensor)
    own, partners = mixed.worlds
    assert torch.equal(own, target)
    assert torch.equal(partners, target[NEXT])
    assert (mixed.shape, mixed.dtype) == (target.shape, target.dtype)
    assert mixed.weights is not None
    wanted = [[share, 1 - share] for share in by_sample(lam)]
    kept = wanted if mixture.per_sample else wanted[0]
    torch.testing.assert_close(mixed.weights, torch.tensor(kept, dtype=torch.float64))


def test_soft_labels_can_be_taken_for_classes() -> None:
    soft = torch.rand(N, K, dtype=torch.float64)
    own, partners = worlds(mix_target(soft, pairs(0.3, X), "class"))
    assert torch.equal(own, soft)
    assert torch.equal(partners, soft[NEXT])


@BOTH
def test_multi_hot_labels_give_the_mixed_labels_binary_cross_entropy(lam: float | Sequence[float]) -> None:
    target, logits = torch.rand(N, K) > 0.5, torch.randn(N, K, dtype=torch.float64)
    shares = torch.tensor(by_sample(lam), dtype=torch.float64)[:, None]
    wanted = F.binary_cross_entropy_with_logits(logits, shares * target + (1 - shares) * target[NEXT])
    mixed = mix_target(target, pairs(lam, X))
    torch.testing.assert_close(
        settle(F.binary_cross_entropy_with_logits(logits, mixed.double())), wanted, rtol=1e-10, atol=0
    )


@pytest.mark.parametrize("kind", [None, "class"])
def test_dense_labels_follow_the_mask(kind: TargetKind | None) -> None:
    labels = torch.randint(0, K, (N, 8, 6))
    for method in (cutmix, fmix, resizemix):
        mix = method(X, generator=Generator().manual_seed(3))
        image = method(labels[:, None].double(), generator=Generator().manual_seed(3))
        mixed = mix_target(labels, mix, kind)
        assert type(mixed) is Tensor
        assert torch.equal(mixed, image.inputs[:, 0].long())


def test_dense_soft_labels_follow_the_mask() -> None:
    soft = torch.rand(N, K, 8, 6, dtype=torch.float64)
    mixed = mix_target(soft, cutmix(X, generator=Generator().manual_seed(3)))
    assert torch.equal(mixed, cutmix(soft, generator=Generator().manual_seed(3)).inputs)


def test_token_labels_follow_the_mask_of_tokens() -> None:
    labels = torch.arange(N * 12).view(N, 12)
    mix = cutmix(torch.rand(N, 12, 4), dims=[1], generator=Generator().manual_seed(1))
    assert mix.mask is not None
    wanted = torch.where(mix.mask[..., 0].expand(N, 12), labels, labels[mix.partner])
    assert torch.equal(mix_target(labels, mix), wanted)


def test_dense_labels_without_a_mask_live_in_two_worlds() -> None:
    labels = torch.randint(0, K, (N, 8, 6))
    mix = mixup(X)
    own, partners = worlds(mix_target(labels, mix))
    assert torch.equal(own, labels)
    assert torch.equal(partners, labels[mix.partner])


def test_labels_of_other_sizes_than_the_mask_live_in_two_worlds() -> None:
    labels = torch.randint(0, K, (N, 4, 3))
    mix = cutmix(X, generator=Generator().manual_seed(3))
    assert torch.equal(worlds(mix_target(labels, mix))[1], labels[mix.partner])


def test_dense_classes_under_a_soft_mask_are_never_interpolated() -> None:
    labels = torch.randint(0, K, (N, 8, 6))
    mix = fmix(X, max_soft=0.3, generator=Generator().manual_seed(3))
    assert mix.mask is not None
    assert bool(((mix.mask > 0) & (mix.mask < 1)).any())
    try:
        mixed = mix_target(labels, mix)
    except ValueError as refusal:
        assert "max_soft" in str(refusal)  # noqa: PT017
    else:
        own, partners = labels, labels[mix.partner]
        assert bool(((mixed == own) | (mixed == partners)).all())


TARGETS = {
    "classes": CLASSES,
    "values": torch.rand(N),
    "soft labels": torch.rand(N, K),
    "multi-hot": torch.rand(N, K) > 0.5,
    "label maps": torch.randint(0, K, (N, 8, 6)),
    "soft maps": torch.rand(N, K, 8, 6),
}


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("kind", [None, "class", "value"])
@pytest.mark.parametrize("lam", [0.3, 1.0, LAMS], ids=["one lam", "lam 1", "by sample"])
def test_nothing_returned_is_a_view_of_the_batch(
    name: str, kind: TargetKind | None, lam: float | Sequence[float]
) -> None:
    target = TARGETS[name]
    before = target.clone()
    mixtures = [pairs(lam, X), cutmix(X, per_sample=True), Mixture.untouched(X)]
    for mixture in mixtures:
        mixed = mix_target(target, mixture, kind)
        for world in mixed.worlds if isinstance(mixed, MixedTensor) else (mixed,):
            assert world.untyped_storage().data_ptr() != target.untyped_storage().data_ptr()
        mixed[0] = 0
        assert torch.equal(target, before)


def test_two_targets_share_no_memory_either() -> None:
    first, second = (mix_target(CLASSES, pairs(0.3, X)) for _ in range(2))
    first[0] = 3
    assert torch.equal(worlds(second)[0], CLASSES)
    assert torch.equal(worlds(second)[1], CLASSES[NEXT])


def test_a_partner_of_weight_0_has_the_own_label() -> None:
    own, partners = worlds(mix_target(CLASSES, pairs([0.5, 1.0, 0.5, 1.0, 0.0], X)))
    assert own.tolist() == [0, 3, 1, 1, 2]
    assert partners.tolist() == [3, 3, 1, 1, 0]


def test_a_batch_that_is_not_mixed_has_its_own_loss_even_where_others_are_infinite() -> None:
    logits = torch.full((N, K), -torch.inf, dtype=torch.float64)
    logits[torch.arange(N), CLASSES] = torch.arange(N, dtype=torch.float64)
    for mixture in (Mixture.untouched(X), pairs(1.0, X), pairs([1.0] * N, X)):
        assert settle(F.cross_entropy(logits, mix_target(CLASSES, mixture))) == 0.0


def three_sources(*, per_sample: bool) -> tuple[Mixture, Tensor]:
    partners = torch.tensor([[1, 2], [2, 3], [3, 4], [4, 0], [0, 1]])
    weights = torch.rand(N if per_sample else 1, 3, dtype=torch.float64, generator=Generator().manual_seed(5))
    weights = (weights / weights.sum(1, keepdim=True)).expand(N, 3)
    return Mixture(X, partners, weights, per_sample=per_sample), weights


@pytest.mark.parametrize("per_sample", [False, True])
def test_three_sources_have_three_worlds(per_sample: bool) -> None:
    mixture, weights = three_sources(per_sample=per_sample)
    logits = torch.randn(N, K, dtype=torch.float64, requires_grad=True)
    mixed = mix_target(CLASSES, mixture)
    assert [world.tolist() for world in worlds(mixed)] == [
        CLASSES.tolist(),
        CLASSES[[1, 2, 3, 4, 0]].tolist(),
        CLASSES[[2, 3, 4, 0, 1]].tolist(),
    ]
    sources = [CLASSES, CLASSES[mixture.partners[:, 0]], CLASSES[mixture.partners[:, 1]]]
    soft = sum(weights[:, j, None] * F.one_hot(labels, K) for j, labels in enumerate(sources))
    wanted = -(soft * logits.log_softmax(1)).sum(1).mean()
    loss = settle(F.cross_entropy(logits, mixed))
    torch.testing.assert_close(loss, wanted, rtol=1e-10, atol=0)
    gradients = [torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (loss, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("per_sample", [False, True])
def test_values_of_three_sources_are_blended(per_sample: bool) -> None:
    mixture, weights = three_sources(per_sample=per_sample)
    target = torch.rand(N, 2, dtype=torch.float64)
    sources = torch.stack([target, target[mixture.partners[:, 0]], target[mixture.partners[:, 1]]], 1)
    wanted = (weights[..., None] * sources).sum(1)
    torch.testing.assert_close(mix_target(target, mixture), wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_learned_label_is_a_world_of_its_own(per_sample: bool) -> None:
    rows = N if per_sample else 1
    weights = 0.4 * torch.rand(rows, 2, dtype=torch.float64, generator=Generator().manual_seed(5))
    weights = weights.expand(N, 2)
    learned = torch.softmax(torch.randn(N, K, dtype=torch.float64), 1)
    mixture = Mixture(X, torch.tensor(NEXT)[:, None], weights, soft=learned, per_sample=per_sample)
    logits = torch.randn(N, K, dtype=torch.float64, requires_grad=True)
    mixed = mix_target(CLASSES, mixture)
    assert len(worlds(mixed)) == 3
    soft = weights[:, :1] * F.one_hot(CLASSES, K) + weights[:, 1:] * F.one_hot(CLASSES[NEXT], K)
    soft = soft + (1 - weights.sum(1, keepdim=True)) * learned
    torch.testing.assert_close(soft.sum(1), torch.ones(N, dtype=torch.float64))
    wanted = -(soft * logits.log_softmax(1)).sum(1).mean()
    loss = settle(F.cross_entropy(logits, mixed))
    torch.testing.assert_close(loss, wanted, rtol=1e-10, atol=0)
    gradients = [torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (loss, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)
