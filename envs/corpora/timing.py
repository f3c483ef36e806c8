"""How one conversation is timed: floor transfers, pauses, overlaps, backchannels.

Communicative states as in Heldner & Edlund (2010): a silence between two stretches of one speaker is a pause, between
those of two speakers a gap; speech of both, after which the other goes on alone, is a between-speaker overlap. A
floor-transfer offset is a gap, or minus an overlap. Backchannels are no transfers and interrupt no pause: they are
taken out first, and counted by themselves.

A backchannel is an utterance of at most 1.0 s that lies within a longer one of the other speaker (arXiv 2606.11167).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from envs.clock import CLOCK
from envs.corpora.axes import PUBLISHED, Thresholds
from envs.corpora.utterances import Interval, Utterance, utterances

LAPSE_SECONDS = 5.0
"""A longer silence or overlap is no timing of a turn (somebody went away, or reads aloud); it is counted as a lapse."""


@dataclass(frozen=True)
class Timing:
    """One conversation. Times in seconds."""

    floor_transfers: tuple[float, ...]
    """Signed: gaps positive, overlaps negative."""
    pauses: tuple[float, ...]
    """Silences between two stretches of one speaker, backchannels taken out."""
    overlaps: tuple[float, ...]
    """Between-speaker overlaps, positive."""
    backchannel_latencies: tuple[float, ...]
    """From the nearest end of one of the speaker's units to the backchannel's onset; negative before it."""
    backchannels_per_minute: float | None
    """A minute of utterances that last longer than a backchannel; None where there are none."""
    lapses: int
    speech: float
    """Seconds in which anybody speaks."""
    both: float
    """Seconds in which both do."""


def measure(units: Sequence[Sequence[Interval]], thresholds: Thresholds = PUBLISHED, of: int | None = None) -> Timing:
    """The timing of one conversation.

    Args:
        units: inter-pausal units of both speakers in samples of the clock, disjoint and in order.
        thresholds: what an utterance and a backchannel are.
        of: only what this speaker (0 or 1) does: turns that it takes, its pauses, its backchannels. None: both.
    """
    whose = (1, 2) if of is None else (1 << of,)
    units = [[(on, off) for on, off in own] for own in units]
    said = utterances(units, CLOCK.nearest_sample(thresholds.boundary))
    longest = CLOCK.nearest_sample(thresholds.backchannel)
    pairs = _backchannels(said, longest)
    given = {unit for backchannel, _ in pairs for unit in ((backchannel.speaker, *one) for one in backchannel.units)}
    floor = [[one for one in own if (speaker, *one) not in given] for speaker, own in enumerate(units)]
    transfers, pauses, lapses = [], [], 0
    runs = list(_states(floor))
    for i in range(1, len(runs)):
        (_, _, before), (onset, offset, state) = runs[i - 1], runs[i]
        length = CLOCK.seconds(offset - onset)
        if state in (1, 2):
            if before in (1, 2) and state in whose:
                transfers.append(0.0)
            continue
        after = runs[i + 1][2] if i + 1 < len(runs) else 0
        if before not in (1, 2) or after not in whose or (before == after and state == 3):
            continue
        if length > LAPSE_SECONDS:
            lapses += 1
        elif before == after:
            pauses.append(length)
        else:
            transfers.append(length if state == 0 else -length)
    pairs = [pair for pair in pairs if 1 << pair[0].speaker in whose]
    held = CLOCK.seconds(sum(one.length for one in said if one.length > longest and one.speaker != of)) / 60.0
    whole = list(_states(units))
    return Timing(
        floor_transfers=tuple(transfers),
        pauses=tuple(pauses),
        overlaps=tuple(-offset for offset in transfers if offset < 0),
        backchannel_latencies=tuple(_latency(backchannel, holder) for backchannel, holder in pairs),
        backchannels_per_minute=len(pairs) / held if held else None,
        lapses=lapses,
        speech=CLOCK.seconds(sum(off - on for on, off, state in whole if state)),
        both=CLOCK.seconds(sum(off - on for on, off, state in whole if state == 3)),
    )


def _backchannels(said: Sequence[Utterance], longest: int) -> list[tuple[Utterance, Utterance]]:
    """(backchannel, the utterance it lies in), in order."""
    found: list[tuple[Utterance, Utterance]] = []
    latest: dict[int, Utterance] = {}  # of each speaker, the last utterance longer than a backchannel
    for one in sorted(said, key=lambda one: (one.onset, -one.length)):  # of two that begin together the longer holds
        holder = latest.get(1 - one.speaker)
        if one.length > longest:
            latest[one.speaker] = one
        elif holder is not None and one.offset <= holder.offset:
            found.append((one, holder))
    return found


def _latency(backchannel: Utterance, holder: Utterance) -> float:
    offsets = [backchannel.onset - off for _, off in holder.units]
    return CLOCK.seconds(min(offsets, key=abs))


def _states(units: Sequence[Sequence[Interval]]) -> list[tuple[int, int, int]]:
    """(onset, offset, state) in order without holes: bit 0 while the first speaks, bit 1 while the second does."""
    edges: dict[int, int] = {}
    for speaker, own in enumerate(units):
        for onset, offset in own:
            edges[onset] = edges.get(onset, 0) ^ (1 << speaker)
            edges[offset] = edges.get(offset, 0) ^ (1 << speaker)
    runs: list[tuple[int, int, int]] = []
    state, since = 0, 0
    for at in sorted(edges):
        if not edges[at]:
            continue  # one unit ends where the speaker's next begins
        if runs or state:
            runs.append((since, at, state))
        state, since = state ^ edges[at], at
    return runs
