"""ShakeDrop (Yamada et al., IEEE Access 2019, arXiv:1802.02375)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

__all__ = ["ShakeDrop"]


class ShakeDrop(nn.Module):
    """Multiplies the output of a residual branch by random numbers, others forward than backward.

    With ``b`` 1 with probability ``keep`` and else 0, one for the layer and the batch, and for each sample
    alpha from U(-1, 1) and beta from U(0, 1), the features are multiplied by ``b + alpha - b alpha`` and
    their gradient by ``b + beta - b beta``: both are 1 where ``b`` is. In evaluation the features are
    multiplied by the mean of the former, ``keep``.

    Args:
        keep: Probability that the branch is left as it is.

    Raises:
        ValueError: If the probability is none.
    """

    def __init__(self, keep: float) -> None:
        super().__init__()
        if not 0 <= keep <= 1:
            raise ValueError(f"keep={keep} is out of range: it must be a probability, from 0 to 1.")
        self.keep = keep

    @override
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.keep * x
        shape = [len(x), *[1] * (x.dim() - 1)]
        b = (torch.rand((), device=x.device) < self.keep).to(x.dtype)
        alpha = 2 * torch.rand(shape, dtype=x.dtype, device=x.device) - 1
        beta = torch.rand(shape, dtype=x.dtype, device=x.device)
        scaled: Tensor = _Scale.apply(x, b + (1 - b) * alpha, b + (1 - b) * beta)
        return scaled

    @override
    def extra_repr(self) -> str:
        return f"keep={self.keep}"


class _Scale(torch.autograd.Function):
    """Multiplies by one factor, and the gradient by another."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forwards: Tensor, backwards: Tensor) -> Tensor:
        ctx.save_for_backward(backwards)
        return x * forwards

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (backwards,) = ctx.saved_tensors
        return gradients[0] * backwards, None, None
