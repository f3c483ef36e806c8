"""Matching backchannels to opportunities, and what placing them blindly would have got."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

MATCH_SECONDS = 1.0
"""A backchannel matches an opportunity within this much either way (arXiv 2606.11167)."""
_DRAWS = 256
_PHASES = 64
_SEED = 20260609


def matches(
    predicted: Sequence[float], wanted: Sequence[float], tolerance: float = MATCH_SECONDS
) -> list[tuple[float, float]]:
    """The largest one-to-one matching of two sets of times with |difference| <= tolerance, as pairs in order.

    Both sorted, the earliest that can match does: with one tolerance for all, no other order matches more.
    """
    a, b = sorted(predicted), sorted(wanted)
    pairs: list[tuple[float, float]] = []
    i = j = 0
    while i < len(a) and j < len(b):
        if abs(a[i] - b[j]) <= tolerance + 1e-9:
            pairs.append((a[i], b[j]))
            i, j = i + 1, j + 1
        elif a[i] < b[j]:
            i += 1
        else:
            j += 1
    return pairs


def match_one_to_one(predicted: Sequence[float], wanted: Sequence[float], tolerance: float = MATCH_SECONDS) -> int:
    """How many pairs `matches` finds."""
    return len(matches(predicted, wanted, tolerance))


@lru_cache(maxsize=65536)
def random_hits(count: int, wanted: tuple[float, ...], length: float, tolerance: float = MATCH_SECONDS) -> float:
    """Expected matches of `count` times drawn uniformly from [0, length): 256 draws from a fixed seed."""
    if not count or not wanted:
        return 0.0
    rng = np.random.default_rng([_SEED, count, len(wanted)])
    draws = rng.random((_DRAWS, count)) * length
    return float(np.mean([match_one_to_one(row, wanted, tolerance) for row in draws.tolist()]))


@lru_cache(maxsize=65536)
def metronome_hits(count: int, wanted: tuple[float, ...], length: float, tolerance: float = MATCH_SECONDS) -> float:
    """Expected matches of `count` evenly spaced times, over 64 phases."""
    if not count or not wanted:
        return 0.0
    step = length / count
    phases = (np.arange(_PHASES) + 0.5) / _PHASES
    beats = (np.arange(count)[None, :] + phases[:, None]) * step  # (phases, count)
    return float(np.mean([match_one_to_one(row, wanted, tolerance) for row in beats.tolist()]))


def blind_hits(count: int, wanted: tuple[float, ...], length: float) -> float:
    """Expected matches of the better blind placement at this rate.

    A metronome beats random placement, because its beats never crowd: a null of random times alone would pay for
    saying "yeah" every two seconds.
    """
    return max(random_hits(count, wanted, length), metronome_hits(count, wanted, length))
