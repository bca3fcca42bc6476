"""Values by epoch."""

from __future__ import annotations

import math

import pytest

from lightning_msda.schedule import Schedule, check_positive, check_schedule, value_at


def check_chance(schedule: Schedule) -> None:
    check_schedule("chance", schedule, lambda value: 0 <= value <= 1, "from 0 to 1")


def test_a_number_holds_for_all_epochs() -> None:
    assert [value_at(0.3, epoch) for epoch in (0, 1, 1000)] == [0.3] * 3


def test_a_value_holds_from_its_epoch_until_the_next() -> None:
    schedule: str | dict[int, str] = {0: "a", 3: "b", 4: "c", 10: "d"}
    assert "".join(value_at(schedule, epoch) for epoch in range(12)) == "aaabccccccdd"


def test_the_order_of_a_schedule_does_not_matter() -> None:
    schedule: Schedule = {4: 1.0, 0: 2.0, 2: 3.0}
    assert [value_at(schedule, epoch) for epoch in range(6)] == [2, 2, 3, 3, 1, 1]


def test_a_list_is_one_value() -> None:
    schedule: list[int] | dict[int, list[int]] = {0: [3, 1], 5: [1, 1]}
    assert value_at(schedule, 5) == [1, 1]
    assert value_at([3, 1, 1], 7) == [3, 1, 1]


@pytest.mark.parametrize("schedule", [0, 0.5, 1, {0: 0.0}, {0: 1.0, 7: 0.0}, {7: 0.0, 0: 1.0}])
def test_what_is_in_range_is_accepted(schedule: Schedule) -> None:
    check_chance(schedule)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (1.5, r"chance=1\.5 is out of range: it must be from 0 to 1"),
        (math.nan, "chance=nan is out of range"),
        ({0: 1.0, 7: -0.5}, r"chance=-0\.5 is out of range: it must be from 0 to 1"),
        ({1: 0.5}, r"chance=\{1: 0\.5\} has no value for the first epochs"),
        ({}, r"chance=\{\} has no value for the first epochs"),
    ],
)
def test_what_is_out_of_range_is_refused_with_what_was_found(schedule: Schedule, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_chance(schedule)


@pytest.mark.parametrize("schedule", [1e-9, 1, 1e9, {0: 1.0, 3: 0.2}])
def test_what_is_above_0_is_accepted(schedule: Schedule) -> None:
    check_positive("alpha", schedule)


@pytest.mark.parametrize("schedule", [0, -1.0, math.inf, math.nan, {0: 1.0, 3: 0.0}, {3: 1.0}])
def test_what_is_not_a_finite_number_above_0_is_refused(schedule: Schedule) -> None:
    with pytest.raises(ValueError, match="alpha="):
        check_positive("alpha", schedule)
