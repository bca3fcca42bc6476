"""SamplePairing: average samples and keep the own label (Inoue, 2018, arXiv:1801.02929)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Generator, Tensor
from typing_extensions import Unpack, override

from lightning_msda.callback import MSDA, CommonArgs
from lightning_msda.mixture import Mixture
from lightning_msda.ops import check_interpolable, interpolate, to_device, weight_dtype
from lightning_msda.randomness import Step, sample_partners

__all__ = ["SamplePairing", "samplepairing"]


def samplepairing(x: Tensor, *, partner: Tensor | None = None, generator: Generator | None = None) -> Mixture:
    """Average every sample with a partner, ``(x + x[partner]) / 2``, and keep its label.

    Args:
        x: Inputs, floating point, shape ``(N, ...)``.
        partner: Partner of each sample, int64 on the CPU, shape ``(N,)``; None: a random permutation.
        generator: Source of randomness, on the CPU; None: the global one.

    Returns:
        The mixed inputs, of the shape, dtype and device of ``x``, with partners; lam is 1.

    Raises:
        ValueError: If ``x`` is not floating point.

    Example:
        >>> import torch
        >>> mix = samplepairing(torch.tensor([[0.0], [1.0]]), partner=torch.tensor([1, 0]))
        >>> mix.inputs.tolist(), mix.lam.tolist()
        ([[0.5], [0.5]], [1.0, 1.0])
    """
    check_interpolable(x, "SamplePairing")
    if partner is None:
        partner = sample_partners(len(x), generator)
    (partner,) = to_device(x.device, partner)
    half, one = (torch.full((1,), share, dtype=weight_dtype(x), device=x.device) for share in (0.5, 1))
    mixed = Mixture.of_pairs(interpolate(x, partner, half), partner, one)
    return replace(mixed, shares=half.expand(2))


class SamplePairing(MSDA):
    """Averages every sample with a partner and keeps its label (Inoue, arXiv:1801.02929).

    From ``start_epoch`` on it mixes for ``epochs_on`` epochs and pauses for ``epochs_off``, in turn, until
    ``stop_epoch``. The paper mixes from epoch 100 to epoch 800 of 1000.

    Args:
        epochs_on: Epochs in a row that are mixed, from 1.
        epochs_off: Epochs after them that are not, from 0.
        common: What every method takes, see `CommonArgs`, but for ``per_sample`` and ``dims``.

    Raises:
        ValueError: If an argument is out of range, or has no meaning here.

    Example:
        >>> callback = SamplePairing(start_epoch=100, stop_epoch=800)  # Trainer(callbacks=[callback])
    """

    def __init__(self, epochs_on: int = 8, epochs_off: int = 2, **common: Unpack[CommonArgs]) -> None:
        super().__init__(**common)
        self._leave_out("per_sample", "dims", because="averages whole samples and draws no lam")
        for name, number, least in (("epochs_on", epochs_on, 1), ("epochs_off", epochs_off, 0)):
            if not isinstance(number, int) or number < least:
                raise ValueError(
                    f"{name}={number!r} is out of range: it must be a whole number from {least}."
                )
        self.epochs_on = epochs_on
        self.epochs_off = epochs_off

    @override
    def covers(self, step: Step) -> bool:
        period = self.epochs_on + self.epochs_off
        return super().covers(step) and (step.epoch - self.start_epoch) % period < self.epochs_on

    @override
    def mix(self, x: Tensor, step: Step) -> Mixture:
        return samplepairing(x, partner=step.partners(len(x)))
