"""The four axes' segments of arXiv 2606.11167 (Ohashi et al., 2026), "data extraction", as published.

What the paper leaves open, and what is done here:

* *Activity*: the paper runs Silero VAD without naming its parameters. Here it is the energy gate of `envs.activity`,
  or the corpus' own segment file; silences under 0.18 s do not split a unit (Heldner & Edlund 2010).
* *Within U_k* (pause, bc): from its onset to its offset, nothing added. A listener's utterance that only touches it
  lies outside; one that crosses an edge does not lie within it, so that there is no bc segment there.
* *bc*: the listener says at least one such utterance, or there would be no ground truth to match.
* *turn*: the gap has no lower bound, so that an overlapping answer counts; `gap` is in the record.
* *Consecutive* (turn, int): neighbours in the list of both speakers' utterances sorted by onset, so that a
  backchannel in between breaks the pattern. Equal onsets: channel 0 first.
* *Extent*: from the first utterance's onset to the last offset of any; no padding (context is added when playing).
* *Drawing* up to 2,000 an axis: uniformly, by a hash of seed and segment id, so that the choice depends neither on
  the order of reading nor on the number of processes.

One utterance may give a segment on several axes, and two int patterns may share utterances.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from envs.clock import CLOCK
from envs.corpora.recording import Track
from envs.corpora.utterances import Interval, Utterance
from envs.errors import UptakeError

AXES = ("pause", "turn", "bc", "int")

REASONS: Mapping[str, Mapping[str, str]] = {
    "pause": {
        "too_short": "the utterance is shorter than the axis' minimum",
        "no_pause": "there is no silence inside it",
        "other_speaks": "the other speaker makes a sound within it",
    },
    "turn": {
        "same_speaker": "the next utterance is the same speaker's",
        "first_too_short": "the first utterance is shorter than the axis' minimum",
        "second_too_short": "the answer is shorter than the axis' minimum",
        "gap_too_long": "the answer comes too late",
    },
    "bc": {
        "too_short": "the utterance is shorter than the axis' minimum",
        "no_backchannel": "the other speaker says nothing within it",
        "other_too_long": "the other speaker says something longer than a backchannel",
        "crosses_edge": "the other speaker's utterance does not lie wholly within it",
    },
    "int": {
        "not_alternating": "four utterances in a row are not X, Y, X, Y",
        "no_overlap": "the third does not start before the second ends",
        "too_short": "one of the four is shorter than the axis' minimum",
    },
}
"""Why a candidate gives no segment; the first that applies is counted."""


@dataclass(frozen=True)
class Thresholds:
    """Seconds, as published."""

    boundary: float = 1.0
    """A longer silence of one speaker ends an utterance."""
    pause: float = 4.0
    """Least length of the utterance."""
    turn: float = 5.0
    """Least length of both utterances."""
    bc: float = 5.0
    """Least length of the utterance."""
    int: float = 3.0
    """Least length of all four utterances."""
    gap: float = 0.4
    """Greatest gap between a turn and its answer."""
    backchannel: float = 1.0
    """Greatest length of a listener's utterance on the bc axis."""

    @property
    def version(self) -> str:
        """Names these values: the paper and a digest of them."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:8]
        return f"arxiv-2606.11167/{digest}"


PUBLISHED = Thresholds()


@dataclass(frozen=True)
class Segment:
    """A stretch of a recording that shows one axis. Times are samples of `envs.clock.CLOCK` from the recording's start.

    X, whose part the user plays, is the speaker of the first utterance; Y is the one whom the agent stands in for.
    """

    id: str
    recording: str
    axis: str
    thresholds: str
    """Version of the thresholds that it was found with."""
    onset: int
    offset: int
    user: int
    """Which of the recording's two tracks is X's."""
    tracks: tuple[Track, Track]
    speakers: tuple[str, str]
    utterances: tuple[tuple[int, int, int], ...]
    """(speaker, onset, offset) of those that make the pattern, the first one's first; on the bc axis the listener's
    follow."""
    pauses: tuple[Interval, ...]
    """Silences inside the first utterance."""

    @property
    def gap(self) -> int | None:
        """From the end of a turn to its answer, signed; None on the other axes."""
        return self.utterances[1][1] - self.utterances[0][2] if self.axis == "turn" else None

    @property
    def backchannels(self) -> tuple[Interval, ...]:
        """The listener's utterances on the bc axis."""
        return tuple((on, off) for speaker, on, off in self.utterances if speaker != self.user) * (self.axis == "bc")

    def to_json(self) -> dict[str, Any]:
        """One line of `segments.jsonl`."""
        return {
            "v": 1,
            "id": self.id,
            "recording": self.recording,
            "axis": self.axis,
            "thresholds": self.thresholds,
            "sample_rate": CLOCK.sample_rate,
            "onset": self.onset,
            "offset": self.offset,
            "roles": {"user": self.user, "agent": 1 - self.user},
            "tracks": [list(track) for track in self.tracks],
            "speakers": list(self.speakers),
            "utterances": [list(one) for one in self.utterances],
            "pauses": [list(one) for one in self.pauses],
            "gap": self.gap,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Segment:
        """Read what `to_json` wrote; raises `UptakeError` naming a field that is missing or malformed."""
        try:
            if record["sample_rate"] != CLOCK.sample_rate or record["axis"] not in AXES:
                raise UptakeError(
                    f"segment {record['id']!r}: axis {record['axis']!r} at {record['sample_rate']} Hz; "
                    f"needs one of {', '.join(AXES)} at {CLOCK.sample_rate} Hz: extract again"
                )
            first, second = (Track(str(path), None if c is None else int(c)) for path, c in record["tracks"])
            one, other = record["speakers"]
            return cls(
                id=str(record["id"]),
                recording=str(record["recording"]),
                axis=str(record["axis"]),
                thresholds=str(record["thresholds"]),
                onset=int(record["onset"]),
                offset=int(record["offset"]),
                user=int(record["roles"]["user"]),
                tracks=(first, second),
                speakers=(str(one), str(other)),
                utterances=tuple((int(s), int(on), int(off)) for s, on, off in record["utterances"]),
                pauses=tuple((int(on), int(off)) for on, off in record["pauses"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, UptakeError):
                raise
            raise UptakeError(f"segment record {record.get('id', '?')!r}: {error!r}; extract again") from error


Pattern = tuple[str, tuple[Utterance, ...]]
"""An axis, and the utterances that show it."""


Rejections = Counter[tuple[str, str]]
"""(axis, reason) -> candidates."""


def find(said: Sequence[Utterance], thresholds: Thresholds = PUBLISHED) -> tuple[list[Pattern], Rejections]:
    """All patterns of the four axes in one recording.

    Args:
        said: both speakers' utterances, sorted.
        thresholds: the recipe's.

    Returns:
        The patterns, and for each (axis, reason) how many candidates were rejected. Candidates are every utterance
        (pause, bc), every pair of neighbours (turn) and every four in a row (int): each is a pattern or is counted
        under exactly one reason.
    """
    patterns: list[Pattern] = []
    rejected: Rejections = Counter()
    limit = {name: CLOCK.nearest_sample(seconds) for name, seconds in asdict(thresholds).items()}
    latest: dict[int, Utterance] = {}
    for k, first in enumerate(said):
        others = _overlapping(said, k, latest.get(1 - first.speaker))
        latest[first.speaker] = first
        pair, four = said[k : k + 2], said[k : k + 4]
        verdicts = [
            ("pause", (first,), _pause(first, others, limit)),
            ("bc", (first, *others), _bc(first, others, limit)),
        ]
        if len(pair) == 2:
            verdicts.append(("turn", tuple(pair), _turn(pair[0], pair[1], limit)))
        if len(four) == 4:
            verdicts.append(("int", tuple(four), _int(four, limit)))
        for axis, shown, reason in verdicts:
            if reason is None:
                patterns.append((axis, shown))
            else:
                rejected[axis, reason] += 1
    return patterns, rejected


def _overlapping(said: Sequence[Utterance], k: int, before: Utterance | None) -> list[Utterance]:
    """The other speaker's utterances that share a sample with the k-th; `before` is the latest that began before it.

    One speaker's utterances are disjoint, so no earlier one can reach into it.
    """
    first = said[k]
    found = [before] if before is not None and before.offset > first.onset else []
    for other in islice(said, k + 1, None):
        if other.onset >= first.offset:
            break
        if other.speaker != first.speaker:
            found.append(other)
    return found


def _pause(first: Utterance, others: Sequence[Utterance], limit: Mapping[str, int]) -> str | None:
    if first.length < limit["pause"]:
        return "too_short"
    if not first.pauses:
        return "no_pause"
    # An utterance may span this one without a sound in it only if it is a silence: units decide, not utterances.
    sounds = any(on < first.offset and off > first.onset for other in others for on, off in other.units)
    return "other_speaks" if sounds else None


def _turn(first: Utterance, second: Utterance, limit: Mapping[str, int]) -> str | None:
    if first.speaker == second.speaker:
        return "same_speaker"
    if first.length < limit["turn"]:
        return "first_too_short"
    if second.length < limit["turn"]:
        return "second_too_short"
    return "gap_too_long" if second.onset - first.offset > limit["gap"] else None


def _bc(first: Utterance, others: Sequence[Utterance], limit: Mapping[str, int]) -> str | None:
    if first.length < limit["bc"]:
        return "too_short"
    if not others:
        return "no_backchannel"
    if any(other.length > limit["backchannel"] for other in others):
        return "other_too_long"
    inside = all(first.onset <= other.onset and other.offset <= first.offset for other in others)
    return None if inside else "crosses_edge"


def _int(four: Sequence[Utterance], limit: Mapping[str, int]) -> str | None:
    x, y, again, last = four
    if not x.speaker == again.speaker != y.speaker == last.speaker:
        return "not_alternating"
    if again.onset >= y.offset:
        return "no_overlap"
    return "too_short" if any(one.length < limit["int"] for one in four) else None


def segment(
    recording: str,
    tracks: tuple[Track, Track],
    speakers: tuple[str, str],
    pattern: Pattern,
    thresholds: Thresholds = PUBLISHED,
) -> Segment:
    """The record of a pattern."""
    axis, shown = pattern
    first = shown[0]
    return Segment(
        id=f"{recording}:{axis}:{first.speaker}:{first.onset}",
        recording=recording,
        axis=axis,
        thresholds=thresholds.version,
        onset=first.onset,
        offset=max(one.offset for one in shown),
        user=first.speaker,
        tracks=tracks,
        speakers=speakers,
        utterances=tuple((one.speaker, one.onset, one.offset) for one in shown),
        pauses=first.pauses,
    )
