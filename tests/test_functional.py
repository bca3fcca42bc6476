"""The mixture's loss in plain loops and in Fabric: the two-term formula, exactly, and plain tensors."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from torch import Generator, Tensor, nn

from lightning_msda import MixedLossError, MixedTensor, Mixture
from lightning_msda.functional import bcmix, cutmix, fmix, mixed_loss, mixup, resizemix, saliencymix
from tests.losses import CASES
from tests.losses import N as ROWS
from tests.tools import pairs
from tests.tools import released as released

N, K = 6, 4
Loss = Callable[[Any, Any], Tensor]

WEIGHT = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
LAMS = [0.25, 0.9, 0.5, 1.0, 0.7, 0.0]
NEXT = [1, 2, 3, 4, 5, 0]
CLASSES = torch.tensor([0, 3, 1, 1, 2, 0])
MULTI_HOT = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 0, 1], [1, 1, 0, 0]])


def logits() -> Tensor:
    values = torch.randn(N, K, dtype=torch.float64, generator=Generator().manual_seed(1))
    return values.requires_grad_()


def assert_same(loss: Tensor, wanted: Tensor, free: Tensor) -> None:
    """Compare two losses and their gradients."""
    torch.testing.assert_close(loss, wanted, rtol=1e-10, atol=0)
    gradients = [torch.autograd.grad(value, free, retain_graph=True)[0] for value in (loss, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-15)


def living() -> list[MixedTensor]:
    return [thing for thing in gc.get_objects() if type(thing) is MixedTensor]


@pytest.fixture
def left() -> Callable[[], int]:
    """Count the mixed tensors that are left since the test began; those of other tests may live longer."""
    before = living()
    return lambda: len(living()) - len(before)


@pytest.mark.parametrize("name", CASES)
def test_with_one_lam_the_loss_is_the_two_term_formula(name: str) -> None:
    features = torch.randn(ROWS, 8, dtype=torch.float64, requires_grad=True)
    y = torch.randint(0, 5, (ROWS,))
    loss_fn = CASES[name].loss
    wanted = 0.3 * loss_fn(features, y.clone()) + 0.7 * loss_fn(features, y.roll(-1))
    mixture = pairs(0.3, torch.rand(ROWS, 2))
    loss = mixed_loss(loss_fn, features, y, mixture)
    torch.testing.assert_close(loss, wanted, rtol=1e-10, atol=0)
    gradients = [torch.autograd.grad(value, features, retain_graph=True)[0] for value in (loss, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-12)


# The loss as it is written, and what a sample adds to the mean.
BY_SAMPLE: dict[str, tuple[Loss, Callable[[Tensor, Tensor], Tensor]]] = {
    "cross entropy": (F.cross_entropy, lambda z, y: -z.log_softmax(0)[y]),
    "label smoothing": (
        lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1),
        lambda z, y: -0.9 * z.log_softmax(0)[y] - 0.1 * z.log_softmax(0).mean(),
    ),
    "focal": (
        lambda z, y: (
            (1 - z.softmax(1).gather(1, y[:, None])) ** 2 * -z.log_softmax(1).gather(1, y[:, None])
        ).mean(),
        lambda z, y: -((1 - z.softmax(0)[y]) ** 2) * z.log_softmax(0)[y],
    ),
    "margin": (
        F.multi_margin_loss,
        lambda z, y: ((1 - z[y] + z).clamp(min=0).sum() - 1) / K,
    ),
    "squares": (
        lambda z, y: F.mse_loss(z, F.one_hot(y, K).double()),
        lambda z, y: (z - torch.eye(K, dtype=torch.float64)[y]).square().mean(),
    ),
}


@pytest.mark.parametrize("name", BY_SAMPLE)
def test_with_lam_by_sample_every_sample_has_the_two_term_formula(name: str) -> None:
    loss_fn, one = BY_SAMPLE[name]
    z = logits()
    terms = [LAMS[i] * one(z[i], CLASSES[i]) + (1 - LAMS[i]) * one(z[i], CLASSES[NEXT[i]]) for i in range(N)]
    loss = mixed_loss(loss_fn, z, CLASSES, pairs(LAMS, torch.rand(N, 2)))
    assert_same(loss, torch.stack(terms).mean(), z)


def test_with_lam_by_sample_class_weights_divide_by_what_the_mixture_contains() -> None:
    z = logits()
    lam = torch.tensor(LAMS, dtype=torch.float64)
    own, partner = CLASSES, CLASSES[NEXT]
    parts = [share * WEIGHT[y] for share, y in ((lam, own), (1 - lam, partner))]
    terms = [
        part * F.cross_entropy(z, y, reduction="none") for part, y in zip(parts, (own, partner), strict=True)
    ]
    wanted = (terms[0] + terms[1]).sum() / (parts[0] + parts[1]).sum()
    loss = mixed_loss(nn.CrossEntropyLoss(WEIGHT), z, CLASSES, pairs(LAMS, torch.rand(N, 2)))
    assert_same(loss, wanted, z)


@pytest.mark.parametrize("lam", [0.3, LAMS], ids=["one lam", "by sample"])
def test_multi_hot_labels_give_the_binary_cross_entropy_of_the_mixed_labels(lam: float | list[float]) -> None:
    z = logits()
    shares = torch.tensor([lam] * N if isinstance(lam, float) else lam, dtype=torch.float64)[:, None]
    soft = shares * MULTI_HOT + (1 - shares) * MULTI_HOT[NEXT]
    wanted = F.binary_cross_entropy_with_logits(z, soft)
    mixture = pairs(lam, torch.rand(N, 2))
    for labels in (MULTI_HOT, MULTI_HOT.bool(), MULTI_HOT.double()):
        loss = mixed_loss(lambda z, y: F.binary_cross_entropy_with_logits(z, y.double()), z, labels, mixture)
        assert_same(loss, wanted, z)


@pytest.mark.parametrize("lam", [0.3, LAMS], ids=["one lam", "by sample"])
def test_values_are_mixed_themselves(lam: float | list[float]) -> None:
    z = logits()
    values = torch.rand(N, K, dtype=torch.float64)
    shares = torch.tensor([lam] * N if isinstance(lam, float) else lam, dtype=torch.float64)[:, None]
    wanted = (z - shares * values - (1 - shares) * values[NEXT]).square().mean()
    assert_same(mixed_loss(F.mse_loss, z, values, pairs(lam, torch.rand(N, 2))), wanted, z)


def test_what_a_target_is_can_be_said() -> None:
    z = logits()
    mixture = pairs(0.25, torch.rand(N, 2))
    wanted = (z[:, 0] - 0.25 * CLASSES - 0.75 * CLASSES[NEXT]).abs().mean()
    assert_same(mixed_loss(F.l1_loss, z[:, 0], CLASSES, mixture, target="value"), wanted, z)
    soft = torch.rand(N, K, dtype=torch.float64)
    wanted = 0.25 * F.mse_loss(z, soft) + 0.75 * F.mse_loss(z, soft[NEXT])
    assert_same(mixed_loss(F.mse_loss, z, soft, mixture, target="class"), wanted, z)


@pytest.mark.parametrize("method", [mixup, cutmix, fmix, resizemix, saliencymix, bcmix])
@pytest.mark.parametrize("per_sample", [False, True])
def test_the_loss_of_every_method_is_cross_entropy_on_mixed_labels(
    method: Callable[..., Mixture], per_sample: bool
) -> None:
    z = logits()
    mixture = method(torch.rand(N, 3, 8, 8, dtype=torch.float64), per_sample=per_sample)
    lam, hot = mixture.lam[:, None], F.one_hot(CLASSES, K)
    soft = lam * hot + (1 - lam) * hot[mixture.partner]
    wanted = -(soft * z.log_softmax(1)).sum(1).mean()
    assert_same(mixed_loss(F.cross_entropy, z, CLASSES, mixture), wanted, z)


def nested_loss(z: Tensor, y: Any) -> Tensor:
    shape, size = (y["shape"], y["size"]) if isinstance(y, dict) else y
    loss: Tensor = F.cross_entropy(z, shape) + (z[:, 0] - size).square().mean()
    return loss


SIZE = torch.rand(N, dtype=torch.float64)


@pytest.mark.parametrize("y", [{"shape": CLASSES, "size": SIZE}, [CLASSES, SIZE], (CLASSES, SIZE)], ids=type)
def test_targets_may_be_nested(y: Any) -> None:
    z = logits()
    loss = mixed_loss(nested_loss, z, y, pairs(0.3, torch.rand(N, 2)))
    wanted = 0.3 * F.cross_entropy(z, CLASSES) + 0.7 * F.cross_entropy(z, CLASSES[NEXT])
    wanted = wanted + (z[:, 0] - 0.3 * SIZE - 0.7 * SIZE[NEXT]).square().mean()
    assert_same(loss, wanted, z)
    members = list(y.values()) if isinstance(y, dict) else y
    assert members[0] is CLASSES
    assert members[1] is SIZE


def test_predictions_may_be_nested_too() -> None:
    z = logits()
    mixture = pairs(0.3, torch.rand(N, 2))
    loss = mixed_loss(
        lambda p, y: F.cross_entropy(p["main"], y) + 0.4 * F.cross_entropy(p["aux"], y),
        {"main": z, "aux": 2 * z},
        CLASSES,
        mixture,
    )
    wanted = torch.stack(
        [
            share * (F.cross_entropy(z, y) + 0.4 * F.cross_entropy(2 * z, y))
            for share, y in ((0.3, CLASSES), (0.7, CLASSES[NEXT]))
        ]
    ).sum()
    assert_same(loss, wanted, z)


def test_no_mixed_tensor_is_left_anywhere(left: Callable[[], int]) -> None:
    kept: list[Tensor] = []
    hot = torch.zeros(N, K, dtype=torch.float64)

    def loss_fn(z: Tensor, y: Tensor) -> Tensor:
        kept.extend([y, y[:2], F.one_hot(y, K)])
        hot.scatter_(1, y[:, None], 1)
        kept.append(F.cross_entropy(z, y))
        return -(hot * z.log_softmax(1)).sum(1).mean()

    loss = mixed_loss(loss_fn, logits(), CLASSES, pairs(0.3, torch.rand(N, 2)))
    assert [type(tensor) for tensor in [loss, hot, *kept]] == [Tensor] * 6
    assert kept[0].tolist() == CLASSES.tolist()
    assert left() == 0


def test_no_mixed_tensor_is_left_by_a_loss_that_raises(left: Callable[[], int]) -> None:
    kept: list[Tensor] = []

    def loss_fn(z: Tensor, y: Tensor) -> Tensor:
        kept.append(y)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        mixed_loss(loss_fn, logits(), CLASSES, pairs(0.3, torch.rand(N, 2)))
    assert type(kept[0]) is Tensor
    assert left() == 0


def test_the_labels_are_not_written_to() -> None:
    y = CLASSES.clone()

    def loss_fn(z: Tensor, y: Tensor) -> Tensor:
        y[y == 3] = -100
        return F.cross_entropy(z, y)

    z = logits()
    wanted = 0.3 * F.cross_entropy(z, y, ignore_index=3) + 0.7 * F.cross_entropy(z, y[NEXT], ignore_index=3)
    assert_same(mixed_loss(loss_fn, z, y, pairs(0.3, torch.rand(N, 2))), wanted, z)
    assert torch.equal(y, CLASSES)


def through_numpy(z: Tensor, y: Tensor) -> Tensor:
    return -z.log_softmax(1)[torch.arange(N), torch.from_numpy(y.numpy())].mean()


def through_a_list(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, torch.tensor(y.tolist()))


def partly_through_a_list(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, y) + F.cross_entropy(2 * z, torch.tensor(y.tolist()))


@pytest.mark.parametrize("loss_fn", [through_numpy, through_a_list, partly_through_a_list])
def test_a_loss_of_labels_that_left_torch_is_refused(loss_fn: Loss, left: Callable[[], int]) -> None:
    with pytest.raises(MixedLossError):
        mixed_loss(loss_fn, logits(), CLASSES, pairs(0.3, torch.rand(N, 2)))
    assert left() == 0


def test_a_loss_that_is_not_reduced_has_no_place_for_lam_by_sample() -> None:
    with pytest.raises(MixedLossError, match="mean or sum"):
        mixed_loss(
            lambda z, y: F.cross_entropy(z, y, reduction="none"),
            logits(),
            CLASSES,
            pairs(LAMS, torch.rand(N, 2)),
        )


@pytest.mark.parametrize("rows", [3, 9])
def test_labels_of_another_batch_size_are_refused_with_a_sentence(rows: int) -> None:
    y = torch.zeros(rows, dtype=torch.int64)
    with pytest.raises(ValueError, match=rf"6.*\({rows},\)|\({rows},\).*6"):
        mixed_loss(F.cross_entropy, logits(), y, pairs(0.3, torch.rand(N, 2)))


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = Generator().manual_seed(4)
    return [
        (
            torch.rand(N, 1, 8, 8, dtype=torch.float64, generator=generator),
            torch.randint(0, K, (N,), generator=generator),
        )
        for _ in range(4)
    ]


def network() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, K)).double()


METHODS: Sequence[Callable[..., Mixture]] = (mixup, cutmix, fmix, resizemix)


def trained_by_hand() -> list[Tensor]:
    """Train with both terms of the loss written out."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    for i, (x, y) in enumerate(batches()):
        mix = METHODS[i](x, generator=Generator().manual_seed(i))
        z = model(mix.inputs)
        lam = mix.lam[0]
        loss = lam * F.cross_entropy(z, y) + (1 - lam) * F.cross_entropy(z, y[mix.partner])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


