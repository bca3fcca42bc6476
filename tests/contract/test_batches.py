"""Inputs and batches of every form, each trained through.

What a step must see is computed from the data set anew, and every batch comes twice: neither a batch nor the
data set may be written to.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, IterableDataset
from torchvision import tv_tensors
from transformers import BatchEncoding

from lightning_msda import MSDA, CutMix, FMix, MixedLossError, Mixture, MixUp, RandomMix, ResizeMix
from tests.contract import oracle
from tests.contract.oracle import (
    Terms,
    Witness,
    blended,
    classes,
    classes_by_sample,
    masked,
    mixed,
    row,
    trains,
    unmixed,
)
from tests.training import loader, make_trainer

N, K = 6, 5
IMAGE = (3, 4, 4)
Method = Callable[..., MSDA]
Net = Callable[[Tensor], Tensor]
Step = Callable[[Net, Any], Tensor]
Batches = list[tuple[Any, Any]]

MASKS: list[Method] = [CutMix, FMix, ResizeMix]
METHODS: list[Method] = [MixUp, *MASKS]
CLASSES: dict[bool, Callable[[Mixture, Any], Terms]] = {False: classes, True: classes_by_sample}


works = partial(row, "Inputs and batches")
both = partial(oracle.both, "Inputs and batches")


class Model(LightningModule):
    """A linear layer that takes what it is given flat, under a step of the network and the batch."""

    def __init__(self, step: Step, features: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(features, K, dtype=torch.float64))
        self.step = step

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.step(self.net, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def classified(read: Callable[[Any], tuple[Tensor, Tensor]] = lambda batch: batch) -> Step:
    """Return a step that reads inputs and labels from the batch and computes the cross-entropy."""

    def step(net: Net, batch: Any) -> Tensor:
        x, y = read(batch)
        return F.cross_entropy(net(x.double()), y)

    return step


def images(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(N, *(shape or IMAGE), dtype=dtype)


def labels() -> Tensor:
    return torch.randint(0, K, (N,))


def batches(x: Callable[[], Any] = images, y: Callable[[], Any] = labels) -> Batches:
    return [(x(), y()) for _ in range(3)]


def samples(n: int) -> tuple[Tensor, Tensor]:
    return torch.rand(n, *IMAGE, dtype=torch.float64), torch.randint(0, K, (n,))


def in_batches(x: Tensor, y: Tensor) -> Batches:
    return list(zip(torch.split(x, N), torch.split(y, N), strict=True))


def holds(step: Step, data: Batches, method: MSDA, *, features: int = 48, **options: Any) -> None:
    """Hold a step against the formula, and the data against a copy of them."""
    before = copy.deepcopy(data)
    trains(lambda: Model(step, features), data, method, max_epochs=2, **{"inputs": mixed, **options})
    assert all(map(torch.equal, tree_leaves(data), tree_leaves(before)))


def holds_from(
    loader: Iterable[Any], step: Step, data: Batches, method: MSDA, features: int = 48, **formula: Any
) -> None:
    """Hold a step on the batches of a loader of one's own against the formula."""
    formula = {"collate": lambda x, y: [x, y], "terms": classes, "inputs": mixed, **formula}
    witness = Witness(method, lambda: Model(step, features), data, layer=None, rtol=1e-10, **formula)
    make_trainer(method, witness).fit(Model(step, features), loader)
    assert witness.seen == len(data) and witness.mixed > 0


class Named(NamedTuple):
    image: Tensor
    label: Tensor


@dataclass
class Record:
    image: Tensor
    label: Tensor
    source: str = "camera"


@dataclass
class Nested:
    data: Record
    weight: None = None


class Thing:
    def __init__(self, image: Tensor, label: Tensor) -> None:
        self.image = image
        self.label = label


class Moved(Thing):
    def to(self, device: torch.device, non_blocking: bool = False) -> Moved:
        return Moved(self.image.to(device), self.label.to(device))


class Slotted:
    __slots__ = ("image", "label")

    def __init__(self, image: Tensor, label: Tensor) -> None:
        self.image = image
        self.label = label


class Sealed:
    """Refuses assignment, as frozen classes of attrs and pydantic do."""

    def __init__(self, image: Tensor, label: Tensor) -> None:
        vars(self).update(image=image, label=label)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"cannot assign to {name!r}")


class AttributeDict(dict[str, Any]):
    """Shows its entries as attributes."""

    def __init__(self, *entries: Any, **named: Any) -> None:
        super().__init__(*entries, **named)
        self.__dict__ = self


class Form(NamedTuple):
    """What makes a batch, how the step reads it, and the keys that say where things are."""

    collate: Callable[[Tensor, Tensor], Any]
    read: Callable[[Any], tuple[Tensor, Tensor]]
    keys: dict[str, Any] = {}  # noqa: RUF012


