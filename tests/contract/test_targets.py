"""Targets of every kind, and what modules do with them before the loss, each trained through.

No training writes into the data set, whatever its module does with the labels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from lightning_msda import MSDA, CutMix, FMix, MixedLossError, Mixture, MixUp, ResizeMix
from tests.contract.oracle import Terms, blended, cells, classes, classes_by_sample, row, trains, values
from tests.contract.test_losses import (
    Classifier,
    Formula,
    Function,
    K,
    Loss,
    N,
    T,
    binary,
    hot,
    joint,
    multi_hot,
    soft,
    some_classes,
)

COUNTS = [5, 3, 2]  # classes of each head
IGNORED = 255


def table(names: list[str], *kinds: Callable[..., MSDA]) -> list[Any]:
    """Return names as parameters with one lam and with one for each sample, each marked as a row."""
    return [
        pytest.param(name, kind, per_sample, marks=row("Targets", name, per_sample=per_sample))
        for name in names
        for kind in kinds
        for per_sample in (False, True)
    ]


def numbers(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(N, *shape, dtype=torch.float64)


def tokens() -> Tensor:
    return torch.randint(0, K, (N, T)).where(torch.rand(N, T) < 0.7, -100)


def heads() -> list[Tensor]:
    return [torch.randint(0, count, (N,)) for count in COUNTS]


def named_heads() -> dict[str, Tensor]:
    return dict(zip("abc", heads(), strict=True))


def of_dtype(dtype: torch.dtype, labels: Callable[[], Tensor] = some_classes) -> Callable[[], Tensor]:
    return lambda: labels().to(dtype)


def by_head(z: Tensor, labels: Any) -> Tensor:
    losses = [F.cross_entropy(part, y) for part, y in zip(torch.split(z, COUNTS, 1), labels, strict=True)]
    return torch.stack(losses).sum()


def by_column(z: Tensor, y: Tensor) -> Tensor:
    losses = F.cross_entropy(z[:, :5], y[:, 0]) + F.cross_entropy(z[:, 5:8], y[..., 1])
    return losses + F.cross_entropy(z[:, 8:], y[:, -1:].squeeze(1))


def by_name(z: Tensor, y: dict[str, Tensor]) -> Tensor:
    a, b, c = torch.split(z, COUNTS, 1)
    return F.cross_entropy(a, y["a"]) + 0.5 * F.cross_entropy(b, y["b"]) + F.cross_entropy(c, y["c"])


def by_group(z: Tensor, y: dict[str, Any]) -> Tensor:
    return by_head(z, y["heads"]) + F.cross_entropy(z[:, :K], y["main"]["label"])


def class_and_box(z: Tensor, y: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(z[:, :K], y["label"]) + F.l1_loss(z[:, K:], y["size"])


def classes_beside_values(formula: Formula) -> Formula:
    """Return the formula of labels of which those of floating point are mixed themselves."""

    def mixed(mix: Mixture, y: Any) -> Terms:
        mixes = blended(mix, y)
        return [
            (share, tree_map(lambda y, value: value if value.is_floating_point() else y, labels, mixes))
            for share, labels in formula(mix, y)
        ]

    return mixed


def quantities(mix: Mixture, y: Tensor) -> Terms:
    return values(mix, y.float())


def of_tokens(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z.view(-1, K), y.view(-1))


def of_tokens_by_class(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z.view(N, T, K).transpose(1, 2), y)


def of_next_tokens(z: Tensor, y: Tensor) -> Tensor:
    shifted = z.view(N, T, K)[..., :-1, :].contiguous()
    return F.cross_entropy(shifted.view(-1, K), y[..., 1:].contiguous().view(-1), ignore_index=-100)


def of_tokens_in_time(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z.view(N, T, K).transpose(0, 1).reshape(-1, K), y.t().reshape(-1))


def of_known_tokens(z: Tensor, y: Tensor) -> Tensor:
    losses = F.cross_entropy(z.view(-1, K), y.view(-1), reduction="none")
    known = (y != -100).double()
    return (losses.view(N, T) * known).sum() / known.sum()


def of_next(mix: Mixture, y: Tensor) -> Terms:
    """Return the joint formula of labels of which the first token counts for nothing."""
    counted = y.clone()
    counted[:, 0] = -100
    return joint()(mix, counted)


def maps() -> Tensor:
    return torch.randint(0, K, (N, 4, 4)).where(torch.rand(N, 4, 4) < 0.8, IGNORED)


def bce(z: Tensor, y: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(z, y.double())


def huber_by_hand(z: Tensor, y: Tensor) -> Tensor:
    """Compare numbers with numbers: that makes no classes."""
    error = (z.squeeze(1).detach() - y).abs()
    scale = torch.where(error < 0.5, 1.0, 0.5 / error)
    under = torch.where(z.squeeze(1).detach() < y, 1.5, 1.0)
    return (scale * under * (z.squeeze(1) - y).square()).mean()


KINDS: dict[str, Loss] = {
    "(N,)": Loss(F.cross_entropy),
    "(N, 1), squeezed": Loss(
        lambda z, y: F.cross_entropy(z, y.squeeze(1)), labels=lambda: some_classes()[:, None]
    ),
    "(N, 1), y[:, 0]": Loss(lambda z, y: F.cross_entropy(z, y[:, 0]), labels=lambda: some_classes()[:, None]),
    "(N, 1), view(-1)": Loss(
        lambda z, y: F.cross_entropy(z, y.view(-1)), labels=lambda: some_classes()[:, None]
    ),
    "(N, 1) of 0 and 1, cast to float": Loss(bce, labels=lambda: binary()[:, None], out=1),
    "(N,) of 0 and 1, unsqueezed and cast to float": Loss(
        lambda z, y: bce(z, y.unsqueeze(1)), labels=binary, out=1
    ),
    "(N, heads) of different class counts": Loss(by_column, labels=lambda: torch.stack(heads(), 1), out=10),
    "(N, heads), unbind(1)": Loss(
        lambda z, y: by_head(z, y.unbind(1)), labels=lambda: torch.stack(heads(), 1), out=10
    ),
    "(N, heads), transposed": Loss(
        lambda z, y: by_head(z, y.t()), labels=lambda: torch.stack(heads(), 1), out=10
    ),
    "a list of heads": Loss(by_head, labels=heads, out=10),
    "a tuple of heads": Loss(by_head, labels=lambda: tuple(heads()), out=10),
    "a dict of heads": Loss(by_name, labels=named_heads, out=10),
    "a nested dict of heads": Loss(
        by_group, labels=lambda: {"main": {"label": some_classes()}, "heads": heads()}, out=10
    ),
    "a dict of classes and of regression floats": Loss(
        class_and_box,
        classes_beside_values(classes_by_sample),
        lambda: {"label": some_classes(), "size": numbers(2)()},
        classes_beside_values(classes),
        out=K + 2,
    ),
    **{
        f"multi-hot {name}, cast to float": Loss(bce, labels=of_dtype(dtype, multi_hot))
        for name, dtype in {"integers": torch.int64, "bytes": torch.uint8, "booleans": torch.bool}.items()
    },
    "one-hot integers, cast to float": Loss(
        lambda z, y: F.cross_entropy(z, y.double()), labels=lambda: F.one_hot(some_classes(), K)
    ),
    "one-hot integers, argmax(1)": Loss(
        lambda z, y: F.cross_entropy(z, y.argmax(1)), labels=lambda: F.one_hot(some_classes(), K)
    ),
    "one-hot floats": Loss(F.cross_entropy, values, lambda: hot(some_classes()), values),
    "multi-hot floats": Loss(bce, values, lambda: multi_hot().double(), values),
    "soft floats": Loss(F.cross_entropy, values, soft, values),
    'one-hot floats, target="class" and argmax(1)': Loss(
        lambda z, y: F.cross_entropy(z, y.argmax(1)),
        labels=lambda: hot(some_classes()),
        arguments={"target": "class"},
    ),
    'class numbers stored as floats, target="class" and long()': Loss(
        lambda z, y: F.cross_entropy(z, y.long()),
        labels=of_dtype(torch.float64),
        arguments={"target": "class"},
    ),
    "regression floats (N,)": Loss(
        lambda z, y: F.mse_loss(z.squeeze(-1), y), values, numbers(), values, out=1
    ),
    "regression floats, compared with predictions": Loss(huber_by_hand, values, numbers(), values, out=1),
    "regression floats (N, 1)": Loss(F.l1_loss, values, numbers(1), values, out=1),
    "regression floats (N, D)": Loss(F.huber_loss, values, numbers(2), values, out=2),
    "regression floats of single precision": Loss(
        F.mse_loss, values, lambda: torch.randn(N, 2), values, out=2, rtol=1e-5
    ),
    'integer regression, target="value"': Loss(
        lambda z, y: F.mse_loss(z[:, 0], y.double()),
        quantities,
        lambda: torch.randint(0, 90, (N,)),
        quantities,
        arguments={"target": "value"},
        rtol=1e-5,  # integers become single precision, as in a division
    ),
    "token labels (N, T) with -100": Loss(of_tokens, joint(), tokens, out=T * K),
    "token labels, logits (N, C, T)": Loss(of_tokens_by_class, joint(), tokens, out=T * K),
    "token labels, shifted by one": Loss(of_next_tokens, of_next, tokens, out=T * K),
    "token labels, transposed": Loss(of_tokens_in_time, joint(), tokens, out=T * K),
    "token labels, masked by hand": Loss(of_known_tokens, joint(), tokens, out=T * K),
    **{
        f"{str(dtype).removeprefix('torch.')} labels, long()": Loss(
            lambda z, y: F.cross_entropy(z, y.long()), labels=of_dtype(dtype)
        )
        for dtype in (torch.uint8, torch.int16, torch.int32, torch.int64)
    },
    "uint8 labels": Loss(F.cross_entropy, labels=of_dtype(torch.uint8)),
    "boolean labels, long()": Loss(
        lambda z, y: F.cross_entropy(z, y.long()), labels=of_dtype(torch.bool, binary)
    ),
    "dense masks without a mask to follow": Loss(
        lambda z, y: F.cross_entropy(z.view(N, K, 4, 4), y, ignore_index=IGNORED),
        joint(ignored=IGNORED),
        maps,
        out=K * 16,
    ),
}


@pytest.mark.parametrize(("name", "kind", "per_sample"), table(list(KINDS), MixUp))
def test_kinds_of_targets(name: str, kind: Callable[..., MSDA], per_sample: bool) -> None:
    KINDS[name].train(kind, per_sample=per_sample)


# --- What modules do with labels before the loss ---

ORDER = torch.tensor([3, 1, 5, 0, 2, 4])
NEW = torch.tensor([4, 2, 0, 1, 3])


def entropy_of(rewrite: Callable[[Tensor], Tensor]) -> Function:
    return lambda z, y: F.cross_entropy(z, rewrite(y))


def edited(y: Tensor) -> Tensor:
    y[y == 4] = -100
    return y


def lowered(y: Tensor) -> Tensor:
    y[y > 2] -= 1
    return y


def lowered_by_index(y: Tensor) -> Tensor:
    high = (y > 2).nonzero().squeeze(1)
    y[high] = y[high] - 1
    return y


def shifted(y: Tensor) -> Tensor:
    y += 1
    y %= K
    return y


def overwritten(y: Tensor) -> Tensor:
    y[:2] = 0
    return y


def overwritten_one(y: Tensor) -> Tensor:
    y[1] = 0
    return y


def in_parts(z: Tensor, y: Tensor) -> Tensor:
    parts = zip(torch.split(z, 2), torch.split(y, 2), strict=True)
    return torch.stack([F.cross_entropy(scores, labels) for scores, labels in parts]).mean()


KEEPING: dict[str, Callable[[Tensor], Tensor]] = {
    "y.view(-1)": lambda y: y.view(-1),
    "y.reshape(2, -1).flatten()": lambda y: y.reshape(2, -1).flatten(),
    "y.unsqueeze(1).squeeze(1)": lambda y: y.unsqueeze(1).squeeze(1),
    "y[:, None].expand(-1, 2)[:, 0]": lambda y: y[:, None].expand(-1, 2)[:, 0],
    "y.long()": lambda y: y.long(),
    "y.float().long()": lambda y: y.float().long(),
    "y.type(torch.LongTensor)": lambda y: y.type(torch.LongTensor),  # type: ignore[call-overload]
    "y.to(torch.uint8)": lambda y: y.to(torch.uint8),
    "y.to(device)": lambda y: y.to(torch.device("cpu"), non_blocking=True),
    "y.cpu()": lambda y: y.cpu(),
    "y.clone().detach()": lambda y: y.clone().detach(),
    "y.contiguous()": lambda y: y.contiguous(),
    "torch.cat of halves": lambda y: torch.cat([y[:3], y[3:]]),
    "torch.cat of chunks": lambda y: torch.cat(torch.chunk(y, 3)),
    "torch.stack, then a column": lambda y: torch.stack([y, y], dim=1)[:, 0],
    "torch.stack of rows": lambda y: torch.stack([y[i] for i in range(N)]),
    "table[y]": lambda y: NEW[y],
    "torch.where(y > 2, 0, y)": lambda y: torch.where(y > 2, 0, y),
    "y.clamp(max=2)": lambda y: y.clamp(max=2),
    "4 - y": lambda y: 4 - y,
    "y % 3": lambda y: y % 3,
    "torch.bucketize": lambda y: torch.bucketize(y, torch.tensor([1, 3])),
    "torch.isin": lambda y: torch.isin(y, torch.tensor([1, 3])).long(),
    "y += 1 and y %= C in place": shifted,
    "y.clamp_(max=2) in place": lambda y: y.clamp_(max=2),
    "y[:2] = 0 in place": overwritten,
    "y[1] = 0 in place": overwritten_one,
    "y[y > 2] -= 1 in place": lowered,
    "y[idx] = y[idx] - 1 in place": lowered_by_index,
}
MOVING: dict[str, Function] = {
    "y[:4]": lambda z, y: F.cross_entropy(z[:4], y[:4]),
    "y[::2]": lambda z, y: F.cross_entropy(z[::2], y[::2]),
    "y[order]": lambda z, y: F.cross_entropy(z[ORDER], y[ORDER]),
    "y[mask]": lambda z, y: F.cross_entropy(z[ORDER > 2], y[ORDER > 2]),
    "y.index_select(0, order)": lambda z, y: F.cross_entropy(z[ORDER], y.index_select(0, ORDER)),
    "y.narrow(0, 1, 3)": lambda z, y: F.cross_entropy(z[1:4], y.narrow(0, 1, 3)),
    "torch.split(y, 2)": in_parts,
    "torch.cat([y, y])": lambda z, y: F.cross_entropy(torch.cat([z, 2 * z]), torch.cat([y, y])),
    "torch.cat([y, pseudo_labels])": lambda z, y: F.cross_entropy(
        torch.cat([z, 2 * z]), torch.cat([y, NEW[z.detach().argmax(1)]])
    ),
    "y.repeat(2)": lambda z, y: F.cross_entropy(torch.cat([z, 2 * z]), y.repeat(2)),
    "y.repeat_interleave(2)": lambda z, y: F.cross_entropy(z.repeat_interleave(2, 0), y.repeat_interleave(2)),
    "y.flip(0)": lambda z, y: F.cross_entropy(z.flip(0), y.flip(0)),
    "y.roll(1)": lambda z, y: F.cross_entropy(z.roll(1, 0), y.roll(1)),
    "one_hot(y)[..., 1:]": lambda z, y: bce(z[:, 1:], F.one_hot(y, K)[..., 1:]),
    "one_hot(y).permute(1, 0)": lambda z, y: bce(z.permute(1, 0), F.one_hot(y, K).permute(1, 0)),
}
REWRITTEN: dict[str, Loss] = {
    **{name: Loss(entropy_of(rewrite)) for name, rewrite in KEEPING.items()},
    **{name: Loss(function) for name, function in MOVING.items()},
    "y[y == 4] = -100 in place": Loss(entropy_of(edited), joint(ignored=4)),
    "y.masked_fill_(y == 4, -100) in place": Loss(
        entropy_of(lambda y: y.masked_fill_(y == 4, -100)), joint(ignored=4)
    ),
    "y.masked_fill(y == 4, -100)": Loss(entropy_of(lambda y: y.masked_fill(y == 4, -100)), joint(ignored=4)),
}


@pytest.mark.parametrize(("name", "kind", "per_sample"), table(list(REWRITTEN), MixUp))
def test_labels_rewritten_before_the_loss(name: str, kind: Callable[..., MSDA], per_sample: bool) -> None:
    REWRITTEN[name].train(kind, per_sample=per_sample)


# --- Labels that follow the pixels ---


def as_pixels(mix: Mixture, y: Tensor) -> Terms:
    """Return the one term of labels that are drawn in the first channel: they are what the pixels show."""
    return [(1.0, mix.inputs[:, 0].to(y.dtype))]


def as_pixels_with_channel(mix: Mixture, y: Tensor) -> Terms:
    return [(1.0, mix.inputs[:, :1].to(y.dtype))]


def as_all_pixels(mix: Mixture, y: Tensor) -> Terms:
    return [(1.0, mix.inputs)]


def pixels_beside_classes(formula: Formula) -> Formula:
    def mixed(mix: Mixture, y: Any) -> Terms:
        mask = mix.inputs[:, 0].to(y["mask"].dtype)
        return [(share, {"mask": mask, "label": label}) for share, label in formula(mix, y["label"])]

    return mixed


def segmentation(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z.view(N, K, 4, 4), y.long(), ignore_index=IGNORED)


def segmentation_in_place(z: Tensor, y: Tensor) -> Tensor:
    y[y == IGNORED] = -100
    return F.cross_entropy(z.view(N, K, 4, 4), y)


def dice_of_known(z: Tensor, y: Tensor) -> Tensor:
    known = (y != IGNORED).double()
    p, target = z.view(N, K, 4, 4).softmax(1), hot(torch.where(y == IGNORED, 0, y)).movedim(-1, 1)
    p, target = p * known[:, None], target * known[:, None]
    return 1 - (2 * (p * target).sum((0, 2, 3)) / (p + target).sum((0, 2, 3))).mean()


def drawn(y: Tensor) -> Tensor:
    """Return images whose first channel shows the labels."""
    images = torch.rand(N, 3, 4, 4, dtype=torch.float64)
    images[:, 0] = y
    return images


def drawn_maps(dtype: torch.dtype = torch.int64) -> tuple[Tensor, Any]:
    y = maps()
    return drawn(y), y.to(dtype)


def drawn_with_channel() -> tuple[Tensor, Any]:
    x, y = drawn_maps()
    return x, y[:, None]


def drawn_and_labelled() -> tuple[Tensor, Any]:
    x, y = drawn_maps()
    return x, {"mask": y, "label": some_classes()}


def soft_maps() -> tuple[Tensor, Any]:
    x = torch.rand(N, 3, 4, 4, dtype=torch.float64).softmax(1)
    return x, x.clone()


def coarse_maps() -> tuple[Tensor, Any]:
    return torch.rand(N, 3, 4, 4, dtype=torch.float64), torch.randint(0, K, (N, 2, 2))


def depth_maps() -> tuple[Tensor, Any]:
    y = torch.rand(N, 4, 4, dtype=torch.float64)
    return drawn(y), y


class Dense(NamedTuple):
    """A loss of labels that lie like pixels, the batches that it takes, and its formula."""

    function: Function
    batch: Callable[[], tuple[Tensor, Any]] = drawn_maps
    formula: Formula = as_pixels
    by_sample: Formula | None = None
    out: int = K * 16


DENSE: dict[str, Dense] = {
    "dense masks (N, H, W), ignore_index kept": Dense(segmentation),
    "dense masks (N, 1, H, W), squeezed": Dense(
        lambda z, y: segmentation(z, y.squeeze(1)), drawn_with_channel, as_pixels_with_channel
    ),
    **{
        f"dense masks of {str(dtype).removeprefix('torch.')}": Dense(segmentation, partial(drawn_maps, dtype))
        for dtype in (torch.uint8, torch.int32)
    },
    "dense masks, y[y == 255] = -100 in place": Dense(segmentation_in_place),
    "dense masks, Dice": Dense(dice_of_known),
    "dense masks beside a label in a dict": Dense(
        lambda z, y: segmentation(z, y["mask"]) + F.cross_entropy(z[:, :K], y["label"]),
        drawn_and_labelled,
        pixels_beside_classes(classes),
        pixels_beside_classes(classes_by_sample),
    ),
    "dense masks of another size than the pixels": Dense(
        lambda z, y: F.cross_entropy(z.view(N, K, 2, 2), y),
        coarse_maps,
        classes,
        classes_by_sample,
        out=K * 4,
    ),
    "dense soft labels (N, C, H, W)": Dense(
        lambda z, y: F.cross_entropy(z.view(N, 3, 4, 4), y), soft_maps, as_all_pixels, out=3 * 16
    ),
    "dense regression floats (N, H, W)": Dense(
        lambda z, y: F.l1_loss(z.view(N, 4, 4), y), depth_maps, out=16
    ),
}


@pytest.mark.parametrize(("name", "kind", "per_sample"), table(list(DENSE), CutMix, FMix, ResizeMix))
def test_labels_follow_the_pixels(name: str, kind: Callable[..., MSDA], per_sample: bool) -> None:
    function, batch, formula, by_sample, out = DENSE[name]
    data = [batch() for _ in range(4)]
    before = copy.deepcopy(data)
    terms = (per_sample and by_sample) or formula
    trains(lambda: Classifier(function, out), data, kind(per_sample=per_sample), terms=terms)
    assert all(map(torch.equal, tree_leaves(data), tree_leaves(before)))


class Tagger(Classifier):
    """Embeds tokens and labels each of them."""

    def __init__(self) -> None:
        super().__init__(of_tokens, out=K, features=4)
        self.embedding = nn.Embedding(9, 4, dtype=torch.float64)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        tokens, y = batch
        return self.loss(self.linear(self.embedding(tokens)), y)


def tagged(ids: Tensor) -> Tensor:
    return torch.where(ids < K, ids, -100)


@pytest.mark.parametrize(
    ("name", "kind", "per_sample"), table(["token labels that follow the tokens"], CutMix, FMix)
)
def test_token_labels_follow_the_tokens(name: str, kind: Callable[..., MSDA], per_sample: bool) -> None:
    ids = [torch.randint(0, 9, (N, 8)) for _ in range(4)]
    method = kind(dims=[1], per_sample=per_sample)
    trains(Tagger, [(x, tagged(x)) for x in ids], method, terms=lambda mix, y: [(1.0, tagged(mix.inputs))])


# --- Values that are classes after all ---


def unknown_or_known() -> Tensor:
    return torch.randint(-1, 2, (N, K)).double()


def of_known_labels(z: Tensor, y: Tensor) -> Tensor:
    return (F.binary_cross_entropy_with_logits(z, y, reduction="none") * (y != -1)).sum() / y.numel()


def as_mask(mask: Callable[[Tensor], Tensor]) -> Function:
    return lambda z, y: F.softplus(-z)[mask(y)].sum() + F.softplus(z)[~mask(y)].sum()


DISGUISED: dict[str, Loss] = {
    "class numbers stored as floats": Loss(
        lambda z, y: F.cross_entropy(z, y.long()), labels=of_dtype(torch.float64)
    ),
    "class numbers stored as floats, to(dtype)": Loss(
        lambda z, y: F.cross_entropy(z, y.to(torch.int64)), labels=of_dtype(torch.float64)
    ),
    "one-hot floats, argmax(1)": Loss(
        lambda z, y: F.cross_entropy(z, y.argmax(1)), labels=lambda: hot(some_classes())
    ),
    "one-hot floats as a mask": Loss(
        lambda z, y: -z.log_softmax(1)[y == 1].mean(), labels=lambda: hot(some_classes())
    ),
    **{
        f"one-hot floats as a mask, {name}": Loss(as_mask(mask), labels=lambda: hot(some_classes()))
        for name, mask in {
            "y * 1.0 >= 1": lambda y: y * 1.0 >= 1,
            "torch.eq(y, torch.ones_like(y))": lambda y: torch.eq(y, torch.ones_like(y)),
            "y > torch.tensor(0.5)": lambda y: y > torch.tensor(0.5),
            "(y - 0.5).sign() > 0": lambda y: (y - 0.5).sign() > 0,
            "(1 - y) < 0.5": lambda y: (1 - y) < 0.5,
        }.items()
    },
    "labels of which -1 is unknown": Loss(of_known_labels, labels=unknown_or_known),
}


@pytest.mark.parametrize(("name", "per_sample"), cells("Targets", DISGUISED, refused='say target="class"'))
def test_values_that_become_classes_are_refused(name: str, per_sample: bool) -> None:
    with pytest.raises(MixedLossError, match="target='class'"):
        DISGUISED[name].train(MixUp, per_sample=per_sample)