def test_a_plain_loop_trains_as_one_with_both_terms_written_out(left: Callable[[], int]) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    for i, (x, y) in enumerate(batches()):
        mix = METHODS[i](x, generator=Generator().manual_seed(i))
        loss = mixed_loss(F.cross_entropy, model(mix.inputs), y, mix)
        assert type(loss) is Tensor
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    for parameter, wanted in zip(model.parameters(), trained_by_hand(), strict=True):
        assert type(parameter) is nn.Parameter
        torch.testing.assert_close(parameter.detach(), wanted, rtol=1e-10, atol=1e-14)
    assert left() == 0


def test_a_fabric_loop_trains_as_one_with_both_terms_written_out(left: Callable[[], int]) -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    inner = network()
    model, optimizer = fabric.setup(inner, torch.optim.SGD(inner.parameters(), lr=0.5, momentum=0.9))
    loader = fabric.setup_dataloaders(torch.utils.data.DataLoader(batches(), batch_size=None))  # type: ignore[arg-type]
    for i, (x, y) in enumerate(loader):
        mix = METHODS[i](x, generator=Generator().manual_seed(i))
        optimizer.zero_grad()
        fabric.backward(mixed_loss(F.cross_entropy, model(mix.inputs), y, mix))
        optimizer.step()
    for parameter, wanted in zip(inner.parameters(), trained_by_hand(), strict=True):
        torch.testing.assert_close(parameter.detach(), wanted, rtol=1e-10, atol=1e-14)
    assert left() == 0
