"""The methods as pure functions, and the mixture's loss for plain loops and Fabric.

Example:
    >>> import torch
    >>> logits = torch.zeros(4, 10, requires_grad=True)
    >>> y = torch.tensor([0, 1, 2, 3])
    >>> mix = cutmix(torch.rand(4, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    >>> loss = mixed_loss(torch.nn.functional.cross_entropy, logits, y, mix)  # logits of mix.inputs
    >>> loss.backward()
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from lightning_msda.boundaries import watched
from lightning_msda.fields import map_tensors
from lightning_msda.methods import (
    bcmix,
    comixup,
    cutmix,
    cutout,
    fmix,
    fmix_mask,
    lamix,
    mixup,
    patchup,
    puzzlemix,
    resizemix,
    saliencymix,
    samplepairing,
)
from lightning_msda.mixed_tensor import MixedTensor, refuse_unread, release, settle
from lightning_msda.mixture import Mixture
from lightning_msda.targets import TargetKind, mix_target

__all__ = [
    "bcmix",
    "comixup",
    "cutmix",
    "cutout",
    "fmix",
    "fmix_mask",
    "lamix",
    "mixed_loss",
    "mixup",
    "patchup",
    "puzzlemix",
    "resizemix",
    "saliencymix",
    "samplepairing",
]


def mixed_loss(
    loss_fn: Callable[[Any, Any], Tensor],
    logits: Any,
    y: Any,
    mixture: Mixture,
    *,
    target: TargetKind | None = None,
) -> Tensor:
    """Return the loss of a mixture, ``lam * loss_fn(logits, y) + (1 - lam) * loss_fn(logits, y[partner])``.

    Any loss that torch dispatches can be mixed, and any target that the callbacks can mix.

    Args:
        loss_fn: Called with ``(logits, labels)``.
        logits: What the network makes of ``mixture.inputs``.
        y: The labels of the batch before it was mixed, shape ``(N, ...)``, or a dict, list or tuple of them.
        mixture: What `mixup`, `cutmix` or another of the functions here returned.
        target: ``"class"`` or ``"value"``, as the callbacks take it; None: by dtype.

    Returns:
        The loss as a plain tensor.

    Raises:
        MixedLossError: If the loss cannot be mixed.
        ValueError: If there is not one label for each sample.
    """
    try:
        labels = map_tensors(y, lambda tensor: mix_target(tensor, mixture, target))
        with watched():
            loss = loss_fn(logits, labels)
        if not isinstance(loss, MixedTensor):
            refuse_unread()
        return settle(loss)
    finally:
        release()
