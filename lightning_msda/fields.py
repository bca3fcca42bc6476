"""Where the inputs and the targets are in a batch, and how others are put in their place."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any, Literal

from torch import Tensor

__all__ = [
    "Key",
    "Path",
    "find_inputs",
    "find_targets",
    "first_labels",
    "first_tensor",
    "get",
    "map_tensors",
    "replace",
    "tensors_in",
]

Key = int | str
Path = tuple[Key, ...]

_INPUT_NAMES = ("image", "images", "img", "pixel_values", "input_ids", "input", "inputs", "x")
_BOX_NAMES = frozenset(("boxes", "bboxes", "bbox"))
_TARGET_NAMES = ("label", "labels", "target", "targets", "y")


def find_inputs(batch: Any, key: Key | Sequence[Key] | None = None) -> list[Path]:
    """Return where the inputs are.

    Args:
        batch: A pair ``(inputs, targets)``, a mapping or an object with the field's usual names, a single
            tensor, or anything at all with a key.
        key: Index, name or dotted path, or several that share one mix; None: the usual place.

    Raises:
        ValueError: If they cannot be found, or are no tensor.
    """
    paths = _parse(batch, key) if key is not None else [_usual_place(batch, 0, _INPUT_NAMES, "input")]
    for path in paths:
        if not isinstance(value := get(batch, path), Tensor):
            raise ValueError(
                f"The input at {_spell(path)} is {_describe(value)}, not a tensor; the batch is"
                f" {_describe(batch)}. Name what is to be mixed by input_key, for instance input_key='image'."
            )
    return paths


def find_targets(
    batch: Any, key: Key | Sequence[Key] | None = None, inputs: Sequence[Path] = ()
) -> list[Path]:
    """Return where the targets are.

    Args:
        batch: As in `find_inputs`.
        key: Index, name or dotted path, or several; None: the usual place.
        inputs: Places of the inputs, which no target may be.

    Raises:
        ValueError: If they cannot be found, hold no tensor, or are boxes.
    """
    if (
        key is None
        and any(len(path) > 1 and isinstance(path[1], int) for path in inputs)
        and _names(batch) is None
    ):
        raise ValueError(
            f"The inputs are inside of a list, and the targets may be too; the batch is {_describe(batch)}."
            " Name the labels by target_key, or mix the inputs alone by target_key=False."
        )
    paths = _parse(batch, key) if key is not None else [_usual_place(batch, 1, _TARGET_NAMES, "target")]
    for path in paths:
        value = get(batch, path)
        if any(path[: len(other)] == other[: len(path)] for other in inputs):
            raise ValueError(
                f"The target at {_spell(path)} is an input, {_describe(value)}; the batch is"
                f" {_describe(batch)}. Name the labels by target_key, or mix the inputs alone by"
                " target_key=False."
            )
        if _holds_boxes(value) or _holds_boxes(batch):
            raise ValueError(
                "The targets hold detection boxes, which none of the methods can mix: they mix class labels,"
                " dense labels and values. With target_key=False the inputs are mixed alone."
            )
        if not tensors_in(value):
            raise ValueError(
                f"The target at {_spell(path)} is {_describe(value)}, which holds no tensor; the batch is"
                f" {_describe(batch)}. Name the labels by target_key, or mix the inputs alone by"
                " target_key=False."
            )
    return paths


def first_labels(batch: Any, key: Key | Sequence[Key] | Literal[False] | None = None) -> Tensor | None:
    """Return the first tensor of the targets, for a picture.

    Args:
        batch: As in `find_inputs`.
        key: As in `find_targets`; False: there are none.

    Raises:
        ValueError: If they cannot be found.
    """
    return None if key is False else tensors_in(get(batch, find_targets(batch, key)[0]))[0]


def get(batch: Any, path: Path) -> Any:
    """Return what is at a place in a batch.

    Args:
        batch: The batch.
        path: Indices and names from the outside in; empty for the batch itself.

    Raises:
        ValueError: If there is no such place.
    """
    value = batch
    for step in path:
        try:
            value = (
                value[step] if isinstance(step, int) or isinstance(value, Mapping) else getattr(value, step)
            )
        except (KeyError, IndexError, AttributeError, TypeError):
            raise ValueError(
                f"There is no {step!r} for the key {_spell(path)} in {_describe(value)}; the batch is"
                f" {_describe(batch)}. Correct input_key or target_key: an index, a name or a dotted path."
            ) from None
    return value


def replace(batch: Any, values: Mapping[Path, Any]) -> Any:
    """Return a shallow copy of a batch with other values in some places; the batch is not written to.

    Args:
        batch: Lists, tuples, named tuples, mappings and objects, nested in any way.
        values: The new value for each place.
    """
    if () in values:
        return values[()]
    below: dict[Key, dict[Path, Any]] = {}
    for (step, *rest), value in values.items():
        below.setdefault(step, {})[tuple(rest)] = value
    new = {step: replace(get(batch, (step,)), inner) for step, inner in below.items()}
    if isinstance(batch, tuple):
        names = list(getattr(batch, "_fields", ()))
        items = list(batch)
        for step, value in new.items():
            items[step if isinstance(step, int) else names.index(step)] = value
        return type(batch)(*items) if names else type(batch)(items)
    try:
        mixed = copy.copy(batch)
        for step, value in new.items():
            if isinstance(batch, (list, Mapping)):
                old = batch[step]  # type: ignore[index]
                mixed[step] = value
                if batch[step] is not old:  # type: ignore[index]
                    batch[step] = old  # type: ignore[index]
                    raise TypeError("its copy shares its entries")
                if isinstance(batch, Mapping) and getattr(batch, str(step), None) is old:
                    setattr(mixed, str(step), value)
            else:
                old = getattr(batch, str(step))
                try:
                    setattr(mixed, str(step), value)
                except Exception:  # frozen, each kind in its own words
                    object.__setattr__(mixed, str(step), value)
                if getattr(batch, str(step)) is not old:
                    setattr(batch, str(step), old)
                    raise TypeError("its copy shares what it holds")
    except (TypeError, AttributeError) as error:
        raise ValueError(
            f"A {type(batch).__name__} cannot be copied with other values in it ({error}). Let the loader's"
            " collate_fn return a tuple, a dict or a dataclass."
        ) from error
    return mixed


def map_tensors(value: Any, func: Callable[[Tensor], Any]) -> Any:
    """Return a copy of nested mappings and sequences with a function applied to each tensor.

    Args:
        value: A tensor, or mappings, lists and tuples that hold some; all else is left as it is.
        func: What to apply.
    """
    if isinstance(value, Tensor):
        return func(value)
    if isinstance(value, MutableMapping):
        return replace(value, {(key,): map_tensors(item, func) for key, item in value.items()})
    if isinstance(value, (list, tuple)):
        return replace(value, {(i,): map_tensors(item, func) for i, item in enumerate(value)})
    return value


def first_tensor(value: Any) -> Path | None:
    """Return where the first tensor of a value is, or None if it holds none.

    Args:
        value: A tensor, or mappings, sequences and dataclasses that hold some.
    """
    if isinstance(value, Tensor):
        return ()
    places: list[Any] = []
    if isinstance(value, (list, tuple)):
        places = list(range(len(value)))
    elif isinstance(value, Mapping) or dataclasses.is_dataclass(value):
        places = _names(value) or []
    for place in places:
        if (inner := first_tensor(get(value, (place,)))) is not None:
            return (place, *inner)
    return None


def tensors_in(value: Any) -> list[Tensor]:
    """Return every tensor in nested mappings and sequences.

    Args:
        value: As in `map_tensors`.
    """
    found: list[Tensor] = []
    map_tensors(value, found.append)
    return found


def _usual_place(batch: Any, position: int, usual: tuple[str, ...], what: str) -> Path:
    """Return where a batch of one of the usual kinds has its inputs or targets."""
    names = _names(batch)
    if names is None and isinstance(batch, Sequence) and len(batch) == 2:
        half = batch[position]
        if isinstance(half, Tensor) or what == "target":
            return (position,)
        if _names(half) is not None:
            return (position, *_usual_place(half, 0, usual, what))
    if isinstance(batch, Tensor) and what == "input":
        return ()
    found = [name for name in names or () if name in usual]
    if len(found) == 1:
        return (found[0],)
    raise ValueError(
        f"Found {f'more than one {what}, {found},' if found else f'no {what}'} in the batch, which is"
        f" {_describe(batch)}. Taken are a pair (inputs, targets) and the names {', '.join(usual)}. Name it"
        f" by {what}_key: an index, a name or a dotted path"
        + (", or mix the inputs alone by target_key=False." if what == "target" else ".")
    )


def _parse(batch: Any, key: Key | Sequence[Key]) -> list[Path]:
    """Return the paths that a key names; a name that is there as it is comes before a path."""
    if not isinstance(key, (int, str)):
        return [path for one in key for path in _parse(batch, one)]
    if isinstance(key, int) or (isinstance(batch, Mapping) and key in batch):
        return [(key,)]
    return [tuple(int(step) if step.lstrip("-").isdecimal() else step for step in key.split("."))]


def _names(batch: Any) -> list[Any] | None:
    """Return the names of a batch's fields, or None if they have none."""
    if isinstance(batch, Mapping):
        return list(batch)
    if hasattr(batch, "_fields"):
        return list(batch._fields)
    if dataclasses.is_dataclass(batch):
        return [field.name for field in dataclasses.fields(batch)]
    if isinstance(batch, (Tensor, list, tuple, str, bytes)):
        return None
    slots = [getattr(kind, "__slots__", ()) for kind in type(batch).__mro__]
    names = [name for own in slots for name in ([own] if isinstance(own, str) else own)]
    names += vars(batch) if hasattr(batch, "__dict__") else []
    return [name for name in names if hasattr(batch, name)] or None


def _holds_boxes(value: Any) -> bool:
    if type(value).__name__ == "BoundingBoxes":  # torchvision's
        return True
    if isinstance(value, (list, tuple)):
        return any(map(_holds_boxes, value))
    names = [] if isinstance(value, Tensor) else _names(value) or []
    return not _BOX_NAMES.isdisjoint(map(str, names)) or (
        isinstance(value, Mapping) and any(map(_holds_boxes, value.values()))
    )


def _spell(path: Path) -> str:
    return repr(".".join(map(str, path)))


def _describe(value: Any) -> str:
    """Say in a few words what a value is."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    kind = type(value).__name__
    if (names := _names(value)) is not None and not isinstance(value, (str, bytes)):
        fields = "; ".join(f"{name}: {_describe(get(value, (name,)))}" for name in names[:8])
        return f"a {kind} with {fields or 'nothing in it'}"
    if isinstance(value, (list, tuple)):
        items = "; ".join(_describe(item) for item in value[:4])
        return f"a {kind} of {len(value)} ({items}{'; ...' if len(value) > 4 else ''})"
    return f"a {kind}"
