"""Methods that mix images by what is salient in them to the module that is trained."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Generator, Tensor, nn
from typing_extensions import Unpack, override

from lightning_msda.callback import MSDA, CommonArgs
from lightning_msda.ops import spectral_residual
from lightning_msda.randomness import Step, sample_integers
from lightning_msda.saliency import input_gradient, norm_over_channels
from lightning_msda.schedule import check_weight

__all__ = ["BySaliency", "check_blocks", "check_images", "check_saliency", "saliency_at", "sample_block_num"]


class BySaliency(MSDA):
    """Looks before each mix for what is salient to the module; masks and lam are always by sample.

    Args:
        saliency_stride: How much smaller the batch is made before its gradient is computed.
        saliency_loss: Name of a method of the module that takes ``(x, y)`` and returns the loss whose
            gradient is computed; None: cross-entropy on the scores of ``forward(x)``.
        clean_lam: Weight of the module's loss on the batch as it came, which is added to the mixture's.
        common: What every method takes, see `CommonArgs`, but for ``at`` and ``dims``.

    Raises:
        ValueError: If an argument is out of range or has no meaning here.
    """

    reads_values: ClassVar[bool] = True

    def __init__(
        self,
        saliency_stride: int = 1,
        saliency_loss: str | None = None,
        clean_lam: float = 0.0,
        **common: Unpack[CommonArgs],
    ) -> None:
        super().__init__(**common)
        self._leave_out("at", "dims", because="cuts images by what is salient in them")
        if not isinstance(saliency_stride, int) or saliency_stride < 1:
            raise ValueError(f"saliency_stride={saliency_stride!r} must be a whole number from 1.")
        check_weight("clean_lam", clean_lam)
        self.clean_lam = clean_lam
        self.saliency_stride = saliency_stride
        self.saliency_loss = saliency_loss

    @property
    @override
    def lam_by_sample(self) -> bool:
        return True

    @override
    def look(
        self,
        step: Step,
        x: Tensor,
        labels: Any,
        module: nn.Module,
        context: Callable[[], AbstractContextManager[Any]],
    ) -> Step:
        step = super().look(step, x, labels, module, context)
        name = type(self).__name__
        if not isinstance(labels, Tensor):
            raise ValueError(
                f"{name} computes a loss to see what is salient, and target_key names no labels: let it"
                " name them, or use another method."
            )
        if x.dim() != 4 or not x.is_floating_point():
            raise ValueError(
                f"{name} mixes images (N, C, H, W) of floating point, not {x.dtype} of shape"
                f" {tuple(x.shape)}: their gradient says what is salient. Use CutMix or FMix."
            )
        gradient = input_gradient(
            module,
            x,
            labels,
            loss=self.saliency_loss,
            stride=self.saliency_stride,
            context=context,
        )
        return replace(step, gradient=gradient)


def saliency_at(step: Step, x: Tensor) -> Tensor:
    """Return the saliency that a step brings, or that of the images alone if there is no module to ask.

    Args:
        step: Where training stands.
        x: Images, shape ``(N, C, H, W)``.

    Returns:
        Saliency, from 0, shape ``(N, H, W)``.
    """
    if step.gradient is not None:
        return norm_over_channels(step.gradient, x)
    residual = spectral_residual(x, (2, 3))
    return F.interpolate(residual[:, None], x.shape[2:], mode="nearest")[:, 0]


def sample_block_num(x: Tensor, generator: Generator | None = None) -> int:
    """Draw a number of blocks in each dimension: 2, 4, 8 or 16, or the smaller size of the images.

    Args:
        x: Images, shape ``(N, C, H, W)``.
        generator: Source of randomness; None: the global one.
    """
    drawn: list[int] = [2 ** (1 + int(sample_integers(4, 1, generator))), *x.shape[2:]]
    return min(drawn)


def check_images(x: Tensor, method: str) -> None:
    """Refuse what are no images.

    Args:
        x: What is to be mixed.
        method: Name of the method, for the sentence.

    Raises:
        ValueError: If the shape is not ``(N, C, H, W)``.
    """
    if x.dim() != 4:
        raise ValueError(
            f"Inputs of shape {tuple(x.shape)} are no images: {method} takes (N, C, H, W), whose pixels"
            " have neighbours in two dimensions. Take FMix or CutMix for others."
        )


def check_blocks(block_num: int | None, x: Tensor) -> None:
    """Refuse a number of blocks in each dimension that images do not have.

    Args:
        block_num: What was given; None: it is drawn.
        x: Images, shape ``(N, C, H, W)``.

    Raises:
        ValueError: With what was found and what was expected.
    """
    most = min(x.shape[2:])
    if block_num is not None and (
        isinstance(block_num, bool) or not isinstance(block_num, int) or not 1 <= block_num <= most
    ):
        raise ValueError(
            f"block_num={block_num!r} is out of range: images of {x.size(2)} by {x.size(3)} pixels have from"
            f" 1 to {most} blocks in each dimension."
        )


def check_saliency(saliency: Tensor, x: Tensor) -> None:
    """Refuse a saliency that is not one of these images.

    Args:
        saliency: What was given.
        x: Images, shape ``(N, C, H, W)``.

    Raises:
        ValueError: If the shape is not ``(N, H, W)``, or the dtype no floating point.
    """
    if saliency.shape != (len(x), *x.shape[2:]) or not saliency.is_floating_point():
        raise ValueError(
            f"saliency of shape {tuple(saliency.shape)} and {saliency.dtype} does not fit inputs of shape"
            f" {tuple(x.shape)}: it must be floating point, (N, H, W)."
        )
