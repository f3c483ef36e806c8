"""Weights that change in the course of a run: by iteration, a factor on a term's weight.

    schedules:
      brevity: {0: 0.0, 20: 1.0}        # not at first, fully from iteration 20 on, linear in between

A factor is a function of the iteration alone, so a resumed run meets the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np

from envs.errors import UptakeError, nearest

Schedule = Mapping[int, float]
"""Iteration, counted from 0 -> factor."""


def factor(schedule: Schedule, iteration: int) -> float:
    """What a weight is multiplied by: linear between the named iterations, constant before and after them."""
    points = sorted(schedule.items())
    return float(np.interp(iteration, [at for at, _ in points], [value for _, value in points]))


def check(schedules: Mapping[str, Schedule], terms: Collection[str]) -> None:
    """Refuse what cannot be meant.

    Raises:
        UptakeError: a schedule of a term that has no weight, one without an entry, a negative iteration, or a factor
            that is negative or infinite.
    """
    for name, schedule in schedules.items():
        if name not in terms:
            raise UptakeError(
                f"schedules: {name!r} is no term of `rewards`{nearest(name, terms)}; give it a weight there"
            )
        if not schedule:
            raise UptakeError(f"schedules.{name}: names no iteration; write for instance {{0: 0.0, 20: 1.0}}")
        for at, value in schedule.items():
            if at < 0 or not 0.0 <= value < math.inf:
                raise UptakeError(
                    f"schedules.{name}: {{{at}: {value}}}; give iterations from 0 and factors of 0 or more"
                )
