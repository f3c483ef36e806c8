"""The four axes of arXiv 2606.11167 (Ohashi et al., 2026), as published, holes included.

Ours, with the holes closed, stand in `pause`, `turn`, `backchannel` and `interruption`. The paper's judge (turn and
interruption, on ASR text) is not among these: combine them with `quality`, whose advantage is normalised on its own.

What the paper leaves open, and what is done here, stands in each docstring. Common to all: activity is the energy
gate of `envs.activity` in place of Silero VAD; a "segment" is the part of the episode that belongs to one event; an
utterance is speech joined over silences of at most 1.0 s, as in the paper; the paper's reward is kept in `raw` as it
is, and `value` is that reward divided by a stated horizon where it is a delay, clipped to [-1, 1].
"""

from __future__ import annotations

import numpy as np

from envs.event import Event
from rewards.registry import reward
from rewards.verdict import Verdict
from rewards.view import EpisodeView

UTTERANCE_GAP_SECONDS = 1.0
TURN_SECONDS = 1.0
MATCH_SECONDS = 1.0
DELAY_HORIZON_SECONDS = 5.0
"""Seconds of segment after the user's end, and the divisor of delays: value = -d / 5 s."""
PAUSE_HORIZON_SECONDS = 5.0


def utterances(segments: np.ndarray, gap: int) -> list[tuple[int, int]]:
    """Join segments (n, 2) over silences of at most `gap` samples."""
    joined: list[tuple[int, int]] = []
    for on, off in segments:
        if joined and on - joined[-1][1] <= gap:
            joined[-1] = (joined[-1][0], int(off))
        else:
            joined.append((int(on), int(off)))
    return joined


@reward("published_pause", axis="pause", events=["B1", "B4"], horizon_s=PAUSE_HORIZON_SECONDS)
def published_pause(view: EpisodeView, event: Event) -> Verdict:
    """-1 if any generated speech interval in the segment is longer than 1 s, else 0.

    Left open by the paper: how the segment is padded, and whether an interval that crosses its edge counts whole.
    Here the segment is the user's utterance around the pause (silences up to 1.0 s joined, and the pause itself,
    however long), cut 5 s after the pause, and an interval counts with the part inside the segment, so that an answer
    at its end is not held against it. Backchannels are free without a bound. Two pauses of one utterance give two
    verdicts on overlapping segments. None when the episode ends inside the pause.

    Degenerate policies: silent 0 (the maximum), always talking -1, a metronome of bursts up to 1 s 0.
    Raw: `reward`, `longest_s`.
    """
    joined = utterances(view.user_activity, view.samples(UTTERANCE_GAP_SECONDS))
    reach = view.samples(UTTERANCE_GAP_SECONDS)  # measured speech ends a little off the event's own edges
    before = [on for on, off in joined if on < event.onset and off >= event.onset - reach]
    after = [off for on, off in joined if off > event.offset and on <= event.offset + reach]
    start = before[-1] if before else event.onset
    stop = min(after[0] if after else event.offset, view.end)
    inside = [min(int(off), stop) - max(int(on), start) for on, off in view.agent_activity if on < stop and off > start]
    longest = view.seconds(max(inside, default=0))
    value = -1.0 if longest > TURN_SECONDS else 0.0
    raw = {"reward": value, "longest_s": longest}
    return Verdict(None if view.end < event.offset else value, (min(start, view.end), view.end), raw)


@reward("published_turn", axis="turn", events=["A1", "A3"], horizon_s=DELAY_HORIZON_SECONDS)
def published_turn(view: EpisodeView, event: Event) -> Verdict:
    """-d, d = start of the first generated utterance longer than 1 s, minus the end of the user's turn, in seconds.

    None in the segment: d = the rest of the segment after the user's end.

    Left open by the paper: whether a negative d is clipped. It is not: **talking over the user's turn earns more than
    waiting for its end**, and most for the earliest. Also open: where the segment begins and ends. Here it begins with
    the user's turn (an utterance that is running then starts at its first sample) and ends 5 s after the user's end
    or with the episode. Value is -d / 5 s, clipped to [-1, 1]. None when the episode ends with the user's turn.

    Degenerate policies: silent -1, always talking the maximum (the user's turn length / 5 s), a metronome of bursts
    over 1 s nearly that, one of backchannels -1 if they are more than 1.0 s apart, else like always talking.
    Raw: `reward` (= -d, never clamped), `responded` 0 or 1.
    """
    gap = view.samples(UTTERANCE_GAP_SECONDS)
    starts = [
        max(on, event.onset)
        for on, off in utterances(view.agent_activity, gap)
        if off > event.onset and view.seconds(off - max(on, event.onset)) > TURN_SECONDS
    ]
    delay = view.seconds((starts[0] if starts else view.end) - event.offset)
    return _delay_verdict(view, event, delay, bool(starts))


