"""LaMix: average samples, learn a part of their labels (Guo, Bypassing the Random Input Mixing in Mixup)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn
from typing_extensions import Unpack, override

from lightning_msda.callback import MSDA, CommonArgs
from lightning_msda.methods.puzzlemix import PuzzleMix
from lightning_msda.mixture import Mixture
from lightning_msda.ops import check_interpolable, interpolate, to_device, weight_dtype
from lightning_msda.randomness import Step, sample_partners, sample_uniform
from lightning_msda.schedule import Schedule, check_share, value_at
from lightning_msda.second_head import SecondHead

__all__ = ["LaMix", "lamix"]

Uniform = Literal["uniform"]


def lamix(
    x: Tensor,
    *,
    beta: float = 0.5,
    lam: float | Uniform = "uniform",
    per_sample: bool = False,
    partner: Tensor | None = None,
    generator: Generator | None = None,
) -> Mixture:
    """Average every sample with a partner and leave a part of its label to be learned.

    The inputs are ``(x + x[partner]) / 2`` whatever lam is, and the labels weigh ``beta * lam`` and
    ``beta * (1 - lam)``. What is left, ``1 - beta``, is the weight of the learned label: put it into
    ``Mixture.soft``, for instance ``replace(mix, soft=soft_label(embedding, weight))``.

    Args:
        x: Inputs, floating point, shape ``(N, ...)``.
        beta: Weight of the sources' labels, in [0, 1].
        lam: Share of the own label among them, in [0, 1], or drawn from the uniform law.
        per_sample: Whether to draw lam for each sample.
        partner: Partner of each sample, int64 on the CPU, shape ``(N,)``; None: a random permutation.
        generator: Source of randomness, on the CPU; None: the global one.

    Returns:
        The mixed inputs, of the shape, dtype and device of ``x``, with partners and weights.

    Raises:
        ValueError: If ``x`` is not floating point, or ``beta`` or ``lam`` is out of range.

    Example:
        >>> import torch
        >>> mix = lamix(torch.tensor([[0.0], [1.0]]), lam=0.5, partner=torch.tensor([1, 0]))
        >>> mix.inputs.tolist(), mix.weights.tolist()
        ([[0.5], [0.5]], [[0.25, 0.25], [0.25, 0.25]])
    """
    check_share("beta", beta)
    check_interpolable(x, "LaMix")
    if partner is None:
        partner = sample_partners(len(x), generator)
    shares = _local_shares(lam, len(x) if per_sample else 1, generator).to(weight_dtype(x))
    partner, shares = to_device(x.device, partner, shares)
    half = torch.full((1,), 0.5, dtype=shares.dtype, device=x.device)
    mixed = replace(Mixture.of_pairs(interpolate(x, partner, half), partner, shares), shares=half.expand(2))
    return replace(mixed, weights=beta * mixed.weights)


class LaMix(MSDA):
    """Averages samples, and learns a part of their labels beside the network.

    The paper is openreview.net/forum?id=mLtPtH2SIHX. A second head, of the form of the network's last
    linear layer, sees the same embedding ``s`` and gives ``p = softmax(sigmoid(W s))``. The loss is the
    cross-entropy with ``beta * (lam * own + (1 - lam) * partner) + (1 - beta) * p``, by whose gradient the
    second head learns. Mixed batches take turns with clean ones, labelled ``beta * own + (1 - beta) * p``.

    The second head belongs to this callback; the module and its checkpoints do not know of it. Its
    parameters join the last group of the module's last optimizer while a fit runs. The step must compute its
    loss by torch's cross-entropy, ``F.cross_entropy``, ``F.nll_loss`` or their modules.

    Args:
        beta: Weight of the sources' labels, in [0, 1]; or values by the epoch that they begin with.
        lam: Share of the own label among them: ``uniform`` draws it for each batch, a number in [0, 1]
            fixes it. What is shown does not depend on it.
        classifier: Name of the module's last linear layer. Default: the last ``nn.Linear`` that is found.
        base: How samples are mixed: ``average``; ``puzzlemix``, by Puzzle Mix at lam 1/2 with its
            defaults; or a `PuzzleMix`.
        clean: Whether mixed batches take turns with clean ones; without, the paper is about 6 % worse on
            CIFAR-100.
        common: What every method takes, see `CommonArgs`, but for ``at``, ``dims`` and ``criterion``.

    Raises:
        ValueError: If an argument is out of range, or has no meaning here.

    Example:
        >>> callback = LaMix(beta=0.5)  # Trainer(callbacks=[callback])
    """

    needs_partner = False  # every batch has a part of its label to learn

    def __init__(
        self,
        beta: Schedule = 0.5,
        lam: float | Uniform = "uniform",
        classifier: str | None = None,
        base: Literal["average", "puzzlemix"] | PuzzleMix = "average",
        clean: bool = True,
        **common: Unpack[CommonArgs],
    ) -> None:
        super().__init__(**common)
        self._leave_out("at", "dims", because="shows whole samples, and learns from the last layer's input")
        self._leave_out("criterion", because="learns a part of cross-entropy's target")
        check_share("beta", beta)
        _local_shares(lam, 1, None)
        if base not in ("average", "puzzlemix") and not isinstance(base, PuzzleMix):
            raise ValueError(
                f"base={base!r} is unknown: it must be 'average', 'puzzlemix' or PuzzleMix(...)."
            )
        self.beta = beta
        self.lam = lam
        self.classifier = classifier
        self.base = base
        self.clean = clean
        self._head = SecondHead(classifier)
        self._puzzle: PuzzleMix | None = None
        if base != "average":
            self._puzzle = copy.copy(base) if isinstance(base, PuzzleMix) else PuzzleMix()
            self._puzzle.lam, self._puzzle.pair = 0.5, self.pair
        self._is_clean = False
        self._clean = copy.copy(self)
        self._clean._is_clean = True

    @override
    def choose(self, step: Step, draws: Generator) -> MSDA | None:
        chosen = super().choose(step, draws)
        return self._clean if self.clean and chosen is self and step.ordinal % 2 == 1 else chosen

    @override
    def look(
        self,
        step: Step,
        x: Tensor,
        labels: Any,
        module: nn.Module,
        context: Callable[[], AbstractContextManager[Any]],
    ) -> Step:
        if self._is_clean:
            return step
        if self._puzzle is not None:
            return self._puzzle.look(step, x, labels, module, context)
        return super().look(step, x, labels, module, context)

    @override
    def mix(self, x: Tensor, step: Step) -> Mixture:
        beta, labels = value_at(self.beta, step.epoch), step.generator("labels")
        if self._is_clean:
            clean = Mixture.untouched(x)
            return replace(clean, weights=beta * clean.weights.to(weight_dtype(x)))
        if self._puzzle is None:
            return lamix(
                x,
                beta=beta,
                lam=self.lam,
                per_sample=self.per_sample,
                partner=step.partners(len(x)),
                generator=labels,
            )
        shown = self._puzzle.mix(x, step)
        drawn = _local_shares(self.lam, len(x) if self.per_sample else 1, labels)
        (shares,) = to_device(x.device, drawn.to(weight_dtype(x)))
        weights = Mixture.of_pairs(shown.inputs, shown.partner, shares).weights
        return replace(shown, weights=beta * weights, per_sample=self.per_sample)


def _local_shares(lam: float | Uniform, n: int, generator: Generator | None) -> Tensor:
    """Return the own label's share among the sources', float64, shape ``(n,)``."""
    if lam == "uniform":
        return sample_uniform(0, 1, n, generator)
    if isinstance(lam, str):
        raise ValueError(f"lam={lam!r} is unknown: it must be 'uniform' or a number from 0 to 1.")
    check_share("lam", lam)
    return torch.full((n,), lam, dtype=torch.float64)
