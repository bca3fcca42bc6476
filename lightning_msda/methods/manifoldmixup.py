"""Manifold Mixup: interpolate hidden features (Verma et al., ICML 2019, arXiv:1806.05236)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from typing_extensions import Unpack, override

from lightning_msda.callback import CommonArgs
from lightning_msda.drawn_layer import AtDrawnLayer
from lightning_msda.methods.mixup import mixup
from lightning_msda.mixture import Mixture
from lightning_msda.randomness import Step
from lightning_msda.schedule import Schedule, check_positive, value_at

__all__ = ["ManifoldMixup"]


class ManifoldMixup(AtDrawnLayer):
    """Interpolates the input or hidden features, at another layer for every batch (Verma et al., 1806.05236).

    Args:
        layers: Names of the layers whose outputs may be mixed, each as likely; ``input`` stands for the
            inputs. Default: the input and the first two stages that are found, as published.
        alpha: Concentration of the ``Beta(alpha, alpha)`` law of lam, above 0, 2 in the paper's recipes; or
            values by the epoch that they begin with.
        common: What every method takes, see `CommonArgs`, but for ``at`` and ``dims``.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> callback = ManifoldMixup(["input", "backbone.layer1"])  # Trainer(callbacks=[callback])
    """

    def __init__(
        self, layers: Sequence[str] | None = None, alpha: Schedule = 2.0, **common: Unpack[CommonArgs]
    ) -> None:
        check_positive("alpha", alpha)
        self.alpha = alpha
        super().__init__(layers, **common)
        self._leave_out("dims", because="interpolates whole samples")

    @override
    def mix(self, x: Tensor, step: Step) -> Mixture:
        return mixup(
            x,
            alpha=value_at(self.alpha, step.epoch),
            per_sample=self.per_sample,
            partner=step.partners(len(x)),
            generator=step.generator(),
        )
