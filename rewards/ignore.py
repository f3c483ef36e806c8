"""Staying silent when what was heard was not said to the agent."""

from __future__ import annotations

from envs.event import Event
from rewards.continue_ import LASTING_TYPES
from rewards.registry import reward
from rewards.timing import RESPONSE_SECONDS
from rewards.verdict import Verdict
from rewards.view import GAP_SECONDS, EpisodeView, is_user_turn

AFTER_SECONDS = 2.0
"""An answer to a sound comes within so long after it (tau-voice)."""
LEAST_SECONDS = 1.0
LONG_SECONDS = 2.0
"""Agent speech of this length for nothing is as bad as can be."""


@reward(
    "ignore",
    axis="continue",
    events=["D3", "D4", "D5", "D6", "D7", "D9", "E3"],
    horizon_s=AFTER_SECONDS + 1.0,
    beside=["turn_taking", "quality"],
)
def ignore(view: EpisodeView, event: Event) -> Verdict:
    """Do not take a cough, a noise, talk to somebody else, a television or keypad tones for a turn.

    Source: taxonomy D3-D7, D9 and E3 with the times of tau-voice. It is the other half of `continue`, which judges the
    same sounds while the agent speaks.

    Window: turns that begin from the sound's onset to 2 s after its end, where none is due: not during a user's turn,
    nor in the 3 s after it or after the agent is called upon (`speaks_up`). What follows the agent's own speech within
    0.5 s goes on with it and is no new turn. None when less than 1 s of that is left; when the agent is speaking at the
    onset of a sound of less than 1 s, or until less than 1 s before the end of one that lasts (D7, D9); or when the
    episode ends before the window.

    Value: 1 for silence or one backchannel, minus 0.5 for each further one, not below -0.5; a turn is -0.5 - 0.5 · (its
    length / 2 s), down to -1, and so is a second one.

    Degenerate policies: silent 1 (it loses where a turn is due), always talking None (it loses everywhere else),
    "mm-hm" all the time about 0, a metronome of long bursts -0.75 where it hits the window.
    Raw: `talk_s` the longest stretch, `onset_s` of the first from the sound's onset, `backchannels`, `turns`, `free_s`
    (the time judged).
    """
    close = event.offset + view.samples(AFTER_SECONDS)
    running = view.utterance_at(event.onset)
    start = event.onset
    if running is not None and event.type in LASTING_TYPES:
        start = running.offset + view.samples(GAP_SECONDS) + 1
    free = _unclaimed(view, start, close)
    heard = [u for u in view.utterances if any(on <= u.onset < off for on, off in free)]
    turns = [said for said in heard if said.takes_floor]
    raw = {
        "talk_s": max((said.seconds for said in heard), default=0.0),
        "backchannels": float(len(heard) - len(turns)),
        "turns": float(len(turns)),
        "free_s": view.seconds(sum(off - on for on, off in free)),
    }
    if heard:
        raw["onset_s"] = view.seconds(heard[0].onset - event.onset)
    window = view.credit(min(start, view.end), max(start, (turns or heard)[0].onset if heard else event.offset))
    talked_on = running is not None and close - start < view.samples(AFTER_SECONDS + LEAST_SECONDS)
    if talked_on or raw["free_s"] < LEAST_SECONDS or view.end < close:
        return Verdict(None, window, raw)
    if turns:
        share = 1.0 if len(turns) > 1 else min(1.0, turns[0].seconds / LONG_SECONDS)
        return Verdict(-0.5 - 0.5 * share, window, raw)
    return Verdict(max(-0.5, 1.0 - 0.5 * max(0, len(heard) - 1)), window, raw)


def _unclaimed(view: EpisodeView, start: int, stop: int) -> list[tuple[int, int]]:
    """The parts of [start, stop) in which nothing is due: no user's turn, nor the 3 s after it, nor a speaking up."""
    after = view.samples(RESPONSE_SECONDS)
    claims = [(e.onset, e.offset + after) for e in view.events if e.source == "user" and is_user_turn(e)]
    called = [e for e in view.events if e.expected("speaks_up") is not None]
    claims += [(due, due + after) for e in called for due in [e.anchors.get("due", e.onset)]]
    free, at = [], start
    for on, off in sorted(claims):
        if on > at:
            free.append((at, min(stop, on)))
        at = max(at, off)
    free.append((at, stop))
    return [(on, off) for on, off in free if on < off]
