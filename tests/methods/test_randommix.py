"""RandomMix: which candidate mixes which batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from lightning_msda.callback import MSDA
from lightning_msda.methods import CutMix, FMix, MixUp, RandomMix, ResizeMix
from lightning_msda.randomness import Step
from tests.helpers import assert_frequencies, assert_same_mix, seeded

N = 8000


def letters(method: MSDA, n: int, *, epoch: int = 0, max_epochs: int = -1, rank: int = 0) -> str:
    """Return the first letter of the method that mixes each of ``n`` batches, a dot where none does."""
    chosen = []
    for ordinal in range(n):
        step = Step(seed=5, ordinal=ordinal, epoch=epoch, max_epochs=max_epochs, rank=rank)
        candidate = method.choose(step, step.policy())
        chosen.append("." if candidate is None else type(candidate).__name__[0])
    return "".join(chosen)


def assert_chances(method: MSDA, chances: dict[str, float], **place: int) -> None:
    """Hold the methods of many batches against their chances."""
    counts = Counter(letters(method, N, **place))
    assert set(counts) <= set(chances)
    assert_frequencies([counts[letter] for letter in chances], list(chances.values()))


def test_the_default_are_the_four_methods_of_the_paper_with_equal_chances() -> None:
    assert_chances(RandomMix(), {"M": 0.25, "C": 0.25, "R": 0.25, "F": 0.25})


def test_candidates_are_chosen_as_often_as_their_weights_say() -> None:
    method = RandomMix([MixUp(), CutMix(), ResizeMix(), FMix()], weights=[3, 1, 1, 1])
    assert_chances(method, {"M": 3 / 6, "C": 1 / 6, "R": 1 / 6, "F": 1 / 6})


def test_a_weight_of_0_leaves_a_candidate_out() -> None:
    assert_chances(RandomMix([MixUp(), CutMix(), FMix()], weights=[0.5, 0, 1.5]), {"M": 0.25, "F": 0.75})


def test_choices_of_consecutive_batches_are_independent() -> None:
    chosen = letters(RandomMix([MixUp(), CutMix()], weights=[1, 2]), N)
    pairs = Counter(a + b for a, b in zip(chosen[::2], chosen[1::2], strict=True))
    assert_frequencies([pairs[pair] for pair in ("MM", "MC", "CM", "CC")], [1 / 9, 2 / 9, 2 / 9, 4 / 9])


def test_a_cycle_takes_the_candidates_in_order() -> None:
    assert letters(RandomMix(order="cycle"), 9) == "MCRFMCRFM"


def test_a_cycle_repeats_each_candidate_by_its_weight() -> None:
    method = RandomMix([MixUp(), CutMix(), FMix()], weights=[2, 0, 3], order="cycle")
    assert letters(method, 12) == "MMFFFMMFFFMM"


@pytest.mark.parametrize("order", ["random", "cycle"])
def test_weights_change_by_epoch(order: Any) -> None:
    method = RandomMix([MixUp(), CutMix()], weights={0: [1, 0], 2: [3, 1], 5: [0, 1]}, order=order)
    assert set(letters(method, 20, epoch=1)) == {"M"}
    assert_chances(method, {"M": 3 / 4, "C": 1 / 4}, epoch=2)
    assert_chances(method, {"M": 3 / 4, "C": 1 / 4}, epoch=4)
    assert set(letters(method, 20, epoch=5)) == {"C"}


def test_weights_count_among_the_candidates_whose_epochs_cover_the_current_one() -> None:
    method = RandomMix(
        [MixUp(), CutMix(start_epoch=2), FMix(stop_epoch=4), ResizeMix(stop_epoch=-3)], weights=[1, 2, 3, 4]
    )
    expected = {
        0: {"M": 1 / 8, "F": 3 / 8, "R": 4 / 8},
        2: {"M": 1 / 10, "C": 2 / 10, "F": 3 / 10, "R": 4 / 10},
        4: {"M": 1 / 7, "C": 2 / 7, "R": 4 / 7},
        7: {"M": 1 / 3, "C": 2 / 3},
    }
    for epoch, chances in expected.items():
        assert_chances(method, chances, epoch=epoch, max_epochs=10)


def test_a_negative_stop_counts_from_the_end_of_training() -> None:
    method = RandomMix([MixUp(), CutMix(stop_epoch=-2)], weights=[0, 1])
    assert [letters(method, 1, epoch=epoch, max_epochs=5) for epoch in range(5)] == ["C", "C", "C", ".", "."]


def test_a_cycle_skips_the_candidates_whose_epochs_do_not_cover_the_current_one() -> None:
    method = RandomMix([MixUp(), CutMix(start_epoch=1), FMix(stop_epoch=1)], order="cycle")
    assert letters(method, 6, epoch=0) == "MFMFMF"
    assert letters(method, 6, epoch=1) == "MCMCMC"


def test_the_epochs_of_the_whole_hold_for_all_candidates() -> None:
    method = RandomMix(start_epoch=2, stop_epoch=-1, order="cycle")
    clean = [letters(method, 4, epoch=epoch, max_epochs=5) == "...." for epoch in range(5)]
    assert clean == [True, True, False, False, True]


def test_prob_is_the_chance_that_any_candidate_is_asked() -> None:
    method = RandomMix([MixUp(), CutMix()], weights=[3, 1], prob=0.4)
    assert_chances(method, {".": 0.6, "M": 0.3, "C": 0.1})


def test_prob_changes_by_epoch() -> None:
    method = RandomMix([MixUp()], prob={0: 0.0, 3: 1.0})
    assert letters(method, 5, epoch=2) == "....."
    assert letters(method, 5, epoch=3) == "MMMMM"


def test_the_prob_of_a_candidate_is_its_own() -> None:
    method = RandomMix([MixUp(prob=0.2), CutMix()], prob=0.5)
    assert_chances(method, {".": 0.5 + 0.25 * 0.8, "M": 0.25 * 0.2, "C": 0.25})


def test_a_candidate_may_be_a_randommix_itself() -> None:
    inner = RandomMix([CutMix(), ResizeMix()], weights=[1, 3], prob=0.5)
    method = RandomMix([MixUp(), inner, FMix()], weights=[1, 2, 1])
    assert_chances(method, {"M": 1 / 4, ".": 1 / 4, "C": 1 / 16, "R": 3 / 16, "F": 1 / 4})
    assert [type(member).__name__ for member in method.members()] == [
        "RandomMix",
        "MixUp",
        "RandomMix",
        "CutMix",
        "ResizeMix",
        "FMix",
    ]


@pytest.mark.parametrize(
    ("weights", "inner_weights", "expected"),
    [
        ([1, 1], [1, 1], "MCMRMCMR"),
        ([1, 1], [2, 1], "MCMCMRMCMCMR"),
        ([1, 2], [1, 1], "MCRMCR"),
        ([2, 1], [1, 1], "MMCMMR"),
    ],
)
def test_a_cycle_inside_a_cycle_takes_its_own_candidates_in_turn(
    weights: list[int], inner_weights: list[int], expected: str
) -> None:
    inner = RandomMix([CutMix(), ResizeMix()], weights=inner_weights, order="cycle")
    assert letters(RandomMix([MixUp(), inner], weights=weights, order="cycle"), len(expected)) == expected


@pytest.mark.parametrize("order", ["random", "cycle"])
def test_all_processes_choose_alike(order: Any) -> None:
    method = RandomMix([MixUp(prob=0.5), RandomMix([CutMix(), FMix()]), ResizeMix()], prob=0.8, order=order)
    chosen = letters(method, 200)
    assert len(set(chosen)) == 5
    assert letters(method, 200, rank=3) == chosen


def test_the_chosen_candidate_mixes_the_batch() -> None:
    x = torch.randn(6, 3, 8, 8, generator=seeded())
    candidates = [MixUp(alpha=0.3), CutMix(dims=[3]), FMix(per_sample=True), ResizeMix((0.2, 0.4))]
    method = RandomMix(candidates, order="cycle")
    for ordinal in range(8):
        step = Step(seed=1, ordinal=ordinal, rank=2)
        assert_same_mix(method.mix(x, step), candidates[ordinal % 4].mix(x, step))


def test_a_batch_that_no_candidate_mixes_is_untouched() -> None:
    x = torch.randn(6, 3, 8, 8, generator=seeded())
    mix = RandomMix(prob=0.0).mix(x, Step(seed=1, ordinal=0))
    assert torch.equal(mix.inputs, x)
    assert mix.lam.tolist() == [1.0] * 6
    assert mix.partner.tolist() == list(range(6))


@pytest.mark.parametrize(
    ("candidates", "arguments", "message"),
    [
        ([], {}, r"candidates=\[\] leaves nothing to choose from"),
        (
            [MixUp(), CutMix()],
            {"weights": [1]},
            r"weights=\[1\] is out of range: it must be a list of 2 numbers",
        ),
        ([MixUp(), CutMix()], {"weights": [1, 1, 1]}, r"weights=\[1, 1, 1\] is out of range"),
        ([MixUp(), CutMix()], {"weights": []}, r"weights=\[\] is out of range"),
        ([MixUp(), CutMix()], {"weights": [1, -1]}, r"weights=\[1, -1\] is out of range"),
        ([MixUp(), CutMix()], {"weights": [0, 0]}, r"weights=\[0, 0\] is out of range"),
        ([MixUp(), CutMix()], {"weights": [1, float("inf")]}, r"weights=\[1, inf\] is out of range"),
        ([MixUp(), CutMix()], {"weights": [1, float("nan")]}, r"weights=\[1, nan\] is out of range"),
        ([MixUp(), CutMix()], {"weights": {0: [1, 1], 3: [1]}}, r"weights=\[1\] is out of range"),
        ([MixUp(), CutMix()], {"weights": {3: [1, 1]}}, "has no value for the first epochs"),
        (
            [MixUp(), CutMix()],
            {"weights": [1, 0.5], "order": "cycle"},
            r"weights=\[1, 0\.5\].* whole numbers",
        ),
        (
            [MixUp(), CutMix()],
            {"weights": {0: [1, 1], 3: [1, 1.5]}, "order": "cycle"},
            r"weights=\[1, 1\.5\].* whole numbers",
        ),
        ([MixUp()], {"order": "shuffle"}, "order='shuffle' is unknown: it must be 'random' or 'cycle'"),
        ([MixUp(seed=1)], {}, "The candidate MixUp sets seed=1, which holds for all candidates"),
        ([MixUp(), CutMix(criterion="loss")], {}, "The candidate CutMix sets criterion='loss'"),
        ([FMix(input_key="image")], {}, "The candidate FMix sets input_key='image'"),
        ([FMix(target_key=False)], {}, "The candidate FMix sets target_key=False"),
        ([FMix(target="value")], {}, "The candidate FMix sets target='value'"),
        ([MixUp(), RandomMix(seed=0)], {}, "The candidate RandomMix sets seed=0"),
    ],
)
def test_arguments_out_of_range_are_refused(
    candidates: Sequence[MSDA], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        RandomMix(candidates, **arguments)
