"""A segment as an episode: both people's audio and what happened, ready to be graded or to be played to an agent.

root, found = load_segments("out")
episode = load(root, found[0])        # episode.user is X's voice, episode.agent what the human Y did
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from envs.clock import CLOCK
from envs.corpora.audio import read_piece
from envs.corpora.axes import Segment
from envs.corpora.recording import Rejected
from envs.corpora.text import read_json, read_json_lines
from envs.episode import Episode, from_pcm16, to_pcm16
from envs.errors import UptakeError
from envs.event import Event, Expect


def load_segments(out: str | Path) -> tuple[Path, list[Segment]]:
    """The corpus folder and the segments that `uptake segments` wrote.

    Raises:
        UptakeError: the run did not end, or a line is malformed.
    """
    out = Path(out)
    if not (out / "summary.json").is_file():
        raise UptakeError(f"{out}: no summary.json, so the run that writes it is not over; run `uptake segments` again")
    root = Path(str(read_json(out / "summary.json").get("corpus", "")))
    return root, [Segment.from_json(record) for _, record in read_json_lines(out / "segments.jsonl")]


def load(root: Path, segment: Segment, before: float = 0.0, after: float = 0.0) -> Episode:
    """The segment's audio and events, in samples from the episode's start.

    `mic` and `user` are X's track; `agent` is Y's, what a human did in the agent's place: grade it to see what people
    get, or leave it out and play `mic` to an agent. The episode ends with a whole frame. No text is known.

    Args:
        root: the corpus folder.
        segment: one of `load_segments`.
        before: seconds of context before it; silence where the recording begins later.
        after: seconds after it.

    Raises:
        UptakeError: the recording has gone or is damaged.
    """
    start = segment.onset - CLOCK.nearest_sample(before)
    length = CLOCK.sample_of(CLOCK.frames_covering(segment.offset + CLOCK.nearest_sample(after) - start))
    try:
        tracks = [_piece(root, segment, which, start, start + length) for which in (segment.user, 1 - segment.user)]
    except Rejected as fault:
        raise UptakeError(f"segment {segment.id!r}: {fault}; extract the corpus again") from fault
    user, agent = tracks
    return Episode(
        mic=user,
        user=user.copy(),
        agent=agent,
        events=events(segment, start),
        meta={
            "segment": segment.id,
            "recording": segment.recording,
            "axis": segment.axis,
            "thresholds": segment.thresholds,
            "speakers": {"user": segment.speakers[segment.user], "agent": segment.speakers[1 - segment.user]},
            "text_stream": False,
        },
    )


def _piece(root: Path, segment: Segment, which: int, onset: int, offset: int) -> np.ndarray:
    # on the 16-bit grid, as every episode is, so that saving changes no sample
    return from_pcm16(to_pcm16(read_piece(root, segment.tracks[which], onset, offset)))


def events(segment: Segment, start: int = 0) -> list[Event]:
    """What happened in a segment, in samples after `start`.

    pause: a B1 for every silence inside the utterance. turn: an A3 (whether it was a question is not known without
    words) that ends where the answer is due. bc: a B7 with an anchor at the onset of each of the listener's
    backchannels. int: a C1 over the interrupting utterance, `agent_speaking_since` the onset of the interrupted one;
    where its meaning became clear is not known without words, so that there is no anchor `sem`.
    """
    said = [(onset - start, offset - start) for _, onset, offset in segment.utterances]
    if segment.axis == "pause":
        silence = (Expect("silent"),)
        return [
            Event(f"pause{i}", "B1", "user", onset - start, offset - start, expects=silence)
            for i, (onset, offset) in enumerate(segment.pauses)
        ]
    if segment.axis == "turn":
        return [Event("turn", "A3", "user", *said[0], expects=(Expect("responds"),))]
    if segment.axis == "bc":
        given = {f"bc{i}": onset - start for i, (onset, _) in enumerate(segment.backchannels)}
        return [Event("monologue", "B7", "user", *said[0], anchors=given, expects=(Expect("backchannels"),))]
    wanted = (Expect("stops"), Expect("responds"))
    since = {"agent_speaking_since": said[1][0]}
    return [Event("interruption", "C1", "user", *said[2], anchors=since, expects=wanted)]
