"""Values that change by epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeVar

__all__ = ["Schedule", "check_positive", "check_schedule", "check_share", "check_weight", "value_at"]

T = TypeVar("T")

Schedule = float | dict[int, float]


def value_at(schedule: T | Mapping[int, T], epoch: int) -> T:
    """Return the value of an epoch: that of the last key reached.

    Args:
        schedule: One value for all epochs, or values by the epoch that they begin with.
        epoch: The epoch, from 0.
    """
    if not isinstance(schedule, Mapping):
        return schedule
    return schedule[max(start for start in schedule if start <= epoch)]


def check_schedule(name: str, schedule: T | Mapping[int, T], valid: Callable[[T], bool], wanted: str) -> None:
    """Refuse a schedule that does not begin with epoch 0 or has a value outside of its range.

    Args:
        name: Name of the argument.
        schedule: What was given for it.
        valid: Whether a value may stand in it.
        wanted: The range in words.

    Raises:
        ValueError: With what was found and what was expected.
    """
    if isinstance(schedule, Mapping) and 0 not in schedule:
        raise ValueError(
            f"{name}={dict(schedule)} has no value for the first epochs. Begin with epoch 0, for instance"
            f" {name}={{0: ..., 100: ...}}."
        )
    if isinstance(schedule, Mapping) and not all(isinstance(e, int) and e >= 0 for e in schedule):
        raise ValueError(f"{name}={dict(schedule)} must have epochs for keys, whole numbers from 0.")
    for value in schedule.values() if isinstance(schedule, Mapping) else (schedule,):
        try:
            kept = valid(value)
        except TypeError:  # no number at all
            kept = False
        if not kept:
            raise ValueError(f"{name}={value!r} is out of range: it must be {wanted}.")


def check_positive(name: str, schedule: Schedule) -> None:
    """Refuse a schedule with a value that is not above 0.

    Args:
        name: Name of the argument.
        schedule: What was given for it.

    Raises:
        ValueError: With what was found and what was expected.
    """
    check_schedule(name, schedule, lambda value: 0 < value < math.inf, "a finite number above 0")


def check_weight(name: str, weight: float) -> None:
    """Refuse a weight that is not a finite number from 0.

    Args:
        name: Name of the argument.
        weight: What was given for it.

    Raises:
        ValueError: With what was found and what was expected.
    """
    check_schedule(name, weight, lambda value: 0 <= value < math.inf, "a finite number, at least 0")


def check_share(name: str, schedule: Schedule) -> None:
    """Refuse a schedule with a value outside of [0, 1].

    Args:
        name: Name of the argument.
        schedule: What was given for it.

    Raises:
        ValueError: With what was found and what was expected.
    """
    check_schedule(name, schedule, lambda value: 0 <= value <= 1, "a number from 0 to 1")
