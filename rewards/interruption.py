"""Giving way to a barge-in, and answering it."""

from __future__ import annotations

from envs.event import BARGE_IN_TYPES, Event
from rewards.registry import reward
from rewards.text import contains_any
from rewards.timing import EARLY_SECONDS, find_response, late_score, response_limits, response_score
from rewards.verdict import Verdict
from rewards.view import EpisodeView

STOP_FULL_SECONDS = 0.5
STOP_ZERO_SECONDS = 1.5
"""Defaults of a stop, from the moment that the intent is clear: 1 up to 0.5 s, 0 at 1.5 s, -1 from 2.5 s on."""
EARLY_FULL_SECONDS = 0.2
EARLY_ZERO_SECONDS = 0.7
"""A stop this long before the intent is clear is worth everything, or nothing: so early, it is a stop at the "yeah"
that the backchannel twin begins with just so, and there it is wrong."""
QUIET_SECONDS = 2.0
"""After a stop command the agent stays silent for this long."""


def stop_latency(view: EpisodeView, event: Event) -> float | None:
    """Seconds from the anchor `sem` (or the onset) to the end of the agent's talking; None if it was not talking.

    It was talking when the barge-in's onset lies in an utterance. It has stopped at the end of the last utterance that
    was running then or that takes the floor again before the barge-in is over. Half a second of silence ends an
    utterance and nothing less does (`EpisodeView.utterances`): neither a breath, nor bursts with breaths between.
    Negative when it stopped before the intent was clear. Speech that outlives the view counts up to its end, a lower
    bound.
    """
    talking = view.utterance_at(event.onset)
    if talking is None:
        return None
    end = event.offset + view.samples(EARLY_SECONDS)
    resumed = [u.offset for u in view.turns if event.onset < u.onset < end]
    return view.seconds(max([talking.offset, *resumed]) - event.anchors.get("sem", event.onset))


def stop_score(latency_s: float, full: float, zero: float) -> float:
    """1 from 0.2 s before the intent is clear to `full`, linear through 0 at `zero` down to -1; earlier, down to 0."""
    if latency_s < -EARLY_FULL_SECONDS:
        early = (-latency_s - EARLY_FULL_SECONDS) / (EARLY_ZERO_SECONDS - EARLY_FULL_SECONDS)
        return max(0.0, 1.0 - early)
    return late_score(latency_s, full, zero)


@reward(
    "interruption",
    axis="interruption",
    events=sorted(BARGE_IN_TYPES),
    horizon_s=4.0,
    beside=["continue", "quality"],
)
def interruption(view: EpisodeView, event: Event) -> Verdict:
    """Stop when the user barges in; then answer what was said, or after a stop command be quiet.

    Source: taxonomy C1-C6, C9 and C10. arXiv 2606.11167 rewards the delay of "the next speech" after the barge-in
    alone, which pays an agent that never spoke and one that never stopped.

    Window: from the barge-in's onset to 4 s after its offset. None when the agent was not speaking at the onset (there
    was nothing to interrupt) or when the episode ends less than 2.5 s after `sem` or before the barge-in is over.

    Value: half stop, half answer. Stop, from the anchor `sem`: 1 up to 0.5 s, 0 at 1.5 s, -1 from 2.5 s
    (`within: {full, zero}` of the `stops` expectation moves 0.5 and 1.5), and from 0.2 s before `sem` down to 0 at
    0.7 s before it, where nobody can know yet that this is no backchannel. Answer: the curve of `turn_taking` on the
    signed offset from the barge-in's end; credit above 0 is halved when the event expects words, the agent has a text
    stream and none of them is in it, and it fades with the stop: all of it for a full stop, half at 1.5 s, none for
    an agent that never stopped, which gets -1 in all. A stop command (C3) wants 2 s of silence after its end instead:
    1, or linear in the time to the next turn down to -1, minus 0.5 for each backchannel after the first.

    Degenerate policies: silent None, always talking -1, backchannels only None or whatever a chance hit gives, a
    metronome of long bursts about 0.

    Raw: `stop_s` (from `sem`, signed), `stop_from_onset_s`, `response_s` (from the barge-in's end, signed, absent for
    none), `content` 0 or 1 (absent when it does not apply), `quiet_s` (C3).
    """
    sem = event.anchors.get("sem", event.onset)
    latency = stop_latency(view, event)
    expect = event.expected("stops")
    within = {} if expect is None else expect.within
    full = within.get("full", STOP_FULL_SECONDS)
    zero = within.get("zero", full + (STOP_ZERO_SECONDS - STOP_FULL_SECONDS))
    worst = view.samples(2.0 * zero - full)
    window = view.credit(sem, event.offset)
    if latency is None or view.end < max(event.offset, sem + worst):
        return Verdict(None, window, {} if latency is None else {"stop_s": latency})
    raw = {"stop_s": latency, "stop_from_onset_s": latency + view.seconds(sem - event.onset)}
    stop = stop_score(latency, full, zero)
    then, more = _quiet(view, event) if event.type == "C3" else _answer(view, event)
    if then > 0:
        then *= (1.0 + stop) / 2.0
    if stop <= -1.0:
        then = -1.0
    return Verdict(0.5 * stop + 0.5 * then, window, raw | more)


def _answer(view: EpisodeView, event: Event) -> tuple[float, dict[str, float]]:
    limit = view.next_user_turn(event.offset)
    expect = event.expected("responds")
    content = () if expect is None else expect.content
    response = find_response(view, event.offset, limit, content)
    score = response_score(response, *response_limits(event))
    if response is None:
        return score, {}
    raw = {"response_s": response.offset_s}
    if content and view.has_text:
        said = [w.text for u in view.utterances if response.utterance.onset <= u.onset < limit for w in u.words or ()]
        raw["content"] = float(contains_any(said, content))
        if score > 0 and not raw["content"]:
            score *= 0.5
    return score, raw


def _quiet(view: EpisodeView, event: Event) -> tuple[float, dict[str, float]]:
    start = event.offset + view.samples(EARLY_SECONDS)
    stop = min(event.offset + view.samples(QUIET_SECONDS), view.next_user_turn(event.offset))
    after = [u for u in view.utterances if start <= u.onset < stop]
    quiet = next((view.seconds(max(0, u.onset - event.offset)) for u in after if u.takes_floor), QUIET_SECONDS)
    acknowledgements = sum(not u.takes_floor for u in after)
    score = 2.0 * quiet / QUIET_SECONDS - 1.0 - 0.5 * max(0, acknowledgements - 1)
    return max(-1.0, score), {"quiet_s": quiet, "acknowledgements": float(acknowledgements)}