FORMS: dict[str, Form] = {
    "a tuple": Form(lambda x, y: (x, y), lambda b: b),
    "a list": Form(lambda x, y: [x, y], lambda b: b),
    "a tuple, by index": Form(
        lambda x, y: (y, "name", x, None), lambda b: (b[2], b[0]), {"input_key": 2, "target_key": 0}
    ),
    "a pair of labels and inputs, by index": Form(
        lambda x, y: (y, x), lambda b: (b[1], b[0]), {"input_key": 1, "target_key": 0}
    ),
    "a named tuple": Form(Named, lambda b: (b.image, b[1])),
    "a dict": Form(lambda x, y: {"image": x, "label": y}, lambda b: (b["image"], b["label"])),
    "a nested dict": Form(
        lambda x, y: {"data": {"scan": x}, "meta": ("name", [y])},
        lambda b: (b["data"]["scan"], b["meta"][1][0]),
        {"input_key": "data.scan", "target_key": "meta.1.0"},
    ),
    "a dict with dots in its names": Form(
        lambda x, y: {"scan.png": x, "kind.cls": y},
        lambda b: (b["scan.png"], b["kind.cls"]),
        {"input_key": "scan.png", "target_key": "kind.cls"},
    ),
    "a dict with numbers for names": Form(
        lambda x, y: {"0": x, 1: y}, lambda b: (b["0"], b[1]), {"input_key": "0", "target_key": 1}
    ),
    "a dict that shows its entries as attributes": Form(
        lambda x, y: AttributeDict(image=x, label=y), lambda b: (b.image, b["label"])
    ),
    "a named tuple in a dict": Form(
        lambda x, y: {"train": Named(x, y)},
        lambda b: (b["train"].image, b["train"].label),
        {"input_key": "train.image", "target_key": "train.label"},
    ),
    "a pair of a dict and labels": Form(
        lambda x, y: ({"pixel_values": x, "size": 4}, y), lambda b: (b[0]["pixel_values"], b[1])
    ),
    "a dataclass": Form(Record, lambda b: (b.image, b.label)),
    "a nested dataclass": Form(
        lambda x, y: Nested(Record(x, y)),
        lambda b: (b.data.image, b.data.label),
        {"input_key": "data.image", "target_key": "data.label"},
    ),
    "a BatchEncoding": Form(
        lambda x, y: BatchEncoding({"pixel_values": x, "labels": y}),
        lambda b: (b.pixel_values, b["labels"]),
    ),
    "an object": Form(Thing, lambda b: (b.image, b.label)),
    "an object that moves itself": Form(Moved, lambda b: (b.image, b.label)),
    "an object with slots": Form(Slotted, lambda b: (b.image, b.label)),
    "an object that refuses assignment": Form(Sealed, lambda b: (b.image, b.label)),
}


@pytest.mark.parametrize("kind", [MixUp, CutMix])
@pytest.mark.parametrize("form", [pytest.param(FORMS[name], id=name, marks=works(name)) for name in FORMS])
def test_batches_of_any_form(form: Form, kind: Method) -> None:
    holds(classified(form.read), batches(), kind(**form.keys), collate=form.collate)


class Shared:
    """Keeps what it holds in a store that its copies share, and says nothing of it."""

    def __init__(self, image: Tensor, label: Tensor) -> None:
        vars(self)["store"] = {"image": image, "label": label}

    def __getattr__(self, name: str) -> Any:
        if name == "store" or name not in self.store:
            raise AttributeError(name)
        return self.store[name]

    def __setattr__(self, name: str, value: Any) -> None:
        self.store[name] = value


