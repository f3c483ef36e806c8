"""From inter-pausal units to utterances (arXiv 2606.11167, data extraction)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

Interval = tuple[int, int]
"""[onset, offset) in samples."""
UNIT_GAP_SECONDS = 0.18
"""A silence shorter than this does not split an inter-pausal unit (Heldner & Edlund 2010, Roberts et al. 2015)."""


class Utterance(NamedTuple):
    """Inter-pausal units of one speaker, joined over short silences."""

    onset: int
    offset: int
    speaker: int
    """0 or 1."""
    units: tuple[Interval, ...]

    @property
    def length(self) -> int:
        """Samples from the first sound to the last."""
        return self.offset - self.onset

    @property
    def pauses(self) -> tuple[Interval, ...]:
        """The silences between its units."""
        return tuple((a[1], b[0]) for a, b in pairwise(self.units))


def units(sounds: Iterable[Interval], gap: int) -> list[Interval]:
    """Join one speaker's sounds, in order of their onsets, over silences shorter than `gap` samples."""
    joined: list[Interval] = []
    for onset, offset in sounds:
        if joined and onset - joined[-1][1] < gap:
            joined[-1] = (joined[-1][0], max(joined[-1][1], offset))
        else:
            joined.append((onset, offset))
    return joined


def utterances(units: Sequence[Sequence[Interval]], boundary: int) -> list[Utterance]:
    """Join each speaker's units over silences of at most `boundary` samples; both speakers' are sorted by onset.

    Args:
        units: for each speaker, disjoint intervals in order.
        boundary: a longer silence ends an utterance.
    """
    found = []
    for speaker, own in enumerate(units):
        joined: list[list[Interval]] = []
        for onset, offset in own:
            if joined and onset - joined[-1][-1][1] <= boundary:
                joined[-1].append((onset, offset))
            else:
                joined.append([(onset, offset)])
        found += [Utterance(parts[0][0], parts[-1][1], speaker, tuple(parts)) for parts in joined]
    return sorted(found, key=lambda one: (one.onset, one.speaker))


def disjoint(intervals: Sequence[Interval], end: int) -> list[Interval]:
    """The union of intervals inside [0, end), in order; what touches is joined, what is empty is dropped."""
    merged: list[Interval] = []
    for onset, offset in sorted((max(0, on), min(end, off)) for on, off in intervals):
        if offset <= onset:
            continue
        if merged and onset <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], offset))
        else:
            merged.append((onset, offset))
    return merged
