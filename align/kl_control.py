"""The adaptive KL coefficient of arXiv 1909.08593 (§2.2), as the field has used it since."""

from __future__ import annotations

import math

ERROR_BOUND = 0.2


def adapted(beta: float, kl: float, target: float, conversations: int, horizon: int) -> float:
    """The coefficient for the next iteration: larger where the KL was above its target, smaller where below.

    The relative error counts as at most a fifth either way, so that one odd iteration moves little.

    Args:
        kl, target: nats a frame, in the last iteration and wanted. A KL that is not a number, of an iteration in which
            nothing was learned, changes nothing.
        conversations: played in it.
        horizon: conversations after which a lasting error of a fifth has changed `beta` by about a fifth.
    """
    if math.isnan(kl):
        return beta
    error = min(max(kl / target - 1.0, -ERROR_BOUND), ERROR_BOUND)
    return beta * (1.0 + error * conversations / horizon)
