"""The four axes' segments: every threshold just below and just above, and every candidate accounted for."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.clock import CLOCK
from envs.corpora.axes import AXES, PUBLISHED, REASONS, Segment, find, segment
from envs.corpora.recording import Recording, Track
from envs.corpora.speech import units
from envs.corpora.utterances import disjoint, utterances
from envs.errors import UptakeError
from tests.corpora import Stretch, write_tones

BOUNDARY = CLOCK.nearest_sample(PUBLISHED.boundary)
TRACKS = (Track("a.wav", 0), Track("a.wav", 1))


def s(seconds: float) -> int:
    return CLOCK.nearest_sample(seconds)


def heard(folder: Path, *speech: list[Stretch]) -> tuple[list[tuple[str, int]], Counter[tuple[str, str]]]:
    """What is found in a recording of tones: (axis, X) of each segment, and why the others are none."""
    write_tones(folder / "a.wav", speech)
    both, _ = units(folder, Recording("a", TRACKS, ("0", "1")))
    patterns, rejected = find(utterances(both, BOUNDARY))
    return [(axis, shown[0].speaker) for axis, shown in patterns], rejected


@pytest.mark.parametrize(
    "first, second, axes, reason",
    [
        # pause: at least 4.0 s with a silence inside, and not a sound of the other
        ([(1, 3), (3.5, 5)], [], ["pause"], ("bc", "too_short")),
        ([(1, 3), (3.5, 4.99)], [], [], ("pause", "too_short")),
        ([(1, 5)], [], [], ("pause", "no_pause")),
        ([(1, 3), (3.17, 5)], [], [], ("pause", "no_pause")),  # 0.17 s does not split a unit
        ([(1, 3), (3.18, 5)], [], ["pause"], None),
        ([(1, 3), (4, 5)], [], ["pause"], None),  # a silence of 1.0 s is a pause
        ([(1, 3), (4.01, 5)], [], [], ("pause", "too_short")),  # a longer one ends the utterance
        ([(1, 3), (3.5, 5)], [(4, 4.1)], [], ("pause", "other_speaks")),
        ([(1, 3), (3.5, 5)], [(0.5, 1), (5, 5.5)], ["pause"], None),  # what only touches it lies outside
        ([(1, 3), (3.5, 5)], [(0.5, 1.01)], [], ("pause", "other_speaks")),
        ([(1, 3), (3.5, 5)], [(4.99, 6)], [], ("pause", "other_speaks")),
        # turn: both at least 5.0 s, the answer at most 0.4 s after the end
        ([(1, 6)], [(6.4, 11.4)], ["turn"], None),
        ([(1, 6)], [(6.41, 11.41)], [], ("turn", "gap_too_long")),
        ([(1, 6)], [(5.5, 10.5)], ["turn"], None),  # an overlapping answer is one
        ([(1, 5.99)], [(6.2, 11.2)], [], ("turn", "first_too_short")),
        ([(1, 6)], [(6.2, 11.19)], [], ("turn", "second_too_short")),
        ([(1, 6), (8, 13)], [], [], ("turn", "same_speaker")),
        ([(1, 6)], [(6.1, 6.5), (8, 13)], [], ("turn", "same_speaker")),  # a backchannel between them
        # bc: at least 5.0 s, and the other says nothing but utterances of at most 1.0 s within it
        ([(1, 6)], [(3, 4)], ["bc"], None),
        ([(1, 5.99)], [(3, 4)], [], ("bc", "too_short")),
        ([(1, 6)], [(3, 4.01)], [], ("bc", "other_too_long")),
        ([(1, 6)], [], [], ("bc", "no_backchannel")),
        ([(1, 6)], [(1, 2), (5, 6)], ["bc"], None),
        ([(1, 6)], [(3, 3.4), (5.8, 6.01)], [], ("bc", "crosses_edge")),
        ([(1, 6)], [(0.9, 1.2), (3, 3.4)], [], ("bc", "crosses_edge")),
        ([(1, 9)], [(3, 3.5), (4.5, 5)], [], ("bc", "other_too_long")),  # 1.0 s apart is one utterance of 2 s
        ([(1, 9)], [(3, 3.5), (4.51, 5)], ["bc"], None),
        # int: X, Y, X, Y of at least 3.0 s each, and X's second begins before Y's first is over
        ([(1, 4), (6, 9)], [(3.5, 6.5), (8.5, 11.5)], ["int"], None),
        ([(1, 4), (6.5, 9.5)], [(3.5, 6.5), (9, 12)], [], ("int", "no_overlap")),
        ([(1, 4), (6.49, 9.5)], [(3.5, 6.5), (9, 12)], ["int"], None),
        ([(1.01, 4), (6, 9)], [(3.5, 6.5), (8.5, 11.5)], [], ("int", "too_short")),
        ([(1, 4), (6, 9)], [(3.5, 6.49), (8.5, 11.5)], [], ("int", "too_short")),
        ([(1, 4), (6, 8.99)], [(3.5, 6.5), (8.5, 11.5)], [], ("int", "too_short")),
        ([(1, 4), (6, 9)], [(3.5, 6.5), (8.5, 11.49)], [], ("int", "too_short")),
        ([(1, 4), (5.5, 8.5)], [(3.5, 6.5), (10, 13), (15, 18)], ["int"], ("int", "not_alternating")),
    ],
)
def test_every_threshold_holds_to_ten_milliseconds(
    tmp_path: Path, first: list[Stretch], second: list[Stretch], axes: list[str], reason: tuple[str, str] | None
) -> None:
    for x, speech in enumerate(((first, second), (second, first))):  # the same with the channels exchanged
        found, rejected = heard(tmp_path, *speech)
        assert [axis for axis, _ in found] == axes
        assert all(speaker == x for _, speaker in found)
        assert reason is None or rejected[reason] >= 1


def test_a_backchannel_pattern_holds_the_listeners_utterances_and_no_others(tmp_path: Path) -> None:
    write_tones(tmp_path / "a.wav", [[(8, 9), (12, 13)], [(2, 4), (4.5, 7), (10, 15)]])
    both, _ = units(tmp_path, Recording("a", TRACKS, ("0", "1")))
    said = utterances(both, BOUNDARY)
    (pattern,) = [one for one in find(said)[0] if one[0] == "bc"]
    found = segment("a", TRACKS, ("anna", "ben"), pattern)
    assert (found.user, found.onset, found.offset) == (1, s(10), s(15))
    assert found.backchannels == ((s(12), s(13)),)
    assert found.to_json()["roles"] == {"user": 1, "agent": 0}


def test_a_turn_keeps_its_signed_gap_and_ends_with_the_later_utterance() -> None:
    said = utterances([[(0, s(10))], [(s(2), s(8))]], BOUNDARY)
    (pattern,) = [one for one in find(said)[0] if one[0] == "turn"]
    found = segment("a", TRACKS, ("0", "1"), pattern)
    assert found.gap == s(-8)
    assert (found.onset, found.offset) == (0, s(10))


intervals = st.lists(st.tuples(st.integers(0, 400), st.integers(1, 60)), max_size=14).map(
    lambda rows: disjoint([(2400 * on, 2400 * (on + length)) for on, length in rows], 10**7)
)


@given(first=intervals, second=intervals)
@settings(max_examples=60, deadline=None)
def test_every_candidate_is_a_segment_or_is_counted_under_one_reason(
    first: list[tuple[int, int]], second: list[tuple[int, int]]
) -> None:
    said = utterances([first, second], BOUNDARY)
    patterns, rejected = find(said)
    accepted = Counter(axis for axis, _ in patterns)
    candidates = {"pause": len(said), "bc": len(said), "turn": max(0, len(said) - 1), "int": max(0, len(said) - 3)}
    for axis in AXES:
        assert accepted[axis] + sum(rejected[axis, reason] for reason in REASONS[axis]) == candidates[axis]
    assert set(rejected) <= {(axis, reason) for axis in AXES for reason in REASONS[axis]}


@given(first=intervals, second=intervals)
@settings(max_examples=60, deadline=None)
def test_utterances_hold_all_units_and_are_a_boundary_apart(
    first: list[tuple[int, int]], second: list[tuple[int, int]]
) -> None:
    said = utterances([first, second], BOUNDARY)
    for speaker, own in enumerate((first, second)):
        mine = [one for one in said if one.speaker == speaker]
        assert [unit for one in mine for unit in one.units] == own
        assert all(b.onset - a.offset > BOUNDARY for a, b in pairwise(mine))
        assert all(0 < off - on <= BOUNDARY for one in mine for on, off in one.pauses)
    assert said == sorted(said, key=lambda one: (one.onset, one.speaker))


@given(first=intervals, second=intervals)
@settings(max_examples=30, deadline=None)
def test_exchanging_the_channels_exchanges_the_roles(
    first: list[tuple[int, int]], second: list[tuple[int, int]]
) -> None:
    here, there = (find(utterances(pair, BOUNDARY))[0] for pair in ([first, second], [second, first]))
    if {on for on, _ in first} & {on for on, _ in second}:
        return  # who is first of two that begin together is a matter of the channel
    roles = [
        [(axis, one.speaker ^ swap, one.onset, one.offset) for axis, (one, *_) in p]
        for p, swap in ((here, 0), (there, 1))
    ]
    assert roles[0] == roles[1]


def test_a_record_reads_back_equal_and_other_thresholds_have_another_version() -> None:
    said = utterances([[(0, s(3)), (s(3.5), s(6))], []], BOUNDARY)
    found = segment("a", TRACKS, ("0", "1"), find(said)[0][0])
    assert Segment.from_json(found.to_json()) == found
    assert replace(PUBLISHED, pause=3.0).version != PUBLISHED.version == found.thresholds


@pytest.mark.parametrize("change", [{"sample_rate": 16000}, {"axis": "nod"}, {"roles": {}}, {"tracks": [["a", 0]]}])
def test_a_malformed_record_is_named(change: dict) -> None:
    said = utterances([[(0, s(3)), (s(3.5), s(6))], []], BOUNDARY)
    record = segment("a", TRACKS, ("0", "1"), find(said)[0][0]).to_json() | change
    with pytest.raises(UptakeError, match="'a:pause:0:0'"):
        Segment.from_json(record)
