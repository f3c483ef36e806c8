"""Going on after having stopped for what was no turn."""

from __future__ import annotations

from envs.event import Event
from rewards.registry import reward
from rewards.text import babbles, contains_any, normalise
from rewards.timing import late_score, limits
from rewards.verdict import Verdict
from rewards.view import EpisodeView, Utterance

FULL_SECONDS, ZERO_SECONDS = 2.0, 3.5
"""LiveKit takes an interruption for a false one after 2.0 s of silence and goes on."""
RESTART_WORDS = 4
"""So many of the first words again, and it has begun anew instead of going on."""


@reward(
    "resume",
    axis="resume",
    events=["C7", "C8", "D1", "D2", "D3", "D4", "D5", "D6", "D7", "D8", "D9", "G4"],
    horizon_s=2.0 * ZERO_SECONDS - FULL_SECONDS + 1.0,
    beside=["continue", "interruption", "quality"],
)
def resume(view: EpisodeView, event: Event) -> Verdict:
    """Having stopped for a "yeah", a cough or a barge-in that was given up, go on where the sentence broke off.

    Source: taxonomy C8, G4 and what follows a stop at D1-D9. `continue` says that stopping there was wrong; this says
    what to do about it, so that the frames after a false stop have a gradient of their own.

    Window: from the event's onset to 6 s after its end. None when the agent was not talking at the onset, did not stop
    (its first silence after the onset is a breath of up to 0.5 s, or begins later than 1 s after the event's end), when
    the user takes a turn before it would have had to go on, and when the episode ends within 3.5 s of the event's end.

    Value, by the first speech after the stop that takes the floor: 1 when it begins up to 2.0 s after the event's end,
    0 at 3.5 s, -1 at 5 s or for none (`within: {full, zero}` of a `resumes` expectation moves 2.0 and 3.5). Not above
    -0.5 when it begins again with the first four words of what it had broken off; not above 0 when it babbles, or holds
    none of the words that a `resumes` expectation asks for. A sentence that happened to end at the event looks like a
    stop; a group of rollouts shares that chance.

    Degenerate policies: silent and always talking None, a truncator and backchannels only -1 or None, a mumbler 0, a
    metronome whatever its period is. It pays only those who have stopped, and `continue` beside it takes more from them
    than it gives.
    Raw: `resumed_s` (from the event's end, signed, absent for none), `restart` 0 or 1 (absent without text).
    """
    talking = view.utterance_at(event.onset)
    full, zero = limits(event, "resumes", FULL_SECONDS, ZERO_SECONDS)
    due = event.offset + view.samples(zero)
    window = view.credit(min(event.offset, view.end), min(due, view.end))
    if talking is None or view.end < due or talking.offset >= event.offset + view.samples(1.0):
        return Verdict(None, window)
    if sum(event.onset < burst.offset <= talking.offset for burst in view.bursts) > 1:
        return Verdict(None, window)  # a breath, and on: what came to its end later was the sentence
    after = [said for said in view.utterances if said.onset >= talking.offset]
    limit = view.next_user_turn(event.offset)
    if limit < due and not any(said.takes_floor and said.onset < limit for said in after):
        return Verdict(None, window)  # the user has gone on: there is nothing to resume
    latest = min(limit, event.offset + view.samples(2.0 * zero - full))
    resumed = next((said for said in after if said.takes_floor and said.onset < latest), None)
    if resumed is None:
        return Verdict(-1.0, window)
    at = view.seconds(resumed.onset - event.offset)
    raw = {"resumed_s": at}
    value = late_score(at, full, zero)
    if resumed.words is not None and talking.words is not None:
        raw["restart"] = float(_restarts(talking, resumed))
        expect = event.expected("resumes")
        content = () if expect is None else expect.content
        said = [word.text for word in resumed.words]
        if babbles(resumed.words) or (content and not contains_any(said, content)):
            value = min(0.0, value)
        if raw["restart"]:
            value = min(-0.5, value)
    return Verdict(value, window, raw)


def _restarts(before: Utterance, after: Utterance) -> bool:
    """Whether speech begins with the words with which what was broken off began."""
    first, again = ([*normalise(" ".join(w.text for w in said.words or ()))] for said in (before, after))
    head = first[:RESTART_WORDS]
    return len(head) == RESTART_WORDS and again[:RESTART_WORDS] == head
