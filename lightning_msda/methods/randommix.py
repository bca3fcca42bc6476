"""RandomMix: another method for every batch (Liu et al., 2022, arXiv:2205.08728)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from torch import Generator, Tensor
from typing_extensions import Unpack, override

from lightning_msda.callback import MSDA, CommonArgs
from lightning_msda.methods.cutmix import CutMix
from lightning_msda.methods.fmix import FMix
from lightning_msda.methods.mixup import MixUp
from lightning_msda.methods.resizemix import ResizeMix
from lightning_msda.mixture import Mixture
from lightning_msda.randomness import Step, sample_choice
from lightning_msda.schedule import check_schedule, value_at

__all__ = ["RandomMix"]

Weights = Sequence[float]


class RandomMix(MSDA):
    """Mixes every batch by one of several methods (Liu et al., arXiv:2205.08728).

    The candidates' ``prob``, ``per_sample``, ``pair``, ``at``, ``dims`` and epochs are their own; weights
    count among those whose epochs cover the current one. All processes of a distributed run choose alike.

    Args:
        candidates: The methods; by default MixUp, CutMix, ResizeMix and FMix.
        weights: Relative chance of each candidate, or with ``cycle`` how many batches in turn (whole
            numbers); or such lists by the epoch that they begin with. Default: all 1.
        order: ``random`` draws a candidate for every batch, ``cycle`` takes them in turn.
        common: What every method takes, see `CommonArgs`, but for ``per_sample``, ``pair``, ``at`` and
            ``dims``, which are the candidates' own. ``prob`` is the chance that any candidate is asked.

    Raises:
        ValueError: If an argument is out of range, or a candidate sets what belongs to the whole.

    Example:
        >>> callback = RandomMix([MixUp(), CutMix(), FMix()], weights=[3, 1, 1])
    """

    def __init__(
        self,
        candidates: Sequence[MSDA] | None = None,
        weights: Weights | dict[int, Weights] | None = None,
        order: Literal["random", "cycle"] = "random",
        **common: Unpack[CommonArgs],
    ) -> None:
        super().__init__(**common)
        for name, default in {"per_sample": False, "pair": "any", "at": None, "dims": None}.items():
            if getattr(self, name) != default:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is for each candidate to say: give it to those that are"
                    f" to have it, RandomMix([CutMix({name}=...), ...])."
                )
        if candidates is None:
            candidates = [MixUp(), CutMix(), ResizeMix(), FMix()]
        if not candidates:
            raise ValueError("candidates=[] leaves nothing to choose from: give at least one method.")
        for candidate in candidates:
            _check_candidate(candidate)
        if order not in ("random", "cycle"):
            raise ValueError(f"order={order!r} is unknown: it must be 'random' or 'cycle'.")
        weights = [1] * len(candidates) if weights is None else weights
        check_schedule(
            "weights",
            weights,
            lambda given: len(given) == len(candidates) and min(given) >= 0 and 0 < sum(given) < math.inf,
            f"a list of {len(candidates)} numbers from 0, one for each candidate and not all 0",
        )
        if order == "cycle":
            check_schedule(
                "weights",
                weights,
                lambda given: all(weight == int(weight) for weight in given),
                "a list of whole numbers with order='cycle', the batches that each candidate has in turn",
            )
        self.candidates = list(candidates)
        self.weights = weights
        self.order = order

    @property
    @override
    def lam_by_sample(self) -> bool:
        return any(candidate.lam_by_sample for candidate in self.candidates)

    @override
    def mix(self, x: Tensor, step: Step) -> Mixture:
        method = self.choose(step, step.policy())
        return Mixture.untouched(x) if method is None else method.mix(x, step)

    @override
    def members(self) -> list[MSDA]:
        return [self, *(member for candidate in self.candidates for member in candidate.members())]

    @override
    def choose(self, step: Step, draws: Generator) -> MSDA | None:
        weights = [
            weight * candidate.covers(step)
            for candidate, weight in zip(self.candidates, value_at(self.weights, step.epoch), strict=True)
        ]
        if super().choose(step, draws) is None or not any(weights):
            return None
        if self.order == "random":
            return self.candidates[sample_choice(weights, draws)].choose(step, draws)
        turns = [c for c, weight in zip(self.candidates, weights, strict=True) for _ in range(int(weight))]
        rounds, turn = divmod(step.ordinal, len(turns))
        candidate = turns[turn]
        earlier = rounds * turns.count(candidate) + turns[:turn].count(candidate)
        return candidate.choose(replace(step, ordinal=earlier), draws)  # a cycle in a cycle has its own turns


def _check_candidate(candidate: MSDA) -> None:
    """Refuse a candidate that says what is for the outermost callback to say."""
    for name in ("criterion", "input_key", "target_key", "target", "seed"):
        if getattr(candidate, name) is not None:
            raise ValueError(
                f"The candidate {type(candidate).__name__} sets {name}={getattr(candidate, name)!r}, which"
                f" holds for all candidates: give it to RandomMix({name}=...)."
            )