class Store(MutableMapping[str, Any]):
    """A mapping that keeps its entries in a dict that its copies share."""

    def __init__(self, entries: Mapping[str, Any]) -> None:
        self.entries = dict(entries)

    def __getitem__(self, key: str) -> Any:
        return self.entries[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.entries[key] = value

    def __delitem__(self, key: str) -> None:
        del self.entries[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


@pytest.mark.parametrize(
    "form",
    [
        Form(Shared, lambda b: (b.image, b.label)),
        Form(lambda x, y: Store({"image": x, "label": y}), lambda b: (b["image"], b["label"])),
    ],
    ids=["an object", "a mapping"],
)
def test_a_batch_whose_copies_share_what_they_hold_trains_right_or_gets_a_sentence(form: Form) -> None:
    method = CutMix(input_key="image", target_key="label")
    try:
        holds(classified(form.read), batches(), method, collate=form.collate)
    except ValueError as refusal:
        assert "cannot be copied with other values in it" in str(refusal)  # noqa: PT017


def concatenated(batch: Any) -> tuple[Tensor, Tensor]:
    """Read inputs of any sizes side by side."""
    x, y = batch
    return torch.cat([t.flatten(1) for t in x], 1), y


def scan() -> list[Tensor]:
    """Return an image, its depth and a map without channels."""
    return [images(), images(1, 4, 4), images(4, 4)]


def of_the_image(image: Tensor) -> list[Tensor]:
    """Return inputs that are functions of each pixel, and so mixed as the image is wherever pixels go."""
    return [image, 2 * image[:, :1] + 1, image.sum(1) / 3]


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("per_sample", both("several inputs, by the same lam or mask"))
def test_several_inputs_are_mixed_alike(kind: Method, per_sample: bool) -> None:
    method = kind(input_key=["0.0", "0.1", "0.2"], target_key=1, per_sample=per_sample)
    by_pixel = kind is ResizeMix  # whose pixels come from elsewhere
    data = batches(lambda: of_the_image(images()) if by_pixel else scan())
    holds(
        classified(concatenated),
        data,
        method,
        terms=CLASSES[per_sample],
        inputs=(lambda mix, x: of_the_image(mix.inputs)) if by_pixel else mixed,
        features=80,
    )


@works("several inputs of different sizes, by the same lam")
def test_several_inputs_of_different_sizes_are_interpolated_alike() -> None:
    data = batches(lambda: [images(), images(3, 2, 2), images(7)])
    holds(classified(concatenated), data, MixUp(input_key=["0.0", "0.1", "0.2"], target_key=1), features=67)


@works("two views and labels, (x1, x2, y)")
@pytest.mark.parametrize("kind", [MixUp, CutMix, FMix])
def test_two_views_share_one_mix(kind: Method) -> None:
    def step(net: Net, batch: Any) -> Tensor:
        x1, x2, y = batch
        return F.cross_entropy(net(x1), y) + F.cross_entropy(net(x2), y) + (net(x1) - net(x2)).square().mean()

    data = batches(lambda: [images(), images()])
    holds(step, data, kind(input_key=[0, 1], target_key=2), collate=lambda x, y: (*x, y))


@pytest.mark.parametrize("kind", [MixUp, CutMix])
def test_inputs_of_another_number_of_samples_get_a_sentence(kind: Method) -> None:
    data = batches(lambda: [images(), images().repeat(2, 1, 1, 1)])
    with pytest.raises(ValueError, match=r"6 samples.*12, 3, 4, 4"):
        holds(classified(concatenated), data, kind(input_key=["0.0", "0.1"], target_key=1))


def text() -> dict[str, Tensor]:
    """Return rows of tokens of different lengths, padded by 0, with their attention masks."""
    ids = torch.randint(1, 9, (N, 8)) * (torch.arange(8) < torch.randint(3, 9, (N, 1)))
    return attended(ids)


def attended(ids: Tensor) -> dict[str, Tensor]:
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def pooled(net: Net, batch: Any) -> Tensor:
    """Classify the mean of the tokens that count."""
    counts = batch["attention_mask"].double()
    embedded = F.one_hot(batch["input_ids"], 9).double() * counts[..., None]
    return F.cross_entropy(net(embedded.sum(1) / counts.sum(1, keepdim=True)), batch["labels"])


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("per_sample", both("tokens and their attention mask, by the same mask"))
@pytest.mark.parametrize("form", [dict, BatchEncoding])
def test_attention_masks_follow_their_tokens(kind: Method, per_sample: bool, form: type) -> None:
    holds(
        pooled,
        batches(text),
        kind(dims=[1], input_key=["input_ids", "attention_mask"], per_sample=per_sample),
        collate=lambda x, y: form({**x, "labels": y}),
        terms=CLASSES[per_sample],
        inputs=lambda mix, x: attended(mix.inputs) if kind is ResizeMix else mixed(mix, x),
        features=9,
    )


def embedded() -> dict[str, Tensor]:
    """Return rows of embedded tokens of different lengths, with two kinds of attention mask."""
    counts = torch.arange(8) < torch.randint(3, 9, (N, 1))
    return {"inputs": images(8, 4), "attention_mask": counts.long(), "attended": counts}


def pooled_embeddings(net: Net, batch: Any) -> Tensor:
    counts = (batch["attention_mask"] * batch["attended"]).double()
    pooled = (batch["inputs"] * counts[..., None]).sum(1) / counts.sum(1, keepdim=True)
    return F.cross_entropy(net(pooled), batch["labels"])


def united(mix: Mixture, x: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return interpolated inputs, and masks in which a token counts that counts in one of the sources."""
    masks = {name: torch.maximum(x[name], x[name][mix.partner]) for name in ("attention_mask", "attended")}
    return {"inputs": blended(mix, x["inputs"]), **masks}


@pytest.mark.parametrize("per_sample", both("embedded tokens under MixUp, attention masks by their union"))
def test_attention_masks_of_interpolated_tokens_are_united(per_sample: bool) -> None:
    holds(
        pooled_embeddings,
        batches(embedded),
        MixUp(input_key=["inputs", "attention_mask", "attended"], per_sample=per_sample),
        collate=lambda x, y: {**x, "labels": y},
        terms=CLASSES[per_sample],
        inputs=united,
        features=4,
    )


@works("integer inputs beside others under MixUp", refused="interpolation of integer inputs")
def test_integers_beside_others_are_not_interpolated() -> None:
    data = batches(lambda: [images(), torch.randint(0, 9, (N, 7))])
    method = MixUp(input_key=["0.0", "0.1"], target_key=1)
    with pytest.raises(ValueError, match=r"interpolated, which torch.int64 of shape \(6, 7\) cannot follow"):
        holds(classified(concatenated), data, method, features=55)


def remembered(net: Net, batch: Any) -> Tensor:
    """Read, beside inputs and labels, fields of each sample that mixing must leave alone."""
    assert batch["name"] == ["a"] * N and batch["none"] is None and batch["epoch"] == 3
    memory = torch.linspace(-1, 1, 20, dtype=torch.float64)[batch["index"]]
    losses = F.cross_entropy(net(batch["pixel_values"]), batch["labels"], reduction="none")
    return torch.mean(losses * (batch["weight"] + memory))


@pytest.mark.parametrize("kind", [MixUp, CutMix])
@pytest.mark.parametrize("per_sample", both("other fields, left alone"))
def test_other_fields_are_left_alone(kind: Method, per_sample: bool) -> None:
    holds(
        remembered,
        batches(lambda: {"image": images(), "index": torch.randperm(20)[:N], "weight": images(1)[:, 0] + 1}),
        kind(per_sample=per_sample),
        collate=lambda x, y: {
            "pixel_values": x["image"],
            "index": x["index"],
            "weight": x["weight"],
            "labels": y,
            "name": ["a"] * N,
            "none": None,
            "epoch": 3,
        },
        terms=CLASSES[per_sample],
        inputs=lambda mix, x: {**x, "image": mixed(mix, x["image"])},
    )


def weighted(net: Net, batch: Any) -> Tensor:
    losses = F.cross_entropy(net(batch["image"]), batch["label"], reduction="none")
    return torch.mean(losses * batch["weight"])


def with_mixed_weight(terms: Callable[[Mixture, Any], Terms]) -> Callable[[Mixture, Any], Terms]:
    """Return the formula in which the labels have their terms, and each the mixed weight."""

    def formula(mix: Mixture, y: Any) -> Terms:
        weight = blended(mix, y["weight"])
        return [(lam, {"label": label, "weight": weight}) for lam, label in terms(mix, y["label"])]

    return formula


def label_and_weight() -> dict[str, Tensor]:
    return {"label": labels(), "weight": torch.rand(N, dtype=torch.float64)}


@pytest.mark.parametrize("kind", [MixUp, CutMix])
@pytest.mark.parametrize("per_sample", both("weights of samples, mixed when target_key names them"))
def test_weights_of_samples_are_mixed_when_they_are_named(kind: Method, per_sample: bool) -> None:
    holds(
        weighted,
        batches(y=label_and_weight),
        kind(target_key=["label", "weight"], per_sample=per_sample),
        collate=lambda x, y: {"image": x, **y},
        terms=with_mixed_weight(CLASSES[per_sample]),
    )


@pytest.mark.parametrize("kind", [MixUp, CutMix])
@pytest.mark.parametrize(
    "per_sample", both('weights of samples, with their labels\' losses (target="class")')
)
def test_weights_of_samples_may_stay_with_their_labels(kind: Method, per_sample: bool) -> None:
    holds(
        weighted,
        batches(y=label_and_weight),
        kind(target_key=["label", "weight"], target="class", per_sample=per_sample),
        collate=lambda x, y: {"image": x, **y},
        terms=CLASSES[per_sample],
    )


@works("labels under two names, both in target_key")
@pytest.mark.parametrize("kind", [MixUp, CutMix])
def test_labels_may_be_named_twice(kind: Method) -> None:
    def step(net: Net, batch: Any) -> Tensor:
        scores = net(batch["image"])
        return F.cross_entropy(scores, batch["label"]) + F.multi_margin_loss(scores, batch["again"])

    holds(
        step,
        batches(),
        kind(target_key=["label", "again"]),
        collate=lambda x, y: {"image": x, "label": y, "again": y},
    )


def test_labels_read_under_a_name_that_was_not_given_are_refused() -> None:
    with pytest.raises(MixedLossError, match=r"not computed from the batch's mixed labels"):
        holds(
            classified(lambda b: (b["image"], b["again"])),
            batches(),
            MixUp(),
            collate=lambda x, y: {"image": x, "label": y, "again": y},
        )


def reconstructed(net: Net, x: Tensor) -> Tensor:
    return (net(x) - x.flatten(2).mean(2).repeat(1, 2)[:, :K]).square().mean()


ALONE: dict[str, tuple[Callable[[Tensor, Tensor], Any], Step]] = {
    "inputs alone, a tensor": (lambda x, y: x, reconstructed),
    "inputs alone, beside nothing": (lambda x, y: [x], lambda net, b: reconstructed(net, b[0])),
    "inputs alone, beside labels": (
        lambda x, y: {"image": x, "label": y},
        lambda net, b: F.cross_entropy(net(b["image"]), b["label"]),
    ),
}


@pytest.mark.parametrize("kind", [MixUp, CutMix])
@pytest.mark.parametrize("name", [pytest.param(name, marks=works(name)) for name in ALONE])
def test_inputs_are_mixed_alone(name: str, kind: Method) -> None:
    collate, step = ALONE[name]
    key = 0 if name.endswith("nothing") else None
    holds(step, batches(), kind(target_key=False, input_key=key), collate=collate, terms=unmixed)


@pytest.mark.parametrize("kind", [MixUp, CutMix, FMix])
@pytest.mark.parametrize("per_sample", both("inputs that the step edits in place"))
def test_the_step_may_edit_its_inputs_in_place(kind: Method, per_sample: bool) -> None:
    def step(net: Net, batch: Any) -> Tensor:
        x, y = batch
        x.sub_(0.5).mul_(2)
        x[:, 0].clamp_(min=0)
        return F.cross_entropy(net(x), y)

    data = in_batches(*samples(4 * N))
    before = copy.deepcopy(data)
    views = [[x[:], y[:]] for x, y in data]  # as a data set hands out parts of its memory
    holds_from(
        DataLoader(views, batch_size=None),  # type: ignore[arg-type]
        step,
        data,
        kind(per_sample=per_sample, seed=0),
        collate=lambda x, y: [x.clone(), y],  # for each term of the formula
        terms=CLASSES[per_sample],
    )
    assert all(map(torch.equal, tree_leaves(data), tree_leaves(before)))


def of_dtype(dtype: torch.dtype) -> Step:
    """Return a step that checks what it gets."""

    def step(net: Net, batch: Any) -> Tensor:
        x, y = batch
        assert x.dtype == dtype
        return F.cross_entropy(net(torch.view_as_real(x).double() if x.is_complex() else x.double()), y)

    return step


def rounded(mix: Mixture, x: Tensor) -> Tensor:
    """Return the mixed inputs as they were rounded, which must be near the formula."""
    wanted = mixed(mix, x.to(torch.complex128 if x.is_complex() else torch.float64))
    torch.testing.assert_close(mix.inputs.to(wanted.dtype), wanted, rtol=1e-2, atol=1e-2)
    return mix.inputs


@pytest.mark.parametrize("kind", [MixUp, CutMix, FMix])
@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(dtype, id=str(dtype), marks=works(f"{str(dtype).removeprefix('torch.')} inputs"))
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64)
    ],
)
def test_inputs_keep_their_precision(kind: Method, dtype: torch.dtype) -> None:
    data = batches(lambda: images(dtype=dtype))
    holds(of_dtype(dtype), data, kind(), inputs=rounded, features=96 if dtype.is_complex else 48)


def integers(dtype: torch.dtype) -> Tensor:
    return torch.randint(0, 2 if dtype == torch.bool else 256, (N, *IMAGE)).to(dtype)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize(
    ("dtype", "per_sample"),
    [
        pytest.param(
            dtype, p, marks=works(f"{str(dtype).removeprefix('torch.')} inputs under a mask", per_sample=p)
        )
        for dtype in (torch.uint8, torch.int64, torch.bool)
        for p in (False, True)
    ],
)
def test_masks_keep_integers(kind: Method, dtype: torch.dtype, per_sample: bool) -> None:
    holds(
        of_dtype(dtype),
        batches(lambda: integers(dtype)),
        kind(per_sample=per_sample),
        terms=CLASSES[per_sample],
        inputs=lambda mix, x: mix.inputs if kind is ResizeMix else masked(mix, x),
    )


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(make, marks=works(name, refused="interpolation of integer inputs"), id=name)
        for name, make in {
            "integer inputs under MixUp": MixUp,
            "integer inputs under FMix with a soft mask": partial(FMix, max_soft=0.3),
        }.items()
    ],
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool], ids=str)
def test_integers_are_not_interpolated(method: Method, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=f"interpolates.*{dtype}"):
        holds(of_dtype(dtype), batches(lambda: integers(dtype)), method())


FORMATS = {
    "channels_last images": (torch.channels_last, (3, 4, 4)),
    "channels_last_3d volumes": (torch.channels_last_3d, (2, 4, 4, 4)),
}


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize(
    ("name", "per_sample"),
    oracle.cells("Inputs and batches", FORMATS),
)
def test_the_memory_format_is_kept(kind: Method, name: str, per_sample: bool) -> None:
    memory, shape = FORMATS[name]

    def step(net: Net, batch: Any) -> Tensor:
        x, second, y = batch
        assert all(t.is_contiguous(memory_format=memory) and not t.is_contiguous() for t in (x, second))
        return F.cross_entropy(net(x + second.flip(1)), y)

    def inputs(mix: Mixture, x: list[Tensor]) -> list[Tensor]:
        seen: list[Tensor] = [mix.inputs, mix.inputs + 1] if kind is ResizeMix else mixed(mix, x)
        return [t.contiguous(memory_format=memory) for t in seen]

    def views() -> list[Tensor]:
        x = images(*shape).to(memory_format=memory)
        return [x, x + 1]

    holds(
        step,
        batches(views),
        kind(input_key=[0, 1], target_key=2, per_sample=per_sample),
        collate=lambda x, y: (*x, y),
        terms=CLASSES[per_sample],
        inputs=inputs,
        features=shape[0] * 16 * (4 if len(shape) == 4 else 1),
    )


STRIDES: dict[str, Callable[[], Tensor]] = {
    "expanded": lambda: images(1, 4, 4).expand(N, *IMAGE),
    "permuted": lambda: torch.rand(4, 4, 3, N, dtype=torch.float64).permute(3, 2, 0, 1),
    "sliced": lambda: images(3, 8, 8)[..., ::2, ::2],
}


@works("inputs of any strides")
@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("name", STRIDES)
def test_inputs_of_any_strides(kind: Method, name: str) -> None:
    holds(
        classified(),
        batches(STRIDES[name]),
        kind(),
        inputs=lambda mix, x: mix.inputs if kind is ResizeMix else mixed(mix, x),
    )


class Layout(NamedTuple):
    """The shape of a sample, and the dimensions of the batch that a mask runs over."""

    shape: tuple[int, ...]
    dims: list[int] | None = None


LAYOUTS = {
    "signals (N, C, L)": Layout((2, 8)),
    "images (N, C, H, W)": Layout((3, 4, 4)),
    "volumes (N, C, D, H, W)": Layout((2, 4, 4, 4)),
    "video (N, T, C, H, W), in space: dims=[3, 4]": Layout((3, 2, 4, 4), [3, 4]),
    "video (N, T, C, H, W), in time: dims=[1]": Layout((8, 2, 2, 2), [1]),
    "video (N, T, C, H, W), in both: dims=[1, 3, 4]": Layout((4, 2, 4, 4), [1, 3, 4]),
    "video (N, C, T, H, W), in space: dims=[-2, -1]": Layout((2, 3, 4, 4), [-2, -1]),
    "spectrograms (N, C, F, T), in time: dims=[3]": Layout((1, 4, 8), [3]),
    "tables (N, F): dims=[1]": Layout((8,), [1]),
}


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize(
    ("name", "per_sample"),
    oracle.cells("Inputs and batches", LAYOUTS),
)
def test_a_mask_runs_over_the_dimensions_that_are_named(kind: Method, name: str, per_sample: bool) -> None:
    shape, dims = LAYOUTS[name]
    over = {(d if d > 0 else 1 + len(shape) + d) for d in dims or range(2, 1 + len(shape))}

    def inputs(mix: Mixture, x: Tensor) -> Tensor:
        assert mix.mask is not None and set(mix.dims) == over
        return mix.inputs if kind is ResizeMix else masked(mix, x)

    holds(
        classified(),
        batches(lambda: images(*shape)),
        kind(dims=dims, per_sample=per_sample),
        terms=CLASSES[per_sample],
        inputs=inputs,
        features=int(torch.tensor(shape).prod()),
    )


@works("video (N, T, C, H, W) under MixUp")
def test_video_is_interpolated() -> None:
    holds(classified(), batches(lambda: images(3, 2, 4, 4)), MixUp(), features=96)


@pytest.mark.parametrize("kind", METHODS)
@works("images of torchvision's tv_tensors")
def test_images_of_torchvision(kind: Method) -> None:
    holds(
        classified(),
        batches(lambda: tv_tensors.Image(images())),
        kind(),
        inputs=lambda mix, x: mix.inputs if kind is ResizeMix else mixed(mix, x.as_subclass(Tensor)),
    )


class Stream(IterableDataset[Any]):
    """Samples one by one, of a length that nobody knows."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x = x
        self.y = y

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(zip(self.x, self.y, strict=True))


@pytest.mark.parametrize("kind", [MixUp, CutMix])
@works("an IterableDataset")
def test_a_stream(kind: Method) -> None:
    x, y = samples(4 * N)
    holds_from(DataLoader(Stream(x, y), batch_size=N), classified(), in_batches(x, y), kind(seed=0))


@pytest.mark.parametrize("kind", [*METHODS, partial(RandomMix, order="cycle")])
@works("a last batch of one sample, left as it is")
def test_a_last_batch_of_one(kind: Method) -> None:
    x, y = samples(3 * N + 1)
    method = kind(seed=0)
    with pytest.warns(UserWarning, match="one sample and nothing to be mixed with"):
        holds_from(
            loader(x, y, batch_size=N),
            classified(),
            in_batches(x, y),
            method,
            inputs=lambda mix, x: mix.inputs if mix.source is not None else mixed(mix, x),
        )
    assert method.last_mix is None


def summed(net: Net, batch: Any) -> Tensor:
    """Read every loader's inputs and labels, some of which may have ended."""
    losses = [F.cross_entropy(net(part[0]), part[1]) for part in batch.values() if part is not None]
    return torch.stack(losses).sum()


def combined(mode: Any) -> tuple[CombinedLoader, Batches]:
    """Return a loader of four batches of images beside two, and what is in its batches."""
    first, second = samples(4 * N), samples(2 * N)
    parts = {"a": in_batches(*first), "b": in_batches(*second)}
    data: Batches = []
    for i, (x, y) in enumerate(parts["a"]):
        x_b, y_b = parts["b"][i % 2] if i < 2 or mode == "max_size_cycle" else (None, None)
        data.append(({"a": x, "b": x_b}, {"a": y, "b": y_b}))
    loaders = {"a": loader(*first, batch_size=N), "b": loader(*second, batch_size=N)}
    return CombinedLoader(loaders, mode), data


def pairs(x: dict[str, Any], y: dict[str, Any]) -> dict[str, Any]:
    return {name: None if x[name] is None else [x[name], y[name]] for name in x}


@pytest.mark.parametrize("kind", [MixUp, CutMix])
@pytest.mark.parametrize(
    "mode",
    [
        pytest.param("max_size_cycle", marks=works("CombinedLoader, one of two mixed")),
        pytest.param("max_size", marks=works("CombinedLoader, one of two mixed, the other at its end")),
    ],
)
def test_one_of_two_loaders(kind: Method, mode: str) -> None:
    combination, data = combined(mode)
    holds_from(
        combination,
        summed,
        data,
        kind(input_key="a.0", target_key="a.1", seed=0),
        collate=pairs,
        terms=lambda mix, y: [(lam, {**y, "a": label}) for lam, label in classes(mix, y["a"])],
        inputs=lambda mix, x: {**x, "a": mixed(mix, x["a"])},
    )


@pytest.mark.parametrize("kind", [MixUp, CutMix])
@works("CombinedLoader, both of two mixed")
def test_both_of_two_loaders(kind: Method) -> None:
    combination, data = combined("max_size_cycle")
    method = kind(input_key=["a.0", "b.0"], target_key=["a.1", "b.1"], seed=0)
    holds_from(combination, summed, data, method, collate=pairs)


class Prepares(Model):
    """Makes its batches itself, on the device."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return {"image": 2 * batch["image"] - 1, "label": batch["label"]}


class Exchanges(Model):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        batch["image"] = 2 * batch["image"] - 1


class Edits(Model):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        batch["image"].mul_(2).sub_(1)


@pytest.mark.parametrize("kind", [MixUp, CutMix])
@pytest.mark.parametrize(
    "model",
    [
        pytest.param(Prepares, marks=works("a batch that on_after_batch_transfer makes")),
        pytest.param(Exchanges, marks=works("a batch that on_train_batch_start fills anew")),
        pytest.param(Edits, marks=works("a batch that on_train_batch_start edits in place")),
    ],
)
def test_a_batch_that_a_hook_prepares(model: type[Model], kind: Method) -> None:
    x, y = samples(3 * N)
    form, method = FORMS["a dict"], kind(seed=0)
    loaded: DataLoader[Any] = DataLoader(
        [form.collate(a.clone(), b) for a, b in in_batches(x, y)],  # type: ignore[arg-type]
        batch_size=None,
        collate_fn=lambda batch: batch,
    )
    witness = Witness(
        method,
        lambda: Model(classified(form.read), 48),
        in_batches(2 * x - 1, y),
        form.collate,
        classes,
        mixed,
        layer=None,
        rtol=1e-10,
    )
    make_trainer(method, witness).fit(model(classified(form.read), 48), loaded)
    assert witness.mixed > 0


@works("a step that takes dataloader_iter", refused="it fetches its batches itself")
def test_a_step_that_fetches_its_batches_is_refused() -> None:
    class Fetches(Model):
        def training_step(self, dataloader_iter: Any) -> Any:  # type: ignore[override]
            raise AssertionError("the step is not reached")

    with pytest.raises(ValueError, match=r"dataloader_iter.*Let it take \(batch, batch_idx\)"):
        make_trainer(MixUp()).fit(Fetches(classified(), 48), loader(*samples(N), batch_size=N))


X, Y = torch.rand(N, *IMAGE), torch.zeros(N, dtype=torch.int64)
BOXES = torch.rand(N, 2, 4)
OBJECTS = [{"boxes": boxes, "labels": torch.zeros(2)} for boxes in BOXES]

# The batch, the keys, and what the sentence says.
INPUTS_NOT_FOUND: dict[str, tuple[Any, dict[str, Any], str]] = {
    "three in a list": ([X, X, Y], {}, "no input.*list of 3.*input_key"),
    "two views in a pair": ([[X, X], Y], {}, "no input.*list of 2.*input_key"),
    "unusual names": ({"scan": X, "label": Y}, {}, "no input.*scan: a tensor.*input_key"),
    "two usual names": ({"image": X, "x": X, "label": Y}, {}, "more than one input.*input_key"),
    "text": ([["a"] * N, Y], {}, "no input.*list of 6.*input_key"),
    "named text": ({"image": ["a"] * N, "label": Y}, {}, "'image' is a list of 6.*not a tensor"),
    "a wrong name": ({"image": X, "label": Y}, {"input_key": "scan"}, "no 'scan'.*image: a tensor"),
    "a loader that has ended": ({"a": None, "b": [X, Y]}, {"input_key": "a.0"}, "no 0 for the key 'a.0'"),
}
TARGETS_NOT_FOUND: dict[str, tuple[Any, dict[str, Any], str]] = {
    "a tensor": (X, {}, "no target.*target_key=False"),
    "no labels": ({"image": X, "kind": Y}, {}, "no target.*kind: a tensor.*target_key"),
    "two usual names": ({"image": X, "label": Y, "target": Y}, {}, "more than one target.*target_key"),
    "None": ([X, None], {}, "holds no tensor.*target_key"),
    "text": ([X, ["a"] * N], {}, "holds no tensor.*target_key"),
    "another number of samples": ([X, Y[:3]], {}, r"6 samples, but a target has shape \(3,\)"),
    "the inputs in their place": ([Y, X], {"input_key": 1}, "target_key"),
    "an input in their place": ([X, X + 1], {"input_key": [0, 1]}, "target_key"),
    "a pair in their place": ([[X, Y], [X + 1, Y + 1]], {"input_key": "0.0"}, "target_key"),
}
DETECTION: dict[str, tuple[Any, dict[str, Any], str]] = {
    "a list of dicts": ([X, OBJECTS], {}, "detection boxes.*target_key=False"),
    "beside the labels": ({"image": X, "labels": Y, "boxes": BOXES}, {}, "detection boxes"),
    "beside the labels, as albumentations": (
        {"image": X, "labels": Y, "bboxes": BOXES},
        {},
        "detection boxes",
    ),
    "in a dict of targets": ([X, {"boxes": BOXES, "labels": Y}], {}, "detection boxes"),
    "in a field that is named": ({"image": X, "label": {"boxes": BOXES}}, {}, "detection boxes"),
    "of torchvision": (
        [X, {"places": tv_tensors.BoundingBoxes(BOXES[:, 0], format="XYXY", canvas_size=(4, 4)), "kinds": Y}],
        {},
        "detection boxes",
    ),
}


@pytest.mark.parametrize(
    ("batch", "keys", "sentence"),
    [
        pytest.param(*case, id=f"{name}: {kind}", marks=works(name, refused=reason))
        for name, reason, cases in (
            ("a batch whose inputs are not found", "name them by input_key", INPUTS_NOT_FOUND),
            ("a batch whose targets are not found", "name them by target_key", TARGETS_NOT_FOUND),
            ("detection boxes", "no method mixes them", DETECTION),
        )
        for kind, case in cases.items()
    ],
)
@pytest.mark.parametrize("kind", [MixUp, CutMix])
def test_a_batch_that_cannot_be_read_gets_a_sentence(
    batch: Any, keys: dict[str, Any], sentence: str, kind: Method
) -> None:
    def step(net: Net, batch: Any) -> Tensor:
        raise AssertionError("the step is not reached")

    loaded: DataLoader[Any] = DataLoader([batch], batch_size=None, collate_fn=lambda batch: batch)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"(?s){sentence}"):
        make_trainer(kind(**keys)).fit(Model(step, 48), loaded)