@reward("published_backchannel", axis="backchannel", events=["B7"], horizon_s=1.2)
def published_backchannel(view: EpisodeView, event: Event) -> Verdict:
    """F1 of generated backchannels (intervals up to 1 s) against the ground truth.

    A true positive lies within 1 s of a ground-truth backchannel; unmatched ones **and** takeovers (intervals over
    1 s) are false positives.

    Left open by the paper: whether matching is one to one. As written it need not be, and is not here: **a cluster of
    "mm" around one ground-truth backchannel is all true positives**; recall counts each ground-truth backchannel
    once. Distances are between onsets. F1 is 0 when nothing is generated. An interval belongs to the segment when its
    onset lies in the monologue, or when it is running as the monologue begins. None when there is no ground truth.

    Degenerate policies: silent 0, always talking 0, a metronome every 2 s nearly what a listener gets.
    Raw: `reward`, `precision`, `recall`, `generated`, `takeovers`.
    """
    inside = [(int(on), int(off)) for on, off in view.agent_activity if off > event.onset and on < event.offset]
    short = [on for on, off in inside if view.seconds(off - on) <= TURN_SECONDS]
    takeovers = len(inside) - len(short)
    truth = [at for name, at in event.anchors.items() if name.startswith("bc") and name[2:].isdigit()]
    reach = view.samples(MATCH_SECONDS)
    hits = sum(any(abs(on - at) <= reach for at in truth) for on in short)
    found = sum(any(abs(on - at) <= reach for on in short) for at in truth)
    precision = hits / len(inside) if inside else 0.0
    recall = found / len(truth) if truth else 0.0
    f1 = 2.0 * precision * recall / (precision + recall) if precision + recall else 0.0
    raw = {
        "reward": f1,
        "precision": precision,
        "recall": recall,
        "generated": float(len(short)),
        "takeovers": float(takeovers),
    }
    complete = bool(truth) and view.end >= event.offset
    return Verdict(f1 if complete else None, (min(event.onset, view.end), view.end), raw)


@reward("published_interruption", axis="interruption", events=["C1", "C2"], horizon_s=DELAY_HORIZON_SECONDS)
def published_interruption(view: EpisodeView, event: Event) -> Verdict:
    """-d, d = the model's next speech minus the end of the user's barge-in, in seconds.

    Left open by the paper: what the next speech is when the model is speaking as the barge-in ends, and whether it
    must have been speaking before. As written, neither matters: **speech that is running at the end is next, d = 0, so
    never stopping earns the maximum**, and an agent that had said nothing earns as much as one that gave way. Any
    interval of speech counts, however short. None in the segment (5 s after the barge-in, or the rest of the episode):
    d = its rest. Value is -d / 5 s. None when the episode ends with the barge-in.

    Degenerate policies: silent -1, always talking 0 (the maximum), a metronome of period p about -p / 10 s.
    Raw: `reward` (= -d, never clamped), `responded` 0 or 1.
    """
    starts = [max(int(on), event.offset) for on, off in view.agent_activity if off > event.offset]
    delay = view.seconds((starts[0] if starts else view.end) - event.offset)
    return _delay_verdict(view, event, delay, bool(starts))


def _delay_verdict(view: EpisodeView, event: Event, delay: float, responded: bool) -> Verdict:
    raw = {"reward": -delay, "responded": float(responded)}
    window = (min(event.onset, view.end), view.end)
    if view.end <= event.offset:
        return Verdict(None, window, raw)
    return Verdict(float(np.clip(-delay / DELAY_HORIZON_SECONDS, -1.0, 1.0)), window, raw)
