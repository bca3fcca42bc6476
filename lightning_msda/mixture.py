"""What mixing makes of a batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, reduce

import torch
from torch import Tensor

from lightning_msda.blending import blend
from lightning_msda.ops import along, select, take_source, to_device

__all__ = ["Mixture"]


@dataclass(frozen=True)
class Mixture:
    """A mixed batch, and how much of what went into each of its samples.

    Convention: every sample is the *own* sample of its place in the batch, mixed with ``k - 1`` partners.
    ``lam``, the first column of ``weights``, is the weight of the own label; where a mask was used it is
    the mean of that mask, as measured.

    Attributes:
        inputs: The mixed inputs, shape, dtype and device of what was given, ``(N, ...)``.
        partners: The other samples that went into each sample, int64, shape ``(N, k - 1)``.
        weights: Weight of the label of each source, own first, shape ``(N, k)``. Rows sum to 1, or to less
            by the weight of the soft label.
        mask: Own share of every element, bool or float, broadcast against ``inputs``; None where whole
            samples are interpolated.
        dims: The dimensions that the mask runs over.
        source: Where in the partner each position looks, by dimension, shape ``(N, size)``; None: at the
            same position.
        shares: Share of each source in what is interpolated, shape ``(k,)``; None: that of its label.
        fill: What is shown where the mask is 0, in the place of a partner; None: a partner is. Labels, dense
            ones too, are then left as they are.
        soft: A label that is learned, probabilities of shape ``(N, K)``; None: there is none.
        per_sample: Whether each sample has a lam of its own; otherwise all rows of weights are equal.
    """

    inputs: Tensor
    partners: Tensor
    weights: Tensor
    mask: Tensor | None = None
    dims: tuple[int, ...] = ()
    source: tuple[Tensor, ...] | None = None
    shares: Tensor | None = None
    fill: float | None = None
    soft: Tensor | None = None
    per_sample: bool = False

    @property
    def lam(self) -> Tensor:
        """Weight of the own label, shape ``(N,)``."""
        return self.weights[:, 0]

    @property
    def partner(self) -> Tensor:
        """First partner of each sample, shape ``(N,)``."""
        return self.partners[:, 0]

    @property
    def selects(self) -> bool:
        """Whether every element comes from one source alone, by a hard mask."""
        return self.mask is not None and not self.mask.is_floating_point()

    @cached_property
    def label_weights(self) -> Tensor:
        """Weights of the labels' worlds, shape ``(k,)``, or ``(N, k)`` by sample; the soft label's last."""
        weights = self.weights if self.per_sample else self.weights[0]
        if self.soft is None:
            return weights
        return torch.cat([weights, 1 - weights.sum(-1, keepdim=True)], -1)

    @classmethod
    def of_pairs(
        cls,
        inputs: Tensor,
        partner: Tensor,
        lam: Tensor,
        *,
        mask: Tensor | None = None,
        dims: tuple[int, ...] = (),
        source: tuple[Tensor, ...] | None = None,
    ) -> Mixture:
        """Describe a mix of pairs.

        Args:
            inputs: The mixed inputs, shape ``(N, ...)``.
            partner: Partner of each sample, int64, shape ``(N,)``.
            lam: Weight of the own label, shape ``(N,)``, or ``(1,)`` for one per batch.
            mask: As in the class.
            dims: As in the class.
            source: As in the class.
        """
        weights = torch.stack([lam, 1 - lam], 1).expand(len(inputs), 2)
        per_sample = len(lam) == len(inputs) > 1
        return cls(inputs, partner[:, None], weights, mask, dims, source, per_sample=per_sample)

    @classmethod
    def untouched(cls, inputs: Tensor) -> Mixture:
        """Describe a batch that is not mixed: every sample is its own partner and has lam 1.

        Args:
            inputs: The inputs, shape ``(N, ...)``.
        """
        n, device = len(inputs), inputs.device
        return cls.of_pairs(inputs, torch.arange(n, device=device), torch.ones(1, device=device))

    @classmethod
    def pending(cls, inputs: Tensor, partner: Tensor, *, per_sample: bool) -> tuple[Mixture, Tensor]:
        """Describe a batch that is mixed later, at a hidden layer; its weights are NaN until filled in.

        Args:
            inputs: The inputs, shape ``(N, ...)``.
            partner: Partner of each sample, int64, shape ``(N,)``.
            per_sample: Whether each sample has a lam of its own; otherwise all rows share one memory.

        Returns:
            The mixture, and the memory of its weights, shape ``(N, 2)`` or ``(1, 2)``.
        """
        n, device = len(inputs), inputs.device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        weights = torch.full((n if per_sample else 1, 2), torch.nan, dtype=dtype, device=device)
        partners = to_device(device, partner)[0][:, None]
        return cls(inputs, partners, weights.expand(n, 2), per_sample=per_sample), weights

    def aligned_dims(self, other: Tensor) -> tuple[int, ...] | None:
        """Return the dimensions of another tensor of the batch that the mask lines up with, if any.

        Args:
            other: Laid out like the inputs, or as ``(N, *spatial)``.
        """
        sizes = [self.inputs.size(dim) for dim in self.dims]
        if self.mask is None or math.prod(sizes) == 1:
            return None
        for dims in (self.dims, tuple(range(1, 1 + len(self.dims)))):
            if other.dim() > dims[-1] and [other.size(dim) for dim in dims] == sizes:
                return dims
        return None

    def sources(self, other: Tensor) -> list[Tensor]:
        """Return another tensor of the batch as each source has it, own first.

        Args:
            other: Shape ``(N, ...)``.
        """
        return [other, *(other.index_select(0, partner) for partner in self.partners.unbind(1))]

    def follow(self, other: Tensor, *, marks: bool = False) -> Tensor:
        """Mix another tensor of the batch as the inputs were mixed.

        Args:
            other: Shape ``(N, ...)``; where there is a mask, with the dimensions that it runs over.
            marks: Whether it says which positions count, as attention masks do. Interpolated samples have
                those that count in any of their sources, and filled positions count as before.

        Raises:
            ValueError: If the mask does not fit, or integers would have to be interpolated.
        """
        if other.dim() == 0 or len(other) != len(self.partners):
            raise ValueError(
                f"The inputs have {len(self.partners)} samples, but another input has shape"
                f" {tuple(other.shape)}. Leave it out of input_key."
            )
        if not self.selects and not other.is_floating_point():
            if marks:
                return reduce(torch.maximum, self.sources(other))
            raise ValueError(
                f"The inputs were interpolated, which {other.dtype} of shape {tuple(other.shape)} cannot"
                " follow. Use a method with a hard mask, CutMix or FMix with max_soft=0; or leave this tensor"
                " out of input_key. (Of booleans, and of fields with 'mask' in their names, the union is"
                " taken.)"
            )
        if self.mask is None:
            return blend(self.sources(other), self.label_weights if self.shares is None else self.shares)
        if self.fill is not None and marks:
            return other.clone()
        if (dims := self.aligned_dims(other)) is None:
            raise ValueError(
                f"The mask runs over dimensions {self.dims} of inputs {tuple(self.inputs.shape)} and does not"
                f" fit {tuple(other.shape)}. Leave it out of input_key, or lay it out like the inputs."
            )
        own, shown = self.sources(other)
        if self.fill is not None:
            shown = torch.full_like(other, self.fill)
        elif self.source is not None:
            shown = take_source(shown, self.source, dims)
        sizes = [self.inputs.size(dim) for dim in self.dims]
        return select(own, shown, along(self.mask.reshape(-1, *sizes), dims, other.dim()))
