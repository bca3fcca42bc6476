"""Where inputs and targets are found in a batch, and how others are put in their place."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from lightning_msda.fields import Path, find_inputs, find_targets, get, map_tensors, replace

X = torch.rand(4, 3, 8, 8)
Y = torch.tensor([0, 1, 2, 0])
OTHER = torch.rand(4, 2)

INPUT_NAMES = ["image", "images", "img", "pixel_values", "input_ids", "input", "inputs", "x"]
TARGET_NAMES = ["label", "labels", "target", "targets", "y"]


class Named(NamedTuple):
    number: int
    image: Tensor
    label: Tensor


Classic = namedtuple("Classic", ["x", "y"])


@dataclass
class Record:
    image: Tensor
    label: Tensor
    source: str = "camera"


@dataclass(slots=True)
class Slotted:
    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Frozen:
    x: Tensor
    y: Tensor


class Thing:
    def __init__(self, image: Tensor, label: Tensor) -> None:
        self.image = image
        self.label = label


class Store(MutableMapping[str, Any]):
    """A mapping that keeps its entries in an attribute of its own, and says nothing of copying."""

    def __init__(self, entries: Mapping[str, Any]) -> None:
        self._entries = dict(entries)

    def __getitem__(self, key: str) -> Any:
        return self._entries[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._entries[key] = value

    def __delitem__(self, key: str) -> None:
        del self._entries[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


# A batch of each kind, and the places of its inputs and targets by default.
BATCHES: dict[str, tuple[Any, Path, Path]] = {
    "tuple": ((X, Y), (0,), (1,)),
    "list": ([X, Y], (0,), (1,)),
    "dict": ({"image": X, "label": Y, "index": OTHER}, ("image",), ("label",)),
    "ordered dict": (OrderedDict(label=Y, image=X), ("image",), ("label",)),
    "user dict": (UserDict(img=X, target=Y), ("img",), ("target",)),
    "named tuple": (Named(7, X, Y), ("image",), ("label",)),
    "named pair": (Classic(X, Y), ("x",), ("y",)),
    "dataclass": (Record(X, Y), ("image",), ("label",)),
    "dataclass with slots": (Slotted(X, Y), ("x",), ("y",)),
    "object": (Thing(X, Y), ("image",), ("label",)),
    "namespace": (SimpleNamespace(inputs=X, targets=Y), ("inputs",), ("targets",)),
    "mapping in a pair": (({"image": X, "meta": OTHER}, Y), (0, "image"), (1,)),
    "mapping of targets in a pair": ((X, {"shape": Y, "colour": OTHER}), (0,), (1,)),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_inputs_and_targets_are_found_in_their_usual_places(kind: str) -> None:
    batch, inputs, targets = BATCHES[kind]
    assert find_inputs(batch) == [inputs]
    assert find_targets(batch) == [targets]
    assert get(batch, inputs) is X


@pytest.mark.parametrize("name", INPUT_NAMES)
def test_every_usual_name_of_inputs_is_known(name: str) -> None:
    assert find_inputs({name: X, "label": Y, "other": OTHER}) == [(name,)]


@pytest.mark.parametrize("name", TARGET_NAMES)
def test_every_usual_name_of_targets_is_known(name: str) -> None:
    assert find_targets({"image": X, name: Y, "other": OTHER}) == [(name,)]


def test_a_bare_tensor_is_the_inputs() -> None:
    assert find_inputs(X) == [()]
    assert get(X, ()) is X
    assert replace(X, {(): OTHER}) is OTHER


NESTED = {"views": [{"x": X, "y": Y}, {"x": OTHER}], "heads": {"shape": Y, "colour": OTHER}}


@pytest.mark.parametrize(
    ("key", "paths"),
    [
        ("views.0.x", [("views", 0, "x")]),
        ("views.-1.x", [("views", -1, "x")]),
        (["views.0.x", "views.1.x"], [("views", 0, "x"), ("views", 1, "x")]),
    ],
)
def test_keys_are_dotted_paths(key: Any, paths: list[Path]) -> None:
    assert find_inputs(NESTED, key) == paths


def test_keys_are_indices_too() -> None:
    assert find_inputs((OTHER, X, Y), 1) == [(1,)]
    assert find_targets((OTHER, X, Y), -1) == [(-1,)]
    assert find_inputs((OTHER, X, Y), [0, 1]) == [(0,), (1,)]


def test_keys_reach_through_objects() -> None:
    batch = SimpleNamespace(left=Record(X, Y), right=(OTHER, Y))
    assert get(batch, find_inputs(batch, "left.image")[0]) is X
    assert get(batch, find_targets(batch, ["left.label", "right.1"])[1]) is Y


def test_a_target_may_hold_several_tensors() -> None:
    assert find_targets(NESTED, "heads") == [("heads",)]
    assert find_targets((X, [Y, OTHER])) == [(1,)]


def test_a_key_comes_before_the_usual_names() -> None:
    assert find_inputs({"image": X, "depth": OTHER}, "depth") == [("depth",)]


def test_a_batch_encoding_is_read_as_a_mapping() -> None:
    mask = torch.ones(4, 5, dtype=torch.int64)
    tokens = torch.arange(20).view(4, 5)
    batch = UserDict({"input_ids": tokens, "attention_mask": mask, "labels": Y})  # what it is made of
    assert find_inputs(batch) == [("input_ids",)]
    assert find_targets(batch) == [("labels",)]
    assert find_inputs(batch, ["input_ids", "attention_mask"]) == [("input_ids",), ("attention_mask",)]
    mixed = replace(batch, {("input_ids",): tokens + 1})
    assert type(mixed) is type(batch)
    assert torch.equal(mixed["input_ids"], tokens + 1)
    assert mixed["attention_mask"] is mask
    assert batch["input_ids"] is tokens


def entries(batch: Any) -> dict[Any, Any]:
    """Return the members of a container by their places."""
    if isinstance(batch, (dict, MutableMapping)):
        return dict(batch)
    if hasattr(batch, "_asdict"):
        return dict(batch._asdict())
    if isinstance(batch, (list, tuple)):
        return dict(enumerate(batch))
    names = batch.__slots__ if hasattr(batch, "__slots__") else vars(batch)
    return {name: getattr(batch, name) for name in names}


@pytest.mark.parametrize("kind", BATCHES)
def test_the_batch_is_not_written_to(kind: str) -> None:
    batch, inputs, targets = BATCHES[kind]
    before = {place: entries(get(batch, place)) for place in [(), *([inputs[:-1]] if inputs[1:] else [])]}
    mixed = replace(batch, {inputs: X + 1, targets: Y + 1})
    for place, members in before.items():
        now = entries(get(batch, place))
        assert list(now) == list(members)
        assert all(now[name] is members[name] for name in members)
    assert torch.equal(get(mixed, inputs), X + 1)
    assert torch.equal(get(mixed, targets), Y + 1)


@pytest.mark.parametrize("kind", BATCHES)
def test_a_copy_has_the_same_type_and_the_same_other_members(kind: str) -> None:
    batch, inputs, _ = BATCHES[kind]
    mixed = replace(batch, {inputs: X + 1})
    assert type(mixed) is type(batch)
    assert mixed is not batch
    old, new = entries(batch), entries(mixed)
    assert list(new) == list(old)
    assert all(new[name] is old[name] for name in old if name != inputs[0])


def test_only_the_containers_on_the_way_are_copied() -> None:
    mixed = replace(NESTED, {("views", 0, "x"): OTHER})
    assert mixed["views"][0] == {"x": OTHER, "y": Y}
    assert mixed["views"] is not NESTED["views"]
    assert mixed["views"][1] is NESTED["views"][1]  # type: ignore[index]
    assert mixed["heads"] is NESTED["heads"]
    assert NESTED["views"][0]["x"] is X  # type: ignore[index]


def test_several_members_of_one_container_are_replaced_together() -> None:
    mixed = replace(NESTED, {("views", 0, "x"): OTHER, ("views", 0, "y"): X, ("heads", "shape"): OTHER})
    assert mixed["views"][0]["x"] is OTHER
    assert mixed["views"][0]["y"] is X
    assert mixed["heads"]["shape"] is OTHER
    assert mixed["heads"]["colour"] is OTHER


def test_an_index_may_count_from_the_end() -> None:
    assert replace((X, Y), {(-1,): OTHER}) == (X, OTHER)


UNUSUAL: dict[str, Any] = {
    "mapping of its own": Store({"x": X, "y": Y}),
    "mapping to look at": MappingProxyType({"x": X, "y": Y}),
    "frozen dataclass": Frozen(X, Y),
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_an_unusual_container_is_copied_or_refused_and_never_written_to(kind: str) -> None:
    batch = UNUSUAL[kind]
    assert find_inputs(batch) == [("x",)]
    try:
        mixed = replace(batch, {("x",): OTHER})
    except ValueError as refusal:
        assert type(batch).__name__ in str(refusal)  # noqa: PT017
    else:
        assert type(mixed) is type(batch)
        assert get(mixed, ("x",)) is OTHER
        assert get(mixed, ("y",)) is Y
    assert get(batch, ("x",)) is X


def test_a_function_is_applied_to_each_tensor_of_a_target() -> None:
    target = {"a": Y, "b": [Y, (Y, "name")], "c": 3}
    doubled = map_tensors(target, lambda labels: 2 * labels)
    assert torch.equal(doubled["a"], 2 * Y)
    assert torch.equal(doubled["b"][0], 2 * Y)
    assert torch.equal(doubled["b"][1][0], 2 * Y)
    assert doubled["b"][1][1] == "name"
    assert doubled["c"] == 3
    assert target["a"] is Y
    assert type(doubled["b"][1]) is tuple


# What cannot be read, which side of it, and what the sentence must contain: the batch in words, what would
# be taken, and the argument to pass.
REFUSED: dict[str, tuple[Any, Any, str, list[str]]] = {
    "three in a tuple": ((X, Y, Y), None, "input", ["tuple of 3", "(4, 3, 8, 8)", "pair", "input_key"]),
    "no usual name": ({"scan": X, "label": Y}, None, "input", ["scan", "image, images", "input_key"]),
    "two usual names": ({"image": X, "x": X, "y": Y}, None, "input", ["['image', 'x']", "input_key"]),
    "nothing": (None, None, "input", ["NoneType", "input_key"]),
    "text": ({"x": "a scan", "y": Y}, None, "input", ["a str", "y: a tensor (4,) of int64", "input_key"]),
    "no such name": ({"image": X, "label": Y}, "depth", "input", ["'depth'", "image: ", "input_key"]),
    "no such index": ((X, Y), 2, "input", ["2", "tuple of 2", "input_key"]),
    "a name in a list": ([X, Y], "image", "input", ["'image'", "list of 2", "input_key"]),
    "nothing below": ({"x": {"a": X}, "y": Y}, "x.b", "input", ["'b'", "'x.b'", "input_key"]),
    "no target name": ({"image": X, "sort": Y}, None, "target", ["sort", "label, labels", "target_key"]),
    "two target names": ({"x": X, "y": Y, "label": Y}, None, "target", ["['y', 'label']", "target_key"]),
    "a bare tensor's target": (X, None, "target", ["(4, 3, 8, 8)", "target_key=False"]),
    "no target": ((X, None), None, "target", ["NoneType", "target_key=False"]),
    "words": ({"x": X, "y": ["cat", "dog"]}, None, "target", ["a list of 2 (a str; a str)", "target_key"]),
    "no such target": ({"x": X, "y": Y}, "kind", "target", ["'kind'", "x: ", "target_key"]),
    "boxes": ((X, [{"boxes": OTHER, "labels": Y}] * 4), None, "target", ["boxes", "target_key=False"]),
    "boxes beside": ({"x": X, "labels": Y, "boxes": OTHER}, None, "target", ["boxes", "target_key=False"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused_with_a_sentence(case: str) -> None:
    batch, key, side, words = REFUSED[case]
    with pytest.raises(ValueError, match=r"\.$") as refusal:
        (find_inputs if side == "input" else find_targets)(batch, key)
    message = str(refusal.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize("views", [[X, X + 1], (X, X + 1)], ids=["list", "tuple"])
def test_two_views_are_not_taken_for_one_input(views: Any) -> None:
    with pytest.raises(ValueError, match="input_key"):
        find_inputs((views, Y))


def test_a_list_of_images_is_refused_however_many_there_are() -> None:
    for count in (2, 3):
        with pytest.raises(ValueError, match="input_key"):
            find_inputs((list(X[:count]), Y[:count]))
