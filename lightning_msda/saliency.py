"""How much each pixel matters to the module that is trained: the gradient of its loss."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_msda.effects import silence, untouched
from lightning_msda.fields import first_tensor, get

__all__ = ["gradient_saliency", "input_gradient", "norm_over_channels", "resized"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def gradient_saliency(module: nn.Module, x: Tensor, labels: Tensor, **options: Any) -> Tensor:
    """Return the norm over the channels of the gradient of a module's loss by its inputs (Puzzle Mix).

    Args:
        module: The module, as in `input_gradient`.
        x: Inputs, floating point, shape ``(N, C, H, W)``.
        labels: As in `input_gradient`.
        options: ``loss``, ``stride`` and ``context``, as in `input_gradient`.

    Returns:
        Saliency, from 0, shape ``(N, H, W)``, of the inputs' dtype.

    Raises:
        ValueError: If the module has no such forward, or cannot take the smaller inputs.
    """
    return norm_over_channels(input_gradient(module, x, labels, **options), x)


def norm_over_channels(gradient: Tensor, x: Tensor) -> Tensor:
    """Return the norm of a gradient over the channels, for each pixel of the inputs.

    Args:
        gradient: Shape ``(N, C, h, w)``, of inputs that may be smaller.
        x: Inputs, shape ``(N, C, H, W)``.

    Returns:
        Saliency, from 0, shape ``(N, H, W)``, of the inputs' dtype.
    """
    return resized(gradient.square().mean(1, keepdim=True).sqrt(), x)[:, 0].to(x.dtype)


def resized(values: Tensor, x: Tensor) -> Tensor:
    """Return values of smaller inputs for each pixel of the inputs, by nearest neighbours.

    Args:
        values: Shape ``(N, C, h, w)``.
        x: Inputs, shape ``(N, C, H, W)``.
    """
    return values if values.shape[2:] == x.shape[2:] else F.interpolate(values, x.shape[2:], mode="nearest")


def input_gradient(
    module: nn.Module,
    x: Tensor,
    labels: Tensor,
    *,
    loss: str | None = None,
    stride: int = 1,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Tensor:
    """Return the gradient of a module's loss by its inputs.

    The module is called in evaluation mode and left as if it had not been called: no statistic, train flag,
    gradient, generator, hook or log of its own notices.

    Args:
        module: The module. Its ``forward(x)`` returns class scores: a tensor, what has them as ``logits``,
            or a container of which they are the first tensor.
        x: Inputs, floating point, shape ``(N, C, H, W)``.
        labels: Classes ``(N,)``, probabilities ``(N, K)``, or whatever cross-entropy takes beside the scores.
        loss: Name of a method of the module that takes ``(x, labels)`` and returns the loss instead.
        stride: How much smaller the inputs are made before, by averaging.
        context: Where the forward pass runs, such as the precision's autocast.

    Returns:
        The gradient, shape ``(N, C, h, w)`` of the smaller inputs.

    Raises:
        ValueError: If the module has no such forward, or cannot take the smaller inputs.
    """
    small = x.detach() if stride == 1 else F.avg_pool2d(x.detach(), stride, ceil_mode=True)
    small = small.clone().requires_grad_()
    with untouched(module, x.device), torch.enable_grad(), context():
        _silence(module)
        try:
            value = _loss(module, small, labels, loss)
        except (RuntimeError, TypeError, NotImplementedError, AttributeError) as error:
            raise ValueError(_sentence(module, small, loss, stride, error)) from error
        (gradient,) = torch.autograd.grad(value, small, allow_unused=True)
    if gradient is None:
        raise ValueError(
            f"The loss of {type(module).__name__} does not depend on the inputs by a gradient, so nothing is"
            " salient. Name another by saliency_loss='...', a method of the module that takes (x, y)."
        )
    return gradient


def _loss(module: Any, x: Tensor, labels: Tensor, loss: str | None) -> Tensor:
    if loss is not None:
        own: Tensor = getattr(module, loss)(x, labels)
        return own.sum()
    output = module.forward(x)
    scores = getattr(output, "logits", output)
    if not isinstance(scores, Tensor):
        place = first_tensor(scores)
        if place is None:
            raise TypeError(f"forward(x) returned a {type(output).__name__} without a tensor")
        scores = get(scores, place)
    # Summed, not averaged: in half precision small gradients vanish, and only their ratios matter.
    return F.cross_entropy(
        scores.float() if scores.dtype != torch.float64 else scores, labels, reduction="sum"
    )


def _silence(module: nn.Module) -> None:
    """Put a module, whose state is a copy, into evaluation, and take away what others have hung on it."""
    for part in module.modules():
        part.training = False
        for name in _HOOKS:
            hooks = vars(part).get(name)
            if hooks:  # those of torch compute weights, such as weight_norm's
                vars(part)[name] = OrderedDict(
                    (key, hook) for key, hook in hooks.items() if _module_of(hook).startswith("torch.")
                )
    silence(module)


def _module_of(hook: Any) -> str:
    return str(getattr(hook, "__module__", type(hook).__module__))


def _sentence(module: nn.Module, x: Tensor, loss: str | None, stride: int, error: Exception) -> str:
    called = f"{loss}(x, y)" if loss is not None else "forward(x)"
    smaller = f" The inputs were made {stride}-fold smaller by saliency_stride." if stride > 1 else ""
    return (
        f"The saliency needs {type(module).__name__}.{called} on inputs {tuple(x.shape)}, which failed:"
        f" {error}.{smaller} Let forward(x) return class scores, or name a method that takes (x, y) and"
        " returns the loss by saliency_loss='...'."
    )
