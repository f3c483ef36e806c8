"""What blind behaviour at the same rate would have got: the controls beside every backchannel figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rewards.compat.heard import Span

DRAWS = 32
PHASES = 16
_SEED = 20250306


def random_placements(given: Sequence[Span], seconds: float) -> list[list[Span]]:
    """The same stretches at uniform random times: 32 draws from a fixed seed. One empty draw if there are none."""
    if not given:
        return [[]]
    rng = np.random.default_rng([_SEED, len(given)])
    room = [max(0.0, seconds - span.seconds) for span in given]
    draws = (rng.random((DRAWS, len(given))) * room).tolist()
    return [[Span(at, at + span.seconds) for at, span in zip(draw, given, strict=True)] for draw in draws]


def metronome(given: Sequence[Span], seconds: float) -> list[list[Span]]:
    """The same stretches evenly spaced, in 16 phases. One empty placement if there are none."""
    if not given:
        return [[]]
    step = seconds / len(given)
    placements = []
    for phase in range(PHASES):
        onsets = [(index + (phase + 0.5) / PHASES) * step for index in range(len(given))]
        placements.append([Span(at, at + span.seconds) for at, span in zip(onsets, given, strict=True)])
    return placements


def anywhere(spans: Sequence[Span], busy: Sequence[Span], judge: Callable[[float], float], step: float) -> float | None:
    """Mean of `judge` over moments at which the agent speaks and the user does nothing: what no event at all gives.

    Args:
        spans: where the agent speaks.
        busy: where the user speaks, which is left out.
        judge: takes a moment in seconds.
        step: seconds between moments.

    Returns:
        None when there is no such moment.
    """
    moments = [
        at
        for span in spans
        for at in np.arange(span.onset, span.offset - 1e-9, step).tolist()
        if not any(other.onset <= at < other.offset for other in busy)
    ]
    return float(np.mean([judge(at) for at in moments])) if moments else None
