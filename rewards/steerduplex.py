"""Continuity and yield of SteerDuplex (arXiv 2609.12623, Scale AI and UMD, 2026), as published, holes included.

Its weights: interruption yield 1.0 and recovery 1.0, response continuity 0.5, and in stage 2 continuation 2.0 on noise
and on user backchannels; its other timing terms are those of arXiv 2606.11167 (`rewards.published`) with a "noise
mirror" whose formula we could not find. Both durations aim at 4 s. Interruption credit requires that the model was
speaking before the interruption: "a model that remains silent can earn interruption credit without ever yielding".

No code was released. The paper's integrity gate (silence, clipping, invalid audio) is applied to all four: a
conversation that fails it up to the end of the view earns 0 there (`rewards.waveform.intact`).
"""

from __future__ import annotations

from envs.event import BARGE_IN_TYPES, Event
from rewards.registry import reward
from rewards.verdict import Verdict
from rewards.view import EpisodeView
from rewards.waveform import intact

TARGET_SECONDS = 4.0
"""Both durations are worth everything from here on."""
YIELD_SECONDS = 2.0
"""A stop later than this earns nothing; chosen."""
RECOVERY_SECONDS = 5.0
"""An answer later than this after the interruption earns nothing; chosen, as the segment of `rewards.published`."""
ANSWER_SECONDS = 5.0


@reward("steerduplex_continuity", axis="turn", events=["A1", "A3"], horizon_s=ANSWER_SECONDS + TARGET_SECONDS)
def steerduplex_continuity(view: EpisodeView, event: Event) -> Verdict:
    """How long a response runs on, up to 4 s: min(1, duration / 4 s).

    Left open: what the response is and when it ends. Here: the first speech to begin in the 5 s after the user's end,
    or the part after it of speech that runs there, up to the first silence that `envs.activity` takes for one (0.32 s).
    None: 0. Not judged (None) when the episode ends within 4 s of the user's end.

    Degenerate policies: silent 0, **always talking 1, the maximum**; a mumbler 1; a truncator 0.1.
    Raw: `duration_s`, `reward`.
    """
    limit = event.offset + view.samples(ANSWER_SECONDS)
    spans = [(max(int(on), event.offset), int(off)) for on, off in view.agent_activity if off > event.offset]
    duration = view.seconds(spans[0][1] - spans[0][0]) if spans and spans[0][0] < limit else 0.0
    window = (min(event.offset, view.end), view.end)
    if view.end < event.offset + view.samples(TARGET_SECONDS):
        return Verdict(None, window)
    return _earned(view, min(1.0, duration / TARGET_SECONDS), window, {"duration_s": duration})


@reward("steerduplex_continuation", axis="continue", events=["D1", "D3", "D4"], horizon_s=TARGET_SECONDS)
def steerduplex_continuation(view: EpisodeView, event: Event) -> Verdict:
    """How long the agent goes on after a backchannel or a noise, up to 4 s: min(1, duration / 4 s).

    Left open: from when. Here: from the end of the sound, so that an agent that stopped during it earns 0. The speech
    must have been running as the sound began. Not judged (None) when it was not (there is nothing to continue), and
    when the episode ends before speech that still runs has lasted 4 s.

    Degenerate policies: silent None, **always talking 1, the maximum**, a metronome about 0.1.
    Raw: `duration_s`, `reward`.
    """
    window = (min(event.onset, view.end), view.end)
    talking = view.burst_at(event.onset)
    if talking is None:
        return Verdict(None, window)
    duration = view.seconds(max(0, talking.offset - event.offset))
    if talking.offset >= view.end and duration < TARGET_SECONDS:
        return Verdict(None, window, {"duration_s": duration})
    return _earned(view, min(1.0, duration / TARGET_SECONDS), window, {"duration_s": duration})


@reward("steerduplex_yield", axis="interruption", events=sorted(BARGE_IN_TYPES), horizon_s=YIELD_SECONDS)
def steerduplex_yield(view: EpisodeView, event: Event) -> Verdict:
    """Stopping for an interruption, if the model was speaking before it: max(0, 1 - l / 2 s).

    Left open: the scale. Here l runs from the interruption's onset to the end of the speech that was running, and the
    credit fades over 2 s. Not speaking before: 0, the paper's requirement, and not a mask. Not judged (None) when the
    episode ends within 2 s of the onset.

    Degenerate policies: silent 0, always talking 0; one that stops at every sound nearly 1.
    Raw: `was_speaking` 0 or 1, `stop_s` (absent when it was not), `reward`.
    """
    talking = view.burst_at(event.onset)
    window = (min(event.onset, view.end), view.end)
    raw = {"was_speaking": float(talking is not None)}
    if view.end < event.onset + view.samples(YIELD_SECONDS):
        return Verdict(None, window, raw)
    earned = 0.0
    if talking is not None:
        raw["stop_s"] = view.seconds(talking.offset - event.onset)
        earned = max(0.0, 1.0 - raw["stop_s"] / YIELD_SECONDS)
    return _earned(view, earned, window, raw)


@reward("steerduplex_recovery", axis="interruption", events=sorted(BARGE_IN_TYPES - {"C3"}), horizon_s=RECOVERY_SECONDS)
def steerduplex_recovery(view: EpisodeView, event: Event) -> Verdict:
    """Speaking again after an interruption that was yielded to: max(0, 1 - d / 5 s), d from the user's end.

    Left open: the scale, and what recovers. Here: the first speech to begin after the user's end, however short, if the
    model was speaking before the interruption and had stopped by its end; else 0. Not judged (None) when the episode
    ends within 2 s of the user's end.

    Degenerate policies: silent 0, always talking 0; a metronome that happens to pause pays itself; a mumbler 1.
    Raw: `yielded` 0 or 1, `response_s` (absent for none), `reward`.
    """
    talking = view.burst_at(event.onset)
    window = (min(event.onset, view.end), view.end)
    yielded = talking is not None and view.burst_at(event.offset) is None
    raw = {"yielded": float(yielded)}
    if view.end < event.offset + view.samples(YIELD_SECONDS):
        return Verdict(None, window, raw)
    after = [int(on) for on, _ in view.agent_activity if on >= event.offset]
    if after:
        raw["response_s"] = view.seconds(after[0] - event.offset)
    earned = max(0.0, 1.0 - raw["response_s"] / RECOVERY_SECONDS) if yielded and after else 0.0
    return _earned(view, earned, window, raw)


def _earned(view: EpisodeView, earned: float, window: tuple[int, int], raw: dict[str, float]) -> Verdict:
    """The reward, or 0 where the waveform fails the gate."""
    value = earned if earned and intact(view) else 0.0
    return Verdict(value, window, raw | {"reward": value})
