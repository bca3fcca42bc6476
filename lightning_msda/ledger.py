"""What is remembered of a step's labels until the step is over.

Lists that are empty between batches: where mixed tensors are, so that they can be made plain again; how
labels left torch, so that a loss that may contain what came of it can be refused; whether a mixed loss left
for the optimizer at all; the learned label that a loss must contain, if the batch has one; whether lam
differs by sample; and what is made of weights that a hidden layer has yet to tell.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = [
    "Learned",
    "await_weights",
    "differs_by_sample",
    "expect",
    "expected",
    "first_leak",
    "forget",
    "leak_into",
    "living",
    "note_by_sample",
    "note_leak",
    "note_settled",
    "remember",
    "settled",
    "weights_are_known",
    "when_known",
]


class Learned(Protocol):
    """A label that the module learns while it computes its scores.

    Attributes:
        name: The layer that is looked at.
        value: Probabilities, shape ``(N, K)``; None as long as the layer has not run.
        weights: Weights of the sources' labels and, last, of this one, shape ``(k + 1,)`` or ``(N, k + 1)``.
    """

    name: str
    value: Tensor | None
    weights: Tensor


_living: list[tuple[weakref.ref[Tensor], type[Tensor]]] = []
_leaks: list[tuple[int, str]] = []
_settled: list[None] = []
_expected: list[Learned] = []
_by_sample: list[None] = []
_awaiting: list[Callable[[], Any]] = []


def remember(tensor: Tensor, home: type[Tensor]) -> None:
    """Remember a mixed tensor and the class that it had before."""
    if not torch.compiler.is_compiling():
        _living.append((weakref.ref(tensor), home))


def living() -> list[tuple[Tensor, type[Tensor]]]:
    """Return every mixed tensor that still exists, with the class that it had before."""
    _living[:] = [(reference, home) for reference, home in _living if reference() is not None]
    return [(tensor, home) for reference, home in _living if (tensor := reference()) is not None]


def note_leak(where: str) -> None:
    """Remember that labels left torch, and would have been read otherwise for their partners."""
    with torch.inference_mode(False), torch.enable_grad():
        node = torch.zeros((), requires_grad=True).view(()).grad_fn
    # Autograd numbers its nodes in the order of their making.
    _leaks.append((-1 if node is None else node._sequence_nr(), where))


def leak_into(loss: Tensor) -> str | None:
    """Return how labels left torch before a loss was made, if they did.

    What became of them outside may be in the loss; what left after it was made cannot be.
    """
    made = loss.grad_fn._sequence_nr() if loss.grad_fn is not None else -1
    return next((where for clock, where in _leaks if clock <= made), None)


def first_leak() -> str | None:
    """Return how labels first left torch, if they did."""
    return _leaks[0][1] if _leaks else None


def note_settled() -> None:
    """Remember that a mixed loss left for the optimizer."""
    _settled.append(None)


def settled() -> bool:
    """Tell whether a mixed loss has left for the optimizer."""
    return bool(_settled)


def expect(label: Learned) -> None:
    """Remember that the batch has a learned label beside those of its sources."""
    _expected.append(label)


def expected() -> Learned | None:
    """Return the learned label of the batch, if it has one."""
    return _expected[0] if _expected else None


def note_by_sample() -> None:
    """Remember that there are labels with a lam for each sample."""
    _by_sample.append(None)


def differs_by_sample() -> bool:
    """Tell whether there are labels with a lam for each sample."""
    return bool(_by_sample)


def await_weights() -> None:
    """Remember that the weights of the labels will be known when a hidden layer has run."""
    _awaiting.append(lambda: None)


def when_known(act: Callable[[], Any]) -> None:
    """Do something once the weights are known, if they are not."""
    if _awaiting:
        _awaiting.append(act)


def weights_are_known() -> None:
    """Do what had to wait for the weights, in the order in which it came."""
    acts = _awaiting.copy()
    _awaiting.clear()
    for act in acts:
        act()


def forget() -> None:
    """Forget all of it."""
    for remembered in (_living, _leaks, _settled, _expected, _by_sample, _awaiting):
        remembered.clear()
